"""Linear probes: how much of a label a frozen feature holds in plain sight.

A probe is a logistic regression on standardised features with its penalty chosen on development rows
(:func:`had.baselines.logistic.fit_logistic`). Layers are probed one by one, because the last layer is often
not the best (HAD.md, section 5); the layer, too, is chosen on development rows only.

What a seed varies. The solver has no randomness: its problem is convex. What a result does depend on is which
training rows happened to be labelled, so a seed draws a bootstrap sample of them (n rows with replacement,
about 63 % of them distinct). Models compared at one seed see the same rows. ``seed=None`` uses every row
once: the level to quote, since the bootstrap fits have fewer distinct rows and mostly score lower (by up to
.04 of MCC with 4-mer frequencies on GUE tasks); their spread is the error bar.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from had.baselines.logistic import C_GRID, fit_logistic
from had.metrics import mcc


@dataclass(frozen=True)
class ProbeResult:
    """One probe of one layer."""

    layer: str
    seed: int | None
    """None: every training row once."""
    dev: float
    """Score on the development rows, which chose the penalty: not comparable with ``test``."""
    test: float
    C: float
    """The inverse penalty chosen."""
    n_train: int
    """Rows the fit counted (with repetition where a seed is set)."""
    n_distinct: int
    """Distinct rows among them."""
    n_available: int
    """Training rows given; more than ``n_train`` where ``max_rows`` cut them."""
    converged: bool
    seconds: float


@dataclass(frozen=True)
class LayerProbes:
    """Probes of every layer, and the layer the development rows chose."""

    layers: tuple[ProbeResult, ...]
    best_index: int

    @property
    def best(self) -> ProbeResult:
        """The probe of the chosen layer."""
        return self.layers[self.best_index]


def linear_probe(
    train_x: NDArray,
    train_y: ArrayLike,
    dev_x: NDArray,
    dev_y: ArrayLike,
    test_x: NDArray,
    test_y: ArrayLike,
    *,
    seed: int | None = None,
    max_rows: int | None = None,
    grid: Sequence[float] = C_GRID,
    metric: Callable[[ArrayLike, ArrayLike], float] = mcc,
    layer: str = "",
) -> ProbeResult:
    """Probe frozen features.

    Parameters
    ----------
    train_x, dev_x, test_x
        Features (n, d), any floating type.
    train_y, dev_y, test_y
        Class ids (n,).
    seed
        Seed of the bootstrap of the training rows; None: every row once.
    max_rows
        Fit on at most this many rows: with a seed, that many draws with replacement; without, a fixed random
        subset.
    grid
        Inverse penalties tried.
    metric
        Function of truth and prediction, higher is better.
    layer
        Name kept in the result.

    Raises
    ------
    UserError
        If the training rows (or the sample of them) are of one class only, or there is no development row.
    ValueError
        If a feature is not finite or lengths disagree.
    """
    started = time.perf_counter()
    labels = np.asarray(train_y)
    if len(train_x) != len(labels):
        raise ValueError(f"{len(train_x)} training features do not fit {len(labels)} labels")
    rows, weight = draw_rows(len(labels), seed, max_rows)
    # A row drawn twice is a row of weight two: the same fit on a third fewer rows.
    fit = fit_logistic(
        train_x if len(rows) == len(labels) else train_x[rows],
        labels[rows],
        dev_x,
        dev_y,
        grid=grid,
        metric=metric,
        sample_weight=weight,
    )
    return ProbeResult(
        layer=layer,
        seed=seed,
        dev=fit.dev_score,
        test=metric(test_y, fit.predict(test_x)) if len(test_x) else np.nan,
        C=fit.C,
        n_train=len(rows) if weight is None else int(weight.sum()),
        n_distinct=len(rows),
        n_available=len(labels),
        converged=fit.converged,
        seconds=time.perf_counter() - started,
    )


def probe_layers(
    train: Sequence[NDArray],
    train_y: ArrayLike,
    dev: Sequence[NDArray],
    dev_y: ArrayLike,
    test: Sequence[NDArray],
    test_y: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    seed: int | None = None,
    max_rows: int | None = None,
    grid: Sequence[float] = C_GRID,
    metric: Callable[[ArrayLike, ArrayLike], float] = mcc,
) -> LayerProbes:
    """Probe every layer and choose one by its development score (the earliest of equals).

    Parameters
    ----------
    train, dev, test
        Features (n, d) of each layer, in order; widths may differ.
    train_y, dev_y, test_y
        Class ids (n,), the same for every layer.
    names
        Names of the layers; by default ``0``, ``1``, …
    seed, max_rows, grid, metric
        As in :func:`linear_probe`; all layers are fitted on the same rows. To repeat the whole procedure,
        choice of the layer included, call this with other seeds.

    Returns
    -------
    LayerProbes. The test scores of layers that were not chosen are there to be shown, not to be picked from.
    """
    names = [str(i) for i in range(len(train))] if names is None else names
    if not len(train) == len(dev) == len(test) == len(names) > 0:
        raise ValueError("train, dev, test and names must have one entry for every layer, and at least one")
    results = tuple(
        linear_probe(
            train_x,
            train_y,
            dev_x,
            dev_y,
            test_x,
            test_y,
            seed=seed,
            max_rows=max_rows,
            grid=grid,
            metric=metric,
            layer=name,
        )
        for train_x, dev_x, test_x, name in zip(train, dev, test, names, strict=True)
    )
    best = max(range(len(results)), key=lambda i: results[i].dev)
    return LayerProbes(results, best)


def draw_rows(n: int, seed: int | None, max_rows: int | None) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Rows to fit on, ascending, and how often each counts (None: once)."""
    size = n if max_rows is None else min(n, max_rows)
    if seed is None:
        if size == n:
            return np.arange(n), None
        return np.sort(np.random.default_rng(0).choice(n, size, replace=False)), None
    count = np.bincount(np.random.default_rng(seed).integers(n, size=size), minlength=n)
    rows = np.flatnonzero(count)
    return rows, count[rows].astype(np.float64)
