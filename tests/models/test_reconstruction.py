"""The decoder that reconstructs hidden letters, and masked-letter prediction with it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from had.models import CrossAttentionDecoder, HADConfig, HADForMaskedLM, HADModel, reconstruction
from had.models.reconstruction import hidden_and_visible_index

CONFIG = HADConfig(
    hidden_size=16, intermediate_size=24, recurrent_blocks=1, key_width=8, value_width=8, decoder_heads=2
)


def roughen(module: torch.nn.Module, spread: float = 0.5) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape) + (parameter.ndim == 1))


@pytest.fixture
def decoder() -> CrossAttentionDecoder:
    torch.manual_seed(0)
    decoder = CrossAttentionDecoder(CONFIG)
    roughen(decoder)
    return decoder


def hidden_mask(batch: int, length: int, n_hidden: int) -> Tensor:
    hidden = torch.zeros(batch, length, dtype=torch.bool)
    return hidden.scatter(1, torch.rand(batch, length).argsort(1)[:, :n_hidden], True)


def near(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() <= 2e-5 * want.abs().max())


def slow_logits(decoder: CrossAttentionDecoder, features_LD: Tensor, visible: list[int], query: int) -> Tensor:
    """Logits (4,) of one query in float64, head by head."""
    weights = {name: p.detach().double() for name, p in decoder.named_parameters()}

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    def position(p):
        frequency = [10_000.0 ** (-2 * i / 16) for i in range(8)]
        return torch.tensor([math.sin(p * f) for f in frequency] + [math.cos(p * f) for f in frequency]).double()

    x = weights["mask_embedding"] + position(query)
    if visible:
        q = weights["query_proj.weight"] @ norm(x, "query_norm")
        features = norm(features_LD.double()[visible], "feature_norm")
        places = torch.stack([position(p) for p in visible])
        k, v = (features + places) @ weights["key_proj.weight"].T, features @ weights["value_proj.weight"].T
        mixed = []
        for head in (slice(0, 8), slice(8, 16)):
            weight = torch.softmax(k[:, head] @ q[head] / math.sqrt(8), dim=0)
            mixed.append(weight @ v[:, head])
        x = x + weights["out_proj.weight"] @ torch.cat(mixed)
    gate, up = (weights["mlp.in_proj.weight"] @ norm(x, "mlp_norm")).chunk(2)
    x = x + weights["mlp.out_proj.weight"] @ (gate * torch.sigmoid(gate) * up)
    return weights["head.weight"] @ norm(x, "norm")


def test_logits_are_those_of_a_slow_reference(decoder):
    features = torch.randn(1, 9, 16)
    visible = [0, 1, 4, 5, 8]
    keys, queries = torch.tensor([visible]), torch.tensor([[2, 7]])
    got = decoder(features, queries, key_index=keys)
    want = torch.stack([slow_logits(decoder, features[0], visible, query) for query in (2, 7)])
    assert near(got[0].double(), want)


def test_an_index_of_keys_and_a_mask_of_keys_agree(decoder):
    features = torch.randn(3, 40, 16)
    hidden = hidden_mask(3, 40, 12)
    queries, keys = hidden_and_visible_index(hidden, 12)
    by_index = decoder(features, queries, key_index=keys)
    assert by_index.shape == (3, 12, 4)
    assert near(decoder(features, queries, key_mask=~hidden), by_index)
    assert near(decoder(features, queries, key_mask=~hidden)[1:2], decoder(features[1:2], queries[1:2], keys[1:2]))
    with pytest.raises(ValueError, match="not both"):
        decoder(features, queries, keys, ~hidden)


def test_index_lists_hidden_and_visible_letters_in_order():
    hidden = hidden_mask(4, 30, 7)
    queries, keys = hidden_and_visible_index(hidden, 7)
    for row in range(4):
        assert queries[row].tolist() == hidden[row].nonzero().flatten().tolist()
        assert keys[row].tolist() == (~hidden[row]).nonzero().flatten().tolist()


def test_features_of_hidden_letters_and_other_queries_change_nothing(decoder):
    features = torch.randn(2, 20, 16)
    hidden = hidden_mask(2, 20, 6)
    queries, keys = hidden_and_visible_index(hidden, 6)
    before = decoder(features, queries, keys)
    poisoned = features.masked_fill(hidden[..., None], 1e4)
    assert torch.equal(decoder(poisoned, queries, keys), before)
    assert near(decoder(poisoned, queries, key_mask=~hidden), before)
    assert near(decoder(features, queries[:, 2:4], keys), before[:, 2:4])
    nudged = features + (~hidden[..., None]) * torch.randn(16)
    assert not near(decoder(nudged, queries, keys), before)


@pytest.mark.parametrize("way", ["index", "mask"])
def test_no_visible_letter_leaves_the_query_alone_with_finite_gradients(decoder, way):
    features = torch.randn(2, 6, 16, requires_grad=True)
    queries = torch.arange(6).expand(2, 6)
    options = (
        {"key_index": torch.zeros(2, 0, dtype=torch.long)}
        if way == "index"
        else {"key_mask": torch.zeros(2, 6, dtype=torch.bool)}
    )
    logits = decoder(features, queries, **options)
    want = torch.stack([slow_logits(decoder, features[0].detach(), [], query) for query in range(6)])
    assert near(logits[0].double(), want)
    assert torch.equal(logits[0], logits[1])
    logits.square().sum().backward()
    assert (features.grad == 0).all()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        idle = name.startswith(("query", "key", "value", "out_proj", "feature_norm"))
        assert (parameter.grad == 0).all() == idle, name


def test_one_row_without_visible_letters_leaves_the_others_as_they_are(decoder):
    features = torch.randn(2, 12, 16)
    visible = torch.ones(2, 12, dtype=torch.bool)
    visible[0] = False
    visible[1, 3:5] = False
    queries = torch.tensor([[3, 4], [3, 4]])
    together = decoder(features, queries, key_mask=visible)
    assert near(together[1:], decoder(features[1:], queries[1:], key_mask=visible[1:]))
    assert near(together[0].double(), torch.stack([slow_logits(decoder, features[0], [], q) for q in (3, 4)]))


def test_gradients_reach_every_parameter_and_the_visible_features():
    decoder = CrossAttentionDecoder(CONFIG)
    features = torch.randn(2, 30, 16, requires_grad=True)
    hidden = hidden_mask(2, 30, 6)
    queries, keys = hidden_and_visible_index(hidden, 6)
    logits = decoder(features, queries, keys)
    (logits * torch.randn(logits.shape)).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert torch.equal((features.grad != 0).any(-1), ~hidden)


def test_a_fresh_decoder_looks_near_its_own_position():
    torch.manual_seed(0)
    decoder = CrossAttentionDecoder(HADConfig())
    features = torch.randn(1, 401, 128, requires_grad=True)
    decoder(features, torch.tensor([[200]]), key_mask=torch.arange(401)[None] != 200).square().sum().backward()
    felt = features.grad[0].norm(dim=-1)
    near, far = felt[[197, 198, 199, 201, 202, 203]].mean(), torch.cat((felt[:50], felt[-50:])).mean()
    assert near > 3 * far > 0


@pytest.fixture
def masked_lm() -> HADForMaskedLM:
    torch.manual_seed(0)
    masked_lm = HADForMaskedLM(HADModel(CONFIG)).eval()
    roughen(masked_lm.decoder)
    roughen(masked_lm.model, 0.3)
    return masked_lm


def masked_ids() -> Tensor:
    """Rows with some, none and all letters hidden."""
    ids = torch.randint(7, 12, (3, 24))
    ids[0, [2, 3, 11, 23]] = 3
    ids[2] = 3
    return ids


def test_logits_stand_at_masked_letters_and_nan_elsewhere(masked_lm):
    ids = masked_ids()
    out = masked_lm(ids)
    assert out.logits.shape == (3, 24, 4)
    assert torch.equal(out.logits.isnan().any(-1), ids != 3)
    assert torch.equal(out.logits.isnan().all(-1), ids != 3)
    assert torch.equal(out.last_hidden_state, masked_lm.model(ids).last_hidden_state)
    for row in range(3):
        alone = masked_lm(ids[row : row + 1]).logits[0]
        assert near(out.logits[row].nan_to_num(), alone.nan_to_num())


def test_logits_are_those_of_the_decoder_as_training_calls_it(masked_lm):
    ids = masked_ids()[:1]
    hidden = ids == 3
    queries, keys = hidden_and_visible_index(hidden, 4)
    want = masked_lm.decoder(masked_lm.model(ids).last_hidden_state, queries, keys)
    assert near(masked_lm(ids).logits[hidden], want[0])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_prediction(masked_lm, side):
    ids = masked_ids()
    pad = torch.full((3, 9), 3)  # even where the padding is [MASK]
    mask = torch.cat((torch.ones(3, 24), torch.zeros(3, 9)), dim=1)
    padded = torch.cat((ids, pad), dim=1)
    if side == "left":
        padded, mask = padded.roll(9, 1), mask.roll(9, 1)
    got = masked_lm(padded.numpy(), mask.numpy()).logits
    assert got[mask == 0].isnan().all()
    real = got[mask == 1].view(3, 24, 4)
    assert near(real.nan_to_num(), masked_lm(ids).logits.nan_to_num())


WINDOW = 8
"""Training window of the model below."""


@pytest.fixture
def short_trained(masked_lm) -> HADForMaskedLM:
    """The same weights, with a decoder that was trained on short windows."""
    config = replace(CONFIG, training_window=WINDOW)
    short = HADForMaskedLM(HADModel(config)).eval()
    short.load_state_dict(masked_lm.state_dict())
    return short


def test_an_input_of_the_training_length_is_decoded_as_a_whole(masked_lm, short_trained):
    ids = masked_ids()[:, :WINDOW]
    assert torch.equal(short_trained(ids).logits.nan_to_num(), masked_lm(ids).logits.nan_to_num())


@pytest.mark.parametrize("length", [WINDOW + 1, 2 * WINDOW, 5 * WINDOW + 3])
def test_a_longer_input_is_decoded_as_each_block_alone(short_trained, length):
    ids = torch.randint(7, 12, (3, length))
    hidden = hidden_mask(3, length, length // 3)
    hidden[0] = True  # blocks without a visible letter
    hidden[1] = False
    ids[hidden] = 3
    out = short_trained(ids)
    assert torch.equal(out.logits.isnan().all(-1), ~hidden)
    for row, place in hidden.nonzero().tolist():
        # Of the blocks that begin every quarter of a window, the one whose middle quarter has the letter, or an end's.
        start = min(max(place // 2 * 2 - 3, 0), length - WINDOW)
        block = slice(start, start + WINDOW)
        query = torch.tensor([[place - start]])
        features = out.last_hidden_state[row : row + 1, block]
        alone = short_trained.decoder(features, query, key_mask=~hidden[row : row + 1, block])
        assert near(out.logits[row, place], alone[0, 0])


def test_many_blocks_are_decoded_some_at_a_time_with_the_same_result(short_trained, monkeypatch):
    ids = torch.randint(7, 12, (1, 30 * WINDOW))
    ids[:, ::3] = 3
    got = short_trained(ids).logits[ids == 3]
    monkeypatch.setattr(reconstruction, "BLOCKS_AT_ONCE", 1000)
    assert near(got, short_trained(ids).logits[ids == 3])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_prediction_beyond_the_training_length(short_trained, side):
    lengths = [3 * WINDOW + 5, WINDOW, WINDOW - 3, 2 * WINDOW, 1]
    rows = [torch.where(torch.rand(n) < 0.4, 3, torch.randint(7, 12, (n,))) for n in lengths]
    longest = 4 * WINDOW
    ids, mask = torch.full((len(rows), longest), 3), torch.zeros(len(rows), longest)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, at], mask[i, at] = row, 1
    got = short_trained(ids, mask).logits
    assert got[mask == 0].isnan().all()
    for i, row in enumerate(rows):
        hidden = row == 3
        if hidden.any():
            assert near(got[i][mask[i] == 1][hidden], short_trained(row[None]).logits[0, hidden])


def test_nothing_masked_gives_nan_everywhere(masked_lm):
    assert masked_lm(torch.full((1, 5), 7)).logits.isnan().all()


def test_masked_lm_is_trainable_through_its_logits(masked_lm):
    logits = masked_lm(masked_ids()).logits
    logits[~logits.isnan()].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in masked_lm.parameters())
