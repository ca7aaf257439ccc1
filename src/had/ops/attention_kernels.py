"""Compiled softmax attention within a band: each letter sees those at most ``window`` letters away.

Time and memory are linear in the length. A strip of ``STRIP`` queries, one a lane, goes past its keys: scores and
probabilities are (keys, STRIP) arrays, so that maxima and sums over keys are those of whole vectors. The backward pass
computes the probabilities again from the logarithm of each letter's sum.

``qkv`` is (B, L, 3, H, D), the gradient of it likewise; outputs are (B, L, H, D) and, of the logarithms, (B, H, L). D
is a multiple of 16. Arrays are flat float32 arrays. No output is read before it is written.
"""

import math

import numpy as np
from numba import njit

from had.ops.lanes import add, exp, fma, load16, maximum, mul, splat16, spread16, store, sub

KERNELS = ("attention_forward", "attention_backward")
STRIP = 16
"""Queries side by side."""
GROUP = 64
"""Queries that share one copy of their values, or in the backward pass of their keys."""
BLOCK = 64
"""Keys whose probabilities stay in the first-level cache until they are used."""
HIDDEN = -1e30
"""Added to the score of a key that is too far away."""


@njit(nogil=True, error_model="numpy")
def _gather(qkv, start, stride, n, D, rows):
    """Copy n rows of D, and fill up to a multiple of four with rows of 0."""
    for j in range(n):
        for d in range(0, D, 16):
            store(rows, j * D + d, load16(qkv, start + j * stride + d))
    for d in range(n * D, (n + 3) // 4 * 4 * D, 16):
        store(rows, d, splat16(qkv.dtype.type(0)))


@njit(nogil=True, error_model="numpy")
def _turn(source, start, stride, n, D, factor, turned):
    """Write n rows of D times ``factor`` as (D, STRIP), with 0 beyond n."""
    for d in range(D):
        store(turned, d * STRIP, splat16(source.dtype.type(0)))
    for i in range(n):
        for d in range(D):
            turned[d * STRIP + i] = source[start + i * stride + d] * factor


@njit(nogil=True, error_model="numpy")
def _four_rows(qkv, start, stride, j, n, D, turned, out):
    """Products of four rows, from row j of n, with the strip: (4, STRIP), written to ``out``; row n - 1 may repeat."""
    zero = splat16(qkv.dtype.type(0))
    a, b, c, d = zero, zero, zero, zero
    first, second = start + j * stride, start + min(j + 1, n - 1) * stride
    third, fourth = start + min(j + 2, n - 1) * stride, start + min(j + 3, n - 1) * stride
    for x in range(D):
        query = load16(turned, x * STRIP)
        a = fma(spread16(qkv, first + x), query, a)
        b = fma(spread16(qkv, second + x), query, b)
        c = fma(spread16(qkv, third + x), query, c)
        d = fma(spread16(qkv, fourth + x), query, d)
    store(out, j * STRIP, a)
    store(out, (j + 1) * STRIP, b)
    store(out, (j + 2) * STRIP, c)
    store(out, (j + 3) * STRIP, d)


@njit(nogil=True, error_model="numpy")
def _add_columns(rows, first, last, D, weights, sums):
    """Add rows ``first`` to ``last``, times their weights (rows, STRIP), to ``sums`` (D, STRIP)."""
    for x in range(0, D, 4):
        at = x * STRIP
        a, b = load16(sums, at), load16(sums, at + STRIP)
        c, d = load16(sums, at + 2 * STRIP), load16(sums, at + 3 * STRIP)
        for j in range(first, last):
            weight, value = load16(weights, j * STRIP), j * D + x
            a = fma(spread16(rows, value), weight, a)
            b = fma(spread16(rows, value + 1), weight, b)
            c = fma(spread16(rows, value + 2), weight, c)
            d = fma(spread16(rows, value + 3), weight, d)
        store(sums, at, a)
        store(sums, at + STRIP, b)
        store(sums, at + 2 * STRIP, c)
        store(sums, at + 3 * STRIP, d)


@njit(nogil=True, error_model="numpy")
def _add_outer(weights, first, n, source, D, target, start, stride):
    """Add ``weights · source`` of a strip to n rows of the target: (n, STRIP) times (STRIP, D)."""
    for j in range(0, n, 4):
        row = (first + j) * STRIP
        for x in range(0, D, 16):
            zero = splat16(source.dtype.type(0))
            a, b, c, d = zero, zero, zero, zero
            for i in range(STRIP):
                upstream, at = load16(source, i * D + x), row + i
                a = fma(spread16(weights, at), upstream, a)
                b = fma(spread16(weights, at + STRIP), upstream, b)
                c = fma(spread16(weights, at + 2 * STRIP), upstream, c)
                d = fma(spread16(weights, at + 3 * STRIP), upstream, d)
            at = start + j * stride + x
            store(target, at, add(load16(target, at), a))
            if j + 1 < n:
                store(target, at + stride, add(load16(target, at + stride), b))
            if j + 2 < n:
                store(target, at + 2 * stride, add(load16(target, at + 2 * stride), c))
            if j + 3 < n:
                store(target, at + 3 * stride, add(load16(target, at + 3 * stride), d))


@njit(nogil=True, error_model="numpy")
def _edges(dtype):
    """Numbers of which 16 neighbours are what is added to the scores of a key at the edge of the band."""
    edges = np.full(3 * STRIP, HIDDEN, dtype)
    edges[STRIP : 2 * STRIP] = 0
    return edges


@njit(nogil=True, error_model="numpy")
def _penalty(edges, query, key, last_key, window):
    """What is added to a key's scores for the strip that begins at ``query``."""
    if key >= last_key:
        return load16(edges, 2 * STRIP)
    near, far = max(-1, min(key - query + window, STRIP - 1)), max(0, min(key - query - window, STRIP))
    return add(load16(edges, 2 * STRIP - 1 - near), load16(edges, STRIP - far))


@njit(nogil=True, error_model="numpy")
def attention_forward(first_unit, last_unit, sizes, window, scale, lengths, qkv, out, logs):
    """Attend from the groups of queries ``first_unit`` up to ``last_unit``: (B, H, groups) of them in all.

    ``sizes`` are L, H, D; ``lengths`` (B,) the letters of each sequence, behind which nothing is seen.
    """
    L, H, D = sizes
    real = qkv.dtype.type
    groups, stride = (L + GROUP - 1) // GROUP, 3 * H * D
    room = min(L, GROUP + 2 * window) + 4
    values, weights, edges = np.empty(room * D, qkv.dtype), np.empty(room * STRIP, qkv.dtype), _edges(qkv.dtype)
    turned, sums = np.empty(D * STRIP, qkv.dtype), np.empty(D * STRIP, qkv.dtype)
    for unit in range(first_unit, last_unit):
        b, h, group = unit // (groups * H), unit // groups % H, unit % groups * GROUP
        start = max(0, group - window)
        end = max(start, min(lengths[b], min(L, group + GROUP) + window))
        q_at = b * L * stride + h * D
        k_at, v_at = q_at + H * D + start * stride, q_at + 2 * H * D + start * stride
        n = end - start
        _gather(qkv, v_at, stride, n, D, values)
        for query in range(group, min(group + GROUP, L), STRIP):
            queries = min(STRIP, L - query)
            _turn(qkv, q_at + query * stride, stride, queries, D, scale, turned)
            first = max(0, query - window - start) // 4 * 4
            last = (max(first, min(end, query + STRIP + window) - start) + 3) // 4 * 4
            most = splat16(real(HIDDEN))
            for j in range(first, last, 4):
                _four_rows(qkv, k_at, stride, j, n, D, turned, weights)
                key = start + j
                inside = key + 3 < end and key - query + window >= STRIP - 1 and key + 3 - query - window <= 0
                for row in range(4):
                    at = (j + row) * STRIP
                    score = load16(weights, at)
                    if not inside:
                        score = add(score, _penalty(edges, query, key + row, end, window))
                        store(weights, at, score)
                    most = maximum(most, score)
            total = splat16(real(0))
            for d in range(D):
                store(sums, d * STRIP, splat16(real(0)))
            for block in range(first, last, BLOCK):
                beyond = min(block + BLOCK, last)
                for j in range(block, beyond):
                    weight = exp(sub(load16(weights, j * STRIP), most))
                    total = add(total, weight)
                    store(weights, j * STRIP, weight)
                _add_columns(values, block, beyond, D, weights, sums)
            store(turned, 0, total)
            store(turned, STRIP, most)
            for i in range(queries):
                share = turned[i]
                at = ((b * L + query + i) * H + h) * D
                factor = real(1) / share if share > 0 else real(0)
                for d in range(D):
                    out[at + d] = sums[d * STRIP + i] * factor
                logs[(b * H + h) * L + query + i] = turned[STRIP + i] + math.log(share) if share > 0 else real(0)


@njit(nogil=True, error_model="numpy")
def attention_backward(first_unit, last_unit, sizes, window, scale, lengths, qkv, out, logs, d_out, d_qkv):
    """Gradient of ``qkv`` for the (sequence, head) pairs from ``first_unit`` up to ``last_unit``."""
    L, H, D = sizes
    real = qkv.dtype.type
    stride, out_stride = 3 * H * D, H * D
    room = min(L, GROUP + 2 * window) + 4
    keys, edges = np.empty(room * D, qkv.dtype), _edges(qkv.dtype)
    weights, slopes = np.empty(room * STRIP, qkv.dtype), np.empty(room * STRIP, qkv.dtype)
    turned, d_turned = np.empty(D * STRIP, qkv.dtype), np.empty(D * STRIP, qkv.dtype)
    own, upstream = np.empty(STRIP * D, qkv.dtype), np.empty(STRIP * D, qkv.dtype)
    dots, shares, sums = np.empty(STRIP, qkv.dtype), np.empty(STRIP, qkv.dtype), np.empty(D * STRIP, qkv.dtype)
    for unit in range(first_unit, last_unit):
        b, h = unit // H, unit % H
        base = b * L * stride + h * D
        for letter in range(L):
            for part in range(1, 3):
                for d in range(0, D, 16):
                    store(d_qkv, base + letter * stride + part * H * D + d, splat16(real(0)))
        for group in range(0, L, GROUP):
            start = max(0, group - window)
            end = max(start, min(lengths[b], min(L, group + GROUP) + window))
            n = end - start
            k_at, v_at = base + H * D + start * stride, base + 2 * H * D + start * stride
            _gather(qkv, k_at, stride, n, D, keys)
            for query in range(group, min(group + GROUP, L), STRIP):
                queries = min(STRIP, L - query)
                out_at = (b * L + query) * out_stride + h * D
                _turn(qkv, base + query * stride, stride, queries, D, scale, turned)
                _turn(d_out, out_at, out_stride, queries, D, real(1), d_turned)
                for i in range(STRIP):
                    dot = real(0)
                    for d in range(D):
                        own[i * D + d] = turned[d * STRIP + i]
                        upstream[i * D + d] = d_turned[d * STRIP + i]
                        if i < queries:
                            dot += upstream[i * D + d] * out[out_at + i * out_stride + d]
                    dots[i] = dot
                    shares[i] = logs[(b * H + h) * L + query + i] if i < queries else real(0)
                first = max(0, query - window - start) // 4 * 4
                last = (max(first, min(end, query + STRIP + window) - start) + 3) // 4 * 4
                for d in range(D):
                    store(sums, d * STRIP, splat16(real(0)))
                dot, share = load16(dots, 0), load16(shares, 0)
                for block in range(first, last, BLOCK):
                    beyond = min(block + BLOCK, last)
                    for j in range(block, beyond, 4):
                        _four_rows(qkv, k_at, stride, j, n, D, turned, weights)
                        _four_rows(qkv, v_at, stride, j, n, D, d_turned, slopes)
                        key = start + j
                        inside = key + 3 < end and key - query + window >= STRIP - 1 and key + 3 - query - window <= 0
                        for row in range(4):
                            at = (j + row) * STRIP
                            score = load16(weights, at)
                            if not inside:
                                score = add(score, _penalty(edges, query, key + row, end, window))
                            weight = exp(sub(score, share))
                            store(weights, at, weight)
                            store(slopes, at, mul(weight, sub(load16(slopes, at), dot)))
                    _add_columns(keys, block, beyond, D, slopes, sums)
                    real_rows = min(beyond, n) - block
                    _add_outer(slopes, block, real_rows, own, D, d_qkv, k_at + block * stride, stride)
                    _add_outer(weights, block, real_rows, upstream, D, d_qkv, v_at + block * stride, stride)
                for i in range(queries):
                    for d in range(D):
                        d_qkv[base + (query + i) * stride + d] = sums[d * STRIP + i] * scale
