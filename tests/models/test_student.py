"""The student: size, structure, gradients, initialisation, and its layers against slow references."""

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import had
from had.errors import UserError
from had.models import HADConfig, HADModel
from had.models.layers import BiGatedDeltaNet, SelfAttention


def small_config(**changes: int) -> HADConfig:
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 20,
        "recurrent_blocks": 2,
        "key_width": 8,
        "value_width": 12,
    }
    return HADConfig(**(sizes | changes))


def roughen(module: torch.nn.Module, spread: float, seed: int = 0) -> None:
    """Large random weights everywhere, norms included, so that no path through the model is negligible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                continue
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))


def letters(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(7, 12, shape, generator=torch.Generator().manual_seed(seed))


def test_has_exactly_1_088_928_parameters():
    total = sum(p.numel() for p in HADModel().parameters())
    assert total == 1_088_928
    assert abs(total / 1.1e6 - 1) < 0.02


def test_hidden_states_are_embedding_blocks_and_the_normalised_last():
    torch.manual_seed(0)
    model = HADModel(small_config())
    ids = letters(2, 9)
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.n_blocks + 1
    assert all(state.shape == (2, 9, 24) for state in out.hidden_states)
    torch.testing.assert_close(out.hidden_states[0], model.embedding.weight[ids])
    assert out.hidden_states[-1] is out.last_hidden_state
    assert model(ids).hidden_states is None
    torch.testing.assert_close(out.last_hidden_state.square().mean(-1), torch.ones(2, 9), atol=1e-2, rtol=0)


def test_takes_numpy_and_torch_alike():
    model = HADModel(small_config())
    ids = letters(2, 9)
    mask = np.ones((2, 9), dtype=np.int64)
    mask[0, 7:] = 0
    given = model(ids, torch.as_tensor(mask)).last_hidden_state
    assert torch.equal(model(ids.numpy(), mask).last_hidden_state, given)
    assert torch.equal(model(ids.int(), mask.astype(bool)).last_hidden_state, given)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_takes_windows_shorter_than_the_convolution(length):
    model = HADModel(small_config())
    out = model(letters(2, length)).last_hidden_state
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "ids", [torch.zeros(2, 3), torch.zeros(4, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)]
)
def test_refuses_what_is_no_batch_of_tokens(ids):
    with pytest.raises(ValueError, match="input_ids"):
        HADModel(small_config())(ids)


def test_refuses_more_letters_than_max_length():
    model = HADModel(small_config(max_length=10))
    model(letters(1, 10))
    with pytest.raises(ValueError, match="max_length"):
        model(letters(1, 11))


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 0}, {"attention_heads": 5}, {"pad_token_id": 12}, {"key_width": -1}]
)
def test_refuses_impossible_sizes(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small_config(**changes)


def test_config_survives_a_dictionary_and_refuses_unknown_names():
    config = small_config(max_length=77)
    assert HADConfig.from_dict(config.to_dict()) == config
    assert HADConfig.from_dict(config.to_dict() | {"architectures": ["HADModel"]}) == config
    with pytest.raises(UserError, match="heds"):
        HADConfig.from_dict({"heds": 2})


def test_gradients_reach_every_parameter():
    model = HADModel()
    out = model(letters(2, 40)).last_hidden_state
    (out * torch.randn(out.shape)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        seen = parameter.grad[7:] if name == "embedding.weight" else parameter.grad
        rows = seen.flatten(1) if seen.ndim > 1 else seen[:, None]
        assert (rows.abs().amax(1) > 0).all(), f"{name}: a row without a gradient"


def test_initial_weights_are_the_documented_ones():
    torch.manual_seed(0)
    model = HADModel()
    mixer, mlp = model.blocks[0].mixer, model.blocks[0].mlp
    for weight, spread in (
        (model.embedding.weight, 0.02),
        (mixer.in_proj.weight, 0.02),
        (mlp.in_proj.weight, 0.02),
        (mixer.out_proj.weight, 0.02 / math.sqrt(10)),
        (mlp.out_proj.weight, 0.02 / math.sqrt(10)),
        (model.blocks[4].mixer.out_proj.weight, 0.02 / math.sqrt(10)),
    ):
        assert weight.std().item() == pytest.approx(spread, rel=0.05)
    rates = torch.cat([block.mixer.A_log.flatten() for block in model.blocks[:4]]).exp()
    steps = torch.cat([block.mixer.dt_bias.flatten() for block in model.blocks[:4]])
    steps = torch.nn.functional.softplus(steps)
    assert (rates >= 0.01).all()
    assert (rates < 16).all()
    assert rates.unique().numel() == 16
    assert (steps > 0.99e-3).all()
    assert (steps < 0.101).all()


def slow_direction(x_LD: Tensor, rows: Tensor, conv_CW: Tensor, A_log: Tensor, dt_bias: Tensor, sizes) -> Tensor:
    """One direction of the recurrence, letter by letter in float64: outputs (L, H, V)."""
    heads, key_width, value_width = sizes
    projected = x_LD @ rows.T
    n_channels = conv_CW.shape[0]
    outputs = []
    state = torch.zeros(heads, key_width, value_width, dtype=torch.float64)
    for t in range(len(x_LD)):
        channels = torch.zeros(n_channels, dtype=torch.float64)
        for back in range(conv_CW.shape[1]):
            if t - back >= 0:
                channels += conv_CW[:, -1 - back] * projected[t - back, :n_channels]
        channels = channels * torch.sigmoid(channels)
        q, k, v = channels.split([heads * key_width, heads * key_width, heads * value_width])
        a, b = projected[t, n_channels:].split(heads)
        out = []
        for h in range(heads):
            q_h, k_h = (part.view(heads, key_width)[h] for part in (q, k))
            q_h, k_h = q_h / (q_h @ q_h + 1e-6).sqrt(), k_h / (k_h @ k_h + 1e-6).sqrt()
            alpha = torch.exp(-A_log[h].exp() * torch.log1p(torch.exp(a[h] + dt_bias[h])))
            beta = 1 / (1 + torch.exp(-b[h]))
            eye = torch.eye(key_width, dtype=torch.float64)
            state[h] = alpha * (eye - beta * torch.outer(k_h, k_h)) @ state[h]
            state[h] += beta * torch.outer(k_h, v.view(heads, value_width)[h])
            out.append(state[h].T @ q_h / math.sqrt(key_width))
        outputs.append(torch.stack(out))
    return torch.stack(outputs)


def test_bidirectional_layer_is_the_formula_of_the_paper():
    torch.manual_seed(3)
    sizes = (2, 8, 12)
    layer = BiGatedDeltaNet(16, *sizes, conv_width=4, eps=1e-6)
    roughen(layer, 0.4)
    x = torch.randn(1, 13, 16)
    with torch.no_grad():
        got = layer(x)[0]
        weights = {name: p.double() for name, p in layer.named_parameters()}
        total = 0
        for direction in range(2):
            rows = weights["in_proj.weight"][direction * layer.rows : (direction + 1) * layer.rows]
            own = x[0].double() if direction == 0 else x[0].double().flip(0)
            gates = weights["A_log"][direction], weights["dt_bias"][direction]
            o = slow_direction(own, rows, weights["conv_weight"][direction], *gates, sizes)
            o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights["norm_weight"][direction]
            total = total + (o if direction == 0 else o.flip(0)).flatten(1)
        gate = x[0].double() @ weights["in_proj.weight"][2 * layer.rows :].T
        want = (total * gate * torch.sigmoid(gate)) @ weights["out_proj.weight"].T
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_swapping_the_directions_reverses_the_recurrent_blocks():
    torch.manual_seed(0)
    model, swapped = HADModel(), HADModel()
    roughen(model, 0.2)
    state = model.state_dict()
    for name in state:
        if name.endswith(("conv_weight", "A_log", "dt_bias", "mixer.norm_weight")):
            state[name] = state[name].flip(0)
        elif name.endswith("mixer.in_proj.weight") and state[name].shape[0] == 648:
            forward, reverse, gate = state[name].split([260, 260, 128])
            state[name] = torch.cat((reverse, forward, gate))
    swapped.load_state_dict(state)
    ids = letters(2, 70)
    with torch.no_grad():
        straight = model(ids, output_hidden_states=True).hidden_states
        turned = swapped(ids.flip(1), output_hidden_states=True).hidden_states
        unswapped = model(ids.flip(1), output_hidden_states=True).hidden_states
    for layer in range(1, 5):
        error = (turned[layer].flip(1) - straight[layer]).abs().max()
        assert error <= 1e-5 * straight[layer].abs().max()
        # The test would be empty if the two directions had the same weights.
        assert (unswapped[layer].flip(1) - straight[layer]).abs().max() > 0.05 * straight[layer].abs().max()


def test_convolution_looks_back_three_letters_in_its_own_direction_of_travel(monkeypatch):
    seen = []

    def spy(q, k, v, g, beta, **options):
        seen.append((q, k, v))
        return v, None

    monkeypatch.setattr("had.models.layers.gated_delta_rule", spy)
    layer = BiGatedDeltaNet(16, 2, 8, 12, conv_width=4, eps=1e-6)
    roughen(layer, 0.3)
    x = torch.randn(1, 20, 16)
    changed = x.clone()
    changed[0, 9] += 1
    layer(x), layer(changed)
    for before, after in zip(*seen, strict=True):
        differs = (before != after).flatten(2).any(-1)
        assert differs[0].nonzero().flatten().tolist() == [9, 10, 11, 12]
        # The reverse direction meets letter 9 as its tenth from the other end.
        assert differs[1].nonzero().flatten().tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_attention_is_softmax_over_letters_within_the_window_with_rotated_queries_and_keys(window):
    torch.manual_seed(1)
    layer = SelfAttention(16, 2, rotary_base=100.0, window=window).double()
    roughen(layer, 0.4)
    x = torch.randn(1, 11, 16, dtype=torch.float64)
    with torch.no_grad():
        got = layer(x)[0]
        q, k, v = (x[0] @ layer.in_proj.weight.T).view(11, 3, 2, 8).unbind(1)
        frequency = torch.tensor([100.0 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64)
        turn = torch.polar(torch.ones(11, 4, dtype=torch.float64), torch.outer(torch.arange(11.0).double(), frequency))
        out = torch.zeros(11, 2, 8, dtype=torch.float64)
        for h in range(2):
            q_h, k_h = (torch.complex(part[:, h, :4], part[:, h, 4:]) * turn for part in (q, k))
            score = (q_h @ k_h.conj().T).real / math.sqrt(8)
            for i in range(11):
                for j in range(11):
                    if abs(i - j) > (window or 11):
                        score[i, j] = -math.inf
            weight = torch.softmax(score, dim=-1)
            out[:, h] = weight @ v[:, h]
        want = out.flatten(1) @ layer.out_proj.weight.T
    # The layer's sines and cosines are float32, off by an ulp e at most. That moves a rotated q or k by less than 2e of
    # its length, a score by 4e |q||k|, and a mean of values by twice as much of the largest.
    ulp = torch.finfo(torch.float32).eps
    score = 4 * ulp * q.norm(dim=-1).max() * k.norm(dim=-1).max() / math.sqrt(8)
    assert (got - want).abs().max() <= 2 * score * v.abs().max() * layer.out_proj.weight.abs().sum(1).max()


def test_bfloat16_autocast_trains():
    model = HADModel(small_config())
    ids = letters(2, 30)
    exact = model(ids).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(ids).last_hidden_state
    rough.float().square().sum().backward()
    assert (rough - exact).abs().max() < 0.1
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_seed_gives_the_same_student_again():
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        models.append(HADModel(small_config()))
    ids = letters(1, 20)
    first, second, third = (model(ids).last_hidden_state for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_importing_the_package_imports_neither_torch_nor_numpy():
    code = (
        "import sys, had, had.models; print(had.__version__); "
        "assert 'HADModel' in dir(had); print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [had.__version__, "[]"]


def test_public_names_are_there():
    assert had.HADModel is HADModel
    assert had.HADConfig is HADConfig
    assert callable(had.load)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = had.nothing_of_this_name


def test_memory_of_attention_grows_linearly_with_padding_too():
    # A (B, H, L, L) float matrix would take 200 MB here.
    code = """
import resource, torch
torch.set_num_threads(1)
from had.models.layers import SelfAttention
from had.models.padding import Padding
layer = SelfAttention(16, 2, 10_000.0, window=None)
x = torch.randn(1, 5_000, 16)
padding = Padding.from_lengths(torch.tensor([4_990]), 5_000)
layer(x[:, :100]).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer(x, padding).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    pytest.importorskip("resource")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 80, "MB of memory"


def test_lengths_do_not_change_the_features_of_other_rows():
    model = HADModel(small_config())
    ids = letters(3, 25)
    outputs = [model(ids[rows]).last_hidden_state[0] for rows in ([0], [0, 1], [0, 2, 1])]
    for one, other in pairwise(outputs):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()
