"""The fast CPU backend of the gated delta rule: compiled sequential loops, forward and backward.

A (sequence, head) is computed by one thread, so that no number depends on how many there are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from had.ops.arguments import working_dtype
from had.ops.compiled import compile_kernel, load_kernels, why_unavailable
from had.ops.threads import share

__all__ = ["cpu_gated_delta_rule", "prepare", "why_unavailable"]


def prepare(dtype: torch.dtype = torch.float32) -> float:
    """Compile the kernels for a dtype, or load them from the cache; done by the first call otherwise.

    Parameters
    ----------
    dtype
        float32 or float64.

    Returns
    -------
    float
        Seconds that this took in this process, whenever it was done.
    """
    from numba import types

    real = types.float64 if dtype == torch.float64 else types.float32
    flat = types.Array(real, 1, "C")
    shared = (types.intp, types.intp, types.UniTuple(types.intp, 4), types.Array(types.int64, 2, "C"))
    kernels = load_kernels("cpu_kernels")
    return sum(
        compile_kernel(kernel, (*shared, real, types.boolean, *[flat] * arrays))
        for kernel, arrays in ((kernels.forward, 10), (kernels.backward, 14))
    )


def _flat(x: Tensor) -> tuple[NDArray[Any], tuple[int, int, int]]:
    """One-dimensional array over a tensor's memory, with the strides of batch, token and head in elements."""
    x = x.detach()
    if x.ndim == 4 and x.stride(3) != 1:
        x = x.contiguous()
    strides = x.stride()
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    return x.as_strided((span,), (1,)).numpy(), (strides[0], strides[1], strides[2])


def _scalar(value: float, dtype: torch.dtype) -> np.floating[Any]:
    return np.float64(value) if dtype == torch.float64 else np.float32(value)


def _forward(
    inputs: Sequence[Tensor], start: Tensor, scale: float, normalise: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, final state, and what the backward pass needs where ``keep`` is set: errors and kept states.

    ``inputs`` are q, k, v, g and beta.
    """
    q, _, v, _, _ = inputs
    (B, L, H, K), V = q.shape, v.shape[-1]
    prepare(q.dtype)
    kernels = load_kernels("cpu_kernels")
    o, end = q.new_empty(B, L, H, V), q.new_empty(B, H, K, V)
    blocks = -(-L // kernels.BLOCK)
    errors = q.new_empty((B, L, H, V) if keep else (B, H, V))
    kept = q.new_empty((B * H, blocks, K, V) if keep else (0,))
    arrays, strides = zip(*map(_flat, inputs), strict=True)
    outputs = [x.view(-1).numpy() for x in (start.detach().contiguous(), o, end, errors, kept)]
    arguments = ((L, H, K, V), np.array(strides, dtype=np.int64), _scalar(scale, q.dtype), normalise, *arrays, *outputs)
    share(lambda first, last: kernels.forward(first, last, *arguments), B * H)
    return o, end, errors, kept


class _GatedDeltaRule(torch.autograd.Function):
    """The compiled forward and backward passes, joined for autograd."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, start: Tensor, scale: float, normalise: bool
    ) -> tuple[Tensor, Tensor]:
        o, end, errors, kept = _forward((q, k, v, g, beta), start, scale, normalise, keep=True)
        ctx.save_for_backward(q, k, g, beta, errors, kept)
        ctx.scale, ctx.normalise = scale, normalise
        ctx.set_materialize_grads(False)
        return o, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor | None, d_end: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, g, beta, errors, kept = ctx.saved_tensors
        (B, L, H, K), V = q.shape, errors.shape[-1]
        kernels = load_kernels("cpu_kernels")
        do = torch.zeros_like(errors) if do is None else do.contiguous()
        d_end = q.new_zeros(B, H, K, V) if d_end is None else d_end.contiguous()
        dq, dk, dv = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(errors.shape)
        dg, dbeta, d_start = q.new_empty(g.shape), q.new_empty(g.shape), q.new_empty(d_end.shape)
        (q_array, k_array, g_array, beta_array), (q_strides, k_strides, g_strides, beta_strides) = zip(
            *map(_flat, (q, k, g, beta)), strict=True
        )
        # The third row is that of v, which the backward pass does not read.
        strides = np.array([q_strides, k_strides, (0, 0, 0), g_strides, beta_strides], dtype=np.int64)
        tensors = (errors, kept, do, d_end, dq, dk, dv, dg, dbeta, d_start)
        arguments = (
            (L, H, K, V), strides, _scalar(ctx.scale, q.dtype), ctx.normalise,
            q_array, k_array, g_array, beta_array, *[x.view(-1).numpy() for x in tensors],
        )  # fmt: skip
        share(lambda first, last: kernels.backward(first, last, *arguments), B * H)
        return dq, dk, dv, dg, dbeta, d_start, None, None


def cpu_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the gated delta rule with the compiled CPU kernels.

    Arguments as those of ``had.ops.gated_delta_rule``, checked by it, with at least one token and one sequence. Half
    precisions are computed in float32. Uses as many threads as ``torch.get_num_threads()`` says. Returns the output
    (B, L, H, V) in the dtype of v and the final state (B, H, K, V).
    """
    B, _, H, K = q.shape
    V = v.shape[-1]
    dtype = working_dtype(v)
    inputs = [x.to(dtype) for x in (q, k, v, g, beta)]
    more_K, more_V = -K % 8, -V % 32
    if more_K:
        inputs[:2] = [F.pad(x, (0, more_K)) for x in inputs[:2]]
    if more_V:
        inputs[2] = F.pad(inputs[2], (0, more_V))
    if initial_state is None:
        start = q.new_zeros(B, H, K + more_K, V + more_V, dtype=dtype)
    else:
        start = F.pad(initial_state.to(dtype), (0, more_V, 0, more_K))
    normalise = bool(use_qk_l2norm_in_kernel)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, start)):
        o, end = _GatedDeltaRule.apply(*inputs, start, scale, normalise)
    else:
        o, end, _, _ = _forward(inputs, start, scale, normalise, keep=False)
    return o[..., :V].to(v.dtype), end[:, :, :K, :V]
