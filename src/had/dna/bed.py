"""The one reader of BED, narrowPeak and broadPeak files: rows, what a genome lacks of them, windows around summits.

Text is UTF-8, or Latin-1 in a line that is not. Lines end as in tables and FASTA (LF, CRLF or CR); no other character
ends one. Coordinates are 0-based half-open.
"""

import re
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from had.console import some_of
from had.dna.fasta import read_blocks
from had.dna.genome import Genome
from had.dna.labelled_records import whole_number
from had.errors import UserError

BED_SUFFIXES = (".bed", ".narrowpeak", ".broadpeak")
"""Names of files of intervals end so, perhaps with ``.gz`` after it, in any case."""
SUMMIT, MIDDLE = "summit", "middle"
_LINE_ENDS = re.compile(rb"\r\n|\n|\r")
_BLANKS = re.compile(r"[ \t]+")
_COORDINATE = re.compile(r"-?[0-9]{1,15}")
_NO_SUMMIT = re.compile(r"-1(\.0*)?")
_BLOCKS = re.compile(r"[0-9]{1,15}(,[0-9]{1,15})*,?")
_SUMMIT_COLUMN = 9


class BedRow(NamedTuple):
    """A row of a file of intervals."""

    line: int
    contig: str
    start: int
    end: int
    columns: list[str]
    """All columns as text, without surrounding blanks."""
    problem: str
    """Why the genome does not have the interval; empty where it has."""

    @property
    def name(self) -> str:
        """The fourth column; empty where it is absent or ``.``."""
        return self.columns[3] if len(self.columns) > 3 and self.columns[3] != "." else ""

    @property
    def strand(self) -> str:
        """``+``, ``-`` or ``.``, from the sixth column."""
        return self.columns[5] if len(self.columns) > 5 and self.columns[5] in ("+", "-") else "."


class Window(NamedTuple):
    """A window around the summit or the middle of an interval."""

    start: int
    end: int
    anchor: str
    """``summit`` or ``middle``."""
    fault: str
    """What is wrong with the row's summit, so that the middle was taken; empty where nothing is."""


def is_bed(path: Path) -> bool:
    """Return True if a file's name is that of a BED, narrowPeak or broadPeak file, plain or gzip."""
    return path.name.lower().removesuffix(".gz").endswith(BED_SUFFIXES)


def read_bed_rows(path: str | PathLike[str], genome: Genome) -> Iterator[BedRow]:
    """Read the rows of a BED, narrowPeak or broadPeak file (plain or gzip) one by one.

    Comments, blank, ``track`` and ``browser`` lines are skipped. Columns are separated by tabs, or by blanks in a row
    without a tab.

    Raises
    ------
    had.errors.UserError
        If the file cannot be read, or a row has fewer than three columns or a coordinate that is not a whole number of
        up to 15 digits. The message names file and line.
    """
    lengths = {contig.name: contig.length for contig in genome.contigs}
    for line, row in enumerate(_lines(read_blocks(str(path))), start=1):
        if not row.strip() or row.startswith("#"):
            continue
        columns = [column.strip() for column in (row.split("\t") if "\t" in row else _BLANKS.split(row.strip(" ")))]
        if columns[0].split(" ")[0] in ("track", "browser"):
            continue
        where = f"{path}, line {line:,}"
        if len(columns) < 3:
            raise UserError(f"{where}: a row has contig, start and end, separated by tabs; got {row[:60]!r}")
        for name, value in zip(("start", "end"), columns[1:3], strict=True):
            if not _COORDINATE.fullmatch(value):
                raise UserError(
                    f"{where}: the {name} {value[:60]!r} is not a whole number; start a line of column names with '#'"
                )
        contig, start, end = columns[0], int(columns[1]), int(columns[2])
        problem = ""
        if contig not in lengths:
            problem = f"the genome has no record {contig!r}"
        elif start >= end:
            problem = f"the interval is empty: start {start:,} is not below end {end:,}"
        elif start < 0:
            problem = f"the interval begins before {contig}"
        elif end > lengths[contig]:
            problem = f"the end {end:,} lies beyond the end of {contig} ({lengths[contig]:,} bp)"
        yield BedRow(line, contig, start, end, columns, problem)


