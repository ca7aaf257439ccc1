"""`had evaluate`: how tiles are thinned and put into blocks."""

from pathlib import Path

import numpy as np
import pytest

from had.evaluation.held_out import evaluate_held_out
from had.models import NucleotideTransformer, NucleotideTransformerConfig
from had.training import masked_lm
from had.training.data import DataConfig


def test_fewer_tiles_are_spread_over_the_split_in_blocks_that_span_as_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chains have tests of their own.
    monkeypatch.setattr(masked_lm, "fit_markov", lambda *_: None)
    monkeypatch.setattr(masked_lm, "markov_sums", lambda *_: ({}, {}))
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 3_000 + 96 * 30))
    (tmp_path / "genome.fa").write_text(f">train\n{letters[:3_000]}\n>test\n{letters[3_000:]}\n")
    sizes = NucleotideTransformerConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    NucleotideTransformer(sizes).save_pretrained(tmp_path / "teacher")
    data = DataConfig([str(tmp_path / "genome.fa")], window=30, test_contigs=["test"])
    for tiles, windows, block in ((None, 96, 2), (48, 48, 1)):
        result = evaluate_held_out(tmp_path / "teacher", data, block=2, max_tiles=tiles, progress=False)["loss_mlm"]
        assert (result["windows"], result["block"], result["blocks"]) == (windows, block, 48)
