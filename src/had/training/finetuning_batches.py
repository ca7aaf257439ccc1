"""Rows of letters as fine-tuning reads them: batches of like length, augmentation, padding."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from had.dna.alphabet import NUCLEOTIDE_OFFSET, NUCLEOTIDE_PAD, reverse_complement

Codes = NDArray[np.uint8]
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
