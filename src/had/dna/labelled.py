"""Labelled sequences from CSV, TSV, FASTA (plain or gzip) and Parquet, and folders of train, dev and test files.

Only the sequence and the label reach a model. Other columns (strand, coordinates, class names) often give the
label away.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from had.console import some_of
from had.dna import alphabet
from had.dna.labelled_records import Record, is_missing
from had.dna.labelled_rows import class_files, iterate_records
from had.dna.labelled_tasks import LabelledRow, plain_number, sorted_names
from had.errors import UserError

SPLITS = ("train", "dev", "test")
SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "valid", "validation", "val"), "test": ("test",)}
"""What the file or folder of each split may be called."""
_TEXT_SUFFIXES = ("csv", "tsv", "fa", "fasta", "fna")
_SUFFIXES = (*(f".{kind}{packed}" for kind in _TEXT_SUFFIXES for packed in ("", ".gz")), ".parquet")


class DroppedRow(NamedTuple):
    """A row that was not used."""

    line: int
    """Line of the file, 1 for the header."""
    reason: str
    split: str | None = None
    """Content of a column ``split``."""


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
        text = f"{self.source}: {len(self):,} rows; " + some_of(
            f"{name} {size:,}" for name, size in zip(self.classes, sizes, strict=True)
        )
        for reason in sorted({row.reason for row in self.dropped}):
            lines = [str(row.line) for row in self.dropped if row.reason == reason]
            text += f"; {len(lines):,} dropped for {reason} (line {some_of(lines)})"
        return text


def read_labelled(path: str | PathLike[str], classes: Sequence[str] | None = None) -> LabelledSequences:
    """Read labelled sequences, one class each.

    In a table the first line names the columns (any case): ``sequence`` or ``seq``, and ``label``. The separator
    is a tab where the first line has one, else a comma. FASTA headers are ``name|label`` or hold ``label=…``. Rows
    without a sequence or without a label (empty, or a word that pandas reads as missing, such as NA) are dropped and
    listed. Labels are compared as text, whole numbers in the form ``1`` (so that 1 and 1.0 are one class).

    Parameters
    ----------
    path
        CSV, TSV or FASTA, UTF-8, plain or gzip, or Parquet (recognised by their first bytes).
    classes
        Class names in order, as stored with a model; None: the sorted labels of this file.

    Raises
    ------
    UserError
        If the file cannot be read, lacks a column, has no usable row, holds a sequence with a character that
        is no nucleotide letter, or a label that is not among ``classes``. The message has the line.
    """
    rows, dropped = usable_rows(path)
    return _assemble(
        Path(path), rows, dropped, sorted_names({row.label for row in rows}) if classes is None else tuple(classes)
    )


def read_splits(folder: str | PathLike[str], classes: Sequence[str] | None = None) -> dict[str, LabelledSequences]:
    """Read ``train``, ``dev`` and ``test`` files of a folder (the layout of GUE), those that are there.

    Parameters
    ----------
    folder
        Folder with ``{train,dev,test}.csv`` (``.tsv``, ``.fa``, ``.parquet``; plain or ``.gz``).
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
    paths = find_splits(folder)
    read = {split: usable_rows(path) for split, path in paths.items()}
    if classes is None:
        classes = sorted_names({row.label for rows, _ in read.values() for row in rows})
    return {split: _assemble(paths[split], *read[split], tuple(classes)) for split in paths}


def usable_rows(
    path: str | PathLike[str], label_columns: Sequence[str] = ()
) -> tuple[list[LabelledRow], list[DroppedRow]]:
    """Read the rows that have a sequence and a label, and list those that do not.

    Parameters
    ----------
    path
        CSV, TSV, FASTA or Parquet (see `had.dna.labelled_rows.iterate_records`).
    label_columns
        Columns of 0 and 1, one a label; a row of zeros is then a row without any of them, not one without label; a row
        with an empty one is dropped.

    Raises
    ------
    UserError
        If the file cannot be read, lacks a column, has no usable row, or holds a sequence with a character that
        is no nucleotide letter. The message has the line.
    """
    path = Path(path)
    rows, dropped = sort_out(iterate_records(path, label_columns), path, bool(label_columns))
    if not rows:
        raise no_usable_row(path, "", dropped)
    return rows, dropped


