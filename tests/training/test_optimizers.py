"""What decays, how the learning rate goes, and Muon's orthogonal updates."""

import math

import pytest
import torch
from torch import nn

from had.models import CrossAttentionDecoder, HADConfig, HADModel, NucleotideTransformer, NucleotideTransformerConfig
from had.training.muon import Muon, orthogonalise
from had.training.optimizers import (
    OptimizerConfig,
    build_optimizers,
    learning_rate,
    set_learning_rate,
    spared_from_decay,
)

NT = NucleotideTransformerConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


def test_gates_norms_embeddings_and_biases_do_not_decay() -> None:
    student = HADModel()
    spared = spared_from_decay(student)
    kinds = {name.split(".", 2)[-1] for name in spared}
    assert kinds == {
        "weight", "mixer_norm.weight", "mlp_norm.weight", "mixer.A_log", "mixer.dt_bias", "mixer.norm_weight"
    }  # fmt: skip
    assert {"embedding.weight", "norm.weight"} <= spared
    decoder = CrossAttentionDecoder(HADConfig())
    assert spared_from_decay(decoder) == {
        name for name, _ in decoder.named_parameters() if "norm" in name or name == "mask_embedding"
    }
    teacher = NucleotideTransformer(NT)
    assert spared_from_decay(teacher) == {
        name for name, p in teacher.named_parameters() if p.ndim == 1 or name == "embedding.weight"
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("make", [HADModel, lambda: NucleotideTransformer(NT)])
def test_every_parameter_is_trained_once_and_frozen_ones_never(name: str, make) -> None:
    model = make()
    model.embedding.weight.requires_grad_(False)
    optimizers = build_optimizers(model, OptimizerConfig(name=name, weight_decay=0.3))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}
    spared = spared_from_decay(model)
    for key, parameter in model.named_parameters():
        for group in groups:
            if any(parameter is p for p in group["params"]):
                assert group["weight_decay"] == (0 if key in spared else 0.3), key
    assert (len(optimizers) == 2) == (name == "muon")


def test_learning_rate_warms_up_then_follows_a_cosine_to_its_end() -> None:
    config = OptimizerConfig(lr=1e-2, min_lr=1e-4, start_lr=0.0, warmup_steps=10)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[:10] == pytest.approx([1e-3 * (i + 1) for i in range(10)])
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-4)
    middle = 10 + 99 / 2
    between = (rates[math.floor(middle)] + rates[math.ceil(middle)]) / 2
    assert between == pytest.approx((1e-2 + 1e-4) / 2, rel=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    tenth = OptimizerConfig(lr=1.0, min_lr=0.0, start_lr=0.0)
    assert learning_rate(9, 100, tenth) == pytest.approx(1.0)


def test_set_learning_rate_reaches_every_group() -> None:
    optimizers = build_optimizers(HADModel(), OptimizerConfig(name="muon"))
    set_learning_rate(optimizers, 0.125)
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.125}


@pytest.mark.parametrize("shape", [(20, 20), (12, 40), (40, 12), (1, 7)])
def test_orthogonalised_matrix_keeps_singular_vectors_and_levels_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix)
    inside = u.T @ result @ vt.T
    values = inside.diagonal()
    assert (values > 0.3).all()
    assert (values < 1.4).all()
    assert (inside - torch.diag(values)).abs().max() < 1e-3


def test_muon_step_is_its_definition() -> None:
    weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    start = weight.detach().clone()
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    mean = torch.zeros(6, 4)
    for seed in (2, 3):
        gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + gradient
        start = start * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * orthogonalise(gradient + 0.9 * mean)
    torch.testing.assert_close(weight.detach(), start)
