"""The student's arithmetic on a CPU in float32, with the compiled kernels of ``had.ops`` between its matrix products.

Their plain twins, with the meaning of every argument, are in ``had.models.functional``. Large products go through the
batch in pieces that stay in the processor's cache; intermediate results that are cheap are computed again in the
backward pass.

Shape suffixes: B batch, L length, N = B·L letters, D width, C channels, H heads, V value width, 2 the directions.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from had.ops.compiled import load_kernels, run_kernel

PIECE_LETTERS = 1024
"""Letters per piece of a large product, or one sequence where that is longer."""
NO_TOKENS = np.empty(0, np.int64)
"""Tells the convolution's kernels that each letter has a row of its own."""


def _flat(x: Tensor) -> NDArray[Any]:
    # Not reshape: it may give a view with a stride, of which the kernels know nothing.
    return x.detach().contiguous().view(-1).numpy()


def _keeps(*tensors: Tensor) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _row_units(rows: int) -> int:
    return -(-rows // int(load_kernels("row_kernels").ROWS))


class _RMSNormBeside(torch.autograd.Function):
    """``x`` itself and its normalised form, so that the gradient of both is summed in the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        contiguous = x.contiguous()
        y, scales = x.new_empty(x.shape), x.new_empty(rows)
        arrays = [_flat(part) for part in (contiguous, weight, y, scales)]
        run_kernel("row_kernels", "norm_forward", _row_units(rows), rows, width, np.float32(eps), *arrays)
        ctx.save_for_backward(contiguous, weight, scales)
        ctx.set_materialize_grads(False)
        return x, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, beside: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if dy is None:
            return beside, None, None
        x, weight, scales = ctx.saved_tensors
        rows, width = len(scales), len(weight)
        units = _row_units(rows)
        dx, d_weight = x.new_empty(x.shape), x.new_empty(units, width)
        other = x.new_empty(0) if beside is None else beside
        arrays = [_flat(part) for part in (x, weight, scales, dy, other, dx, d_weight)]
        run_kernel("row_kernels", "norm_backward", units, rows, width, *arrays)
        return dx, d_weight.sum(0), None


class _GatedMLP(torch.autograd.Function):
    """The gated MLP, and its residual connection where there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, w_out: Tensor, residual: Tensor | None, keep: bool) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        n, hidden = len(x_ND), len(w_in) // 2
        both = x.new_empty(n if keep else min(n, PIECE_LETTERS), 2 * hidden)
        product = x.new_empty(min(n, PIECE_LETTERS), hidden)
        out = x.new_empty(n, len(w_out))
        beside = None if residual is None else residual.reshape(-1, len(w_out))
        for first in range(0, n, PIECE_LETTERS):
            rows = slice(first, min(first + PIECE_LETTERS, n))
            length = rows.stop - first
            piece, active = both[rows] if keep else both[:length], product[:length]
            torch.mm(x_ND[rows], w_in.t(), out=piece)
            run_kernel(
                "row_kernels", "gate_forward", _row_units(length), length, hidden, _flat(piece), _flat(active)
            )  # fmt: skip
            if beside is None:
                torch.mm(active, w_out.t(), out=out[rows])
            else:
                torch.addmm(beside[rows], active, w_out.t(), out=out[rows])
        if keep:
            ctx.save_for_backward(x_ND, w_in, w_out, both)
        return out.view(*x.shape[:-1], len(w_out))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, w_in, w_out, both = ctx.saved_tensors
        n, hidden = len(x_ND), len(w_in) // 2
        grad_ND = grad.reshape(n, -1)
        d_x, d_in, d_out = torch.empty_like(x_ND), torch.zeros_like(w_in), torch.zeros_like(w_out)
        shape = min(n, PIECE_LETTERS), hidden
        d_products, products, d_boths = (
            both.new_empty(shape),
            both.new_empty(shape),
            both.new_empty(shape[0], 2 * hidden),
        )
        for first in range(0, n, PIECE_LETTERS):
            rows = slice(first, min(first + PIECE_LETTERS, n))
            length = rows.stop - first
            d_product, product, d_both = d_products[:length], products[:length], d_boths[:length]
            torch.mm(grad_ND[rows], w_out, out=d_product)
            arrays = [_flat(part) for part in (both[rows], d_product, d_both, product)]
            run_kernel("row_kernels", "gate_backward", _row_units(length), length, hidden, *arrays)
            d_out.addmm_(grad_ND[rows].t(), product)
            torch.mm(d_both, w_in, out=d_x[rows])
            d_in.addmm_(d_both.t(), x_ND[rows])
        return d_x.view(*grad.shape[:-1], -1), d_in, d_out, grad if ctx.needs_input_grad[3] else None, None


