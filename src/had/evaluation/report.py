"""The report of a benchmark, from what its folder holds: ``report.md``, ``.html``, ``.csv`` and pictures."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from had.errors import RunFault
from had.evaluation.benchmark_folder import BenchmarkFolder
from had.evaluation.protocols import Suite
from had.evaluation.report_document import Picture, as_html, as_markdown
from had.evaluation.report_pictures import draw_differences, draw_scores
from had.evaluation.report_provenance import how, missing
from had.evaluation.report_sections import (
    costs,
    groups,
    number,
    opening,
    overlaps,
    paired,
    summary,
    tasks,
)
from had.evaluation.report_tables import TaskTable, collect, model_kinds, untrained_models
from had.evaluation.suite_data import TaskData
from had.evaluation.unit_files import Unit
from had.files import atomic_write_bytes, atomic_write_text

PICTURES = "pictures"
_SCORES_CAPTION = (
    "Every model's test score on every task; bars: smallest to largest of the seeds, grey lines: published scores, "
    "black line: the best of these."
)
CSV_COLUMNS = (
    *("suite", "group", "task", "metric", "model", "is_ours", "mean", "range", "seeds", "validation", "parameters"),
    *("train_seconds", "train_bp_per_second", "test_bp_per_second", "mean_without_same", "mean_without_near"),
    *("comparable", "why_not", "marks", "source"),
)


def write_report(
    folder: BenchmarkFolder,
    suite: Suite,
    load: Callable[[str], TaskData | None],
    failed: Mapping[Unit, Exception] | None = None,
    quiet: bool = True,
) -> list[Path]:
    """Write the report of everything that is in a benchmark's folder.

    Parameters
    ----------
    folder
        With scores and predictions.
    suite
        Which benchmark it is.
    load
        Gives a task's data by name, or None where it is not at hand (then the search for test rows that also stand in
        train is left out, unless it was made before).
    failed
        Units that could not be computed, and why.
    quiet
        Show no progress.

    Returns
    -------
    The files written; none where there is no score yet.

    Raises
    ------
    RunFault
        If the disk refused.
    """
    if not folder.rows:
        return []
    tables = collect(folder, suite, load, quiet)
    kinds = model_kinds(folder)
    try:
        (folder.path / PICTURES).mkdir(exist_ok=True)
    except OSError as error:
        raise RunFault(f"{folder.path / PICTURES}: cannot be made ({error.strerror or error})") from error
    scores = Picture(f"{PICTURES}/scores.png", draw_scores(tables), _SCORES_CAPTION)
    differences: list[Picture] = []
    for reference in dict.fromkeys(one.reference for table in tables for one in table.differences):
        if data := draw_differences(tables, reference):
            name = "differences" + (f"-{len(differences) + 1}" if differences else "")
            caption = (
                f"{reference} minus other models on the same test rows; bars: 95 % intervals over test rows and "
                "seeds, in the last row over tasks (without those marked †); grey: not told apart from 0."
            )
            differences.append(Picture(f"{PICTURES}/{name}.png", data, caption))
    for picture in (scores, *differences):
        atomic_write_bytes(folder.path / picture.path, picture.data)
    title = suite.title
    blocks = [
        *opening(suite, tables, kinds, untrained_models(folder), title),
        *summary(tables, list(kinds), [scores]),
        *groups(tables, list(kinds)),
        *paired(tables, differences),
        *overlaps(tables, list(kinds)),
        *costs(tables, kinds),
        *tasks(tables),
        *missing(suite, folder, tables, failed or {}),
        *how(suite, folder),
    ]
    atomic_write_text(folder.path / "report.md", as_markdown(blocks))
    atomic_write_text(folder.path / "report.html", as_html(title, blocks))
    atomic_write_text(folder.path / "report.csv", _as_csv(suite, tables))
    return [folder.path / name for name in ("report.html", "report.md", "report.csv")]


def _as_csv(suite: Suite, tables: Sequence[TaskTable]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for table in tables:
        common = {"suite": suite.name, "group": table.task.group, "task": table.task.name, "metric": table.metric}
        for row in table.ours:
            writer.writerow(
                {
                    **common,
                    "model": row.model,
                    "is_ours": 1,
                    "mean": number(row.mean, 6),
                    "range": number(row.spread, 6),
                    "seeds": len(row.values),
                    "validation": number(row.validation, 6),
                    "parameters": row.parameters if row.parameters is not None else "",
                    "train_seconds": number(row.train_seconds, 2),
                    "train_bp_per_second": number(row.train_bp_per_second, 0),
                    "test_bp_per_second": number(row.test_bp_per_second, 0),
                    "mean_without_same": number(row.without_same, 6),
                    "mean_without_near": number(row.without_near, 6),
                    "comparable": {"": "yes", "~": "with caution"}.get(row.grade, "no"),
                    "why_not": "; ".join(row.reasons),
                    "marks": row.marks + row.grade,
                    "source": "here",
                }
            )
        for other in table.published:
            writer.writerow(
                {
                    **common,
                    "model": other.model,
                    "is_ours": 0,
                    "mean": number(other.score, 6),
                    "range": number(other.spread, 6),
                    "seeds": other.seeds if other.seeds is not None else "",
                    "parameters": other.parameters if other.parameters is not None else "",
                    "marks": other.marks,
                    "source": other.source,
                }
            )
    return buffer.getvalue()
