"""A benchmark: every kind of model, the test met once and last, nothing computed twice, failures told."""

import csv
import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from had.errors import RunFault, UserError
from had.evaluation import report_provenance, selection, units, workers
from had.evaluation.benchmark_folder import BenchmarkFolder
from had.evaluation.benchmarks import BenchmarkOptions, benchmark
from had.evaluation.contestants import fit_configs, parse_models
from had.evaluation.layouts import TaskFiles, need_task
from had.evaluation.protocols import SUITES
from had.evaluation.report_document import Table
from had.evaluation.unit_files import COLUMNS, Record, Unit, place_of, read_predictions, read_record
from had.metrics import mcc
from had.training.finetuning_loop import Fit
from had.training.finetuning_recipe import FitConfig
from tests.evaluation.made_up_suites import TEACHER, make_rows, save_student, write_csv, write_gue

# One short epoch: what is learnt does not matter here.
QUICK = {name: {"epochs": 1, "batch_size": 24} for name in ("training", "teacher", "cnn")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of two tasks, a tiny student, and one finished benchmark of every kind of model."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_gue(folder / "gue", ("mouse/3", "prom/prom_core_tata"))
    save_student(folder / "student")
    models = ("had", "scratch", "probe", "kmer", "cnn", "teacher", "teacher-probe", "untrained=probe:untrained")
    benchmark("gue", folder / "run", options(folder, models=models, tasks=["mouse/3"], seeds=2))
    return folder


def options(folder: Path, **changes: Any) -> BenchmarkOptions:
    made = BenchmarkOptions(
        str(folder / "gue"),
        models=("kmer",),
        model=str(folder / "student"),
        teacher=TEACHER,
        changes=QUICK,
        device="cpu",
        threads=1,
        quiet=True,
    )
    return dataclasses.replace(made, **changes)


def table(run: Path) -> list[dict[str, str]]:
    with (run / "scores.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return list(reader)


def test_every_kind_of_model_has_a_row_a_seed_that_can_be_computed_again(base: Path) -> None:
    rows = table(base / "run")
    assert len(rows) == 16
    for row in rows:
        assert (row["suite"], row["metric"], row["n_train"], row["n_test"]) == ("gue", "mcc", "48", "24")
        assert float(row["seconds"]) > 0
        found = read_predictions(place_of(base / "run", Unit(row["task"], row["model"], int(row["seed"]))))
        assert found.probabilities.shape == (24, 2)
        np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
        assert float(row["value"]) == pytest.approx(mcc(found.targets, found.probabilities.argmax(1)), abs=1e-6)
        assert "reduced training set: 48 of officially 1,904 rows" in row["note"]
        assert "another test set: 24 rows, officially 239" in row["note"]
    # The made-up classes are easy for a linear model on composition.
    kmer = [row for row in rows if row["model"] == "kmer"]
    assert min(float(row["value"]) for row in kmer) > 0.8
    assert "nothing in it is random: the same for every seed" in kmer[0]["note"]
    assert {row["value"] for row in kmer} == {kmer[0]["value"]}
    untrained = [read_record(place_of(base / "run", Unit("mouse/3", "untrained", s))).facts for s in (0, 1)]
    assert untrained[0]["seed_changes_nothing"] is False


def test_the_first_seed_chooses_the_learning_rate_and_the_others_keep_it(base: Path) -> None:
    for model, rates in (("had", {"0.001", "0.002"}), ("teacher", {"3e-05", "0.0003"})):
        first, second = (read_record(place_of(base / "run", Unit("mouse/3", model, seed))).facts for seed in (0, 1))
        assert first["lr_validation"].keys() == rates
        assert "lr_validation" not in second
        assert second["lr"] == first["lr"]
        best = max(score for score in first["lr_validation"].values())
        assert first["lr_validation"][f"{first['lr']:g}"] == best
    assert "lr_validation" not in read_record(place_of(base / "run", Unit("mouse/3", "cnn", 0))).facts


def test_scratch_has_the_sizes_of_the_student_and_had_its_weights(base: Path) -> None:
    facts = {name: read_record(place_of(base / "run", Unit("mouse/3", name, 0))) for name in ("had", "scratch")}
    assert facts["had"].facts["parameters"] == facts["scratch"].facts["parameters"] < 20_000
    assert len(facts["had"].settings["model"]) == 64


def test_nothing_is_computed_twice(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, tuple[int, ...]]] = []
    real = units.choose

    def spy(contestant, data, seed, *rest, **more):
        ran.append((contestant.name, seed))
        return real(contestant, data, seed, *rest, **more)

    monkeypatch.setattr(units, "choose", spy)
    run = tmp_path / "run"
    benchmark("gue", run, options(base, tasks=["mouse/3"], models=("cnn",), seeds=1))
    first = (run / "scores.csv").read_text().splitlines()
    stamp = place_of(run, Unit("mouse/3", "cnn", 0)).stat().st_mtime_ns
    result = benchmark("gue", run, options(base, models=("cnn", "kmer"), seeds=2))
    assert (result["done"], result["there"]) == (7, 1)
    assert ran == [("cnn", 0), ("cnn", 1), ("kmer", 0), ("cnn", 0), ("cnn", 1), ("kmer", 0)]
    assert (run / "scores.csv").read_text().splitlines()[:2] == first
    assert place_of(run, Unit("mouse/3", "cnn", 0)).stat().st_mtime_ns == stamp
    again = benchmark("gue", run, options(base, models=("cnn", "kmer"), seeds=2))
    assert (again["done"], again["there"]) == (0, 8)
    assert len(ran) == 6
    # A row that a crash kept out of the table is taken from its predictions.
    lines = (run / "scores.csv").read_text().splitlines()
    (run / "scores.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert benchmark("gue", run, options(base, models=("cnn", "kmer"), seeds=2))["done"] == 0
    assert (run / "scores.csv").read_text().splitlines() == lines
    assert len(json.loads((run / "benchmark.json").read_text())["invocations"]) == 4


def test_a_killed_benchmark_goes_on_and_keeps_what_it_has(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "had", "benchmark", "gue", "--data", str(base / "gue"), "--models", "kmer,cnn"]
    command += ["--tasks", "mouse/3", "--seeds", "3", "--out", str(run), "--threads", "1", "--device", "cpu"]
    # Long enough to be killed in the middle of it.
    process = subprocess.Popen([*command, "cnn.epochs=4000"], stderr=subprocess.PIPE, text=True)
    try:
        last = place_of(run, Unit("mouse/3", "kmer", 2))
        deadline = time.monotonic() + 200
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.5)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    kept = (run / "scores.csv").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in run.glob("predictions/**/*.parquet")}
    assert len(stamps) >= 3
    changes = {"cnn": {"epochs": 1}}
    mine = options(base, tasks=["mouse/3"], models=("kmer", "cnn"), seeds=3, changes=changes)
    result = benchmark("gue", run, mine)
    assert (result["done"], result["there"]) == (3, 3)
    assert (run / "scores.csv").read_text().startswith(kept)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(table(run)) == 6


