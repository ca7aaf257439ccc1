"""Compiled loops of the recurrent layer's way in: causal depth-wise convolution, SiLU, and the gates.

Both directions read the same projected letters, the reverse one from the end of its sequence; what comes out is in the
order of travel. A unit of work is one direction of one sequence of a piece of the batch: unit u is direction u // n of
the piece's sequence u % n, n being their number.

Arrays are flat float32 arrays. The projected letters ``p`` are (n, L, 2, C + 2 H): channels of q, k and v (C in all),
then a and b, for each direction. ``taps`` are (2, W, C), the last of which meets the letter itself. q, k, v are
(2, B, L, ·), the piece's first sequence being ``place``; ``lengths`` (B,) are the real letters of each. Widths of q, k
and v are multiples of 8. No output is read before it is written.
"""

import math

import numpy as np
from numba import njit

from had.ops.lanes import add, fma, load, mul, sigmoid, splat, store, sub

KERNELS = ("forward", "backward")
FLUSH = 256
"""Letters after which short sums over letters go to the long ones, so that rounding errors grow slowly."""


@njit(nogil=True, error_model="numpy")
def _letter(t, direction, length):
    """Letter that the direction meets at time t; padding, behind the letters, is met last and in its own order."""
    return length - 1 - t if direction == 1 and t < length else t


@njit(nogil=True, error_model="numpy")
def _convolved(p, rows, reach, taps, tap_at, C, c):
    """Eight channels of the convolution at the letter whose row begins at ``rows[0]``, those before at rows[1] …"""
    total = mul(load(p, rows[0] + c), load(taps, tap_at + c))
    for back in range(1, reach):
        total = fma(load(p, rows[back] + c), load(taps, tap_at - back * C + c), total)
    return total


@njit(nogil=True, error_model="numpy")
def _forward_channels(p, rows, reach, taps, tap_at, C, first, last, out, at):
    for c in range(first, last, 8):
        x = _convolved(p, rows, reach, taps, tap_at, C, c)
        store(out, at + c - first, mul(x, sigmoid(x)))


