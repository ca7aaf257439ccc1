"""Background regions that have the lengths and the GC content of given ones, drawn from a genome.

Positions are global and 0-based (`had.dna.genome.Genome`).
"""

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import N
from had.dna.genome import Genome
from had.dna.spans import Spans

_CANDIDATES = 16
"""Places tried for each region and round; the one of the nearest GC content counts."""
_ROUNDS = 25
_LETTERS_AT_ONCE = 1 << 22


def gc_shares(genome: Genome, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of G and C among the letters A, C, G, T of regions (n,); NaN where there are none."""
    shares = np.full(len(starts), np.nan)
    ends = np.cumsum(lengths)
    first = 0
    while first < len(starts):
        before = ends[first] - lengths[first]
        last = max(first + 1, int(np.searchsorted(ends, before + _LETTERS_AT_ONCE, side="right")))
        size, begin = lengths[first:last], ends[first:last] - lengths[first:last] - before
        within = np.arange(size.sum()) - np.repeat(begin, size)
        codes = genome.codes[np.repeat(starts[first:last], size) + within]
        strong = np.add.reduceat((codes == 1) | (codes == 2), begin, dtype=np.int64)
        known = np.add.reduceat(codes != N, begin, dtype=np.int64)
        shares[first:last] = np.divide(strong, known, out=np.full(len(size), np.nan), where=known > 0)
        first = last
    return shares


def matched_background(
    genome: Genome, allowed: Spans, lengths: NDArray[np.int64], gc: NDArray[np.float64], tolerance: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each peak a region of its length and about its GC content.

    Parameters
    ----------
    genome
        The genome.
    allowed
        Sorted spans (m, 2) without overlaps from which regions may be drawn.
    lengths, gc
        Letters and GC share of each peak (n,).
    tolerance
        Largest difference of the GC shares that is taken at once; where no place is that near after several
        rounds, the nearest of all that were tried is taken.
    seed
        Of the draws.

    Returns
    -------
    starts : int64 (n,)
        Global start of each region, -1 where no free place was found. Regions do not overlap each other.
    shares : float64 (n,)
        Their GC shares, NaN where there is none.
    """
    rng = np.random.default_rng(seed)
    starts = np.full(len(lengths), -1, dtype=np.int64)
    shares = np.full(len(lengths), np.nan)
    size = np.cumsum(allowed[:, 1] - allowed[:, 0]) if len(allowed) else np.zeros(0, dtype=np.int64)
    if not len(size):
        return starts, shares
    for round_number in range(2 * _ROUNDS):
        open_ones = np.flatnonzero(starts < 0)
        if not len(open_ones):
            break
        # In the later rounds whatever is nearest will do.
        limit = tolerance if round_number < _ROUNDS else np.inf
        peak = np.repeat(open_ones, _CANDIDATES)
        drawn = rng.integers(0, size[-1], len(peak))
        span = np.searchsorted(size, drawn, side="right")
        start = allowed[span, 1] - (size[span] - drawn)
        fits = start + lengths[peak] <= allowed[span, 1]
        peak, start = peak[fits], start[fits]
        share = gc_shares(genome, start, lengths[peak])
        distance = np.abs(share - gc[peak])
        good = distance <= limit
        peak, start, share, distance = peak[good], start[good], share[good], distance[good]
        # The nearest candidate of each peak comes first.
        order = np.lexsort((distance, peak))
        best = order[np.append(True, np.diff(peak[order]) > 0)] if len(order) else order
        best = best[_free(start[best], lengths[peak[best]], starts, lengths)]
        starts[peak[best]], shares[peak[best]] = start[best], share[best]
    return starts, shares


def _free(
    start: NDArray[np.int64], length: NDArray[np.int64], taken: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Indices of new regions that overlap neither taken ones (start ≥ 0) nor each other."""
    used = np.flatnonzero(taken >= 0)
    used = used[np.argsort(taken[used])]
    used_start, used_end = taken[used], taken[used] + lengths[used]
    after = np.searchsorted(used_start, start, side="left")
    free = np.ones(len(start), dtype=np.bool_)
    has_next, has_last = after < len(used), after > 0
    free[has_next] &= (start + length)[has_next] <= used_start[after[has_next]]
    free[has_last] &= start[has_last] >= used_end[after[has_last] - 1]
    chosen, reach = [], -1
    for i in np.flatnonzero(free)[np.argsort(start[free], kind="stable")]:
        if start[i] >= reach:
            chosen.append(i)
            reach = start[i] + length[i]
    return np.array(chosen, dtype=np.int64)
