"""What the training rows say of strand and position, and what a recipe makes of it; the same for every seed."""

import numpy as np
from numpy.typing import NDArray

from had.baselines.evidence import Evidence, position_evidence, strand_evidence
from had.dna.alphabet import decode
from had.training.finetuning_batches import Part

_MOST_WINDOWS = 512


def strands_of(task: str, train: Part, windows: int) -> Evidence | None:
    """Whether the strand on which rows are given tells something of their labels; ``windows`` are the head's."""
    return strand_evidence([decode(row) for row in train.codes], _targets(task, train), windows)


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
    found = position_evidence([decode(row) for row in train.codes], _targets(task, train), windows)
    return (windows if found is not None and found.matters else 0), found


def _targets(task: str, train: Part) -> NDArray:
    if task in ("binary", "multiclass"):
        return train.targets[:, None] == np.unique(train.targets)[None]
    return train.targets.reshape(len(train), -1)
