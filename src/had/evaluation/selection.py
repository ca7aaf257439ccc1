"""One model chosen on the rows of one fold; the test has no part in it.

Every function here sees a `Fold` of `TaskData`, never `TaskData.test`; what comes back can predict any rows.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from had import metrics
from had.baselines.kmer_regression import KmerLogisticRegression
from had.baselines.logistic import LogisticFit, fit_logistic
from had.baselines.places import PlacesBoosting, PlacesLogisticRegression
from had.console import Progress
from had.errors import UserError
from had.evaluation.contestants import Contestant, student_sizes
from had.evaluation.frozen_features import Extractor, FeatureTable
from had.evaluation.suite_data import Fold, TaskData, make_part
from had.models.cnn import SHORTEST, CNNConfig, CNNForSequenceClassification
from had.models.heads import HeadConfig, SequenceClassifier
from had.models.teacher_classifier import TeacherForSequenceClassification
from had.models.teacher_loading import load_teacher
from had.models.teachers import NTv2Teacher
from had.training.finetuning import build_model, fit_model
from had.training.finetuning_batches import Part
from had.training.finetuning_config import SCRATCH, FinetuneConfig
from had.training.finetuning_data import FinetuningData
from had.training.finetuning_recipe import FitConfig, schedule_epochs
from had.training.finetuning_scores import Diverged, or_worst, predict_logits

Metric = Callable[[Any, Any], float]
METRIC: dict[str, Metric] = {"mcc": metrics.mcc, "accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1}
MOST_PROBE_ROWS = 50_000
"""[ours] A probe of some hundred weights is fitted on at most so many training rows."""
SAVE_SECONDS = 60.0
"""A fit that is interrupted loses about so much work, and an epoch."""


class Chosen(Protocol):
    """A model that validation chose."""

    facts: dict[str, Any]
    """parameters, parameters_trained, validation, train_seconds, search_seconds, train_bp; and lr, … where it has."""
    notes: list[str]

    def predict(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities (n, K) of each class."""
        ...


def choose(
    contestant: Contestant,
    data: TaskData,
    seed: int,
    configs: Sequence[FitConfig],
    features: FeatureTable,
    *,
    model: str,
    device: torch.device,
    advance: Progress | None = None,
    states: Path | None = None,
) -> Chosen:
    """Train a contestant on one fold and choose by its validation rows.

    Parameters
    ----------
    contestant, data, seed
        Who, on what, with which seed (of the fold, of fresh weights, of batches).
    configs
        Recipes to choose from, for a fitted kind (one: nothing to choose).
    features
        Keeps frozen features between the seeds of one task.
    model
        The student whose sizes the one from scratch has.
    device
        Where it is computed.
    advance
        Is told the rows trained on.
    states
        Folder that keeps the states of unfinished fits; those that are there are gone on with.

    Raises
    ------
    UserError
        If the model or the data do not fit.
    RunFault
        If training diverged under every recipe.
    """
    fold = data.fold(seed)
    if contestant.is_fitted:
        return _choose_fitted(contestant, data, fold, seed, configs, model, device, advance or Progress(), states)
    if contestant.kind in _COUNTED:
        return _CountedModel(data, fold, _COUNTED[contestant.kind])
    return _Probe(data, fold, features.of(contestant, data, seed, device, model))


_Counted = KmerLogisticRegression | PlacesLogisticRegression | PlacesBoosting
_COUNTED: dict[str, type[_Counted]] = {
    "kmer": KmerLogisticRegression,
    "places": PlacesLogisticRegression,
    "places-boosted": PlacesBoosting,
}


