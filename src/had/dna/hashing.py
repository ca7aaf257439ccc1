"""Keyed, stateless random numbers: a 64-bit hash, uniform integers and a permutation, evaluated pointwise.

Every random choice of the training data (which window, which strand, which groups are hidden) is a pure
function of integers such as (seed, index). So resuming needs no sampler state, and any process can compute
any window. The hash chains the output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014); the
permutation is a Feistel network over the next power of two with cycle walking (Black, Rogaway, CT-RSA 2002).
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Key: TypeAlias = int | np.integer | NDArray[np.integer]
UInt64: TypeAlias = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_CHAIN = np.uint64(0xD1342543DE82EF95)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FEISTEL_ROUNDS = 8  # even, so that an unbalanced network ends with its halves in their own places


def _as_uint64(key: Key) -> UInt64:
    if isinstance(key, int):
        return np.array([key & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    return np.atleast_1d(np.asarray(key)).astype(np.uint64)


def _mix(x: UInt64) -> UInt64:
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIER_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIER_2
    return x ^ (x >> np.uint64(31))


def keyed_hash(*keys: Key) -> UInt64:
    """64-bit hash of a tuple of integers, for arrays of keys at once.

    Parameters
    ----------
    *keys
        Integers or integer arrays that broadcast against each other; their order matters. Python integers of
        any size are taken modulo 2^64.

    Returns
    -------
    uint64 array of the broadcast shape (at least one axis).
    """
    state = np.full(1, _GOLDEN)
    for key in keys:
        state = _mix((state * _CHAIN) ^ _mix(_as_uint64(key) + _GOLDEN))
    return state


def _multiply_high(a: UInt64, b: UInt64) -> UInt64:
    """Upper 64 bits of the 128-bit products of a and b."""
    a_low, a_high = a & _LOW_HALF, a >> _HALF
    b_low, b_high = b & _LOW_HALF, b >> _HALF
    middle = a_high * b_low + ((a_low * b_low) >> _HALF)
    middle_low = (middle & _LOW_HALF) + a_low * b_high
    return a_high * b_high + (middle >> _HALF) + (middle_low >> _HALF)


def uniform_below(bound: Key, *keys: Key) -> NDArray[np.int64]:
    """Integers drawn uniformly from 0 … bound - 1, a pure function of the keys.

    The hash is scaled by a 128-bit multiplication (Lemire 2019, without rejection): the bias is below bound /
    2^64.

    Parameters
    ----------
    bound
        Positive integer or array of them, < 2^63.
    *keys
        As for `keyed_hash`; broadcast against ``bound``.

    Returns
    -------
    int64 array of the broadcast shape.
    """
    return _multiply_high(keyed_hash(*keys), _as_uint64(bound)).astype(np.int64)


def bernoulli(probability: float, *keys: Key) -> NDArray[np.bool_]:
    """Draw True with the given probability, a pure function of the keys (broadcast shape, bool)."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"a probability lies in [0, 1]; got {probability}")
    if probability == 1.0:
        return np.ones(keyed_hash(*keys).shape, dtype=bool)
    return keyed_hash(*keys) < np.uint64(int(probability * 2.0**64))


def _feistel(values: UInt64, n_bits: int, key: UInt64) -> UInt64:
    """Keyed bijection of 0 … 2^n_bits - 1; its halves may differ by one bit in width and swap each round."""
    width_left, width_right = n_bits // 2, n_bits - n_bits // 2
    left = values >> np.uint64(width_right)
    right = values & np.uint64((1 << width_right) - 1)
    for i in range(_FEISTEL_ROUNDS):
        scrambled = left ^ (keyed_hash(key, i, right) & np.uint64((1 << width_left) - 1))
        left, right = right, scrambled
        width_left, width_right = width_right, width_left
    return (left << np.uint64(width_right)) | right


def permute(indices: NDArray[np.integer], n: int, *keys: Key) -> NDArray[np.int64]:
    """Images of ``indices`` under a keyed permutation of 0 … n - 1, without writing the permutation down.

    Parameters
    ----------
    indices
        Integers (m,) in 0 … n - 1.
    n
        Size of the permuted range.
    *keys
        As for `keyed_hash`; scalars or arrays (m,). Every distinct tuple of keys is another permutation.

    Returns
    -------
    int64 array (m,).

    Raises
    ------
    ValueError
        If an index is outside 0 … n - 1.
    """
    indices = np.atleast_1d(np.asarray(indices))
    if indices.size and (indices.min() < 0 or indices.max() >= n):
        raise ValueError(f"indices to permute lie in 0 … {n - 1}")
    values = indices.astype(np.uint64)
    key = np.broadcast_to(keyed_hash(*keys), values.shape)
    n_bits = (n - 1).bit_length() if n > 1 else 0
    # The images that fall outside the range walk on along their cycle; fewer than half of all points do.
    outside = np.arange(values.size)
    while outside.size and n_bits:
        values[outside] = _feistel(values[outside], n_bits, key[outside])
        outside = outside[values[outside] >= np.uint64(n)]
    return values.astype(np.int64)
