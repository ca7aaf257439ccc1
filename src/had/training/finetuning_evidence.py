"""What the training rows say of strand and position, and what a recipe makes of it; the same for every seed."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from had.baselines.evidence import Evidence, position_evidence, strand_evidence
from had.dna.alphabet import decode
from had.training.finetuning_batches import Codes, Part

_MOST_WINDOWS = 512


class _Letters(Sequence[str]):
    """Rows of codes as strings, each made when it is asked for: a few thousand of what may be millions are."""

    def __init__(self, codes: list[Codes]) -> None:
        self._codes = codes

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return _Letters(self._codes[index]) if isinstance(index, slice) else decode(self._codes[index])


class _Rows:
    """Sequences and targets, equal where their contents are: several seeds of one task ask only once."""

    def __init__(self, task: str, train: Part) -> None:
        self._task = task
        self._train: Part | None = train
        digest = hashlib.blake2b(f"{task} {train.targets.dtype} {train.targets.shape}".encode())
        digest.update(np.ascontiguousarray(train.targets).tobytes())
        for row in train.codes:
            digest.update(len(row).to_bytes(8, "little") + row.tobytes())
        self._digest = digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rows) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def give(self) -> tuple[Sequence[str], NDArray[Any]]:
        """Sequences and targets (n, K), once: whatever remembers an answer then keeps the digest alone."""
        train, self._train = self._train, None
        if train is None:
            raise ValueError("these rows were given before")
        targets = train.targets.reshape(len(train), -1)
        if self._task in ("binary", "multiclass"):
            targets = targets == np.unique(train.targets)[None]
        return _Letters(train.codes), targets


def strands_of(task: str, train: Part, windows: int, quiet: bool = True) -> Evidence | None:
    """Whether the strand on which rows are given tells something of their labels; ``windows`` are the head's."""
    return _strands(_Rows(task, train), windows, quiet)


def windows_of(task: str, train: Part, wanted: bool | str, quiet: bool = True) -> tuple[int, Evidence | None]:
    """Windows of the head, 0 for the mean over the letters alone, and what decided it.

    One window a letter of the median row, 512 at most.

    Parameters
    ----------
    task, train
        Kind of task, and its training rows.
    wanted
        True, False, or ``auto``: where positions tell something of the labels.
    quiet
        Show no progress.
    """
    windows = min(_MOST_WINDOWS, int(np.median(train.lengths)))
    if not wanted or windows < 2:
        return 0, None
    if wanted is True:
        return windows, None
    found = _positions(_Rows(task, train), windows, quiet)
    return (windows if found is not None and found.matters else 0), found


@lru_cache(maxsize=256)
def _strands(rows: _Rows, windows: int, quiet: bool) -> Evidence | None:
    with threadpool_limits(torch.get_num_threads(), "blas"):
        return strand_evidence(*rows.give(), windows, quiet=quiet)


@lru_cache(maxsize=256)
def _positions(rows: _Rows, windows: int, quiet: bool) -> Evidence | None:
    with threadpool_limits(torch.get_num_threads(), "blas"):
        return position_evidence(*rows.give(), windows, quiet=quiet)
