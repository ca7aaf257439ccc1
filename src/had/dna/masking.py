"""Group masks on the teacher's 6-mer grid, drawn statelessly in batches (HAD.md §3).

A mask row is a pure function of (seed, window index); every row of a batch hides the same number of groups.
"""

import math

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import GROUP
from had.dna.hashing import keyed_hash

MASK_FRACTION = 0.15
_GROUP_STREAM, _NUCLEOTIDE_STREAM = 0x6D61736B, 0x6D61736C


def n_hidden(n_groups: int, fraction: float = MASK_FRACTION) -> int:
    """Count the hidden groups of a window of ``n_groups``: max(1, ⌊fraction·T + 0.5⌋), at most T.

    Raises
    ------
    ValueError
        If there is no group, or ``fraction`` is outside (0, 1].
    """
    if n_groups < 1:
        raise ValueError("a window has at least one group of six letters; got none")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"the mask fraction lies in (0, 1]; got {fraction}")
    return min(n_groups, max(1, math.floor(fraction * n_groups + 0.5)))


def _choose(seed: int, stream: int, indices: NDArray[np.integer], n: int, k: int) -> NDArray[np.bool_]:
    """Rows (len(indices), n) with exactly k True each: the places of the k smallest hashes."""
    rows = np.atleast_1d(np.asarray(indices))
    if k == n:
        return np.ones((rows.size, n), dtype=bool)
    hashes = keyed_hash(seed, stream, rows[:, None], np.arange(n))
    chosen = np.argpartition(hashes, k - 1, axis=1)[:, :k]
    mask = np.zeros((rows.size, n), dtype=bool)
    np.put_along_axis(mask, chosen, True, axis=1)
    return mask


def group_masks(
    seed: int, indices: NDArray[np.integer], n_groups: int, fraction: float = MASK_FRACTION
) -> NDArray[np.bool_]:
    """Masks over 6-mer groups: exactly ``n_hidden(n_groups, fraction)`` per row, without replacement.

    Parameters
    ----------
    seed
        Seed of the run.
    indices
        Window indices (n,), counted over the whole run and all processes.
    n_groups
        Groups of six letters per window, T.
    fraction
        Part of the groups to hide.

    Returns
    -------
    bool (n, T), True = hidden.
    """
    return _choose(seed, _GROUP_STREAM, indices, n_groups, n_hidden(n_groups, fraction))


def nucleotide_masks(
    seed: int, indices: NDArray[np.integer], length: int, fraction: float = MASK_FRACTION
) -> NDArray[np.bool_]:
    """Masks over single letters (the ablation): as many letters per row as `group_masks` hides.

    Parameters
    ----------
    seed, indices, fraction
        As for `group_masks`.
    length
        Letters per window, L, a multiple of 6.

    Returns
    -------
    bool (n, L), True = hidden.

    Raises
    ------
    ValueError
        If ``length`` is not a multiple of 6.
    """
    if length % GROUP:
        raise ValueError(f"the window length must be a multiple of {GROUP}; got {length}")
    return _choose(seed, _NUCLEOTIDE_STREAM, indices, length, GROUP * n_hidden(length // GROUP, fraction))


def expand(groups: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks over letters (n, 6·T) of masks over groups (n, T)."""
    return np.repeat(groups, GROUP, axis=-1)
