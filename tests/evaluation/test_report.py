"""The report: marks, means, duplicates, intervals, and a page that needs nothing but itself."""

import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from had import metrics
from had.assets import PUBLISHED_SCORES
from had.evaluation.benchmark_folder import BenchmarkFolder
from had.evaluation.benchmarks import BenchmarkOptions, benchmark
from had.evaluation.overlap import overlap_of
from had.evaluation.pairs import pairs_of
from had.evaluation.protocols import SUITES, BenchmarkTask
from had.evaluation.report import write_report
from had.evaluation.report_document import Heading, Items, Paragraph, Picture, Table, as_html, as_markdown
from had.evaluation.report_tables import comparability, published_scores
from had.evaluation.resampling import paired_interval, score_confusions
from had.evaluation.suite_data import TestRows
from had.evaluation.unit_files import COLUMNS, Record, Unit, read_predictions, write_predictions
from tests.evaluation.made_up_suites import write_gue

GUE = SUITES["gue"]


def add(
    folder: BenchmarkFolder,
    task: str,
    model: str,
    seed: int,
    targets: np.ndarray,
    predicted: np.ndarray,
    kind: str = "kmer",
    **facts: object,
) -> None:
    """One finished unit with made-up predictions of two classes."""
    n = len(targets)
    test = TestRows(["ACGT"] * n, targets, [str(t) for t in targets], n, "digest", [])
    probabilities = np.eye(2)[predicted]
    found = GUE.task(task)
    row = [
        GUE.name,
        task,
        model,
        str(seed),
        found.metric,
        f"{metrics.mcc(targets, predicted):.6f}",
        "10",
        str(n),
        "3",
        "",
    ]
    known = {
        "parameters": 10,
        "train_seconds": 2.0,
        "test_seconds": 1.0,
        "train_bp": 4000,
        "test_bp": 100,
        "test_sha256": "digest",
        "rows_in_train_file": found.n_train or 10,
        "rows_in_test_file": found.n_test or n,
        "trained_on_dev": False,
        "capped": False,
        "validation": 0.5,
        "seed_changes_nothing": False,
        **facts,
    }
    record = Record(dict(zip(COLUMNS, row, strict=True)), known, {"kind": kind, "model": "student"})
    write_predictions(folder.place(record.unit), test, probabilities, ("0", "1"), record)
    folder.add(record)


@pytest.fixture
def folder(tmp_path: Path):
    made = BenchmarkFolder.open(
        tmp_path / "run", "gue", {"threads": 1, "jobs": 1, "device": "cpu", "source": "made up"}
    )
    yield made
    made.close()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_published_row_belongs_to_a_task_of_its_suite() -> None:
    with Path(PUBLISHED_SCORES).open(newline="", encoding="utf-8") as file:
        total = sum(1 for _ in csv.DictReader(file))
    found = sum(len(published_scores(suite, task)) for suite in SUITES.values() for task in suite.tasks)
    assert found == total == 751
    rows = {row.model: row for row in published_scores(GUE, GUE.task("mouse/3"))}
    assert rows["DNABERT-2"].score == pytest.approx(0.6647)
    assert rows["DNABERT-2"].marks == "?"
    assert rows["DNABERT-2 (further pre-trained on GUE)"].marks == "?°"
    suite = SUITES["genomic-benchmarks"]
    cnn = {row.model: row for row in published_scores(suite, suite.task("human_enhancers_cohn"))}["CNN"]
    assert (cnn.score, cnn.spread, cnn.seeds, cnn.parameters, cnn.marks) == (0.702, 0.021, 5, 264_000, "")


