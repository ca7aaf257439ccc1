"""The student's arithmetic between its matrix products, as functions that can be replaced one by one.

Each function has a plain form, of ordinary PyTorch operations, and a form for float32 and float64 tensors on
a CPU that goes through the batch in pieces that stay in the processor's cache and whose backward pass is
written by hand; the two are compared by tests. On a GPU, under autocast and while a graph is exported the
plain form runs.

Shape suffixes: B batch, L length, C channels, W taps, N = B·L letters, D width, 2 the directions of travel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_MLP_ROWS = 255
"""Letters per piece of the gated MLP: the fastest of 64 … 2,040 for widths 128 → 640 → 128."""


def runs_in_pieces(x: Tensor) -> bool:
    """Whether the cache-sized form applies to ``x``."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        normal = x * scale
        ctx.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, scale, weight = ctx.saved_tensors
        product = grad * normal
        d_weight = product.flatten(0, -2).sum(0)
        along = (product @ weight).div_(weight.numel()).unsqueeze(-1)
        return (grad * weight).addcmul_(normal, along, value=-1).mul_(scale), d_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation of ``x`` (..., d) over its last axis, times ``weight`` (d,)."""
    if runs_in_pieces(x):
        return _RMSNorm.apply(x, weight, eps)
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        n = len(x_ND)
        keep = any(ctx.needs_input_grad)
        both = x.new_empty(n if keep else min(n, _MLP_ROWS), len(w_in))
        out = x.new_empty(n, len(w_out))
        for start in range(0, n, _MLP_ROWS):
            rows = slice(start, min(start + _MLP_ROWS, n))
            piece = both[rows] if keep else both[: rows.stop - start]
            torch.mm(x_ND[rows], w_in.t(), out=piece)
            gate, up = piece.chunk(2, dim=-1)
            torch.mm(F.silu(gate).mul_(up), w_out.t(), out=out[rows])
        ctx.save_for_backward(x_ND, w_in, w_out, both)
        return out.view(*x.shape[:-1], len(w_out))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_ND, w_in, w_out, both = ctx.saved_tensors
        grad_ND = grad.reshape(-1, grad.shape[-1])
        d_x, d_in, d_out = torch.empty_like(x_ND), torch.zeros_like(w_in), torch.zeros_like(w_out)
        d_both = both.new_empty(_MLP_ROWS, len(w_in))
        for start in range(0, len(x_ND), _MLP_ROWS):
            rows = slice(start, min(start + _MLP_ROWS, len(x_ND)))
            gate, up = both[rows].chunk(2, dim=-1)
            d_piece = d_both[: rows.stop - start]
            d_gate, d_up = d_piece.chunk(2, dim=-1)
            d_product = grad_ND[rows] @ w_out
            activated = F.silu(gate)
            torch.mul(d_product, activated, out=d_up)
            d_out.addmm_(grad_ND[rows].t(), activated.mul_(up))
            torch.ops.aten.silu_backward.grad_input(d_product.mul_(up), gate, grad_input=d_gate)
            torch.mm(d_piece, w_in, out=d_x[rows])
            d_in.addmm_(d_piece.t(), x_ND[rows])
        return d_x.view(*grad.shape[:-1], -1), d_in, d_out


def gated_mlp(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """``w_out · (SiLU(gate) * up)`` for ``[gate, up] = w_in · x``.

    ``x`` (..., d), ``w_in`` (2·hidden, d), ``w_out`` (d_out, hidden); returns (..., d_out).
    """
    if runs_in_pieces(x):
        return _GatedMLP.apply(x, w_in, w_out)
    gate, up = F.linear(x, w_in).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, w_out)


def _convolve(row_LC: Tensor, taps_WC: Tensor) -> Tensor:
    """Causal depth-wise convolution of one sequence; the last tap meets the letter itself."""
    width = len(taps_WC)
    out = row_LC * taps_WC[-1]
    for back in range(1, min(width, len(row_LC))):
        out[back:].addcmul_(row_LC[:-back], taps_WC[width - 1 - back])
    return out


class _ConvolutionSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_2BLC: Tensor, weight_2CW: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        taps_2WC = weight_2CW.transpose(1, 2).contiguous()
        out = tuple(x_2BLC.new_empty(*x_2BLC.shape[:3], size) for size in sizes)
        for direction, taps in enumerate(taps_2WC):
            for row, x_LC in enumerate(x_2BLC[direction]):
                pieces = _convolve(x_LC, taps).split(sizes, dim=-1)
                for piece, target in zip(pieces, out, strict=True):
                    torch.ops.aten.silu.out(piece, out=target[direction, row])
        ctx.save_for_backward(x_2BLC, taps_2WC)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_2BLC, taps_2WC = ctx.saved_tensors
        width, length = taps_2WC.shape[1], x_2BLC.shape[2]
        d_x = torch.empty(x_2BLC.shape, dtype=x_2BLC.dtype)
        d_taps = torch.zeros_like(taps_2WC)
        reach = range(1, min(width, length))
        for direction, taps in enumerate(taps_2WC):
            for row, x_LC in enumerate(x_2BLC[direction]):
                # The pre-activation is computed again: cheaper than keeping it for the whole batch.
                before = _convolve(x_LC, taps)
                pieces = before.split(ctx.sizes, dim=-1)
                for piece, grad in zip(pieces, grads, strict=True):
                    torch.ops.aten.silu_backward.grad_input(grad[direction, row], piece, grad_input=piece)
                d_row = d_x[direction, row]
                torch.mul(before, taps[-1], out=d_row)
                d_taps[direction, -1] += (before * x_LC).sum(0)
                for back in reach:
                    d_row[:-back].addcmul_(before[back:], taps[width - 1 - back])
                    d_taps[direction, width - 1 - back] += (before[back:] * x_LC[:-back]).sum(0)
        return d_x, d_taps.transpose(1, 2), None


def convolution_silu(x_2BLC: Tensor, weight_2CW: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Causal depth-wise convolution in both directions, then SiLU.

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
    if runs_in_pieces(x_2BLC):
        return _ConvolutionSiLU.apply(x_2BLC, weight_2CW, sizes)
    _, batch, length, channels = x_2BLC.shape
    width = weight_2CW.shape[-1]
    x = x_2BLC.permute(1, 0, 3, 2).reshape(batch, 2 * channels, length)
    weight = weight_2CW.reshape(2 * channels, 1, width).to(x.dtype)
    out = F.silu(F.conv1d(x, weight, padding=width - 1, groups=2 * channels)[..., :length])
    out = out.view(batch, 2, channels, length).permute(1, 0, 3, 2)
    return tuple(piece.contiguous() for piece in out.split(sizes, dim=-1))


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return torch.index_select(x.flatten(0, 1), 0, index.flatten()).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return torch.index_select(grad.flatten(0, 1), 0, inverse.flatten()).view(grad.shape), None, None


def permute_letters(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Reorder the letters of each row of ``x`` (B, L, ...): a gather in both passes, never a scatter.

    ``index`` and its inverse permutation are (B, L) int64 positions in ``x.flatten(0, 1)``.
    """
    return _Permute.apply(x, index, inverse)
