"""Intervals of a genome: read BED, split into training, validation and test.

Coordinates are 0-based half-open. Spans are int64 arrays (n, 2) of *global* positions
(`had.dna.genome.Genome`).
"""

import warnings as python_warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from os import PathLike

import numpy as np

from had.console import some_of
from had.dna.bed import fitting_rows
from had.dna.genome import Contig, Genome
from had.dna.spans import Spans, acgt_stretches, global_spans, intersect, merge, n_bases, subtract, tile
from had.errors import UserError

__all__ = ["SPLITS", "Interval", "Splits", "acgt_stretches", "make_splits", "read_bed", "tile"]

SPLITS = ("train", "validation", "test")
_SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
HELD_OUT_PART = 20
"""Without a split or named contigs, the last 1/20 of a record is held out …"""
HELD_OUT_WINDOWS = 100
"""… if the record is at least this many windows long."""


@dataclass(frozen=True)
class Interval:
    """Row of a BED file: contig, start, end (0-based half-open), split (None: not given) and line number."""

    contig: str
    start: int
    end: int
    split: str | None = None
    line: int = 0


@dataclass(frozen=True, eq=False)
class Splits:
    """Global half-open spans (n, 2) int64 of each split, sorted; how they were chosen; what to warn of."""

    train: Spans
    validation: Spans
    test: Spans
    description: str
    warnings: list[str]


def read_bed(path: str | PathLike[str], genome: Genome) -> list[Interval]:
    """Read the intervals of a BED file (plain or gzip) that a genome has, as written.

    Comments, blank, ``track`` and ``browser`` lines are skipped. Intervals on contigs that the genome lacks and empty
    ones are left out, with a Python warning. The optional fourth column is the split (train, valid, validation, val,
    dev or test, in any case) if it is one in *every* row; if it is one in no row, it holds names of features, which are
    not read, and every split is None.

    Raises
    ------
    had.errors.UserError
        If no row is left, or a row has fewer than three columns, a coordinate that is not a number, an interval that
        reaches outside its contig, or no split where other rows have one. The message names file and line.
    """
    intervals, notes = _intervals(path, genome)
    for note in notes:
        python_warnings.warn(note, stacklevel=2)
    return intervals


def _intervals(path: str | PathLike[str], genome: Genome) -> tuple[list[Interval], list[str]]:
    """Intervals as `read_bed` gives them, and what was left out."""
    rows, notes = fitting_rows(path, genome)
    if not rows:
        raise UserError(
            "; ".join([f"{path} has no interval of this genome; give rows of contig, start and end", *notes])
        )
    words = [row.columns[3] if len(row.columns) > 3 else "" for row in rows]
    splits = [_SPLIT_OF_WORD.get(word.lower()) for word in words]
    for row, word, split in zip(rows, words, splits, strict=True):
        if split is None and any(splits):
            raise UserError(
                f"{path}, line {row.line:,}: the fourth column is {word!r}, but other rows have a split "
                "there; use train, validation or test in every row"
            )
    return [
        Interval(row.contig, row.start, row.end, split, row.line) for row, split in zip(rows, splits, strict=True)
    ], notes


def make_splits(
    genome: Genome,
    bed: str | PathLike[str] | None = None,
    valid_contigs: Sequence[str] = (),
    test_contigs: Sequence[str] = (),
    length: int = 1020,
    stretch: int | None = None,
) -> Splits:
    """Decide what trains and what is held out (HAD.md §3).

    The BED's split column decides where it has validation rows; else the named contigs are held out; else the
    last 5 % of every record of at least 100 windows, with a gap of one window before it. A BED without
    splits, or without validation rows, restricts training and what is held out of it. Rows of one split that
    overlap are merged; rows of different splits that overlap are refused, unless ``stretch`` made them
    overlap.

    Parameters
    ----------
    genome
        The genome.
    bed
        BED file of the intervals to use; default: all of the genome.
    valid_contigs, test_contigs
        Contigs that do not train.
    length
        Letters per window.
    stretch
        Use start … start + stretch of every row, cut at the contig's end, instead of the row as written. With
        2^20 it reproduces the intervals of HyenaDNA's and Caduceus' loaders, whose splits share bases: a
        warning says how many.

    Raises
    ------
    had.errors.UserError
        As `read_bed`; if splits overlap, a contig is named for two splits, or nothing usable is left for
        training.
    """
    if stretch is not None and (bed is None or stretch < 1):
        raise UserError(f"--stretch {stretch} lengthens the rows of a BED file: give --bed, and 1 bp or more")
    intervals, warnings = (None, []) if bed is None else _intervals(bed, genome)
    spans = {split: np.zeros((0, 2), dtype=np.int64) for split in SPLITS}
    if intervals is None:
        spans["train"] = _contig_spans(genome.contigs)
        description = "all records"
    else:
        description = f"{len(intervals):,} intervals of {bed}"
        if stretch is not None:
            intervals = [_stretched(interval, stretch, genome) for interval in intervals]
            description += f", each stretched to {stretch:,} bp"
        elif intervals[0].split is not None:
            _refuse_overlaps(intervals, genome, str(bed))
        for split in SPLITS:
            rows = [interval for interval in intervals if (interval.split or "train") == split]
            spans[split] = merge(global_spans(rows, genome))
        if not len(spans["train"]):
            raise UserError(f"{bed} has no row of the split train; there is nothing to train on")
        warnings += _shared_bases(spans)

    if len(spans["validation"]):
        description += "; validation: the BED's split"
        if valid_contigs or test_contigs:
            warnings.append(f"{bed} names the splits; the contigs named for validation and test are not used")
    else:
        description += _hold_out_contigs(spans, genome, valid_contigs, test_contigs)
        if not valid_contigs:
            description += _hold_out_tails(spans, genome, length)
    _require_windows(spans, genome, length, warnings)
    sizes = ", ".join(f"{split} {n_bases(spans[split]):,} bp" for split in SPLITS)
    return Splits(spans["train"], spans["validation"], spans["test"], f"{description} ({sizes})", warnings)


