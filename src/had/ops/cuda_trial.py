"""A trial of the Triton kernels on the GPU at hand, before their numbers are trusted.

Some versions of Triton compile correct programs to wrong ones on some GPUs, without a message (that is why
flash-linear-attention is refused on Hopper with Triton 3.4 up to before 3.7.1), and no version is tested on every GPU.
So the first call for each dtype and width compares outputs, and gradients where they are needed, with chunked PyTorch
on a small input. The kernels that are compiled for the trial are those that then run.
"""

import functools

import torch
from torch import Tensor

from had.ops.chunked import chunked_gated_delta_rule
from had.ops.cuda import HALF, cuda_gated_delta_rule

LENGTH = 75
"""Tokens of the trial: several chunks, the last of them not full."""
LARGEST_ERROR = {"float32": 1e-2, "half": 5e-2}
"""Relative to the largest number of a tensor: wrong code errs by tens of percent; tf32 elsewhere is allowed."""


def _inputs(device: torch.device, dtype: torch.dtype, K: int, V: int) -> list[Tensor]:
    # A generator of its own, so that a training run draws the same numbers with and without the trial.
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, LENGTH, 2, K, generator=generator) for _ in range(2))
    v = torch.randn(2, LENGTH, 2, V, generator=generator)
    g, beta = -torch.rand(2, LENGTH, 2, generator=generator), torch.rand(2, LENGTH, 2, generator=generator)
    return [x.to(device, dtype) for x in (q, k, v)] + [g.to(device), beta.to(device)]


@functools.cache
def why_wrong(device: torch.device, dtype: torch.dtype, K: int, V: int, train: bool) -> str | None:
    """Run the trial, once for each set of arguments; say why the kernels cannot be trusted, or None.

    Parameters
    ----------
    device
        Where to run.
    dtype
        Of q, k and v.
    K, V
        Widths.
    train
        Whether gradients are needed, too.
    """
    results = []
    with torch.inference_mode(False), torch.set_grad_enabled(train), torch.autocast(device.type, enabled=False):
        inputs = _inputs(device, dtype, K, V)
        for rule in (cuda_gated_delta_rule, chunked_gated_delta_rule):
            leaves = [x.clone().requires_grad_(train) for x in inputs]
            try:
                q, k, v, g, beta = leaves
                o, state = rule(q, k, v, g, beta, K**-0.5, None, True)
                found = [o, state]
                if train:
                    # An upstream gradient as uneven as the values themselves.
                    found += torch.autograd.grad((o * v.detach()).sum(), leaves)
            except Exception as fault:
                # Whatever a compiler or a driver raises.
                if rule is chunked_gated_delta_rule:
                    raise
                return f"its Triton kernels fail here ({type(fault).__name__}: {str(fault).split(chr(10))[0][:200]})"
            results.append([x.detach().float() for x in found])
    allowed = LARGEST_ERROR["half" if dtype in HALF else "float32"]
    for name, ours, theirs in zip(("o", "state", "dq", "dk", "dv", "dg", "dbeta"), *results, strict=False):
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        # Not "error > allowed": NaN is wrong, too.
        if not error <= allowed:
            return f"its Triton kernels compute {name} wrongly here (relative error {error:.1g})"
    return None
