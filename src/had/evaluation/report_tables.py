"""What a benchmark's report is made of: our scores per task, the published ones, and whether they compare."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from had.assets import PUBLISHED_SCORES
from had.console import progress
from had.evaluation.benchmark_folder import BenchmarkFolder
from had.evaluation.contestants import KINDS, UNTRAINED
from had.evaluation.overlap import Overlap, overlap_of
from had.evaluation.pairs import PairedDifference, paired_differences, pairs_of
from had.evaluation.protocols import BenchmarkTask, Suite
from had.evaluation.suite_data import TaskData
from had.evaluation.unit_files import Predictions, read_predictions
from had.evaluation.units import score

FEW_SEEDS, SAME, OTHER, CAUTION, UNSTATED, OWN_ROWS, ARTEFACT = "*", "=", "≠", "~", "?", "°", "†"
LEGEND = {
    FEW_SEEDS: "fewer than 3 seeds: the number may move by more than the differences in this table",
    SAME: "nothing in it is random and the rows are fixed: every seed gives this number",
    OTHER: "not comparable with the published numbers; the reason stands beside the task",
    CAUTION: "comparable with caution; the reason stands beside the task",
    UNSTATED: "published with fewer than 3 seeds, or without saying how many",
    OWN_ROWS: "published after further pre-training on sequences of the benchmark itself",
    ARTEFACT: "the data set has an artefact, named beside the task; means leave it out",
}
ENOUGH_SEEDS = 3
_METRIC_NAMES = {"f1": "macro_f1"}


@dataclass(frozen=True)
class PublishedScore:
    """A number from a publication."""

    model: str
    parameters: int | None
    score: float
    spread: float | None
    """Largest minus smallest over seeds."""
    seeds: int | None
    source: str

    @property
    def marks(self) -> str:
        """Signs of `LEGEND`."""
        few = UNSTATED if self.seeds is None or self.seeds < ENOUGH_SEEDS else ""
        return few + (OWN_ROWS if "further pre-trained on" in self.model else "")


@dataclass(frozen=True)
class OurScore:
    """One model on one task, over its seeds."""

    model: str
    kind: str
    values: dict[int, float]
    """Score by seed."""
    parameters: int | None
    train_seconds: float | None
    """Mean over seeds, of the model that was tested (not of learning rates that lost)."""
    train_bp_per_second: float | None
    test_bp_per_second: float | None
    seed_changes_nothing: bool
    notes: str
    """Of the first seed."""
    validation: float | None = None
    """Mean score on the rows that chose the model."""
    without_same: float | None = None
    """Mean score on test rows whose letters, on either strand, are in no training row."""
    without_near: float | None = None
    """Mean score on test rows that are not even nearly in a training row."""
    grade: str = ""
    """`OTHER`, `CAUTION` or empty: whether it compares with the published scores."""
    reasons: tuple[str, ...] = ()
    """Why it does not, or not quite."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def spread(self) -> float:
        """Largest minus smallest over seeds."""
        return float(np.ptp(list(self.values.values())))

    @property
    def marks(self) -> str:
        """Signs of `LEGEND`."""
        few = FEW_SEEDS if len(self.values) < ENOUGH_SEEDS else ""
        return few + (SAME if self.seed_changes_nothing else "")


@dataclass(frozen=True)
class TaskTable:
    """One task of the report."""

    task: BenchmarkTask
    metric: str
    ours: list[OurScore]
    published: list[PublishedScore]
    grade: str
    """`OTHER`, `CAUTION` or empty: whether ours compare with the published, as is true of all of our models."""
    reasons: list[str]
    """Why they do not; with the models' names where that is not true of all."""
    n_test: int
    overlap: Overlap | None
    differences: list[PairedDifference]

    @property
    def title(self) -> str:
        """The task's name, with its grade and `ARTEFACT` where it has them."""
        return f"{self.task.name} {self.grade}{ARTEFACT if self.task.artefact else ''}".strip()

    @property
    def best_published(self) -> PublishedScore | None:
        """The highest."""
        return max(self.published, key=lambda row: row.score, default=None)

    def of(self, model: str) -> OurScore | None:
        """Our model of this name."""
        return next((row for row in self.ours if row.model == model), None)

    def few(self, model: str) -> str:
        """`FEW_SEEDS` where the model has fewer than enough seeds here, else empty."""
        row = self.of(model)
        return FEW_SEEDS if row is not None and FEW_SEEDS in row.marks else ""


