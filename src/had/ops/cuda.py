"""The CUDA backend of the gated delta rule: this project's Triton kernels as PyTorch operators.

The two passes are operators of their own (``torch.library``), so that ``torch.compile`` keeps them in its graph and
CUDA graphs can hold them. With ``TRITON_INTERPRET=1`` the same kernels run on CPU tensors, slowly, which is how they
are tested without a GPU. Their speed has not been measured on a GPU yet.
"""

import functools
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from had.ops.arguments import working_dtype
from had.ops.segments import in_segments

HALF = (torch.bfloat16, torch.float16)
MOST_KEYS, MOST_VALUES = 64, 512
"""Largest K and V: a wider state does not stay in registers."""
STATE = 2048
"""Elements of the state, K times a block of V, that one program holds."""
PROGRAMS = 4
"""Programs per multiprocessor below which a long sequence is cut into segments."""
SHORTEST_SEGMENT = 512
"""Tokens."""


@dataclass(frozen=True)
class Plan:
    """How the kernels compute one kind of numbers."""

    tokens: int
    """Tokens of a chunk: a power of two from 16 to 32, so that no matrix product has 64 rows of tokens."""
    warps: int
    """Warps of a program, where K is below 64; 2 otherwise, for the reason that the kernels give."""
    precision: str
    """Of matrix products: Triton's ``input_precision``."""
    inverse_precision: str
    """Of the products that invert a chunk's triangular matrix."""
    registers: int | None = None
    """Most registers of a thread; None leaves it to the compiler."""


PLANS = {
    "float32": Plan(tokens=16, warps=4, precision="ieee", inverse_precision="ieee"),
    # The matrix units' 10-bit mantissa is finer than bfloat16's 7 and as fine as float16's.
    "half": Plan(tokens=16, warps=2, precision="tf32", inverse_precision="tf32x3"),
}
"""By kind of number: half where q, k and v are all bfloat16 or float16. Not tuned on a GPU yet."""


@functools.cache
def _kernels() -> ModuleType:
    from had.ops import triton_kernels

    return triton_kernels


@functools.cache
def interpreted() -> bool:
    """Say whether Triton interprets the kernels on the CPU (``TRITON_INTERPRET=1`` when they were imported)."""
    return type(_kernels().forward_kernel).__name__ == "InterpretedFunction"


@functools.cache
def why_unavailable(device: torch.device) -> str | None:
    """Say why the kernels cannot run on a device, or None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        interprets = interpreted()
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    if interprets:
        return None
    if device.type != "cuda":
        return f"the tensors are on {device}"
    if torch.version.hip is not None:
        return "its Triton kernels are for NVIDIA's GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"its Triton kernels need compute capability 8.0; this GPU has {capability[0]}.{capability[1]}"
    return None


def why_unfit(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Say why the kernels do not compute tensors of these dtypes and widths, or None where they do."""
    if any(x.dtype not in (torch.float32, *HALF) for x in (q, k, v)):
        return "its kernels compute float32, bfloat16 and float16 only"
    if q.shape[-1] > MOST_KEYS or v.shape[-1] > MOST_VALUES:
        return f"its kernels hold K up to {MOST_KEYS} and V up to {MOST_VALUES}; got {q.shape[-1]} and {v.shape[-1]}"
    return None


def _power_of_two(n: int) -> int:
    """The next power of two, and at least 16, which a matrix product needs."""
    return max(16, 1 << (n - 1).bit_length())


def _plan(q: Tensor, k: Tensor, v: Tensor) -> Plan:
    return PLANS["half" if all(x.dtype in HALF for x in (q, k, v)) else "float32"]


