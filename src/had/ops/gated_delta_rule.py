"""The gated delta rule: one public function that picks a backend and says once which.

==========  ==========================================================================================
reference   sequential PyTorch, the definition (slow)
chunked     chunks of tokens with PyTorch's operators, any device
cpu         compiled loops for the CPU (numba)
cuda        this project's Triton kernels for NVIDIA's GPUs
fla         flash-linear-attention's Triton kernels (the package ``fla-core``), half precisions only
==========  ==========================================================================================
"""

import functools
import logging
import os
import re
from importlib.util import find_spec

import torch
from torch import Tensor

from had.errors import UserError
from had.ops.arguments import check_arguments
from had.ops.chunked import chunked_gated_delta_rule
from had.ops.reference import reference_gated_delta_rule

logger = logging.getLogger(__name__)

BACKENDS = ("reference", "chunked", "cpu", "cuda", "fla")
"""Values of ``HAD_BACKEND``."""


def known_bad(capability: tuple[int, int], triton_version: str) -> bool:
    """Say whether flash-linear-attention's gated backward is wrong on this GPU with this Triton.

    That is so on Hopper (compute capability 9) from Triton 3.4 to before 3.7.1 (fla-org/flash-linear-attention issues
    640 and 984): gradients come out wrong without a message.

    Parameters
    ----------
    capability
        Compute capability of the GPU, such as (9, 0).
    triton_version
        Version of Triton, such as "3.6.0" or "3.5.0+git1a2b3c".

    Raises
    ------
    ValueError
        If the version does not begin with a number.
    """
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?((?:a|b|rc|\.dev)\d*)?", triton_version)
    if match is None:
        raise ValueError(f"no version of Triton: {triton_version!r}")
    release = tuple(int(part or 0) for part in match.groups()[:3])
    # A pre-release of the version with the fix may have been cut before it.
    fixed = release > (3, 7, 1) or (release == (3, 7, 1) and not match[4])
    return capability[0] == 9 and release >= (3, 4, 0) and not fixed


@functools.cache
def _why_not_fla(device_index: int) -> str | None:
    """Say why flash-linear-attention cannot be used on a GPU, or None where it can."""
    if find_spec("fla") is None or find_spec("triton") is None:
        return "flash-linear-attention is not installed (pip install 'had[cuda]')"
    import triton

    capability = torch.cuda.get_device_capability(device_index)
    if known_bad(capability, triton.__version__):
        return (
            "flash-linear-attention's gradients are wrong on GPUs of compute capability "
            f"{capability[0]}.{capability[1]} with Triton {triton.__version__} (3.4 up to before 3.7.1)"
        )
    return None


@torch.compiler.assume_constant_result
def _why_not_kernels(device: torch.device, dtype: torch.dtype, K: int, V: int, train: bool) -> str | None:
    """Say why this project's Triton kernels cannot be used for these tensors, or None where they can."""
    from had.ops import cuda
    from had.ops.cuda_trial import why_wrong

    reason = cuda.why_unavailable(device)
    # A trial cannot run while a CUDA graph is recorded; what is recorded has run before.
    if reason is None and device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        reason = why_wrong(device, dtype, K, V, train)
    return reason


