"""Which task a column of labels is, and labels as numbers.

The mapping from names to numbers is the sorted one, made from the training rows and stored with the model: it does
not depend on the order of files, rows or folders.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from had.console import some_of
from had.dna.labelled_records import Locus
from had.errors import UserError

KINDS = ("binary", "multiclass", "multilabel", "regression")
UNSEEN = -1
"""Target of a row whose label no training row has: whatever is predicted is wrong."""
MOST_INTEGERS = 100
"""More distinct integers than this may be classes or values: the user says which."""
LARGEST_VALUE = 1e30
"""Larger values of a regression are refused: they are no measurements, and squares of much larger ones overflow."""
WHOLE_NUMBER = re.compile(r"([+-]?\d{1,999})(?:\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""What people write for numbers; Python's own `float` takes the class name 1_1 for eleven."""


class LabelledRow(NamedTuple):
    """A row that can be used."""

    line: int
    number: int
    sequence: str
    label: str
    id: str = ""
    """Name in the file; empty where it has none."""
    locus: Locus | None = None
    split: str | None = None


@dataclass(frozen=True)
class Task:
    """What is predicted."""

    kind: str
    """binary, multiclass, multilabel or regression."""
    classes: tuple[str, ...]
    """Sorted names (as numbers where all are numbers); ``("value",)`` for regression."""


def plain_number(label: str) -> str:
    """Whole numbers in one form, so that 1, 01 and 1.0 are one class; anything else as it is."""
    match = WHOLE_NUMBER.fullmatch(label)
    return str(int(match[1])) if match else label


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Class names in their one order: by value where all are whole numbers, else as text."""
    if all(WHOLE_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def decide_task(
    rows: Sequence[LabelledRow], wanted: str = "auto", label_columns: Sequence[str] = (), source: str = "the data"
) -> Task:
    """Decide what the labels of the training rows are.

    With ``auto``, labels with ``;`` (or several label columns) are multilabel; numbers of which one is not whole
    (1e5 is) are values; everything else is a class: binary with two of them, else multiclass.

    Raises
    ------
    UserError
        If the labels do not fit ``wanted``, ``auto`` cannot tell, or there is only one class.
    """
    if wanted not in ("auto", *KINDS):
        raise UserError(f"--task is auto, {', '.join(KINDS)}; got {wanted!r}")
    if label_columns and wanted not in ("auto", "multilabel"):
        raise UserError(f"--labels makes the task multilabel; --task {wanted} does not go with it")
    if wanted == "multilabel" or label_columns or (wanted == "auto" and any(";" in row.label for row in rows)):
        labels = tuple(plain_number(name.strip()) for name in label_columns) or sorted_names(_parts(rows))
        if not labels or len(set(labels)) < len(labels):
            raise UserError(f"{source} has {'no label' if not labels else 'two labels of one name'} to learn")
        return Task("multilabel", labels)
    if wanted == "regression" or (wanted == "auto" and _has_fraction(rows, source)):
        return Task("regression", ("value",))
    classes = sorted_names({row.label for row in rows})
    numbers = sum(_number(name) is not None for name in classes)
    if wanted == "auto" and numbers > MOST_INTEGERS:
        text = next((row for row in rows if _number(row.label) is None), None)
        raise UserError(
            f"{source} has {numbers:,} different whole numbers as labels"
            + (f" (and {text.label!r} in line {text.line}, which is none)" if text else "")
            + "; say by --task regression or --task multiclass what they are"
        )
    if len(classes) < 2:
        raise UserError(f"{source} has the one class {classes[0]!r}; a classifier needs rows of at least two")
    if wanted == "binary" and len(classes) != 2:
        raise UserError(f"{source} has {len(classes)} classes ({some_of(classes)}); --task binary needs two")
    return Task("binary" if len(classes) == 2 and wanted != "multiclass" else "multiclass", classes)


def targets(rows: Sequence[LabelledRow], task: Task, source: str = "the data") -> NDArray:
    """Labels as numbers.

    Returns
    -------
    numpy.ndarray
        int64 (n,) class ids, `UNSEEN` for a label that is not among the classes; float32 (n, labels) of 0 and 1 for
        multilabel, with one more column for rows that have a name which is no label of the task, where there are such;
        float64 (n,) for regression.

    Raises
    ------
    UserError
        If a value is no finite number; the message has the line.
    """
    if task.kind == "regression":
        return np.array([_value(row, source) for row in rows], dtype=np.float64)
    index = {name: i for i, name in enumerate(task.classes)}
    if task.kind == "multilabel":
        matrix = np.zeros((len(rows), len(index) + 1), dtype=np.float32)
        for i, row in enumerate(rows):
            for name in _split(row.label):
                matrix[i, index.get(name, -1)] = 1
        return matrix if matrix[:, -1].any() else matrix[:, :-1]
    return np.array([index.get(row.label, UNSEEN) for row in rows], dtype=np.int64)


def unseen_labels(rows: Sequence[LabelledRow], task: Task) -> list[str]:
    """Sorted labels of rows that the task does not have."""
    if task.kind == "regression":
        return []
    names = _parts(rows) if task.kind == "multilabel" else {row.label for row in rows}
    return sorted(names - set(task.classes))


def _split(label: str) -> list[str]:
    return [plain_number(part.strip()) for part in label.split(";") if part.strip()]


def _parts(rows: Sequence[LabelledRow]) -> set[str]:
    return {part for row in rows for part in _split(row.label)}


def is_fraction(label: str) -> bool:
    """Whether a label is a number that is not whole, so a value and no class."""
    value = _number(label)
    # Of a larger float nobody knows the last digit.
    exact = value is not None and value.is_integer() and abs(value) <= 2**53
    return value is not None and not exact and not WHOLE_NUMBER.fullmatch(label)


def _number(label: str) -> float | None:
    if not _NUMBER.fullmatch(label):
        return None
    value = float(label)
    return value if math.isfinite(value) else None


def _has_fraction(rows: Sequence[LabelledRow], source: str) -> bool:
    fraction = text = None
    for row in rows:
        if is_fraction(row.label):
            fraction = fraction or row
        elif _number(row.label) is None:
            text = text or row
    if fraction and text:
        raise UserError(
            f"{source}, line {text.line}: the label {text.label!r} is no number, but {fraction.label!r} in line "
            f"{fraction.line} is; mend it, or say by --task multiclass that all of them are class names"
        )
    return fraction is not None


def _value(row: LabelledRow, source: str) -> float:
    value = _number(row.label)
    if value is None:
        raise UserError(f"{source}, line {row.line}: the label {row.label!r} is no finite number; mend the line")
    if abs(value) > LARGEST_VALUE:
        raise UserError(
            f"{source}, line {row.line}: the value {row.label} is too large (at most {LARGEST_VALUE:g}); use other "
            "units, or logarithms"
        )
    return value
