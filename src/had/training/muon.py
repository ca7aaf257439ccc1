"""Muon: momentum whose update is orthogonalised (Jordan et al. 2024, "Muon: An optimizer for hidden layers").

torch's own (≥ 2.9) multiplies in bfloat16, which is many times slower than float32 on CPUs without bfloat16
instructions, so here the product's dtype follows the device. [ours]: off by default in pre-training, on in fine-tuning.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Coefficients of the quintic iteration, from the paper: they push all singular values towards 1 within five rounds.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Nearly orthogonal matrix (m, n) with the singular vectors of ``matrix``; its singular values are about 1."""
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.mT
    if wide.is_cuda:
        wide = wide.bfloat16()
    for _ in range(rounds):
        gram = wide @ wide.mT
        wide = _A * wide + (_B * gram + _C * gram @ gram) @ wide
    result = wide if x.shape[0] <= x.shape[1] else wide.mT
    return result.to(matrix.dtype)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, scaled to AdamW's usual root mean square of 0.2.

    Parameters
    ----------
    params
        Two-dimensional weights of hidden layers.
    lr
        Learning rate, of the size one would give AdamW (Liu et al. 2025, arXiv 2502.16982).
    momentum
        Decay of the gradient's mean.
    weight_decay
        Decoupled weight decay.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                mean = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                update = orthogonalise(parameter.grad + group["momentum"] * mean)
                scale = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)
