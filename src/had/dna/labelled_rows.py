"""Records of sequences, with labels or without, streamed from CSV, TSV, FASTA and Parquet.

The format is told by the content, not by the name. One record at a time is in memory (Parquet: one batch), so
that prediction can run over files larger than memory. Nothing is judged here but the form of the file.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from had.errors import UserError

SEQUENCE_COLUMNS = ("sequence", "seq")
LABEL_COLUMN = "label"
_ID_COLUMNS = ("id", "name")
_CONTIG_COLUMNS = ("chrom", "chr", "chromosome", "contig", "region", "seqname", "seqnames")
_START_COLUMNS = ("start", "chromstart")
_END_COLUMNS = ("end", "chromend")
_COORDINATE = re.compile(r"\d{1,15}(\.0*)?|\d(\.\d*)?[eE]\+?0?\d", re.ASCII)
"""pandas writes a column of whole numbers with gaps as 100.0, R 100000 as 1e+05."""
_LABEL_WORD = re.compile(r"(?:^|[\s|;])label=([^\s|]*)")
_LETTERS = re.compile(r"[acgtun]{8,}")
"""A sequence, not the name of a column (names are in lower case)."""
_LONGEST_FIELD = 2**31 - 1
_SHOWN_NAMES, _SHOWN_LETTERS = 12, 30
_PARQUET_ROWS = 1024
_ARCHIVES = {
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook; save the sheet as CSV",
    b"BZh": "is packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zX": "is packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it, or pack it with gzip",
}
"""First bytes of files that people try, and what to do with them."""
_NO_LABEL = {"0", "0.0", "false"}
_ONE_LABEL = {"1", "1.0", "true"}
MORE_FIELDS = "more fields than the file has columns"
"""Problem of a record whose row is longer than the header."""
MISSING = {"", "nan", "na", "n/a", "null"}
"""Labels, in lower case, that say that there is none."""


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
    locatable: bool = False
    """Whether its file has columns of coordinates, be they empty here."""


def iterate_records(path: Path, label_columns: Sequence[str] = (), *, need_label: bool = True) -> Iterator[Record]:
    """Read the records of a file one by one.

    Parameters
    ----------
    path
        CSV or TSV with a line of column names, or FASTA (``>name|label``, the last field, or ``label=…``), plain
        or gzip, UTF-8; or Parquet; or a folder with a folder per class that holds a ``.txt`` file per sequence
        (the layout of Genomic Benchmarks).
    label_columns
        Columns of 0 and 1, one a label, instead of the column ``label``.
    need_label
        Whether a file without labels is wrong.

    Raises
    ------
    UserError
        If the file cannot be read or lacks a column; the message has the line.
    """
    if path.is_dir():
        yield from _class_folder_records(path)
        return
    if _first_bytes(path) == b"PAR1":
        yield from _parquet_records(path, label_columns, need_label)
        return
    lines = text_lines(path)
    first = next(lines, "")
    blank = 0
    while first and not first.strip():
        first = next(lines, "")
        blank += 1
    if first.startswith(">"):
        if label_columns:
            raise UserError(f"{path}: FASTA has no columns; --labels is for tables")
        yield from _fasta_records(first, lines, blank + 1, need_label)
    else:
        yield from _table_records(path, first, lines, blank + 1, label_columns, need_label)


def class_files(folder: Path) -> list[Path]:
    """Files ``<class>/<id>.txt`` of a folder, by sorted class and id (numbers by value)."""
    found = [path for path in folder.glob("*/*.txt") if path.is_file()]
    return sorted(found, key=lambda path: (path.parent.name, len(path.stem) if path.stem.isdecimal() else 0, path.stem))


def _class_folder_records(folder: Path) -> Iterator[Record]:
    files = class_files(folder)
    if not files:
        raise UserError(f"{folder} cannot be read: it is a folder without <class>/<id>.txt files; name a file")
    for number, path in enumerate(files, start=1):
        sequence = "".join("".join(text_lines(path)).split())
        yield Record(number, number, f"{path.parent.name}/{path.stem}", sequence, path.parent.name)


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file with their ends; what cannot be read is a UserError with the line before it."""
    number = 0
    first = _first_bytes(path)
    if archive := next((said for mark, said in _ARCHIVES.items() if first.startswith(mark)), None):
        raise UserError(f"{path}: {archive}")
    try:
        packed = first[:2] == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
            for line in text:
                number += 1
                yield line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        where = f"{path}, after line {number}" if number else str(path)
        if isinstance(error, EOFError):
            raise UserError(f"{where}: cannot be read, the gzip file ends too early; copy or pack it again") from error
        raise UserError(
            f"{where}: cannot be read ({error}); give CSV, TSV or FASTA in UTF-8, plain or gzip, or Parquet"
        ) from error


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            return raw.read(4)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