def fitting_rows(path: str | PathLike[str], genome: Genome) -> tuple[list[BedRow], list[str]]:
    """Read the rows that a genome has, with a sentence about those left out.

    Rows on contigs that the genome lacks and empty intervals are left out.

    Raises
    ------
    had.errors.UserError
        As `read_bed_rows`, and if an interval begins or ends outside its contig: the file is of another assembly.
    """
    known = {contig.name for contig in genome.contigs}
    rows: list[BedRow] = []
    absent: list[BedRow] = []
    empty: list[BedRow] = []
    for row in read_bed_rows(path, genome):
        if row.contig not in known:
            absent.append(row)
        elif row.start >= row.end:
            empty.append(row)
        elif row.problem:
            raise UserError(f"{path}, line {row.line:,}: {row.problem}; is this file made for another assembly?")
        else:
            rows.append(row)
    notes = []
    total = len(rows) + len(absent) + len(empty)
    if absent:
        names = some_of(sorted({row.contig for row in absent}))
        notes.append(
            f"{path}: {len(absent):,} of {total:,} intervals lie on contigs that the genome lacks ({names}), first in "
            f"line {absent[0].line:,}"
        )
        if not rows:
            try:
                genome.contig(absent[0].contig)
            except UserError as error:
                notes[-1] += f"; {error}"
    if empty:
        notes.append(f"{path}: {len(empty):,} of {total:,} intervals are empty {lines_of(row.line for row in empty)}")
    return rows, [f"{note}: left out" for note in notes]


def window_of(row: BedRow, width: int, anchor: str = SUMMIT) -> Window:
    """Return the window of ``width`` letters around the summit of an interval, or around its middle.

    The summit or middle is letter ``width // 2`` (0-based) of the window on the row's own strand.

    Parameters
    ----------
    row
        The interval. Column 10 is the summit's distance from the start (narrowPeak; -1: unknown), unless columns 10 to
        12 are the blocks of BED12.
    width
        Letters of the window, in bp.
    anchor
        ``summit``: the summit where the row has one, else the middle; ``middle``: always the middle.
    """
    summit, fault = _summit(row) if anchor == SUMMIT else (None, "")
    backwards = row.strand == "-"
    centre = (row.start + row.end - backwards) // 2 if summit is None else row.start + summit
    start = centre - (width - backwards) // 2
    return Window(start, start + width, MIDDLE if summit is None else SUMMIT, fault)


def lines_of(lines: Iterable[int]) -> str:
    """Return the first line numbers of many, for a message: ``(line 3, 4, 7)``."""
    return f"(line {some_of([f'{line:,}' for line in lines])})"


def _summit(row: BedRow) -> tuple[int | None, str]:
    """Distance of the summit from the start, None where the row has none; and what is wrong with the column."""
    if len(row.columns) <= _SUMMIT_COLUMN or _NO_SUMMIT.fullmatch(text := row.columns[_SUMMIT_COLUMN]):
        return None, ""
    value = whole_number(text)
    # BED12 counts blocks there, and lists their sizes and starts behind; the first starts at 0.
    lists = row.columns[_SUMMIT_COLUMN + 1 : _SUMMIT_COLUMN + 3]
    if len(lists) == 2 and all(_BLOCKS.fullmatch(text) for text in lists):
        sizes, starts = ([int(part) for part in text.split(",") if part] for text in lists)
        if len(sizes) == len(starts) == value and starts[0] == 0:
            return None, ""
    if value is None:
        return None, "a tenth column that is neither a whole number of at least 0 nor -1"
    if value >= row.end - row.start:
        return None, "a summit outside of them"
    return value, ""


def _lines(blocks: Iterable[bytes]) -> Iterator[str]:
    """Decoded lines, without their ends, of a text that is cut anywhere."""
    rest = b""
    is_first = True
    for block in blocks:
        # A CR at the end of a block may be the first half of a CRLF.
        text = rest + block
        keep = len(text) - text.endswith(b"\r")
        *lines, rest = _LINE_ENDS.split(text[:keep])
        rest += text[keep:]
        for line in lines:
            yield _decoded(line, is_first)
            is_first = False
    for line in _LINE_ENDS.split(rest):
        yield _decoded(line, is_first)
        is_first = False


def _decoded(line: bytes, is_first: bool) -> str:
    try:
        return line.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")
