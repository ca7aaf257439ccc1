"""Compiled loops of the recurrent layer's way in: causal depth-wise convolution, SiLU, and the gates.

Both directions read the same projected letters, the reverse one from the end of its sequence; what comes out is in the
order of travel. A unit of work is one direction of one sequence of a piece of the batch: unit u is direction u // n of
the piece's sequence u % n, n being their number.

Arrays are flat float32 arrays. The projected letters ``p`` are (n, L, 2, C + 2 H): channels of q, k and v (C in all),
then a and b, for each direction. Where ``tokens`` (n, L), int64, is not empty, ``p`` has a row (2, C + 2 H) each, and
letters have those of their tokens. ``taps`` are (2, W, C), the last of which meets the letter itself. q, k, v are
(2, B, L, ·), the piece's first sequence being ``place``; ``lengths`` (B,) are the real letters of each. Widths of q, k
and v are multiples of 8. No output is read before it is written.
"""

import numpy as np
from numba import njit

from had.ops.lanes import add, fma, load, load16, mul, sigmoid, softplus, splat, splat16, store, sub

KERNELS = ("forward", "backward")
BLOCK = 64
"""Letters whose gates are computed together, and whose sums are finished before they are added to those of others."""


@njit(nogil=True, error_model="numpy")
def _met(t, direction, length):
    """Which letter a direction meets at time t: padding, behind the letters, is met last and in its own order."""
    return length - 1 - t if direction == 1 and t < length else t