@pytest.mark.parametrize(
    ("facts", "grade", "reason"),
    [
        ({}, "", None),
        ({"rows_in_train_file": 100}, "~", "smaller training set (100 of 1,904 rows)"),
        ({"rows_in_train_file": 2000}, "≠", "more training rows than officially"),
        ({"rows_in_test_file": 238}, "≠", "another test set (238 rows, officially 239)"),
        ({"rows_in_train_file": 239, "trained_on_dev": True}, "≠", "no training file: trained on the dev rows (239"),
        ({"capped": True}, "≠", "capped by --max-train-rows"),
        ({"rows_in_train_file": 100, "rows_in_test_file": 1}, "≠", "another test set"),
    ],
)
def test_what_compares_with_the_published_and_what_does_not(facts: dict, grade: str, reason: str | None) -> None:
    official = {"rows_in_train_file": 1904, "rows_in_test_file": 239, "trained_on_dev": False, "capped": False}
    found, reasons = comparability(GUE.task("mouse/3"), official | facts)
    assert found == grade
    assert reasons == [] if reason is None else reason in reasons[0]
    own = BenchmarkTask("mine", "of your own", "mcc", official=False)
    assert comparability(own, official) == ("≠", ["no task of the published suite"])


def test_means_ranges_and_marks(folder: BenchmarkFolder) -> None:
    targets = np.arange(40) % 2
    for seed, wrong in enumerate((2, 4, 6)):
        predicted = targets.copy()
        predicted[:wrong] = 1 - predicted[:wrong]
        add(folder, "mouse/3", "mine", seed, targets, predicted, "had")
        if seed < 2:
            add(folder, "mouse/3", "kmer", seed, targets, targets, seed_changes_nothing=True)
            add(folder, "tf/0", "mine", seed, targets, predicted, "had", rows_in_train_file=5)
    paths = write_report(folder, GUE, lambda name: None)
    assert {path.name for path in paths} == {"report.md", "report.html", "report.csv"}
    rows = {(row["task"], row["model"]): row for row in rows_of((folder.path / "report.csv").read_text())}
    # With balanced classes and balanced errors MCC is 1 − 2·(share of errors).
    mine = rows["mouse/3", "mine"]
    assert float(mine["mean"]) == pytest.approx(np.mean([0.9, 0.8, 0.7]))
    assert float(mine["range"]) == pytest.approx(0.2)
    assert (mine["seeds"], mine["marks"], mine["comparable"]) == ("3", "", "yes")
    assert rows["mouse/3", "kmer"]["marks"] == "*="
    assert rows["tf/0", "mine"]["marks"] == "*~"
    assert rows["tf/0", "mine"]["comparable"] == "with caution"
    assert float(mine["train_bp_per_second"]) == 2000
    text = (folder.path / "report.md").read_text()
    assert "| mouse/3 | mcc | 40 | 0.843? JanusDNA-72 | 0.800 (0.200) | 1.000\\*= |" in text
    # tf/0 is left out of the means, since kmer does not have it; the marks stay.
    assert "| mouse TF sites | 1 | 0.843? JanusDNA-72 | 0.800 | 1.000\\* |" in text
    assert "| all tasks here by mcc | 1 of 2 |" in text
    assert "tf/0 ~: smaller training set (5 of 32,378 rows)" in text
    for said in (
        "kmer was not run on tf/0",
        "mouse/3, kmer: 2 of 3 seeds",
        "no row of scratch",
        "no row of cnn",
        "EMP/H3",
    ):
        assert said in text.partition("## What is not here")[2], said
    assert "fewer than 3 seeds" in text


