"""Peaks of a BED or narrowPeak file, and background regions of the same lengths and GC content to tell them from.

Coordinates are 0-based half-open. Background regions are drawn from letters A, C, G, T that no peak and no blacklisted
interval touches (peaks as written, however narrow their windows), on contigs of the peak's own split.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import N
from had.dna.background import ROUNDING, gc_shares, matched_background
from had.dna.fasta import read_blocks
from had.dna.genome import Genome
from had.dna.intervals import has_interval, parse_bed_row
from had.dna.labelled import SPLITS
from had.dna.peak_splits import by_contig, by_position, contig_spans, split_contigs
from had.dna.spans import acgt_stretches, merge, subtract
from had.errors import UserError

PEAK, BACKGROUND = "peak", "background"
_SUMMIT_COLUMN = 9
_BLOCKS = re.compile(r"\d+(,\d+)*,?", re.ASCII)


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
    """Peaks left out: windows beyond the contig's end, windows without a letter A, C, G, T, repeated intervals; and
    summits that lie outside their peak."""


@dataclass(frozen=True)
class PeakSet:
    """Peaks with their background, and what there is to say about them."""

    regions: list[Region]
    """Peaks, then background, each by split."""
    split: str
    """How the splits were made, in words."""
    notes: list[str]


def read_peaks(path: str | PathLike[str], genome: Genome, width: int | None = None) -> Peaks:
    """Windows of the peaks of a BED or narrowPeak file (plain or gzip).

    Parameters
    ----------
    path
        The file. Column 4 is the name, column 6 the strand; column 10, where it is a whole number, the summit's
        distance from the start (narrowPeak; -1: unknown), unless columns 10 to 12 are the blocks of BED12.
    genome
        What the intervals are of.
    width
        Letters of each window, around the summit or else the middle, which is letter ``width // 2`` (0-based) of the
        window on the peak's own strand; None: the intervals as written.

    Raises
    ------
    UserError
        If a row cannot be read or does not fit the genome, or no peak is left.
    """
    spans, names, strands, seen = [], [], [], set()
    beyond, unknown, repeated, astray = [], [], [], []
    text = b"".join(read_blocks(str(path))).decode("utf-8-sig", errors="replace")
    for line, row in enumerate(text.splitlines(), start=1):
        if not has_interval(row):
            continue
        interval, columns = parse_bed_row(row, f"{path}, line {line:,}", line, genome)
        contig = genome.contig(interval.contig)
        start, end = interval.start, interval.end
        strand = columns[5] if len(columns) > 5 and columns[5] in ("+", "-") else "."
        if width is not None:
            summit = _summit(columns)
            if summit is not None and summit >= end - start:
                astray.append(line)
                summit = None
            backwards = strand == "-"
            centre = (start + end - backwards) // 2 if summit is None else start + summit
            start = centre - (width - backwards) // 2
            end = start + width
        if start < 0 or end > contig.length:
            beyond.append(line)
        elif (contig.name, start, end) in seen:
            repeated.append(line)
        elif (genome.codes[contig.offset + start : contig.offset + end] == N).all():
            unknown.append(line)
        else:
            seen.add((contig.name, start, end))
            spans.append((contig.offset + start, contig.offset + end))
            names.append(columns[3] if len(columns) > 3 and columns[3] not in ("", ".") else f"line_{line}")
            strands.append(strand)
    notes = [
        f"{len(lines):,} peaks left out, {reason} (line {', '.join(map(str, lines[:5]))})"
        for lines, reason in (
            (beyond, "whose window reaches beyond the contig"),
            (repeated, "whose interval stands in the file before, on either strand"),
            (unknown, "which have no letter A, C, G or T"),
        )
        if lines
    ]
    if astray:
        lines = ", ".join(map(str, astray[:5]))
        notes.append(f"{len(astray):,} peaks have a summit outside of them: their middle was taken (line {lines})")
    if not spans:
        raise UserError(f"{path} has no usable peak" + (f": {'; '.join(notes)}" if notes else ""))
    return Peaks(np.array(spans, dtype=np.int64), names, strands, notes)


def _summit(columns: Sequence[str]) -> int | None:
    """Distance of the summit from the start; None where the row has none."""
    if len(columns) <= _SUMMIT_COLUMN or not re.fullmatch(r"\d+", columns[_SUMMIT_COLUMN], re.ASCII):
        return None
    value = int(columns[_SUMMIT_COLUMN])
    # BED12 counts blocks there, and lists their sizes and starts behind; the first starts at 0.
    lists = columns[_SUMMIT_COLUMN + 1 : _SUMMIT_COLUMN + 3]
    if len(lists) == 2 and all(_BLOCKS.fullmatch(text) for text in lists):
        sizes, starts = ([int(part) for part in text.split(",") if part] for text in lists)
        if len(sizes) == len(starts) == value and starts[0] == 0:
            return None
    return value


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
    spans, names, strands, notes = read_peaks(path, genome, width)
    lengths = spans[:, 1] - spans[:, 0]
    index, local = genome.locate(spans[:, 0])
    contigs = [genome.contigs[i].name for i in index]
    counts = Counter(contigs)
    for what, named in (("validation", valid_contigs), ("test", test_contigs)):
        if named and not any(counts[genome.contig(name).name] for name in named):
            raise UserError(f"{path} has no usable peak on {', '.join(named)}, named for {what}; name another contig")
    part_of = split_contigs(counts, valid_contigs, test_contigs, fractions, seed)
    territory = {split: contig_spans(genome, [n for n in counts if part_of[n] == split]) for split in SPLITS}
    how = by_contig(part_of, counts)
    if not how:
        territory, how = by_position(genome, spans, index, fractions)
    gc = gc_shares(genome, spans[:, 0], lengths)
    # Whole peaks, those left out too, and not only the windows around their summits.
    listed, absent = (np.zeros((0, 2), dtype=np.int64), []) if blacklist is None else _bed_spans(blacklist, genome)
    if absent:
        of_them = ", ".join(sorted(set(absent))[:5])
        notes.append(
            f"{len(absent):,} of {len(absent) + len(listed):,} blacklisted intervals lie on contigs that the genome "
            f"lacks ({of_them}{', …' if len(set(absent)) > 5 else ''})"
        )
    if backwards := strands.count("-"):
        notes.append(
            f"{backwards:,} of {len(strands):,} peaks lie on strand -: they are read on it, as is the background that "
            "goes with them"
        )
    taboo = merge(np.concatenate([spans, _bed_spans(path, genome)[0], listed]))
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
    return PeakSet(peaks + background, how, notes)


def _bed_spans(path: str | PathLike[str], genome: Genome) -> tuple[NDArray[np.int64], list[str]]:
    """Global spans (n, 2) of the intervals of a BED file, and the contig of each that lies on none of this genome."""
    known = {contig.name for contig in genome.contigs}
    text = b"".join(read_blocks(str(path))).decode("utf-8-sig", errors="replace")
    spans, absent = [], []
    for line, row in enumerate(text.splitlines(), start=1):
        if not has_interval(row):
            continue
        if (name := row.split()[0]) not in known:
            absent.append(name)
        else:
            interval, _ = parse_bed_row(row, f"{path}, line {line:,}", line, genome)
            offset = genome.contig(interval.contig).offset
            spans.append((offset + interval.start, offset + interval.end))
    return np.array(spans, dtype=np.int64).reshape(-1, 2), absent