@njit(nogil=True, error_model="numpy")
def _row(t, direction, length, width, start, tokens):
    """Where the row of the letter met at time t begins; ``start`` is the sequence's first letter."""
    letter = start + _met(t, direction, length)
    return (tokens[letter] if tokens.size else letter) * width + direction * (width // 2)


@njit(nogil=True, error_model="numpy")
def _gather(p, start, first, n, direction, length, width, tokens, column, offset, target):
    """Column of the projected letters that are met at n times from ``first``, plus an offset."""
    for j in range(n):
        target[j] = p[_row(first + j, direction, length, width, start, tokens) + column] + offset


@njit(nogil=True, error_model="numpy")
def _convolved(p, rows, reach, taps, tap_at, C, c):
    """Eight channels of the convolution at a letter; ``rows`` say where its row and those before it begin."""
    total = mul(load(p, rows[0] + c), load(taps, tap_at + c))
    for back in range(1, reach):
        total = fma(load(p, rows[back] + c), load(taps, tap_at - back * C + c), total)
    return total


@njit(nogil=True, error_model="numpy")
def _convolved_4(p, r0, r1, r2, r3, taps, tap_at, C, c):
    """Give the same sum for four letters, without a loop."""
    total = mul(load(p, r0 + c), load(taps, tap_at + c))
    total = fma(load(p, r1 + c), load(taps, tap_at - C + c), total)
    total = fma(load(p, r2 + c), load(taps, tap_at - 2 * C + c), total)
    return fma(load(p, r3 + c), load(taps, tap_at - 3 * C + c), total)


@njit(nogil=True, error_model="numpy")
def _convolved_4_wide(p, r0, r1, r2, r3, taps, tap_at, C, c):
    """Give the same sum for sixteen channels, in two registers."""
    total = mul(load16(p, r0 + c), load16(taps, tap_at + c))
    total = fma(load16(p, r1 + c), load16(taps, tap_at - C + c), total)
    total = fma(load16(p, r2 + c), load16(taps, tap_at - 2 * C + c), total)
    return fma(load16(p, r3 + c), load16(taps, tap_at - 3 * C + c), total)


@njit(nogil=True, error_model="numpy")
def _forward_channels(p, rows, reach, taps, tap_at, C, first, last, out, at):
    if reach == 4:
        r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
        # Two registers at a time share the constants of the exponential.
        for c in range(first, last - 8, 16):
            x = _convolved_4_wide(p, r0, r1, r2, r3, taps, tap_at, C, c)
            store(out, at + c - first, mul(x, sigmoid(x)))
        if (last - first) % 16:
            x = _convolved_4(p, r0, r1, r2, r3, taps, tap_at, C, last - 8)
            store(out, at + last - 8 - first, mul(x, sigmoid(x)))
    else:
        for c in range(first, last, 8):
            x = _convolved(p, rows, reach, taps, tap_at, C, c)
            store(out, at + c - first, mul(x, sigmoid(x)))


@njit(nogil=True, error_model="numpy")
def forward(first, last, sizes, channels, place, lengths, tokens, p, taps, rates, steps, q, k, v, log_decay, beta):
    """Write q, k, v, the log decay and the write strength of some units.

    ``sizes`` are n, B, L, H and W; ``channels`` those of q, k and v. ``rates`` are exp(A_log) and ``steps`` dt_bias,
    (2, H). ``log_decay`` and ``beta`` (2, B, L, H) are 0 at padding.
    """
    n, B, L, H, W = sizes
    C = channels[0] + channels[1] + channels[2]
    width = 2 * (C + 2 * H)
    rows = np.empty(W, np.int64)
    zero = p.dtype.type(0)
    a, b = np.zeros(BLOCK, p.dtype), np.zeros(BLOCK, p.dtype)
    for unit in range(first, last):
        direction, sequence = unit // n, unit % n
        length, start = lengths[place + sequence], sequence * L
        tap_at = (direction * W + W - 1) * C
        for block in range(0, L, BLOCK):
            end = min(block + BLOCK, L)
            for t in range(block, end):
                reach = min(W, t + 1)
                for back in range(reach):
                    rows[back] = _row(t - back, direction, length, width, start, tokens)
                out = (direction * B + place + sequence) * L + t
                c = channels[0]
                _forward_channels(p, rows, reach, taps, tap_at, C, 0, c, q, out * channels[0])
                _forward_channels(p, rows, reach, taps, tap_at, C, c, c + channels[1], k, out * channels[1])
                c += channels[1]
                _forward_channels(p, rows, reach, taps, tap_at, C, c, C, v, out * channels[2])
            for h in range(H):
                head = direction * H + h
                _gather(p, start, block, end - block, direction, length, width, tokens, C + h, steps[head], a)
                _gather(p, start, block, end - block, direction, length, width, tokens, C + H + h, zero, b)
                for j in range(0, BLOCK, 8):
                    store(a, j, mul(softplus(load(a, j)), splat(-rates[head])))
                    store(b, j, sigmoid(load(b, j)))
                for t in range(block, end):
                    at = ((direction * B + place + sequence) * L + t) * H + h
                    log_decay[at] = a[t - block] if t < length else zero
                    beta[at] = b[t - block] if t < length else zero


@njit(nogil=True, error_model="numpy")
def _before_silu(x, upstream, one):
    open_ = sigmoid(x)
    # SiLU' = σ (1 + x (1 - σ))
    return mul(upstream, mul(open_, fma(x, sub(one, open_), one)))


@njit(nogil=True, error_model="numpy")
def _add_product(d_taps, at, d, x):
    store(d_taps, at, fma(d, x, load(d_taps, at)))


@njit(nogil=True, error_model="numpy")
def _add_product_wide(d_taps, at, d, x):
    store(d_taps, at, fma(d, x, load16(d_taps, at)))


@njit(nogil=True, error_model="numpy")
def _backward_channels(p, rows, reach, taps, tap_at, C, first, last, upstream, at, ring, slot, d_taps):
    """Gradient before SiLU, to ``ring`` from ``slot``, and that of the taps."""
    if reach == 4:
        r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
        wide = (last - first) // 16 * 16 + first
        for c in range(first, wide, 16):
            x = _convolved_4_wide(p, r0, r1, r2, r3, taps, tap_at, C, c)
            d = _before_silu(x, load16(upstream, at + c - first), splat16(np.float32(1)))
            store(ring, slot + c, d)
            _add_product_wide(d_taps, c, d, load16(p, r0 + c))
            _add_product_wide(d_taps, C + c, d, load16(p, r1 + c))
            _add_product_wide(d_taps, 2 * C + c, d, load16(p, r2 + c))
            _add_product_wide(d_taps, 3 * C + c, d, load16(p, r3 + c))
        for c in range(wide, last, 8):
            x = _convolved_4(p, r0, r1, r2, r3, taps, tap_at, C, c)
            d = _before_silu(x, load(upstream, at + c - first), splat(np.float32(1)))
            store(ring, slot + c, d)
            _add_product(d_taps, c, d, load(p, r0 + c))
            _add_product(d_taps, C + c, d, load(p, r1 + c))
            _add_product(d_taps, 2 * C + c, d, load(p, r2 + c))
            _add_product(d_taps, 3 * C + c, d, load(p, r3 + c))
    else:
        for c in range(first, last, 8):
            x = _convolved(p, rows, reach, taps, tap_at, C, c)
            d = _before_silu(x, load(upstream, at + c - first), splat(np.float32(1)))
            store(ring, slot + c, d)
            for back in range(reach):
                _add_product(d_taps, back * C + c, d, load(p, rows[back] + c))


@njit(nogil=True, error_model="numpy")
def _write_letter(t, ahead, ring, W, taps, tap_at, C, d_p, at):
    """Gradient of the channels that were met at time t, from those of times t to t + ahead - 1 in the ring."""
    if ahead == 4:
        # The ring as the rows of a convolution that looks the other way.
        r0, r1, r2, r3 = (t % W) * C, ((t + 1) % W) * C, ((t + 2) % W) * C, ((t + 3) % W) * C
        for c in range(0, C, 8):
            store(d_p, at + c, _convolved_4(ring, r0, r1, r2, r3, taps, tap_at, C, c))
    else:
        for c in range(0, C, 8):
            d = mul(load(ring, (t % W) * C + c), load(taps, tap_at + c))
            for later in range(1, ahead):
                d = fma(load(ring, ((t + later) % W) * C + c), load(taps, tap_at - later * C + c), d)
            store(d_p, at + c, d)


@njit(nogil=True, error_model="numpy")
def backward(
    first, last, sizes, channels, place, lengths, tokens, p, taps, rates, steps, log_decay, beta,
    dq, dk, dv, d_log_decay, d_beta, d_p, d_taps, d_rates, d_steps,
):  # fmt: skip
    """Gradient of each letter's row, and for each (direction, sequence) those of taps, A_log and dt_bias.

    ``d_p`` is (n, L, 2, C + 2 H), with tokens or without; ``d_taps`` (2, B, W, C), the tap that meets the letter itself
    first; ``d_rates`` and ``d_steps`` (2, B, H), the former the gradient of A_log.
    """
    n, B, L, H, W = sizes
    C = channels[0] + channels[1] + channels[2]
    width = 2 * (C + 2 * H)
    rows = np.empty(W, np.int64)
    ring, short = np.empty(W * C, p.dtype), np.empty(W * C, p.dtype)
    sums = np.empty(2 * H, np.float64)
    positions = tokens[:0]
    slopes = np.zeros(BLOCK, p.dtype)
    zero, one = p.dtype.type(0), p.dtype.type(1)
    for unit in range(first, last):
        direction, sequence = unit // n, unit % n
        length, start = lengths[place + sequence], sequence * L
        own = direction * B + place + sequence
        tap_at = (direction * W + W - 1) * C
        for c in range(0, W * C, 8):
            store(d_taps, own * W * C + c, splat(zero))
        sums[:] = 0.0
        for block in range(0, L, BLOCK):
            end = min(block + BLOCK, L)
            for c in range(0, W * C, 8):
                store(short, c, splat(zero))
            for t in range(block, end):
                reach = min(W, t + 1)
                for back in range(reach):
                    rows[back] = _row(t - back, direction, length, width, start, tokens)
                out, slot = own * L + t, (t % W) * C
                c = channels[0]
                _backward_channels(p, rows, reach, taps, tap_at, C, 0, c, dq, out * channels[0], ring, slot, short)
                _backward_channels(
                    p, rows, reach, taps, tap_at, C, c, c + channels[1], dk, out * channels[1], ring, slot, short
                )
                c += channels[1]
                _backward_channels(p, rows, reach, taps, tap_at, C, c, C, dv, out * channels[2], ring, slot, short)
                if reach == W:
                    at = _row(t - W + 1, direction, length, width, start, positions)
                    _write_letter(t - W + 1, W, ring, W, taps, tap_at, C, d_p, at)
            for c in range(0, W * C, 8):
                at = own * W * C + c
                store(d_taps, at, add(load(d_taps, at), load(short, c)))
            for h in range(H):
                head = direction * H + h
                _gather(p, start, block, end - block, direction, length, width, tokens, C + h, steps[head], slopes)
                for j in range(0, BLOCK, 8):
                    store(slopes, j, mul(sigmoid(load(slopes, j)), splat(-rates[head])))
                for t in range(block, end):
                    at, a_at = (own * L + t) * H + h, _row(t, direction, length, width, start, positions) + C + h
                    d_a, d_b = zero, zero
                    if t < length:
                        d_a = d_log_decay[at] * slopes[t - block]
                        d_b = d_beta[at] * beta[at] * (one - beta[at])
                        sums[h] += d_log_decay[at] * log_decay[at]
                        sums[H + h] += d_a
                    d_p[a_at], d_p[a_at + H] = d_a, d_b
        for t in range(max(0, L - W + 1), L):
            at = _row(t, direction, length, width, start, positions)
            _write_letter(t, L - t, ring, W, taps, tap_at, C, d_p, at)
        for h in range(H):
            d_rates[own * H + h], d_steps[own * H + h] = sums[h], sums[H + h]
