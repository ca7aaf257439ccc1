"""One vector per sequence from every layer of student and teacher."""

import numpy as np
import pytest
import torch

from had.dna.tokenizers import KmerTokenizer
from had.errors import UserError
from had.evaluation.features import student_layers, teacher_layers, teacher_layers_of_any
from had.models.student import HADConfig, HADModel
from had.models.teachers import random_teacher


def random_sequences(lengths: list[int], seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list("ACGT"), length)) for length in lengths]


@pytest.fixture(scope="module")
def model() -> HADModel:
    torch.manual_seed(0)
    config = HADConfig(hidden_size=32, intermediate_size=48, recurrent_blocks=2, key_width=16, value_width=16)
    return HADModel(config).eval()


def test_student_layers_are_those_of_embed(model: HADModel) -> None:
    sequences = random_sequences([20, 7, 31, 20])
    layers = student_layers(model, sequences)
    assert list(layers) == ["embedding", "block 1", "block 2", "block 3"]
    for index, values in enumerate(layers.values()):
        wanted = model.embed(sequences, layer=index)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, wanted, atol=1e-5 * np.abs(wanted).max())


def test_teacher_layers_are_means_over_both_phases_of_a_ragged_sequence() -> None:
    teacher = random_teacher("16x2x2x24")
    ragged, whole = random_sequences([15, 12])
    layers = teacher_layers(teacher, [ragged, whole])
    assert list(layers) == ["embedding", "layer 1", "layer 2"]

    def mean_of(letters: str) -> np.ndarray:
        codes = torch.tensor([["ACGT".index(letter) for letter in letters]])
        return teacher.features(codes, None)[0].mean(0).numpy()

    np.testing.assert_allclose(layers["layer 2"][0], (mean_of(ragged[:12]) + mean_of(ragged[3:])) / 2, atol=1e-5)
    np.testing.assert_allclose(layers["layer 2"][1], mean_of(whole), atol=1e-5)


def test_every_letter_of_a_ragged_sequence_counts() -> None:
    teacher = random_teacher("16x1x2x24")
    (sequence,) = random_sequences([15])
    changed = ["ACGT"[("ACGT".index(sequence[i]) + 1) % 4] for i in range(15)]
    others = [sequence[:i] + letter + sequence[i + 1 :] for i, letter in enumerate(changed)]
    values = teacher_layers(teacher, [sequence, *others])["layer 1"]
    assert (np.abs(values[1:] - values[0]).max(1) > 1e-4).all()


@pytest.mark.parametrize("bad", ["ACGTA", "ACGTNACGT", "ACGT!ACGT"])
def test_what_the_teacher_cannot_read_is_refused_by_its_index(bad: str) -> None:
    with pytest.raises(UserError, match="sequence 1"):
        teacher_layers(random_teacher("16x1x2x24"), ["ACGTACGT", bad])


def test_sequences_the_teacher_cannot_read_whole_have_features_too() -> None:
    teacher = random_teacher("32x2x2x32")
    texts = ["ACGTTGCAAACC", "ACGTTGCAAAC", "ACNTTGCAAACC", "AC", "n"]
    layers = teacher_layers_of_any(teacher, texts)
    plain = teacher_layers(teacher, texts[:2])
    assert list(layers) == list(plain)
    for name, values in layers.items():
        assert values.shape == (5, 32)
        np.testing.assert_allclose(values[:2], plain[name], rtol=1e-5, atol=1e-6)
        assert np.isfinite(values).all()
    ids = torch.tensor([KmerTokenizer().encode(texts[2])])
    expected = teacher.network.hidden_states(ids)[-1][0, 1:].mean(0).detach().numpy()
    np.testing.assert_allclose(layers["layer 2"][2], expected, rtol=1e-5, atol=1e-6)