def _hold_out_contigs(spans: dict[str, Spans], genome: Genome, valid: Sequence[str], test: Sequence[str]) -> str:
    """Move what lies on the named contigs from training to validation and test, in place; say so."""
    if both := sorted(set(valid) & set(test)):
        raise UserError(f"{both[0]!r} is named for validation and for test; name it once")
    said = ""
    for split, names in (("validation", valid), ("test", test)):
        if not names:
            continue
        contigs = _contig_spans(sorted({genome.contig(name) for name in names}, key=lambda c: c.offset))
        spans[split] = merge(np.concatenate([spans[split], intersect(spans["train"], contigs)]))
        spans["train"] = subtract(spans["train"], contigs)
        said += f"; {split}: {some_of(names)}"
        if not len(spans["train"]):
            raise UserError(f"{genome.source}: holding out {some_of(names)} leaves nothing to train on")
    return said


def _hold_out_tails(spans: dict[str, Spans], genome: Genome, length: int) -> str:
    """Hold the last 5 % of every long record out of training, in place, with a gap of one window; say so."""
    long_ones = [contig for contig in genome.contigs if contig.length >= HELD_OUT_WINDOWS * length]
    ends = np.array([contig.offset + contig.length for contig in long_ones], dtype=np.int64)
    tails = np.array([contig.length // HELD_OUT_PART for contig in long_ones], dtype=np.int64)
    held_out = np.stack([ends - tails, ends], axis=1)
    spans["validation"] = intersect(spans["train"], held_out)
    spans["train"] = subtract(spans["train"], np.stack([ends - tails - length, ends], axis=1))
    if not len(spans["validation"]):
        return "; validation: none"
    return (
        f"; validation: the last {100 // HELD_OUT_PART} % of {len(long_ones):,} of {len(genome.contigs):,} "
        f"records, with a gap of {length:,} bp"
    )


def _require_windows(spans: dict[str, Spans], genome: Genome, length: int, warnings: list[str]) -> None:
    for split in SPLITS:
        stretches = acgt_stretches(genome, spans[split])
        if len(stretches) and int((stretches[:, 1] - stretches[:, 0]).max()) >= length:
            continue
        if split == "train":
            raise UserError(
                f"{genome.source}: no training interval holds {length:,} letters A, C, G, T in a row; use a "
                "shorter window, a longer sequence or other intervals"
            )
        if split == "validation":
            warnings.append(
                f"{genome.source}: no validation window: nothing held out has {length:,} letters A, C, G, T "
                "in a row (without a BED or named contigs, only records of "
                f"{HELD_OUT_WINDOWS * length:,} bp and more are split); training runs without validation"
            )


def _contig_spans(contigs: Iterable[Contig]) -> Spans:
    spans = [(contig.offset, contig.offset + contig.length) for contig in contigs if contig.length]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def _stretched(interval: Interval, stretch: int, genome: Genome) -> Interval:
    return replace(interval, end=min(interval.start + stretch, genome.contig(interval.contig).length))


def _refuse_overlaps(intervals: Sequence[Interval], genome: Genome, file: str) -> None:
    """Refuse rows of different splits that share bases."""
    spans = global_spans(intervals, genome)
    reach: dict[str | None, tuple[int, Interval]] = {}
    for i in np.argsort(spans[:, 0], kind="stable"):
        row = intervals[i]
        for split, (end, other) in reach.items():
            if split != row.split and end > spans[i, 0]:
                first, second = sorted((other, row), key=lambda interval: interval.line)
                raise UserError(
                    f"{file}: line {first.line:,} ({first.split}) and line {second.line:,} ({second.split}) "
                    f"overlap on {row.contig}; the splits of a BED must not share bases"
                )
        if row.split not in reach or spans[i, 1] > reach[row.split][0]:
            reach[row.split] = (int(spans[i, 1]), row)


def _shared_bases(spans: dict[str, Spans]) -> list[str]:
    warnings = []
    for one, other in combinations(SPLITS, 2):
        if shared := n_bases(intersect(spans[one], spans[other])):
            part = 100 * shared / n_bases(spans[other])
            warnings.append(f"{one} and {other} share {shared:,} stretched bases, {part:.1f} % of {other}")
    return warnings
