"""The fine-tuned model: pooling, padding, strands, saving."""

from pathlib import Path

import numpy as np
import pytest
import torch

from had.dna.alphabet import decode, reverse_complement
from had.dna.tokenizers import NucleotideTokenizer
from had.errors import UserError
from had.models.heads import HADClassifierConfig, HADForSequenceClassification, reverse_complement_ids
from had.models.student import HADConfig

SMALL = HADConfig(
    hidden_size=16, intermediate_size=24, recurrent_blocks=1, attention_heads=1, key_width=4, value_width=8
)


def sequence(length: int, seed: int) -> str:
    return decode(np.random.default_rng(seed).integers(0, 4, length).astype(np.uint8))


def other_strand(text: str) -> str:
    return decode(reverse_complement(np.array(["ACGTN".index(c) for c in text], dtype=np.uint8)))


@pytest.fixture(params=[0, 6])
def model(request: pytest.FixtureRequest) -> HADForSequenceClassification:
    torch.manual_seed(0)
    config = HADClassifierConfig("multiclass", ["a", "b", "c"], student=SMALL, windows=request.param)
    made = HADForSequenceClassification(config)
    torch.nn.init.normal_(made.head.weight)
    for parameter in made.student.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("conjoin", [False, True])
def test_padding_on_either_side_changes_no_logit(model, side, conjoin) -> None:
    texts = [sequence(length, length) for length in (1, 2, 5, 17, 64, 131)]
    batch = NucleotideTokenizer()(texts, padding_side=side)
    with torch.no_grad():
        together = model(batch["input_ids"], batch["attention_mask"], conjoin=conjoin).logits
        for row, text in enumerate(texts):
            ids = NucleotideTokenizer()([text], return_tensors="pt")["input_ids"]
            alone = model(ids, conjoin=conjoin).logits[0]
            # Features differ by at most 1e-5 of the largest, which the head adds up.
            pooled = model.pool(ids).abs().max()
            assert ((together[row] - alone).abs() <= 1e-5 * pooled * model.head.weight.abs().sum(1)).all()


