"""Fresh networks: what their weights are drawn from, the norms and positions that the config names."""

import math

import torch
import torch.nn.functional as F

from had.models import CrossAttentionDecoder, HADConfig, HADModel
from had.models.reconstruction import sinusoidal_positions


def test_decays_are_uniform_and_steps_log_uniform_in_their_documented_ranges() -> None:
    torch.manual_seed(0)
    mixers = [block.mixer for block in HADModel(HADConfig(recurrent_heads=32)).blocks[:4]]
    decays = torch.cat([mixer.A_log.exp().flatten() for mixer in mixers])
    steps = torch.cat([F.softplus(mixer.dt_bias).log().flatten() for mixer in mixers])
    for values, low, high in ((decays, 0.0, 16.0), (steps, math.log(1e-3), math.log(0.1))):
        # A uniform draw of n has a mean within 5 · width / √(12 n) of the middle.
        width, n = high - low, values.numel()
        assert n == 256
        assert abs(values.mean().item() - (low + high) / 2) < 5 * width / math.sqrt(12 * n)
        assert low - 1e-3 < values.min().item() < low + 0.05 * width
        assert high - 0.05 * width < values.max().item() < high + 1e-3


def test_linears_of_a_fresh_decoder_have_their_documented_spread() -> None:
    torch.manual_seed(0)
    config = HADConfig()
    decoder, width, spread = CrossAttentionDecoder(config), config.hidden_size, config.initializer_range
    expected = {
        "value_proj.weight": spread,
        "head.weight": spread,
        "mlp.in_proj.weight": spread,
        "out_proj.weight": spread / math.sqrt(2),
        "mlp.out_proj.weight": spread / math.sqrt(2),
        "query_proj.weight": width**-0.5,
    }
    weights = dict(decoder.named_parameters())
    for name, std in expected.items():
        # The standard deviation of n normal draws errs by 1 / √(2 n) of itself.
        assert abs(weights[name].std().item() / std - 1) < 5 / math.sqrt(2 * weights[name].numel()), name


def test_positions_are_sines_and_cosines_to_float32_however_far() -> None:
    width, position = 16, 120_001
    row = sinusoidal_positions(position + 1, width, torch.device("cpu"))[position]
    angles = [position * 10_000.0 ** (-2 * i / width) for i in range(width // 2)]
    expected = torch.tensor([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])
    torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)


def test_every_norm_and_the_rotary_positions_follow_the_config() -> None:
    config = HADConfig(norm_eps=0.25, rotary_base=100.0)
    model, other = HADModel(config), HADModel(HADConfig(norm_eps=0.25))
    for module in (model, CrossAttentionDecoder(config)):
        assert {part.eps for part in module.modules() if hasattr(part, "eps")} == {0.25}
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        # Attention of fresh weights is nearly even: larger ones, so that positions matter.
        for part in (model, other):
            part.blocks[4].mixer.in_proj.weight.mul_(20)
        ids = torch.randint(7, 11, (1, 40))
        assert not torch.allclose(model(ids).last_hidden_state, other(ids).last_hidden_state, atol=1e-4)
