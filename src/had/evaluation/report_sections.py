"""The sections of a benchmark's report, each as blocks made of the tables."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from had.bootstrap import Interval
from had.console import in_words
from had.evaluation.contestants import KINDS
from had.evaluation.overlap import NEAR, K
from had.evaluation.pairs import PairedDifference, mean_difference
from had.evaluation.protocols import Suite
from had.evaluation.report_document import Block, Heading, Items, Paragraph, Picture, Table
from had.evaluation.report_tables import ARTEFACT, FEW_SEEDS, LEGEND, OurScore, PublishedScore, TaskTable


def opening(
    suite: Suite, tables: Sequence[TaskTable], kinds: Mapping[str, str], untrained: Collection[str], title: str
) -> list[Block]:
    """What the models and marks are, and how to read the numbers."""
    used = {mark for table in tables for ours in table.ours for mark in ours.marks + ours.grade}
    used |= {mark for table in tables for other in table.published for mark in other.marks}
    used |= {ARTEFACT for table in tables if table.task.artefact}
    legend = [[mark, text] for mark, text in LEGEND.items() if mark in used]
    return [
        Heading(title, 1),
        Paragraph(
            "Scores are of the official test rows. No test row had a part in any choice: learning rate, epoch, penalty "
            "and layer were chosen on validation rows, and the chosen model met the test once. A number in brackets is "
            "the largest minus the smallest over seeds. Differences smaller than that range, or than the intervals of "
            "the paired picture, are noise."
        ),
        Table(
            ["model", "what it is"],
            [
                [name, kind_in_words(kind) + (", fresh weights" if name in untrained else "")]
                for name, kind in kinds.items()
            ],
        ),
        *([Table(["mark", "means"], legend)] if legend else []),
    ]


def kind_in_words(kind: str) -> str:
    """What a kind is, without the options that choose it."""
    return KINDS.get(kind, "not known: its predictions are gone").partition(" (")[0]


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def _ours(row: OurScore | None, of_all: str = "") -> str:
    """A score with its marks; the grade where it is not that of all models."""
    if row is None:
        return ""
    # A range over seeds that change nothing would be a claim of steadiness.
    spread = "" if row.seed_changes_nothing else f" ({row.spread:.3f})"
    return f"{row.mean:.3f}{spread}{row.marks}{row.grade if row.grade != of_all else ''}"


def summary(tables: Sequence[TaskTable], models: Sequence[str], pictures: Sequence[Picture]) -> list[Block]:
    """Every task and model, beside the best published score."""
    rows = []
    for table in tables:
        best = table.best_published
        shown = f"{best.score:.3f}{best.marks} {best.model}" if best else ""
        scores = (_ours(table.of(m), table.grade) for m in models)
        rows.append([table.title, table.metric, f"{table.n_test:,}", shown, *scores])
    header = ["task", "metric", "test rows", "best published", *models]
    notes = [
        f"{table.title}: {'; '.join([*table.reasons, *filter(None, [table.task.artefact])])}"
        for table in tables
        if table.reasons or table.task.artefact
    ]
    blocks: list[Block] = [Heading("Summary"), Table(header, rows, numbers=(2, *range(4, 4 + len(models))))]
    return [*blocks, *([Items(notes)] if notes else []), *pictures]


def groups(tables: Sequence[TaskTable], models: Sequence[str]) -> list[Block]:
    """Means over tasks that all our models have; a published model stands beside them where it has all of these."""
    found = list(dict.fromkeys((table.task.group, table.metric) for table in tables))
    wholes = {group: [t for t in tables if (t.task.group, t.metric) == (group, metric)] for group, metric in found}
    if len(found) > 1:
        # A mean over different metrics would mean nothing.
        for metric in dict.fromkeys(metric for _, metric in found):
            wholes[f"all tasks here by {metric}"] = [table for table in tables if table.metric == metric]
    rows = []
    for name, whole in wholes.items():
        common = [t for t in whole if all(t.of(model) for model in models) and not t.task.artefact]
        if common:
            rows.append(_group_row(name, whole, common, models))
    header = ["mean over", "tasks", "best published mean", *models]
    text = (
        f"Unweighted means over the tasks that every model of this table has, without those marked {ARTEFACT}; beside "
        "them the best mean of a published model that has all of these tasks."
    )
    table = Table(header, rows, numbers=(1, *range(3, 3 + len(models))))
    return [Heading("Means over groups of tasks"), Paragraph(text), table] if rows else []


def _group_row(name: str, whole: list[TaskTable], common: list[TaskTable], models: Sequence[str]) -> list[str]:
    means = []
    for model in models:
        ours = [row for table in common if (row := table.of(model)) is not None]
        few = FEW_SEEDS if any(FEW_SEEDS in row.marks for row in ours) else ""
        means.append(f"{np.mean([row.mean for row in ours]):.3f}{few}")
    published: dict[str, list[PublishedScore]] = {}
    for table in common:
        for other in table.published:
            published.setdefault(other.model, []).append(other)
    full = {
        model: float(np.mean([row.score for row in rows]))
        for model, rows in published.items()
        if len(rows) == len(common)
    }
    best = max(full, key=lambda model: full[model], default=None)
    marks = "".join(dict.fromkeys(mark for row in published.get(best or "", []) for mark in row.marks))
    grades = "".join(sorted({row.grade for table in common for model in models if (row := table.of(model))}))
    return [
        f"{name} {grades}".strip(),
        f"{len(common)}" + (f" of {len(whole)}" if len(common) < len(whole) else ""),
        f"{full[best]:.3f}{marks} {best}" if best else "",
        *means,
    ]


def paired(tables: Sequence[TaskTable], pictures: Sequence[Picture]) -> list[Block]:
    """Differences of models on the same test rows, with intervals."""
    every = [(table, one) for table in tables for one in table.differences]
    if not every:
        return []
    text = (
        "The model named first minus another: both models' predictions on the same test rows, averaged over their "
        "seeds, with 95 % intervals of 1,000 resamples of the test rows and of each model's seeds. Of a mean over "
        f"tasks, those marked {ARTEFACT} left out, the interval is Student's t over tasks. Where an interval holds 0 "
        "the two are not told apart. Another pre-training is not in it; of a single seed only the rows are resampled."
    )
    made = [
        _differences(reference, [(table, one) for table, one in every if one.reference == reference])
        for reference in dict.fromkeys(one.reference for _, one in every)
    ]
    return [Heading("Paired differences"), Paragraph(text), *pictures, *made]


def _differences(reference: str, found: Sequence[tuple[TaskTable, PairedDifference]]) -> Table:
    """A line for each task, a column for each model that is compared with the reference."""
    of: dict[str, dict[str, PairedDifference]] = {}
    cells: dict[tuple[str, str], str] = {}
    for table, one in found:
        of.setdefault(one.other, {})[one.task] = one
        cells[one.task, one.other] = _interval(one.interval, table.few(reference) or table.few(one.other))
    names = dict.fromkeys(one.task for _, one in found)
    rows = [[task, *(cells.get((task, other), "") for other in of)] for task in names]
    means = []
    for by_task in of.values():
        mean = mean_difference(list(by_task.values()))
        means.append(f"{_interval(mean)} ({mean.n_blocks} tasks)" if mean.n_blocks > 1 else "")
    if any(means):
        rows.append(["mean over tasks", *means])
    return Table(["task", *(f"{reference} − {other}" for other in of)], rows, numbers=range(1, 1 + len(of)))


def _interval(interval: Interval, mark: str = "") -> str:
    bounds = "" if np.isnan(interval.low) else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.mean:+.3f}{mark}{bounds}"


def overlaps(tables: Sequence[TaskTable], models: Sequence[str]) -> list[Block]:
    """Scores with and without test rows that also stand in train."""
    text = (
        "A test row that also stands in the training rows measures memory. Same: its letters, or their reverse "
        f"complement, are a training row. Near: at least {NEAR:.0%} of its distinct {K}-mers, on either strand, are in "
        "one training row. Scores are means over seeds; training was the same for all three."
    )
    rows = []
    for table in tables:
        found = table.overlap
        if found is None:
            rows.append([table.task.name, "not looked for (data not at hand)", *[""] * (1 + len(models))])
            continue
        counts = (
            f"{int(found.same.sum()):,} same, {int((found.near & ~found.same).sum()):,} near, of {len(found.near):,}"
        )
        scored: dict[str, Callable[[OurScore], float | None]] = {
            "all rows": lambda row: row.mean,
            "without same": lambda row: row.without_same,
            "without same and near": lambda row: row.without_near,
        }
        for name, value in scored.items():
            values = [f"{number(value(row))}{table.few(m)}" if (row := table.of(m)) else "" for m in models]
            rows.append([table.task.name if name == "all rows" else "", counts, name, *values])
            counts = ""
    header = ["task", "test rows in train", "scored on", *models]
    return [
        Heading("Test rows that also stand in train"),
        Paragraph(text),
        Table(header, rows, numbers=range(3, 3 + len(models))),
    ]


def costs(tables: Sequence[TaskTable], kinds: Mapping[str, str]) -> list[Block]:
    """Parameters, training time and speed."""
    rows = []
    for table in tables:
        for row in table.ours:
            rows.append(
                [
                    table.task.name,
                    row.model,
                    "" if row.parameters is None else f"{row.parameters:,}",
                    "" if row.train_seconds is None else in_words(row.train_seconds),
                    _speed(row.train_bp_per_second),
                    _speed(row.test_bp_per_second),
                ]
            )
    text = (
        "Training is that of the model that was tested, validation included; learning rates that lost are not counted. "
        "bp/s in training counts each letter once an epoch. Counting and fitting are the training of k-mers and probes."
    )
    header = ["task", "model", "parameters", "training", "bp/s in training", "bp/s on the test rows"]
    return [Heading("Parameters and time"), Paragraph(text), Table(header, rows, numbers=(2, 3, 4, 5))]


def _speed(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k" if value >= 1e3 else f"{value:.0f}"


def tasks(tables: Sequence[TaskTable]) -> list[Block]:
    """Each task's rows, ours among the published, best first."""
    text = (
        "Validation: the mean score on the rows that chose the model. Where it is far from the test score, these rows "
        "are few, or of another kind than the test rows, and choose worse."
    )
    blocks: list[Block] = [Heading("Each task"), Paragraph(text)]
    for table in tables:
        blocks.append(Heading(table.title, 3))
        if table.reasons:
            blocks.append(Paragraph("Against the published numbers: " + "; ".join(table.reasons) + "."))
        lines: list[tuple[float, bool, list[str]]] = [
            (
                row.mean,
                True,
                [
                    row.model,
                    f"{row.mean:.3f}{row.marks}{' ' + row.grade if row.grade else ''}",
                    f"{row.spread:.3f}",
                    str(len(row.values)),
                    number(row.validation),
                    _parameters(row.parameters),
                    "here",
                ],
            )
            for row in table.ours
        ]
        lines += [
            (
                row.score,
                False,
                [
                    row.model,
                    f"{row.score:.3f}{row.marks}",
                    number(row.spread),
                    "not stated" if row.seeds is None else str(row.seeds),
                    "",
                    _parameters(row.parameters),
                    row.source,
                ],
            )
            for row in table.published
        ]
        lines.sort(key=lambda line: -line[0])
        header = ["model", table.metric, "max − min", "seeds", "validation", "parameters", "source"]
        strong = [i for i, line in enumerate(lines) if line[1]]
        blocks.append(Table(header, [line[2] for line in lines], strong, numbers=(1, 2, 3, 4, 5)))
        blocks.append(Items([f"{row.model}: {row.notes}" for row in table.ours if row.notes]))
    return blocks


def _parameters(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:,.1f} M" if count >= 999_500 else f"{count / 1e3:,.0f} k"
