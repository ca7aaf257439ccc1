"""The objective sees only what it may, and its sums are what their definition says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from had.baselines.alignment import KmerTable
from had.dna.alphabet import GROUP, kmer_indices
from had.dna.genome import Genome
from had.dna.masking import expand, group_masks
from had.models.reconstruction import CrossAttentionDecoder, HADForMaskedLM
from had.models.student import HADConfig, HADModel
from had.models.teachers import random_teacher
from had.training.data import DataConfig, WindowData
from had.training.distillation import (
    DistillationModule,
    DistillationObjective,
    ObjectiveConfig,
    fit_table,
    normalise_features,
    teacher_features,
    windows_to_batch,
)

WINDOW, WIDTH = 60, 16
SMALL = HADConfig(
    hidden_size=32,
    intermediate_size=40,
    recurrent_blocks=1,
    key_width=8,
    value_width=16,
    attention_heads=1,
    decoder_heads=2,
)


def windows(n: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    codes = np.random.default_rng(seed).integers(0, 4, (n, WINDOW)).astype(np.uint8)
    return codes, expand(group_masks(seed, np.arange(n), WINDOW // GROUP, 0.3))


@pytest.fixture(scope="module")
def teacher():
    return random_teacher("16x2x2x24", seed=1)


def module(**options) -> DistillationModule:
    torch.manual_seed(0)
    made = DistillationModule(HADModel(SMALL), WIDTH, ObjectiveConfig(**options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(5.0)
    return made


def prepared(made: DistillationModule, teacher, codes: np.ndarray, hidden: np.ndarray) -> dict:
    batch = windows_to_batch(codes, hidden, made.config.align_positions)
    features = teacher_features(teacher, batch, made.config.teacher_view)
    return {**batch, "target": features[batch["aligned"]]}


def with_other_hidden_letters(codes: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden, (codes + 1) % 4, codes).astype(np.uint8)


def test_hidden_nucleotides_reach_neither_student_nor_teacher_with_masked_view(teacher) -> None:
    codes, hidden = windows()
    changed = with_other_hidden_letters(codes, hidden)
    first, second = windows_to_batch(codes, hidden), windows_to_batch(changed, hidden)
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert not torch.equal(first["codes"], second["codes"])
    views = [teacher_features(teacher, batch, "masked") for batch in (first, second)]
    assert torch.equal(*views)


def test_full_view_shows_hidden_nucleotides_to_the_teacher_only(teacher) -> None:
    codes, hidden = windows()
    changed = with_other_hidden_letters(codes, hidden)
    first, second = windows_to_batch(codes, hidden), windows_to_batch(changed, hidden)
    assert torch.equal(first["input_ids"], second["input_ids"])
    views = [teacher_features(teacher, batch, "full") for batch in (first, second)]
    assert not torch.allclose(*views)


@pytest.mark.parametrize("head", ["mean", "concat"])
@pytest.mark.parametrize("granularity", ["group", "nucleotide"])
def test_visible_alignment_has_exactly_no_gradient_at_hidden_positions(teacher, head: str, granularity: str) -> None:
    if head == "concat" and granularity == "nucleotide":
        pytest.skip("refused by the configuration")
    codes, hidden = windows()
    made = module(align_head=head, granularity=granularity)
    batch = prepared(made, teacher, codes, hidden)
    features = torch.randn(len(codes), WINDOW, SMALL.hidden_size, requires_grad=True)
    made._alignment(features, batch["target"], batch["aligned_index"]).sum().backward()
    assert features.grad is not None
    norms = features.grad.norm(dim=-1)
    assert (norms[torch.from_numpy(hidden)] == 0).all()
    assert (norms[torch.from_numpy(~hidden)] > 0).all()


@pytest.mark.parametrize("positions", ["visible", "masked", "all"])
@pytest.mark.parametrize("head", ["mean", "concat"])
def test_sums_equal_a_slow_definition(teacher, positions: str, head: str) -> None:
    codes, hidden = windows()
    made = module(align_positions=positions, align_head=head)
    batch = prepared(made, teacher, codes, hidden)
    sums = made(batch)
    features = made.student(batch["input_ids"]).last_hidden_state
    teaching = normalise_features(teacher.features(batch["codes"], batch["hidden_groups"]))
    loss_align = 0.0
    loss_rec, right = 0.0, 0
    for b in range(len(codes)):
        for t in range(WINDOW // GROUP):
            is_hidden = bool(hidden[b, GROUP * t])
            if positions == "all" or is_hidden == (positions == "masked"):
                six = features[b, GROUP * t : GROUP * (t + 1)]
                joined = six.reshape(-1) if head == "concat" else six.mean(0)
                loss_align += float(((made.projection(joined) - teaching[b, t]) ** 2).mean())
        places = np.flatnonzero(hidden[b])
        visible = np.flatnonzero(~hidden[b])
        logits = made.decoder(features[b : b + 1], torch.tensor(places)[None], key_index=torch.tensor(visible)[None])[0]
        truth = torch.tensor(codes[b, places]).long()
        loss_rec += float(F.cross_entropy(logits, truth, reduction="sum"))
        right += int((logits.argmax(-1) == truth).sum())
    assert float(sums["loss_align"]) == pytest.approx(loss_align, rel=1e-4)
    assert float(sums["loss_rec"]) == pytest.approx(loss_rec, rel=1e-4)
    assert int(sums["acc_rec"]) == right


def test_nucleotide_granularity_compares_every_letter_with_its_group(teacher) -> None:
    codes, hidden = windows(1)
    made = module(granularity="nucleotide")
    batch = prepared(made, teacher, codes, hidden)
    features = made.student(batch["input_ids"]).last_hidden_state[0]
    teaching = normalise_features(teacher.features(batch["codes"], batch["hidden_groups"]))[0]
    expected = sum(
        float(((made.projection(features[i]) - teaching[i // GROUP]) ** 2).mean()) / GROUP
        for i in range(WINDOW)
        if not hidden[0, i]
    )
    assert float(made(batch)["loss_align"]) == pytest.approx(expected, rel=1e-4)


def test_windows_longer_than_those_of_training_are_decoded_in_blocks() -> None:
    codes, hidden = windows()
    made = module(w_align=0.0)
    batch = windows_to_batch(codes, hidden)
    whole = float(made(batch)["loss_rec"])
    made.student.config = replace(SMALL, training_window=WINDOW // 4)
    decoder = CrossAttentionDecoder(made.student.config)
    decoder.load_state_dict(made.decoder.state_dict())
    made.decoder = decoder
    logits = HADForMaskedLM(made.student, decoder)(batch["input_ids"]).logits[torch.from_numpy(hidden)]
    expected = float(F.cross_entropy(logits, torch.from_numpy(codes[hidden]).long(), reduction="sum"))
    sums = made(batch)
    assert float(sums["loss_rec"]) == pytest.approx(expected, rel=1e-5)
    assert int(sums["acc_rec"]) == int((logits.argmax(-1).numpy() == codes[hidden]).sum())
    assert abs(whole - expected) > 0.01 * expected


def test_single_terms_leave_the_other_out(teacher) -> None:
    codes, hidden = windows()
    alone = module(w_rec=0)
    assert alone.decoder is None
    assert set(alone(prepared(alone, teacher, codes, hidden))) == {"loss_align"}
    alone = module(w_align=0)
    assert alone.projection is None
    assert set(alone(windows_to_batch(codes, hidden))) == {"loss_rec", "acc_rec"}


def test_window_of_one_group_has_no_alignment_and_a_finite_reconstruction(teacher) -> None:
    codes = np.array([[0, 1, 2, 3, 0, 1]], dtype=np.uint8)
    made = module()
    batch = prepared(made, teacher, codes, np.ones_like(codes, dtype=bool))
    sums = made(batch)
    assert float(sums["loss_align"]) == 0
    (sums["loss_align"] + sums["loss_rec"]).backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_a_group_with_any_hidden_letter_counts_as_masked() -> None:
    codes = np.zeros((1, 18), dtype=np.uint8)
    hidden = np.zeros((1, 18), dtype=bool)
    hidden[0, 7] = True
    batch = windows_to_batch(codes, hidden)
    assert batch["aligned"].tolist() == [[True, False, True]]
    assert batch["hidden_groups"].tolist() == [[False, True, False]]


def data(seed: int = 0, **options) -> WindowData:
    rng = np.random.default_rng(7)
    genome = Genome.from_sequences({"x": "".join(rng.choice(list("ACGT"), 12_000))})
    config = DataConfig(genome=["x"], window=WINDOW, validation_windows=8, **options)
    return WindowData(genome, config, seed)


def test_contextual_target_is_the_feature_minus_its_6mer_mean(teacher) -> None:
    windows_of_run = data()
    config = ObjectiveConfig(align_target="contextual", fit_windows=64)
    table = fit_table(teacher, windows_of_run, config, torch.device("cpu"))
    objective = DistillationObjective(
        DistillationModule(HADModel(SMALL), WIDTH, config), teacher, table, windows_of_run, {}
    )
    batch = objective.prepare(objective.batch(np.arange(2)))
    features = teacher_features(teacher, batch, "masked")[batch["aligned"]]
    index = torch.from_numpy(kmer_indices(batch["codes"].numpy()))[batch["aligned"]]
    assert torch.allclose(batch["target"], features - table.means[index], atol=1e-6)


@pytest.mark.parametrize("target", ["full", "contextual"])
def test_the_constant_beside_a_contextual_target_is_the_table_that_it_subtracts(teacher, target: str) -> None:
    windows_of_run = data()
    config = ObjectiveConfig(w_rec=0, align_target=target, fit_windows=32)
    table = fit_table(teacher, windows_of_run, config, torch.device("cpu"))
    made = DistillationModule(HADModel(SMALL), WIDTH, config)
    baselines = DistillationObjective(made, teacher, table, windows_of_run, {}).scores()["loss_align"].baselines
    assert (baselines["mean_vector"] == baselines["kmer_table"]).all() == (target == "contextual")


@pytest.mark.parametrize(("positions", "view"), [("visible", "masked"), ("masked", "full"), ("all", "full")])
def test_table_and_target_are_of_the_aligned_training_groups_as_the_teacher_sees_them(
    teacher, positions: str, view: str
) -> None:
    windows_of_run = data()
    config = ObjectiveConfig(align_positions=positions, teacher_view=view, fit_windows=40)
    table = fit_table(teacher, windows_of_run, config, torch.device("cpu"))
    made = DistillationModule(HADModel(SMALL), WIDTH, config)
    objective = DistillationObjective(made, teacher, table, windows_of_run, {})
    batch = objective.prepare(objective.batch(np.arange(3)))
    hidden = torch.from_numpy(windows_of_run.train(np.arange(3))[1])[:, ::GROUP]
    aligned = {"visible": ~hidden, "masked": hidden, "all": hidden | ~hidden}[positions]
    features = normalise_features(teacher.features(batch["codes"], hidden if view == "masked" else None))
    assert torch.allclose(batch["target"], features[aligned], atol=1e-6)
    expected = KmerTable(WIDTH)
    for i in range(40):
        batch = windows_to_batch(*windows_of_run.train(np.array([i])), positions)
        features = teacher_features(teacher, batch, view)
        expected.update(features, kmer_indices(batch["codes"].numpy()), batch["aligned"])
    assert torch.equal(table.counts, expected.counts)
    assert torch.allclose(table.sums, expected.sums, atol=1e-4)


@pytest.mark.parametrize("mask", ["group", "nucleotide"])
def test_validation_means_agree_with_the_scores_per_window(teacher, mask: str) -> None:
    windows_of_run = data(mask=mask)
    config = ObjectiveConfig(fit_windows=16)
    table = fit_table(teacher, windows_of_run, config, torch.device("cpu"))
    objective = DistillationObjective(module(fit_windows=16), teacher, table, windows_of_run, {})
    means, scores = objective.validate(), objective.scores()
    for name, score in scores.items():
        assert means[name] == pytest.approx(score.model.sum() / score.counts.sum(), rel=1e-5)
        for sums in score.baselines.values():
            assert sums.shape == score.model.shape
    assert set(scores["loss_align"].baselines) == {"mean_vector", "kmer_table"}


def test_counts_do_not_depend_on_how_a_batch_is_cut(teacher) -> None:
    windows_of_run = data()
    objective = DistillationObjective(module(), teacher, None, windows_of_run, {})
    whole = objective.counts(objective.batch(np.arange(6)))
    parts = [objective.counts(objective.batch(part)) for part in np.array_split(np.arange(6), 4)]
    assert whole == {name: sum(part[name] for part in parts) for name in whole}
