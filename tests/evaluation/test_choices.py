"""What a benchmark chooses, by which rows, and with which weights each model starts."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from had.baselines.kmer_regression import KmerLogisticRegression
from had.baselines.logistic import C_GRID, fit_logistic
from had.evaluation.benchmarks import BenchmarkOptions, benchmark
from had.evaluation.features import student_layers
from had.evaluation.protocols import SUITES
from had.evaluation.resampling import paired_interval
from had.evaluation.unit_files import Predictions, Unit, place_of, read_predictions
from had.metrics import accuracy, mcc
from had.models.student import HADModel
from had.training.finetuning import build_model
from had.training.finetuning_config import FinetuneConfig
from had.training.finetuning_data import load_data
from had.training.finetuning_recipe import FitConfig
from tests.evaluation.made_up_suites import SMALL, TEACHER, Rows, make_rows, save_student, write_csv

TASK, NOISE = "mouse/3", "mouse/2"
STILL = 1e-30
"""A learning rate at which no float32 weight changes."""
ONE_STEP = {"lr": STILL, "epochs": 1, "batch_size": 128}


def noisy_rows(n: int, seed: int) -> Rows:
    """Rows of two classes, 30 % of them with the other label."""
    wrong = np.random.default_rng(seed).random(n) < 0.3
    return [
        (text, "10"[int(label)] if other else label)
        for (text, label), other in zip(make_rows(n, seed), wrong, strict=True)
    ]


def random_labels(rows: Rows) -> Rows:
    """Labels whose draw makes another layer the best on dev rows than on training rows, and than the first."""
    return [
        (text, str(label))
        for (text, _), label in zip(rows, np.random.default_rng(len(rows) + 4).integers(0, 2, len(rows)), strict=True)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a task whose dev rows are cleaner than its training rows, and one of labels drawn at random."""
    folder = tmp_path_factory.mktemp("choices")
    save_student(folder / "student", seed=5)
    for name, rows in (("train", noisy_rows(80, 1)), ("dev", make_rows(30, 101)), ("test", make_rows(40, 201))):
        write_csv(folder / f"gue/{TASK}/{name}.csv", rows)
        write_csv(folder / f"gue/{NOISE}/{name}.csv", random_labels(rows))
    return folder


def columns(rows: Rows) -> tuple[list[str], np.ndarray]:
    return [text for text, _ in rows], np.array([int(label) for _, label in rows])


def run(
    base: Path, out: Path, *models: str, task: str = TASK, seeds: int = 1, **changes: dict[str, Any]
) -> dict[tuple[str, int], Any]:
    """Predictions of a benchmark, by model and seed; where some are in ``out``, the others are added."""
    options = BenchmarkOptions(
        str(base / "gue"), [task], models, seeds, model=str(base / "student"), teacher=TEACHER, changes=changes,
        device="cpu", threads=1, quiet=True,
    )  # fmt: skip
    benchmark("gue", out, options)
    names = [word.partition("=")[0] for word in models]
    return {(name, s): read_predictions(place_of(out, Unit(task, name, s))) for name in names for s in range(seeds)}


def test_the_learning_rate_that_learns_is_kept_and_the_penalty_of_kmers_is_chosen_on_dev_rows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUITES, "gue", dataclasses.replace(SUITES["gue"], rates=(STILL, 1e-2, 2 * STILL)))
    training = {"epochs": 4, "batch_size": 16, "ema": 0.5}
    run(base, tmp_path / "run", "scratch", seeds=2, training=training)
    found = run(base, tmp_path / "run", "scratch", "kmer", seeds=3, training=training)
    for seed in (0, 1, 2):
        assert found["scratch", seed].record.facts["lr"] == 1e-2
        assert float(found["scratch", seed].record.row["value"]) > 0.7
    # The first seed chose; those after it, added later or not, try nothing.
    assert ["lr_validation" in found["scratch", seed].record.facts for seed in range(3)] == [True, False, False]
    tried = found["scratch", 0].record.facts["lr_validation"]
    assert tried["0.01"] == found["scratch", 0].record.facts["validation"] > max(tried["1e-30"], tried["2e-30"])

    texts, y = columns(noisy_rows(80, 1))
    dev_texts, dev_y = columns(make_rows(30, 101))
    fits = [KmerLogisticRegression(grid=(C,)).fit(texts, y, dev_texts, dev_y) for C in (0.01, 0.1, 1.0)]
    on_dev, on_train = (
        [mcc(truth, fit.predict(rows)) for fit in fits] for rows, truth in ((dev_texts, dev_y), (texts, y))
    )
    assert (int(np.argmax(on_dev)), int(np.argmax(on_train))) == (0, 2)
    facts = found["kmer", 0].record.facts
    assert (facts["C"], facts["validation"]) == (0.01, pytest.approx(on_dev[0]))
    # Frequencies, each divided by its largest value in training.
    features, test_features = (fits[0].features(rows).toarray() for rows in (texts, columns(make_rows(40, 201))[0]))
    largest = np.where(features.max(0) > 0, features.max(0), 1)
    plain = LogisticRegression(C=0.01, max_iter=1000).fit(features / largest, y)
    expected = plain.predict_proba(test_features / largest)
    np.testing.assert_allclose(found["kmer", 0].probabilities, expected, atol=1e-3)
    by_accuracy = KmerLogisticRegression(grid=(1.0,), metric=accuracy).fit(texts, y, dev_texts, dev_y)
    assert by_accuracy.fitted.dev_score == accuracy(dev_y, fits[2].predict(dev_texts)) != on_dev[2]