def test_scores_without_test_rows_that_stand_in_train(tmp_path: Path) -> None:
    write_gue(tmp_path / "gue")
    options = BenchmarkOptions(str(tmp_path / "gue"), ["mouse/3"], ["kmer"], seeds=1, device="cpu", quiet=True)
    benchmark("gue", tmp_path / "run", options)
    folder = BenchmarkFolder.look(tmp_path / "run", "gue")
    digest = folder.records_of("mouse/3", "kmer")[0].facts["test_sha256"]
    assert overlap_of(folder.path, None, "mouse/3", digest, 23) is None
    overlap = overlap_of(folder.path, None, "mouse/3", digest, 24)
    assert overlap is not None
    assert np.flatnonzero(overlap.exact).tolist() == [22]
    assert np.flatnonzero(overlap.reverse_complement).tolist() == [23]
    assert overlap.near.sum() == 2
    found = read_predictions(folder.place(Unit("mouse/3", "kmer", 0)))
    kept = found.probabilities[:22].argmax(1)
    (row,) = [r for r in rows_of((tmp_path / "run/report.csv").read_text()) if r["is_ours"] == "1"]
    assert float(row["mean_without_same"]) == pytest.approx(metrics.mcc(found.targets[:22], kept), abs=1e-6)
    assert float(row["validation"]) == pytest.approx(found.record.facts["validation"], abs=1e-6)
    text = (tmp_path / "run/report.md").read_text()
    assert f"| 1 | {found.record.facts['validation']:.3f} |" in text
    assert "\n| mouse/3 ≠ | mcc | 24 |" in text
    assert "2 same, 0 near, of 24" in text
    # Another test file is another question.
    assert overlap_of(folder.path, None, "mouse/3", "another", 24) is None


def test_paired_intervals_agree_with_scikit_learn_and_tell_models_apart() -> None:
    rng = np.random.default_rng(0)
    for n_classes in (2, 3):
        targets = rng.integers(-1 if n_classes == 3 else 0, n_classes, 300)
        good = np.where(rng.random((3, 300)) < 0.9, np.maximum(targets, 0), rng.integers(0, n_classes, (3, 300)))
        poor = np.where(rng.random((2, 300)) < 0.5, np.maximum(targets, 0), rng.integers(0, n_classes, (2, 300)))
        true = np.where(targets < 0, n_classes, targets)
        for name in ("mcc", "accuracy", "macro_f1"):
            function = getattr(metrics, name)
            interval = paired_interval(name, targets, good, poor, n_classes)
            expected = np.mean([function(true, p) for p in good]) - np.mean([function(true, p) for p in poor])
            assert interval.mean == pytest.approx(expected), (name, n_classes)
            assert 0 < interval.low < interval.mean < interval.high < 1
            # Seeds of one model are drawn apart from those of the other, so only equal seeds cancel.
            same = paired_interval(name, targets, good[[0, 0]], good[[0, 0, 0]], n_classes)
            assert (same.low, same.mean, same.high) == pytest.approx((0, 0, 0))
            again = paired_interval(name, targets, good, poor, n_classes)
            assert again == interval


def test_paired_intervals_hold_what_another_draw_of_rows_and_seeds_changes() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(60):
        targets, easy = rng.integers(0, 2, 200), 1.8 + 1.5 * rng.normal(size=200)
        # Two models of equal skill; rows differ in difficulty, and each training run is better or worse as a whole.
        models = []
        for _ in range(2):
            skill = easy + 0.6 * rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(5, 200))
            models.append(np.where(skill + 0.5 * rng.logistic(size=200) > 0, targets, 1 - targets))
        interval = paired_interval("mcc", targets, *models, 2)
        hits += interval.low <= 0 <= interval.high
    # Nominally 57; 0.90 ± 0.04 where seeds are resampled with the rows, below 0.5 with the rows alone.
    assert hits >= 48


def test_scores_of_confusions_have_the_degenerate_cases_of_the_metrics() -> None:
    cases = [([0, 0, 1], [0, 0, 0]), ([1, 1], [1, 1]), ([0, 1], [1, 0]), ([2, 2, 0], [0, 1, 0]), ([0, 1, 2], [0, 1, 2])]
    for true, predicted in cases:
        confusion = metrics.confusion_matrix(true, predicted, 3).astype(float)
        for name in ("mcc", "accuracy", "macro_f1"):
            value = getattr(metrics, name)(true, predicted)
            assert float(score_confusions(name, confusion)) == pytest.approx(value), (name, true, predicted)


