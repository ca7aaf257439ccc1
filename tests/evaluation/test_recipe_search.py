"""A search over recipes: the settings of a file, test rows out of reach, nothing computed twice, paired tables."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from had.errors import UserError
from had.evaluation import recipe_search
from had.evaluation.layouts import TaskFiles
from had.evaluation.recipe_search import SearchOptions, search
from had.evaluation.recipe_settings import read_settings, slug
from had.evaluation.recipe_tables import as_markdown, summarise
from had.training.finetuning_recipe import FitConfig
from tests.evaluation.made_up_suites import save_student, write_gue

QUICK = FitConfig(epochs=1, batch_size=24)
FAST = FitConfig(epochs=1, batch_size=24, lr=1e-2)
GRID = """
common: {epochs: 1, batch_size: 24}
settings:
  muon fast: {optimizer: muon, lr: 1e-2}
one_at_a_time:
  lr: [1e-2]
  rc_augment: [auto, false]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, one with a broken test file and one without any; a tiny student; a file of settings."""
    folder = tmp_path_factory.mktemp("search")
    write_gue(folder / "gue", ("mouse/3", "tf/0"))
    (folder / "gue/mouse/3/test.csv").write_bytes(b"\x1f\x8bnot gzip")
    (folder / "gue/tf/0/test.csv").unlink()
    save_student(folder / "student")
    (folder / "grid.yaml").write_text(GRID)
    return folder


def options(folder: Path, **changes: Any) -> SearchOptions:
    given = {"model": str(folder / "student"), "max_train_rows": 40, "max_dev_rows": 16, "quiet": True, **changes}
    return SearchOptions(str(folder / "gue"), given.pop("tasks", ["mouse/3", "tf/0"]), **given)


def test_settings_of_a_file(base: Path, tmp_path: Path) -> None:
    settings = read_settings(base / "grid.yaml")
    # rc_augment auto is the default: no setting of its own.
    assert list(settings) == ["default", "muon fast", "lr 0.01", "rc_augment false"]
    assert settings["default"] == FitConfig(epochs=1, batch_size=24)
    assert settings["muon fast"] == FitConfig(epochs=1, batch_size=24, optimizer="muon", lr=1e-2)
    path = tmp_path / "grid.yaml"
    path.write_text("grid: {lr: [1e-3, 2e-3], ema: [0.0, 0.9, 0.99]}")
    assert len(read_settings(path)) == 7
    for text, message in (
        ("setings: {a: {}}", "'setings' is no section"),
        ("settings: {a: {learning_rate: 1}}", "setting a: unknown key"),
        ("one_at_a_time: {lr: 1e-3}", "a list of values"),
        ("settings: {a/b: {lr: 1e-3}, a b: {lr: 2e-3}}", "two settings"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_settings(path)


def test_a_search_never_reads_test_rows_and_computes_nothing_twice(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read, digest, run_trial = TaskFiles.read, TaskFiles.digest, recipe_search.run_trial
    monkeypatch.setattr(TaskFiles, "read", lambda self, split: asked.append(split) or read(self, split))
    monkeypatch.setattr(TaskFiles, "digest", lambda self, split: asked.append(split) or digest(self, split))
    ran: list[tuple[str, str, int]] = []

    def spy(trial, shelf):
        ran.append((trial.spec.task.name, trial.setting, trial.seed))
        assert "test" not in trial.spec.files.splits
        return run_trial(trial, shelf)

    monkeypatch.setattr(recipe_search, "run_trial", spy)
    settings = read_settings(base / "grid.yaml")
    two = {name: settings[name] for name in ("default", "lr 0.01")}
    first = search(two, tmp_path / "run", options(base))
    assert ran == [(task, name, 0) for name in two for task in ("mouse/3", "tf/0")]
    assert {(t["n_train"], t["n_dev"]) for t in first} == {(40, 16)}
    assert set(asked) == {"train", "dev"}
    assert all(0 <= trial["scores"]["auroc"] <= 1 for trial in first)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/trials").rglob("*.json")}
    assert len(stamps) == 4
    everything = search(settings, tmp_path / "run", options(base))
    assert ran[4:] == [(t, name, 0) for name in ("muon fast", "rc_augment false") for t in ("mouse/3", "tf/0")]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    again = search(settings, tmp_path / "run", options(base))
    assert len(ran) == 8
    assert again == sorted(everything, key=lambda t: [list(settings).index(t["setting"]), t["task"]])
    with (tmp_path / "run/settings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3
    by_name = {(row["setting"], row["task"]): row for row in rows}
    for task in ("mouse/3", "tf/0"):
        mine, ours = (float(by_name[name, task]["dev"]) for name in ("lr 0.01", "default"))
        assert float(by_name["lr 0.01", task]["difference"]) == pytest.approx(mine - ours, abs=2e-6)
    text = (tmp_path / "run/table.md").read_text()
    assert "| minus default |" in text
    assert "| muon fast |" in text
    # The same trial, the same number.
    one = search(two, tmp_path / "other", options(base, tasks=["tf/0"]))
    assert [t["dev"] for t in one] == [t["dev"] for t in first if t["task"] == "tf/0"]
    # The caps, the settings and the data are the same or it is another search.
    with pytest.raises(UserError, match="another max_train_rows"):
        search(settings, tmp_path / "run", options(base, max_train_rows=30))
    with pytest.raises(UserError, match=r"default, seed 0 was made with another config\.epochs"):
        search({"default": FitConfig(epochs=2, batch_size=24)}, tmp_path / "run", options(base))


def test_trials_of_other_names_and_damaged_or_older_ones(base: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "run", options(base, tasks=["tf/0"])
    first = search({"default": QUICK, "lr 0.01": FAST}, out, given)
    # The same folder under another name: the tables have the name of now.
    renamed = search({"default": QUICK, "lr_0.01": FAST}, out, given)
    assert [trial["setting"] for trial in renamed] == ["default", "lr_0.01"]
    assert [trial["dev"] for trial in renamed] == [trial["dev"] for trial in first]
    assert "| lr_0.01 |" in (out / "table.md").read_text()
    place = out / "trials/tf__0/default/seed-0.json"
    whole = json.loads(place.read_text())
    # A version that knew no positions: its trial is none of the default that asks about them.
    before = {key: value for key, value in whole["config"].items() if key != "positions"}
    place.write_text(json.dumps({**whole, "config": before}))
    with pytest.raises(UserError, match=r"another config\.positions \(False, now auto\)"):
        search({"default": QUICK}, out, given)
    (kept,) = search({"default": dataclasses.replace(QUICK, positions=False)}, out, given)
    assert kept["dev"] == whole["dev"]
    for damaged in ({key: value for key, value in whole.items() if key != "scores"}, [], "x", None):
        place.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="no readable trial"):
            search({"default": QUICK}, out, given)
    place.write_text(json.dumps(whole)[:100])
    with pytest.raises(UserError, match="remove it to compute it again"):
        search({"default": QUICK}, out, given)
    with pytest.raises(UserError, match="--tasks names nothing"):
        search({"default": QUICK}, out, options(base, tasks=[]))


def test_names_of_settings_become_names_of_folders(tmp_path: Path) -> None:
    assert [slug(name) for name in ("lr 0.01", "a/b", "..", ".")] == ["lr_0.01", "a_b", "_..", "_."]
    long = [", ".join(f"{key} {i}" for key in ("label_smoothing", "weight_decay") * 20) for i in range(2)]
    assert slug(long[0]) != slug(long[1])
    for name in long:
        (tmp_path / slug(name)).mkdir()
    path = tmp_path / "grid.yaml"
    path.write_text("grid: {lr: [], ema: [0.9]}")
    with pytest.raises(UserError, match="lr needs a list of values"):
        read_settings(path)


def test_trials_that_diverge_are_told_and_wrong_options_refused(base: Path, tmp_path: Path) -> None:
    settings = {"default": FitConfig(epochs=2, batch_size=24, lr=1e30)}
    (trial,) = search(settings, tmp_path / "run", options(base, tasks=["tf/0"]))
    assert trial["dev"] is None
    assert "not finite" in trial["note"]
    assert "| default | – |" in (tmp_path / "run/table.md").read_text()
    for changes, message in (
        ({"tasks": ["tf/1"]}, "neither a train nor a dev file of tf/1"),
        ({"seeds": 0}, "--seeds"),
        ({"jobs": 0}, "--jobs"),
        ({"model": "nowhere"}, "nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            search(settings, tmp_path / "none", options(base, **changes))
    assert search(settings, tmp_path / "none", options(base, dry_run=True)) == []
    assert not (tmp_path / "none").exists()


def test_differences_are_paired_by_task_and_seed() -> None:
    def trial(setting: str, task: str, seed: int, dev: float | None) -> dict[str, Any]:
        return {"setting": setting, "task": task, "seed": seed, "dev": dev, "one_strand": dev, "both_strands": None} | {
            "seconds": 1.5,
            "scores": {} if dev is None else {"auroc": dev + 0.05},
        }

    trials = [trial("default", "a", 0, 0.5), trial("default", "a", 1, 0.7), trial("default", "b", 0, 0.2)]
    # Seed 1 of task b has no partner, and does not count in the difference.
    trials += [trial("new", "a", 0, 0.6), trial("new", "b", 0, 0.1), trial("new", "b", 1, 0.9)]
    trials += [trial("bad", "a", 0, None)]
    new, default, bad = summarise(["default", "new", "bad"], trials)
    assert (new.setting, default.setting, bad.setting) == ("new", "default", "bad")
    assert new.by_task == pytest.approx({"a": 0.6, "b": 0.5})
    assert new.differences == pytest.approx({"a": 0.1, "b": -0.1})
    assert new.interval is not None
    assert new.interval.mean == pytest.approx(0.0)
    assert bad.interval is None
    partly = [trial("best", "a", 0, 0.99)]
    assert [line.setting for line in summarise(["default", "new", "best"], trials[:-1] + partly)][-1] == "best"
    text = as_markdown([new, default, bad], "default")
    assert "| new | 0.550 | +0.000 [-1.271, +1.271] | 1 of 2 | 0.600 | 0.500 |" in text
    assert "bad (1 of 3 trials)" in text
    assert (new.auroc, default.auroc) == pytest.approx(((0.6 + 0.1 + 0.9) / 3 + 0.05, (0.5 + 0.7 + 0.2) / 3 + 0.05))


@pytest.mark.slow
def test_the_script_runs_in_several_processes(base: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts/search_recipe.py"
    words = [str(base / "grid.yaml"), "--data", str(base / "gue"), "--tasks", "mouse/3,tf/0", "--model"]
    words += [str(base / "student"), "--max-train-rows", "40", "--max-dev-rows", "16", "--jobs", "2"]
    command = [sys.executable, str(script), *words, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = search(read_settings(base / "grid.yaml"), tmp_path / "alone", options(base))
    for trial in alone:
        name = trial["setting"].replace(" ", "_")
        path = tmp_path / "run/trials" / trial["task"].replace("/", "__") / name / "seed-0.json"
        assert json.loads(path.read_text())["dev"] == trial["dev"]
    wrong = subprocess.run([*command[:2], str(tmp_path / "no.yaml"), *command[3:]], capture_output=True, check=False)
    assert wrong.returncode == 2