def test_each_model_starts_from_its_own_weights_and_seed(base: Path, tmp_path: Path) -> None:
    """Where nothing is learnt, predictions are those of the weights that a model starts from."""
    names = ("had", "scratch", "cnn", "teacher")
    found = run(base, tmp_path / "run", *names, seeds=2, training=ONE_STEP, cnn=ONE_STEP, teacher=ONE_STEP)
    data = load_data(base / "gue" / TASK)
    texts, _ = columns(make_rows(40, 201))

    def expected(model: str, seed: int, conjoin: bool) -> np.ndarray:
        config = FinetuneConfig("", model=model, student=SMALL, seed=seed, training=FitConfig())
        return build_model(config, data, torch.device("cpu"))[0].predict(texts, both_strands=conjoin)

    for name, model in (("had", str(base / "student")), ("scratch", "scratch")):
        for seed in (0, 1):
            conjoin = found[name, seed].record.facts["conjoin"]
            np.testing.assert_allclose(found[name, seed].probabilities, expected(model, seed, conjoin), atol=1e-6)

    def apart(one: Predictions, other: Predictions) -> float:
        return float(np.abs(one.probabilities - other.probabilities).max())

    for name in names:
        assert apart(found[name, 0], found[name, 1]) > 1e-4, name
    assert apart(found["had", 0], found["scratch", 0]) > 1e-4


def test_a_seed_draws_the_student_and_the_head_and_a_trained_student_keeps_its_weights(base: Path) -> None:
    data = load_data(base / "gue" / TASK)

    def weights(model: str, seed: int) -> dict[str, torch.Tensor]:
        config = FinetuneConfig("", model=model, student=SMALL, seed=seed)
        return build_model(config, data, torch.device("cpu"))[0].state_dict()

    fresh, again, other = weights("scratch", 0), weights("scratch", 0), weights("scratch", 1)
    trained = [weights(str(base / "student"), seed) for seed in (0, 1)]
    saved = HADModel.from_pretrained(base / "student").state_dict()
    embedding = "student.embedding.weight"
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    for one, two in ((fresh[embedding], other[embedding]), (fresh["head.weight"], other["head.weight"])):
        assert not torch.equal(one, two)
    assert not torch.equal(trained[0]["head.weight"], trained[1]["head.weight"])
    for kept in trained:
        assert all(torch.equal(kept[f"student.{name}"], tensor) for name, tensor in saved.items())


def test_layer_and_penalty_of_a_probe_are_chosen_on_dev_rows(base: Path, tmp_path: Path) -> None:
    found = run(base, tmp_path / "run", "probe", "fresh=probe:untrained", task=NOISE, seeds=2)
    facts = found["probe", 0].record.facts
    assert np.array_equal(found["probe", 0].probabilities, found["probe", 1].probabilities)
    # The same student would give the same numbers to the last bit.
    assert np.abs(found["fresh", 0].probabilities - found["fresh", 1].probabilities).max() > 1e-5
    texts, y = columns(random_labels(noisy_rows(80, 1)))
    dev_texts, dev_y = columns(random_labels(make_rows(30, 101)))
    student = HADModel.from_pretrained(base / "student")
    layers, dev_layers = student_layers(student, texts), student_layers(student, dev_texts)
    dev_scores, train_scores = {}, {}
    for name, values in layers.items():
        for C in C_GRID:
            fit = fit_logistic(values, y, dev_layers[name], dev_y, grid=(C,))
            dev_scores[name, C] = mcc(dev_y, fit.predict(dev_layers[name]))
            train_scores[name, C] = mcc(y, fit.predict(values))
    best = max(dev_scores, key=dev_scores.__getitem__)
    assert len({best[0], max(train_scores, key=train_scores.__getitem__)[0], next(iter(layers))}) == 3
    assert (facts["layer"], facts["C"]) == best
    assert facts["validation"] == pytest.approx(dev_scores[best])


def test_a_paired_interval_holds_95_percent() -> None:
    """Of one seed each, accuracy's interval is that of a mean of n differences of -1, 0 and 1."""
    rng = np.random.default_rng(0)
    n = 2000
    targets = rng.integers(0, 2, n)
    ours, theirs = (np.where(rng.random(n) < share, targets, 1 - targets) for share in (0.85, 0.8))
    differences = (ours == targets).astype(float) - (theirs == targets)
    interval = paired_interval("accuracy", targets, ours[None], theirs[None], 2)
    half = 1.96 * differences.std() / np.sqrt(n)
    assert interval.mean == pytest.approx(differences.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.1)
