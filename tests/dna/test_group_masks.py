import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from had.dna.masking import expand, group_masks, n_hidden, nucleotide_masks


@given(st.integers(1, 3_000))
def test_number_of_hidden_groups_is_fifteen_percent_rounded_half_up(n_groups: int) -> None:
    assert n_hidden(n_groups) == max(1, math.floor(0.15 * n_groups + 0.5))


def test_default_window_hides_26_of_170_groups() -> None:
    assert n_hidden(170) == 26
    assert n_hidden(1) == 1


@pytest.mark.parametrize(("n_groups", "fraction"), [(0, 0.15), (10, 0.0), (10, 1.5)])
def test_senseless_masks_are_refused(n_groups: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="got"):
        n_hidden(n_groups, fraction)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 60), st.floats(0.01, 1.0), st.integers(0, 10**12))
def test_every_row_hides_the_same_number(seed: int, n_groups: int, fraction: float, first: int) -> None:
    masks = group_masks(seed, np.arange(first, first + 5), n_groups, fraction)
    assert masks.shape == (5, n_groups)
    assert masks.dtype == bool
    assert (masks.sum(axis=1) == n_hidden(n_groups, fraction)).all()


def test_a_row_depends_on_seed_and_index_only() -> None:
    together = group_masks(3, np.arange(100), 170)
    alone = np.concatenate([group_masks(3, np.array([i]), 170) for i in range(100)])
    assert (together == alone).all()
    assert (together != group_masks(4, np.arange(100), 170)).any()
    assert len(np.unique(together, axis=0)) == 100


def test_masks_are_the_same_on_every_machine_and_release() -> None:
    # Other values would change what every recorded run has hidden.
    assert np.flatnonzero(group_masks(7, np.array([5]), 40)).tolist() == [4, 5, 8, 9, 30, 33]
    letters = np.flatnonzero(nucleotide_masks(7, np.array([5]), 60))
    assert letters.tolist() == [10, 11, 13, 15, 18, 20, 22, 27, 32, 35, 39, 51]


def test_all_groups_are_hidden_equally_often() -> None:
    counts = group_masks(0, np.arange(4_000), 20).sum(axis=0)
    assert counts.sum() == 12_000
    # Each count is hypergeometric: mean 600, standard deviation 22.6.
    assert np.abs(counts - 600).max() < 100


def test_letters_of_a_hidden_group_are_hidden() -> None:
    groups = group_masks(1, np.arange(8), 11)
    letters = expand(groups)
    assert letters.shape == (8, 66)
    assert all(letters[i, j] == groups[i, j // 6] for i in range(8) for j in range(66))


def test_nucleotide_masks_hide_as_many_letters_as_group_masks() -> None:
    letters = nucleotide_masks(1, np.arange(50), 120)
    assert (letters.sum(axis=1) == expand(group_masks(1, np.arange(50), 20)).sum(axis=1)).all()
    whole_groups = letters.reshape(50, 20, 6).all(axis=2)
    assert whole_groups.sum() < 10


def test_nucleotide_masks_need_whole_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 6"):
        nucleotide_masks(0, np.arange(2), 100)
