"""Compiled loops over letters: RMSNorm, the gated MLP's activation, the merge of two directions, rotary positions.

Arrays are flat float32 arrays, and their sizes and strides are in elements. Widths are multiples of 8. A kernel works
on the units of work from ``first`` up to ``last``: a unit is ``ROWS`` letters. Sums over letters, the gradients of
weights, go to one row per unit, which the caller adds up; no number depends on which thread ran which unit. No output
is read before it is written.
"""

import math

import numpy as np
from numba import njit

from had.ops.lanes import add, fma, load, load16, mul, sigmoid, splat, splat16, store, sub, total

KERNELS = (
    "norm_forward",
    "norm_backward",
    "gate_forward",
    "gate_backward",
    "merge_forward",
    "merge_backward",
    "rotate",
)
ROWS = 64
"""Letters per unit of work."""


@njit(nogil=True, error_model="numpy")
def _scale(x, at, width, eps):
    """Reciprocal root of the mean square of a row, plus eps."""
    squares = splat(x.dtype.type(0))
    for c in range(0, width, 8):
        a = load(x, at + c)
        squares = fma(a, a, squares)
    return x.dtype.type(1) / math.sqrt(total(squares) / x.dtype.type(width) + eps)


@njit(nogil=True, error_model="numpy")
def _zero(target, start, length):
    for c in range(0, length, 8):
        store(target, start + c, splat(target.dtype.type(0)))


@njit(nogil=True, error_model="numpy")
def norm_forward(first, last, rows, width, eps, x, weight, y, scales):
    """``y = x · scale · weight`` for rows of ``width``; ``scales`` (rows,) is kept for the backward pass."""
    for row in range(first * ROWS, min(last * ROWS, rows)):
        at = row * width
        scales[row] = _scale(x, at, width, eps)
        scale = splat(scales[row])
        for c in range(0, width, 8):
            store(y, at + c, mul(mul(load(x, at + c), scale), load(weight, c)))


@njit(nogil=True, error_model="numpy")
def norm_backward(first, last, rows, width, x, weight, scales, dy, beside, dx, d_weight):
    """Gradient of ``norm_forward``, plus ``beside``, a gradient of x from elsewhere, where that is not empty."""
    zero = x.dtype.type(0)
    for unit in range(first, last):
        _zero(d_weight, unit * width, width)
        for row in range(unit * ROWS, min((unit + 1) * ROWS, rows)):
            at = row * width
            scale, along = splat(scales[row]), splat(zero)
            for c in range(0, width, 8):
                normal, upstream = mul(load(x, at + c), scale), load(dy, at + c)
                store(d_weight, unit * width + c, fma(upstream, normal, load(d_weight, unit * width + c)))
                along = fma(mul(upstream, load(weight, c)), normal, along)
            # dx = scale (w dy - normal <w dy, normal> / width)
            back = splat(-scales[row] * scales[row] * total(along) / x.dtype.type(width))
            for c in range(0, width, 8):
                d = fma(load(x, at + c), back, mul(mul(load(dy, at + c), load(weight, c)), scale))
                store(dx, at + c, add(d, load(beside, at + c)) if beside.size else d)


@njit(nogil=True, error_model="numpy")
def _silu(x, one):
    """SiLU and its derivative, σ + SiLU (1 - σ)."""
    open_ = sigmoid(x)
    active = mul(x, open_)
    return active, fma(active, sub(one, open_), open_)


@njit(nogil=True, error_model="numpy")
def gate_forward(first, last, rows, width, both, product):
    """``product = SiLU(gate) · up`` (rows, width) of ``both`` = [gate, up] (rows, 2 · width)."""
    for row in range(first * ROWS, min(last * ROWS, rows)):
        at = row * 2 * width
        # Two registers at a time share the constants of the exponential.
        for c in range(0, width - 8, 16):
            gate = load16(both, at + c)
            store(product, row * width + c, mul(mul(gate, sigmoid(gate)), load16(both, at + width + c)))
        if width % 16:
            c = width - 8
            gate = load(both, at + c)
            store(product, row * width + c, mul(mul(gate, sigmoid(gate)), load(both, at + width + c)))


@njit(nogil=True, error_model="numpy")
def gate_backward(first, last, rows, width, both, d_product, d_both, product):
    """Gradient of ``both``, and the product again."""
    one, wide = both.dtype.type(1), width // 16 * 16
    for row in range(first * ROWS, min(last * ROWS, rows)):
        at = row * 2 * width
        for c in range(0, wide, 16):
            gate, up, upstream = load16(both, at + c), load16(both, at + width + c), load16(d_product, row * width + c)
            active, slope = _silu(gate, splat16(one))
            store(product, row * width + c, mul(active, up))
            store(d_both, at + c, mul(mul(upstream, up), slope))
            store(d_both, at + width + c, mul(upstream, active))
        for c in range(wide, width, 8):
            gate, up, upstream = load(both, at + c), load(both, at + width + c), load(d_product, row * width + c)
            active, slope = _silu(gate, splat(one))
            store(product, row * width + c, mul(active, up))
            store(d_both, at + c, mul(mul(upstream, up), slope))
            store(d_both, at + width + c, mul(upstream, active))


@njit(nogil=True, error_model="numpy")
def _reversed(row, length, lengths):
    """Row of the letter that takes this one's place when its sequence is reversed within its own length."""
    sequence, t = row // length, row % length
    return sequence * length + (lengths[sequence] - 1 - t if t < lengths[sequence] else t)


