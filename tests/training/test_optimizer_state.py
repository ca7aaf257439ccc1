"""An optimizer put back from a checkpoint goes on as if nothing had happened."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from had.errors import UserError
from had.training.checkpoints import load_checkpoint, save_checkpoint
from had.training.optimizer_state import optimizer_tensors, restore_optimizer

Maker = Callable[[nn.Module], Optimizer]


def model(width: int = 8) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def adamw(module: nn.Module, **options: bool) -> Optimizer:
    matrices = [p for p in module.parameters() if p.ndim == 2]
    others = [p for p in module.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), **options)


def muon(module: nn.Module) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    return torch.optim.Muon([p for p in module.parameters() if p.ndim == 2], lr=1e-2)


OPTIMIZERS: dict[str, Maker] = {
    "AdamW": adamw,
    "AdamW fused": lambda module: adamw(module, fused=True),
    "AdamW foreach amsgrad": lambda module: adamw(module, foreach=True, amsgrad=True),
    "AdamW with a tensor as rate": lambda module: torch.optim.AdamW(module.parameters(), lr=torch.tensor(1e-2)),
    "Muon": muon,
    "SGD": lambda module: torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9),
    "SGD without momentum": lambda module: torch.optim.SGD(module.parameters(), lr=1e-2),
}


def train(module: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(x).square().mean().backward()
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] = 1e-2 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_training_goes_on_bit_for_bit_after_a_checkpoint(make: Maker, tmp_path: Path) -> None:
    straight = model()
    optimizer = make(straight)
    train(straight, optimizer, range(5))
    tensors, state = optimizer_tensors(optimizer, straight.named_parameters())
    weights = {f"module/{name}": tensor for name, tensor in straight.state_dict().items()}
    path = save_checkpoint(tmp_path, 5, {**weights, **tensors}, {"optimizer": state})
    train(straight, optimizer, range(5, 10))

    loaded, saved = load_checkpoint(path)
    resumed = model()
    resumed.load_state_dict({name: loaded[f"module/{name}"] for name in resumed.state_dict()})
    again = make(resumed)
    restore_optimizer(again, resumed.named_parameters(), loaded, saved["optimizer"])
    train(resumed, again, range(5, 10))

    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
    before, after = optimizer.state_dict(), again.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()
    for index, values in before["state"].items():
        for key, value in values.items():
            same = torch.equal(value, after["state"][index][key]) if torch.is_tensor(value) else True
            assert same, (index, key)
            assert type(value) is type(after["state"][index][key])


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_state_returns_to_the_devices_where_the_optimizer_keeps_it(options: dict[str, bool]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    one, other = model().cuda(), model().cuda()
    optimizer, again = adamw(one, **options), adamw(other, **options)
    for p in one.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    tensors, state = optimizer_tensors(optimizer, one.named_parameters())
    on_cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
    restore_optimizer(again, other.named_parameters(), on_cpu, state)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert again.state[q][key].device == value.device, key
            assert torch.equal(again.state[q][key], value)


def test_forgetting_the_state_would_be_noticed() -> None:
    """The comparison above can fail: without the moments the weights differ."""
    one, other = model(), model()
    optimizer = adamw(one)
    train(one, optimizer, range(5))
    other.load_state_dict(one.state_dict())
    train(one, optimizer, range(5, 10))
    train(other, adamw(other), range(5, 10))
    assert not torch.equal(one[0].weight, other[0].weight)


def test_the_state_is_keyed_by_parameter_name_and_is_json() -> None:
    module = model()
    optimizer = adamw(module)
    train(module, optimizer, range(1))
    tensors, state = optimizer_tensors(optimizer, module.named_parameters(), prefix="first")
    assert {"first/exp_avg/0.weight", "first/exp_avg_sq/2.bias", "first/step/2.weight"} <= tensors.keys()
    assert json.loads(json.dumps(state)) == state
    assert state["groups"][0]["params"] == ["0.weight", "2.weight"]
    assert state["groups"][1]["settings"]["weight_decay"] == 0.0


def test_restored_state_is_a_copy_and_replaces_what_was_there() -> None:
    module = model()
    optimizer = adamw(module)
    train(module, optimizer, range(2))
    live, state = optimizer_tensors(optimizer, module.named_parameters())
    tensors = {name: tensor.clone() for name, tensor in live.items()}
    other = model()
    again = adamw(other)
    train(other, again, range(7))
    restore_optimizer(again, other.named_parameters(), tensors, state)
    assert again.state[other[0].weight]["step"].item() == 2
    train(other, again, range(1))
    assert tensors["optimizer/step/0.weight"].item() == 2


def test_a_wrapped_optimizer_is_looked_through() -> None:
    module = model()
    optimizer = adamw(module)
    train(module, optimizer, range(1))

    class Wrapper(Optimizer):
        def __init__(self, inner: Optimizer):
            self.optimizer = inner

    assert optimizer_tensors(Wrapper(optimizer), module.named_parameters())[1]["optimizer"] == "AdamW"


def test_another_optimizer_or_model_is_refused() -> None:
    module = model()
    optimizer = adamw(module)
    train(module, optimizer, range(1))
    tensors, state = optimizer_tensors(optimizer, module.named_parameters())
    sgd = torch.optim.SGD(module.parameters(), lr=1.0)
    with pytest.raises(UserError, match="made with AdamW, this run uses SGD"):
        restore_optimizer(sgd, module.named_parameters(), tensors, state)
    one_group = torch.optim.AdamW(module.parameters())
    with pytest.raises(UserError, match="other parameters"):
        restore_optimizer(one_group, module.named_parameters(), tensors, state)
    longer = nn.Sequential(*model(), nn.Linear(3, 3))
    with pytest.raises(UserError, match=r"such as '3\.bias'"):
        restore_optimizer(adamw(longer), longer.named_parameters(), tensors, state)
    with pytest.raises(ValueError, match="no name"):
        optimizer_tensors(optimizer, [])
