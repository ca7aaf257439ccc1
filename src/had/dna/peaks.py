"""Peaks of a BED or narrowPeak file, and background regions of the same lengths and GC content to tell them from.

Coordinates are 0-based half-open. Background regions are drawn from letters A, C, G, T that no peak and no blacklisted
interval touches (peaks as written, however narrow their windows), on contigs of the peak's own split.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from had.console import some_of
from had.dna.alphabet import N
from had.dna.background import ROUNDING, gc_shares, matched_background
from had.dna.bed import MIDDLE, SUMMIT, BedRow, fitting_rows, lines_of, window_of
from had.dna.genome import Genome
from had.dna.labelled import SPLITS
from had.dna.peak_splits import by_contig, by_position, contig_spans, split_contigs
from had.dna.spans import acgt_stretches, global_spans, merge, subtract
from had.errors import UserError

PEAK, BACKGROUND = "peak", "background"


class Region(NamedTuple):
    """A peak or a background region."""

    contig: str
    start: int
    end: int
    name: str
    """Of the peak; for background the peak that it goes with."""
    label: str
    split: str
    gc: float
    """Share of G and C among its letters A, C, G, T."""
    strand: str = "."
    """``+``, ``-`` or ``.``; of a background region that of its peak. Letters of ``-`` are the reverse complement."""


class Peaks(NamedTuple):
    """The usable peaks of a file, in its order."""

    spans: NDArray[np.int64]
    """Global half-open spans (n, 2)."""
    names: list[str]
    """Name of each; its line where it has none."""
    strands: list[str]
    """``+``, ``-`` or ``.``"""
    notes: list[str]
    """Peaks left out (on contigs that the genome lacks, empty, repeated, windows beyond the contig's end or without a
    letter A, C, G, T), and summits that cannot be used."""
    anchor: str = MIDDLE
    """``summit`` if windows were laid around a summit, ``middle`` if no row has one."""


@dataclass(frozen=True)
class PeakSet:
    """Peaks with their background, and what there is to say about them."""

    regions: list[Region]
    """Peaks, then background, each by split."""
    split: str
    """How the splits were made, in words."""
    notes: list[str]
    anchor: str
    """As `Peaks.anchor`."""


def read_peaks(path: str | PathLike[str], genome: Genome, width: int | None = None) -> Peaks:
    """Read windows of the peaks of a BED or narrowPeak file (plain or gzip).

    Parameters
    ----------
    path
        The file, as `had.dna.bed.read_bed_rows` reads it. Column 4 is the name, column 6 the strand.
    genome
        The genome of the intervals.
    width
        Letters of each window, laid as `had.dna.bed.window_of` does; None: the intervals as written.

    Raises
    ------
    UserError
        If a row cannot be read or reaches outside its contig, or no peak is left.
    """
    return _cut(path, *fitting_rows(path, genome), genome, width)


def _cut(
    path: str | PathLike[str], rows: Sequence[BedRow], notes: Sequence[str], genome: Genome, width: int | None
) -> Peaks:
    spans, names, strands, seen = [], [], [], set()
    beyond, repeated, unknown = [], [], []
    faults: dict[str, list[int]] = defaultdict(list)
    anchor = MIDDLE
    for row in rows:
        contig = genome.contig(row.contig)
        start, end = row.start, row.end
        if width is not None:
            window = window_of(row, width)
            start, end = window.start, window.end
            if window.fault:
                faults[window.fault].append(row.line)
            if window.anchor == SUMMIT:
                anchor = SUMMIT
        if start < 0 or end > contig.length:
            beyond.append(row.line)
        elif (contig.name, start, end) in seen:
            repeated.append(row.line)
        elif (genome.codes[contig.offset + start : contig.offset + end] == N).all():
            unknown.append(row.line)
        else:
            seen.add((contig.name, start, end))
            spans.append((contig.offset + start, contig.offset + end))
            names.append(row.name or f"line_{row.line}")
            strands.append(row.strand)
    said = [
        *notes,
        *(
            f"{len(lines):,} peaks left out, {reason} {lines_of(lines)}"
            for lines, reason in (
                (beyond, "whose window reaches beyond the contig"),
                (repeated, "whose interval stands in the file before, on either strand"),
                (unknown, "which have no letter A, C, G or T"),
            )
            if lines
        ),
        *(
            f"{len(lines):,} peaks have {fault}: their middle was taken {lines_of(lines)}"
            for fault, lines in faults.items()
        ),
    ]
    if not spans:
        raise UserError(f"{path} has no usable peak" + (f": {'; '.join(said)}" if said else ""))
    return Peaks(np.array(spans, dtype=np.int64), names, strands, said, anchor)


def peaks_with_background(
    path: str | PathLike[str],
    genome: Genome,
    *,
    width: int | None = None,
    ratio: int = 1,
    blacklist: str | PathLike[str] | None = None,
    valid_contigs: Sequence[str] = (),
    test_contigs: Sequence[str] = (),
    fractions: tuple[float, float] = (0.1, 0.1),
    tolerance: float = 0.02,
    seed: int = 0,
) -> PeakSet:
    """Peaks, as many background regions of like length and GC content, and a split by contig.

    Parameters
    ----------
    path, genome, width
        As `read_peaks`.
    ratio
        Background regions for each peak.
    blacklist
        BED of intervals that background must not touch.
    valid_contigs, test_contigs, fractions
        As `split_contigs`. Where no contig can be held out, every contig is cut by position (`split_positions`).
    tolerance
        As `matched_background`.
    seed
        Of the split and the draws.

    Raises
    ------
    UserError
        If a file cannot be used, a named contig is absent or named twice, or the genome has no room for background.
    """
    if both := sorted(set(valid_contigs) & set(test_contigs)):
        raise UserError(f"{both[0]!r} is named for validation and for test; name it once")
    for name in (*valid_contigs, *test_contigs):
        genome.contig(name)
    rows, not_fitting = fitting_rows(path, genome)
    spans, names, strands, notes, anchor = _cut(path, rows, not_fitting, genome, width)
    lengths = spans[:, 1] - spans[:, 0]
    if (wanted := ratio * int(lengths.sum())) > len(genome):
        raise UserError(
            f"{ratio:,} background regions (--negatives) for each of {len(spans):,} peaks are {wanted:,} bp, more than "
            f"the {len(genome):,} bp of {genome.source}; pass a smaller --negatives"
        )
    index, local = genome.locate(spans[:, 0])
    contigs = [genome.contigs[i].name for i in index]
    counts = Counter(contigs)
    for what, named in (("validation", valid_contigs), ("test", test_contigs)):
        if named and not any(counts[genome.contig(name).name] for name in named):
            raise UserError(f"{path} has no usable peak on {some_of(named)}, named for {what}; name another contig")
    part_of = split_contigs(counts, valid_contigs, test_contigs, fractions, seed)
    territory = {split: contig_spans(genome, [n for n in counts if part_of[n] == split]) for split in SPLITS}
    how = by_contig(part_of, counts)
    if not how:
        territory, how = by_position(genome, spans, index, fractions)
    gc = gc_shares(genome, spans[:, 0], lengths)
    listed, left_out = ([], []) if blacklist is None else fitting_rows(blacklist, genome)
    notes += left_out
    if backwards := strands.count("-"):
        notes.append(
            f"{backwards:,} of {len(strands):,} peaks lie on strand -: they are read on it, as is the background that "
            "goes with them"
        )
    # Whole peaks, those left out too, and not only the windows around their summits.
    taboo = merge(np.concatenate([spans, global_spans([*rows, *listed], genome)]))
    peaks: list[Region] = []
    background: list[Region] = []
    missing, far = 0, 0
    for number, (split, own_territory) in enumerate(territory.items()):
        at = np.searchsorted(own_territory[:, 0], spans[:, 0], side="right") - 1
        inside = (at >= 0) & (spans[:, 0] < own_territory[at, 1]) if len(own_territory) else np.zeros(len(spans), bool)
        own = np.flatnonzero(inside)
        if not len(own):
            continue
        peaks += [
            Region(
                contigs[i], int(local[i]), int(local[i] + lengths[i]), names[i], PEAK, split, float(gc[i]), strands[i]
            )
            for i in own
        ]
        allowed = subtract(acgt_stretches(genome, own_territory), taboo)
        each = np.repeat(own, ratio)
        starts, shares = matched_background(genome, allowed, lengths[each], gc[each], tolerance, seed + number)
        found = starts >= 0
        missing += int((~found).sum())
        far += int((np.abs(shares - gc[each])[found] > tolerance + ROUNDING).sum())
        where, place = genome.locate(starts[found])
        background += [
            Region(
                genome.contigs[c].name,
                int(s),
                int(s + lengths[i]),
                names[i],
                BACKGROUND,
                split,
                float(share),
                strands[i],
            )
            for c, s, i, share in zip(where, place, each[found], shares[found], strict=True)
        ]
    if not background:
        raise UserError(
            f"{genome.source}: no room for background beside the peaks of {path} on the contigs that have peaks; use "
            "shorter windows"
        )
    if missing:
        notes.append(f"{missing:,} background regions could not be placed: the peaks leave too little of the genome")
    if far:
        notes.append(f"{far:,} background regions differ from their peak's GC content by more than {tolerance:g}")
    return PeakSet(peaks + background, how, notes, anchor)
