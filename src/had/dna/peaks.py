"""Peaks of a BED or narrowPeak file, and background regions of the same lengths and GC content to tell them from.

Coordinates are 0-based half-open. Background regions are drawn from letters A, C, G, T that no peak and no blacklisted
interval touches (peaks as written, however narrow their windows), on contigs of the peak's own split.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import N
from had.dna.background import gc_shares, matched_background
from had.dna.fasta import read_blocks
from had.dna.genome import Genome
from had.dna.intervals import has_interval, parse_bed_row
from had.dna.spans import Spans, acgt_stretches, merge, subtract
from had.errors import UserError

PEAK, BACKGROUND = "peak", "background"
SPLITS = ("train", "dev", "test")
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


@dataclass(frozen=True)
class PeakSet:
    """Peaks with their background, and what there is to say about them."""

    regions: list[Region]
    """Peaks, then background, each by split."""
    split: str
    """How the splits were made, in words."""
    notes: list[str]


def read_peaks(
    path: str | PathLike[str], genome: Genome, width: int | None = None
) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Windows of the peaks of a BED or narrowPeak file (plain or gzip).

    Parameters
    ----------
    path
        The file. Column 4 is the name; column 10, where it is a whole number, the summit's distance from the start
        (narrowPeak; -1: unknown), unless columns 10 to 12 are the blocks of BED12.
    genome
        What the intervals are of.
    width
        Letters of each window, around the summit or else the middle; None: the intervals as written.

    Returns
    -------
    spans : int64 (n, 2)
        Global half-open spans, in the file's order.
    names : list of str
        Name of each; its line where it has none.
    notes : list of str
        Peaks left out: windows beyond the contig's end, windows without a letter A, C, G, T, repeated intervals; and
        summits that lie outside their peak.

    Raises
    ------
    UserError
        If a row cannot be read or does not fit the genome, or no peak is left.
    """
    spans, names, seen = [], [], set()
    beyond, unknown, repeated, astray = [], [], [], []
    text = b"".join(read_blocks(str(path))).decode("utf-8-sig", errors="replace")
    for line, row in enumerate(text.splitlines(), start=1):
        if not has_interval(row):
            continue
        interval, columns = parse_bed_row(row, f"{path}, line {line:,}", line, genome)
        contig = genome.contig(interval.contig)
        start, end = interval.start, interval.end
        if width is not None:
            summit = _summit(columns)
            if summit is not None and summit >= end - start:
                astray.append(line)
                summit = None
            centre = (start + end) // 2 if summit is None else start + summit
            start, end = centre - width // 2, centre - width // 2 + width
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
    notes = [
        f"{len(lines):,} peaks left out, {reason} (line {', '.join(map(str, lines[:5]))})"
        for lines, reason in (
            (beyond, "whose window reaches beyond the contig"),
            (repeated, "which stand in the file twice"),
            (unknown, "which have no letter A, C, G or T"),
        )
        if lines
    ]
    if astray:
        lines = ", ".join(map(str, astray[:5]))
        notes.append(f"{len(astray):,} peaks have a summit outside of them: their middle was taken (line {lines})")
    if not spans:
        raise UserError(f"{path} has no usable peak" + (f": {'; '.join(notes)}" if notes else ""))
    return np.array(spans, dtype=np.int64), names, notes


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


def split_contigs(
    counts: Mapping[str, int], valid: Sequence[str], test: Sequence[str], fractions: tuple[float, float], seed: int
) -> dict[str, str]:
    """Split (train, dev or test) of each contig with peaks.

    The named contigs decide; where none is named for a split, contigs are drawn until they hold about the wanted
    fraction of the peaks. Contigs that would take it beyond twice that are passed over, and one always trains.
    """
    split = {name: "test" if name in test else "dev" if name in valid else "train" for name in counts}
    order = np.random.default_rng([seed, 0x9EA5]).permutation(len(counts))
    names = [sorted(counts)[i] for i in order]
    for kind, named, fraction in (("test", test, fractions[1]), ("dev", valid, fractions[0])):
        if named or not fraction:
            continue
        wanted = fraction * sum(counts.values())
        taken = 0
        for name in names:
            free = [other for other, part in split.items() if part == "train"]
            if name in free and len(free) > 1 and taken < wanted and taken + counts[name] <= 2 * wanted:
                split[name] = kind
                taken += counts[name]
    return split


