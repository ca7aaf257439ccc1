"""Compiled loops of the CPU backend: the recurrence forward and backward for one (sequence, head) at a time.

The state S (K x V, 8 KiB at K 32, V 64) stays in the first-level cache while the sequence runs past it. With
S' = α S_{t-1}, per token

    e = v - S'ᵀ k,   δ = β e,   S_t = S' + k δᵀ,   o = S_tᵀ q = α S_{t-1}ᵀ q + (q·k) δ

so that one pass over S_{t-1} reads it with k and q together and a second one writes S_t. Backward, with D the gradient
that reaches S_t from later tokens and R = D + q ∂oᵀ,

    ∂δ = Rᵀ k,   ∂v = β ∂δ,   ∂β = ∂δ·e,   ∂q = S_t ∂o,   ∂k = R δ - S' ∂v,   D' = R - k ∂vᵀ,   ∂g = <D', S'>

and α D' is handed to the token before. Nothing is divided by α or β, and α = exp(g) is the only exponential.
The forward pass keeps e and every ``BLOCK``-th state; the backward pass rebuilds the states of one block at a time.

K is a multiple of 8 and V of 32 (the caller pads with zeros, which changes no other number). Inputs are flat arrays
with strides, in elements, of batch, token and head; their rows of K or V elements are contiguous. Outputs are
contiguous (B, L, H, ·) tensors, flattened. No output is read before it is written.
"""

import math

import numpy as np
from numba import njit

from had.ops.arguments import EPSILON
from had.ops.lanes import (
    add,
    fma,
    fold,
    load,
    load16,
    load32,
    mul,
    prefetch,
    splat,
    splat16,
    splat32,
    spread16,
    spread32,
    store,
    total,
    totals,
)

KERNELS = ("forward", "backward")
BLOCK = 32
"""Tokens between two kept states."""
LINE = 16
"""Elements of float32 in a cache line; for float64 every other prefetch is missed, which costs time only."""


@njit(nogil=True, error_model="numpy")
def _dot(a, i, b, j, length):
    products = splat(a.dtype.type(0))
    for r in range(0, length, 8):
        products = fma(load(a, i + r), load(b, j + r), products)
    return total(products)


@njit(nogil=True, error_model="numpy")
def _read_rows(source, start, stride, n, K, normalise, scale, rows, factors):
    """Write n rows, times ``scale`` and over their norm where asked for, to ``rows``; ``factors`` gets 1 / norm.

    The rows of a block are read together because one row's norm is a chain of dependent instructions that only the
    other rows can hide.
    """
    real = source.dtype.type
    for j in range(n):
        factors[j] = real(1)
        if normalise:
            at = start + j * stride
            factors[j] = real(1) / math.sqrt(_dot(source, at, source, at, K) + real(EPSILON))
    for j in range(n):
        both = splat(factors[j] * scale)
        for r in range(0, K, 8):
            store(rows, j * K + r, mul(load(source, start + j * stride + r), both))


@njit(nogil=True, error_model="numpy")
def _write_row_gradients(gradients, rows, factors, source, start, stride, n, K, normalise, scale, target, out, step):
    """Turn the gradients of the rows that ``_read_rows`` made into those of their source.

    With x the source row and y = x · factor · scale: ∂x = factor · scale · ∂y - factor² (y·∂y) x.
    """
    real = source.dtype.type
    for j in range(n):
        across = splat(factors[j] * scale)
        along = splat(real(0))
        if normalise:
            along = splat(-factors[j] * factors[j] * _dot(gradients, j * K, rows, j * K, K))
        for r in range(0, K, 8):
            x = load(source, start + j * stride + r)
            store(target, out + j * step + r, fma(x, along, mul(load(gradients, j * K + r), across)))


@njit(nogil=True, error_model="numpy")
def _read_scalars(unit, first, n, sizes, strides, g, beta, decays, writes):
    """α and β of n tokens from ``first``."""
    b, h = unit // sizes[1], unit % sizes[1]
    for j in range(n):
        decays[j] = math.exp(g[b * strides[3, 0] + (first + j) * strides[3, 1] + h * strides[3, 2]])
        writes[j] = beta[b * strides[4, 0] + (first + j) * strides[4, 1] + h * strides[4, 2]]


@njit(nogil=True, error_model="numpy")
def _copy(source, start, target, out, length):
    for r in range(0, length, 8):
        store(target, out + r, load(source, start + r))


@njit(nogil=True, error_model="numpy")
def _prefetch_row(array, start, length):
    for r in range(0, length, LINE):
        prefetch(array, start + r)


