"""What the training rows say of strand and position, and what a recipe makes of it; the same for every seed."""

import hashlib
from functools import lru_cache

import numpy as np

from had.baselines.evidence import Evidence, position_evidence, strand_evidence
from had.dna.alphabet import decode
from had.training.finetuning_batches import Part

_MOST_WINDOWS = 512


class _Rows:
    """Sequences and targets, equal where their contents are: several seeds of one task ask only once."""

    def __init__(self, task: str, train: Part) -> None:
        self.codes = train.codes
        self.targets = train.targets.reshape(len(train), -1)
        if task in ("binary", "multiclass"):
            self.targets = self.targets == np.unique(train.targets)[None]
        digest = hashlib.blake2b(np.ascontiguousarray(self.targets).tobytes())
        for row in train.codes:
            digest.update(len(row).to_bytes(8, "little") + row.tobytes())
        self._digest = digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rows) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def sequences(self) -> list[str]:
        return [decode(row) for row in self.codes]


def strands_of(task: str, train: Part, windows: int) -> Evidence | None:
    """Whether the strand on which rows are given tells something of their labels; ``windows`` are the head's."""
    return _strands(_Rows(task, train), windows)


def windows_of(task: str, train: Part, wanted: bool | str) -> tuple[int, Evidence | None]:
    """Windows of the head, 0 for the mean over the letters alone, and what decided it.

    One window a letter of the median row, 512 at most.

    Parameters
    ----------
    task, train
        Kind of task, and its training rows.
    wanted
        True, False, or ``auto``: where positions tell something of the labels.
    """
    windows = min(_MOST_WINDOWS, int(np.median(train.lengths)))
    if not wanted or windows < 2:
        return 0, None
    if wanted is True:
        return windows, None
    found = _positions(_Rows(task, train), windows)
    return (windows if found is not None and found.matters else 0), found


@lru_cache(maxsize=1)
def _strands(rows: _Rows, windows: int) -> Evidence | None:
    return strand_evidence(rows.sequences(), rows.targets, windows)


@lru_cache(maxsize=1)
def _positions(rows: _Rows, windows: int) -> Evidence | None:
    return position_evidence(rows.sequences(), rows.targets, windows)
