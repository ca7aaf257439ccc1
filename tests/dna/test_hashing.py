import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from had.dna.hashing import _multiply_high, bernoulli, keyed_hash, permute, uniform_below

MASK64 = (1 << 64) - 1
uint64 = st.integers(0, MASK64)


def slow_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def slow_hash(*keys: int) -> int:
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = slow_mix(((state * 0xD1342543DE82EF95) & MASK64) ^ slow_mix((key + 0x9E3779B97F4A7C15) & MASK64))
    return state


@given(st.lists(uint64, min_size=1, max_size=4))
def test_hash_equals_the_same_arithmetic_on_python_integers(keys: list[int]) -> None:
    assert int(keyed_hash(*keys)[0]) == slow_hash(*keys)


def test_hash_is_the_same_on_every_machine_and_release() -> None:
    # Another value would change which windows every recorded run has seen.
    assert int(keyed_hash(0)[0]) == 1369548648337720181


@given(st.integers(-(2**63), 2**63 - 1))
def test_arrays_and_python_integers_hash_alike(key: int) -> None:
    assert keyed_hash(key) == keyed_hash(np.array([key]))


def test_hash_depends_on_the_order_of_keys_and_on_every_key() -> None:
    hashes = {int(keyed_hash(*keys)[0]) for keys in [(1, 2), (2, 1), (1, 2, 0), (1,), (2,), (0, 1, 2)]}
    assert len(hashes) == 6


@given(uint64, uint64)
def test_multiply_high_is_exact(a: int, b: int) -> None:
    high = _multiply_high(np.array([a], dtype=np.uint64), np.array([b], dtype=np.uint64))
    assert int(high[0]) == (a * b) >> 64


@given(st.integers(1, 2**63 - 1), uint64)
def test_uniform_draws_lie_below_their_bound(bound: int, key: int) -> None:
    drawn = int(uniform_below(bound, key)[0])
    assert 0 <= drawn < bound
    assert drawn == (slow_hash(key) * bound) >> 64


def test_uniform_draws_are_even() -> None:
    counts = np.bincount(uniform_below(7, 3, np.arange(70_000)), minlength=7)
    chi_squared = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_squared < 30  # 6 degrees of freedom: beyond 30 once in 25,000 seeds


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_bernoulli_has_its_probability(probability: float) -> None:
    assert abs(bernoulli(probability, 1, np.arange(40_000)).mean() - probability) < 0.01


def test_bernoulli_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        bernoulli(1.5, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), uint64)
def test_permutation_reaches_every_place_once(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


def test_permutation_of_a_big_range_has_no_repeats() -> None:
    images = permute(np.arange(80_183), 80_183, 5, 1)
    assert np.unique(images).size == 80_183
    assert abs(np.corrcoef(images, np.arange(80_183))[0, 1]) < 0.02


def test_permutation_may_have_a_key_per_index() -> None:
    keys = np.repeat([4, 9], 50)
    both = permute(np.tile(np.arange(50), 2), 50, keys)
    assert (both[:50] == permute(np.arange(50), 50, 4)).all()
    assert (both[50:] == permute(np.arange(50), 50, 9)).all()
    assert (both[:50] != both[50:]).any()


def test_permutation_spreads_each_index_over_all_places() -> None:
    images = permute(np.zeros(9_000, dtype=np.int64), 9, np.arange(9_000))
    counts = np.bincount(images, minlength=9)
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 35  # 8 degrees of freedom


def test_permutation_refuses_indices_outside_its_range() -> None:
    with pytest.raises(ValueError, match="0 … 4"):
        permute(np.array([5]), 5, 0)
