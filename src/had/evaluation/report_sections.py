"""The sections of a benchmark's report, each as blocks made of the tables."""

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from had.bootstrap import Interval
from had.console import in_words
from had.evaluation.benchmark_folder import BenchmarkFolder, Unit
from had.evaluation.contestants import KINDS
from had.evaluation.overlap import NEAR, K
from had.evaluation.pairs import ENOUGH_TASKS, PairedDifference, mean_difference
from had.evaluation.protocols import Suite
from had.evaluation.report_document import Block, Code, Heading, Items, Paragraph, Picture, Table
from had.evaluation.report_tables import FEW_SEEDS, LEGEND, OurScore, TaskTable, model_kinds
from had.training.finetuning_recipe import RATES


def opening(
    suite: Suite, tables: Sequence[TaskTable], kinds: Mapping[str, str], untrained: Collection[str], title: str
) -> list[Block]:
    """What the models and marks are, and how to read the numbers."""
    used = {mark for table in tables for mark in table.grade}
    used |= {mark for table in tables for ours in table.ours for mark in ours.marks}
    used |= {mark for table in tables for other in table.published for mark in other.marks}
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
            [[name, _kind(kind) + (", fresh weights" if name in untrained else "")] for name, kind in kinds.items()],
        ),
        *([Table(["mark", "means"], legend)] if legend else []),
    ]


def _kind(kind: str) -> str:
    """What a kind is, without the options that choose it."""
    return KINDS.get(kind, "not known: its predictions are gone").partition(" (")[0]


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def _ours(row: OurScore | None) -> str:
    if row is None:
        return ""
    # A range over seeds that change nothing would be a claim of steadiness.
    spread = "" if row.seed_changes_nothing else f" ({row.spread:.3f})"
    return f"{row.mean:.3f}{spread}{row.marks}"


def summary(tables: Sequence[TaskTable], models: Sequence[str], pictures: Sequence[Picture]) -> list[Block]:
    """Every task and model, beside the best published score."""
    rows = []
    for table in tables:
        best = table.best_published
        shown = f"{best.score:.3f}{best.marks} {best.model}" if best else ""
        name = table.task.name + (f" {table.grade}" if table.grade else "")
        rows.append([name, table.metric, f"{table.n_test:,}", shown, *(_ours(table.of(m)) for m in models)])
    header = ["task", "metric", "test rows", "best published", *models]
    notes = [f"{table.task.name} {table.grade}: {'; '.join(table.reasons)}" for table in tables if table.grade]
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
        common = [table for table in whole if all(table.of(model) for model in models)]
        if common:
            rows.append(_group_row(name, whole, common, models))
    header = ["mean over", "tasks", "best published mean", *models]
    text = (
        "Unweighted means over the tasks that every model of this table has; beside them the best mean of a published "
        "model that has all of these tasks."
    )
    table = Table(header, rows, numbers=(1, *range(3, 3 + len(models))))
    return [Heading("Means over groups of tasks"), Paragraph(text), table] if rows else []


def _group_row(name: str, whole: list[TaskTable], common: list[TaskTable], models: Sequence[str]) -> list[str]:
    means = []
    for model in models:
        ours = [row for table in common if (row := table.of(model)) is not None]
        few = FEW_SEEDS if any(FEW_SEEDS in row.marks for row in ours) else ""
        means.append(f"{np.mean([row.mean for row in ours]):.3f}{few}")
    published: dict[str, list[float]] = {}
    for table in common:
        for other in table.published:
            published.setdefault(other.model, []).append(other.score)
    full = {model: float(np.mean(scores)) for model, scores in published.items() if len(scores) == len(common)}
    best = max(full, key=lambda model: full[model], default=None)
    grades = "".join(sorted({table.grade for table in common}))
    return [
        f"{name} {grades}".strip(),
        f"{len(common)}" + (f" of {len(whole)}" if len(common) < len(whole) else ""),
        f"{full[best]:.3f} {best}" if best else "",
        *means,
    ]


