"""The student's arithmetic between its matrix products, as functions that can be replaced one by one.

Each function has a plain form, of ordinary PyTorch operations, and a form with compiled kernels for float32 tensors on
a CPU (``had.models.fused``); tests compare the two. The plain form runs on a GPU, in other precisions, under autocast,
while a graph is exported, without numba, and where ``HAD_BACKEND`` names another backend than cpu.

Shape suffixes: B batch, L length, C channels, W taps, D width, H heads, V value width, 2 the directions of travel.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from had.models import fused
from had.models.padding import Padding, reverse_letters
from had.ops.compiled import why_unavailable

LANES = 8
"""Widths that the compiled kernels take are multiples of this."""
BAND_LETTERS = 512
"""Queries that look at the same stretch of keys, in the plain form of attention within a band."""


def uses_kernels(x: Tensor, *widths: int) -> bool:
    """Whether the form with compiled kernels applies to ``x`` and to rows of these widths."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and all(width % LANES == 0 for width in widths)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and os.environ.get("HAD_BACKEND", "") in ("", "cpu")
        and why_unavailable() is None
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation of ``x`` (..., d) over its last axis, times ``weight`` (d,)."""
    return rms_norm_beside(x, weight, eps)[1]


def rms_norm_beside(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x`` for the residual connection, and its normalised form; the backward pass sums the two gradients."""
    if uses_kernels(x, x.shape[-1]):
        return fused.rms_norm_beside(x, weight, eps)
    return x, F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def project(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """``weight · x``, plus ``residual``: ``x`` (..., d), ``weight`` (d_out, d), ``residual`` (..., d_out)."""
    if residual is None or not uses_kernels(x):
        out = F.linear(x, weight)
        return out if residual is None else residual + out
    rows = torch.addmm(residual.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1]), weight.t())
    return rows.view(residual.shape)


def gated_mlp(x: Tensor, w_in: Tensor, w_out: Tensor, residual: Tensor | None = None) -> Tensor:
    """``w_out · (SiLU(gate) * up)`` for ``[gate, up] = w_in · x``, plus ``residual``.

    ``x`` (..., d), ``w_in`` (2·hidden, d), ``w_out`` (d_out, hidden); returns (..., d_out).
    """
    if uses_kernels(x, w_out.shape[1]):
        return fused.gated_mlp(x, w_in, w_out, residual)
    gate, up = F.linear(x, w_in).chunk(2, dim=-1)
    return project(F.silu(gate) * up, w_out, residual)


