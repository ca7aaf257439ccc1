"""Held-out sums of the predictors that need no network, and what a report calls better."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from had.baselines.alignment import KmerTable
from had.dna import Genome
from had.models import HADConfig, HADModel, NucleotideTransformer, NucleotideTransformerConfig
from had.training import distillation, held_out, masked_lm
from had.training.data import DataConfig, WindowData
from had.training.held_out import Scores, alignment_sums, baseline_records, fit_markov, markov_sums, report

N = 40


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_better_means_that_the_interval_of_the_difference_excludes_zero_on_the_good_side(lower_is_better: bool) -> None:
    rng = np.random.default_rng(0)
    counts, model = np.full(N, 5.0), rng.normal(10, 1, N)
    sign = 1 if lower_is_better else -1
    noise = rng.normal(0, 4, N)
    baselines = {
        "much worse": model + sign * 3 * rng.uniform(0.9, 1.1, N),
        "much better": model - sign * 3 * rng.uniform(0.9, 1.1, N),
        # Worse by a tenth of the noise: the interval holds 0.
        "a little worse": model + noise - noise.mean() + sign * 0.06,
    }
    entry = report({"metric": Scores(counts, model, baselines, lower_is_better)}, block=1)["metric"]
    assert entry["better"] == ["much worse"]
    for name, sums in baselines.items():
        mean, low, high = entry["difference"][name]
        assert mean == pytest.approx((model - sums).sum() / counts.sum())
        assert low <= mean <= high
        assert entry["baselines"][name][0] == pytest.approx(sums.sum() / counts.sum())
    assert entry["model"][0] == pytest.approx(model.sum() / counts.sum())


def test_chains_are_counted_on_the_training_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # The predictors that are built from the counts have tests of their own.
    monkeypatch.setattr(held_out, "HiddenGroupBaselines", lambda chain: chain)
    genome = Genome.from_sequences({"train": "A" * 500 + "N" + "A" * 300, "valid": "C" * 600, "test": "G" * 600})
    config = DataConfig(genome=["x"], window=60, valid_contigs=["valid"], test_contigs=["test"])
    counts = fit_markov(WindowData(genome, config, 0)).counts
    # Both strands of two stretches of A; no 6-mer spans the N.
    assert counts.sum() == 2 * (495 + 295)
    assert counts[0, 0] == counts[-1, -1] == 495 + 295


@pytest.mark.parametrize("unit", ["kmer", "base"])
def test_sums_per_window_add_up_its_hidden_groups(unit: str) -> None:
    hidden_groups = np.array([[True, False, True], [False, False, True], [False, True, True]])
    hidden = hidden_groups.repeat(6, axis=1)
    n = int(hidden_groups.sum())
    of_group = np.arange(1.0, n + 1)
    of_base = np.arange(6.0 * n).reshape(n, 6)

    def scores(values: np.ndarray) -> dict[str, SimpleNamespace]:
        return {"name": SimpleNamespace(nll=values, correct=values > 3)}

    predictors = SimpleNamespace(score_groups=lambda *_: scores(of_group), score_bases=lambda *_: scores(of_base))
    losses, correct = markov_sums(predictors, np.zeros((3, 18), dtype=np.uint8), hidden, unit)
    values = of_group if unit == "kmer" else of_base
    parts = np.split(values, [2, 3])
    assert losses["name"].tolist() == [part.sum() for part in parts]
    assert correct["name"].tolist() == [(part > 3).sum() for part in parts]


@pytest.mark.parametrize("contextual", [False, True])
def test_squared_errors_are_those_of_the_aligned_groups(contextual: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    features, kmers = torch.randn(2, 3, 4, generator=generator), torch.tensor([[0, 1, 0], [1, 1, 2]])
    aligned = torch.tensor([[True, False, True], [False, True, True]])
    table = KmerTable(4)
    table.update(features, kmers)
    of_kmer = {kmer: features[kmers == kmer].mean(0) for kmer in (0, 1, 2)}
    overall = features.flatten(0, 1).mean(0)
    sums = alignment_sums(table, features, kmers, aligned, contextual)
    for row in range(2):
        groups = [group for group in range(3) if aligned[row, group]]
        by_table = sum(
            float((features[row, group] - of_kmer[int(kmers[row, group])]).square().mean()) for group in groups
        )
        constant = sum(float((features[row, group] - overall).square().mean()) for group in groups)
        assert sums["kmer_table"][row] == pytest.approx(by_table, rel=1e-5)
        assert sums["mean_vector"][row] == pytest.approx(by_table if contextual else constant, rel=1e-5)


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_teacher_is_compared_by_the_6mer_and_a_student_by_the_letter(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 12_000))
    windows = WindowData(Genome.from_sequences({"x": letters}), DataConfig(genome=["x"], window=60), 0)
    n_groups = int(windows.validation_hidden.sum()) // 6
    shape, method = ((n_groups,), "score_groups") if kind == "teacher" else ((n_groups, 6), "score_bases")
    scores = {"name": SimpleNamespace(nll=np.ones(shape), correct=np.ones(shape))}
    for module in (masked_lm, distillation):
        monkeypatch.setattr(module, "fit_markov", lambda _: SimpleNamespace(**{method: lambda *_: scores}))
    objective: Any
    if kind == "teacher":
        sizes = NucleotideTransformerConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
        )
        objective = masked_lm.MaskedLanguageObjective(NucleotideTransformer(sizes), windows)
    else:
        student = HADModel(HADConfig(hidden_size=16, intermediate_size=24, recurrent_blocks=0, decoder_heads=1))
        config = distillation.ObjectiveConfig(w_align=0)
        made = distillation.DistillationModule(student, None, config)
        objective = distillation.DistillationObjective(made, None, None, windows, {})
    # One nat for each: the mean is one nat per unit, whatever the unit.
    (record,) = baseline_records(objective.scores())
    assert record["name"] == "name"
    assert [value for key, value in record.items() if key.startswith(("loss", "acc"))] == [1.0, 1.0]