def published_scores(suite: Suite, task: BenchmarkTask) -> list[PublishedScore]:
    """Published numbers of a task, by the metric it is judged by."""
    with Path(PUBLISHED_SCORES).open(newline="", encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["benchmark"].replace("_", "-") == suite.name
            and row["task"] == task.name
            and _METRIC_NAMES.get(row["metric"], row["metric"]) == task.metric
        ]
    return [
        PublishedScore(
            row["model"],
            int(row["parameters"]) if row["parameters"] else None,
            float(row["score"]),
            float(row["range_max_minus_min"]) if row["range_max_minus_min"] else None,
            int(row["seeds"]) if row["seeds"] else None,
            row["source"],
        )
        for row in rows
    ]


def comparability(task: BenchmarkTask, facts: Mapping[str, object]) -> tuple[str, list[str]]:
    """Whether scores made on these rows compare with published ones: a sign of `LEGEND`, and why.

    Parameters
    ----------
    task
        With the sizes of the official files.
    facts
        Of a unit: ``rows_in_train_file``, ``rows_in_test_file``, ``trained_on_dev``, ``capped``.
    """
    if not task.official:
        return OTHER, ["no task of the published suite"]
    other, caution = [], []
    n_train, n_test = (int(str(facts[f"rows_in_{name}_file"])) for name in ("train", "test"))
    if task.n_test and n_test != task.n_test:
        other.append(f"another test set ({n_test:,} rows, officially {task.n_test:,})")
    if facts["trained_on_dev"]:
        officially = f", officially {task.n_train:,} training rows" if task.n_train else ""
        other.append(f"no training file: trained on the dev rows ({n_train:,}{officially})")
    elif task.n_train and n_train < task.n_train:
        caution.append(f"smaller training set ({n_train:,} of {task.n_train:,} rows), so ours are at a disadvantage")
    elif task.n_train and n_train > task.n_train:
        other.append(f"more training rows than officially ({n_train:,} of {task.n_train:,})")
    if facts["capped"]:
        other.append("training rows capped by --max-train-rows")
    return OTHER if other else CAUTION if caution else "", other + caution


def collect(
    folder: BenchmarkFolder, suite: Suite, load: Callable[[str], TaskData | None], quiet: bool = True
) -> list[TaskTable]:
    """Tables of all tasks that have a score, in the suite's order.

    Parameters
    ----------
    folder
        With the scores and predictions.
    suite
        For the order, the official sizes, the published numbers.
    load
        Gives a task's data by name, for the search for test rows that stand in train; None where it is not at hand.
    quiet
        Show no progress.
    """
    names = list(dict.fromkeys(unit.task for unit in folder.rows))
    order = {task.name: i for i, task in enumerate(suite.tasks)}
    names.sort(key=lambda name: order.get(name, len(order)))
    kinds = model_kinds(folder)
    pairs = pairs_of(kinds, untrained_models(folder))
    tables = []
    with progress(len(names), "report", "tasks", quiet=quiet) as advance:
        for name in names:
            tables.append(_table(folder, suite, suite.task(name), kinds, pairs, load))
            advance()
    return tables


def model_kinds(folder: BenchmarkFolder) -> dict[str, str]:
    """Kind of each model of the table: by kind in the order of `KINDS`, then in the order in which they first stand."""
    kinds: dict[str, str] = {}
    for unit in folder.rows:
        if unit.model not in kinds or not kinds[unit.model]:
            known = folder.records_of(unit.task, unit.model)
            kinds[unit.model] = known[0].settings["kind"] if known else ""
    order = list(KINDS)
    return dict(sorted(kinds.items(), key=lambda item: order.index(item[1]) if item[1] in order else len(order)))


