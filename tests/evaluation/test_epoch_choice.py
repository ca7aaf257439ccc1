"""The script that asks whether the epoch that validation chooses is better than the last one."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts/epoch_choice.py"
    spec = importlib.util.spec_from_file_location("epoch_choice", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits_of(predicted: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[predicted]


def test_an_epoch_that_is_better_is_found_by_either_half(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 400)
    right, wrong = targets, np.where(rng.random(400) < 0.3, 1 - targets, targets)
    chosen, last = script.halves(np.stack([logits_of(p) for p in (wrong, right, wrong)]), targets, 0)
    assert chosen == pytest.approx(1)
    assert last == pytest.approx(0.4, abs=0.1)


def test_choosing_among_epochs_that_are_alike_gains_nothing(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the rows that choose the best looks better than the last; on the others it does not."""
    monkeypatch.setattr(script, "HALVINGS", 40)
    rng = np.random.default_rng(1)
    gains = []
    for seed in range(20):
        targets = rng.integers(0, 2, 200)
        epochs = [np.where(rng.random(200) < 0.3, 1 - targets, targets) for _ in range(5)]
        chosen, last = script.halves(np.stack([logits_of(p) for p in epochs]), targets, seed)
        gains.append(chosen - last)
    assert abs(np.mean(gains)) < 0.04
