"""Weights, optimizers and step number of a run, to a checkpoint and back."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from had.console import some_of
from had.errors import UserError
from had.training.checkpoints import load_checkpoint, save_checkpoint
from had.training.optimizer_state import optimizer_tensors, restore_optimizer


def save_training_state(
    folder: Path, step: int, module: nn.Module, optimizers: list[Optimizer], extra: dict[str, Any], keep: int
) -> Path:
    """Write everything a run needs to go on bit for bit; RunFault where the disk refuses."""
    tensors: dict[str, torch.Tensor] = {f"module/{k}": v for k, v in module.state_dict().items()}
    states = []
    for i, optimizer in enumerate(optimizers):
        own, state = optimizer_tensors(optimizer, module.named_parameters(), prefix=f"optimizer{i}")
        tensors.update(own)
        states.append(state)
    return save_checkpoint(folder, step, tensors, {"step": step, "optimizers": states, **extra}, keep)


def load_training_state(path: Path, module: nn.Module, optimizers: list[Optimizer]) -> int:
    """Put a checkpoint back into ``module`` and ``optimizers``; return its step.

    Raises
    ------
    UserError
        If the checkpoint is damaged, or of another model or optimizer.
    """
    tensors, state = load_checkpoint(path)
    weights = {k.removeprefix("module/"): v for k, v in tensors.items() if k.startswith("module/")}
    expected = module.state_dict()
    wrong = list(expected.keys() ^ weights.keys())
    wrong += [k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape]
    if wrong or len(state["optimizers"]) != len(optimizers):
        raise UserError(f"{path}: is a checkpoint of another model (differs in {some_of(sorted(wrong), 3)}).")
    module.load_state_dict(weights)
    for i, (optimizer, saved) in enumerate(zip(optimizers, state["optimizers"], strict=True)):
        own = {k: v for k, v in tensors.items() if k.startswith(f"optimizer{i}/")}
        restore_optimizer(optimizer, module.named_parameters(), own, saved, prefix=f"optimizer{i}")
    return int(state["step"])