def test_a_fit_that_was_killed_goes_on_from_its_last_epoch(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training": {"epochs": 3, "batch_size": 24}}
    mine = options(base, tasks=["mouse/3"], models=("scratch",), seeds=1, changes=changes)
    benchmark("gue", tmp_path / "whole", mine)
    monkeypatch.setattr(selection, "SAVE_SECONDS", 0.0)
    ran: list[tuple[float | None, int]] = []
    epoch = Fit._one_epoch

    def dies_in_the_last_but_one(self, advance):
        ran.append((self.config.lr, self.epoch))
        if len(ran) == 5:
            raise KeyboardInterrupt
        return epoch(self, advance)

    monkeypatch.setattr(Fit, "_one_epoch", dies_in_the_last_but_one)
    with pytest.raises(RunFault, match="interrupted"):
        benchmark("gue", tmp_path / "cut", mine)
    assert list((tmp_path / "cut/unfinished").rglob("manifest.json"))
    benchmark("gue", tmp_path / "cut", mine)
    # The first rate was through, the second had one epoch behind it.
    assert ran == [(1e-3, 0), (1e-3, 1), (1e-3, 2), (2e-3, 0), (2e-3, 1), (2e-3, 1), (2e-3, 2)]
    assert not (tmp_path / "cut/unfinished").exists()
    then, now = (read_predictions(place_of(tmp_path / n, Unit("mouse/3", "scratch", 0))) for n in ("whole", "cut"))
    np.testing.assert_array_equal(then.probabilities, now.probabilities)
    for fact in ("validation", "lr", "lr_validation", "epoch", "conjoin"):
        assert then.record.facts[fact] == now.record.facts[fact], fact


def test_a_full_disk_is_no_lost_comparison(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RunFault("no space left on device")

    monkeypatch.setattr(selection, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Fit, "_save", full)
    with pytest.raises(RunFault, match="no space left"):
        benchmark("gue", tmp_path / "run", options(base, tasks=["mouse/3"], models=("scratch",), seeds=1))


def test_scores_of_a_version_without_some_settings_can_be_added_to(base: Path, tmp_path: Path) -> None:
    folder = BenchmarkFolder(base / "run")
    record = folder.records_of("mouse/3", "cnn")[0]
    old = [
        {k: v for k, v in recipe.items() if k not in ("class_weights", "muon_lr")}
        for recipe in record.settings["recipes"]
    ]
    older = dataclasses.replace(record, settings={**record.settings, "recipes": old})
    folder.records_of = lambda task, model: [older]  # type: ignore[method-assign]
    folder.check("mouse/3", "cnn", record.settings)
    changed = [{**recipe, "optimizer": "muon"} for recipe in record.settings["recipes"]]
    with pytest.raises(UserError, match=r"another optimizer \(adamw, now muon\)"):
        folder.check("mouse/3", "cnn", {**record.settings, "recipes": changed})


def test_scores_from_before_positions_are_not_mixed_with_those_that_know_them(base: Path) -> None:
    folder = BenchmarkFolder(base / "run")
    record = folder.records_of("mouse/3", "had")[0]
    old = [{k: v for k, v in recipe.items() if k != "positions"} for recipe in record.settings["recipes"]]
    older = dataclasses.replace(record, settings={**record.settings, "recipes": old})
    folder.records_of = lambda task, model: [older]  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"another positions \(False, now auto\)"):
        folder.check("mouse/3", "had", record.settings)
    without = [{**recipe, "positions": False} for recipe in record.settings["recipes"]]
    folder.check("mouse/3", "had", {**record.settings, "recipes": without})


def test_the_table_of_recipes_names_the_tasks_and_muons_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = BenchmarkFolder(Path("nowhere"))
    units_of = {"scratch": ("a", "b"), "cnn": ("b",)}
    folder.rows = {Unit(task, model, 0): {} for model, tasks in units_of.items() for task in tasks}
    recipe = dataclasses.asdict(FitConfig(muon_lr=1e-3))

    def records_of(task: str, model: str) -> list[Record]:
        if task not in units_of[model]:
            return []
        own = {**recipe, "optimizer": "adamw", "muon_lr": None} if model == "cnn" else recipe
        return [Record({}, {"epochs": n}, {"kind": model, "recipes": [own]}) for n in (5, 10)]

    monkeypatch.setattr(folder, "records_of", records_of)
    (made,) = report_provenance._recipes(folder)
    assert isinstance(made, Table)
    assert made.rows == [
        ["scratch", "Muon and AdamW", "5, 10", "64", "0.005 (Muon 0.001)", "0.1", "5%", "0.99", "all"],
        ["cnn", "AdamW", "5, 10", "64", "0.001", "0.1", "5%", "0.99", "b"],
    ]


def test_the_report_says_how_each_model_was_trained(base: Path) -> None:
    text = (base / "run/report.md").read_text().partition("## How it was run")[2]
    assert "| had | AdamW | 1 | 24 | 0.001 or 0.002 | 0.1 | 1% | 0.99 | all |" in text
    assert "| teacher | AdamW | 1 | 24 | 3e-05 or 0.0003 |" in text
    assert "| cnn | AdamW | 1 | 24 | 0.001 | 0 | 1% | none | all |" in text
    assert "| kmer |" not in text


def test_the_recipe_of_finetuning_stands_in_the_report_as_it_is(base: Path, tmp_path: Path) -> None:
    changes = {"training": {"batch_size": 4, "epochs": 2}}
    benchmark("gue", tmp_path / "run", options(base, models=("scratch",), recipe="finetune", changes=changes, seeds=1))
    text = (tmp_path / "run/report.md").read_text()
    assert "| scratch | Muon and AdamW | 2 | 4 | 0.005 | 0.1 | 5% | 0.99 | all |" in text


def test_an_untrained_probe_has_the_sizes_of_the_student(base: Path) -> None:
    report = (base / "run" / "report.md").read_text(encoding="utf-8")
    assert "| untrained | a frozen student and a linear probe, fresh weights |" in report
    assert "| probe | a frozen student and a linear probe |" in report
    facts = [read_record(place_of(base / "run", Unit("mouse/3", name, 0))).facts for name in ("probe", "untrained")]
    assert facts[0]["parameters"] - facts[0]["parameters_trained"] < 20_000
    assert facts[0]["parameters"] - facts[0]["parameters_trained"] == (
        facts[1]["parameters"] - facts[1]["parameters_trained"]
    )


def test_the_test_file_is_opened_only_when_a_model_stands(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    read, choose = TaskFiles.read, units.choose

    def spy_read(self, split):
        events.append(split)
        return read(self, split)

    def spy_choose(*arguments, **more):
        events.append("choose")
        chosen = choose(*arguments, **more)
        events.append("chosen")
        return chosen

    monkeypatch.setattr(TaskFiles, "read", spy_read)
    monkeypatch.setattr(units, "choose", spy_choose)
    benchmark("gue", tmp_path / "run", options(base, tasks=["mouse/3"], models=("had", "probe", "kmer"), seeds=1))
    assert events[:2] == ["train", "dev"]
    assert events[2:] == ["choose", "chosen", "test"] * 3 + ["test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing,here\n1,2\n", "columns must include sequence"),
        ("sequence,label\n", "has no row of this task with a sequence and a label"),
        ("sequence,label\nACGT,1\nAC!T,0\n", r"test.csv, line 3: '!' at position 3"),
    ],
)
def test_a_test_file_that_cannot_be_read_is_told_before_anything_is_trained(
    base: Path, tmp_path: Path, text: str, message: str
) -> None:
    write_gue(tmp_path / "gue", ("mouse/3",))
    (tmp_path / "gue/mouse/3/test.csv").write_text(text)
    mine = options(tmp_path, model=str(base / "student"), models=("kmer", "cnn"), seeds=1)
    for dry_run in (True, False):
        with pytest.raises(UserError, match=message):
            benchmark("gue", tmp_path / "run", dataclasses.replace(mine, dry_run=dry_run))
    assert not (tmp_path / "run").exists()


