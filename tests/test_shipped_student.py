"""The student that comes with the package: it loads, and both of its losses beat predictors that need no network."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import had
from had.assets import DEMO_GENOME, DEMO_SPLIT
from had.dna.alphabet import NUCLEOTIDE_MASK, NUCLEOTIDE_OFFSET
from had.dna.intervals import acgt_stretches, tile
from had.evaluation.held_out import evaluate_held_out
from had.models import HADForMaskedLM
from had.models.saving import BUNDLED_FOLDER, bundled_models
from had.training.data import DataConfig, WindowData

SHIPPED = BUNDLED_FOLDER / "student"


def test_it_is_what_load_gives_and_its_card_says_interim() -> None:
    model = had.load()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_088_928
    assert bundled_models() == ["student"]
    vectors = model.embed(["ACGTTGCA", "GATTACA"])
    assert vectors.shape == (2, 128)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert "interim" in (SHIPPED / "README.md").read_text(encoding="utf-8").lower()
    assert json.loads((SHIPPED / "training.json").read_text(encoding="utf-8"))["bp"] >= 50_000_000


def test_it_beats_predictors_that_need_no_network_where_it_was_not_trained(tmp_path: Path) -> None:
    copy = tmp_path / "student"
    shutil.copytree(SHIPPED, copy)
    facts = json.loads((copy / "training.json").read_text(encoding="utf-8"))
    facts["objective"]["fit_windows"] = 32  # the baselines' means from fewer windows: quicker, and enough here
    (copy / "training.json").write_text(json.dumps(facts), encoding="utf-8")
    data = DataConfig(genome=[str(DEMO_GENOME)], bed=str(DEMO_SPLIT))
    result = evaluate_held_out(copy, data, split="validation", max_tiles=48, progress=False)
    assert result["loss_align"]["windows"] <= 48
    assert "mean_vector" in result["loss_align"]["better"]
    assert "frequency" in result["loss_rec"]["better"]


def test_it_predicts_hidden_letters_as_well_in_windows_longer_than_those_of_training() -> None:
    model = HADForMaskedLM.from_pretrained("student")
    windows = WindowData.open(DataConfig(genome=[str(DEMO_GENOME)], bed=str(DEMO_SPLIT), window=4080), seed=0)
    starts = tile(acgt_stretches(windows.genome, windows.splits.validation), 4080)[:4]
    codes, hidden = (torch.from_numpy(x) for x in windows.held_out(starts))
    ids = torch.where(hidden, NUCLEOTIDE_MASK, codes.long() + NUCLEOTIDE_OFFSET)
    losses = []
    with torch.inference_mode():
        for length in (1020, 4080):
            logits = model(ids.view(-1, length)).logits.view(*ids.shape, -1)[hidden]
            losses.append(F.cross_entropy(logits, codes[hidden].long()).item())
    assert abs(losses[1] - losses[0]) <= 0.005, losses
