"""Bootstrap of the difference of two models: test rows, which they share, and each model's seeds are resampled."""

import numpy as np
from numpy.typing import NDArray

from had.bootstrap import Interval

RESAMPLES = 1000
_CELLS = 1 << 24


def score_confusions(metric: str, confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """One metric of many confusion matrices, with the degenerate cases of `had.metrics`.

    Parameters
    ----------
    metric
        mcc, accuracy or macro_f1.
    confusion
        (…, C, C) rows by true (first) and predicted class; weights need not be whole.

    Returns
    -------
    (…).
    """
    total = confusion.sum((-2, -1))
    right = np.trace(confusion, axis1=-2, axis2=-1)
    if metric == "accuracy":
        return right / total
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    if metric == "macro_f1":
        both = true + predicted
        hits = np.diagonal(confusion, axis1=-2, axis2=-1)
        f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
        return f1.sum(-1) / np.maximum((both > 0).sum(-1), 1)
    if metric != "mcc":
        raise ValueError(f"no metric of confusion matrices is called {metric!r}")
    # Gorodkin's R_K, which is Matthews' correlation for two classes.
    covariance = right * total - (true * predicted).sum(-1)
    spread = (total**2 - (true**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)


def paired_interval(
    metric: str,
    targets: NDArray[np.int64],
    ours: NDArray[np.int64],
    theirs: NDArray[np.int64],
    n_classes: int,
    seed: int = 0,
) -> Interval:
    """Difference of two models' mean scores over their seeds, with its 95 % interval over test rows and seeds.

    A resample draws test rows, the same for every seed of both models, and seeds of each model, all with replacement
    (the product bootstrap: Owen and Eckles, Annals of Applied Statistics 6, 2012). Resampling the rows alone would
    leave out what another training run changes.

    Parameters
    ----------
    metric
        mcc, accuracy or macro_f1.
    targets
        Class ids (n,); negative where no training row has the label (an error of both).
    ours, theirs
        Predicted class ids (seeds, n); the two may have different numbers of seeds. Of a single seed only the rows
        can be resampled.
    n_classes
        Classes that can be predicted.
    seed
        Of the resampling.

    Returns
    -------
    Interval of the difference.
    """
    true = np.where(targets >= 0, targets, n_classes)
    width = n_classes + 1
    cells = [[true * width + predicted for predicted in model] for model in (ours, theirs)]
    n = len(true)

    def scores(model: list[NDArray[np.int64]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score (resamples, seeds) of each seed of a model on weighted rows (resamples, n)."""
        columns = []
        for cell in model:
            indicator = np.zeros((n, width * width))
            indicator[np.arange(n), cell] = 1.0
            columns.append(score_confusions(metric, (weights @ indicator).reshape(-1, width, width)))
        return np.stack(columns, axis=1)

    rng = np.random.default_rng(seed)
    drawn, step = [], max(1, min(RESAMPLES, _CELLS // max(1, n)))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        weights = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(rows)]).astype(np.float64)
        first, second = (
            (scores(model, weights) * rng.multinomial(len(model), np.full(len(model), 1 / len(model)), rows)).sum(1)
            / len(model)
            for model in cells
        )
        drawn.append(first - second)
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    whole = [float(scores(model, np.ones((1, n))).mean()) for model in cells]
    return Interval(whole[0] - whole[1], float(low), float(high), n)
