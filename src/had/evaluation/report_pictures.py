"""Pictures of a benchmark: every task's scores beside the published ones, and paired differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from had.bootstrap import Interval
from had.evaluation.pairs import mean_difference
from had.evaluation.report_tables import ARTEFACT, TaskTable
from had.figures import COLOURS, as_written, colour, new_figure, png, shape

_PUBLISHED = "0.62"
_TITLE = {"mcc": "Matthews correlation", "accuracy": "accuracy", "macro_f1": "macro F1"}


def _plain(axes: Any, labels: Sequence[str]) -> None:
    """Tasks from top to bottom, a light band behind every other one."""
    n = len(labels)
    axes.set_yticks(range(n), [as_written(label) for label in labels], fontsize=9)
    axes.set_ylim(n - 0.5, -0.5)
    for i in range(0, n, 2):
        axes.axhspan(i - 0.5, i + 0.5, color="0.96", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)


def draw_scores(tables: Sequence[TaskTable]) -> bytes:
    """Mean and range over seeds of every model on every task, published scores as grey ticks, as PNG."""
    models = list(dict.fromkeys(row.model for table in tables for row in table.ours))
    figure = new_figure(9.5, 1.5 + len(tables) * (0.2 + 0.09 * len(models)))
    axes = figure.add_subplot()
    places = np.linspace(-0.3, 0.3, len(models)) if len(models) > 1 else np.zeros(1)
    for y, table in enumerate(tables):
        for row in table.published:
            axes.plot([row.score] * 2, [y - 0.36, y + 0.36], color=_PUBLISHED, linewidth=1, alpha=0.55, zorder=2)
        best = table.best_published
        if best:
            axes.plot([best.score] * 2, [y - 0.44, y + 0.44], color="black", linewidth=2, zorder=3)
        for i, model in enumerate(models):
            ours = table.of(model)
            if ours is None:
                continue
            values = list(ours.values.values())
            style = {"color": colour(i), "zorder": 5}
            axes.plot([min(values), max(values)], [y + places[i]] * 2, linewidth=2.2, alpha=0.5, **style)
            axes.plot(ours.mean, y + places[i], shape(i), markersize=5.5, linestyle="", **style)
            if ours.grade != table.grade:
                axes.annotate(
                    ours.grade,
                    (max(values), y + places[i]),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                    zorder=6,
                )
    _plain(axes, [table.title for table in tables])
    names = {_TITLE[table.metric] for table in tables}
    axes.set_xlabel(f"test {', '.join(sorted(names))}: mean (mark) and range over seeds (bar)")
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(i), marker=shape(i), markersize=6, label=as_written(model))
        for i, model in enumerate(models)
    ]
    if any(table.published for table in tables):
        handles.append(Line2D([], [], color=_PUBLISHED, linewidth=1.5, label="published"))
        handles.append(Line2D([], [], color="black", linewidth=2, label="best published"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 7), frameon=False, fontsize=9)
    return png(figure)


def draw_differences(tables: Sequence[TaskTable], reference: str) -> bytes | None:
    """A model minus others, task by task, with 95 % intervals over test rows and seeds, as PNG; None without any.

    Tasks that the model does not have are left out.
    """
    of_task = {
        f"{table.task.name} {ARTEFACT}" if table.task.artefact else table.task.name: found
        for table in tables
        if (found := {one.other: one for one in table.differences if one.reference == reference})
    }
    others = list(dict.fromkeys(name for found in of_task.values() for name in found))
    if not others:
        return None
    with_mean = len(of_task) > 1
    labels = [*of_task, *(["mean over tasks"] if with_mean else [])]
    columns = min(len(others), 4)
    rows = -(-len(others) // columns)
    figure = new_figure(max(6.0, 2.2 + 2.7 * columns), (1.0 + 0.34 * len(labels)) * rows + 0.4)
    every = [one.interval for found in of_task.values() for one in found.values()]
    reach = 1.05 * max([0.01, *(abs(edge) for one in every for edge in (one.low, one.high))])
    for number, other in enumerate(others):
        axes = figure.add_subplot(rows, columns, number + 1)
        for y, found in enumerate(of_task.values()):
            if other in found:
                _interval(axes, y, found[other].interval, "o")
        if with_mean:
            mean = mean_difference([found[other] for found in of_task.values() if other in found])
            _interval(axes, len(of_task), mean, "D")
        _plain(axes, labels if number % columns == 0 else [""] * len(labels))
        axes.axvline(0, color="0.3", linewidth=1)
        axes.set_xlim(-reach, reach)
        axes.set_title(as_written(f"{reference} − {other}"), fontsize=10)
    figure.supxlabel(f"difference of means over seeds; right of 0: {as_written(reference)} is better", fontsize=9)
    return png(figure)


def _interval(axes: Any, y: float, interval: Interval, marker: str) -> None:
    # Comparisons with NaN, where there is no interval, are false.
    sure = interval.low > 0 or interval.high < 0
    ink = "0.5" if not sure else COLOURS[0] if interval.mean > 0 else COLOURS[1]
    axes.plot([interval.low, interval.high], [y, y], color=ink, linewidth=2.2, zorder=4)
    axes.plot(interval.mean, y, marker, color=ink, markersize=6, zorder=5)
