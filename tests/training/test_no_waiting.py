"""What a step computes on the device never makes the CPU wait for a number."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from had.baselines.alignment import KmerTable
from had.dna.alphabet import GROUP
from had.dna.masking import expand, group_masks, nucleotide_masks
from had.models.student import HADConfig, HADModel
from had.models.teachers import random_teacher
from had.training.devices import to_device
from had.training.distillation import (
    DistillationModule,
    DistillationObjective,
    ObjectiveConfig,
    kmer_index_of,
    teacher_features,
)
from had.training.optimizers import OptimizerConfig, build_optimizers

WINDOW = 60
SMALL = HADConfig(hidden_size=32, intermediate_size=40, recurrent_blocks=1, attention_heads=1, decoder_heads=2)
WAITS = {"nonzero", "_local_scalar_dense", "item", "masked_select", "is_nonzero", "equal", "unique", "_unique2"}


class NoWaiting(TorchDispatchMode):
    """Refuses every operator whose result or its size the CPU has to know."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if name in WAITS or by_mask:
            raise AssertionError(f"{name} makes the CPU wait")
        return func(*args, **(kwargs or {}))


class Windows:
    """Windows of random letters, in place of those of a genome."""

    def __init__(self, mask: str) -> None:
        self.mask = mask

    def train(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = np.random.default_rng(0).integers(0, 4, (len(indices), WINDOW)).astype(np.uint8)
        if self.mask == "group":
            return codes, expand(group_masks(0, indices, WINDOW // GROUP, 0.3))
        return codes, nucleotide_masks(0, indices, WINDOW, 0.15)


def objective(mask: str, device: str = "cpu", **options: Any) -> DistillationObjective:
    torch.manual_seed(0)
    config = ObjectiveConfig(**options)
    teacher = random_teacher("16x2x2x24").to(device)
    table = KmerTable(teacher.width)
    table.update(torch.randn(1, 100, teacher.width), torch.arange(100)[None])
    module = DistillationModule(HADModel(SMALL), teacher.width, config).to(device)
    return DistillationObjective(module, teacher, table, Windows(mask), {})  # type: ignore[arg-type]


OPTIONS = [
    {},
    {"align_head": "concat", "align_target": "contextual"},
    {"granularity": "nucleotide", "align_positions": "masked", "teacher_view": "full"},
]


@pytest.mark.parametrize("mask", ["group", "nucleotide"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_asks_for_no_number(mask: str, options: dict[str, str]) -> None:
    made = objective(mask, **options)
    batch = to_device(made.batch(np.arange(3)), torch.device("cpu"))
    assert made.teacher is not None
    # On the CPU a teacher looks at the letters it is given.
    features = teacher_features(made.teacher, batch, made.config.teacher_view)
    # The first call brings the table to the device.
    made._target(batch, features)
    with NoWaiting():
        sums = made.module({**batch, "target": made._target(batch, features)})
        (sums["loss_align"] / 7.0 + sums["loss_rec"] / 3.0).backward()
    assert all(p.grad is not None for p in made.module.parameters())


def test_a_wait_would_be_found() -> None:
    for wait in (lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.sum().item(), lambda x: bool(x.any())):
        with NoWaiting(), pytest.raises(AssertionError, match="makes the CPU wait"):
            wait(torch.ones(3))


def test_what_is_aligned_is_known_where_the_mask_is_made() -> None:
    made = objective("nucleotide", align_target="contextual")
    batch = made.batch(np.arange(4))
    assert torch.equal(batch["aligned_index"], batch["aligned"].flatten().nonzero()[:, 0])
    assert torch.equal(batch["kmers"], kmer_index_of(batch["codes"]))
    assert made.counts(batch)["loss_align"] == len(batch["aligned_index"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mask", ["group", "nucleotide"])
@pytest.mark.parametrize("options", OPTIONS)
def test_on_a_gpu_a_whole_step_runs_without_a_synchronisation(mask: str, options: dict[str, str]) -> None:
    device = torch.device("cuda", 0)
    made = objective(mask, "cuda", **options)
    optimizers = build_optimizers(made.module, OptimizerConfig())

    def step(number: int) -> None:
        batch = to_device(made.batch(np.arange(3) + 3 * number), device)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            sums = made.module(made.prepare(batch))
        (sums["loss_align"] / 7.0 + sums["loss_rec"] / 3.0).backward()
        nn.utils.clip_grad_norm_(made.module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

    for number in range(2):
        step(number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_alignment_on_a_gpu_is_that_on_the_cpu_and_repeats_itself() -> None:
    made = objective("nucleotide")
    batch = made.prepare(made.batch(np.arange(16)))
    features = torch.randn(16, WINDOW, SMALL.hidden_size)
    expected = made.module._alignment(features, batch["target"], batch["aligned_index"])
    made.module.cuda()
    on_gpu = [x.cuda() for x in (features, batch["target"], batch["aligned_index"])]
    found = [made.module._alignment(*on_gpu) for _ in range(2)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0].cpu(), expected, rtol=1e-5, atol=1e-5)
