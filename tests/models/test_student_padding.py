"""Padding is exact: on either side, real positions have the numbers of each sequence alone."""

import pytest
import torch
from torch import Tensor

from had.models import HADConfig, HADModel, load
from had.models.layers import BiGatedDeltaNet
from had.models.padding import Padding, reverse_letters

LENGTHS = [6, 1, 64, 65, 333, 1020]
WIDTH = 1020


def spread_weights(model: HADModel, factor: float) -> HADModel:
    """Weights so large that every letter is felt far away, and a gate that remembers long."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight") or name == "embedding.weight":
                parameter.mul_(factor)
            elif name.endswith("A_log"):
                parameter.fill_(-1.0)
    return model


def padded_batch(lengths: list[int], width: int, side: str) -> tuple[Tensor, Tensor, list[slice]]:
    generator = torch.Generator().manual_seed(7)
    # Padding of any id, real letters included: only the mask may decide.
    ids = torch.randint(0, 12, (len(lengths), width), generator=generator)
    mask = torch.zeros(len(lengths), width, dtype=torch.int64)
    places = []
    for row, length in enumerate(lengths):
        start = 0 if side == "right" else width - length
        ids[row, start : start + length] = torch.randint(7, 12, (length,), generator=generator)
        mask[row, start : start + length] = 1
        places.append(slice(start, start + length))
    return ids, mask, places


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("weights", ["initial", "large", "shipped"])
def test_padded_features_are_those_of_each_sequence_alone(side, weights):
    torch.manual_seed(0)
    model = load() if weights == "shipped" else spread_weights(HADModel(), 6.0 if weights == "large" else 1.0)
    ids, mask, places = padded_batch(LENGTHS, WIDTH, side)
    with torch.inference_mode():
        states = model(ids, mask, output_hidden_states=True).hidden_states
        for row, place in enumerate(places):
            alone = model(ids[row : row + 1, place], output_hidden_states=True).hidden_states
            for layer, (got, want) in enumerate(zip(states, alone, strict=True)):
                error = (got[row, place] - want[0]).abs().max()
                assert error <= 1e-5 * want.abs().max(), f"row {row}, layer {layer}"
        for state in states:
            assert (state[mask == 0] == 0).all()


def test_the_test_above_would_notice_padding_that_is_not_masked():
    torch.manual_seed(0)
    model = spread_weights(HADModel(), 6.0)
    ids, _, places = padded_batch(LENGTHS, WIDTH, "right")
    with torch.inference_mode():
        careless = model(ids).last_hidden_state
        for row, place in enumerate(places[:-1]):
            alone = model(ids[row : row + 1, place]).last_hidden_state
            assert (careless[row, place] - alone[0]).abs().max() > 1e-2 * alone.abs().max()


def test_rows_padded_on_different_sides_and_on_both_share_a_batch():
    torch.manual_seed(0)
    model = spread_weights(HADModel(), 6.0)
    ids = torch.randint(7, 12, (3, 40))
    mask = torch.zeros(3, 40)
    places = [slice(0, 30), slice(25, 40), slice(5, 33)]
    for row, place in enumerate(places):
        mask[row, place] = 1
    with torch.inference_mode():
        together = model(ids, mask).last_hidden_state
        for row, place in enumerate(places):
            alone = model(ids[row : row + 1, place]).last_hidden_state[0]
            assert (together[row, place] - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("side", ["right", "left"])
def test_gradients_ignore_padding(side):
    torch.manual_seed(0)
    config = HADConfig(hidden_size=32, intermediate_size=24, recurrent_blocks=2, key_width=8, value_width=16)
    model = spread_weights(HADModel(config), 4.0)
    ids, mask, places = padded_batch([9, 33, 20], 33, side)
    upstream = torch.randn(3, 33, 32)
    (model(ids, mask).last_hidden_state * upstream).sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for row, place in enumerate(places):
        (model(ids[row : row + 1, place]).last_hidden_state * upstream[row, place]).sum().backward()
    for name, parameter in model.named_parameters():
        assert (got[name] - parameter.grad).abs().max() <= 1e-4 * parameter.grad.abs().max(), name
    # [PAD] and the other ids that stand only at padding have no gradient at all.
    assert (got["embedding.weight"][:7] == 0).all()


def test_a_mask_of_ones_changes_no_bit():
    model = HADModel()
    ids = torch.randint(7, 12, (2, 50))
    ones = torch.ones_like(ids)
    assert torch.equal(model(ids, ones).last_hidden_state, model(ids).last_hidden_state)


def test_a_row_without_letters_gives_zeros_and_finite_gradients():
    model = HADModel()
    ids, mask, _ = padded_batch([0, 12], 12, "right")
    out = model(ids, mask).last_hidden_state
    out.square().sum().backward()
    assert (out[0] == 0).all()
    assert out[1].abs().max() > 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("hole", [[1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1]])
def test_a_mask_with_a_hole_is_an_error_that_names_the_row(hole):
    mask = torch.tensor([[1, 1, 1, 0], hole])
    with pytest.raises(ValueError, match="row 1"):
        HADModel()(torch.full((2, 4), 7), mask)


def test_a_mask_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="attention_mask"):
        HADModel()(torch.full((2, 4), 7), torch.ones(2, 5))


def test_reversal_stays_within_each_length_and_undoes_itself():
    x = torch.arange(15.0).view(3, 5, 1).requires_grad_()
    padding = Padding.from_lengths(torch.tensor([5, 3, 0]), 5)
    turned = reverse_letters(x, padding)
    assert turned.flatten(1).tolist() == [[4, 3, 2, 1, 0], [7, 6, 5, 8, 9], [10, 11, 12, 13, 14]]
    assert torch.equal(reverse_letters(turned, padding), x)
    upstream = torch.randn(3, 5, 1)
    turned.backward(upstream)
    assert torch.equal(x.grad, reverse_letters(upstream, padding))


def test_padding_has_no_write_strength_no_decay_and_no_convolution_input(monkeypatch):
    seen = {}

    def spy(q, k, v, g, beta, **options):
        seen.update(q=q, g=g, beta=beta)
        return v, None

    monkeypatch.setattr("had.models.layers.gated_delta_rule", spy)
    layer = BiGatedDeltaNet(16, 2, 8, 12, conv_width=4, eps=1e-6)
    padding = Padding.from_lengths(torch.tensor([10, 4]), 10)
    layer(torch.randn(2, 10, 16), padding)
    for direction_row in (1, 3):
        assert (seen["g"][direction_row, 4:] == 0).all()
        assert (seen["beta"][direction_row, 4:] == 0).all()
        assert (seen["beta"][direction_row, :4] > 0).all()
        # Three letters of convolution reach past the end; beyond them there is nothing.
        assert (seen["q"][direction_row, 7:] == 0).all()
    assert seen["g"].dtype == torch.float32