def _kernels_reason(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    from had.ops import cuda

    return cuda.why_unfit(q, k, v) or _why_not_kernels(
        q.device, v.dtype, q.shape[-1], v.shape[-1], torch.is_grad_enabled()
    )


def _fla_reason(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Say why flash-linear-attention cannot be used for these tensors, or None where it can."""
    if q.device.type != "cuda":
        return f"the tensors are on {q.device}"
    if not (q.dtype == k.dtype == v.dtype and v.dtype in (torch.bfloat16, torch.float16)):
        return f"flash-linear-attention needs q, k and v in one half precision; v has {v.dtype}"
    return _why_not_fla(q.device.index or 0)


@functools.cache
def _say(level: int, message: str) -> None:
    logger.log(level, message)


def _say_once(level: int, message: str) -> None:
    # A compiler that traces this would stop at the logger.
    if not torch.compiler.is_compiling():
        _say(level, message)


def _automatic(q: Tensor, k: Tensor, v: Tensor) -> str:
    """Choose a backend for tensors and say so."""
    device = q.device
    exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if exporting or (torch.compiler.is_compiling() and device.type != "cuda"):
        # An exported graph can hold PyTorch's operators only, and numba's loops cannot be traced.
        return "chunked"
    if device.type == "cpu":
        from had.ops import cpu

        reason = cpu.why_unavailable()
        if reason is None:
            _say_once(logging.INFO, "gated delta rule on the CPU: compiled kernels (numba)")
            return "cpu"
        _say_once(logging.WARNING, f"gated delta rule on the CPU: slower chunked PyTorch, because {reason}")
        return "chunked"
    if device.type == "cuda":
        reason = _kernels_reason(q, k, v)
        if reason is None:
            _say_once(logging.INFO, f"gated delta rule on cuda, {v.dtype}: this project's Triton kernels")
            return "cuda"
        second = _fla_reason(q, k, v)
        if second is None:
            _say_once(logging.WARNING, f"gated delta rule on cuda, {v.dtype}: flash-linear-attention, because {reason}")
            return "fla"
        _say_once(
            logging.WARNING,
            f"gated delta rule on cuda, {v.dtype}: slower chunked PyTorch, because {reason}, and {second}",
        )
        return "chunked"
    _say_once(logging.INFO, f"gated delta rule on {device.type}: chunked PyTorch")
    return "chunked"


def _forced(name: str, q: Tensor, k: Tensor, v: Tensor) -> str:
    """Check that the backend that ``HAD_BACKEND`` names can run these tensors."""
    if name not in BACKENDS:
        raise UserError(f"HAD_BACKEND is {name!r}; choose one of {', '.join(BACKENDS)}, or leave it unset")
    reason = None
    if name == "cpu":
        from had.ops import cpu

        reason = f"the tensors are on {q.device}" if q.device.type != "cpu" else cpu.why_unavailable()
    elif name == "cuda":
        reason = _kernels_reason(q, k, v)
    elif name == "fla":
        reason = _fla_reason(q, k, v)
    if reason is not None:
        raise UserError(f"HAD_BACKEND={name} cannot be used, because {reason}; choose another or leave it unset")
    _say_once(logging.INFO, f"gated delta rule: {name} (HAD_BACKEND)")
    return name


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Run the gated delta rule over sequences; differentiable in every tensor.

    Per head, with state S of shape (K, V) (Yang, Kautz, Hatamizadeh, arXiv 2412.06464)::

        S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,    o_t = scale · S_tᵀ q_t,    α_t = exp(g_t)

    Arguments and shapes are those of ``fla.ops.gated_delta_rule.chunk_gated_delta_rule``. Where g = 0 and beta = 0, as
    at padding, the state passes unchanged and the gradients of k and v are exactly 0.

    Parameters
    ----------
    q, k
        Queries and keys, (B, L, H, K), floating point. Any strides.
    v
        Values, (B, L, H, V), with as many heads as q and k.
    g
        Logarithm of the decay α, ≤ 0, (B, L, H).
    beta
        Write strength, (B, L, H).
    scale
        Factor of the queries; ``K ** -0.5`` by default.
    initial_state
        State before the first token, (B, H, K, V); zero by default.
    output_final_state
        Also return the state after the last token, from which a following segment can go on.
    use_qk_l2norm_in_kernel
        Divide each row of q and k by its norm first: ``x * rsqrt(sum(x ** 2) + 1e-6)``.

    Returns
    -------
    tuple
        The output (B, L, H, V) in the dtype of v, and the final state (B, H, K, V) in float32 (float64 where v is
        float64), or None.

    Raises
    ------
    ValueError
        Where shapes, dtypes or devices do not fit together.
    had.errors.UserError
        If the environment variable ``HAD_BACKEND`` names no backend, or one that cannot run these tensors.

    Notes
    -----
    The backend is chosen from the device: compiled kernels on the CPU (on as many threads as
    ``torch.get_num_threads()`` says); on CUDA this project's Triton kernels where Triton is installed and they pass a
    small trial against chunked PyTorch on the GPU at hand, else flash-linear-attention for half precisions where it is
    installed and right; chunked PyTorch elsewhere. The order on CUDA has not been measured yet. ``HAD_BACKEND`` forces
    one. The logger ``had`` says once which it is.

    On CUDA half precisions are multiplied in tf32, with float32 sums; float32 in float32.
    """
    check_arguments(q, k, v, g, beta, initial_state)
    name = os.environ.get("HAD_BACKEND")
    backend = _forced(name, q, k, v) if name else _automatic(q, k, v)
    if q.numel() == 0:
        # No token or no sequence: the definition's own loop runs zero times.
        backend = "reference"
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "reference":
        return reference_gated_delta_rule(
            q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel
        )
    if backend == "fla":
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        return chunk_gated_delta_rule(
            q.contiguous(), k.contiguous(), v.contiguous(), g.float().contiguous(), beta.contiguous(),
            scale=scale, initial_state=initial_state, output_final_state=output_final_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        )  # fmt: skip
    if backend == "cpu":
        from had.ops.cpu import cpu_gated_delta_rule as run
    elif backend == "cuda":
        from had.ops.cuda import cuda_gated_delta_rule as run
    else:
        run = chunked_gated_delta_rule
    o, state = run(q, k, v, g, beta, scale, initial_state, use_qk_l2norm_in_kernel)
    return o, state if output_final_state else None
