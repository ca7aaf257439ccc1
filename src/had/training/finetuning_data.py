"""Labelled sequences made ready for fine-tuning: read, split, counted.

Of each row only letters and label go further. Coordinates decide what may be held out together and are then left
behind.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from had.baselines.evidence import Evidence
from had.dna.alphabet import N
from had.dna.labelled import SPLIT_NAMES, SPLITS, DroppedRow, find_splits, usable_rows
from had.dna.labelled_rows import class_files
from had.dna.labelled_tasks import UNSEEN, LabelledRow, Task, decide_task, targets, unseen_labels
from had.errors import UserError
from had.files import sha256_of_file
from had.training.finetuning_batches import Codes, Part
from had.training.finetuning_split import codes_of, hold_out, strand_free_key

Letters = TypeVar("Letters", str, Codes)
_SPLIT_OF = {word: split for split, words in SPLIT_NAMES.items() for word in words}


@dataclass
class FinetuningData:
    """What a model is fine-tuned and tested on."""

    task: Task
    train: Part
    valid: Part
    test: Part | None
    split: str
    """How validation rows were chosen, in words."""
    facts: dict[str, Any]
    """Rows, dropped rows, duplicates, test rows that also stand in train, unseen labels."""
    test_in_train: NDArray[np.bool_]
    """(n_test,) Whether the same letters, on either strand, are in the training rows or what was held out of them."""
    digests: dict[str, str]
    """sha256 of each file."""
    anchor: str = "middle"
    """``summit`` if rows were cut around the summits of peaks."""
    positions: Evidence | None = None
    """What positions tell of the labels, once a model was built for these rows."""


def load_data(
    path: Path,
    *,
    task: str = "auto",
    label_columns: Sequence[str] = (),
    split: str = "auto",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    max_length: int = 10_000,
) -> FinetuningData:
    """Read a file or a folder of labelled sequences and decide what validates.

    Training rows of N alone are left out.

    Parameters
    ----------
    path
        A table, FASTA or Parquet file, or a folder with train and perhaps dev and test files. A column ``split``
        (train, dev, test) of a single file is the user's split.
    task, label_columns
        As `had.dna.labelled_tasks.decide_task`; decided on the training rows alone.
    split
        auto: the user's validation rows; else by locus where there are coordinates (overlapping intervals are one
        locus), else at random; in both, equal sequences on either strand stay together. random: rows at random,
        as published protocols do.
    valid_fraction, test_fraction
        Shares of the training rows to hold out where the user gave no split; 0 holds out no test rows.
    max_length
        Longer sequences are cut to their middle.

    Raises
    ------
    UserError
        If the data cannot be read or do not fit the task.
    """
    given, dropped, digests = _read(path, label_columns)
    if not given.get("train"):
        raise UserError(f"{path} has no training rows; name a file, or a folder with a train file")
    return prepare_rows(
        given,
        dropped,
        digests,
        str(path),
        files=find_splits(path) if path.is_dir() else {},
        task=task,
        label_columns=label_columns,
        split=split,
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        seed=seed,
        max_length=max_length,
    )


def prepare_rows(
    given: dict[str, list[LabelledRow]],
    dropped: dict[str, list[DroppedRow]],
    digests: dict[str, str],
    source: str,
    *,
    files: Mapping[str, Path] | None = None,
    how: str = "the user's validation rows",
    task: str = "auto",
    label_columns: Sequence[str] = (),
    split: str = "auto",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    max_length: int = 10_000,
) -> FinetuningData:
    """Rows by split (train, and perhaps dev and test) as `load_data` makes them ready; the rest as there.

    ``source`` names the data in messages, ``files`` those of each split where there are several, ``how`` says how the
    dev rows, where there are any, were chosen.
    """
    # Rows that are held out are the training file's.
    source_of = {name: str((files or {}).get(name, (files or {}).get("train", source))) for name in SPLITS}
    for name in ("train", "dev"):
        # A test row of N alone stays: whatever the model says of it counts, as in published scores.
        if name in given:
            given[name] = with_letters(given[name], dropped.setdefault(name, []))
    if not given["train"]:
        looked_at = f"{len(dropped['train'])} rows were left out"
        raise UserError(f"{source_of['train']} has no training row with a letter A, C, G or T ({looked_at})")
    decided = decide_task(given["train"], task, label_columns, source_of["train"])
    # Of all rows of a file, before some of them are held out.
    ids = {name: Counter(row.id for row in rows if row.id) for name, rows in given.items()}
    own_dev = bool(given.get("dev"))
    if not own_dev:
        train, dev, how = hold_out(given["train"], decided, split, valid_fraction, seed, "validation", source)
        given |= {"train": train, "dev": dev}
        if decided.kind in ("binary", "multiclass"):
            decided = decide_task(given["train"], decided.kind, label_columns, f"{source}, training part")
    if test_fraction and not given.get("test"):
        train, test, said = hold_out(given["train"], decided, split, test_fraction, seed + 1, "test", source)
        given |= {"train": train, "test": test}
        how += f"; test: {said}"
    parts: dict[str, Part] = {}
    cut = 0
    for name, rows in given.items():
        codes = [codes_of(row.sequence) for row in rows]
        cut += sum(len(row) > max_length for row in codes)
        parts[name] = Part([middle(row, max_length) for row in codes], targets(rows, decided, source_of[name]))
    trained_on = ("train",) if own_dev else ("train", "dev")
    seen = {strand_free_key(codes) for name in trained_on for codes in parts[name].codes}
    test_part = parts.get("test")
    tested = test_part.codes if test_part is not None else []
    test_in_train = np.array([strand_free_key(codes) in seen for codes in tested], dtype=np.bool_)
    facts = _facts(given, dropped, decided, parts, ids)
    facts |= {"test_rows_also_in_train": int(test_in_train.sum()), "cut_to_max_length": cut}
    return FinetuningData(decided, parts["train"], parts["dev"], test_part, how, facts, test_in_train, digests)


def _read(
    path: Path, label_columns: Sequence[str]
) -> tuple[dict[str, list[LabelledRow]], dict[str, list[DroppedRow]], dict[str, str]]:
    """Rows by split as the user made it, rows left out, and checksums."""
    files = find_splits(path) if path.is_dir() else {"train": path}
    given: dict[str, list[LabelledRow]] = {}
    dropped: dict[str, list[DroppedRow]] = {}
    for name, file in files.items():
        given[name], dropped[name] = usable_rows(file, label_columns)
    digests = {name: digest_of(file) for name, file in files.items()}
    rows = given.get("train", [])
    if not path.is_dir() and any(row.split for row in rows):
        given = {"train": [], "dev": [], "test": []}
        for row in rows:
            if row.split not in _SPLIT_OF:
                found = f"{row.split!r}" if row.split else "of this row is empty; it"
                raise UserError(f"{path}, line {row.line}: the split {found} is none of train, dev, test; correct it")
            given[_SPLIT_OF[row.split]].append(row)
        given = {name: rows for name, rows in given.items() if rows or name == "train"}
        left_out = dropped["train"]
        dropped = {name: [] for name in given}
        for one in left_out:
            dropped.get(_SPLIT_OF.get(one.split or "", "train"), dropped["train"]).append(one)
    return given, dropped, digests


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the names and files of a folder of classes."""
    if not path.is_dir():
        return sha256_of_file(path)
    digest = hashlib.sha256()
    for file in class_files(path):
        digest.update(f"{file.parent.name}/{file.name}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def middle(letters: Letters, length: int) -> Letters:
    """The middle ``length`` of the letters of a longer sequence."""
    start = max(0, (len(letters) - length) // 2)
    return letters[start : start + length]


def with_letters(rows: list[LabelledRow], dropped: list[DroppedRow]) -> list[LabelledRow]:
    """Leave out rows without any letter A, C, G or T, and list them in ``dropped``."""
    kept = []
    for row in rows:
        if (codes_of(row.sequence) != N).any():
            kept.append(row)
        else:
            dropped.append(DroppedRow(row.line, "a sequence of N alone"))
    return kept


def _facts(
    given: dict[str, list[LabelledRow]],
    dropped: dict[str, list[DroppedRow]],
    task: Task,
    parts: dict[str, Part],
    ids: Mapping[str, Counter[str]],
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, rows in given.items():
        reasons = Counter(row.reason for row in dropped.get(name, []))
        keys = Counter(strand_free_key(codes) for codes in parts[name].codes)
        fact: dict[str, Any] = {"rows": len(rows), "dropped": dict(reasons)}
        if reasons:
            of = {why: [row.line for row in dropped[name] if row.reason == why] for why in reasons}
            fact["dropped_lines"] = [[line, why] for why, lines in of.items() for line in lines[:100]]
        fact["duplicated_ids"] = sum(count - 1 for count in ids.get(name, {}).values())
        fact["duplicated_sequences"] = sum(count - 1 for count in keys.values())
        if task.kind != "regression":
            labels_of: dict[bytes, set[str]] = defaultdict(set)
            for codes, row in zip(parts[name].codes, rows, strict=True):
                labels_of[codes.tobytes()].add(row.label)
            fact["sequences_with_several_labels"] = sum(len(found) > 1 for found in labels_of.values())
        if task.kind in ("binary", "multiclass"):
            labels = np.asarray(parts[name].targets)
            fact["classes"] = {c: int((labels == i).sum()) for i, c in enumerate(task.classes)}
            if (labels == UNSEEN).any():
                fact["rows_of_unseen_labels"] = int((labels == UNSEEN).sum())
        elif task.kind == "multilabel" and parts[name].targets.shape[1] > len(task.classes):
            fact["rows_of_unseen_labels"] = int(parts[name].targets[:, -1].sum())
        if unseen := unseen_labels(rows, task):
            fact["labels_not_in_train"] = unseen
        facts[name] = fact
    return facts
