"""Pictures of feature spaces: t-SNE maps side by side, coloured by class."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from had.figures import as_written, colour, new_figure, png, shape
from had.files import atomic_write_bytes

PCA_WIDTH = 50
"""Features are cut to so many principal components before t-SNE, as van der Maaten and Hinton (2008) did."""
_PER_ROW = 4
_LAYERS = 20


class Panel(NamedTuple):
    """One map of a picture."""

    title: str
    caption: str
    """Written under the title; may be empty."""
    points: NDArray[np.float32]
    """(n, 2)."""


def tsne(features: ArrayLike, seed: int = 0, perplexity: float = 30.0) -> NDArray[np.float32]:
    """Lay out feature vectors in the plane by t-SNE (scikit-learn), starting from their principal components.

    Parameters
    ----------
    features
        (n, d) dense, n ≥ 2; columns are used as they are, so scale them before where their units differ.
    seed
        Of the PCA's randomised solver and of the layout.
    perplexity
        Lowered to (n - 1) / 3 for few rows.

    Returns
    -------
    float32 (n, 2). Distances between far clusters, and the sizes of clusters, mean nothing.

    Raises
    ------
    ValueError
        If there are fewer than two rows, or a feature is not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = np.asarray(features, dtype=np.float32)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"t-SNE needs a matrix of at least two rows; got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("t-SNE needs finite features")
    n_components = min(PCA_WIDTH, *x.shape)
    reduced = PCA(n_components, random_state=seed).fit_transform(x)
    few = max(1.0, min(perplexity, (len(x) - 1) / 3))
    init = "pca" if n_components >= 2 else "random"
    return TSNE(2, perplexity=few, init=init, random_state=seed).fit_transform(reduced).astype(np.float32)


def plot_panels(
    panels: Sequence[Panel],
    labels: ArrayLike,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    title: str = "",
) -> None:
    """Draw maps of the same rows side by side as a PNG.

    Parameters
    ----------
    panels
        At least one; four stand in a row.
    labels
        Class (n,) of each row, an index into ``classes``.
    classes
        Names for the legend.
    path
        The file to write; an old one is replaced at once.
    title
        Over the whole picture.
    """
    from matplotlib.lines import Line2D

    label = np.asarray(labels)
    columns = min(len(panels), _PER_ROW)
    rows = -(-len(panels) // columns)
    figure = new_figure(3.6 * columns, 4.15 * rows + 0.6)
    # One class drawn after the other would hide the first: points go down in a fixed random order, a few at a time.
    order = np.random.default_rng(0).permutation(len(label))
    style: list[dict[str, Any]] = [{"marker": shape(i), "color": colour(i)} for i in range(len(classes))]
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for part in np.array_split(order, min(len(order), _LAYERS)):
            for i in np.unique(label[part]):
                x, y = panel.points[part[label[part] == i]].T
                axes.scatter(x, y, s=11, alpha=0.65, linewidths=0, **style[i])
        axes.set_title("\n".join(as_written(text) for text in (panel.title, panel.caption) if text), fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_box_aspect(1)
        axes.spines[:].set_color("0.8")
    if title:
        figure.suptitle(as_written(title), fontsize=12)
    handles = [
        Line2D([], [], linestyle="", markersize=6, label=f"{as_written(name)} ({(label == i).sum():,})", **style[i])
        for i, name in enumerate(classes)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    atomic_write_bytes(path, png(figure, 150))