@njit(nogil=True, error_model="numpy")
def forward(first_unit, last_unit, sizes, strides, scale, normalise, q, k, v, g, beta, start, o, end, errors, kept):
    """Run the (sequence, head) pairs from ``first_unit`` up to ``last_unit`` forward.

    ``start`` is a contiguous (B, H, K, V) initial state, ``end`` receives the final one. ``errors`` (B, L, H, V) and
    ``kept`` (B·H, blocks, K, V) receive what the backward pass needs; where ``kept`` is empty nothing is kept, and
    ``errors`` is a scratch of shape (B, H, V).
    """
    L, H, K, V = sizes
    real = q.dtype.type
    keep = kept.size > 0
    blocks = (L + BLOCK - 1) // BLOCK
    k_rows, q_rows = np.empty(BLOCK * K, q.dtype), np.empty(BLOCK * K, q.dtype)
    decays, writes, factors = np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype)
    products, state = np.empty(BLOCK, q.dtype), np.empty(K * V, q.dtype)
    for unit in range(first_unit, last_unit):
        b, h = unit // H, unit % H
        _copy(start, unit * K * V, state, 0, K * V)
        for first in range(0, L, BLOCK):
            n = min(BLOCK, L - first)
            if keep:
                _copy(state, 0, kept, (unit * blocks + first // BLOCK) * K * V, K * V)
            q_at = b * strides[0, 0] + first * strides[0, 1] + h * strides[0, 2]
            k_at = b * strides[1, 0] + first * strides[1, 1] + h * strides[1, 2]
            v_at = b * strides[2, 0] + first * strides[2, 1] + h * strides[2, 2]
            _read_rows(q, q_at, strides[0, 1], n, K, normalise, scale, q_rows, factors)
            _read_rows(k, k_at, strides[1, 1], n, K, normalise, real(1), k_rows, factors)
            _read_scalars(unit, first, n, sizes, strides, g, beta, decays, writes)
            for j in range(n):
                products[j] = _dot(q_rows, j * K, k_rows, j * K, K)
            for j in range(n):
                alpha, strength, qk = splat32(decays[j]), splat32(writes[j]), splat32(products[j])
                out = ((b * L + first + j) * H + h) * V
                error_at = out if keep else unit * V
                _prefetch_row(q, q_at + (BLOCK + j) * strides[0, 1], K)
                _prefetch_row(k, k_at + (BLOCK + j) * strides[1, 1], K)
                _prefetch_row(v, v_at + (BLOCK + j) * strides[2, 1], V)
                _prefetch_row(o, out + BLOCK * H * V, V)
                _prefetch_row(errors, error_at + BLOCK * H * V, V)
                for c in range(0, V, 32):
                    read_k, read_q = splat32(real(0)), splat32(real(0))
                    for r in range(K):
                        s = load32(state, r * V + c)
                        read_k = fma(spread32(k_rows, j * K + r), s, read_k)
                        read_q = fma(spread32(q_rows, j * K + r), s, read_q)
                    error = fma(splat32(-decays[j]), read_k, load32(v, v_at + j * strides[2, 1] + c))
                    store(errors, error_at + c, error)
                    delta = mul(strength, error)
                    store(o, out + c, fma(qk, delta, mul(alpha, read_q)))
                    for r in range(K):
                        s = load32(state, r * V + c)
                        store(state, r * V + c, fma(spread32(k_rows, j * K + r), delta, mul(alpha, s)))
        _copy(state, 0, end, unit * K * V, K * V)


@njit(nogil=True, error_model="numpy")
def backward(
    first_unit, last_unit, sizes, strides, scale, normalise,
    q, k, g, beta, errors, kept, do, d_end, dq, dk, dv, dg, dbeta, d_start,
):  # fmt: skip
    """Gradients for (sequence, head) pairs from those of the output, ``do``, and of the final state, ``d_end``."""
    L, H, K, V = sizes
    real = q.dtype.type
    size = K * V
    blocks = (L + BLOCK - 1) // BLOCK
    k_rows, q_rows = np.empty(BLOCK * K, q.dtype), np.empty(BLOCK * K, q.dtype)
    dk_rows, dq_rows = np.empty(BLOCK * K, q.dtype), np.empty(BLOCK * K, q.dtype)
    k_factors, q_factors = np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype)
    decays, writes, products = np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype)
    deltas, carried = np.empty(BLOCK * V, q.dtype), np.empty(V, q.dtype)
    partial = np.empty(K * 8, q.dtype)
    states, d_state = np.empty((BLOCK + 1) * size, q.dtype), np.empty(size, q.dtype)
    for unit in range(first_unit, last_unit):
        b, h = unit // H, unit % H
        _copy(d_end, unit * size, d_state, 0, size)
        for block in range(blocks - 1, -1, -1):
            first = block * BLOCK
            n = min(BLOCK, L - first)
            q_at = b * strides[0, 0] + first * strides[0, 1] + h * strides[0, 2]
            k_at = b * strides[1, 0] + first * strides[1, 1] + h * strides[1, 2]
            _read_rows(q, q_at, strides[0, 1], n, K, normalise, scale, q_rows, q_factors)
            _read_rows(k, k_at, strides[1, 1], n, K, normalise, real(1), k_rows, k_factors)
            _read_scalars(unit, first, n, sizes, strides, g, beta, decays, writes)
            _copy(kept, (unit * blocks + block) * size, states, 0, size)

            # Forward through the block again, keeping each state, which gives ∂q on the way.
            for j in range(n):
                products[j] = _dot(q_rows, j * K, k_rows, j * K, K)
                alpha, strength = splat32(decays[j]), splat32(writes[j])
                out = ((b * L + first + j) * H + h) * V
                _prefetch_row(q, q_at + (j - BLOCK) * strides[0, 1], K)
                _prefetch_row(k, k_at + (j - BLOCK) * strides[1, 1], K)
                _prefetch_row(errors, out - BLOCK * H * V, V)
                _prefetch_row(do, out - BLOCK * H * V, V)
                _prefetch_row(dv, out - BLOCK * H * V, V)
                _prefetch_row(kept, (unit * blocks + block - 1) * size + j * (size // BLOCK), size // BLOCK)
                for r in range(0, K * 8, 8):
                    store(partial, r, splat(real(0)))
                for c in range(0, V, 32):
                    delta, upstream = mul(strength, load32(errors, out + c)), load32(do, out + c)
                    store(deltas, j * V + c, delta)
                    for r in range(K):
                        at = j * size + r * V + c
                        s = fma(spread32(k_rows, j * K + r), delta, mul(alpha, load32(states, at)))
                        store(states, at + size, s)
                        store(partial, r * 8, add(load(partial, r * 8), fold(mul(s, upstream))))
                for r in range(0, K, 8):
                    store(dq_rows, j * K + r, totals(partial, r * 8))

            for j in range(n - 1, -1, -1):
                out = ((b * L + first + j) * H + h) * V
                d_write = splat32(real(0))
                for c in range(0, V, 32):
                    # Two sums, of the even and the odd rows, so that eight registers are in flight.
                    even = mul(splat32(products[j]), load32(do, out + c))
                    odd = splat32(real(0))
                    for r in range(0, K, 2):
                        even = fma(spread32(k_rows, j * K + r), load32(d_state, r * V + c), even)
                        odd = fma(spread32(k_rows, j * K + r + 1), load32(d_state, r * V + V + c), odd)
                    d_delta = add(even, odd)
                    d_write = fma(d_delta, load32(errors, out + c), d_write)
                    d_value = mul(splat32(writes[j]), d_delta)
                    store(dv, out + c, d_value)
                    # -α ∂v: all that the pass below needs of ∂v.
                    store(carried, c, mul(splat32(-decays[j]), d_value))
                dbeta[(b * L + first + j) * H + h] = total(d_write)

                alpha, d_decay = splat16(decays[j]), splat16(real(0))
                for r in range(0, K * 8, 8):
                    store(partial, r, splat(real(0)))
                for c in range(0, V, 16):
                    upstream, back, delta = load16(do, out + c), load16(carried, c), load16(deltas, j * V + c)
                    for r in range(K):
                        s = load16(states, j * size + r * V + c)
                        d = fma(spread16(q_rows, j * K + r), upstream, load16(d_state, r * V + c))
                        row = fold(fma(s, back, mul(d, delta)))
                        store(partial, r * 8, add(load(partial, r * 8), row))
                        d = fma(spread16(k_rows, j * K + r), back, mul(alpha, d))
                        d_decay = fma(d, s, d_decay)
                        store(d_state, r * V + c, d)
                for r in range(0, K, 8):
                    store(dk_rows, j * K + r, totals(partial, r * 8))
                dg[(b * L + first + j) * H + h] = total(d_decay)

            out, step = ((b * L + first) * H + h) * K, H * K
            _write_row_gradients(
                dq_rows, q_rows, q_factors, q, q_at, strides[0, 1], n, K, normalise, scale, dq, out, step
            )
            _write_row_gradients(
                dk_rows, k_rows, k_factors, k, k_at, strides[1, 1], n, K, normalise, real(1), dk, out, step
            )
        _copy(d_state, 0, d_start, unit * size, size)
