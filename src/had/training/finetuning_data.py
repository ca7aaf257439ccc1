"""Labelled sequences made ready for fine-tuning: splits, batches of like length, augmentation.

Of each row only letters and label go further. Coordinates decide what may be held out together and are then left
behind.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from had.dna.alphabet import NUCLEOTIDE_OFFSET, NUCLEOTIDE_PAD, N, encode_bytes, reverse_complement
from had.dna.labelled import SPLITS, DroppedRow, find_splits, usable_rows
from had.dna.labelled_rows import class_files
from had.dna.labelled_tasks import UNSEEN, LabelledRow, Task, decide_task, targets, unseen_labels
from had.errors import UserError
from had.files import sha256_of_file

Codes = NDArray[np.uint8]
_SPLIT_NAMES = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}
_BUCKET = 50
"""Batches that are shuffled together before their rows are sorted by length."""
_SHORT = 8
"""Rows shorter than so many times the largest shift are not cut."""


@dataclass
class Part:
    """The rows of one split."""

    codes: list[Codes]
    targets: NDArray
    """As `had.dna.labelled_tasks.targets` gives them."""
    lengths: NDArray[np.int64] = field(init=False)
    features: Tensor | None = None
    """(n, 2, D) pooled features of both strands, where the student is frozen."""

    def __post_init__(self) -> None:
        """Measure the rows."""
        self.lengths = np.array([len(row) for row in self.codes], dtype=np.int64)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.codes)


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
    ids = {name: Counter(row.id for row in rows if row.id != str(row.number)) for name, rows in given.items()}
    own_dev = bool(given.get("dev"))
    if not own_dev:
        train, dev, how = hold_out(given["train"], decided, split, valid_fraction, seed, "validation")
        given |= {"train": train, "dev": dev}
        if decided.kind in ("binary", "multiclass"):
            decided = decide_task(given["train"], decided.kind, label_columns, f"{source}, training part")
    if test_fraction and not given.get("test"):
        train, test, said = hold_out(given["train"], decided, split, test_fraction, seed + 1, "test")
        given |= {"train": train, "test": test}
        how += f"; test: {said}"
    parts: dict[str, Part] = {}
    cut = 0
    for name, rows in given.items():
        codes = [_codes(row.sequence) for row in rows]
        cut += sum(len(row) > max_length for row in codes)
        parts[name] = Part([_middle(row, max_length) for row in codes], targets(rows, decided, source_of[name]))
    seen = {_key(codes) for name in (("train",) if own_dev else ("train", "dev")) for codes in parts[name].codes}
    test_part = parts.get("test")
    tested = test_part.codes if test_part is not None else []
    test_in_train = np.array([_key(codes) in seen for codes in tested], dtype=np.bool_)
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
            if row.split not in _SPLIT_NAMES:
                raise UserError(f"{path}, line {row.line}: the split {row.split!r} is none of train, dev, test")
            given[_SPLIT_NAMES[row.split]].append(row)
        given = {name: rows for name, rows in given.items() if rows or name == "train"}
        dropped |= {name: [] for name in given if name not in dropped}
    return given, dropped, digests


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the names and files of a folder of classes."""
    if not path.is_dir():
        return sha256_of_file(path)
    digest = hashlib.sha256()
    for file in class_files(path):
        digest.update(f"{file.parent.name}/{file.name}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def _codes(sequence: str) -> Codes:
    return encode_bytes(sequence.encode("ascii"))


def _middle(codes: Codes, length: int) -> Codes:
    start = max(0, (len(codes) - length) // 2)
    return codes[start : start + length]


def _key(codes: Codes) -> bytes:
    """Equal for equal letters on either strand."""
    text = min(codes.tobytes(), reverse_complement(codes).tobytes())
    return hashlib.blake2b(text, digest_size=16).digest()


def with_letters(rows: list[LabelledRow], dropped: list[DroppedRow]) -> list[LabelledRow]:
    """Leave out rows without any letter A, C, G or T, and list them in ``dropped``."""
    kept = []
    for row in rows:
        if (_codes(row.sequence) != N).any():
            kept.append(row)
        else:
            dropped.append(DroppedRow(row.line, "a sequence of N alone"))
    return kept


def _groups(rows: Sequence[LabelledRow]) -> NDArray[np.int64]:
    """Group id (n,): rows whose intervals overlap, or whose letters are equal on either strand, are one group."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[bytes, int] = {}
    for i, row in enumerate(rows):
        parent[root(i)] = root(first.setdefault(_key(_codes(row.sequence)), i))
    located = sorted((row.locus, i) for i, row in enumerate(rows) if row.locus is not None)
    reach, holder = None, -1
    for locus, i in located:
        if reach is not None and locus.contig == reach[0] and locus.start < reach[1]:
            parent[root(i)] = root(holder)
            reach = (locus.contig, max(reach[1], locus.end))
        else:
            reach, holder = (locus.contig, locus.end), i
    return np.array([root(i) for i in range(len(rows))], dtype=np.int64)


def hold_out(
    rows: list[LabelledRow], task: Task, mode: str, fraction: float, seed: int, what: str
) -> tuple[list[LabelledRow], list[LabelledRow], str]:
    """Take a share of each class's groups out of the rows.

    Parameters
    ----------
    rows, task
        Labelled rows, and what their labels are.
    mode
        auto or locus: rows of one locus, or of one sequence on either strand, stay together (locus insists on
        coordinates); random: row by row.
    fraction, seed
        Share of the rows, and the seed of the draw.
    what
        For whom, for the message.

    Returns
    -------
    The rows kept, the rows held out (both in their order), and how they were chosen, in words.

    Raises
    ------
    UserError
        If the rows have no coordinates where ``mode`` asks for them, or are too few or too much alike.
    """
    if mode not in ("auto", "locus", "random"):
        raise UserError(f"--split is auto, locus or random; got {mode!r}")
    n_located = sum(row.locus is not None for row in rows)
    if mode == "locus" and not n_located:
        raise UserError("--split locus needs columns chrom (or region), start and end")
    groups = np.arange(len(rows)) if mode == "random" else _groups(rows)
    by_label: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    label_of: dict[int, str] = {}
    for i, group in enumerate(groups.tolist()):
        label = rows[i].label if task.kind in ("binary", "multiclass") else ""
        by_label[label_of.setdefault(group, label)][group].append(i)
    rng = np.random.default_rng([seed, 0x5D1])
    held: set[int] = set()
    for label in sorted(by_label):
        members = list(by_label[label].values())
        wanted = max(1, round(fraction * sum(map(len, members))))
        taken = 0
        for index in rng.permutation(len(members))[: len(members) - 1]:
            group_rows = members[index]
            # One group larger than what is wanted would leave too little to train on.
            if taken < wanted and taken + len(group_rows) <= 2 * wanted:
                held.update(group_rows)
                taken += len(group_rows)
    if not held:
        raise UserError(
            f"{len(rows)} rows are too few, or too much alike (one locus, or one sequence), to hold some out for "
            f"{what}; add rows, give rows of your own to validate with, or use --split random"
        )
    kept = [row for i, row in enumerate(rows) if i not in held]
    out = [rows[i] for i in sorted(held)]
    if mode == "random":
        said = "at random (rows of one locus or one sequence may stand on both sides)"
    elif n_located:
        said = f"by locus, overlapping intervals merged ({n_located:,} of {len(rows):,} rows have coordinates)"
    else:
        said = "at random, equal sequences kept together (the data have no coordinates)"
    return kept, out, f"{100 * len(out) / len(rows):.1f} % of the rows {said}"


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
        keys = Counter(_key(codes) for codes in parts[name].codes)
        fact: dict[str, Any] = {"rows": len(rows), "dropped": dict(reasons)}
        if reasons:
            of = {why: [row.line for row in dropped[name] if row.reason == why] for why in reasons}
            fact["dropped_lines"] = [[line, why] for why, lines in of.items() for line in lines[:100]]
        fact["duplicated_ids"] = sum(count - 1 for count in ids.get(name, {}).values())
        fact["duplicated_sequences"] = sum(count - 1 for count in keys.values())
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


def make_batches(lengths: NDArray[np.int64], size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Put all rows into batches of like lengths, in random order; the last batch may be smaller."""
    order = rng.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), size * _BUCKET):
        bucket = order[start : start + size * _BUCKET]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def portions(lengths: NDArray[np.int64], indices: NDArray[np.int64], letters: int) -> list[NDArray[np.int64]]:
    """Cut rows, sorted by length, into forward passes of at most ``letters`` letters with padding (or one row)."""
    indices = indices[np.argsort(lengths[indices], kind="stable")]
    result, start = [], 0
    for i in range(1, len(indices) + 1):
        if i == len(indices) or (i + 1 - start) * int(lengths[indices[i]]) > letters:
            result.append(indices[start:i])
            start = i
    return result


def augmented(codes: Codes, rng: np.random.Generator, rc: bool, cut: int) -> Codes:
    """One row as training sees it: on either strand, with ``cut`` letters gone, left and right in random shares."""
    if cut and len(codes) >= _SHORT * cut:
        left = int(rng.integers(0, cut + 1))
        codes = codes[left : len(codes) - (cut - left)]
    return reverse_complement(codes) if rc and rng.random() < 0.5 else codes


def collate(rows: Sequence[Codes]) -> tuple[Tensor, Tensor | None]:
    """Token ids (B, L) int64, right-padded, and the mask (B, L) int64, None where no row is padded."""
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), int(lengths.max())), NUCLEOTIDE_PAD, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.astype(np.int64) + NUCLEOTIDE_OFFSET
    if lengths.min() == lengths.max():
        return torch.from_numpy(ids), None
    return torch.from_numpy(ids), torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
