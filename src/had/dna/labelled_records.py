"""One labelled record as it stands in a file, and where the columns of a table have its parts."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from had.console import some_of
from had.errors import UserError

SEQUENCE_COLUMNS = ("sequence", "seq")
LABEL_COLUMN = "label"
_ID_COLUMNS = ("id", "name")
_CONTIG_COLUMNS = ("chrom", "chr", "chromosome", "contig", "region", "seqname", "seqnames")
_START_COLUMNS = ("start", "chromstart")
_END_COLUMNS = ("end", "chromend")
_WHOLE_NUMBER = re.compile(r"\d{1,15}(\.0*)?|\d(\.\d*)?[eE]\+?0?\d", re.ASCII)
"""pandas writes a column of whole numbers with gaps as 100.0, R 100000 as 1e+05."""
_LETTERS = re.compile(r"[acgtun]{8,}")
"""A sequence, not the name of a column (names are in lower case)."""
_SHOWN_NAMES, _SHOWN_LETTERS = 12, 30
_NO_LABEL = {"0", "0.0", "false"}
_ONE_LABEL = {"1", "1.0", "true"}
_MISSING = {
    *("nan", "-nan", "na", "n/a", "#n/a", "#na", "#n/a n/a", "<na>", "null"),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
}
"""What pandas reads as a missing value, in lower case; and ``None`` in this case alone, since none is a class name."""


class Locus(NamedTuple):
    """Where a sequence lies; 0-based, half-open. It decides splits and is written out; no model sees it."""

    contig: str
    start: int
    end: int


class Record(NamedTuple):
    """One record as it stands in the file."""

    line: int
    """Line of its end in a text (FASTA: of its header), counted from 1; in Parquet the row, counted from 1."""
    number: int
    """Number of the record, 1 for the first."""
    id: str
    """Name in the file (column id or name, FASTA's first word); empty where it has none."""
    sequence: str
    """Letters as written, without surrounding blanks; may be empty."""
    label: str | None
    """As written, ``a;b`` for several 0/1 columns; None where there is none, or one of those columns is empty."""
    locus: Locus | None = None
    split: str | None = None
    """Content of a column ``split``."""
    task: str | None = None
    """Content of a column ``task``, where one file holds the rows of many tasks."""
    strand: str = "."
    """Of an interval whose letters were read from a genome: ``+`` or ``-``, as its file has it."""
    problem: str = ""
    """Why the record has no letters that could be read; empty where it has."""
    fault: str = ""
    """What is wrong with the summit of an interval that was cut around its middle instead; empty where nothing is."""
    locatable: bool = False
    """Whether its file has columns of coordinates, be they empty here."""


class Columns:
    """Where the columns of a table are, found by name in any case."""

    def __init__(self, where: str, names: Sequence[str], label_columns: Sequence[str], need_label: bool) -> None:
        self.where = where
        places = {name: i for i, name in reversed(list(enumerate(names)))}

        def first_of(wanted: Sequence[str], is_read: bool = True) -> int | None:
            name = next((name for name in wanted if name in places), None)
            if name is None:
                return None
            if is_read and names.count(name) > 1:
                raise UserError(f"{where}: {names.count(name)} columns are named {name!r}; keep or rename one of them")
            return places[name]

        sequence = first_of(SEQUENCE_COLUMNS)
        self.label = first_of((LABEL_COLUMN,), is_read=need_label and not label_columns)
        lacks_label = need_label and not label_columns and self.label is None
        if sequence is None or lacks_label:
            raise UserError(
                f"{where}: the columns must include {' or '.join(SEQUENCE_COLUMNS)}"
                f"{f', and {LABEL_COLUMN}' if need_label and not label_columns else ''}; "
                f"found {_shown(names)}; {_mend_header(names, need_label and not label_columns)}"
            )
        self.sequence = sequence
        self.label_names = list(label_columns)
        absent = [name for name in label_columns if name.strip().lower() not in places]
        if absent and need_label:
            raise UserError(f"{where}: --labels names the column {absent[0]!r}; found {_shown(names)}")
        named = [name.strip().lower() for name in label_columns]
        if twice := next((name for i, name in enumerate(label_columns) if named[i] in named[:i]), None):
            raise UserError(f"{where}: --labels names the column {twice!r} twice; name it once")
        if clash := next((name for name in label_columns if ";" in name), None):
            raise UserError(f"{where}: the label column {clash!r} has a ';' in its name; rename it")
        self.labels = [] if absent else [first_of((name,)) for name in named]
        self.id = first_of(_ID_COLUMNS)
        # Where there is nothing to learn they matter little.
        self.split, self.task = (first_of((name,), need_label) for name in ("split", "task"))
        self.locus = tuple(first_of(names, need_label) for names in (_CONTIG_COLUMNS, _START_COLUMNS, _END_COLUMNS))

    def record(self, fields: Sequence[str], line: int, number: int) -> Record:
        """The record of a row; fields that it lacks are empty."""

        def field(place: int | None) -> str:
            return fields[place].strip() if place is not None and place < len(fields) else ""

        contig, *ends = (field(place) for place in self.locus)
        start, end = map(whole_number, ends)
        return Record(
            line,
            number,
            field(self.id),
            field(self.sequence),
            self._several(field, line) if self.labels else None if self.label is None else field(self.label),
            Locus(contig, start, end) if contig and start is not None and end is not None and start < end else None,
            field(self.split).lower() or None,
            field(self.task) or None,
            locatable=None not in self.locus,
        )

    def _several(self, field: Callable[[int | None], str], line: int) -> str | None:
        present = []
        missing = False
        for name, place in zip(self.label_names, self.labels, strict=True):
            value = field(place)
            if value.lower() in _ONE_LABEL:
                present.append(name)
            elif is_missing(value):
                missing = True
            elif value.lower() not in _NO_LABEL:
                raise UserError(
                    f"{self.where.rpartition(', line')[0] or self.where}, line {line}: the label column {name!r} "
                    f"holds {value!r}; write 0 or 1"
                )
        return None if missing else ";".join(present)


def is_missing(label: str) -> bool:
    """Return True if a label says that there is none, or one of several (``a;NA``) does."""
    parts = [part.strip() for part in label.split(";") if part.strip()]
    return not label or any(part.lower() in _MISSING or part == "None" for part in parts)


def whole_number(text: str) -> int | None:
    """Return the whole number of at least 0 that a cell holds (``100``, ``100.0``, ``1e+05``), else None."""
    value = float(text) if _WHOLE_NUMBER.fullmatch(text) else -0.5
    return int(value) if value.is_integer() else None


def _shown(names: Sequence[str]) -> str:
    """Column names for a message: a file without a header has a sequence there, a wide table hundreds of names."""
    short = [name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}…" for name in names]
    return some_of(short, _SHOWN_NAMES) or "nothing"


def _mend_header(names: Sequence[str], need_label: bool) -> str:
    """What to do about a header that lacks a column."""
    if not any(names):
        return "the file is empty: name another one"
    if len(names) == 1 and ";" in names[0]:
        return "separate the columns by commas or tabs"
    if any(_LETTERS.fullmatch(name) for name in names):
        return f"write a first line that names the columns, such as sequence{',label' if need_label else ''}"
    return "rename the columns"