def test_units_that_fail_on_what_they_were_given_are_a_fault_since_others_are_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = units._compute

    def wrong(job: Any, data: Any, seed: int, *rest: Any) -> Any:
        if seed:
            raise UserError("this seed's rows are of one class")
        return compute(job, data, seed, *rest)

    monkeypatch.setattr(units, "_compute", wrong)
    monkeypatch.setattr(units, "stands_for_every_seed", lambda *_: False)
    with pytest.raises(RunFault, match=r"1 of 2 units failed, .*rows are of one class\); the others are"):
        benchmark("gue", tmp_path / "run", options(base, tasks=["mouse/3"], seeds=2))
    monkeypatch.setattr(units, "_compute", lambda *_: wrong(*_[:2], 1))
    with pytest.raises(RunFault, match=r"2 of 2 units failed, [^;]*; the same command tries these again"):
        benchmark("gue", tmp_path / "none", options(base, tasks=["mouse/3"], seeds=2))


def test_rows_whose_predictions_are_gone_are_not_added_to(base: Path, tmp_path: Path) -> None:
    mine = options(base, tasks=["mouse/3"], seeds=1)
    benchmark("gue", tmp_path / "run", mine)
    place_of(tmp_path / "run", Unit("mouse/3", "kmer", 0)).unlink()
    assert benchmark("gue", tmp_path / "run", mine)["done"] == 0
    with pytest.raises(UserError, match=r"kmer, seed 0 stands in scores.csv, but .*seed-0.parquet, .* is gone"):
        benchmark("gue", tmp_path / "run", dataclasses.replace(mine, seeds=2))