class _CountedModel:
    def __init__(self, data: TaskData, fold: Fold, make: type[_Counted]) -> None:
        started = time.perf_counter()
        self.n_classes = len(data.kind.classes)
        rows = [[data.sequences[i] for i in part] for part in (fold.train, fold.valid)]
        labels = [data.targets[part] for part in (fold.train, fold.valid)]
        self.model = make(metric=METRIC[data.task.metric])
        self.model.fit(rows[0], labels[0], rows[1], labels[1])
        seconds = time.perf_counter() - started
        if isinstance(self.model, PlacesBoosting):
            self.classes = self.model.classes
            # A tree of n leaves has n values and n - 1 cuts.
            outputs = 1 if len(self.classes) == 2 else len(self.classes)
            parameters = self.model.chosen_trees * outputs * (2 * self.model.chosen_leaves - 1)
            self.facts = _facts(data, fold, self.model.dev_score, seconds, parameters, parameters)
            self.facts |= {"trees": self.model.chosen_trees, "leaves": self.model.chosen_leaves}
            self.notes = [f"{self.model.chosen_trees} trees of {self.model.chosen_leaves} leaves by validation"]
        else:
            fit = self.model.fitted
            self.classes = fit.model.classes_
            parameters = int(fit.model.coef_.size + fit.model.intercept_.size)
            self.facts = _facts(data, fold, fit.dev_score, seconds, parameters, parameters)
            self.facts |= {"C": fit.C}
            self.notes = [f"C {fit.C:g} by validation"] + ([] if fit.converged else ["the solver did not converge"])

    def predict(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        return _all_classes(self.classes, self.model.probabilities(sequences), self.n_classes)


class _Probe:
    def __init__(self, data: TaskData, fold: Fold, extractor: Extractor) -> None:
        layers = extractor.of_rows()
        # The extractor has its own clock: of several seeds only the first waits for the features.
        started = time.perf_counter()
        train = fold.train
        self.notes = []
        if len(train) > MOST_PROBE_ROWS:
            train = np.sort(np.random.default_rng(0).choice(train, MOST_PROBE_ROWS, replace=False))
            self.notes.append(f"probe fitted on {MOST_PROBE_ROWS:,} of {len(fold.train):,} training rows")
        self.extractor, self.n_classes = extractor, len(data.kind.classes)
        best: tuple[float, str, LogisticFit] | None = None
        for name, values in layers.items():
            fit = fit_logistic(
                values[train],
                data.targets[train],
                values[fold.valid],
                data.targets[fold.valid],
                metric=METRIC[data.task.metric],
            )
            if best is None or fit.dev_score > best[0]:
                best = fit.dev_score, name, fit
        if best is None:
            raise ValueError("the network has no layer")
        score, self.layer, self.fit = best
        parameters = int(self.fit.model.coef_.size + self.fit.model.intercept_.size)
        total = extractor.parameters + parameters
        seconds = time.perf_counter() - started + extractor.seconds
        self.facts = _facts(data, fold, score, seconds, total, parameters)
        self.facts |= {"layer": self.layer, "C": self.fit.C}
        self.notes.append(f"probe of {self.layer}, C {self.fit.C:g}, by validation")

    def predict(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        values = self.extractor.of(sequences, [self.layer])[self.layer]
        return _all_classes(self.fit.model.classes_, self.fit.probabilities(values), self.n_classes)


@dataclass
class _FittedModel:
    model: SequenceClassifier
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def predict(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        part = make_part(list(sequences), np.zeros(len(sequences), dtype=np.int64))
        logits = predict_logits(self.model, part, self.model.config.conjoin)
        return self.model.probabilities(torch.from_numpy(logits)).numpy().astype(np.float64)


def _choose_fitted(
    contestant: Contestant,
    data: TaskData,
    fold: Fold,
    seed: int,
    configs: Sequence[FitConfig],
    model: str,
    device: torch.device,
    advance: Progress,
    states: Path | None,
) -> _FittedModel:
    tried: dict[str, float] = {}
    seconds: list[float] = []
    best: tuple[tuple[float, float], int, _FittedModel] | None = None
    faults: list[Diverged] = []
    for number, config in enumerate(configs):
        started = time.perf_counter()
        rows = as_finetuning(data, data.part(fold.train), data.part(fold.valid), fold.how)
        setting = finetune_config(contestant, data, config, seed, model)
        try:
            fresh = build_classifier(contestant, setting, rows, device)
            own_states = None if states is None else states / _rate(config)
            result, _ = fit_model(setting, rows, fresh, advance, states=own_states, save_seconds=SAVE_SECONDS)
        except Diverged as fault:
            # A rate at which training diverges has lost the comparison, unless all do.
            faults.append(fault)
            tried[_rate(config)] = math.nan
            seconds.append(time.perf_counter() - started)
            continue
        seconds.append(time.perf_counter() - started + result.seconds_before)
        score = result.validation[result.metric]
        tried[_rate(config)] = score
        key = (or_worst(score), or_worst(-result.validation["loss"]))
        if best is None or key > best[0]:
            parameters = sum(p.numel() for p in result.model.parameters())
            facts = _facts(data, fold, score, seconds[-1], parameters, parameters)
            facts["train_bp"] *= result.epochs_run
            facts |= {
                "epoch": result.epoch,
                "epochs": schedule_epochs(config, len(fold.train)),
                "lr": config.lr,
                "conjoin": result.model.config.conjoin,
                "rc_augment": result.rc_augment,
                "windows": getattr(result.model.config, "windows", 0),
            }
            best = key, number, _FittedModel(result.model, facts)
    if best is None:
        raise faults[0]
    chosen = best[2]
    chosen.facts["search_seconds"] = sum(seconds) - seconds[best[1]]
    if len(configs) > 1:
        chosen.facts["lr_validation"] = {rate: None if math.isnan(score) else score for rate, score in tried.items()}
    chosen.notes += _fitted_notes(chosen.facts, tried, seed)
    return chosen


def build_classifier(
    contestant: Contestant, setting: FinetuneConfig, rows: FinetuningData, device: torch.device
) -> SequenceClassifier:
    """A fitted kind's network with fresh or pre-trained weights and a fresh head, on ``device``."""
    task, classes = rows.task.kind, list(rows.task.classes)
    if contestant.kind in ("had", "scratch"):
        return build_model(setting, rows, device)[0]
    torch.manual_seed(setting.seed)
    if contestant.kind == "cnn":
        length = max(SHORTEST, int(rows.train.lengths.max()))
        return CNNForSequenceClassification(CNNConfig(task, classes, setting.training.dropout, length=length)).to(
            device
        )
    teacher = load_teacher(contestant.source, None, "cpu")
    if not isinstance(teacher, NTv2Teacher):
        raise UserError(f"{contestant.source} is no Nucleotide Transformer; only these are fine-tuned as teachers")
    heads = HeadConfig(task, classes, setting.training.dropout)
    return TeacherForSequenceClassification(heads, teacher.network).to(device)


def as_finetuning(data: TaskData, train: Part, valid: Part, how: str) -> FinetuningData:
    """Rows as `had.training.finetuning` takes them, without a test."""
    return FinetuningData(data.kind, train, valid, None, how, {}, np.zeros(0, dtype=np.bool_), {})


def finetune_config(
    contestant: Contestant, data: TaskData, training: FitConfig, seed: int, model: str
) -> FinetuneConfig:
    """What `had finetune` would be told."""
    config = FinetuneConfig(data.task.name, model=contestant.source, seed=seed, training=training)
    if contestant.kind == "scratch":
        config.model, config.student = SCRATCH, student_sizes(model)
    return config


def _rate(config: FitConfig) -> str:
    return "default" if config.lr is None else f"{config.lr:g}"


def _fitted_notes(facts: dict[str, Any], tried: dict[str, float], seed: int) -> list[str]:
    notes = []
    if len(tried) > 1:
        among = ", ".join(f"{rate} {score:.3f}" for rate, score in tried.items())
        notes.append(f"lr {facts['lr']:g} by validation of seed {seed} ({among})")
    notes.append(
        f"epoch {facts['epoch']} of {facts['epochs']}"
        + (", strands averaged" if facts["conjoin"] else ", one strand")
        + ("" if facts["rc_augment"] else ", trained on one strand")
        + (f", {facts['windows']} windows" if facts["windows"] else "")
    )
    return notes


def _facts(
    data: TaskData, fold: Fold, validation: float, seconds: float, parameters: int, trained: int
) -> dict[str, Any]:
    return {
        "parameters": parameters,
        "parameters_trained": trained,
        "validation": validation,
        "validation_rows": fold.how,
        "train_seconds": seconds,
        "search_seconds": 0.0,
        "train_bp": int(sum(len(data.sequences[i]) for i in fold.train)),
        "n_train": len(fold.train),
        "n_valid": len(fold.valid),
    }


def _all_classes(classes: NDArray[np.int64], found: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
    """Probabilities with a column of 0 for each class that no training row of the fold has."""
    result = np.zeros((len(found), n_classes))
    result[:, classes] = found
    return result