def test_pooling_is_the_mean_over_real_letters(model) -> None:
    texts = [sequence(9, 1), sequence(30, 2)]
    batch = NucleotideTokenizer()(texts)
    pooled = model.pool(torch.as_tensor(batch["input_ids"]), torch.as_tensor(batch["attention_mask"]))
    np.testing.assert_allclose(pooled[:, :16].detach().numpy(), model.student.embed(texts), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shares", [2**25, 64])
@pytest.mark.parametrize("side", ["left", "right"])
def test_windows_are_those_of_a_loop_over_letters(side, shares, monkeypatch) -> None:
    # Few shares at a time: the table of five rows and four windows is made of three letters after three letters.
    monkeypatch.setattr("had.models.heads._SHARES", shares)
    torch.manual_seed(0)
    model = HADForSequenceClassification(HADClassifierConfig(student=SMALL, windows=4)).eval()
    texts = [sequence(length, length) for length in (1, 3, 4, 21, 50)]
    batch = NucleotideTokenizer()(texts, padding_side=side, return_tensors="pt")
    with torch.no_grad():
        pooled = model.pool(batch["input_ids"], batch["attention_mask"])[:, 16:].view(len(texts), 4, 16)
    for row, text in enumerate(texts):
        features = model.student.embed([text], pooling="none")[0]
        features = features - features.mean(0)
        expected = np.zeros((4, 16))
        for i, feature in enumerate(features):
            # Middles of the windows lie at 1/8, 3/8, 5/8 and 7/8 of the sequence.
            place = min(max((i + 0.5) / len(text) * 4 - 0.5, 0), 3)
            left = int(place)
            expected[left] += (1 - (place - left)) * feature
            if left < 3:
                expected[left + 1] += (place - left) * feature
        expected /= max(len(text) / 4, 1) * 2
        allowed = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(pooled[row].numpy(), expected, rtol=0, atol=allowed)
        if len(text) == 4:
            np.testing.assert_allclose(pooled[row].numpy(), features / 2, rtol=0, atol=allowed)


def test_a_fresh_head_of_windows_starts_from_the_mean_and_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HADForSequenceClassification(HADClassifierConfig(student=SMALL, windows=5)).eval()
    assert model.head.weight.shape == (2, 6 * 16)
    text = sequence(33, 1)
    with torch.no_grad():
        logits = model(NucleotideTokenizer()([text])["input_ids"]).logits[0]
        mean = torch.from_numpy(model.student.embed([text])[0])
        torch.testing.assert_close(logits, model.head.weight[:, :16] @ mean, rtol=1e-4, atol=1e-6)
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(tmp_path / "model")
    again = HADForSequenceClassification.from_pretrained(tmp_path / "model")
    assert again.config.windows == 5
    np.testing.assert_array_equal(again.predict([text]), model.predict([text]))
    for wrong in (-1, 2.5):
        with pytest.raises(ValueError, match="windows must be a whole number and not negative"):
            HADClassifierConfig(windows=wrong)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_padding_alone_and_a_config_without_windows_are_no_fault(model, tmp_path: Path, side: str) -> None:
    batch = NucleotideTokenizer()([sequence(9, 1), sequence(3, 2)], padding_side=side)
    ids, mask = batch["input_ids"], batch["attention_mask"].copy()
    mask[1] = 0
    with torch.no_grad():
        pooled = model.pool(torch.as_tensor(ids), torch.as_tensor(mask))
        assert (pooled[1] == 0).all()
        assert pooled[0].isfinite().all()
        both = model(ids, mask, conjoin=True).logits
        torch.testing.assert_close(both[1], model.head.bias)
    # What was written before there were windows.
    values = model.config.to_dict()
    del values["windows"]
    assert HADClassifierConfig.from_dict(values).windows == 0
    with pytest.raises(UserError, match="whole number"):
        HADClassifierConfig.from_dict({**values, "windows": 6.5})


def test_conjoined_logits_are_the_mean_of_both_strands_and_equal_on_both(model) -> None:
    text = sequence(41, 3)
    with torch.no_grad():
        forward, back = (model(NucleotideTokenizer()([t])["input_ids"]).logits for t in (text, other_strand(text)))
        conjoined = [
            model(NucleotideTokenizer()([t])["input_ids"], conjoin=True).logits for t in (text, other_strand(text))
        ]
    torch.testing.assert_close(conjoined[0], (forward + back) / 2)
    torch.testing.assert_close(conjoined[0], conjoined[1])
    assert not torch.allclose(forward, back)


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_letters_are_turned(side) -> None:
    texts = ["ACGGN", "TTA", "C"]
    batch = NucleotideTokenizer()(texts, padding_side=side, return_tensors="pt")
    expected = NucleotideTokenizer()([other_strand(t) for t in texts], padding_side=side, return_tensors="pt")
    turned = reverse_complement_ids(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(turned, expected["input_ids"])


def test_regression_gives_values_in_the_units_of_the_data() -> None:
    config = HADClassifierConfig("regression", ["value"], target_mean=100.0, target_scale=10.0, student=SMALL)
    model = HADForSequenceClassification(config).eval()
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data.fill_(0.5)
    logits = model(NucleotideTokenizer()(["ACGT"])["input_ids"]).logits
    assert logits.item() == 0.5
    assert model.probabilities(logits).item() == model.predict(["ACGT"]).item() == 105.0


def test_a_saved_model_comes_back_with_its_classes_and_numbers(model, tmp_path: Path) -> None:
    model.config.conjoin = True
    model.save_pretrained(tmp_path / "run/model")
    ids = NucleotideTokenizer()([sequence(20, 4)])["input_ids"]
    for name in (tmp_path / "run/model", tmp_path / "run"):
        again = HADForSequenceClassification.from_pretrained(name)
        assert again.config == model.config
        assert not again.training
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_other_folders_and_impossible_configs_are_refused(tmp_path: Path) -> None:
    from had.models.student import HADModel

    HADModel(SMALL).save_pretrained(tmp_path / "student")
    with pytest.raises(UserError, match="holds a pre-trained student, which predicts nothing of yours yet"):
        HADForSequenceClassification.from_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="one name"):
        HADClassifierConfig("multiclass", ["a", "a"])
    with pytest.raises(ValueError, match="outputs"):
        HADClassifierConfig("binary", ["a", "b", "c"])
