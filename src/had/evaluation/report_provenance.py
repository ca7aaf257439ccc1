"""The last sections of a benchmark's report: what is not in it, and how it was run."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from had.evaluation.benchmark_folder import BenchmarkFolder
from had.evaluation.contestants import FLOORS
from had.evaluation.protocols import Suite
from had.evaluation.report_document import Block, Code, Heading, Items, Paragraph, Table
from had.evaluation.report_sections import kind_in_words
from had.evaluation.report_tables import TaskTable, model_kinds
from had.evaluation.unit_files import Unit
from had.training.finetuning_recipe import RATES


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
    for kind in FLOORS:
        if kind not in kinds.values():
            texts.append(f"no row of {kind} ({kind_in_words(kind)}): a score means little without this floor")
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