def test_a_refusal_to_mix_says_which_setting_differs(base: Path, tmp_path: Path) -> None:
    write_gue(tmp_path / "gue", ("mouse/3",))
    mine = options(tmp_path, models=("cnn",), tasks=["mouse/3"], seeds=1)
    benchmark("gue", tmp_path / "run", mine)
    for changes, message in (
        ({"cnn": {**QUICK["cnn"], "dropout": 0.2}}, r"another dropout \(0.0, now 0.2\)"),
        ({"cnn": {**QUICK["cnn"], "lr": 0.5}}, r"another lr \(0.001, now 0.5\)"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark("gue", tmp_path / "run", dataclasses.replace(mine, changes=changes))
    write_csv(tmp_path / "gue/mouse/3/dev.csv", make_rows(12, 99))
    with pytest.raises(UserError, match=r"another training data \(file 2 of 2, sha256\) \((\w{20})…, now (?!\1)"):
        benchmark("gue", tmp_path / "run", mine)


def test_other_test_rows_change_no_choice(base: Path, tmp_path: Path) -> None:
    write_gue(tmp_path / "gue", ("mouse/3",))
    write_csv(tmp_path / "gue/mouse/3/test.csv", [(s, str(1 - int(y))) for s, y in make_rows(22, 2)])
    mine = options(tmp_path, model=str(base / "student"), models=("had", "kmer", "probe"), seeds=1)
    benchmark("gue", tmp_path / "run", mine)
    for model in ("had", "kmer", "probe"):
        then, now = (read_predictions(place_of(p / "run", Unit("mouse/3", model, 0))) for p in (base, tmp_path))
        for fact in ("validation", "lr", "lr_validation", "epoch", "C", "layer", "conjoin"):
            assert then.record.facts.get(fact) == now.record.facts.get(fact), fact
        # The same model: what it says of the same letters does not change with their labels.
        np.testing.assert_array_equal(then.probabilities[:22], now.probabilities)


def test_scores_of_other_settings_do_not_mix(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mine = options(base, tasks=["mouse/3"], models=("cnn",), seeds=1)
    benchmark("gue", run, mine)
    before = (run / "scores.csv").read_text()
    changed = {**QUICK, "cnn": {"epochs": 2, "batch_size": 24}}
    with pytest.raises(UserError, match=r"mouse/3, cnn, seed 0 was made with another epochs \(1, now 2\)"):
        benchmark("gue", run, dataclasses.replace(mine, changes=changed))
    with pytest.raises(UserError, match="another max_train_rows"):
        benchmark("gue", run, dataclasses.replace(mine, max_train_rows=20))
    other = write_gue(tmp_path / "gue", ("mouse/3",), n=40)
    with pytest.raises(UserError, match="another training data"):
        benchmark("gue", run, dataclasses.replace(mine, data=str(other)))
    with pytest.raises(UserError, match="holds scores of gue"):
        benchmark("nucleotide-transformer", run, dataclasses.replace(mine, data=str(other)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("…")
    with pytest.raises(UserError, match="holds no benchmark"):
        benchmark("gue", tmp_path / "mine", mine)
    assert (run / "scores.csv").read_text() == before


def test_scores_of_another_test_file_do_not_mix(base: Path, tmp_path: Path) -> None:
    mine = options(tmp_path, model=str(base / "student"), tasks=["mouse/3"], seeds=1)
    write_gue(tmp_path / "gue", ("mouse/3",))
    run = tmp_path / "run"
    benchmark("gue", run, mine)
    before = (run / "scores.csv").read_text()
    write_csv(tmp_path / "gue/mouse/3/test.csv", make_rows(24, 7))
    for changes in ({"seeds": 2}, {"models": ("again=kmer",)}):
        with pytest.raises(UserError, match=r"mouse/3, kmer, seed 0 was tested on another test file; use another"):
            benchmark("gue", run, dataclasses.replace(mine, **changes))
    assert (run / "scores.csv").read_text() == before


def test_what_is_said_of_a_damaged_file_is_enough_to_compute_it_again(base: Path, tmp_path: Path) -> None:
    mine = options(base, tasks=["mouse/3"], seeds=1)
    run = tmp_path / "run"
    benchmark("gue", run, mine)
    place = place_of(run, Unit("mouse/3", "kmer", 0))
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(UserError, match=r"remove it, and its row of scores\.csv, to compute it again"):
        benchmark("gue", run, mine)
    place.unlink()
    (run / "scores.csv").write_text((run / "scores.csv").read_text().splitlines()[0] + "\n")
    assert benchmark("gue", run, mine)["done"] == 1


def test_the_seconds_of_frozen_features_count_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = SUITES["gue"]
    task = suite.task("mouse/3")
    data = units.TaskData(suite, task, need_task(base / "gue", suite, task))
    clock = 0.0

    class Slow:
        parameters, seconds, ready = 1, 0.0, False

        def of_rows(self) -> dict[str, np.ndarray]:
            nonlocal clock
            if not self.ready:
                self.ready, self.seconds = True, 100.0
                clock += 100.0
            return {"embedding": np.eye(len(data.rows), 4, dtype=np.float32)}

    monkeypatch.setattr(selection.time, "perf_counter", lambda: clock)
    extractor: Any = Slow()
    assert [selection._Probe(data, data.fold(seed), extractor).facts["train_seconds"] for seed in (0, 1)] == [100, 100]


def test_an_interrupt_is_left_to_the_process_that_ends_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("setup_logging", "keep_freed_memory", "set_threads"):
        monkeypatch.setattr(workers, name, lambda *_, **__: None)
    before, level = signal.getsignal(signal.SIGINT), logging.getLogger("had").level
    try:
        workers.start_worker(1)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
        logging.getLogger("had").setLevel(level)


def test_a_unit_that_fails_does_not_stop_the_others(base: Path, tmp_path: Path) -> None:
    changes = {**QUICK, "training": {"epochs": 2, "batch_size": 24, "lr": 1e30}}
    mine = options(base, tasks=["mouse/3"], models=("scratch", "kmer"), seeds=2, changes=changes)
    with pytest.raises(RunFault, match=r"2 of 4 units failed, first mouse/3, scratch, seed 0 .*not finite"):
        benchmark("gue", tmp_path / "run", mine)
    assert [row["model"] for row in table(tmp_path / "run")] == ["kmer", "kmer"]
    assert "mouse/3, scratch, seed 0 failed" in (tmp_path / "run/report.md").read_text()


def test_memory_that_runs_out_for_one_model_leaves_the_others(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = units.choose

    def too_large(contestant: Any, *arguments: Any, **more: Any) -> Any:
        if contestant.name == "scratch":
            raise MemoryError
        return choose(contestant, *arguments, **more)

    monkeypatch.setattr(units, "choose", too_large)
    with pytest.raises(RunFault, match=r"1 of 2 units failed, first mouse/3, scratch, seed 0 \(memory did not suffice"):
        benchmark("gue", tmp_path / "run", options(base, tasks=["mouse/3"], models=("scratch", "kmer"), seeds=1))
    assert [row["model"] for row in table(tmp_path / "run")] == ["kmer"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"epohcs": 3}}, "epohcs"),
        ({"training": 3}, "is no section of settings"),
        ({"network": {"lr": 1}}, "is no section of settings"),
        ({"cnn": {"metric": "r2"}}, "the metric of multiclass"),
        ({"cnn": {"lr": [1e-3, 2e-3]}}, "lr"),
        ({"cnn": {"lr": True}}, "lr"),
        ({"teacher": {"lr": "abc"}}, "lr"),
        ({"teacher": {"lr": -1}}, "lr must be above 0"),
    ],
)
def test_settings_without_meaning_are_refused_whoever_runs(
    base: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        benchmark("gue", tmp_path / "run", options(base, tasks=["mouse/3"], changes=changes))
    assert not (tmp_path / "run").exists()


def test_settings_that_change_nothing_are_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"training": {"epochs": 3}, "cnn": {"epochs": 3}}
    made = options(base, tasks=["mouse/3"], models=("cnn", "kmer"), changes=changes, dry_run=True)
    benchmark("gue", tmp_path / "run", made)
    said = capsys.readouterr().err
    assert "training.epochs changes nothing here: no model is had or scratch" in said
    assert "cnn.epochs" not in said


def test_a_damaged_table_of_scores_is_refused_and_made_anew(base: Path, tmp_path: Path) -> None:
    mine = options(base, tasks=["mouse/3"], seeds=2)
    benchmark("gue", tmp_path / "run", mine)
    whole = (tmp_path / "run/scores.csv").read_bytes()
    for damaged in (whole[: whole.index(b"gue") + 14], whole + b"\xff,", whole.replace(b"mouse/3,", b"mouse/3,,")):
        (tmp_path / "run/scores.csv").write_bytes(damaged)
        with pytest.raises(UserError, match=r"scores.csv: is no whole table of scores .*writes it anew"):
            benchmark("gue", tmp_path / "run", mine)
    (tmp_path / "run/scores.csv").unlink()
    assert benchmark("gue", tmp_path / "run", mine)["done"] == 0
    assert (tmp_path / "run/scores.csv").read_bytes() == whole


def test_a_rate_that_diverges_only_loses(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = dataclasses.replace(SUITES["gue"], rates=(1e30, 1e-3))
    monkeypatch.setitem(SUITES, "gue", suite)
    benchmark("gue", tmp_path / "run", options(base, tasks=["mouse/3"], models=("scratch",), seeds=1))
    facts = read_record(place_of(tmp_path / "run", Unit("mouse/3", "scratch", 0))).facts
    assert facts["lr"] == 1e-3
    assert facts["lr_validation"]["1e+30"] is None


def test_a_task_that_nobody_named_and_cannot_be_run_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gue(tmp_path / "gue", ("mouse/3", "mouse/2"))
    (tmp_path / "gue/mouse/2/test.csv").unlink()
    made = options(tmp_path, model="student", teacher="bundled", seeds=1)
    assert benchmark("gue", tmp_path / "run", made)["done"] == 1
    assert re.search(r"mouse/2 is left out: .*has no test file", capsys.readouterr().err)
    assert re.search(r"mouse/2 could not be run: .*has no test file", (tmp_path / "run/report.md").read_text())
    with pytest.raises(UserError, match="has no test file"):
        benchmark("gue", tmp_path / "other", dataclasses.replace(made, tasks=["mouse/2"]))
    (tmp_path / "gue/mouse/3/test.csv").unlink()
    with pytest.raises(UserError, match="has no test file"):
        benchmark("gue", tmp_path / "other", made)
    assert not (tmp_path / "other").exists()


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = options(base, models=("scratch", "kmer", "cnn", "probe"), seeds=2, dry_run=True, quiet=False)
    result = benchmark("gue", tmp_path / "run", mine)
    assert result == {"done": 0, "there": 0, "report": []}
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    assert "2 task(s), 4 model(s), 2 seed(s): 16 unit(s) to compute, about" in said
    assert "mouse/3: 48 training rows, 20 dev; scratch" in said
    assert "reduced training set: 48 of officially 1,904 rows" in said
    assert "fewer than 3 seeds" in said


def test_what_stands_for_every_seed_is_estimated_once(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("had.evaluation.costs.Costs.seconds", lambda *_: 10.0)
    mine = options(base, tasks=["mouse/3"], models=("scratch", "kmer"), seeds=3, dry_run=True, quiet=False)
    benchmark("gue", base / "none", mine)
    # Two learning rates with the first seed, then one.
    assert "scratch 40 s, kmer 10 s" in capsys.readouterr().err


def test_several_processes_give_the_same_numbers(base: Path, tmp_path: Path) -> None:
    models = ("had", "cnn", "kmer")
    mine = options(base, tasks=["mouse/3"], models=models, seeds=2, jobs=2)
    assert benchmark("gue", tmp_path / "run", mine)["done"] == 6
    then = {(r["model"], r["seed"]): r["value"] for r in table(base / "run") if r["model"] in models}
    assert {(r["model"], r["seed"]): r["value"] for r in table(tmp_path / "run")} == then


def test_wrong_options_are_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    wrong: Iterator[tuple[dict[str, Any], str]] = iter(
        [
            ({"models": ("gpt",)}, "is none of had"),
            ({"models": ("kmer", "a=kmer", "kmer")}, "two rows are named kmer"),
            ({"models": ("kmer:x",)}, "takes no source"),
            ({"models": ("had:nowhere",)}, "nowhere"),
            ({"models": ("teacher:nowhere",)}, "nowhere"),
            ({"models": ("cnn",), "changes": {"cnn": {"epoch": 3}}}, "epoch"),
            ({"models": ("cnn",), "changes": {"cnn": {"optimizer": "muon"}}}, "no matrices for muon"),
            ({"models": ("cnn",), "changes": {"train": {"epochs": 3}}}, "no section of settings"),
            ({"models": ("cnn",), "recipe": "mine"}, "--recipe is protocol or finetune"),
            ({"split": "fair"}, "--split is protocol or locus"),
            ({"seeds": 0}, "--seeds must be at least 1"),
            ({"jobs": 0}, "--jobs must be at least 1"),
            ({"tasks": ["mouse/3", "mouse_3"]}, "names mouse/3 twice"),
            ({"tasks": ["mouse/3", "./mouse//3"]}, "names mouse/3 twice"),
            ({"tasks": ["../gue/mouse/3"]}, "no folder below --data"),
            ({"models": ("..=kmer",)}, "is none of had"),
            ({"max_train_rows": 1}, "--max-train-rows"),
        ]
    )
    for changes, message in wrong:
        with pytest.raises(UserError, match=message):
            benchmark("gue", tmp_path / "run", options(base, **changes))
    with pytest.raises(UserError, match="the benchmark is one of gue"):
        benchmark("glue", tmp_path / "run", options(base))
    assert not (tmp_path / "run").exists()


def test_the_command_gives_exit_codes_and_takes_settings(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from had.cli import main

    def run(*words: str) -> int:
        common = ["had", "benchmark", "gue", "--data", str(base / "gue"), "--device", "cpu", "--quiet"]
        monkeypatch.setattr("sys.argv", [*common, "--out", str(tmp_path / "run"), *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    assert run("--tasks", "mouse/3", "--models", "kmer, cnn", "--seeds", "1", "cnn.epochs=1") == 0
    assert capsys.readouterr().err == ""
    assert [row["model"] for row in table(tmp_path / "run")] == ["kmer", "cnn"]
    assert "epoch 1 of 1" in table(tmp_path / "run")[1]["note"]
    assert run("--models", "nonsense") == 2
    assert capsys.readouterr().err.startswith("had: --models: 'nonsense' is none of")
    scratch = ("--models", "scratch", "--model", str(base / "student"), "--tasks", "mouse/3", "--seeds", "1")
    assert run(*scratch, "training.lr=1e30", "training.epochs=2", "training.batch_size=24") == 1


def test_the_protocols_recipe_is_that_of_the_suite(base: Path) -> None:
    suite = SUITES["nucleotide-transformer"]
    task = suite.task("splice_sites_all")
    student = str(base / "student")
    had, cnn, teacher = parse_models(["had", "cnn", "teacher"], student, TEACHER)
    configs = fit_configs(suite, task, had)
    assert [config.lr for config in configs] == [1e-3, 2e-3]
    assert {(c.epochs, c.batch_size, c.weight_decay, c.warmup, c.metric) for c in configs} == {
        (20, 128, 0.1, 0.01, "accuracy")
    }
    (plain,) = fit_configs(suite, task, cnn)
    assert (plain.lr, plain.ema, plain.rc_augment, plain.shift, plain.conjoin) == (1e-3, 0.0, False, 0, "off")
    assert len(fit_configs(suite, task, teacher)) == 2
    (own,) = fit_configs(suite, task, had, "finetune")
    assert own.lr is None
    assert own.metric == "accuracy"
    (one,) = fit_configs(suite, task, had, changes={"training": {"lr": 5e-4}})
    assert (one.lr, one.epochs) == (5e-4, 20)


def test_a_folder_that_may_not_be_written_is_told_in_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot be made a folder \(.*file is a file\)"):
        BenchmarkFolder.look(tmp_path / "file/run", "gue")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to write into"):
        BenchmarkFolder.look(tmp_path / "run", "gue")
    assert not (tmp_path / "run").exists()


def test_a_locked_or_foreign_folder_is_left_alone(base: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        BenchmarkFolder.look(tmp_path / "file", "gue")
    folder = BenchmarkFolder.open(tmp_path / "run", "gue", {})
    script = (
        "from had.evaluation.benchmark_folder import BenchmarkFolder\nfrom pathlib import Path\n"
        f"BenchmarkFolder.open(Path({str(tmp_path / 'run')!r}), 'gue', {{}})"
    )
    try:
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    finally:
        folder.close()
    assert "another benchmark is running in this folder" in other.stderr


def test_a_report_of_damaged_files_is_written_or_says_which_to_remove(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Names that matplotlib would take for formulas and for hidden entries of a legend.
    name, run = "$\\frac$", tmp_path / "run"
    write_gue(tmp_path / "gue", (name, "x"), n=24)
    mine = options(tmp_path, tasks=[name, "x"], models=("kmer", "k=kmer"), seeds=1)
    benchmark("gue", run, mine)
    (overlap,) = (run / "overlap").glob("*frac*")
    whole = overlap.read_bytes()
    for damaged in (whole[:200], b"", whole[:-300] + bytes(300)):
        overlap.write_bytes(damaged)
        assert benchmark("gue", run, mine)["done"] == 0
        assert overlap.read_bytes() == whole
    about = run / "benchmark.json"
    for text in ("{}", '{"kind": "had benchmark", "suite": "gue", "invocations": [{"command": 5}]}', "[1"):
        about.write_text(text)
        benchmark("gue", run, mine)
        assert len(json.loads(about.read_text())["invocations"]) == 1
    assert caplog.text.count("history of earlier commands is lost") == 3
    predictions = place_of(run, Unit(name, "kmer", 0))
    whole = predictions.read_bytes()
    for damaged in (whole[:200], b"", whole[:4] + bytes(60) + whole[64:]):
        predictions.write_bytes(damaged)
        before = about.read_bytes()
        with pytest.raises(UserError, match=r"seed-0\.parquet.*remove it, and its row of scores\.csv"):
            benchmark("gue", run, mine)
        assert about.read_bytes() == before
