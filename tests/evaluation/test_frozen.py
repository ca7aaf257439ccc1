"""Probes of frozen models over several tasks: which rows are read, what is kept, how models are compared."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from had.errors import UserError
from had.evaluation import frozen
from had.evaluation.frozen import compare, probe_tasks

CPU = torch.device("cpu")
MODELS = {"counts": "kmers", "untrained": "untrained:0"}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two tasks that composition decides: rich in G and C, or not."""
    rng = np.random.default_rng(0)
    for task in ("a", "b/c"):
        folder = tmp_path / "suite" / task
        folder.mkdir(parents=True)
        for split, rows in (("train", 40), ("dev", 16), ("test", 20)):
            with (folder / f"{split}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("sequence", "label"))
                for i in range(rows):
                    weights = (0.15, 0.35, 0.35, 0.15) if i % 2 else (0.35, 0.15, 0.15, 0.35)
                    writer.writerow(("".join(rng.choice(list("ACGT"), 36, p=weights)), i % 2))
    return tmp_path / "suite"


def test_every_layer_has_a_row_and_one_is_chosen(suite: Path, tmp_path: Path) -> None:
    rows = probe_tasks(suite, ["a", "b/c"], MODELS, tmp_path / "out.csv", CPU, None)
    for task in ("a", "b/c"):
        for model in MODELS:
            ours = [row for row in rows if (row["task"], row["model"]) == (task, model)]
            assert len(ours) == (1 if model == "counts" else 6)
            chosen = [row for row in ours if row["chosen"] == "1"]
            assert len(chosen) == 1
            assert float(chosen[0]["dev_mcc"]) == max(float(row["dev_mcc"]) for row in ours)
            assert (ours[0]["n_train"], ours[0]["n_dev"], ours[0]["n_test"]) == ("40", "16", "20")
    counts = [float(row["test_mcc"]) for row in rows if row["model"] == "counts"]
    assert min(counts) > 0.3


def test_rows_beyond_the_limit_are_never_embedded(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    layers = frozen.student_layers
    monkeypatch.setattr(
        frozen, "student_layers", lambda model, sequences: seen.append(len(sequences)) or layers(model, sequences)
    )
    rows = probe_tasks(suite, ["a"], MODELS, tmp_path / "out.csv", CPU, 10)
    assert seen == [10, 16, 20]
    assert {row["n_train"] for row in rows} == {"10"}
    with pytest.raises(UserError, match="fitted on 10 training rows, not on 40"):
        probe_tasks(suite, ["a"], {**MODELS, "more": "kmers"}, tmp_path / "out.csv", CPU, None)


def test_what_stands_in_the_table_is_not_computed_again(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    first = probe_tasks(suite, ["a"], MODELS, out, CPU, None)
    monkeypatch.setattr(frozen, "open_model", lambda *_: pytest.fail("a model was opened again"))
    both = probe_tasks(suite, ["a", "b/c"], {"counts": "kmers"}, out, CPU, None)
    assert both[: len(first)] == first
    assert [(row["task"], row["model"]) for row in both[len(first) :]] == [("b/c", "counts")]


def test_models_are_compared_over_the_tasks_both_have() -> None:
    def row(task: str, model: str, score: float, chosen: int = 1) -> dict[str, str]:
        return {"task": task, "model": model, "chosen": str(chosen), "test_mcc": str(score)}

    rows = [row("a", "ref", 0.1), row("b", "ref", 0.2), row("c", "ref", 0.9)]
    rows += [row("a", "ours", 0.4), row("b", "ours", 0.3), row("b", "ours", 0.8, chosen=0)]
    rows += [row("c", "one", 0.5), row("d", "none", 0.5)]
    _, ours, one = compare(rows, "ref")
    assert (ours.n_tasks, ours.wins) == (2, 2)
    assert ours.mean == pytest.approx(0.35)
    assert ours.difference == pytest.approx(0.2)
    # Student's t over tasks: 0.2 ± 12.706 · 0.1.
    assert (ours.low, ours.high) == pytest.approx((-1.0706, 1.4706), abs=1e-3)
    assert "against ref +0.200 [-1.071, +1.471], better on 2" in ours.sentence()
    assert "against ref -0.400 (one task gives no interval), better on 0" in one.sentence()


def test_a_task_without_a_split_and_an_unknown_model_are_told(suite: Path, tmp_path: Path) -> None:
    (suite / "a" / "dev.csv").unlink()
    with pytest.raises(UserError, match="has no dev file"):
        probe_tasks(suite, ["a"], MODELS, tmp_path / "out.csv", CPU, None)
    with pytest.raises(UserError, match="untrained:SEED"):
        probe_tasks(suite, ["b/c"], {"x": "untrained:one"}, tmp_path / "out.csv", CPU, None)


def test_wrong_options_are_refused_before_anything_is_computed(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    for spec, message in (("untrained:²", "whole number"), ("untrained:" + "9" * 5000, "whole number")):
        with pytest.raises(UserError, match=message):
            probe_tasks(suite, ["a"], {"x": spec}, out, CPU, None)
    for place, rows, message in (
        (out, -3, "--max-rows must be at least 2"),
        (out, 0, "--max-rows must be at least 2"),
        (tmp_path, None, "it is a folder"),
        (tmp_path / "absent/p.csv", None, "absent is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            probe_tasks(suite, ["a"], MODELS, place, CPU, rows)
    probe_tasks(suite, ["a"], {"counts": "kmers"}, out, CPU, None)
    whole = out.read_text()
    for damaged in (whole[:-9], whole + ",,,,,,,,,,,\n", "a,b\n1,2\n"):
        out.write_text(damaged)
        with pytest.raises(UserError, match="no whole table of probes"):
            probe_tasks(suite, ["a"], MODELS, out, CPU, None)
