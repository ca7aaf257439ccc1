"""Sets of bases as spans: int64 arrays (n, 2) of half-open global positions (`had.dna.genome.Genome`)."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from had.dna.genome import Genome

Spans: TypeAlias = NDArray[np.int64]


class Located(Protocol):
    """Anything on a contig: 0-based, half-open."""

    @property
    def contig(self) -> str:
        """Name of the contig."""

    @property
    def start(self) -> int:
        """First position."""

    @property
    def end(self) -> int:
        """Position behind the last."""


def global_spans(rows: Sequence[Located], genome: Genome) -> Spans:
    """Global spans (n, 2) of intervals, in their order."""
    offsets = [genome.contig(row.contig).offset for row in rows]
    local = [(row.start, row.end) for row in rows]
    return np.array(local, dtype=np.int64).reshape(-1, 2) + np.array(offsets, dtype=np.int64)[:, None]


def n_bases(spans: Spans) -> int:
    """Bases in non-overlapping spans (n, 2)."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def merge(spans: Spans) -> Spans:
    """Sorted spans (m, 2) with those that share bases joined; spans that only touch stay apart."""
    if not len(spans):
        return spans.reshape(0, 2)
    spans = spans[np.lexsort((spans[:, 1], spans[:, 0]))]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.append(True, spans[1:, 0] >= reach[:-1])
    last = np.append(first[1:], True)
    return np.stack([spans[first, 0], reach[last]], axis=1)


def intersect(a: Spans, b: Spans) -> Spans:
    """Sorted spans (m, 2) of the bases in both; ``a`` and ``b`` are each sorted and free of overlaps."""
    if not len(a) or not len(b):
        return np.zeros((0, 2), dtype=np.int64)
    first = np.searchsorted(b[:, 1], a[:, 0], side="right")
    counts = np.maximum(np.searchsorted(b[:, 0], a[:, 1], side="left") - first, 0)
    of_a = np.repeat(np.arange(len(a)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    of_b = np.repeat(first, counts) + within
    return np.stack([np.maximum(a[of_a, 0], b[of_b, 0]), np.minimum(a[of_a, 1], b[of_b, 1])], axis=1)


def subtract(a: Spans, b: Spans) -> Spans:
    """Sorted spans (m, 2) of the bases of ``a`` not in ``b``; both are sorted, ``a`` is free of overlaps."""
    if not len(a) or not len(b):
        return a
    b = merge(b)
    ends = np.append(b[:, 0], max(int(a[-1, 1]), int(b[-1, 1])))
    starts = np.append(min(int(a[0, 0]), int(b[0, 0])), b[:, 1])
    gaps = np.stack([starts, ends], axis=1)
    return intersect(a, gaps[gaps[:, 0] < gaps[:, 1]])


def acgt_stretches(genome: Genome, spans: Spans) -> Spans:
    """Maximal stretches (m, 2) of A, C, G, T only inside each of the spans, sorted and free of overlaps."""
    return intersect(spans, genome.acgt_runs)


def tile(stretches: Spans, length: int) -> NDArray[np.int64]:
    """Global starts (k,) of the non-overlapping windows of each stretch, counted from its first base."""
    counts = (stretches[:, 1] - stretches[:, 0]) // length
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(stretches[:, 0], counts) + within * length