def split_positions(spans: NDArray[np.int64], fractions: tuple[float, float]) -> tuple[int, int]:
    """Where validation begins and where test begins on a contig: the wanted fractions of its peaks lie behind.

    ``spans`` (n, 2) are its peaks. No peak lies on both sides of a border; where that leaves nothing behind one, it is
    the largest possible number.
    """
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.append(-1, np.maximum.accumulate(spans[:, 1])[:-1])
    apart = np.flatnonzero(spans[:, 0] >= reach)
    borders = []
    for fraction in (sum(fractions), fractions[1]):
        behind = apart[apart >= round((1 - fraction) * len(spans))]
        # The first peak always trains.
        behind = behind[behind > 0]
        borders.append(int(spans[behind[0], 0]) if len(behind) and fraction else np.iinfo(np.int64).max)
    return borders[0], borders[1]


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
    spans, names, notes = read_peaks(path, genome, width)
    lengths = spans[:, 1] - spans[:, 0]
    index, local = genome.locate(spans[:, 0])
    contigs = [genome.contigs[i].name for i in index]
    counts = Counter(contigs)
    for what, named in (("validation", valid_contigs), ("test", test_contigs)):
        if named and not any(counts[genome.contig(name).name] for name in named):
            raise UserError(f"{path} has no usable peak on {', '.join(named)}, named for {what}; name another contig")
    part_of = split_contigs(counts, valid_contigs, test_contigs, fractions, seed)
    territory = {split: _contig_spans(genome, [n for n in counts if part_of[n] == split]) for split in SPLITS}
    how = _by_contig(part_of, counts)
    if not how:
        territory, how = _by_position(genome, spans, index, fractions)
    gc = gc_shares(genome, spans[:, 0], lengths)
    # Whole peaks, those left out too, and not only the windows around their summits.
    listed, absent = (np.zeros((0, 2), dtype=np.int64), []) if blacklist is None else _bed_spans(blacklist, genome)
    if absent:
        of_them = ", ".join(sorted(set(absent))[:5])
        notes.append(
            f"{len(absent):,} of {len(absent) + len(listed):,} blacklisted intervals lie on contigs that the genome "
            f"lacks ({of_them}{', …' if len(set(absent)) > 5 else ''})"
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
            Region(contigs[i], int(local[i]), int(local[i] + lengths[i]), names[i], PEAK, split, float(gc[i]))
            for i in own
        ]
        allowed = subtract(acgt_stretches(genome, own_territory), taboo)
        each = np.repeat(own, ratio)
        starts, shares = matched_background(genome, allowed, lengths[each], gc[each], tolerance, seed + number)
        found = starts >= 0
        missing += int((~found).sum())
        far += int((np.abs(shares - gc[each])[found] > tolerance).sum())
        where, place = genome.locate(starts[found])
        background += [
            Region(genome.contigs[c].name, int(s), int(s + lengths[i]), names[i], BACKGROUND, split, float(share))
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


def _contig_spans(genome: Genome, names: Sequence[str]) -> Spans:
    contigs = sorted((genome.contig(name) for name in names), key=lambda contig: contig.offset)
    return np.array([(c.offset, c.offset + c.length) for c in contigs], dtype=np.int64).reshape(-1, 2)


def _by_position(
    genome: Genome, spans: Spans, index: NDArray[np.int64], fractions: tuple[float, float]
) -> tuple[dict[str, Spans], str]:
    """Stretches (n, 2) of each split where every contig trains at its beginning and tests at its end."""
    parts: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for c in np.unique(index):
        contig = genome.contigs[c]
        end = contig.offset + contig.length
        valid, test = (min(border, end) for border in split_positions(spans[index == c], fractions))
        for split, piece in zip(SPLITS, ((contig.offset, valid), (valid, test), (test, end)), strict=True):
            if piece[0] < piece[1]:
                parts[split].append(piece)
    shares = f"{100 * fractions[0]:g} % and {100 * fractions[1]:g} %"
    how = f"by position: about the last {shares} of the peaks of each contig validate and test"
    return {split: np.array(p, dtype=np.int64).reshape(-1, 2) for split, p in parts.items()}, how


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


def _by_contig(part_of: Mapping[str, str], counts: Mapping[str, int]) -> str:
    """Which contigs are held out, in words; empty where none is."""
    parts = []
    for split, word in (("dev", "validation"), ("test", "test")):
        names = sorted(name for name, part in part_of.items() if part == split)
        if names:
            share = 100 * sum(counts[name] for name in names) / sum(counts.values())
            parts.append(f"{word} {', '.join(names)} ({share:.1f} % of the peaks)")
    return f"by contig: {'; '.join(parts)}" if parts else ""