def _blocks(K: int, V: int) -> tuple[int, int, int]:
    """Padded key width, value channels of a program, and the number of programs that share the value channels."""
    keys = _power_of_two(K)
    values = min(_power_of_two(V), STATE // keys)
    return keys, values, -(-V // values)


def _options(plan: Plan, K: int, V: int, normalise: bool) -> dict[str, Any]:
    """What both kernels are compiled for."""
    keys, values, _ = _blocks(K, V)
    options: dict[str, Any] = {
        "K": K, "V": V, "BK": keys, "BV": values,
        "C": plan.tokens, "LEVELS": plan.tokens.bit_length() - 1, "NORMALISE": normalise,
        "PRECISION": plan.precision, "INVERSE_PRECISION": plan.inverse_precision,
        "num_warps": plan.warps if keys < 64 else 2, "num_stages": 1,
    }  # fmt: skip
    if plan.registers is not None:
        options["maxnreg"] = plan.registers
    return options


def _stored(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the kernels write; Triton's interpreter rounds to bfloat16 wrongly, so there PyTorch does."""
    return torch.float32 if dtype == torch.bfloat16 and interpreted() else dtype


@torch.library.custom_op(
    "had::gated_delta_rule_forward",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? start, float scale, bool normalise, "
    "bool keep) -> (Tensor, Tensor, Tensor)",
)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, start: Tensor | None, scale: float, normalise: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, final state, and the states before every chunk (B·H, chunks, K, V) where ``keep`` is set."""
    (B, L, H, K), V = q.shape, v.shape[-1]
    plan = _plan(q, k, v)
    inputs = [x.contiguous() for x in (q, k, v, g, beta)]
    o = v.new_empty(B, L, H, V, dtype=_stored(v.dtype))
    end = v.new_empty(B, H, K, V, dtype=torch.float32)
    kept = end.new_empty((B * H, -(-L // plan.tokens), K, V) if keep else (0,))
    with torch.cuda.device_of(q):
        _kernels().forward_kernel[B * H, _blocks(K, V)[2]](
            *inputs, end if start is None else start.contiguous(), o, end, kept, L, H, scale,
            HAS_START=start is not None, KEEP=keep, **_options(plan, K, V, normalise),
        )  # fmt: skip
    return o.to(v.dtype), end, kept


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, start: Tensor | None, scale: float, normalise: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (B, L, H, K), V = q.shape, v.shape[-1]
    end = v.new_empty(B, H, K, V, dtype=torch.float32)
    chunks = -(-L // _plan(q, k, v).tokens)
    return v.new_empty(B, L, H, V), end, end.new_empty((B * H, chunks, K, V) if keep else (0,))


@torch.library.custom_op(
    "had::gated_delta_rule_backward",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor kept, Tensor do, Tensor? d_end, float scale, "
    "bool normalise, bool has_start) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, kept: Tensor, do: Tensor, d_end: Tensor | None,
    scale: float, normalise: bool, has_start: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, g, beta and the initial state, the last empty where there was none."""
    (B, L, H, K), V = q.shape, v.shape[-1]
    plan, parts = _plan(q, k, v), _blocks(K, V)[2]
    inputs = [x.contiguous() for x in (q, k, v, g, beta)]
    # Each block of V writes its own part of what sums over V.
    dtypes = [_stored(x.dtype) if parts == 1 else torch.float32 for x in (q, k, g, beta)]
    shapes = ((B, L, H, K), (B, L, H, K), (B, L, H), (B, L, H))
    dq, dk, dg, dbeta = (q.new_empty(parts, *shape, dtype=t) for shape, t in zip(shapes, dtypes, strict=True))
    dv = v.new_empty(B, L, H, V, dtype=_stored(v.dtype))
    d_start = kept.new_empty((B, H, K, V) if has_start else (0,))
    with torch.cuda.device_of(q):
        _kernels().backward_kernel[B * H, parts](
            *inputs, kept, do.contiguous(), d_start if d_end is None else d_end.contiguous(),
            dq, dk, dv, dg, dbeta, d_start, L, H, B * L * H, scale,
            HAS_END=d_end is not None, HAS_START=has_start, **_options(plan, K, V, normalise),
        )  # fmt: skip
    sums = [x[0] if parts == 1 else x.sum(0) for x in (dq, dk, dg, dbeta)]
    dq, dk, dg, dbeta = (x.to(like.dtype) for x, like in zip(sums, (q, k, g, beta), strict=True))
    return dq, dk, dv.to(v.dtype), dg, dbeta, d_start


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, kept: Tensor, do: Tensor, d_end: Tensor | None,
    scale: float, normalise: bool, has_start: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (B, _, H, K), V = q.shape, v.shape[-1]
    d_start = kept.new_empty((B, H, K, V) if has_start else (0,))
    dq, dk, dv, dg, dbeta = (x.new_empty(x.shape) for x in (q, k, v, g, beta))
    return dq, dk, dv, dg, dbeta, d_start


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, g, beta, start, ctx.scale, ctx.normalise, _ = inputs
    ctx.has_start = start is not None
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, g, beta, output[2])


def _differentiate(
    ctx: Any, do: Tensor | None, d_end: Tensor | None, d_kept: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, g, beta, kept = ctx.saved_tensors
    do = torch.zeros_like(v) if do is None else do
    *gradients, d_start = _backward(q, k, v, g, beta, kept, do, d_end, ctx.scale, ctx.normalise, ctx.has_start)
    return *gradients, d_start if ctx.has_start else None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_set_up)


def segment_length(B: int, L: int, H: int, programs: int, multiprocessors: int) -> int:
    """Tokens of the segments into which sequences are cut; L where they are not.

    One program runs through a whole sequence, so a few long ones leave most of a GPU idle. Segments cost two and a half
    times the work: fewer than four would gain nothing. ``programs`` share the value channels of a head.
    """
    count = min(PROGRAMS * multiprocessors // max(1, B * H * programs), L // SHORTEST_SEGMENT)
    return L if count < 4 else -(-L // (count * 32)) * 32


def _in_one_piece(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, start: Tensor | None, normalise: bool
) -> tuple[Tensor, Tensor]:
    leaves = (q, k, v, g, beta, *(() if start is None else (start,)))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    o, end, _ = _forward(q, k, v, g, beta, start, scale, normalise, keep)
    return o, end


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def cuda_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the gated delta rule with this project's Triton kernels.

    Arguments as those of ``had.ops.gated_delta_rule``, checked by it and by `why_unavailable` and `why_unfit`, with at
    least one token and one sequence. Where q, k and v are half precisions, matrix products are in tf32; else everything
    is float32. Returns the output (B, L, H, V) in the dtype of v and the final state (B, H, K, V) in float32.
    """
    (B, L, H, K), V = q.shape, v.shape[-1]
    start = None if initial_state is None else initial_state.to(working_dtype(v))
    normalise = bool(use_qk_l2norm_in_kernel)
    # A traced graph keeps one piece: cutting would tie it to the GPU at hand.
    traced = torch.compiler.is_compiling()
    tokens = L if traced else segment_length(B, L, H, _blocks(K, V)[2], _multiprocessors(q.device))
    if tokens < L:
        return in_segments(_in_one_piece, q, k, v, g, beta, float(scale), start, normalise, tokens)
    return _in_one_piece(q, k, v, g, beta, float(scale), start, normalise)