class Page(HTMLParser):
    """Checks that tags close in order, and gathers what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        values = dict(attrs)
        self.links += [value for key, value in values.items() if key in ("src", "href") and value]
        if values.get("id"):
            self.anchors.add(str(values["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_capped_model_does_not_make_another_one_incomparable(folder: BenchmarkFolder) -> None:
    targets = np.arange(239) % 2
    add(folder, "mouse/3", "whole", 0, targets, targets)
    add(folder, "mouse/3", "capped", 0, targets, targets, capped=True)
    write_report(folder, GUE, lambda name: None)
    rows = {row["model"]: row for row in rows_of((folder.path / "report.csv").read_text()) if row["is_ours"] == "1"}
    assert (rows["whole"]["comparable"], rows["whole"]["marks"], rows["whole"]["why_not"]) == ("yes", "*", "")
    assert (rows["capped"]["comparable"], rows["capped"]["marks"]) == ("no", "*≠")
    assert rows["capped"]["why_not"] == "training rows capped by --max-train-rows"
    text = (folder.path / "report.md").read_text()
    assert "\n| mouse/3 | mcc | 239 | 0.843? JanusDNA-72 | 1.000 (0.000)\\* | 1.000 (0.000)\\*≠ |" in text
    assert "- mouse/3: capped: training rows capped by --max-train-rows" in text
    assert "| ≠ | not comparable" in text


def test_the_page_needs_nothing_but_itself_and_every_link_leads_somewhere(folder: BenchmarkFolder) -> None:
    targets = np.arange(30) % 2
    for model in ("a", "b"):
        add(folder, "mouse/3", model, 0, targets, targets if model == "a" else 1 - targets)
    write_report(folder, GUE, lambda name: None)
    text = (folder.path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    pictures = [link for link in page.links if link.startswith("data:image/png;base64,iVBOR")]
    assert len(pictures) == 2
    assert {link for link in page.links if link not in pictures} == {
        f"#{anchor}" for anchor in page.anchors if f'href="#{anchor}"' in text
    }
    assert "@import" not in text
    assert "url(" not in text
    for name in ("scores", "differences"):
        assert (folder.path / f"pictures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"(pictures/{name}.png)" in (folder.path / "report.md").read_text()


def test_models_of_other_classes_are_not_paired(folder: BenchmarkFolder) -> None:
    targets = np.arange(30) % 2
    for model, classes in (("a", ["0", "1"]), ("b", ["0", "1"]), ("c", ["1", "2"])):
        add(folder, "mouse/3", model, 0, targets, targets, classes=classes)
    write_report(folder, GUE, lambda name: None)
    text = (folder.path / "report.md").read_text()
    assert "| task | a − b |\n" in text
    assert "a − c" not in text


def test_the_fine_tuned_and_the_frozen_student_are_compared_with_what_is_like_them() -> None:
    kinds = {"kmer": "kmer", "mine": "had", "fresh": "probe", "frozen": "probe", "nt": "teacher-probe", "cnn": "cnn"}
    assert pairs_of(kinds, {"fresh"}) == {
        "mine": ["kmer", "fresh", "frozen", "nt", "cnn"],
        "frozen": ["kmer", "fresh", "nt"],
    }
    assert pairs_of({"a": "kmer", "b": "cnn"}, ()) == {"a": ["b"]}
    assert pairs_of({"a": "probe", "b": "kmer"}, ()) == {"a": ["b"]}


def test_pairs_of_frozen_models_have_a_table_a_picture_and_a_mean(folder: BenchmarkFolder) -> None:
    targets = np.arange(40) % 2
    wrong = np.where(np.arange(40) < 10, 1 - targets, targets)
    for task in ("mouse/0", "mouse/2", "mouse/3", "tf/0", "tf/2"):
        add(folder, task, "frozen", 0, targets, targets, "probe")
        add(folder, task, "kmer", 0, targets, wrong if task != "tf/2" else targets)
    add(folder, "tf/2", "mine", 0, targets, wrong, "had")
    write_report(folder, GUE, lambda name: None)
    text = (folder.path / "report.md").read_text()
    frozen, mine = text.partition("## Paired differences")[2].partition("## Test rows")[0].split("| task | ")[1:]
    assert frozen.startswith("frozen − kmer |\n")
    assert "\n| mouse/3 | +0.500\\* [+0." in frozen
    # 0.4 ± 2.776 · 0.2236 / √5, Student's t with 4 degrees of freedom.
    assert "\n| mean over tasks | +0.400 [+0.122, +0.678] (5 tasks) |\n" in frozen
    # One task has the fine-tuned student: no mean, and no row of the others in its table and picture.
    assert mine.startswith("mine − frozen | mine − kmer |\n")
    assert "\n| tf/2 | -0.500\\* [-0." in mine
    assert "mouse" not in mine
    assert "mean over" not in mine
    for name in ("differences", "differences-2"):
        assert (folder.path / f"pictures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"(pictures/{name}.png)" in text


def test_tasks_with_an_artefact_are_marked_and_left_out_of_means(folder: BenchmarkFolder) -> None:
    targets = np.arange(40) % 2
    for task, wrong in (("prom/prom_core_tata", 20), ("mouse/2", 4), ("mouse/3", 8)):
        predicted = np.where(np.arange(40) < wrong, 1 - targets, targets)
        add(folder, task, "mine", 0, targets, targets, "had")
        add(folder, task, "places", 0, targets, predicted, "places")
    write_report(folder, GUE, lambda name: None)
    text = (folder.path / "report.md").read_text()
    assert "\n| prom/prom_core_tata † | mcc | 40 |" in text
    assert "\n- prom/prom_core_tata †: its negatives carry a TATA box stamped at one position" in text
    assert "\n| † | the data set has an artefact" in text
    assert "\n| all tasks here by mcc | 2 of 3 | 0.859? JanusDNA-72 | 1.000\\* | 0.700\\* |" in text
    assert "\n| core promoters, 70 bp |" not in text
    # +.2 and +.4, not +1.0: 0.3 ± 12.706 · 0.1.
    assert "\n| mean over tasks | +0.300 [-0.971, +1.571] (2 tasks) |\n" in text
    assert "no row of places-boosted (gradient boosting on letters at their places)" in text


def test_the_command_can_be_pasted_into_a_shell(folder: BenchmarkFolder) -> None:
    targets = np.arange(30) % 2
    add(folder, "mouse/3", "a", 0, targets, targets)
    folder.about["invocations"][-1]["command"] = ["had", "benchmark", "gue", "--data", "my data"]
    write_report(folder, GUE, lambda name: None)
    assert "had benchmark gue --data 'my data'\n" in (folder.path / "report.md").read_text()


def test_text_of_users_cannot_become_markup() -> None:
    blocks = [
        Heading("a <b>", 2),
        Paragraph("x & <script>alert(1)</script>"),
        Items(["<i>"]),
        Table(["h|h"], [["a|b*"], ["<td>"]], strong=(0,)),
        Picture("p.png", b"\x89PNG", 'say "this"'),
    ]
    page = as_html("<title>", blocks)
    for raw in ("<script>", "<b>", "<i>", '"this"'):
        assert raw not in page
    assert "| **a\\|b\\*** |" in as_markdown(blocks)


def test_scores_whose_predictions_are_gone_stay_in_the_report(folder: BenchmarkFolder) -> None:
    targets = np.arange(10) % 2
    add(folder, "mouse/3", "a", 0, targets, targets)
    folder.place(Unit("mouse/3", "a", 0)).unlink()
    write_report(folder, GUE, lambda name: None)
    text = (folder.path / "report.md").read_text()
    assert "| mouse/3 ≠ | mcc | 10 | 0.843? JanusDNA-72 | 1.000 (0.000)\\* |" in text
    assert "mouse/3 ≠: its predictions are gone" in text
    assert write_report(BenchmarkFolder(folder.path / "empty"), GUE, lambda name: None) == []
