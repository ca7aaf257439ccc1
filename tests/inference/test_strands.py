"""Prediction averages the strands as fine-tuning decided, or as the caller says."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from had.dna.tokenizers import NucleotideTokenizer
from had.inference.predict import predict
from had.models.heads import HADClassifierConfig, HADForSequenceClassification
from tests.evaluation.made_up_suites import SMALL, letters


@pytest.mark.parametrize("stored", [False, True])
def test_strands_are_averaged_as_fine_tuning_decided_or_as_the_caller_says(tmp_path: Path, stored: bool) -> None:
    torch.manual_seed(0)
    model = HADForSequenceClassification(HADClassifierConfig(conjoin=stored, student=SMALL)).eval()
    torch.nn.init.normal_(model.head.weight, std=3)
    model.save_pretrained(tmp_path / "model")
    texts = [letters(np.random.default_rng(seed), 0.5, 40 + seed) for seed in range(4)]
    (tmp_path / "in.fa").write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(texts)))

    def log_odds(text: str) -> float:
        with torch.no_grad():
            logits = model(NucleotideTokenizer()([text])["input_ids"], conjoin=False).logits[0]
        return float(logits[1] - logits[0])

    one = np.array([log_odds(text) for text in texts])
    other = np.array([log_odds(text[::-1].translate(str.maketrans("ACGT", "TGCA"))) for text in texts])
    assert np.abs(one - other).min() > 1e-2
    for wanted, both in ((None, stored), (True, True), (False, False)):
        expected = 1 / (1 + np.exp(-((one + other) / 2 if both else one)))
        np.testing.assert_allclose(model.predict(texts, both_strands=wanted)[:, 1], expected, rtol=1e-4)
        out = tmp_path / "out.csv"
        predict(tmp_path / "model", tmp_path / "in.fa", out, conjoin=wanted, device="cpu", threads=1, quiet=True)
        with out.open(newline="") as file:
            found = [float(row["p_1"]) for row in csv.DictReader(file)]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_prediction_hides_no_feature_and_leaves_the_models_mode(training: bool) -> None:
    torch.manual_seed(0)
    model = HADForSequenceClassification(HADClassifierConfig(dropout=0.5, student=SMALL)).train(training)
    torch.nn.init.normal_(model.head.weight, std=3)
    once, again = model.predict(["ACGTACGGT"]), model.predict(["ACGTACGGT"])
    assert np.array_equal(once, again)
    assert model.training is model.student.training is training
