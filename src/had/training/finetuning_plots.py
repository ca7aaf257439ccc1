"""Pictures of predictions against the truth: confusion, ROC, precision and recall, calibration, scatter."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from had.dna.labelled_tasks import UNSEEN, Task
from had.figures import COLOURS, as_written, colour, new_figure, png
from had.files import atomic_write_bytes
from had.metrics import confusion_matrix

_MOST_CURVES = 12
_BINS = 10


def draw_pictures(folder: Path, task: Task, targets: NDArray, outputs: NDArray[np.float64], split: str) -> list[Path]:
    """Draw what a task allows as PNG files.

    Parameters
    ----------
    folder
        Where ``confusion.png``, ``roc.png``, ``precision_recall.png``, ``calibration.png`` or ``scatter.png`` go.
    task
        Its kind and classes.
    targets
        As `had.dna.labelled_tasks.targets` gives them.
    outputs
        Probabilities (n, K), or values (n, 1).
    split
        Which rows these are, for the titles.

    Returns
    -------
    The files written.
    """
    if task.kind == "regression":
        return [_scatter(folder / "scatter.png", targets, outputs[:, 0], split)]
    written = []
    truth = targets
    if task.kind != "multilabel":
        written.append(_confusion(folder / "confusion.png", task, targets, outputs, split))
        known = targets != UNSEEN
        truth, outputs = np.eye(len(task.classes), dtype=np.int64)[targets[known]], outputs[known]
    chosen = [1] if task.kind == "binary" else range(min(len(task.classes), _MOST_CURVES))
    curves = [
        (as_written(task.classes[k]), truth[:, k].astype(np.int64), outputs[:, k])
        for k in chosen
        if 0 < truth[:, k].sum() < len(truth)
    ]
    if curves:
        written.append(_curves(folder / "roc.png", curves, split, "roc"))
        written.append(_curves(folder / "precision_recall.png", curves, split, "precision_recall"))
        written.append(_curves(folder / "calibration.png", curves, split, "calibration"))
    return written


def _figure(width: float = 4.8, height: float = 4.4) -> tuple[Any, Any]:
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> Path:
    atomic_write_bytes(path, png(figure))
    return path


def _curves(path: Path, curves: list[tuple[str, NDArray, NDArray]], split: str, kind: str) -> Path:
    from sklearn import metrics as sk

    figure, axes = _figure()
    for i, (name, true, score) in enumerate(curves):
        # Colours return with the eighth curve, then dashed.
        look: dict[str, Any] = {"color": colour(i), "linestyle": "-" if i < len(COLOURS) else "--"}
        if kind == "roc":
            x, y, _ = sk.roc_curve(true, score)
            axes.plot(x, y, **look, label=f"{name}: area {sk.roc_auc_score(true, score):.3f}")
        elif kind == "precision_recall":
            precision, recall, _ = sk.precision_recall_curve(true, score)
            label = f"{name}: {sk.average_precision_score(true, score):.3f} (chance {true.mean():.3f})"
            axes.plot(recall, precision, **look, drawstyle="steps-post", label=label)
        else:
            bins = np.minimum((score * _BINS).astype(int), _BINS - 1)
            points = [(score[bins == b].mean(), true[bins == b].mean()) for b in np.unique(bins)]
            sizes = np.bincount(bins, minlength=_BINS)
            error = sum(sizes[b] / len(true) * abs(p - t) for b, (p, t) in zip(np.unique(bins), points, strict=True))
            axes.plot(*zip(*points, strict=True), marker="o", **look, label=f"{name}: error {error:.3f}")
    if kind != "precision_recall":
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    axes.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel={"roc": "false positive rate", "precision_recall": "recall", "calibration": "predicted probability"}[
            kind
        ],
        ylabel={"roc": "true positive rate", "precision_recall": "precision", "calibration": "share that is true"}[
            kind
        ],
        title=f"{split} rows ({len(curves[0][1]):,})",
    )
    axes.legend(fontsize=8, frameon=False)
    return _save(figure, path)


def _confusion(path: Path, task: Task, targets: NDArray, outputs: NDArray, split: str) -> Path:
    n = len(task.classes)
    matrix = confusion_matrix(np.where(targets == UNSEEN, n, targets), outputs.argmax(1), n + 1)[:, :n]
    rows = [*task.classes, "(not in train)"] if matrix[n].any() else list(task.classes)
    matrix = matrix[: len(rows)]
    side = min(12.0, 2.5 + 0.6 * n)
    figure, axes = _figure(side + 0.8, side)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if n <= 20:
        for (i, j), count in np.ndenumerate(matrix):
            axes.text(j, i, f"{count:,}", ha="center", va="center", color="white" if share[i, j] > 0.55 else "black")
    names = [as_written(name) for name in rows]
    axes.set_xticks(range(n), names[:n], rotation=45 if n > 4 else 0)
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlabel="predicted", ylabel="true", title=f"{split} rows ({len(targets):,})")
    figure.colorbar(image, label="share of the true class")
    return _save(figure, path)


def _scatter(path: Path, targets: NDArray, values: NDArray, split: str) -> Path:
    figure, axes = _figure()
    axes.scatter(targets, values, s=8, alpha=0.4, linewidths=0, color=COLOURS[0])
    low, high = min(targets.min(), values.min()), max(targets.max(), values.max())
    axes.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel="true value", ylabel="predicted value", title=f"{split} rows ({len(targets):,})")
    return _save(figure, path)
