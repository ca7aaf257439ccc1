"""A small genome and commands on it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from had.dna.alphabet import decode


@pytest.fixture(scope="session")
def small_genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records of 40 and 25 kb, soft-masked in part, with runs of N, from a biased first-order chain."""
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("genome") / "small.fa"
    with path.open("w") as file:
        for name, length in (("one", 40_000), ("two", 25_000)):
            codes = rng.choice(4, size=length, p=[0.3, 0.2, 0.2, 0.3]).astype(np.uint8)
            codes[5::7] = codes[4::7][: len(codes[5::7])]
            codes[10_000:10_150] = 4
            letters = decode(codes)
            file.write(f">{name} made up\n{letters[:9_000]}\n{letters[9_000:].lower()}\n")
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command in this process; return its exit code and what it wrote to standard error.

    Pictures and Markov chains, which other tests are about, are left out.
    """
    from had.cli import main
    from had.training import distillation, runs

    monkeypatch.setattr(runs, "plot_losses", lambda *_: None)
    monkeypatch.setattr(distillation, "fit_markov", lambda *_: None)
    monkeypatch.setattr(distillation, "markov_sums", lambda *_: ({}, {}))

    def call(*words: str | Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["had", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


Command = Callable[..., subprocess.CompletedProcess[str]]


def environment(**more: str) -> dict[str, str]:
    """Environment of a command under test: one thread, no launcher's variables."""
    clean = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")}
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **more}


@pytest.fixture(scope="session")
def had_command() -> Command:
    """Run ``had …`` as users do, in a process of its own."""

    def run(*words: str | Path, launcher: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *(launcher or ("-m", "had")), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=240)

    return run


TINY_TEACHER = (
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=24",
    "data.window=60",
    "data.validation_windows=8",
    "training.global_batch=4",
    "training.micro_batch=2",
    "training.validate_every=4",
    "training.checkpoint_every=4",
    "training.optimizer.warmup_steps=5",
)
TINY_STUDENT = (
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.recurrent_blocks=1",
    "model.key_width=8",
    "model.value_width=8",
    "model.attention_heads=1",
    "model.decoder_heads=1",
    "objective.fit_windows=16",
    *TINY_TEACHER[4:],
)
