"""Every official layout gives the same rows, classes do not depend on any order, and what is missing is said."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from had.dna.labelled_tasks import UNSEEN
from had.errors import UserError
from had.evaluation.layouts import find_task, need_task, tasks_here
from had.evaluation.protocols import SUITES, BenchmarkTask, Suite
from had.evaluation.suite_data import TaskData
from tests.evaluation.made_up_suites import (
    Rows,
    make_rows,
    write_class_folders,
    write_csv,
    write_fasta,
    write_gue,
    write_parquet,
)

GUE, GB, NT = (SUITES[name] for name in ("gue", "genomic-benchmarks", "nucleotide-transformer"))


def load(folder: Path, suite: Suite, name: str, **options) -> TaskData:
    task = suite.task(name)
    return TaskData(suite, task, need_task(folder, suite, task), **options)


def pairs(data: TaskData) -> set[tuple[str, str]]:
    return {(row.sequence, row.label) for row in data.rows}


TRAIN, TEST = make_rows(24, 1), make_rows(10, 2)


def as_csv(folder: Path) -> Suite:
    write_csv(folder / "H3/train.csv.gz", TRAIN)
    write_csv(folder / "H3/test.csv", TEST)
    return NT


def as_fasta(folder: Path) -> Suite:
    write_fasta(folder / "nucleotide_transformer_downstream_tasks/H3/train.fna", TRAIN)
    write_fasta(folder / "nucleotide_transformer_downstream_tasks/H3/test.fna", TEST)
    return NT


def as_pieces(folder: Path) -> Suite:
    write_parquet(folder / "H3/data/train-00000-of-00002-0af.parquet", TRAIN[:9])
    write_parquet(folder / "H3/data/train-00001-of-00002-1bc.parquet", TRAIN[9:])
    write_parquet(folder / "H3/data/test-00000-of-00001.parquet", TEST, "seq")
    return NT


def as_converted(folder: Path) -> Suite:
    write_parquet(folder / "H3/train/0000.parquet", TRAIN)
    write_parquet(folder / "H3/test/0000.parquet", TEST)
    return NT


def as_one_file(folder: Path) -> Suite:
    other = make_rows(6, 3)
    names = [["H3"] * len(rows) + ["H4"] * len(other) for rows in (TRAIN, TEST)]
    write_parquet(folder / "data/train-00000-of-00001.parquet", TRAIN + other, task=names[0])
    write_parquet(folder / "data/test-00000-of-00001.parquet", TEST + other, task=names[1])
    return NT


@pytest.mark.parametrize("write", [as_csv, as_fasta, as_pieces, as_converted, as_one_file])
def test_every_layout_gives_the_same_rows(tmp_path: Path, write) -> None:
    data = load(tmp_path, write(tmp_path), "H3")
    assert pairs(data) == set(TRAIN)
    test = data.test()
    assert list(zip(test.sequences, test.labels, strict=True)) == TEST
    assert test.targets.tolist() == [int(label) for _, label in TEST]


def test_class_folders_of_genomic_benchmarks(tmp_path: Path) -> None:
    name = "human_nontata_promoters"
    train, test = (make_rows(n, n, ("negative", "positive")) for n in (20, 8))
    write_class_folders(tmp_path / name / "train", train)
    write_class_folders(tmp_path / name / "test", test)
    data = load(tmp_path, GB, name)
    assert data.kind.classes == ("negative", "positive")
    assert pairs(data) == set(train)
    found = data.test()
    assert set(zip(found.sequences, found.labels, strict=True)) == set(test)
    for sequence, label, target in zip(found.sequences, found.labels, found.targets, strict=True):
        assert (sequence, label) in test
        assert target == ("negative", "positive").index(label)


def test_class_ids_do_not_depend_on_the_order_of_rows_or_on_what_the_test_lacks(tmp_path: Path) -> None:
    train = make_rows(30, 1, ("zeta", "alpha", "mid"))
    orders: dict[str, tuple[Rows, Rows]] = {
        "a": (train, [(s, label) for s, label in train[:9] if label != "alpha"]),
        "b": (train[::-1], train[8::-1]),
        "c": (sorted(train, key=lambda row: row[1]), sorted(train[:9], key=lambda row: row[1], reverse=True)),
    }
    seen: dict[str, int] = {}
    for name, (rows, test) in orders.items():
        write_csv(tmp_path / name / "train.csv", rows)
        write_csv(tmp_path / name / "test.csv", test)
        data = load(tmp_path, GB, name)
        assert data.kind.classes == ("alpha", "mid", "zeta")
        found = data.test()
        for sequence, label, target in zip(found.sequences, found.labels, found.targets, strict=True):
            assert seen.setdefault(sequence, target) == target == data.kind.classes.index(label)
        for row, target in zip(data.rows, data.targets, strict=True):
            assert seen.setdefault(row.sequence, target) == target
    # Whole numbers go by value, however they are written: 10 after 9, and 1.0 is 1.
    write_csv(tmp_path / "n/train.csv", [("ACGT" * 5, label) for label in ("10", "9", "1.0")] * 4)
    write_csv(tmp_path / "n/test.csv", [("ACGT" * 5, "1"), ("ACGT" * 5, "11")])
    data = load(tmp_path, GB, "n")
    assert data.kind.classes == ("1", "9", "10")
    assert data.test().targets.tolist() == [0, UNSEEN]
    assert "1 test rows of labels not in train count as errors (11)" in data.test().notes


def test_dev_rows_validate_and_without_them_each_seed_redraws(tmp_path: Path) -> None:
    write_gue(tmp_path / "gue")
    data = load(tmp_path / "gue", GUE, "mouse/3")
    assert (len(data.rows), data.n_dev, data.folds_differ) == (68, 20, False)
    folds = [data.fold(seed) for seed in (0, 1)]
    assert np.array_equal(folds[0].train, np.arange(48))
    assert np.array_equal(folds[1].valid, np.arange(48, 68))
    (tmp_path / "gue/mouse/3/dev.csv").unlink()
    data = load(tmp_path / "gue", GUE, "mouse/3")
    assert "no dev file: 10 % of the training rows validate" in data.notes
    folds = [data.fold(seed) for seed in (0, 1, 0)]
    assert not np.array_equal(folds[0].valid, folds[1].valid)
    assert np.array_equal(folds[0].valid, folds[2].valid)
    for fold in folds:
        assert sorted([*fold.train, *fold.valid]) == list(range(48))
        # A tenth of each class.
        assert np.bincount(data.targets[fold.valid]).tolist() == [2, 2]


def test_a_missing_training_file_and_other_sizes_are_said(tmp_path: Path) -> None:
    write_csv(tmp_path / "EMP/H4/dev.csv", make_rows(40, 0))
    write_csv(tmp_path / "EMP/H4/test.csv", make_rows(12, 1))
    data = load(tmp_path, GUE, "EMP/H4")
    assert data.trained_on_dev
    assert data.folds_differ
    assert data.notes == ["no training file: trained on the 40 dev rows; officially 11,679 training rows"]
    assert data.test().notes == ["another test set: 12 rows, officially 1,461"]
    rows = [*make_rows(30, 2), ("N" * 20, "1"), ("", "0"), ("ACGT", "")]
    write_csv(tmp_path / "mouse/2/train.csv", rows)
    write_csv(tmp_path / "mouse/2/dev.csv", make_rows(10, 3))
    write_csv(tmp_path / "mouse/2/test.csv", [*make_rows(9, 4), ("N" * 20, "1"), ("", "0")])
    data = load(tmp_path, GUE, "mouse/2", max_train_rows=12)
    assert (len(data.rows) - data.n_dev, data.n_given) == (12, 33)
    assert "reduced training set: 33 of officially 2,620 rows" in data.notes
    assert "training rows capped at 12 of 33 by --max-train-rows" in data.notes
    assert "train: 1 rows dropped for a sequence of N alone (line 32)" in data.notes
    test = data.test()
    # A test row of N alone stays: its score counts.
    assert len(test) == 10
    assert test.n_given == 11


def test_a_task_of_the_users_own_is_read_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_gue(tmp_path, ("mouse/3", "my_enhancers"))
    data = load(tmp_path, GUE, "my_enhancers")
    assert not data.task.official
    assert data.task.metric == "mcc"
    assert [task.name for task in tasks_here(tmp_path, GUE)] == ["mouse/3"]
    assert find_task(tmp_path, GUE, GUE.task("tf/0")) is None
    with pytest.raises(UserError, match=r"no files of tf/0; of GUE .* it has mouse/3"):
        load(tmp_path, GUE, "tf/0")
    with pytest.raises(UserError, match="did you mean mouse/3"):
        load(tmp_path, GUE, "mous/3")
    with pytest.raises(UserError, match="is no folder"):
        load(tmp_path / "absent", GUE, "tf/0")
    with pytest.raises(UserError, match="no task of Genomic Benchmarks"):
        tasks_here(tmp_path, GB)
    (tmp_path / "mouse/3/test.csv").unlink()
    with pytest.raises(UserError, match="has no test file"):
        load(tmp_path, GUE, "mouse/3")
    write_csv(tmp_path / "mouse/3/test.csv", TEST)
    write_csv(tmp_path / "mouse/3/test.csv.gz", TEST)
    with pytest.raises(UserError, match="keep one file for test"):
        load(tmp_path, GUE, "mouse/3")


@pytest.mark.parametrize(
    ("suite", "place", "name"),
    [
        (GUE, "GUE/emp_H3K4me1", "EMP/H3K4me1"),
        (GUE, "human_tf_4", "tf/4"),
        (GUE, "GUE/prom_core_all", "prom/prom_core_all"),
        (GB, "genomic_benchmarks/human_ocr_ensembl", "human_ocr_ensembl"),
        (GB, "Genomic_Benchmarks_demo_human_or_worm", "demo_human_or_worm"),
        (NT, "nucleotide_transformer/promoter_tata", "promoter_tata"),
    ],
)
def test_folders_of_known_copies_are_found(tmp_path: Path, suite: Suite, place: str, name: str) -> None:
    write_csv(tmp_path / place / "train.csv", TRAIN)
    write_csv(tmp_path / place / "test.csv", TEST)
    assert [task.name for task in tasks_here(tmp_path, suite)] == [name]


def test_tasks_come_smallest_first_and_those_of_unknown_size_last(tmp_path: Path) -> None:
    write_gue(tmp_path, ("virus/covid", "mouse/2", "tf/0", "mouse/3"), n=4)
    assert [task.name for task in tasks_here(tmp_path, GUE)] == ["mouse/3", "mouse/2", "tf/0", "virus/covid"]


def test_a_dev_file_where_the_protocol_has_none_is_said(tmp_path: Path) -> None:
    for name, n in (("train", 40), ("validation", 12), ("test", 10)):
        write_fasta(tmp_path / f"promoter_tata/{name}.fna", make_rows(n, n))
    data = load(tmp_path, SUITES["nucleotide-transformer"], "promoter_tata")
    assert data.n_dev == 12
    assert any("a dev file of 12 rows validates; the protocol draws 10 %" in note for note in data.notes)


@pytest.mark.parametrize(("label", "what"), [("0.25", "a value"), ("a;b", "several labels"), ("-1e-3", "a value")])
def test_values_and_several_labels_are_no_classes_of_a_benchmark(tmp_path: Path, label: str, what: str) -> None:
    write_csv(tmp_path / "t/train.csv", [*TRAIN, ("ACGTACGT", label)])
    write_csv(tmp_path / "t/test.csv", TEST)
    with pytest.raises(
        UserError, match=rf"t/train\.csv, line {len(TRAIN) + 2}: the label '{label}' is {what}.* use had finetune"
    ):
        load(tmp_path, GB, "t")


def test_the_folder_of_one_task_is_told_from_that_of_a_suite(tmp_path: Path) -> None:
    write_gue(tmp_path, ("mouse/3",))
    with pytest.raises(UserError, match="is the folder of one task; name the folder around it by --data"):
        tasks_here(tmp_path / "mouse/3", GUE)
    with pytest.raises(UserError, match=r"needs folders such as .* or name folders of your own by --tasks"):
        tasks_here(tmp_path, NT)


def test_one_class_and_one_row_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "t/test.csv", TEST)
    for rows in ([("ACGTACGT", "1")] * 5, [("ACGTACGT", "1")]):
        write_csv(tmp_path / "t/train.csv", rows)
        with pytest.raises(UserError, match="all training rows have one label"):
            load(tmp_path, GB, "t")


def test_the_suites_agree_with_each_other_and_with_the_published_tables() -> None:
    assert [len(suite.tasks) for suite in (GUE, GB, NT)] == [28, 8, 18]
    assert [suite.seeds for suite in (GUE, GB, NT)] == [3, 5, 10]
    # The Nucleotide Transformer's training rows are GUE's training and dev rows, split anew for promoters.
    for mark in ("H3", "H3K36me3", "H4ac"):
        there, here = NT.task(mark), GUE.task(f"EMP/{mark}")
        assert there.n_test == here.n_test
        assert there.n_train == (here.n_train or 0) + (here.n_test or 0)
    for ours, theirs in (("all", "all"), ("notata", "no_tata"), ("tata", "tata")):
        core, full = GUE.task(f"prom/prom_core_{ours}"), NT.task(f"promoter_{theirs}")
        total = (core.n_train or 0) + 2 * (core.n_test or 0)
        assert total == (full.n_train or 0) + (full.n_test or 0)
    assert {task.metric for task in NT.tasks} == {"mcc", "macro_f1", "accuracy"}
    assert GUE.task("virus/covid").metric == "macro_f1"
    assert GUE.task("prom_300_tata") == GUE.task("prom/prom_300_tata")
    assert dataclasses.asdict(GUE.task("x")) == dataclasses.asdict(
        BenchmarkTask("x", "of your own", "mcc", official=False)
    )