@njit(nogil=True, error_model="numpy")
def merge_forward(first, last, sizes, lengths, eps, o, weight, gate, out):
    """Normalise each head of both directions, turn the reverse one round, sum, times SiLU(gate).

    ``sizes`` are N letters, length L, H heads, V width; ``lengths`` (B,) the real ones. ``o`` (2, N, H, V), ``weight``
    (2, V), ``gate`` and ``out`` (N, H, V).
    """
    N, L, H, V = sizes
    # A row's scale is a chain of dependent instructions, which those of the other rows hide.
    scales, wide = np.empty((ROWS, H, 2), o.dtype), V // 16 * 16
    for unit in range(first, last):
        start, end = unit * ROWS, min((unit + 1) * ROWS, N)
        for row in range(start, end):
            ahead, back = row * H * V, (N + _reversed(row, L, lengths)) * H * V
            for h in range(H):
                scales[row - start, h, 0] = _scale(o, ahead + h * V, V, eps)
                scales[row - start, h, 1] = _scale(o, back + h * V, V, eps)
        for row in range(start, end):
            ahead, back = row * H * V, (N + _reversed(row, L, lengths)) * H * V
            for h in range(H):
                a, b = scales[row - start, h, 0], scales[row - start, h, 1]
                for c in range(0, wide, 16):
                    at = h * V + c
                    normal = mul(mul(load16(o, ahead + at), splat16(a)), load16(weight, c))
                    normal = fma(mul(load16(o, back + at), splat16(b)), load16(weight, V + c), normal)
                    g = load16(gate, ahead + at)
                    store(out, ahead + at, mul(normal, mul(g, sigmoid(g))))
                for c in range(wide, V, 8):
                    at = h * V + c
                    normal = mul(mul(load(o, ahead + at), splat(a)), load(weight, c))
                    normal = fma(mul(load(o, back + at), splat(b)), load(weight, V + c), normal)
                    g = load(gate, ahead + at)
                    store(out, ahead + at, mul(normal, mul(g, sigmoid(g))))


@njit(nogil=True, error_model="numpy")
def merge_backward(first, last, sizes, lengths, eps, o, weight, gate, d_out, d_o, d_gate, d_weight):
    """Gradients of o, gate and, per unit, of weight (units, 2, V)."""
    N, L, H, V = sizes
    real = o.dtype.type
    one, d_normal = splat(real(1)), np.empty(V, o.dtype)
    for unit in range(first, last):
        weight_a, weight_b = unit * 2 * V, unit * 2 * V + V
        _zero(d_weight, weight_a, 2 * V)
        for row in range(unit * ROWS, min((unit + 1) * ROWS, N)):
            ahead, back = row * H * V, (N + _reversed(row, L, lengths)) * H * V
            for h in range(H):
                scalar_a, scalar_b = _scale(o, ahead + h * V, V, eps), _scale(o, back + h * V, V, eps)
                scale_a, scale_b = splat(scalar_a), splat(scalar_b)
                along_a, along_b = splat(real(0)), splat(real(0))
                for c in range(0, V, 8):
                    at = h * V + c
                    a, b = mul(load(o, ahead + at), scale_a), mul(load(o, back + at), scale_b)
                    wa, wb = mul(a, load(weight, c)), mul(b, load(weight, V + c))
                    g, upstream = load(gate, ahead + at), load(d_out, ahead + at)
                    active, slope = _silu(g, one)
                    store(d_gate, ahead + at, mul(mul(upstream, add(wa, wb)), slope))
                    d = mul(upstream, active)
                    store(d_normal, c, d)
                    store(d_weight, weight_a + c, fma(d, a, load(d_weight, weight_a + c)))
                    store(d_weight, weight_b + c, fma(d, b, load(d_weight, weight_b + c)))
                    along_a, along_b = fma(d, wa, along_a), fma(d, wb, along_b)
                inward_a = splat(-scalar_a * scalar_a * total(along_a) / real(V))
                inward_b = splat(-scalar_b * scalar_b * total(along_b) / real(V))
                for c in range(0, V, 8):
                    at, d = h * V + c, load(d_normal, c)
                    d_a, d_b = mul(mul(d, load(weight, c)), scale_a), mul(mul(d, load(weight, V + c)), scale_b)
                    store(d_o, ahead + at, fma(load(o, ahead + at), inward_a, d_a))
                    store(d_o, back + at, fma(load(o, back + at), inward_b, d_b))


@njit(nogil=True, error_model="numpy")
def rotate(first, last, sizes, direction, table, qkv):
    """Turn q and k in place: pairs (i, i + D / 2) of each head by the angle of their position.

    ``sizes`` are N letters, length L, H heads, D width; ``direction`` is 1, or -1 for back; ``qkv`` (N, 3, H, D);
    ``table`` (2, L, D / 2) cosines, sines.
    """
    N, L, H, D = sizes
    half, sign = D // 2, splat(direction)
    for row in range(first * ROWS, min(last * ROWS, N)):
        cos_at = (row % L) * half
        sin_at = cos_at + L * half
        for head in range(2 * H):
            at = (row * 3 * H + head) * D
            for c in range(0, half, 8):
                cos, sin = load(table, cos_at + c), mul(sign, load(table, sin_at + c))
                a, b = load(qkv, at + c), load(qkv, at + half + c)
                store(qkv, at + c, sub(mul(a, cos), mul(b, sin)))
                store(qkv, at + half + c, fma(a, sin, mul(b, cos)))
