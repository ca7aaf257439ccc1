"""What every backend of the gated delta rule asks of its arguments."""

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to a squared norm before its reciprocal root, as flash-linear-attention does."""


def check_arguments(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None) -> None:
    """Raise ``ValueError`` where shapes, dtypes or devices do not fit together."""
    if q.ndim != 4:
        raise ValueError(f"q needs the shape (B, L, H, K); got {tuple(q.shape)}")
    B, L, H, K = q.shape
    if k.shape != q.shape:
        raise ValueError(f"k needs the shape of q, {tuple(q.shape)}; got {tuple(k.shape)}")
    if v.ndim != 4 or v.shape[:2] != (B, L):
        raise ValueError(f"v needs the shape (B, L, H, V) with B {B}, L {L}, H {H}; got {tuple(v.shape)}")
    if v.shape[2] != H:
        raise ValueError(
            f"v has {v.shape[2]} heads but q and k have {H}; grouped value heads are not supported, so repeat q and k"
        )
    if K == 0 or v.shape[3] == 0:
        raise ValueError(f"the key and value widths need to be at least 1; got {K} and {v.shape[3]}")
    for name, gate in (("g", g), ("beta", beta)):
        if gate.shape != (B, L, H):
            raise ValueError(f"{name} needs the shape (B, L, H) = {(B, L, H)}; got {tuple(gate.shape)}")
    state_shape = (B, H, K, v.shape[3])
    if initial_state is not None and initial_state.shape != state_shape:
        raise ValueError(
            f"initial_state needs the shape (B, H, K, V) = {state_shape}; got {tuple(initial_state.shape)}"
        )
    named = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
    if initial_state is not None:
        named["initial_state"] = initial_state
    for name, tensor in named.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} needs a floating-point dtype; got {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device} but q is on {q.device}")


def working_dtype(v: Tensor) -> torch.dtype:
    """Precision of the recurrence: float64 for float64 values, else float32, half precisions included."""
    return torch.float64 if v.dtype == torch.float64 else torch.float32


def normalise(x: Tensor) -> Tensor:
    """Divide rows by their norm: ``x * rsqrt(sum(x ** 2) + 1e-6)``."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + EPSILON)