@njit(nogil=True, error_model="numpy")
def forward(first, last, sizes, channels, place, lengths, p, taps, rates, steps, q, k, v, log_decay, beta):
    """Write q, k, v, the log decay and the write strength of some units.

    ``sizes`` are n, B, L, H and W; ``channels`` those of q, k and v. ``rates`` are exp(A_log) and ``steps`` dt_bias,
    (2, H). ``log_decay`` and ``beta`` (2, B, L, H) are 0 at padding.
    """
    n, B, L, H, W = sizes
    C = channels[0] + channels[1] + channels[2]
    width = 2 * (C + 2 * H)
    rows = np.empty(W, np.int64)
    zero, one = p.dtype.type(0), p.dtype.type(1)
    for unit in range(first, last):
        direction, sequence = unit // n, unit % n
        length = lengths[place + sequence]
        tap_at = (direction * W + W - 1) * C
        for t in range(L):
            reach = min(W, t + 1)
            for back in range(reach):
                letter = _letter(t - back, direction, length)
                rows[back] = (sequence * L + letter) * width + direction * (width // 2)
            out = (direction * B + place + sequence) * L + t
            c = channels[0]
            _forward_channels(p, rows, reach, taps, tap_at, C, 0, c, q, out * channels[0])
            _forward_channels(p, rows, reach, taps, tap_at, C, c, c + channels[1], k, out * channels[1])
            c += channels[1]
            _forward_channels(p, rows, reach, taps, tap_at, C, c, C, v, out * channels[2])
            for h in range(H):
                at, head = out * H + h, direction * H + h
                if t < length:
                    x = p[rows[0] + C + h] + steps[head]
                    log_decay[at] = -rates[head] * (max(x, zero) + math.log1p(math.exp(-abs(x))))
                    beta[at] = one / (one + math.exp(-p[rows[0] + C + H + h]))
                else:
                    log_decay[at], beta[at] = zero, zero


@njit(nogil=True, error_model="numpy")
def _backward_channels(p, rows, reach, taps, tap_at, C, first, last, upstream, at, ring, slot, d_taps):
    """Gradient before SiLU, to ``ring`` from ``slot``, and that of the taps."""
    one = splat(p.dtype.type(1))
    for c in range(first, last, 8):
        x = _convolved(p, rows, reach, taps, tap_at, C, c)
        open_ = sigmoid(x)
        # SiLU' = σ (1 + x (1 - σ))
        slope = mul(open_, fma(x, sub(one, open_), one))
        d = mul(load(upstream, at + c - first), slope)
        store(ring, slot + c, d)
        for back in range(reach):
            tap = back * C + c
            store(d_taps, tap, fma(d, load(p, rows[back] + c), load(d_taps, tap)))


@njit(nogil=True, error_model="numpy")
def _write_letter(t, ahead, ring, W, taps, tap_at, C, d_p, at):
    """Gradient of the channels that were met at time t, from those of times t to t + ahead - 1 in the ring."""
    for c in range(0, C, 8):
        d = mul(load(ring, (t % W) * C + c), load(taps, tap_at + c))
        for later in range(1, ahead):
            d = fma(load(ring, ((t + later) % W) * C + c), load(taps, tap_at - later * C + c), d)
        store(d_p, at + c, d)


@njit(nogil=True, error_model="numpy")
def backward(
    first, last, sizes, channels, place, lengths, p, taps, rates, steps, log_decay, beta,
    dq, dk, dv, d_log_decay, d_beta, d_p, d_taps, d_rates, d_steps,
):  # fmt: skip
    """Gradient of ``p``, and for each (direction, sequence) those of taps, A_log and dt_bias.

    ``d_taps`` (2, B, W, C), the tap that meets the letter itself first; ``d_rates`` and ``d_steps`` (2, B, H), the
    former the gradient of A_log.
    """
    n, B, L, H, W = sizes
    C = channels[0] + channels[1] + channels[2]
    width = 2 * (C + 2 * H)
    rows = np.empty(W, np.int64)
    ring, short = np.empty(W * C, p.dtype), np.empty(W * C, p.dtype)
    sums = np.empty(2 * H, np.float64)
    zero, one = p.dtype.type(0), p.dtype.type(1)
    for unit in range(first, last):
        direction, sequence = unit // n, unit % n
        length = lengths[place + sequence]
        own = direction * B + place + sequence
        tap_at = (direction * W + W - 1) * C
        for c in range(0, W * C, 8):
            store(short, c, splat(zero))
            store(d_taps, own * W * C + c, splat(zero))
        sums[:] = 0.0
        for t in range(L):
            reach = min(W, t + 1)
            for back in range(reach):
                letter = _letter(t - back, direction, length)
                rows[back] = (sequence * L + letter) * width + direction * (width // 2)
            out, slot = own * L + t, (t % W) * C
            c = channels[0]
            _backward_channels(p, rows, reach, taps, tap_at, C, 0, c, dq, out * channels[0], ring, slot, short)
            _backward_channels(
                p, rows, reach, taps, tap_at, C, c, c + channels[1], dk, out * channels[1], ring, slot, short
            )
            c += channels[1]
            _backward_channels(p, rows, reach, taps, tap_at, C, c, C, dv, out * channels[2], ring, slot, short)
            for h in range(H):
                at, head, a_at = out * H + h, direction * H + h, rows[0] + C + h
                d_a, d_b = zero, zero
                if t < length:
                    x = p[a_at] + steps[head]
                    d_a = -rates[head] * d_log_decay[at] / (one + math.exp(-x))
                    d_b = d_beta[at] * beta[at] * (one - beta[at])
                    sums[h] += d_log_decay[at] * log_decay[at]
                    sums[H + h] += d_a
                d_p[a_at], d_p[a_at + H] = d_a, d_b
            if reach == W:
                _write_letter(t - W + 1, W, ring, W, taps, tap_at, C, d_p, rows[W - 1])
            if t % FLUSH == FLUSH - 1 or t == L - 1:
                for c in range(0, W * C, 8):
                    at = own * W * C + c
                    store(d_taps, at, add(load(d_taps, at), load(short, c)))
                    store(short, c, splat(zero))
        for t in range(max(0, L - W + 1), L):
            letter = _letter(t, direction, length)
            at = (sequence * L + letter) * width + direction * (width // 2)
            _write_letter(t, L - t, ring, W, taps, tap_at, C, d_p, at)
        for h in range(H):
            d_rates[own * H + h], d_steps[own * H + h] = sums[h], sums[H + h]
