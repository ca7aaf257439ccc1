"""Embedding sequences: order, pooling, strands, layers, and independence of the batch."""

import numpy as np
import pyarrow
import pytest
import torch

from had.dna import NucleotideTokenizer
from had.errors import UserError
from had.models import HADConfig, HADModel
from had.models.embedding import LETTERS_PER_BATCH, length_batches, window_starts


def random_sequences(lengths: list[int], seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list("ACGT"), length)) for length in lengths]


def complement(sequence: str) -> str:
    return sequence[::-1].translate(str.maketrans("ACGTN", "TGCAN"))


@pytest.fixture(scope="module")
def model() -> HADModel:
    torch.manual_seed(0)
    config = HADConfig(hidden_size=32, intermediate_size=48, recurrent_blocks=2, key_width=16, value_width=16)
    return HADModel(config).eval()


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    return random_sequences([50, 7, 31, 50, 1, 200, 64])


def alone(model: HADModel, sequence: str, layer: int = -1) -> np.ndarray:
    ids = torch.tensor([NucleotideTokenizer().encode(sequence)])
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states[layer][0].numpy()


def assert_near(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_vectors_do_not_depend_on_the_batch(model, sequences, batch_size):
    got = model.embed(sequences, batch_size=batch_size)
    assert got.dtype == np.float32
    assert_near(got, np.stack([alone(model, s).mean(0) for s in sequences]))


def test_equal_calls_give_equal_bytes(model, sequences):
    assert np.array_equal(model.embed(sequences), model.embed(sequences))


@pytest.mark.parametrize("layer", [0, 1, -1, -2, 3])
def test_layers_are_those_of_hidden_states(model, sequences, layer):
    want = np.stack([alone(model, s, layer).mean(0) for s in sequences])
    assert_near(model.embed(sequences, layer=layer), want)


def test_max_pooling_looks_at_real_letters_only(model, sequences):
    # Layer 0 of A, C, G, T has negative maxima over no letter: padding's zeros would show.
    got = model.embed(sequences, pooling="max", layer=0)
    assert_near(got, np.stack([alone(model, s, 0).max(0) for s in sequences]))
    assert (got < 0).any()


def test_no_pooling_gives_every_letter(model, sequences):
    got = model.embed(sequences, pooling="none")
    assert [len(one) for one in got] == [len(s) for s in sequences]
    for one, sequence in zip(got, sequences, strict=True):
        assert_near(one, alone(model, sequence))


def test_both_strands_are_averaged(model, sequences):
    turned = [complement(s) for s in sequences]
    want = (model.embed(sequences) + model.embed(turned)) / 2
    got = model.embed(sequences, both_strands=True)
    assert_near(got, want)
    assert_near(model.embed(turned, both_strands=True), got)
    letters = model.embed(sequences, both_strands=True, pooling="none")
    for one, sequence in zip(letters, sequences, strict=True):
        assert_near(one, (alone(model, sequence) + alone(model, complement(sequence))[::-1]) / 2)


def test_case_and_rna_are_read_as_dna(model):
    assert np.array_equal(model.embed(["ACGTACGT"]), model.embed(["acguACGU"]))
    with pytest.warns(UserWarning, match="IUPAC"):
        assert np.array_equal(model.embed(["ACRT"]), model.embed(["ACNT"]))


def test_training_mode_is_restored(model):
    model.train()
    model.embed(["ACGT"])
    assert model.training
    with pytest.raises(ValueError, match="empty"):
        model.embed([""])
    assert model.training
    model.eval()
    model.embed(["ACGT"])
    assert not model.training


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (["ACGT", ""], "sequence 1 is empty"),
        (["ACGT", "ACGT", "AC-T"], "sequence 2: .*'-' at position 3"),
        (["ACGé"], "sequence 0: .*'é' at position 4"),
        ([], "at least one sequence"),
    ],
)
def test_unusable_sequences_are_named(model, sequences, message):
    with pytest.raises(ValueError, match=message) as caught:
        model.embed(sequences)
    if sequences:
        assert isinstance(caught.value, UserError)


WINDOW = 20


@pytest.fixture(scope="module")
def short_sighted() -> HADModel:
    torch.manual_seed(0)
    return HADModel(HADConfig(hidden_size=16, recurrent_blocks=1, intermediate_size=8, max_length=WINDOW)).eval()


@pytest.mark.parametrize("length", [1, 19, 20, 21, 29, 30, 31, 40, 41, 200, 1_001])
def test_windows_cover_a_long_sequence_and_overlap_by_half(length):
    starts = window_starts(length, WINDOW)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - WINDOW)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= WINDOW // 2).all()
    # No more windows than it takes.
    assert len(starts) == 1 + max(0, -(-(length - WINDOW) // (WINDOW // 2)))


def letter_by_letter(model: HADModel, sequence: str, both_strands: bool) -> np.ndarray:
    """Each letter's features from the window whose edges are farthest away."""
    windows = []
    for start in window_starts(len(sequence), WINDOW):
        letters = sequence[start : start + WINDOW]
        features = alone(model, letters)
        if both_strands:
            features = (features + alone(model, complement(letters))[::-1]) / 2
        windows.append((start, features))
    rows = []
    for i in range(len(sequence)):
        distance = [min(i - start, start + WINDOW - 1 - i) for start, _ in windows]
        # Where two windows are equally good, the later one is taken.
        best = len(distance) - 1 - int(np.argmax(distance[::-1]))
        rows.append(windows[best][1][i - windows[best][0]])
    return np.array(rows)


@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize("length", [21, 30, 37, 100])
def test_beyond_max_length_each_letter_is_seen_with_most_context(short_sighted, length, both_strands):
    short, long = random_sequences([9, length], seed=length)
    got = short_sighted.embed([long, short], pooling="none", both_strands=both_strands)
    want = letter_by_letter(short_sighted, long, both_strands)
    assert_near(got[0], want)
    mean = short_sighted.embed([long, short], both_strands=both_strands)
    assert_near(mean[0], want.mean(0))
    assert_near(mean[1], got[1].mean(0))


def test_the_maximum_over_a_long_sequence_is_taken_on_each_strand(short_sighted):
    (long,) = random_sequences([53])
    strands = [letter_by_letter(short_sighted, s, False).max(0) for s in (long, complement(long))]
    assert_near(short_sighted.embed([long], pooling="max", both_strands=True)[0], (strands[0] + strands[1]) / 2)


def test_a_single_string_is_no_list(model):
    with pytest.raises(TypeError, match=r"only the names would be read; pass list\(mapping.values\(\)\)"):
        model.embed({"a": "ACGT"})
    with pytest.raises(TypeError, match=r"pass one column of it, such as list\(table\['sequence'\]\)"):
        model.embed(pyarrow.table({"sequence": ["ACGT"]}))
    with pytest.raises(TypeError, match="single string"):
        model.embed(b"ACGT")
    with pytest.raises(TypeError, match="list"):
        model.embed("ACGT")


@pytest.mark.parametrize("options", [{"pooling": "median"}, {"batch_size": 0}, {"layer": 4}, {"layer": -5}])
def test_options_out_of_range_are_refused(model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        model.embed(["ACGT"], **options)


def test_batches_hold_every_sequence_once_and_bound_the_letters():
    lengths = [10, 100_000, 70_000, 3, 131_072, 10, 60_000, 60_000]
    batches = list(length_batches(lengths, 3, 131_072))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= LETTERS_PER_BATCH


def test_vectors_are_ordinary_arrays(model):
    vectors = model.embed(["ACGT", "GGG"])
    vectors += 1
    assert vectors.flags.owndata