def _way_in(
    like: Tensor, B: int, L: int, conv_weight: Tensor, A_log: Tensor, channels: tuple[int, int, int],
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, NDArray[np.int64], tuple[Tensor, ...]]:  # fmt: skip
    """Taps, rates and lengths as the kernels take them, and room for q, k, v, the log decay and the write strength."""
    room = [like.new_empty(2, B, L, size) for size in (*channels, A_log.shape[1], A_log.shape[1])]
    real = np.full(B, L, np.int64) if lengths is None else lengths.numpy()
    return conv_weight.transpose(1, 2).contiguous(), A_log.exp(), real, tuple(room)


def _way_in_gradients(taps: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of taps, A_log and dt_bias, of each sequence."""
    _, B, _, H = beta.shape
    return taps.new_empty(2, B, *taps.shape[1:]), taps.new_empty(2, B, H), taps.new_empty(2, B, H)


def _summed(d_taps: Tensor, d_rates: Tensor, d_steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those gradients over all sequences, the former in the order of ``conv_weight``."""
    return d_taps.sum(1).flip(1).transpose(1, 2), d_rates.sum(1), d_steps.sum(1)


class _ProjectBothWays(torch.autograd.Function):
    """Projection, convolution, SiLU and gates of both directions, and the projection of the output gate."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_in: Tensor, conv_weight: Tensor, A_log: Tensor, dt_bias: Tensor,
        channels: tuple[int, int, int], lengths: Tensor | None, keep: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        B, L, D = x.shape
        H, W = A_log.shape[1], conv_weight.shape[2]
        both = 2 * (sum(channels) + 2 * H)
        x_ND = x.reshape(-1, D)
        together = max(1, PIECE_LETTERS // L)
        taps, rates, real, room = _way_in(x, B, L, conv_weight, A_log, channels, lengths)
        weights, outputs = [_flat(part) for part in (taps, rates, dt_bias)], [_flat(part) for part in room]
        pieces: list[Tensor] = []
        for place in range(0, B, together):
            n = min(together, B - place)
            if keep or not pieces:
                pieces.append(x.new_empty(n * L, both))
            p = pieces[-1][: n * L]
            torch.mm(x_ND[place * L : (place + n) * L], w_in[:both].t(), out=p)
            sizes = (n, B, L, H, W)
            run_kernel(
                "convolution_kernels", "forward", 2 * n, sizes, channels, place, real, NO_TOKENS, _flat(p), *weights,
                *outputs,
            )  # fmt: skip
        gate = torch.mm(x_ND, w_in[both:].t())
        if keep:
            ctx.save_for_backward(x_ND, w_in, taps, rates, dt_bias, *room[3:], *pieces)
            ctx.channels, ctx.real, ctx.together = channels, real, together
        return *room, gate.view(B, L, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, w_in, taps, rates, dt_bias, log_decay, beta, *pieces = ctx.saved_tensors
        (_, B, L, H), W, channels = beta.shape, taps.shape[1], ctx.channels
        both = pieces[0].shape[1]
        dq, dk, dv, d_log_decay, d_beta, d_gate = grads
        d_x, d_in = torch.empty_like(x_ND), torch.zeros_like(w_in)
        d_weights = _way_in_gradients(taps, beta)
        d_gate_ND, d_pieces = d_gate.reshape(len(x_ND), -1), torch.empty_like(pieces[0])
        inputs = [_flat(part) for part in (taps, rates, dt_bias, log_decay, beta, dq, dk, dv, d_log_decay, d_beta)]
        outputs = [_flat(part) for part in d_weights]
        for index, p in enumerate(pieces):
            place, n = index * ctx.together, len(p) // L
            rows = slice(place * L, (place + n) * L)
            sizes, d_p = (n, B, L, H, W), d_pieces[: len(p)]
            run_kernel(
                "convolution_kernels", "backward", 2 * n, sizes, channels, place, ctx.real, NO_TOKENS, _flat(p),
                *inputs, _flat(d_p), *outputs,
            )  # fmt: skip
            torch.mm(d_gate_ND[rows], w_in[both:], out=d_x[rows])
            d_x[rows].addmm_(d_p, w_in[:both])
            d_in[:both].addmm_(d_p.t(), x_ND[rows])
        torch.mm(d_gate_ND.t(), x_ND, out=d_in[both:])
        return d_x.view(B, L, -1), d_in, *_summed(*d_weights), None, None, None


class _TokensBothWays(torch.autograd.Function):
    """What ``_ProjectBothWays`` computes, of letters that are the rows of a table: products of the table alone."""

    @staticmethod
    def forward(
        ctx: Any, table_TD: Tensor, tokens_BL: Tensor, w_in: Tensor, conv_weight: Tensor, A_log: Tensor,
        dt_bias: Tensor, channels: tuple[int, int, int], lengths: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        B, L = tokens_BL.shape
        H, W = A_log.shape[1], conv_weight.shape[2]
        both = 2 * (sum(channels) + 2 * H)
        table, w_in = table_TD.contiguous(), w_in.contiguous()
        p = torch.mm(table, w_in[:both].t())
        taps, rates, real, room = _way_in(p, B, L, conv_weight, A_log, channels, lengths)
        tokens = tokens_BL.reshape(-1)
        arrays = [_flat(part) for part in (tokens, p, taps, rates, dt_bias, *room)]
        run_kernel("convolution_kernels", "forward", 2 * B, (B, B, L, H, W), channels, 0, real, *arrays)
        gate = torch.mm(table, w_in[both:].t()).index_select(0, tokens)
        ctx.save_for_backward(table, tokens, w_in, p, taps, rates, dt_bias, *room[3:])
        ctx.channels, ctx.real = channels, real
        return *room, gate.view(B, L, len(w_in) - both)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        table, tokens, w_in, p, taps, rates, dt_bias, log_decay, beta = ctx.saved_tensors
        (_, B, L, H), W, channels = beta.shape, taps.shape[1], ctx.channels
        dq, dk, dv, d_log_decay, d_beta, d_gate = grads
        d_p, d_weights = p.new_empty(B * L, p.shape[1]), _way_in_gradients(taps, beta)
        inputs = (tokens, p, taps, rates, dt_bias, log_decay, beta, dq, dk, dv, d_log_decay, d_beta)
        arrays = [_flat(part) for part in (*inputs, d_p, *d_weights)]
        run_kernel("convolution_kernels", "backward", 2 * B, (B, B, L, H, W), channels, 0, ctx.real, *arrays)
        # A product sums the letters of each token faster than a scatter does, and always in the same order.
        is_token = p.new_zeros(B * L, len(table)).scatter_(1, tokens[:, None], 1.0).t()
        d_rows = torch.cat((is_token @ d_p, is_token @ d_gate.contiguous().view(B * L, d_gate.shape[2])), dim=1)
        return d_rows @ w_in, None, d_rows.t() @ table, *_summed(*d_weights), None, None


class _MergeDirections(torch.autograd.Function):
    """Per-head RMSNorm of both directions' outputs, the reverse one turned round, their sum, times SiLU(gate)."""

    @staticmethod
    def forward(
        ctx: Any, o_2BLHV: Tensor, weight_2V: Tensor, gate_BLC: Tensor, eps: float, lengths: Tensor | None
    ) -> Tensor:
        _, B, L, H, V = o_2BLHV.shape
        o, gate = o_2BLHV.contiguous(), gate_BLC.contiguous()
        out = gate.new_empty(gate.shape)
        ctx.real = np.full(B, L, np.int64) if lengths is None else lengths.numpy()
        ctx.eps = np.float32(eps)
        arrays = [_flat(part) for part in (o, weight_2V, gate, out)]
        run_kernel("row_kernels", "merge_forward", _row_units(B * L), (B * L, L, H, V), ctx.real, ctx.eps, *arrays)
        ctx.save_for_backward(o, weight_2V, gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        o, weight, gate = ctx.saved_tensors
        _, B, L, H, V = o.shape
        units = _row_units(B * L)
        d_o, d_gate, d_weight = o.new_empty(o.shape), gate.new_empty(gate.shape), o.new_empty(units, 2, V)
        arrays = [_flat(part) for part in (o, weight, gate, grad, d_o, d_gate, d_weight)]
        run_kernel("row_kernels", "merge_backward", units, (B * L, L, H, V), ctx.real, ctx.eps, *arrays)
        return d_o, d_weight.sum(0), d_gate, None, None


class _Attend(torch.autograd.Function):
    """Softmax attention within a band, of queries and keys that are turned by their positions."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_in: Tensor, heads: int, table: Tensor, window: int, lengths: Tensor | None
    ) -> Tensor:
        B, L, D = x.shape
        x_ND = x.reshape(-1, D)
        qkv = torch.mm(x_ND, w_in.t())
        width = len(w_in) // (3 * heads)
        run_kernel(
            "row_kernels", "rotate", _row_units(B * L), (B * L, L, heads, width), np.float32(1), _flat(table),
            _flat(qkv),
        )  # fmt: skip
        out, logs = x.new_empty(B, L, heads * width), x.new_empty(B, heads, L)
        real = np.full(B, L, np.int64) if lengths is None else lengths.numpy()
        sizes, scale = (L, heads, width), np.float32(width**-0.5)
        groups = -(-L // int(load_kernels("attention_kernels").GROUP))
        arrays = [_flat(part) for part in (qkv, out, logs)]
        run_kernel(
            "attention_kernels", "attention_forward", B * heads * groups, sizes, window, scale, real, *arrays
        )  # fmt: skip
        ctx.save_for_backward(x_ND, w_in, table, qkv, out, logs)
        ctx.arguments = sizes, window, scale, real
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, w_in, table, qkv, out, logs = ctx.saved_tensors
        (B, L, _), (_, heads, width) = out.shape, ctx.arguments[0]
        d_qkv = torch.empty_like(qkv)
        arrays = [_flat(part) for part in (qkv, out, logs, grad, d_qkv)]
        run_kernel("attention_kernels", "attention_backward", B * heads, *ctx.arguments, *arrays)
        run_kernel(
            "row_kernels", "rotate", _row_units(B * L), (B * L, L, heads, width), np.float32(-1), _flat(table),
            _flat(d_qkv),
        )  # fmt: skip
        return torch.mm(d_qkv, w_in).view(B, L, -1), torch.mm(d_qkv.t(), x_ND), None, None, None, None


def rms_norm_beside(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As in ``had.models.functional``."""
    return _RMSNormBeside.apply(x, weight, eps)


def gated_mlp(x: Tensor, w_in: Tensor, w_out: Tensor, residual: Tensor | None) -> Tensor:
    """As in ``had.models.functional``."""
    return _GatedMLP.apply(x, w_in, w_out, residual, _keeps(x, w_in, w_out))


def project_both_ways(
    x_BLD: Tensor,
    w_in: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    channels: tuple[int, int, int],
    lengths_B: Tensor | None,
) -> tuple[Tensor, ...]:
    """As in ``had.models.functional``, with the lengths (B,) of the sequences where there is padding."""
    tensors = (x_BLD, w_in, conv_weight, A_log, dt_bias)
    return _ProjectBothWays.apply(*tensors, channels, lengths_B, _keeps(*tensors))


def tokens_both_ways(
    table_TD: Tensor,
    tokens_BL: Tensor,
    w_in: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    channels: tuple[int, int, int],
    lengths_B: Tensor | None,
) -> tuple[Tensor, ...]:
    """As ``project_both_ways`` of ``table_TD[tokens_BL]``, at the price of one convolution.

    Parameters
    ----------
    table_TD
        What each token is, normalised (T, D); 0 for the token of padding.
    tokens_BL
        Rows of the table (B, L), int64.
    w_in, conv_weight, A_log, dt_bias, channels, lengths_B
        As in ``project_both_ways``.
    """
    return _TokensBothWays.apply(table_TD, tokens_BL, w_in, conv_weight, A_log, dt_bias, channels, lengths_B)


def merge_directions(
    o_2BLHV: Tensor, weight_2V: Tensor, gate_BLC: Tensor, eps: float, lengths_B: Tensor | None
) -> Tensor:
    """As in ``had.models.functional``, with the lengths (B,) of the sequences where there is padding."""
    return _MergeDirections.apply(o_2BLHV, weight_2V, gate_BLC, eps, lengths_B)


def attend(x_BLD: Tensor, w_in: Tensor, heads: int, table: Tensor, window: int, lengths_B: Tensor | None) -> Tensor:
    """As in ``had.models.functional``, with the lengths (B,) of the sequences where there is padding."""
    return _Attend.apply(x_BLD, w_in, heads, table, window, lengths_B)
