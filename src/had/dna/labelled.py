"""Labelled sequences from CSV and TSV files (plain or gzip), and folders of train, dev and test files.

Only the sequence and the label are kept. Other columns (strand, coordinates, class names) often give the
label away.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from had.dna import alphabet
from had.errors import UserError

SEQUENCE_COLUMNS = ("sequence", "seq")
LABEL_COLUMN = "label"
SPLITS = ("train", "dev", "test")
_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_MISSING = {"", "nan", "na", "n/a", "null"}
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(?:\.0*)?")
_LONGEST_FIELD = 2**31 - 1


class DroppedRow(NamedTuple):
    """A row that was not used."""

    line: int
    """Line of the file, 1 for the header."""
    reason: str


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences with one class each, in the order of the file."""

    sequences: tuple[str, ...]
    """Letters as written, without surrounding blanks."""
    labels: NDArray[np.int64]
    """(n,) Index into ``classes``."""
    classes: tuple[str, ...]
    """Names of the classes, sorted (as numbers where all are numbers): store them with the model."""
    ids: tuple[str, ...]
    """Number of each row in the file, 1 for the first after the header, dropped rows counted."""
    source: str
    """The file."""
    dropped: tuple[DroppedRow, ...] = ()

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.sequences)

    @property
    def summary(self) -> str:
        """One line for people: rows, classes, dropped rows with their reasons."""
        sizes = np.bincount(self.labels, minlength=len(self.classes))
        text = f"{self.source}: {len(self):,} rows; " + ", ".join(
            f"{name} {size:,}" for name, size in zip(self.classes, sizes, strict=True)
        )
        for reason in sorted({row.reason for row in self.dropped}):
            lines = [str(row.line) for row in self.dropped if row.reason == reason]
            shown = ", ".join(lines[:5]) + (", …" if len(lines) > 5 else "")
            text += f"; {len(lines):,} dropped for {reason} (line {shown})"
        return text


class _Row(NamedTuple):
    line: int
    number: int
    sequence: str
    label: str


def read_labelled(path: str | PathLike[str], classes: Sequence[str] | None = None) -> LabelledSequences:
    """Read a table of labelled sequences.

    The first line names the columns (any case): ``sequence`` or ``seq``, and ``label``. The separator is a
    tab where the first line has one, else a comma. Rows without a sequence or without a label (empty, NaN,
    NA, null) are dropped and listed. Labels are compared as text, whole numbers in the form ``1`` (so that 1
    and 1.0 are one class).

    Parameters
    ----------
    path
        CSV or TSV file, UTF-8, plain or gzip (recognised by its first bytes).
    classes
        Class names in order, as stored with a model; None: the sorted labels of this file.

    Raises
    ------
    UserError
        If the file cannot be read, lacks a column, has no usable row, holds a sequence with a character that
        is no nucleotide letter, or a label that is not among ``classes``. The message has the line.
    """
    rows, dropped = _read_rows(Path(path))
    return _assemble(Path(path), rows, dropped, _sorted_classes(rows) if classes is None else tuple(classes))


def read_splits(
    folder: str | PathLike[str], classes: Sequence[str] | None = None
) -> dict[str, LabelledSequences]:
    """Read ``train``, ``dev`` and ``test`` files of a folder (the layout of GUE), those that are there.

    Parameters
    ----------
    folder
        Folder with ``{train,dev,test}.csv`` or ``.tsv``, plain or ``.gz``.
    classes
        Class names in order; None: the sorted labels of all the files together, so that every split has one
        mapping.

    Returns
    -------
    Split name → sequences, in the order train, dev, test; absent splits are left out.

    Raises
    ------
    UserError
        If no such file is there, one split has two files, or a file is wrong (see :func:`read_labelled`).
    """
    folder = Path(folder)
    paths: dict[str, Path] = {}
    for split in SPLITS:
        found = [
            folder / f"{split}{suffix}" for suffix in _SUFFIXES if (folder / f"{split}{suffix}").is_file()
        ]
        if len(found) > 1:
            raise UserError(
                f"{folder} has both {found[0].name} and {found[1].name}; keep one file for {split}"
            )
        if found:
            paths[split] = found[0]
    if not paths:
        raise UserError(
            f"{folder} has no train, dev or test file ({', '.join(_SUFFIXES)}); name a folder that has"
        )
    read = {split: _read_rows(path) for split, path in paths.items()}
    if classes is None:
        classes = _sorted_classes([row for rows, _ in read.values() for row in rows])
    return {split: _assemble(paths[split], *read[split], tuple(classes)) for split in paths}


