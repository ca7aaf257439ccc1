"""The network: numbers, traps, limits. Loading and saving are in test_ntv2_checkpoints.py."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from had.dna.alphabet import encode_bytes, kmer_ids
from had.models import NucleotideTransformer, NucleotideTransformerConfig
from had.models.ntv2_checkpoints import hub_key, unused_shapes
from had.models.ntv2_published import PUBLISHED
from had.models.nucleotide_transformer import apply_rotary, rotary_tables
from tests.models.ntv2_reference import Reference, tiny_config, tiny_network

CASES = ("random_padded_masked", "random_no_attention_mask", "left_padded", "single_token")
MASKS = {
    "right padded": [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]],
    "left padded": [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]],
    "with a hole": [[1, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]],
    "a row without tokens": [[0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]],
    "no mask": None,
}


def compare_with_reference(network, folder, ids, mask, tolerance):
    network.save_pretrained(folder)
    reference = Reference(folder)
    with torch.no_grad():
        out = network(ids, mask)
    for row in range(len(ids)):
        states = reference.hidden_states(ids[row], None if mask is None else mask[row])
        assert len(out.hidden_states) == len(states)
        for found, wanted in zip(out.hidden_states, states, strict=True):
            np.testing.assert_allclose(found[row], wanted, rtol=0, atol=tolerance)
        np.testing.assert_allclose(out.logits[row], reference.logits(states[-1]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_every_hidden_state_and_logit_agrees_with_a_slow_reference(tmp_path, mask, dtype, tolerance):
    network = tiny_network().to(dtype)
    ids = np.random.default_rng(1).integers(0, 80, (2, 7))
    compare_with_reference(network, tmp_path, ids, None if mask is None else np.array(mask), tolerance)


@settings(max_examples=10, deadline=None)
@given(
    heads=st.integers(1, 4),
    half_width=st.integers(1, 5),
    layers=st.integers(1, 3),
    ffn=st.integers(1, 9),
    tokens=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_networks_of_any_size_agree_with_the_reference(tmp_path_factory, heads, half_width, layers, ffn, tokens, seed):
    config = tiny_config(2 * heads * half_width, layers, heads, ffn, vocabulary=11, layer_norm_eps=1e-3)
    rng = np.random.default_rng(seed)
    ids, mask = rng.integers(0, 11, (2, tokens)), rng.integers(0, 2, (2, tokens))
    folder = tmp_path_factory.mktemp("checkpoint")
    # Two powers of 10,000 in float32 may differ in the last bit.
    compare_with_reference(tiny_network(config, seed).double(), folder, ids, mask, 1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "prefix", "tolerance"), [("float32", "", 1e-4), ("float64", ".f64", 1e-12)])
def test_outputs_of_the_publishers_code_are_reproduced(shared, case, dtype, prefix, tolerance):
    oracle = load_file(shared / "ntv2" / "micro" / "oracle.safetensors")
    network = NucleotideTransformer.from_pretrained(shared / "ntv2" / "micro", dtype=getattr(torch, dtype))
    with torch.no_grad():
        out = network(oracle[f"{case}.input_ids"], oracle.get(f"{case}.attention_mask"))
    torch.testing.assert_close(out.logits, oracle[f"{case}{prefix}.logits"], rtol=0, atol=tolerance)
    assert len(out.hidden_states) == 3
    for i, state in enumerate(out.hidden_states):
        torch.testing.assert_close(state, oracle[f"{case}{prefix}.hidden_states.{i}"], rtol=0, atol=tolerance)


def test_loss_and_gradients_of_the_publishers_code_are_reproduced(shared):
    oracle = load_file(shared / "ntv2" / "micro" / "oracle.safetensors")
    network = NucleotideTransformer.from_pretrained(shared / "ntv2" / "micro")
    out = network(oracle["random_padded_masked.input_ids"], oracle["random_padded_masked.attention_mask"])
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), oracle["loss.labels"].flatten())
    loss.backward()
    torch.testing.assert_close(loss.detach(), oracle["loss.value"][0], rtol=0, atol=1e-5)
    recorded = {key.removeprefix("loss.grad."): value for key, value in oracle.items() if "grad" in key}
    own = {hub_key(name): parameter.grad for name, parameter in network.named_parameters()}
    assert len(recorded) == 4
    for key, gradient in recorded.items():
        torch.testing.assert_close(own[key], gradient, rtol=1e-4, atol=1e-6)


def meta_network(size: str) -> NucleotideTransformer:
    with torch.device("meta"):
        return NucleotideTransformer(NucleotideTransformerConfig(**PUBLISHED[size].sizes()))


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_published_parameter_counts(size):
    network = meta_network(size)
    unused = unused_shapes(vars(network.config)).items()
    stored = sum(int(np.prod(shape)) for key, shape in unused if "inv_freq" not in key)
    count = sum(parameter.numel() for parameter in network.parameters()) + stored
    wanted = {"50m": 55_904_972, "100m": 97_889_132, "250m": 235_120_780, "500m": 498_345_436}
    assert count == PUBLISHED[size].n_parameters == wanted[size]


@pytest.mark.parametrize("size", PUBLISHED)
def test_keys_and_shapes_are_those_of_the_hubs_files(shared, size):
    network = meta_network(size)
    own = {hub_key(key): tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    text = (shared / "ntv2" / f"state_dict_shapes_{size}.json").read_text()
    hub = {key: tuple(shape) for key, shape in json.loads(text).items()}
    assert {**own, **unused_shapes(vars(network.config))} == hub


def test_rotary_positions_stay_exact_under_bfloat16_autocast():
    width, n = 32, 2048
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cos, sin = rotary_tables(n, width, torch.device("cpu"))
        x = torch.randn(1, 1, n, width, generator=torch.Generator().manual_seed(0)).bfloat16()
        found = apply_rotary(x, cos, sin)
    assert cos.dtype == sin.dtype == torch.float32
    assert found.dtype == torch.bfloat16
    pair = torch.complex(x[..., :16].double(), x[..., 16:].double())
    angle = torch.arange(n).double()[:, None] * 10000.0 ** (-torch.arange(16).double() / 16)
    turned = pair * torch.polar(torch.ones_like(angle), angle)
    wanted = torch.cat((turned.real, turned.imag), -1)
    # bfloat16 rounds the result by 0.4 %; tables in bfloat16 would be off by more than half at this length.
    assert (found.double() - wanted).norm() / wanted.norm() < 0.005


def test_a_network_in_bfloat16_stays_near_float32_over_many_positions():
    config = tiny_config(32, 2, 2, 32)
    ids = torch.randint(6, 80, (1, 600), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = tiny_network(config)(ids).hidden_states[-1]
        rounded = tiny_network(config).bfloat16()(ids).hidden_states[-1].float()
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_every_norm_has_the_configured_epsilon():
    network = meta_network("50m")
    norms = [module for module in network.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 12 + 2
    assert {norm.eps for norm in norms} == {1e-12}


def test_2048_tokens_are_the_most():
    network = tiny_network(tiny_config(2, 1, 1, 2, max_position_embeddings=9))
    with torch.no_grad():
        assert network.hidden_states(torch.full((1, 2048), 7))[-1].isfinite().all()
        with pytest.raises(ValueError, match=r"2049 tokens.*at most 2048"):
            network(torch.full((1, 2049), 7))


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (torch.zeros(3, dtype=torch.int64), None),
        (torch.zeros(1, 0, dtype=torch.int64), None),
        (torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 4)),
    ],
    ids=["one axis", "no token", "another mask"],
)
def test_inputs_of_a_wrong_shape_are_refused(ids, mask):
    with pytest.raises(ValueError, match="input_ids"):
        tiny_network()(ids, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_without_tokens_gives_numbers_and_leaves_others_alone(dtype):
    network = tiny_network()
    ids = torch.tensor([[3, 8, 9, 10], [3, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0]])
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = network(ids, mask).logits
        alone = network(ids[1:], mask[1:]).logits
    with torch.no_grad():
        exact = network(ids, mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[1], alone[0], rtol=1e-3, atol=1e-4)
    # Evenly attended, as in the original: with -inf for float32's smallest number the context would be zero
    # instead.
    assert (logits.float() - exact).norm() / exact.norm() < (1e-6 if dtype == torch.float32 else 0.05)
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_backward_pass_works_after_a_forward_pass_in_inference_mode():
    network = tiny_network()
    ids = torch.tensor([[3, 8, 9]])
    with torch.inference_mode():
        network(ids)
    network(ids).logits.sum().backward()
    assert network.layers[0].query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])])
def test_chosen_positions_have_the_numbers_of_the_whole_computation(layers, mask):
    network = tiny_network(tiny_config(layers=layers)).double()
    ids = torch.randint(0, 80, (2, 6), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[1, 3], [4, 2]])
    whole = network.hidden_states(ids, mask)
    some = network.hidden_states(ids, mask, positions)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(some[-1], whole[-1][rows, positions], rtol=0, atol=1e-12)
    for found, wanted in zip(some[:-1], whole[:-1], strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(network.last_hidden_state(ids, mask, positions), some[-1])
    assert torch.equal(network.last_hidden_state(ids, mask), whole[-1])


def test_numpy_and_lists_are_accepted():
    network = tiny_network()
    ids, mask = np.array([[3, 8, 9, 1]]), np.array([[1, 1, 1, 0]])
    wanted = network(torch.from_numpy(ids), torch.from_numpy(mask)).logits
    assert torch.equal(network(ids, mask).logits, wanted)
    assert torch.equal(network(ids, mask.astype(bool)).logits, wanted)


def test_the_letter_start_makes_rows_of_6mers_sums_over_letters():
    network = NucleotideTransformer(tiny_config(vocabulary=4107))
    with torch.no_grad():
        network.embedding.weight.zero_()
    frequencies = torch.arange(4096.0)
    network.initialise_by_letters(frequencies, seed=3)
    words = (b"ATTCCG", b"GTTCCA", b"ATTCCA", b"GTTCCG")
    row = [network.embedding.weight[int(kmer_ids(encode_bytes(word))[0])] for word in words]
    torch.testing.assert_close(row[0] + row[1], row[2] + row[3])
    assert (row[0] - row[1]).abs().max() > 1e-3
    assert torch.equal(network.decoder.bias[6:4102], frequencies)
    assert (network.decoder.bias[:6] == -20).all()


@pytest.mark.parametrize(("values", "name"), [({"width": 25}, "hidden_size"), ({"layers": 0}, "num_hidden_layers")])
def test_impossible_sizes_are_refused(values, name):
    with pytest.raises(ValueError, match=name):
        tiny_config(**values)