def paired(tables: Sequence[TaskTable], pictures: Sequence[Picture]) -> list[Block]:
    """Differences of models on the same test rows, with intervals."""
    every = [(table, one) for table in tables for one in table.differences]
    if not every:
        return []
    text = (
        "The model named first minus another: both models' predictions on the same test rows, averaged over their "
        "seeds, with 95 % intervals of 1,000 resamples of the test rows (of a mean over tasks: resamples of the tasks, "
        f"from {ENOUGH_TASKS} on). Where the interval holds 0 the two are not told apart. It says what another test "
        "set of this size would change; what another training run would change is in the range over seeds."
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
        mean = f"{_interval(mean_difference(list(by_task.values())))} ({len(by_task)} tasks)"
        means.append(mean if len(by_task) > 1 else "")
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
        blocks.append(Heading(f"{table.task.name}{' ' + table.grade if table.grade else ''}", 3))
        if table.reasons:
            blocks.append(Paragraph("Against the published numbers: " + "; ".join(table.reasons) + "."))
        lines: list[tuple[float, bool, list[str]]] = [
            (
                row.mean,
                True,
                [
                    row.model,
                    f"{row.mean:.3f}{row.marks}{' ' + table.grade if table.grade else ''}",
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


def missing(
    suite: Suite, folder: BenchmarkFolder, tables: Sequence[TaskTable], failed: Mapping[Unit, Exception]
) -> list[Block]:
    """What a reader might take for granted and is not here."""
    names = {table.task.name for table in tables}
    texts = [
        f"{unit.task}, {unit.model}, seed {unit.seed} failed: {reason}"
        for unit, reason in failed.items()
        if unit not in folder.rows
    ]
    seeds = max((len(row.values) for table in tables for row in table.ours), default=0)
    kinds = model_kinds(folder)
    for kind in ("scratch", "kmer", "cnn"):
        if kind not in kinds.values():
            texts.append(f"no row of {kind} ({_kind(kind)}): a score means little without this floor")
    for model in kinds:
        if lacking := [table.task.name for table in tables if table.of(model) is None]:
            texts.append(f"{model} was not run on {', '.join(lacking)}")
    for table in tables:
        for row in table.ours:
            if len(row.values) < seeds:
                texts.append(f"{table.task.name}, {row.model}: {len(row.values)} of {seeds} seeds")
    if seeds < suite.seeds:
        texts.append(f"the published protocol has {suite.seeds} seeds; here there are at most {seeds}")
    for name, reason in folder.about["invocations"][-1].get("left_out", {}).items() if folder.about else ():
        if name not in names:
            texts.append(f"{name} could not be run: {reason}")
    if absent := [task.name for task in suite.tasks if task.name not in names]:
        texts.append(f"tasks of the suite that were not run: {', '.join(absent)}")
    return [Heading("What is not here"), Items(texts)] if texts else []


def how(suite: Suite, folder: BenchmarkFolder) -> list[Block]:
    """Protocol, commands, versions, where the data are from."""
    validation = (
        "the official dev rows" if suite.dev_is_given else "10 % of the training rows, drawn anew for each seed"
    )
    text = (
        f"Validation on {validation}; the epoch of the best validation score is tested. Where several learning rates "
        "are named, validation chose with the first seed only. Each task's remarks say where a row differs. "
        "Every number can be computed again from predictions/ (one Parquet file a row of scores.csv)."
    )
    lines = []
    for one in folder.about.get("invocations", []):
        lines.append(shlex.join(["had", *one["command"][1:]]))
        lines.append(
            f"  {one['date']}, had {one['had']}, torch {one['torch']}, {one['platform']}, {one['device']}, "
            f"{one['jobs']} job(s) of {one['threads']} thread(s); data: {one['source']}"
        )
    return [Heading("How it was run"), Paragraph(text), *_recipes(folder), Code("\n".join(lines))]


def _recipes(folder: BenchmarkFolder) -> list[Block]:
    """How each fitted model was trained, as its predictions have it; a line for each recipe."""
    found: dict[tuple[str, ...], list[str]] = {}
    tasks = list(dict.fromkeys(unit.task for unit in folder.rows))
    for model in model_kinds(folder):
        for task in tasks:
            records = folder.records_of(task, model)
            if records and (recipes := records[0].settings.get("recipes")):
                made = found.setdefault((model, *_recipe(recipes, [record.facts for record in records])), [])
                made.append(task)
    rows = []
    for line, made in found.items():
        rows.append([*line, "all" if made == tasks else ", ".join(made)])
    header = ["model", "optimizer", "epochs", "batch", "learning rate", "weight decay", "warm-up", "average", "tasks"]
    return [Table(header, rows)] if rows else []


def _recipe(recipes: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    one = recipes[0]
    optimizer = {"auto": "Muon and AdamW", "muon": "Muon and AdamW"}.get(one.get("optimizer", "adamw"), "AdamW")
    rates = [RATES["muon" if optimizer != "AdamW" else "adamw"] if r["lr"] is None else r["lr"] for r in recipes]
    matrices = one.get("muon_lr")
    return (
        optimizer,
        ", ".join(map(str, sorted({fact["epochs"] for fact in facts if "epochs" in fact}))),
        str(one["batch_size"]),
        " or ".join(f"{rate:g}" for rate in rates) + (f" (Muon {matrices:g})" if matrices else ""),
        f"{one['weight_decay']:g}",
        f"{one['warmup']:.0%}",
        f"{one['ema']:g}" if one["ema"] else "none",
    )
