"""How sure a difference is: two models on the same test rows, the rows drawn again and again (paired bootstrap)."""

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
    """Difference of two models' mean scores over their seeds, with its 95 % interval over test rows.

    Parameters
    ----------
    metric
        mcc, accuracy or macro_f1.
    targets
        Class ids (n,); negative where no training row has the label (an error of both).
    ours, theirs
        Predicted class ids (seeds, n); the two may have different numbers of seeds.
    n_classes
        Classes that can be predicted.
    seed
        Of the resampling.

    Returns
    -------
    Interval of the difference; it holds what another draw of test rows would change, and averages over the seeds.
    """
    true = np.where(targets >= 0, targets, n_classes)
    width = n_classes + 1
    cells = [true * width + predicted for model in (ours, theirs) for predicted in model]
    sides = np.repeat([1.0 / len(ours), -1.0 / len(theirs)], [len(ours), len(theirs)])
    n = len(true)

    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        result = np.zeros(len(weights))
        for cell, side in zip(cells, sides, strict=True):
            indicator = np.zeros((n, width * width))
            indicator[np.arange(n), cell] = 1.0
            confusion = (weights @ indicator).reshape(-1, width, width)
            result += side * score_confusions(metric, confusion)
        return result

    rng = np.random.default_rng(seed)
    drawn, step = [], max(1, min(RESAMPLES, _CELLS // max(1, n)))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        weights = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(rows)]).astype(np.float64)
        drawn.append(difference(weights))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Interval(float(difference(np.ones((1, n)))[0]), float(low), float(high), n)