def convolution_silu(x_2BLC: Tensor, weight_2CW: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Causal depth-wise convolution in both directions, then SiLU; plain form only.

    Parameters
    ----------
    x_2BLC
        Inputs (2, B, L, C), each direction in its own order of travel.
    weight_2CW
        Taps (2, C, W); the last meets the letter itself.
    sizes
        How the C channels are divided.

    Returns
    -------
    tuple of Tensor
        One contiguous (2, B, L, size) tensor for each of ``sizes``.
    """
    _, batch, length, channels = x_2BLC.shape
    width = weight_2CW.shape[-1]
    x = x_2BLC.permute(1, 0, 3, 2).reshape(batch, 2 * channels, length)
    weight = weight_2CW.reshape(2 * channels, 1, width).to(x.dtype)
    out = F.silu(F.conv1d(x, weight, padding=width - 1, groups=2 * channels)[..., :length])
    out = out.view(batch, 2, channels, length).permute(1, 0, 3, 2)
    return tuple(piece.contiguous() for piece in out.split(sizes, dim=-1))


def delta_rule_gates(ab_2BLR: Tensor, A_log: Tensor, dt_bias: Tensor, padding: Padding | None) -> tuple[Tensor, Tensor]:
    """Log decay and write strength (2, B, L, H) in float32 or better, both 0 at padding; plain form only.

    ``ab_2BLR`` (2, B, L, 2·H) holds a and b in order of travel; ``A_log`` and ``dt_bias`` are (2, H).
    """
    dtype = torch.promote_types(ab_2BLR.dtype, torch.float32)
    a, b = ab_2BLR.to(dtype).chunk(2, dim=-1)
    rate = A_log.to(dtype).exp()[:, None, None]
    log_decay = -rate * F.softplus(a + dt_bias.to(dtype)[:, None, None])
    beta = torch.sigmoid(b)
    if padding is not None:
        outside = ~padding.real[..., None]
        log_decay, beta = log_decay.masked_fill(outside, 0.0), beta.masked_fill(outside, 0.0)
    return log_decay, beta


def project_both_ways(
    x_BLD: Tensor,
    w_in: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    channels: tuple[int, int, int],
    padding: Padding | None,
) -> tuple[Tensor, ...]:
    """All that the gated delta rule takes, of a sequence and of its reverse, and the output gate.

    Parameters
    ----------
    x_BLD
        Normalised stream (B, L, D), 0 at padding.
    w_in
        Rows [q, k, v, a, b] of the forward direction, the same of the reverse one, and of the gate.
    conv_weight
        Taps (2, C, W) of the depth-wise convolution on q, k and v; the last meets the letter itself.
    A_log, dt_bias
        (2, H).
    channels
        Those of q, k and v, C in all.
    padding
        Where letters are; None for everywhere.

    Returns
    -------
    tuple of Tensor
        q, k, v (2, B, L, ·), log decay and write strength (2, B, L, H), each direction in its order of travel; the
        gate (B, L, ·), in the order of letters.
    """
    if uses_kernels(x_BLD, *channels):
        lengths = None if padding is None else padding.lengths
        return fused.project_both_ways(x_BLD, w_in, conv_weight, A_log, dt_bias, channels, lengths)
    both = torch.stack((x_BLD, reverse_letters(x_BLD, padding))).flatten(1, 2)
    own_rows = sum(channels) + 2 * A_log.shape[1]
    weight_2DR = w_in[: 2 * own_rows].unflatten(0, (2, own_rows)).transpose(1, 2)
    rows = torch.bmm(both, weight_2DR).view(2, *x_BLD.shape[:2], own_rows)
    qkv, ab = rows.split((sum(channels), own_rows - sum(channels)), dim=-1)
    q, k, v = convolution_silu(qkv, conv_weight, channels)
    return q, k, v, *delta_rule_gates(ab, A_log, dt_bias, padding), F.linear(x_BLD, w_in[2 * own_rows :])


def merge_directions(
    o_2BLHV: Tensor, weight_2V: Tensor, gate_BLC: Tensor, eps: float, padding: Padding | None
) -> Tensor:
    """Normalise each head's output, turn the reverse direction round, sum, times SiLU(gate): (B, L, H·V)."""
    if uses_kernels(gate_BLC, o_2BLHV.shape[-1]) and o_2BLHV.dtype == gate_BLC.dtype:
        lengths = None if padding is None else padding.lengths
        return fused.merge_directions(o_2BLHV, weight_2V, gate_BLC, eps, lengths)
    o = [rms_norm(own, weight, eps).flatten(2) for own, weight in zip(o_2BLHV, weight_2V, strict=True)]
    return (o[0] + reverse_letters(o[1], padding)) * F.silu(gate_BLC)


def rotate(x_BLHD: Tensor, table: Tensor) -> Tensor:
    """Turn channel pairs (i, i + D / 2) of each head by the angle of their position; plain form only."""
    cos, sin = table.to(x_BLHD.dtype).unsqueeze(2)
    first, second = x_BLHD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int, keys: Tensor | None) -> Tensor:
    """Softmax attention (B, H, L, ·) of each letter to those at most ``window`` away; plain form only.

    ``keys`` (B, 1, 1, L) bool says which letters may be seen at all; a letter that may see none sees itself.
    """
    length = q.shape[2]
    if window >= length - 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    position = torch.arange(length, device=q.device)
    parts = []
    for queries in position.split(BAND_LETTERS):
        first, last = int(queries[0]), int(queries[-1]) + 1
        seen = slice(max(0, first - window), min(length, last + window))
        mask = (queries[:, None] - position[seen]).abs() <= window
        if keys is not None:
            mask = mask & keys[..., seen] | (queries[:, None] == position[seen])
        parts.append(F.scaled_dot_product_attention(q[:, :, first:last], k[:, :, seen], v[:, :, seen], attn_mask=mask))
    return torch.cat(parts, dim=2)


def attend(
    x_BLD: Tensor, w_in: Tensor, heads: int, table: Tensor, window: int | None, padding: Padding | None
) -> Tensor:
    """Softmax self-attention of ``x_BLD`` with rotary positions (B, L, D), within a band.

    Parameters
    ----------
    x_BLD
        Normalised stream.
    w_in
        Rows of q, k and v of all heads.
    heads
        Their number.
    table
        Cosines and sines (2, L, head width / 2), float32.
    window
        Each letter sees those at most so many letters away; None: all.
    padding
        Where letters are; None for everywhere.
    """
    batch, length, _ = x_BLD.shape
    width = len(w_in) // (3 * heads)
    window = length if window is None else min(window, length)
    if width % 16 == 0 and uses_kernels(x_BLD):
        return fused.attend(x_BLD, w_in, heads, table, window, None if padding is None else padding.lengths)
    q, k, v = F.linear(x_BLD, w_in).unflatten(-1, (3, heads, width)).unbind(2)
    q, k, v = (piece.transpose(1, 2) for piece in (rotate(q, table), rotate(k, table), v))
    mixed = banded_attention(q, k, v, window, None if padding is None else padding.keys)
    return mixed.transpose(1, 2).reshape(batch, length, heads * width)