def untrained_models(folder: BenchmarkFolder) -> set[str]:
    """Names of the frozen students of fresh weights, whose settings have sizes where others have a checksum."""
    settings = {unit.model: record.settings for unit in folder.rows for record in folder.records_of(*unit[:2])[:1]}
    return {
        name
        for name, of in settings.items()
        if of["kind"] == "probe" and (of["model"] == UNTRAINED or of["model"].startswith("{"))
    }


def _table(
    folder: BenchmarkFolder,
    suite: Suite,
    task: BenchmarkTask,
    kinds: Mapping[str, str],
    pairs: Mapping[str, Sequence[str]],
    load: Callable[[str], TaskData | None],
) -> TaskTable:
    found: dict[str, dict[int, Predictions]] = {}
    for unit in folder.rows:
        if unit.task == task.name:
            seeds = found.setdefault(unit.model, {})
            if folder.place(unit).is_file():
                seeds[unit.seed] = read_predictions(folder.place(unit))
    every = [one for seeds in found.values() for one in seeds.values()]
    overlap = None
    if every:
        overlap = overlap_of(
            folder.path, load(task.name), task.name, every[0].record.facts["test_sha256"], len(every[0].targets)
        )
    ours = [_ours(folder, task, model, kinds[model], found[model], overlap) for model in kinds if model in found]
    grade = min((row.grade for row in ours), key=_strictness, default="")
    models_of: dict[str, list[str]] = {}
    for row in ours:
        for reason in row.reasons:
            models_of.setdefault(reason, []).append(row.model)
    reasons = [
        reason if len(models) == len(ours) else f"{', '.join(models)}: {reason}" for reason, models in models_of.items()
    ]
    rows = [row for unit, row in folder.rows.items() if unit.task == task.name]
    return TaskTable(
        task,
        rows[0]["metric"],
        ours,
        published_scores(suite, task),
        grade,
        reasons,
        int(rows[0]["n_test"]),
        overlap,
        paired_differences(task, found, pairs),
    )


def _strictness(grade: str) -> int:
    return ("", CAUTION, OTHER).index(grade)


def _ours(
    folder: BenchmarkFolder,
    task: BenchmarkTask,
    model: str,
    kind: str,
    found: Mapping[int, Predictions],
    overlap: Overlap | None,
) -> OurScore:
    rows = {unit.seed: row for unit, row in folder.rows.items() if (unit.task, unit.model) == (task.name, model)}
    facts = [one.record.facts for one in found.values()]
    train = sum(fact["train_seconds"] for fact in facts)
    test = sum(fact["test_seconds"] for fact in facts)

    def without(flags: NDArray[np.bool_] | None) -> float | None:
        scores = [
            score(task.metric, one.targets[~flags], one.probabilities[~flags])
            for one in found.values()
            if flags is not None and len(flags) == len(one.targets) and not flags.all()
        ]
        return float(np.mean(scores)) if scores else None

    # The strictest of its seeds.
    graded = [comparability(task, fact) for fact in facts]
    unknown = (OTHER, ["its predictions are gone, which say on what rows it was made"])
    grade, reasons = max(graded, key=lambda pair: _strictness(pair[0]), default=unknown)
    averaged = [bool(fact["conjoin"]) for fact in facts if "conjoin" in fact]
    notes = rows[min(rows)]["note"]
    if any(averaged) and not all(averaged):
        notes += f"; validation chose to average the strands in {sum(averaged)} of {len(averaged)} seeds"
    return OurScore(
        model,
        kind,
        {seed: float(rows[seed]["value"]) for seed in sorted(rows)},
        facts[0]["parameters"] if facts else None,
        train / len(facts) if facts else None,
        sum(fact["train_bp"] for fact in facts) / train if train else None,
        sum(fact["test_bp"] for fact in facts) / test if test else None,
        bool(facts) and all(fact["seed_changes_nothing"] for fact in facts),
        notes,
        float(np.mean([fact["validation"] for fact in facts])) if facts else None,
        without(overlap.same if overlap else None),
        without(overlap.near if overlap else None),
        grade,
        tuple(reasons),
    )
