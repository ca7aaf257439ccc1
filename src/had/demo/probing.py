"""Probes of every layer of several models on one labelled set, with intervals over its test rows."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from had.baselines.kmer_regression import KmerLogisticRegression
from had.dna.labelled import LabelledSequences
from had.evaluation.probes import linear_probe
from had.metrics import mcc

RESAMPLES = 2000
KMER = 6


@dataclass(frozen=True)
class LayerScore:
    """A layer's probes, one per seed; a seed draws the training rows (see `had.evaluation.probes`)."""

    model: str
    layer: str
    seeds: tuple[int, ...]
    dev: tuple[float, ...]
    """MCC on development rows at each seed, which chose the penalty: not comparable with ``test``."""
    test: tuple[float, ...]
    resampled: NDArray[np.float64]
    """(RESAMPLES,) mean test MCC over the seeds, of bootstrapped test rows; the same rows for every model."""

    @property
    def dev_mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.dev))

    @property
    def test_mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.test))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % percentile interval of the mean test MCC, over test rows."""
        low, high = np.quantile(self.resampled, [0.025, 0.975])
        return float(low), float(high)


def probe_model(
    model: str,
    layers: Mapping[str, Mapping[str, NDArray]],
    labels: Mapping[str, NDArray[np.int64]],
    seeds: Sequence[int],
) -> list[LayerScore]:
    """Probe every layer of a model at every seed.

    Parameters
    ----------
    model
        Name in the tables.
    layers
        Split (train, dev, test) → layer → features (n, d).
    labels
        Split → class ids (n,).
    seeds
        Of the bootstrap of the training rows.
    """
    scores = []
    for layer in layers["train"]:
        dev, test, predictions = [], [], []
        for seed in seeds:
            scored: list[NDArray] = []

            def score(truth: ArrayLike, predicted: ArrayLike, scored: list[NDArray] = scored) -> float:
                scored.append(np.asarray(predicted))
                return mcc(truth, predicted)

            result = linear_probe(
                layers["train"][layer],
                labels["train"],
                layers["dev"][layer],
                labels["dev"],
                layers["test"][layer],
                labels["test"],
                seed=seed,
                metric=score,
                layer=layer,
            )
            dev.append(result.dev)
            test.append(result.test)
            # Test rows are scored last, once.
            predictions.append(scored[-1])
        resampled = resampled_mcc(labels["test"], predictions)
        scores.append(LayerScore(model, layer, tuple(seeds), tuple(dev), tuple(test), resampled))
    return scores


def probe_kmers(model: str, splits: Mapping[str, LabelledSequences], seeds: Sequence[int]) -> LayerScore:
    """Logistic regression on 6-mer counts, fitted on the rows that the probes draw at each seed."""
    train, dev, test = (splits[name] for name in ("train", "dev", "test"))
    dev_scores, predictions = [], []
    for seed in seeds:
        rows = np.random.default_rng(seed).integers(len(train), size=len(train))
        regression = KmerLogisticRegression(ks=(KMER,))
        regression.fit([train.sequences[i] for i in rows], train.labels[rows], dev.sequences, dev.labels)
        dev_scores.append(regression.fitted.dev_score)
        predictions.append(regression.predict(test.sequences))
    test_scores = tuple(mcc(test.labels, predicted) for predicted in predictions)
    resampled = resampled_mcc(test.labels, predictions)
    return LayerScore(model, "counts", tuple(seeds), tuple(dev_scores), test_scores, resampled)


def best_layer(scores: Sequence[LayerScore]) -> LayerScore:
    """The layer of the best mean development score (the earliest of equals): test rows have no say."""
    return max(scores, key=lambda score: score.dev_mean)


def difference(one: LayerScore, other: LayerScore) -> tuple[float, float, float]:
    """Mean test MCC of ``one`` minus that of ``other``, with its 95 % interval over the same resampled test rows."""
    low, high = np.quantile(one.resampled - other.resampled, [0.025, 0.975])
    return one.test_mean - other.test_mean, float(low), float(high)


def resampled_mcc(truth: ArrayLike, predictions: Sequence[ArrayLike], seed: int = 0) -> NDArray[np.float64]:
    """Mean over predictors of the Matthews correlation, on bootstrapped rows.

    Parameters
    ----------
    truth
        Class ids (n,).
    predictions
        Class ids (n,) of each predictor.
    seed
        Of the resampling: equal seeds and n give equal resamples.

    Returns
    -------
    float64 (RESAMPLES,); a resample with one class only, or only one predicted, counts 0 (as `had.metrics.mcc`).
    """
    true = np.asarray(truth)
    n = len(true)
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    times_RN = np.zeros((RESAMPLES, n))
    np.add.at(times_RN, (np.arange(RESAMPLES)[:, None], drawn), 1)
    total = np.zeros(RESAMPLES)
    for prediction in predictions:
        predicted = np.asarray(prediction)
        classes = np.union1d(true, predicted)
        true_RK = times_RN @ (true[:, None] == classes)
        predicted_RK = times_RN @ (predicted[:, None] == classes)
        # Gorodkin's multi-class form of the correlation (Comput. Biol. Chem. 28, 2004).
        covariance = n * (times_RN @ (true == predicted)) - (true_RK * predicted_RK).sum(1)
        spread = np.sqrt((n**2 - (true_RK**2).sum(1)) * (n**2 - (predicted_RK**2).sum(1)))
        total += np.divide(covariance, spread, out=np.zeros(RESAMPLES), where=spread > 0)
    return total / len(predictions)


def as_csv(scores: Sequence[LayerScore], chosen: Sequence[LayerScore], n_test: int) -> str:
    """One line per model, layer and seed; mean and interval are those of the layer over all its seeds."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["model", "layer", "chosen", "seed", "dev_mcc", "test_mcc", "mean_test_mcc", "low_95", "high_95", "n_test"]
    )
    for score in scores:
        low, high = score.interval
        for seed, dev, test in zip(score.seeds, score.dev, score.test, strict=True):
            numbers = [f"{value:.6f}" for value in (dev, test, score.test_mean, low, high)]
            is_chosen = int(any(score is other for other in chosen))
            writer.writerow([score.model, score.layer, is_chosen, seed, *numbers, n_test])
    return buffer.getvalue()
