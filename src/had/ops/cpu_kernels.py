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
from had.ops.lanes import add, fma, load, mul, prefetch, splat, store, total, totals

TILE = 32
"""Columns of the state handled together: four vectors, so that eight sums are in flight."""
BLOCK = 32
"""Tokens between two kept states."""


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
def _copy(source, start, target, out, length):
    for r in range(0, length, 8):
        store(target, out + r, load(source, start + r))


@njit(nogil=True, error_model="numpy")
def _read_scalars(unit, first, n, sizes, strides, g, beta, decays, writes):
    """α and β of n tokens from ``first``."""
    b, h = unit // sizes[1], unit % sizes[1]
    for j in range(n):
        decays[j] = math.exp(g[b * strides[3, 0] + (first + j) * strides[3, 1] + h * strides[3, 2]])
        writes[j] = beta[b * strides[4, 0] + (first + j) * strides[4, 1] + h * strides[4, 2]]


@njit(nogil=True, error_model="numpy")
def forward_head(unit, sizes, strides, scale, normalise, q, k, v, g, beta, start, o, end, errors, kept):
    """Run one (sequence, head) forward.

    ``start`` is a contiguous (B, H, K, V) initial state, ``end`` receives the final one. ``errors`` (B, L, H, V) and
    ``kept`` (B·H, blocks, K, V) receive what the backward pass needs; where ``kept`` is empty nothing is kept, and ``errors`` is a (B, H, V) scratch.
    """
    L, H, K, V = sizes
    b, h = unit // H, unit % H
    real = q.dtype.type
    # A factor rather than a branch, of which the compiler would make two copies of all loops.
    keep = 1 if kept.size > 0 else 0
    blocks = (L + BLOCK - 1) // BLOCK
    zero = splat(real(0))
    k_rows, q_rows = np.empty(BLOCK * K, q.dtype), np.empty(BLOCK * K, q.dtype)
    decays, writes, factors = np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype)
    products = np.empty(BLOCK, q.dtype)
    state = np.empty(K * V, q.dtype)
    _copy(start, unit * K * V, state, 0, K * V)
    for first in range(0, L, BLOCK):
        n = min(BLOCK, L - first)
        if keep == 1:
            _copy(state, 0, kept, (unit * blocks + first // BLOCK) * K * V, K * V)
        q_at = b * strides[0, 0] + first * strides[0, 1] + h * strides[0, 2]
        k_at = b * strides[1, 0] + first * strides[1, 1] + h * strides[1, 2]
        _read_rows(q, q_at, strides[0, 1], n, K, normalise, scale, q_rows, factors)
        _read_rows(k, k_at, strides[1, 1], n, K, normalise, real(1), k_rows, factors)
        _read_scalars(unit, first, n, sizes, strides, g, beta, decays, writes)
        for j in range(n):
            products[j] = _dot(q_rows, j * K, k_rows, j * K, K)
        for j in range(n):
            alpha, minus_alpha, strength = splat(decays[j]), splat(-decays[j]), splat(writes[j])
            qk = splat(products[j])
            v_at = b * strides[2, 0] + (first + j) * strides[2, 1] + h * strides[2, 2]
            out = ((b * L + first + j) * H + h) * V
            error_at = out if keep == 1 else unit * V
            for c in range(0, V, 16):
                prefetch(v, v_at + BLOCK * strides[2, 1] + c)
                prefetch(o, out + BLOCK * H * V + c)
                prefetch(errors, error_at + BLOCK * H * V * keep + c)
            for r in range(0, K, 16):
                prefetch(q, q_at + (BLOCK + j) * strides[0, 1] + r)
                prefetch(k, k_at + (BLOCK + j) * strides[1, 1] + r)
            for c in range(0, V, TILE):
                k0, k1, k2, k3 = zero, zero, zero, zero
                q0, q1, q2, q3 = zero, zero, zero, zero
                for r in range(K):
                    at = r * V + c
                    s0, s1, s2, s3 = load(state, at), load(state, at + 8), load(state, at + 16), load(state, at + 24)
                    kr, qr = splat(k_rows[j * K + r]), splat(q_rows[j * K + r])
                    k0, k1, k2, k3 = fma(kr, s0, k0), fma(kr, s1, k1), fma(kr, s2, k2), fma(kr, s3, k3)
                    q0, q1, q2, q3 = fma(qr, s0, q0), fma(qr, s1, q1), fma(qr, s2, q2), fma(qr, s3, q3)
                k0, k1 = fma(minus_alpha, k0, load(v, v_at + c)), fma(minus_alpha, k1, load(v, v_at + c + 8))
                k2, k3 = fma(minus_alpha, k2, load(v, v_at + c + 16)), fma(minus_alpha, k3, load(v, v_at + c + 24))
                store(errors, error_at + c, k0)
                store(errors, error_at + c + 8, k1)
                store(errors, error_at + c + 16, k2)
                store(errors, error_at + c + 24, k3)
                k0, k1, k2, k3 = mul(strength, k0), mul(strength, k1), mul(strength, k2), mul(strength, k3)
                store(o, out + c, fma(qk, k0, mul(alpha, q0)))
                store(o, out + c + 8, fma(qk, k1, mul(alpha, q1)))
                store(o, out + c + 16, fma(qk, k2, mul(alpha, q2)))
                store(o, out + c + 24, fma(qk, k3, mul(alpha, q3)))
                for r in range(K):
                    at = r * V + c
                    kr = splat(k_rows[j * K + r])
                    store(state, at, fma(kr, k0, mul(alpha, load(state, at))))
                    store(state, at + 8, fma(kr, k1, mul(alpha, load(state, at + 8))))
                    store(state, at + 16, fma(kr, k2, mul(alpha, load(state, at + 16))))
                    store(state, at + 24, fma(kr, k3, mul(alpha, load(state, at + 24))))
    _copy(state, 0, end, unit * K * V, K * V)


@njit(nogil=True, error_model="numpy")
def backward_head(
    unit, sizes, strides, scale, normalise, q, k, g, beta, errors, kept, do, d_end, dq, dk, dv, dg, dbeta, d_start
):
    """Gradients for one (sequence, head) from those of the output, ``do``, and of the final state, ``d_end``."""
    L, H, K, V = sizes
    b, h = unit // H, unit % H
    real = q.dtype.type
    size = K * V
    blocks = (L + BLOCK - 1) // BLOCK
    zero = splat(real(0))
    k_rows, q_rows = np.empty(BLOCK * K, q.dtype), np.empty(BLOCK * K, q.dtype)
    dk_rows, dq_rows = np.empty(BLOCK * K, q.dtype), np.empty(BLOCK * K, q.dtype)
    k_factors, q_factors = np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype)
    decays, writes = np.empty(BLOCK, q.dtype), np.empty(BLOCK, q.dtype)
    deltas, carried = np.empty(BLOCK * V, q.dtype), np.empty(V, q.dtype)
    partial = np.empty(K * 8, q.dtype)
    states, d_state = np.empty((BLOCK + 1) * size, q.dtype), np.empty(size, q.dtype)
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

        for j in range(n):
            alpha, strength = splat(decays[j]), splat(writes[j])
            out = ((b * L + first + j) * H + h) * V
            for c in range(0, V, 8):
                store(deltas, j * V + c, mul(strength, load(errors, out + c)))
            for c in range(0, V, 16):
                prefetch(errors, out - BLOCK * H * V + c)
                prefetch(do, out - BLOCK * H * V + c)
                prefetch(dv, out - BLOCK * H * V + c)
            for r in range(0, K, 16):
                prefetch(q, q_at + (j - BLOCK) * strides[0, 1] + r)
                prefetch(k, k_at + (j - BLOCK) * strides[1, 1] + r)
            share = size // BLOCK
            for r in range(0, share, 16):
                prefetch(kept, (unit * blocks + block - 1) * size + j * share + r)
            for r in range(0, K * 8, 8):
                store(partial, r, zero)
            for c in range(0, V, TILE):
                d0, d1 = load(deltas, j * V + c), load(deltas, j * V + c + 8)
                d2, d3 = load(deltas, j * V + c + 16), load(deltas, j * V + c + 24)
                o0, o1, o2, o3 = (
                    load(do, out + c),
                    load(do, out + c + 8),
                    load(do, out + c + 16),
                    load(do, out + c + 24),
                )
                for r in range(K):
                    at = j * size + r * V + c
                    kr = splat(k_rows[j * K + r])
                    s0, s1 = fma(kr, d0, mul(alpha, load(states, at))), fma(kr, d1, mul(alpha, load(states, at + 8)))
                    s2, s3 = (
                        fma(kr, d2, mul(alpha, load(states, at + 16))),
                        fma(kr, d3, mul(alpha, load(states, at + 24))),
                    )
                    store(states, at + size, s0)
                    store(states, at + size + 8, s1)
                    store(states, at + size + 16, s2)
                    store(states, at + size + 24, s3)
                    a0 = fma(s1, o1, mul(s0, o0))
                    a1 = fma(s3, o3, mul(s2, o2))
                    store(partial, r * 8, add(add(a0, a1), load(partial, r * 8)))
            for r in range(0, K, 8):
                store(dq_rows, j * K + r, totals(partial, r * 8))

        for j in range(n - 1, -1, -1):
            alpha, strength = splat(decays[j]), splat(writes[j])
            minus_alpha = splat(-decays[j])
            qk = splat(_dot(q_rows, j * K, k_rows, j * K, K))
            out = ((b * L + first + j) * H + h) * V
            d_write = zero
            for c in range(0, V, TILE):
                d0, d1, d2, d3 = zero, zero, zero, zero
                e0, e1, e2, e3 = zero, zero, zero, zero
                for r in range(0, K, 2):
                    at = r * V + c
                    kr = splat(k_rows[j * K + r])
                    d0, d1 = fma(kr, load(d_state, at), d0), fma(kr, load(d_state, at + 8), d1)
                    d2, d3 = fma(kr, load(d_state, at + 16), d2), fma(kr, load(d_state, at + 24), d3)
                    kr, at = splat(k_rows[j * K + r + 1]), at + V
                    e0, e1 = fma(kr, load(d_state, at), e0), fma(kr, load(d_state, at + 8), e1)
                    e2, e3 = fma(kr, load(d_state, at + 16), e2), fma(kr, load(d_state, at + 24), e3)
                d0, d1, d2, d3 = add(d0, e0), add(d1, e1), add(d2, e2), add(d3, e3)
                d0, d1 = fma(qk, load(do, out + c), d0), fma(qk, load(do, out + c + 8), d1)
                d2, d3 = fma(qk, load(do, out + c + 16), d2), fma(qk, load(do, out + c + 24), d3)
                d_write = fma(d0, load(errors, out + c), d_write)
                d_write = fma(d1, load(errors, out + c + 8), d_write)
                d_write = fma(d2, load(errors, out + c + 16), d_write)
                d_write = fma(d3, load(errors, out + c + 24), d_write)
                d0, d1, d2, d3 = mul(strength, d0), mul(strength, d1), mul(strength, d2), mul(strength, d3)
                store(dv, out + c, d0)
                store(dv, out + c + 8, d1)
                store(dv, out + c + 16, d2)
                store(dv, out + c + 24, d3)
                store(carried, c, mul(minus_alpha, d0))
                store(carried, c + 8, mul(minus_alpha, d1))
                store(carried, c + 16, mul(minus_alpha, d2))
                store(carried, c + 24, mul(minus_alpha, d3))
            dbeta[(b * L + first + j) * H + h] = total(d_write)
            for r in range(0, K * 8, 8):
                store(partial, r, zero)
            g0, g1 = zero, zero
            for c in range(0, V, 16):
                o0, o1 = load(do, out + c), load(do, out + c + 8)
                w0, w1 = load(carried, c), load(carried, c + 8)
                u0, u1 = load(deltas, j * V + c), load(deltas, j * V + c + 8)
                for r in range(K):
                    at = r * V + c
                    kr, qr = splat(k_rows[j * K + r]), splat(q_rows[j * K + r])
                    s0, s1 = load(states, j * size + at), load(states, j * size + at + 8)
                    d0, d1 = fma(qr, o0, load(d_state, at)), fma(qr, o1, load(d_state, at + 8))
                    a0, a1 = fma(s0, w0, mul(d0, u0)), fma(s1, w1, mul(d1, u1))
                    store(partial, r * 8, add(add(a0, a1), load(partial, r * 8)))
                    d0, d1 = fma(kr, w0, mul(alpha, d0)), fma(kr, w1, mul(alpha, d1))
                    g0, g1 = fma(d0, s0, g0), fma(d1, s1, g1)
                    store(d_state, at, d0)
                    store(d_state, at + 8, d1)
            for r in range(0, K, 8):
                store(dk_rows, j * K + r, totals(partial, r * 8))
            dg[(b * L + first + j) * H + h] = total(add(g0, g1))

        out = ((b * L + first) * H + h) * K
        _write_row_gradients(dq_rows, q_rows, q_factors, q, q_at, strides[0, 1], n, K, normalise, scale, dq, out, H * K)
        _write_row_gradients(
            dk_rows, k_rows, k_factors, k, k_at, strides[1, 1], n, K, normalise, real(1), dk, out, H * K
        )
    _copy(d_state, 0, d_start, unit * size, size)


@njit(nogil=True, error_model="numpy")
def forward(first, last, sizes, strides, scale, normalise, q, k, v, g, beta, start, o, end, errors, kept):
    """Run the (sequence, head) pairs ``first`` to ``last`` forward."""
    for unit in range(first, last):
        forward_head(unit, sizes, strides, scale, normalise, q, k, v, g, beta, start, o, end, errors, kept)


@njit(nogil=True, error_model="numpy")
def backward(
    first,
    last,
    sizes,
    strides,
    scale,
    normalise,
    q,
    k,
    g,
    beta,
    errors,
    kept,
    do,
    d_end,
    dq,
    dk,
    dv,
    dg,
    dbeta,
    d_start,
):
    """Gradients for the (sequence, head) pairs ``first`` to ``last``."""
    for unit in range(first, last):
        backward_head(
            unit,
            sizes,
            strides,
            scale,
            normalise,
            q,
            k,
            g,
            beta,
            errors,
            kept,
            do,
            d_end,
            dq,
            dk,
            dv,
            dg,
            dbeta,
            d_start,
        )