class _Columns:
    """Where the columns of a table are, found by name in any case."""

    def __init__(self, where: str, names: Sequence[str], label_columns: Sequence[str], need_label: bool) -> None:
        self.where = where
        places = {name: i for i, name in reversed(list(enumerate(names)))}

        def first_of(wanted: Sequence[str]) -> int | None:
            return next((places[name] for name in wanted if name in places), None)

        sequence = first_of(SEQUENCE_COLUMNS)
        self.label = places.get(LABEL_COLUMN)
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
        self.labels = [] if absent else [places[name] for name in named]
        self.id = first_of(_ID_COLUMNS)
        self.split = places.get("split")
        self.task = places.get("task")
        self.locus = (first_of(_CONTIG_COLUMNS), first_of(_START_COLUMNS), first_of(_END_COLUMNS))

    def record(self, fields: Sequence[str], line: int, number: int) -> Record:
        def field(place: int | None) -> str:
            return fields[place].strip() if place is not None and place < len(fields) else ""

        contig, *ends = (field(place) for place in self.locus)
        start, end = map(_coordinate, ends)
        located = contig and 0 <= start < end
        return Record(
            line,
            number,
            field(self.id),
            field(self.sequence),
            self._several(field, line) if self.labels else None if self.label is None else field(self.label),
            Locus(contig, start, end) if located else None,
            field(self.split).lower() or None,
            field(self.task) or None,
            locatable=None not in self.locus,
        )

    def _several(self, field: Callable[[int | None], str], line: int) -> str | None:
        present = []
        missing = False
        for name, place in zip(self.label_names, self.labels, strict=True):
            value = field(place).lower()
            if value in _ONE_LABEL:
                present.append(name)
            elif value in MISSING:
                missing = True
            elif value not in _NO_LABEL:
                raise UserError(
                    f"{self.where.rpartition(', line')[0] or self.where}, line {line}: the label column {name!r} "
                    f"holds {value!r}; write 0 or 1"
                )
        return None if missing else ";".join(present)


def _coordinate(text: str) -> int:
    """The whole number that a cell holds, -1 where it holds none."""
    value = float(text) if _COORDINATE.fullmatch(text) else -1.0
    return int(value) if value.is_integer() else -1


def _shown(names: Sequence[str]) -> str:
    """Column names for a message: a file without a header has a sequence there, a wide table hundreds of names."""
    short = [name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}…" for name in names[:_SHOWN_NAMES]]
    return ", ".join(short) + (f", … ({len(names)} in all)" if len(names) > _SHOWN_NAMES else "") or "nothing"


def _mend_header(names: Sequence[str], need_label: bool) -> str:
    """What to do about a header that lacks a column."""
    if not any(names):
        return "the file is empty: name another one"
    if len(names) == 1 and ";" in names[0]:
        return "separate the columns by commas or tabs"
    if any(_LETTERS.fullmatch(name) for name in names):
        return f"write a first line that names the columns, such as sequence{',label' if need_label else ''}"
    return "rename the columns"


def _table_records(
    path: Path, header: str, lines: Iterator[str], skipped: int, label_columns: Sequence[str], need_label: bool
) -> Iterator[Record]:
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
    columns = _Columns(f"{path}, line {skipped}", names, label_columns, need_label)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while True:
        # The limit is the whole process's: raised for one row at a time, since the caller runs in between.
        field_limit = csv.field_size_limit(_LONGEST_FIELD)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num + skipped}: not a readable row ({error}); mend the line"
            ) from error
        finally:
            csv.field_size_limit(field_limit)
        if fields is None:
            return
        if fields:
            number += 1
            record = columns.record(fields, reader.line_num + skipped, number)
            if any(text.strip() for text in fields[len(names) :]):
                if need_label:
                    raise UserError(
                        f"{path}, line {reader.line_num + skipped}: the row has {len(fields)} fields, but line "
                        f"{skipped} names {len(names)} columns; quote a field that holds the separator, or name every "
                        "column"
                    )
                # Nobody knows which field is the sequence.
                record = record._replace(sequence="", locus=None, problem=MORE_FIELDS)
            yield record


def _fasta_records(header: str, lines: Iterator[str], line: int, need_label: bool) -> Iterator[Record]:
    number, at = 1, line
    parts: list[str] = []
    for text in lines:
        line += 1
        if text.startswith(">"):
            yield _fasta_record(header, parts, at, number, need_label)
            header, at, parts = text, line, []
            number += 1
        else:
            parts.append("".join(text.split()))
    yield _fasta_record(header, parts, at, number, need_label)


def _fasta_record(header: str, parts: Sequence[str], line: int, number: int, need_label: bool) -> Record:
    header = header[1:].strip()
    word = _LABEL_WORD.search(header)
    name = (header.split() or [""])[0]
    label = None
    if word:
        label = word[1]
        name = name.partition("|label=")[0]
    elif "|" in header:
        # The label may hold blanks (">seq 1|strong enhancer"); without labels to learn, the name stays whole.
        before, _, label = header.rpartition("|")
        name = (before.split() or [""])[0] if need_label else name
    return Record(line, number, name, "".join(parts), None if label is None else label.strip())


def _parquet_records(path: Path, label_columns: Sequence[str], need_label: bool) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = [name.strip().lower() for name in file.schema_arrow.names]
            columns = _Columns(str(path), names, label_columns, need_label)
            places = [columns.sequence, columns.label, columns.id, columns.split, columns.task]
            places += [*columns.locus, *columns.labels]
            wanted = sorted({place for place in places if place is not None})
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=[file.schema_arrow.names[i] for i in wanted]):
                values = batch.to_pydict()
                for row in zip(*values.values(), strict=True):
                    number += 1
                    fields = [""] * len(names)
                    for place, value in zip(wanted, row, strict=True):
                        fields[place] = _as_text(value)
                    yield columns.record(fields, number, number)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: cannot be read as Parquet ({reason}); write the file again") from error


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ";".join(_as_text(item) for item in value)
    # Some writers (Spark, Impala) do not mark their columns of bytes as text.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
