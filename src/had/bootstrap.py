"""Intervals of a mean: percentile bootstrap over units that come in blocks, and Student's t for few of them.

Neighbouring windows of a genome are not independent (repeats, isochores), so an interval that resamples
single windows is too narrow. Whole blocks of neighbours are resampled instead (the non-overlapping block
bootstrap: Carlstein, Annals of Statistics 14, 1986), and the mean is the ratio of the resampled sums and
weights.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

_CELLS_PER_CHUNK = 1 << 22


class Interval(NamedTuple):
    """A mean and its interval."""

    mean: float
    low: float
    high: float
    n_blocks: int
    """Blocks resampled: with fewer than about 20 the interval of a bootstrap is too narrow (see `t_interval`)."""


def consecutive_blocks(n: int, size: int) -> NDArray[np.int64]:
    """Put units in order into blocks of ``size`` (100 tiles of 1,020 bp are 102 kb): block ids (n,)."""
    if size < 1:
        raise ValueError(f"a block needs at least one unit; got {size}")
    return np.arange(n) // size


def bootstrap_mean(
    values: ArrayLike,
    *,
    blocks: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Weighted mean of some units, with a percentile bootstrap interval over blocks.

    Parameters
    ----------
    values
        One number per unit (n,): a tile's loss, a row's 0/1 correctness, …
    blocks
        Block id (n,) of each unit, any hashable values; None: every unit is its own block.
    weights
        Weight (n,) of each unit (for example its number of hidden letters); None: equal.
    confidence
        Probability between the ends, in (0, 1).
    n_resamples
        Bootstrap samples.
    seed
        Seed of the resampling: equal seeds and block counts give equal resamples, so intervals are
        reproducible.

    Returns
    -------
    Interval. With no units all is NaN; with one block ``low`` and ``high`` are NaN, since it says nothing of
    the spread.

    Raises
    ------
    ValueError
        If shapes disagree, a value or weight is not finite, a weight is negative, or a block weighs 0.
    """
    value = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(value) if weights is None else np.asarray(weights, dtype=np.float64)
    block_id = np.arange(len(value)) if blocks is None else np.asarray(blocks)
    if value.ndim != 1 or weight.shape != value.shape or block_id.shape != value.shape:
        raise ValueError("values, weights and blocks must be arrays of one length (n,)")
    if not 0 < confidence < 1 or n_resamples < 1:
        raise ValueError(f"confidence must be in (0, 1), n_resamples positive; got {confidence}, {n_resamples}")
    if not np.isfinite(value).all() or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("values must be finite and weights finite and not negative")
    if len(value) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    block = np.unique(block_id, return_inverse=True)[1]
    total = np.bincount(block, weights=value * weight).astype(np.float64)
    size = np.bincount(block, weights=weight).astype(np.float64)
    if (size == 0).any():
        raise ValueError("all weights of a block are 0: leave its units out")
    mean = total.sum() / size.sum()
    if len(total) == 1:
        return Interval(float(mean), np.nan, np.nan, 1)
    resampled = _resampled_means(total, size, n_resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(mean), float(low), float(high), len(total))


def t_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of a few units, such as tasks, with Student's t interval.

    A percentile bootstrap of 5 to 10 units is too narrow: its 95 % interval holds the true mean of normal
    units in about 84 to 90 % of cases, this one in 95 %.

    Parameters
    ----------
    values
        One number per unit (n,).
    confidence
        Probability between the ends, in (0, 1).

    Returns
    -------
    Interval. ``low`` and ``high`` are NaN with fewer than two units, since one says nothing of the spread; with no
    units all is NaN.
    """
    value = np.asarray(values, dtype=np.float64)
    n = len(value)
    if n < 2:
        return Interval(float(value[0]) if n else np.nan, np.nan, np.nan, n)
    mean = float(value.mean())
    reach = float(stdtrit(n - 1, (1 + confidence) / 2) * value.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - reach, mean + reach, n)


def bootstrap_difference(a: ArrayLike, b: ArrayLike, **options) -> Interval:
    """Mean of a - b over the same units (paired), with its interval; options as in :func:`bootstrap_mean`.

    Use it to compare two models on the same windows or rows: their errors go together, so the interval of the
    difference is far narrower than the two intervals suggest.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must be of the same units; got {first.shape} and {second.shape}")
    return bootstrap_mean(first - second, **options)


def _resampled_means(
    total: NDArray[np.float64], size: NDArray[np.float64], n_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    n = len(total)
    rows = max(1, _CELLS_PER_CHUNK // n)
    means = []
    for first in range(0, n_resamples, rows):
        drawn = rng.integers(n, size=(min(rows, n_resamples - first), n))
        means.append(total[drawn].sum(axis=1) / size[drawn].sum(axis=1))
    return np.concatenate(means)
