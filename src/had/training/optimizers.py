"""Optimizers and the learning rate as a function of the step number."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from had.training.muon import Muon

# Weights inside the stack of layers, not input and output tables.
# Gates and per-direction norms may be stored as matrices, a row a direction.
_SPARED = {"A_log", "dt_bias", "norm_weight"}
_INSIDE = re.compile(r"(^|\.)(layers|blocks)\.\d+\.")


@dataclass
class OptimizerConfig:
    """AdamW (or Muon for the matrices), linear warm-up and a cosine."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon for the weight matrices of the layers and AdamW for the rest."""
    lr: float = 1e-3
    """Peak learning rate (of AdamW; Muon's updates are scaled to the same size)."""
    min_lr: float = 1e-4
    """Learning rate at the last step."""
    start_lr: float = 1e-6
    """Learning rate at the first step of the warm-up."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; null: 10 % of the schedule."""
    weight_decay: float = 0.1
    """Decoupled weight decay of weight matrices; biases, norms, embeddings and gates have none."""
    beta1: float = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: float = 0.95
    """AdamW's decay of the gradient's square."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up, then a cosine down to ``min_lr`` at the last step."""
    warmup = config.warmup_steps if config.warmup_steps is not None else round(0.1 * steps)
    if step < warmup:
        return config.start_lr + (config.lr - config.start_lr) * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - 1 - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def set_learning_rate(optimizers: list[Optimizer], rate: float) -> None:
    """Give every parameter group this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def spared_from_decay(module: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: vectors (biases, norms), embeddings, the gates' decay rates."""
    spared = {n for n, p in module.named_parameters() if p.ndim < 2 or n.rpartition(".")[2] in _SPARED}
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding):
            spared |= {f"{name}.{n}" if name else n for n, _ in part.named_parameters(recurse=False)}
    return spared


def hidden_matrices(module: nn.Module) -> set[str]:
    """Names of the trained weight matrices inside ``layers`` or ``blocks``, which Muon may take."""
    spared = spared_from_decay(module)
    named = {n: p for n, p in module.named_parameters() if p.requires_grad and p.ndim == 2}
    return {n for n in named if n not in spared and _INSIDE.search(n)}


def build_optimizers(module: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Optimizers over all parameters of ``module`` that require a gradient.

    Muon takes the matrices inside ``layers`` or ``blocks``, as its author advises; everything else, input and output
    tables included, stays with AdamW.
    """
    spared = spared_from_decay(module)
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    hidden = hidden_matrices(module) if config.name == "muon" else set()
    decayed = [p for n, p in named if n not in spared and n not in hidden]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if n in spared], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [
        torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), fused=True
        )
    ]
    if hidden:
        matrices = [p for n, p in named if n in hidden]
        optimizers.append(Muon(matrices, lr=config.lr, weight_decay=config.weight_decay))
    return optimizers
