"""Records of sequences, with labels or without, streamed from CSV, TSV, FASTA and Parquet.

The format is told by the content, not by the name. One record at a time is in memory (Parquet: one batch), so
that prediction can run over files larger than memory. Nothing is judged here but the form of the file.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from had.dna.labelled_records import Columns, Record
from had.errors import UserError

_LABEL_WORD = re.compile(r"(?:^|[\s|;])label=((?:(?!;\w+=)[^\s|])*)", re.IGNORECASE)
"""Its value may be ``a;b``, but ends where another ``;word=`` begins."""
_LONGEST_FIELD = 2**31 - 1
_PARQUET_ROWS = 1024
_ARCHIVES = {
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook; save the sheet as CSV",
    b"BZh": "is packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zX": "is packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it, or pack it with gzip",
}
"""First bytes of files that people try, and what to do with them."""
MORE_FIELDS = "more fields than the file has columns"
"""Problem of a record whose row is longer than the header."""


def iterate_records(path: Path, label_columns: Sequence[str] = (), *, need_label: bool = True) -> Iterator[Record]:
    """Read the records of a file one by one.

    Parameters
    ----------
    path
        CSV or TSV with a line of column names, or FASTA (``>name|label`` with one ``|``, or ``label=…``), plain or
        gzip, UTF-8; or Parquet; or a folder with a folder per class that holds a ``.txt`` file per sequence (the layout
        of Genomic Benchmarks; hidden names and ``__MACOSX`` are left out).
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
    refuse_pipe(path)
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


def refuse_pipe(path: Path) -> None:
    """A UserError where a file can be read only once: its format is looked at first."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a pipe or a device, which can be read only once; write it to a file and name that")


def is_hidden(path: Path) -> bool:
    """Return True for what macOS, Jupyter and other programs leave in a folder beside the user's files."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def class_files(folder: Path) -> list[Path]:
    """Files ``<class>/<id>.txt`` of a folder, by sorted class and id (numbers by value); no hidden ones."""
    found = [
        path for path in folder.glob("*/*.txt") if path.is_file() and not (is_hidden(path) or is_hidden(path.parent))
    ]
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


def _table_records(
    path: Path, header: str, lines: Iterator[str], skipped: int, label_columns: Sequence[str], need_label: bool
) -> Iterator[Record]:
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
    columns = Columns(f"{path}, line {skipped}", names, label_columns, need_label)
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
    label, problem = None, ""
    if word:
        # USEARCH ends its headers so.
        label = word[1].rstrip(";")
        name = re.split(r"[|;]label=", name, maxsplit=1, flags=re.IGNORECASE)[0]
    elif need_label and header.count("|") == 1:
        # The label may hold blanks (">seq 1|strong enhancer").
        before, label = header.split("|")
        name = (before.split() or [""])[0]
    elif need_label and "|" in header:
        # NCBI and UniProt part a name by them: gi|568815597|ref|NC_000001.11| Homo sapiens.
        problem = "a header with several '|' and no label=…"
    return Record(line, number, name, "".join(parts), None if label is None else label.strip(), problem=problem)


def _parquet_records(path: Path, label_columns: Sequence[str], need_label: bool) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = [name.strip().lower() for name in file.schema_arrow.names]
            columns = Columns(str(path), names, label_columns, need_label)
            places = [columns.sequence, columns.label, columns.id, columns.split, columns.task]
            places += [*columns.locus, *columns.labels]
            wanted = sorted({place for place in places if place is not None})
            for place in wanted:
                kind = file.schema_arrow.types[place]
                if pa.types.is_struct(kind) or pa.types.is_map(kind):
                    raise UserError(f"{path}: the column {names[place]!r} holds {kind}; give text or numbers")
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=[file.schema_arrow.names[i] for i in wanted]):
                values = batch.to_pydict()
                for row in zip(*values.values(), strict=True):
                    number += 1
                    fields = [""] * len(names)
                    for place, value in zip(wanted, row, strict=True):
                        fields[place] = _as_text(value)
                    yield columns.record(fields, number, number)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: cannot be read as Parquet ({reason}); write the file again") from error


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ";".join("NA" if item is None else _as_text(item) for item in value)
    # Some writers (Spark, Impala) do not mark their columns of bytes as text.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
