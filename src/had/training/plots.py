"""A picture of how a run went."""

import math
import operator
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from had.figures import as_written, new_figure, png
from had.files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "loss": "Total loss",
    "loss_align": "Alignment (mean squared error)",
    "loss_rec": "Reconstruction (nats per base)",
}
"""Keys of a metrics record that get a panel, with its title."""

_TRAIN, _VALIDATION = "#0072B2", "#D55E00"
_BASELINES = ("#009E73", "#CC79A7", "#8C6D1F", "#555555")
_POINTS = 2000


def plot_losses(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the losses of a run over its steps as a PNG.

    Parameters
    ----------
    metrics
        Records of ``metrics.jsonl``. ``split`` is ``train`` (drawn light, and smoothed on top),
        ``validation`` (points), or ``baseline``: its losses become horizontal lines labelled with the
        record's ``name``. Values that are null or not finite are left out, and so is a panel without any.
    path
        The file to write; an old one is replaced at once.
    """
    train, validation, baselines = (
        [record for record in metrics if record.get("split") == split] for split in ("train", "validation", "baseline")
    )
    shown = [key for key in PANELS if _curve(train, key)[0].size or _curve(validation, key)[0].size]
    if shown == ["loss", "loss_rec"] and _same(train, "loss", "loss_rec"):
        shown = ["loss_rec"]
    figure = new_figure(4.8 * max(1, len(shown)), 4.2)
    if not shown:
        figure.text(0.5, 0.5, "no losses logged yet", ha="center", va="center", color="0.4")
    base_pairs = _base_pairs_per_step(train)
    for number, key in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), number)
        _panel(axes, key, train, validation, baselines)
        if base_pairs:
            scale = base_pairs / 1e6
            to_mbp, to_steps = partial(operator.mul, scale), partial(operator.mul, 1 / scale)
            top = axes.secondary_xaxis("top", functions=(to_mbp, to_steps))
            top.set_xlabel("Mbp seen", fontsize=9, color="0.4")
            top.tick_params(labelsize=8, colors="0.4")
    atomic_write_bytes(path, png(figure, 150))


def _panel(
    axes: "Axes",
    key: str,
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    baselines: Sequence[Mapping[str, Any]],
) -> None:
    steps, values = _curve(train, key)
    in_view = []
    if values.size:
        smooth = _smooth(values)
        thin = slice(None, None, math.ceil(values.size / _POINTS))
        axes.plot(steps[thin], values[thin], color=_TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(steps[thin], smooth[thin], color=_TRAIN, linewidth=1.8, label="train (smoothed)")
        # The first steps' heights would flatten the rest of the picture.
        in_view += [*np.percentile(values, [0.5, 98]), smooth[-1]]
    steps, values = _curve(validation, key)
    if values.size:
        axes.plot(steps, values, "o-", color=_VALIDATION, markersize=4, linewidth=1, label="validation")
        in_view += [values.min(), values[min(1, values.size - 1) :].max()]
    for i, record in enumerate(record for record in baselines if _finite(record, key)):
        height, color = float(record[key]), _BASELINES[i % len(_BASELINES)]
        label = f"{as_written(str(record.get('name', 'baseline')))} ({height:.4g})"
        axes.axhline(height, color=color, linewidth=1.2, linestyle=(0, (5, 3)), label=label)
        in_view.append(height)
    low, high = min(in_view), max(in_view)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.set_title(PANELS[key], fontsize=11)
    axes.set_xlabel("step")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _finite(record: Mapping[str, Any], key: str) -> bool:
    value = record.get(key)
    return isinstance(value, int | float) and math.isfinite(value)


def _curve(records: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give steps and values, both float64 (n,), of the records that have a finite value."""
    pairs = [(record["step"], record[key]) for record in records if _finite(record, key)]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take a moving mean over about a fortieth of the curve, narrower at its steep start."""
    reach = values.size // 80
    sums = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(values.size)
    first = here - np.minimum(reach, here)
    stop = np.minimum(2 * here - first + 1, values.size)
    return (sums[stop] - sums[first]) / (stop - first)


def _same(records: Sequence[Mapping[str, Any]], one: str, other: str) -> bool:
    return all(record.get(one) == record.get(other) for record in records)


def _base_pairs_per_step(records: Sequence[Mapping[str, Any]]) -> float | None:
    for record in reversed(records):
        if _finite(record, "bp") and record.get("step"):
            return float(record["bp"]) / float(record["step"])
    return None
