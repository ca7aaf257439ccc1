"""What the scripts of this folder measure against: the chunk rule of transformers, and the student in plain PyTorch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from had.assets import DEMO_GENOME
from had.dna import Genome
from had.models import HADModel
from had.models.layers import BiGatedDeltaNet
from had.ops import gated_delta_rule

Rule = Callable[..., tuple[Tensor, Tensor | None]]


def transformers_rule() -> Rule:
    """``torch_chunk_gated_delta_rule`` of transformers, with the argument ``scale`` that the student gives."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    def rule(*inputs: Tensor, scale: float | None = None, **options: Any) -> tuple[Tensor, Tensor | None]:
        # It has no argument for the scale, and K ** -0.5, which the student asks for, is its own.
        assert scale in (None, inputs[0].shape[-1] ** -0.5)
        return torch_chunk_gated_delta_rule(*inputs, **options)

    return rule


def with_backend(name: str | None) -> Rule:
    """The public function with ``HAD_BACKEND`` set to a name; None: the backend that it chooses itself."""

    def run(*args: Tensor, **options: bool) -> tuple[Tensor, Tensor | None]:
        if name is None:
            os.environ.pop("HAD_BACKEND", None)
        else:
            os.environ["HAD_BACKEND"] = name
        return gated_delta_rule(*args, **options)

    return run


@contextmanager
def plain_student(rule: Rule) -> Iterator[None]:
    """Within this, a student runs on ``rule`` and on PyTorch's own operators (conv1d, rms_norm, linear, …)."""
    with (
        mock.patch("had.models.functional.uses_kernels", return_value=False),
        mock.patch("had.models.student.uses_kernels", return_value=False),
        mock.patch("had.models.layers.gated_delta_rule", rule),
    ):
        yield


def make_inputs(B: int, L: int, H: int, K: int, V: int) -> tuple[list[Tensor], Tensor]:
    """Inputs like those of a trained layer: weak decay, writes of every strength; and an upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(B, L, H, K, generator=generator) for _ in range(2))
    v, do = (torch.randn(B, L, H, V, generator=generator) for _ in range(2))
    g = -0.1 * torch.rand(B, L, H, generator=generator)
    beta = torch.rand(B, L, H, generator=generator)
    return [q, k, v, g, beta], do


@torch.no_grad()
def student_inputs(windows: int, length: int, block: int) -> tuple[list[Tensor], Tensor]:
    """What the bundled student's ``block`` gives to the rule for human DNA, both directions; and an upstream gradient.

    q, k, v, g and beta are (2 * windows, length, H, ...), as ``make_inputs`` gives them, of ``windows`` stretches drawn
    from the demonstration's genome.
    """
    genome = Genome.open(DEMO_GENOME, progress=False)
    runs = genome.acgt_runs
    run = runs[(runs[:, 1] - runs[:, 0]).argmax()]
    places = np.random.default_rng(0).integers(run[0], run[1] - length, windows)
    student = HADModel.from_pretrained("student")
    if not isinstance(student.blocks[block].mixer, BiGatedDeltaNet):
        raise ValueError(f"block {block} of the student has no gated delta rule")
    taken: list[tuple[Tensor, ...]] = []

    def take(*inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        taken.append(inputs)
        return gated_delta_rule(*inputs, **options)

    x = student.embedding(torch.from_numpy(genome.fetch(places, length)).long())
    with mock.patch("had.models.layers.gated_delta_rule", take):
        for part in student.blocks[: block + 1]:
            x = part(x)
    inputs = [each.contiguous() for each in taken[-1]]
    return inputs, torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(0))
