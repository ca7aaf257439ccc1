"""The rows of one benchmark task: what may be looked at while a model is chosen, and, apart, the test.

The test file is opened by `TaskData.test` alone, once a model stands.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from had.console import some_of
from had.dna.alphabet import encode_bytes
from had.dna.labelled import DroppedRow
from had.dna.labelled_tasks import UNSEEN, LabelledRow, Task, decide_task, is_fraction, targets, unseen_labels
from had.errors import UserError
from had.evaluation.layouts import TaskFiles
from had.evaluation.protocols import BenchmarkTask, Suite
from had.training.finetuning_batches import Part
from had.training.finetuning_data import middle, with_letters
from had.training.finetuning_split import hold_out

VALID_FRACTION = 0.1
MAX_LENGTH = 10_000
"""Longer sequences are cut to their middle, in bp."""
SPLITS = ("protocol", "locus")


@dataclass(frozen=True)
class Fold:
    """Which rows train and which choose."""

    train: NDArray[np.int64]
    """Indices into `TaskData.rows`, ascending."""
    valid: NDArray[np.int64]
    how: str
    """In words."""


@dataclass(frozen=True)
class TestRows:
    """The official test rows."""

    sequences: list[str]
    targets: NDArray[np.int64]
    """(n,) class ids; `UNSEEN` for a label that no training row has."""
    labels: list[str]
    """As they stand in the file (whole numbers as ``1``)."""
    n_given: int
    """Rows of the file, dropped ones counted."""
    digest: str
    notes: list[str]

    __test__ = False

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.sequences)

    @property
    def part(self) -> Part:
        """As the training loop takes them."""
        return make_part(self.sequences, self.targets)


@dataclass
class TaskData:
    """One task, its training and validation rows read.

    Raises
    ------
    UserError
        If the rows cannot be read, or are of one class.
    """

    suite: Suite
    task: BenchmarkTask
    files: TaskFiles
    split: str = "protocol"
    """protocol: as published (row by row where there is no official validation set); locus: overlapping intervals, and
    equal sequences, stay together."""
    max_train_rows: int | None = None
    """At most so many training rows, the same for every seed."""

    rows: list[LabelledRow] = field(init=False)
    """Training rows, and the official validation rows behind them where there are any; ``number`` is the index."""
    n_given: int = field(init=False)
    """Rows of the training file (or of what stands in for it), dropped ones counted."""
    n_dev: int = field(init=False)
    """Official validation rows among ``rows``."""
    kind: Task = field(init=False)
    """Classes, sorted by name (numbers by value), of all rows that may be looked at: the same for train and test."""
    trained_on_dev: bool = field(init=False)
    notes: list[str] = field(init=False)
    """What a reader of a score must know of the data."""

    def __post_init__(self) -> None:
        """Read the rows."""
        if self.split not in SPLITS:
            raise UserError(f"--split is {' or '.join(SPLITS)}; got {self.split!r}")
        if self.max_train_rows is not None and self.max_train_rows < 2:
            raise UserError(f"--max-train-rows must be at least 2; got {self.max_train_rows}")
        self.notes = []
        self.trained_on_dev = "train" not in self.files.splits
        train, self.n_given = self._read("dev" if self.trained_on_dev else "train")
        dev = [] if self.trained_on_dev or "dev" not in self.files.splits else self._read("dev")[0]
        self.n_dev = len(dev)
        self._note_sizes()
        if self.max_train_rows is not None and self.max_train_rows < len(train):
            chosen = np.random.default_rng(0).choice(len(train), self.max_train_rows, replace=False)
            train = [train[i] for i in sorted(chosen.tolist())]
            self.notes.append(f"training rows capped at {len(train):,} of {self.n_given:,} by --max-train-rows")
        for split, rows in (("dev" if self.trained_on_dev else "train", train), ("dev", dev)):
            _refuse_other_tasks(str(self.files.splits[split][0]) if rows else "", rows)
        found = Task("", ())
        if len({row.label for row in train + dev}) > 1:
            found = decide_task(train + dev, "multiclass", source=self.task.name)
        if len(found.classes) < 2:
            raise UserError(f"{self.task.name}: all training rows have one label; a benchmark needs two classes")
        self.kind = Task("binary" if len(found.classes) == 2 else "multiclass", found.classes)
        self.rows = [row._replace(number=i) for i, row in enumerate(train + dev)]
        if too_long := sum(len(row.sequence) > MAX_LENGTH for row in self.rows):
            self.notes.append(f"{too_long:,} sequences cut to their middle {MAX_LENGTH:,} bp")

    def _read(self, split: str) -> tuple[list[LabelledRow], int]:
        """Rows of a split that have letters, and how many stand in its files."""
        rows, dropped = self.files.read(split)
        rows = with_letters(rows, dropped)
        self.notes += _said(split, dropped)
        return rows, len(rows) + len(dropped)

    def _note_sizes(self) -> None:
        official = self.task.n_train
        if self.trained_on_dev:
            wanted = f"; officially {official:,} training rows" if official else ""
            self.notes.append(f"no training file: trained on the {self.n_given:,} dev rows{wanted}")
        elif official and self.n_given != official:
            word = "reduced training set" if self.n_given < official else "another training set"
            self.notes.append(f"{word}: {self.n_given:,} of officially {official:,} rows")
        if self.suite.dev_is_given and not self.trained_on_dev and not self.n_dev:
            self.notes.append("no dev file: 10 % of the training rows validate")
        if self.n_dev and not self.suite.dev_is_given:
            self.notes.append(
                f"a dev file of {self.n_dev:,} rows validates; the protocol draws 10 % of the training rows each seed"
            )

    @property
    def folds_differ(self) -> bool:
        """Whether each seed has its own validation rows."""
        return not self.n_dev

    @cached_property
    def sequences(self) -> list[str]:
        """Letters of ``rows``."""
        return [middle(row.sequence, MAX_LENGTH) for row in self.rows]

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Class ids of ``rows``."""
        return targets(self.rows, self.kind)

    def fold(self, seed: int) -> Fold:
        """Rows that train and rows that choose, for one seed.

        Raises
        ------
        UserError
            If there are too few rows to hold some out.
        """
        n = len(self.rows)
        if self.n_dev:
            return Fold(np.arange(n - self.n_dev), np.arange(n - self.n_dev, n), "the official dev rows validate")
        mode = "random" if self.split == "protocol" else "auto"
        train, valid, how = hold_out(
            self.rows, self.kind, mode, VALID_FRACTION, seed, f"validation of {self.task.name}"
        )
        return Fold(_numbers(train), _numbers(valid), how)

    def part(self, chosen: NDArray[np.int64]) -> Part:
        """Some of ``rows`` as the training loop takes them."""
        return make_part([self.sequences[i] for i in chosen], self.targets[chosen])

    def train_digest(self) -> str:
        """sha256 of the files that were looked at so far (not the test)."""
        return " ".join(self.files.digest(split) for split in ("train", "dev") if split in self.files.splits)

    def test(self) -> TestRows:
        """Read the official test rows: only once a model is chosen.

        A row of N alone stays (its score counts); rows without a sequence or a label cannot.

        Raises
        ------
        UserError
            If the file cannot be read.
        """
        rows, dropped = self.files.read("test")
        notes = _said("test", dropped)
        official = self.task.n_test
        given = len(rows) + len(dropped)
        if official and given != official:
            notes.append(f"another test set: {given:,} rows, officially {official:,}")
        ids = targets(rows, self.kind)
        if unseen := unseen_labels(rows, self.kind):
            count = int((ids == UNSEEN).sum())
            notes.append(f"{count:,} test rows of labels not in train count as errors ({some_of(unseen)})")
        labels = [row.label for row in rows]
        return TestRows(
            [middle(row.sequence, MAX_LENGTH) for row in rows], ids, labels, given, self.files.digest("test"), notes
        )


def make_part(sequences: list[str], ids: NDArray[np.int64]) -> Part:
    """Sequences and class ids as the training loop takes them."""
    return Part([encode_bytes(sequence.encode("ascii")) for sequence in sequences], ids)


def _refuse_other_tasks(source: str, rows: list[LabelledRow]) -> None:
    """Values, and several labels a row, would each be taken for a class: a score of nothing."""
    for row in rows:
        if ";" in row.label:
            kind = "several labels"
        elif is_fraction(row.label):
            kind = "a value"
        else:
            continue
        raise UserError(
            f"{source}, line {row.line}: the label {row.label!r} is {kind}, but a benchmark's task has one class a "
            "row; use had finetune for it"
        )


def _numbers(rows: list[LabelledRow]) -> NDArray[np.int64]:
    return np.array([row.number for row in rows], dtype=np.int64)


def _said(split: str, dropped: list[DroppedRow]) -> list[str]:
    reasons = Counter(row.reason for row in dropped)
    return [
        f"{split}: {count:,} rows dropped for {reason} (line "
        f"{some_of(row.line for row in dropped if row.reason == reason)})"
        for reason, count in reasons.items()
    ]
