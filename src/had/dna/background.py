"""Background regions that have the lengths and the GC content of given ones, drawn from a genome.

Positions are global and 0-based (`had.dna.genome.Genome`).
"""

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import N
from had.dna.genome import Genome
from had.dna.spans import Spans

_FEWEST_PLACES, _PLACES_EACH, _LEAST_EACH = 1 << 16, 64, 8
"""Places that are looked at: 64 for each region and at least 65,536 (or all there are), ..."""
_MOST_LETTERS = 1 << 29
"""... but no more letters than these, which bounds the time, as long as that leaves 8 for each region."""
_LENGTHS_ALIKE = 1.1
"""Regions whose lengths differ by no more than this factor share their places."""
_FINE_STEPS = 2
"""Regions in which one letter is not less than half of the tolerance share places with those of their own length."""
_TRIES = 8
"""Rounds in which a region takes a random place of like GC content."""
ROUNDING = 1e-9
"""Of differences of shares."""
_LETTERS_AT_ONCE = 1 << 20


def gc_shares(genome: Genome, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of G and C among the letters A, C, G, T of regions (n,); NaN where there are none."""
    shares = np.full(len(starts), np.nan)
    for length in np.unique(lengths):
        # Rows of one length are copied whole, without an index for each letter.
        rows = np.lib.stride_tricks.sliding_window_view(genome.codes, length)
        same = np.flatnonzero(lengths == length)
        step = max(1, _LETTERS_AT_ONCE // int(length))
        for part in (same[first : first + step] for first in range(0, len(same), step)):
            codes = rows[starts[part]]
            strong = ((codes == 1) | (codes == 2)).sum(1, dtype=np.uint32)
            known = (codes != N).sum(1, dtype=np.uint32)
            shares[part] = np.divide(strong, known, out=np.full(len(part), np.nan), where=known > 0)
    return shares


def matched_background(
    genome: Genome, allowed: Spans, lengths: NDArray[np.int64], gc: NDArray[np.float64], tolerance: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each peak a region of its length and about its GC content.

    All peaks of like length choose from the same places: a random sample, or all there are in a small genome. A peak
    takes a random one of those within the tolerance. For peaks without one the whole of what is allowed is searched, in
    steps of half a length; where that finds nothing either the nearest place that is free is taken.

    Parameters
    ----------
    genome
        The genome.
    allowed
        Sorted spans (m, 2) without overlaps from which regions may be drawn.
    lengths, gc
        Letters and GC share of each peak (n,).
    tolerance
        Largest difference of the GC shares of a peak and its region, where a free place has it.
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
    # Bins of one length, below the others, where GC shares of other lengths are no guide.
    alike = np.where(
        lengths * tolerance < _FINE_STEPS,
        lengths - lengths.max(initial=0) - 1,
        np.floor(np.log(lengths) / np.log(_LENGTHS_ALIKE)),
    )
    # The longest first: they fit in the fewest places.
    for size in np.unique(alike)[::-1]:
        peaks = np.flatnonzero(alike == size)
        longest = int(lengths[peaks].max())
        wanted = min(max(_FEWEST_PLACES, _PLACES_EACH * len(peaks)), _MOST_LETTERS // longest)
        wanted = max(wanted, _LEAST_EACH * len(peaks))
        grid = _Grid(allowed, longest)
        is_sample = grid.size > wanted
        numbers = np.unique(rng.integers(0, grid.size, wanted)) if is_sample else np.arange(grid.size)
        places = grid.starts(numbers)
        pool = _Pool(genome, places[_clear(places, longest, starts, lengths)], longest, rng)
        _match(genome, pool, peaks, lengths, gc, tolerance, rng, starts, shares)
        if is_sample and len(left := peaks[starts[peaks] < 0]):
            more = _search(genome, allowed, longest, np.sort(gc[left]), tolerance)
            more = more[_clear(more, longest, starts, lengths)]
            if len(more) > wanted:
                more = rng.choice(more, wanted, replace=False)
            pool = _Pool(genome, np.concatenate([pool.starts, more]), longest, rng)
            _match(genome, pool, peaks, lengths, gc, tolerance, rng, starts, shares)
        _match(genome, pool, peaks, lengths, gc, np.inf, rng, starts, shares)
    return starts, shares


class _Pool:
    """Free places (n,) of one length and their GC shares, sorted by these; at random where they are equal."""

    def __init__(self, genome: Genome, places: NDArray[np.int64], length: int, rng: np.random.Generator) -> None:
        gc = gc_shares(genome, places, np.full(len(places), length))
        # In the genome's order its ends would be taken first.
        order = np.lexsort((rng.random(len(places)), gc))
        self.starts, self.gc = places[order], gc[order]

    def keep(self, clear: NDArray[np.bool_]) -> None:
        """Forget the other places."""
        self.starts, self.gc = self.starts[clear], self.gc[clear]


class _Grid:
    """Starts at which ``length`` letters fit into spans, ``step`` apart within each, by their number."""

    def __init__(self, allowed: Spans, length: int, step: int = 1) -> None:
        self._allowed, self._step = allowed, step
        room = allowed[:, 1] - allowed[:, 0] - length if len(allowed) else np.zeros(0, dtype=np.int64)
        self._fitting = np.maximum(room // step + 1, 0)
        self._ends = np.cumsum(self._fitting)
        self.size = int(self._ends[-1]) if len(self._ends) else 0

    def starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of some numbers below ``size``."""
        if not len(numbers):
            return np.zeros(0, dtype=np.int64)
        span = np.searchsorted(self._ends, numbers, side="right")
        return self._allowed[span, 0] + (numbers - (self._ends[span] - self._fitting[span])) * self._step


def _search(
    genome: Genome, allowed: Spans, length: int, wanted: NDArray[np.float64], tolerance: float
) -> NDArray[np.int64]:
    """Starts, half a length apart, whose GC share is within the tolerance of one of some sorted shares."""
    grid = _Grid(allowed, length, max(1, length // 2))
    found = [np.zeros(0, dtype=np.int64)]
    for first in range(0, grid.size, _LETTERS_AT_ONCE):
        starts = grid.starts(np.arange(first, min(first + _LETTERS_AT_ONCE, grid.size)))
        share = gc_shares(genome, starts, np.full(len(starts), length))
        after = np.searchsorted(wanted, share - tolerance)
        near = (after < len(wanted)) & (wanted[np.minimum(after, len(wanted) - 1)] <= share + tolerance)
        found.append(starts[near])
    return np.concatenate(found)


def _match(
    genome: Genome,
    pool: _Pool,
    peaks: NDArray[np.int64],
    lengths: NDArray[np.int64],
    gc: NDArray[np.float64],
    tolerance: float,
    rng: np.random.Generator,
    starts: NDArray[np.int64],
    shares: NDArray[np.float64],
) -> None:
    """Give each of ``peaks`` (their indices) a place of the pool within the tolerance; fills in starts and shares.

    Of an infinite tolerance the nearest place, until no peak or no place is left.
    """
    longest = int(lengths[peaks].max())
    tries = 0
    while len(open_ones := peaks[starts[peaks] < 0]) and len(pool.starts):
        open_ones = open_ones[np.argsort(gc[open_ones], kind="stable")]
        if np.isinf(tolerance):
            # No more than there are places; chance decides who is left out.
            kept = np.sort(rng.permutation(len(open_ones))[: len(pool.starts)])
            open_ones = open_ones[kept]
            at = nearest_of_their_own(pool.gc, gc[open_ones])
        elif tries == _TRIES:
            return
        else:
            low = np.searchsorted(pool.gc, gc[open_ones] - tolerance - ROUNDING, side="left")
            high = np.searchsorted(pool.gc, gc[open_ones] + tolerance + ROUNDING, side="right")
            open_ones, low, high = (x[high > low] for x in (open_ones, low, high))
            at = rng.integers(low, high) if len(low) else low
        chosen = pool.starts[at]
        exact = gc_shares(genome, chosen, lengths[open_ones])
        # A peak of unknown GC content takes whatever is left in the end.
        good = (np.abs(exact - gc[open_ones]) <= tolerance + ROUNDING) | np.isinf(tolerance)
        open_ones, chosen, exact = open_ones[good], chosen[good], exact[good]
        first = _first_come(chosen, lengths[open_ones])
        starts[open_ones[first]], shares[open_ones[first]] = chosen[first], exact[first]
        pool.keep(_clear(pool.starts, longest, starts, lengths))
        tries += 1


def nearest_of_their_own(values: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each of some sorted numbers an index of its own into sorted values, near the nearest value's.

    Halfway between the two assignments that only move upwards, and only downwards, where several want the same.
    """
    n = np.arange(len(wanted))
    after = np.searchsorted(values, wanted).clip(1, max(1, len(values) - 1))
    before = after - 1
    closer = np.abs(values[before] - wanted) <= np.abs(values[np.minimum(after, len(values) - 1)] - wanted)
    at = np.where(closer, before, after)
    up = np.maximum.accumulate(at - n)
    down = np.minimum.accumulate((at - n)[::-1])[::-1]
    return n + ((up + down) // 2).clip(0, len(values) - len(wanted))


def _clear(
    start: NDArray[np.int64], length: int, taken: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which places of one length overlap no taken region (those whose start is not negative)."""
    used = np.flatnonzero(taken >= 0)
    used = used[np.argsort(taken[used])]
    used_start, used_end = taken[used], taken[used] + lengths[used]
    after = np.searchsorted(used_start, start, side="left")
    clear = np.ones(len(start), dtype=np.bool_)
    has_next, has_last = after < len(used), after > 0
    clear[has_next] &= start[has_next] + length <= used_start[after[has_next]]
    clear[has_last] &= start[has_last] >= used_end[after[has_last] - 1]
    return clear


def _first_come(start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of regions that do not overlap each other: from left to right each that has room."""
    chosen, reach = [], -1
    for i in np.argsort(start, kind="stable"):
        if start[i] >= reach:
            chosen.append(i)
            reach = start[i] + length[i]
    return np.array(chosen, dtype=np.int64)