def _read_rows(path: Path) -> tuple[list[_Row], list[DroppedRow]]:
    rows: list[_Row] = []
    dropped: list[DroppedRow] = []
    lines = _lines(path)
    header = next(lines, "")
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
    sequence_column = next((names.index(name) for name in SEQUENCE_COLUMNS if name in names), None)
    if sequence_column is None or LABEL_COLUMN not in names:
        raise UserError(
            f"{path}, line 1: the columns must include {' or '.join(SEQUENCE_COLUMNS)}, and {LABEL_COLUMN}; "
            f"found {', '.join(names) or 'nothing'}"
        )
    label_column = names.index(LABEL_COLUMN)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    field_limit = csv.field_size_limit(_LONGEST_FIELD)
    number = 0
    try:
        for fields in reader:
            line = reader.line_num + 1
            if not fields:
                continue
            number += 1
            sequence = fields[sequence_column].strip() if sequence_column < len(fields) else ""
            label = fields[label_column].strip() if label_column < len(fields) else ""
            if not sequence:
                dropped.append(DroppedRow(line, "an empty sequence"))
            elif label.lower() in _MISSING:
                dropped.append(DroppedRow(line, "a missing label"))
            else:
                _check_letters(path, line, sequence)
                rows.append(_Row(line, number, sequence, _plain_number(label)))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num + 1}: not a readable row ({error}); mend the line"
        ) from error
    finally:
        csv.field_size_limit(field_limit)
    if not rows:
        raise UserError(f"{path} has no row with a sequence and a label ({len(dropped)} rows were looked at)")
    return rows, dropped


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file with their ends; what cannot be read is a UserError with the line before it."""
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
            for line in text:
                number += 1
                yield line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        where = f"{path}, after line {number}" if number else str(path)
        raise UserError(
            f"{where}: cannot be read ({error}); give CSV or TSV in UTF-8, plain or gzip"
        ) from error


def _check_letters(path: Path, line: int, sequence: str) -> None:
    codes = alphabet.encode_bytes(sequence.encode("latin-1", "replace"))
    if codes.max() == alphabet.INVALID:
        position = int(np.argmax(codes == alphabet.INVALID))
        raise UserError(
            f"{path}, line {line}: {sequence[position]!r} at position {position} of the sequence is no "
            "nucleotide letter; remove it or write N"
        )


def _plain_number(label: str) -> str:
    match = _WHOLE_NUMBER.fullmatch(label)
    return str(int(match[1])) if match else label


def _sorted_classes(rows: Sequence[_Row]) -> tuple[str, ...]:
    names = {row.label for row in rows}
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _assemble(
    path: Path, rows: Sequence[_Row], dropped: Sequence[DroppedRow], classes: tuple[str, ...]
) -> LabelledSequences:
    index = {name: i for i, name in enumerate(classes)}
    for row in rows:
        if row.label not in index:
            raise UserError(
                f"{path}, line {row.line}: the label {row.label!r} is none of the classes "
                f"{', '.join(classes)}; correct it or leave the row out"
            )
    return LabelledSequences(
        sequences=tuple(row.sequence for row in rows),
        labels=np.array([index[row.label] for row in rows], dtype=np.int64),
        classes=classes,
        ids=tuple(str(row.number) for row in rows),
        source=str(path),
        dropped=tuple(dropped),
    )