def no_usable_row(path: Path, which: str, dropped: Sequence[DroppedRow]) -> UserError:
    """The error of a file in which no row (``which``: of what) has a sequence and a label."""
    found = "; ".join(f"line {row.line}: {row.reason}" for row in dropped[:3]) + ("; …" if len(dropped) > 3 else "")
    return UserError(
        f"{path} has no row {which}with a sequence and a label ({len(dropped)} rows were looked at"
        + (f"; {found})" if dropped else ")")
        + "; fill both in (in FASTA the label is the end of the header, >name|label, or label=…)"
    )


def sort_out(
    records: Iterable[Record], path: Path, empty_label_is_one: bool = False
) -> tuple[list[LabelledRow], list[DroppedRow]]:
    """Part records into rows with a sequence and a label, and those without.

    Parameters
    ----------
    records
        As `had.dna.labelled_rows.iterate_records` gives them.
    path
        Their file, for messages.
    empty_label_is_one
        An empty label means: none of the labels (columns of 0 and 1).

    Raises
    ------
    UserError
        If a sequence holds a character that is no nucleotide letter; the message has the line.
    """
    rows: list[LabelledRow] = []
    dropped: list[DroppedRow] = []
    # A folder called NA is a class.
    may_be_missing = not (empty_label_is_one or path.is_dir())
    for record in records:
        if not record.sequence:
            dropped.append(DroppedRow(record.line, "an empty sequence", record.split))
        elif record.label is None or (may_be_missing and is_missing(record.label)):
            dropped.append(DroppedRow(record.line, record.problem or "a missing label", record.split))
        else:
            _check_letters(path, record)
            label = plain_number(record.label)
            rows.append(
                LabelledRow(record.line, record.number, record.sequence, label, record.id, record.locus, record.split)
            )
    return rows, dropped


def find_splits(folder: str | PathLike[str], none_is_an_error: bool = True) -> dict[str, Path]:
    """Find the train, dev and test files (or folders of classes) of a folder, those that are there, in this order.

    Their names may be in any case.

    Raises
    ------
    UserError
        If there is none (unless that is no error), or one split has two files.
    """
    folder = Path(folder)
    here: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        here[path.name.lower()].append(path)
    paths: dict[str, Path] = {}
    for split in SPLITS:
        found = [
            path
            for name in SPLIT_NAMES[split]
            for suffix in (*_SUFFIXES, "")
            for path in here[f"{name}{suffix}"]
            if (path.is_file() if suffix else class_files(path))
        ]
        if len(found) > 1:
            raise UserError(f"{folder} has both {found[0].name} and {found[1].name}; keep one file for {split}")
        if found:
            paths[split] = found[0]
    if not paths and none_is_an_error:
        raise UserError(f"{folder} has no train, dev or test file ({', '.join(_SUFFIXES)}); name a folder that has")
    return paths


def _check_letters(path: Path, record: Record) -> None:
    if (position := invalid_position(record.sequence)) is not None:
        # Of a folder of classes the line is only a number of a file: the file itself is named.
        where = path / f"{record.id}.txt" if path.is_dir() else f"{path}, line {record.line}"
        raise UserError(
            f"{where}: {record.sequence[position]!r} at position {position + 1} (0-based: {position}) of the sequence "
            "is no nucleotide letter; remove it or write N"
        )


def invalid_position(sequence: str) -> int | None:
    """0-based position of the first character that is no nucleotide letter; None where all are."""
    codes = alphabet.encode_bytes(sequence.encode("latin-1", "replace"))
    if not codes.size or codes.max() != alphabet.INVALID:
        return None
    return int(np.argmax(codes == alphabet.INVALID))


def _assemble(
    path: Path, rows: Sequence[LabelledRow], dropped: Sequence[DroppedRow], classes: tuple[str, ...]
) -> LabelledSequences:
    index = {name: i for i, name in enumerate(classes)}
    for row in rows:
        if row.label not in index:
            raise UserError(
                f"{path}, line {row.line}: the label {row.label!r} is none of the classes "
                f"{some_of(classes)}; correct it or leave the row out"
            )
    return LabelledSequences(
        sequences=tuple(row.sequence for row in rows),
        labels=np.array([index[row.label] for row in rows], dtype=np.int64),
        classes=classes,
        ids=tuple(str(row.number) for row in rows),
        source=str(path),
        dropped=tuple(dropped),
    )
