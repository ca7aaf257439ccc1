"""Logits of whole splits, and what they score."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from had import metrics
from had.console import Progress
from had.dna.alphabet import reverse_complement
from had.dna.labelled_tasks import UNSEEN
from had.errors import RunFault
from had.models.heads import SequenceClassifier
from had.training.finetuning_batches import Part, collate, portions

LETTERS_PER_PASS = 32_768
"""Letters, padding included, in one forward pass; bounds memory."""


class Diverged(RunFault):
    """Training that has left the finite numbers; at a lower learning rate it may not."""


@torch.no_grad()
def pooled_features(
    model: SequenceClassifier, part: Part, letters: int = LETTERS_PER_PASS, advance: Progress | None = None
) -> Tensor:
    """Pooled features (n, 2, D) float32 of both strands, on the model's device; ``advance`` is told the rows done."""
    features = torch.empty(len(part), 2, model.width, device=model.device)
    for chosen in portions(part.lengths, np.arange(len(part)), letters):
        for strand in (0, 1):
            rows = [part.codes[i] if strand == 0 else reverse_complement(part.codes[i]) for i in chosen]
            ids, mask = collate(rows)
            features[torch.from_numpy(chosen).to(model.device), strand] = model.pool(ids.to(model.device), mask)
        if advance is not None:
            advance(len(chosen))
    return features


def in_logit_units(model: SequenceClassifier, targets: NDArray) -> NDArray:
    """Targets as the loss compares them with logits: values of a regression in the units of its logits."""
    if model.config.task != "regression":
        return targets
    return (targets - model.config.target_mean) / model.config.target_scale


@torch.inference_mode()
def predict_logits(
    model: SequenceClassifier,
    part: Part,
    conjoin: bool,
    letters: int = LETTERS_PER_PASS,
    advance: Progress | None = None,
) -> NDArray[np.float32]:
    """Logits (n, K) of all rows in order, in evaluation mode; ``advance`` is told the rows that the model read."""
    was_training = model.training
    model.eval()
    try:
        if part.features is not None:
            logits = model.classify(part.features[:, 0])
            if conjoin:
                logits = (logits + model.classify(part.features[:, 1])) / 2
            return logits.float().cpu().numpy()
        result = np.empty((len(part), len(model.config.classes)), dtype=np.float32)
        for chosen in portions(part.lengths, np.arange(len(part)), letters):
            ids, mask = collate([part.codes[i] for i in chosen])
            result[chosen] = model(ids, mask, conjoin=conjoin).logits.float().cpu().numpy()
            if advance is not None:
                advance(len(chosen))
        return result
    finally:
        model.train(was_training)


def score_logits(model: SequenceClassifier, targets: NDArray, logits: NDArray) -> dict[str, float]:
    """Metrics and loss of logits (n, K) against targets.

    A row whose label no training row has counts as an error in mcc, accuracy and macro_f1, and is left out of the
    areas and of the loss, which have no place for it. Of multilabel, a column behind those of the labels (see
    `had.dna.labelled_tasks.targets`) is one that the model never predicts.

    Raises
    ------
    Diverged
        If a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise Diverged("the model's outputs are not finite: lower lr and start into a new --out")
    task, tensor = model.config.task, torch.from_numpy(np.asarray(logits, dtype=np.float32))
    if task == "regression":
        values = model.probabilities(tensor)[:, 0].numpy()
        loss = metrics.mse(in_logit_units(model, targets), logits[:, 0].astype(np.float64))
        return {**metrics.compute(task, targets, values), "loss": loss}
    probabilities = model.probabilities(tensor).numpy().astype(np.float64)
    if task == "multilabel":
        true = targets.astype(np.int64)
        known = true[:, : probabilities.shape[1]]
        loss = F.binary_cross_entropy_with_logits(tensor, torch.from_numpy(known).float()).item()
        predicted = np.zeros_like(true)
        predicted[:, : known.shape[1]] = probabilities >= 0.5
        areas = metrics.compute(task, known, predicted[:, : known.shape[1]], probabilities)
        result = metrics.compute(task, true, predicted)
        return {**result, "auroc": areas["auroc"], "auprc": areas["auprc"], "loss": loss}
    known = targets != UNSEEN
    true = np.where(known, targets, len(model.config.classes))
    result = metrics.compute("multiclass", true, probabilities.argmax(1))
    areas = metrics.compute(task, targets[known], scores=probabilities[known])
    loss = F.cross_entropy(tensor[known], torch.from_numpy(targets[known])).item() if known.any() else math.nan
    return {**result, "auroc": areas["auroc"], "auprc": areas["auprc"], "loss": loss}


def or_worst(value: float) -> float:
    """NaN as minus infinity, so that an undefined score is never the best one."""
    return -math.inf if math.isnan(value) else value
