"""What a fine-tuning says and writes of itself: lines for people, confusion, pictures, the model's card."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from had.config import to_dict
from had.console import some_of
from had.dna.labelled_tasks import UNSEEN, WHOLE_NUMBER
from had.files import atomic_write_text
from had.metrics import confusion_matrix
from had.models.heads import HADForSequenceClassification
from had.models.saving import CARD_FILE, TUNING_FILE
from had.training.finetuning_batches import Part
from had.training.finetuning_card import finetuned_card
from had.training.finetuning_config import FinetuneConfig
from had.training.finetuning_data import FinetuningData
from had.training.finetuning_plots import draw_pictures
from had.training.provenance import circumstances

_SCORES = ("validation", "test", "test_not_in_train")
_SHOWN_CLASSES = 8
_UNBALANCED = 5
"""How many times larger than the smallest class the largest one is where weights are worth a thought."""
_MANY_INTEGERS = 10
"""More distinct integers than this are more often amounts than names."""
_FEW_ROWS = 10
"""Of a class (regression: in all), below which a score is mostly chance."""


def draw_tables(
    model: HADForSequenceClassification,
    part: Part,
    logits: NDArray[np.float32],
    name: str,
    folder: Path,
    data: FinetuningData,
) -> dict[str, Any]:
    """Confusion matrix of one split with these logits (n, K), and its pictures."""
    outputs = model.probabilities(torch.from_numpy(logits)).numpy().astype(np.float64)
    draw_pictures(folder, data.task, part.targets, outputs, name)
    if data.task.kind not in ("binary", "multiclass"):
        return {}
    classes = list(data.task.classes)
    known = part.targets != UNSEEN
    true = np.where(known, part.targets, len(classes))
    matrix = confusion_matrix(true, outputs.argmax(1), len(classes) + int(not known.all()))
    rows = classes if known.all() else [*classes, "(not in train)"]
    return {
        "confusion": {"split": name, "true": rows, "predicted": classes, "counts": matrix[:, : len(classes)].tolist()}
    }


def describe(config: FinetuneConfig, data: FinetuningData, model: HADForSequenceClassification) -> list[str]:
    """Lines that say what will be done with what, before it is done."""
    sizes = ", ".join(f"{name} {fact['rows']:,}" for name, fact in data.facts.items() if isinstance(fact, dict))
    shown = some_of(data.task.classes, _SHOWN_CLASSES)
    lines = [
        f"{config.data}: {data.task.kind} ({shown}); rows: {sizes}",
        *_training_labels(config, data),
        f"validation: {data.split}",
        *_few_rows(data),
        f"model: {config.model}, {sum(p.numel() for p in model.parameters()):,} parameters"
        + (", frozen but for the head" if config.freeze else "")
        + f", on {model.device.type}",
    ]
    for name, fact in data.facts.items():
        if not isinstance(fact, dict):
            continue
        for reason, count in fact["dropped"].items():
            where = [str(line) for line, why in fact["dropped_lines"] if why == reason]
            lines.append(f"{name}: {count:,} dropped for {reason} (line {', '.join(where[:5])})")
        if unseen := fact.get("labels_not_in_train"):
            lines.append(f"{name}: labels that no training row has, which count as errors: {some_of(unseen)}")
        for key in ("duplicated_ids", "duplicated_sequences"):
            if fact[key]:
                lines.append(f"{name}: {fact[key]:,} {key.replace('_', ' ')}")
        if contradicted := fact.get("sequences_with_several_labels"):
            lines.append(f"{name}: {contradicted:,} sequences stand there with different labels; look at your labels")
    if data.facts["test_rows_also_in_train"]:
        lines.append(f"{data.facts['test_rows_also_in_train']:,} test rows also stand in train (on either strand)")
    if data.facts["cut_to_max_length"]:
        lines.append(f"{data.facts['cut_to_max_length']:,} sequences cut to their middle {config.max_length:,} bp")
    return lines


def _training_labels(config: FinetuneConfig, data: FinetuningData) -> list[str]:
    """How the training rows are shared among the labels, and what may be meant otherwise."""
    kind, names, targets = data.task.kind, data.task.classes, np.asarray(data.train.targets)
    if kind == "regression":
        return [f"values of train: from {targets.min():.4g} to {targets.max():.4g}, mean {targets.mean():.4g}"]
    if kind == "multilabel":
        counts = targets[:, : len(names)].sum(0).astype(int).tolist()
    else:
        counts = np.bincount(targets, minlength=len(names)).tolist()
    each = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
    lines = [f"labels of train: {some_of(each, _SHOWN_CLASSES)}"]
    if absent := [name for name, count in zip(names, counts, strict=True) if not count]:
        lines.append(f"no training row has {some_of(absent)}: the model cannot learn that")
    if kind == "multilabel":
        return lines
    folded = Counter(name.casefold() for name in names)
    if alike := [name for name in names if folded[name.casefold()] > 1]:
        lines.append(f"class names that differ in case alone are different classes: {some_of(alike)}")
    if max(counts) >= _UNBALANCED * min(counts) > 0 and config.training.class_weights == "none":
        lines.append(
            f"the largest class has {max(counts) / min(counts):.0f} times the rows of the smallest; "
            "training.class_weights=balanced lets each class weigh the same"
        )
    if config.task == "auto" and len(names) > _MANY_INTEGERS and all(WHOLE_NUMBER.fullmatch(name) for name in names):
        lines.append(
            f"{len(names)} whole numbers are taken as names of classes; --task regression takes them as values"
        )
    return lines


def _few_rows(data: FinetuningData) -> list[str]:
    """Say of a validation or test part that is too small for its score to mean much."""
    lines = []
    for name, part in (("validation", data.valid), ("test", data.test)):
        if part is None:
            continue
        targets = np.asarray(part.targets)
        if data.task.kind == "regression":
            fewest, of = len(targets), ""
        else:
            known = targets if data.task.kind == "multilabel" else np.eye(len(data.task.classes))[targets[targets >= 0]]
            counts = known[:, : len(data.task.classes)].sum(0)
            fewest, of = int(counts.min()), f" of {data.task.classes[int(counts.argmin())]}"
        if fewest < _FEW_ROWS:
            lines.append(f"{name} has only {fewest} rows{of}: its scores move much by chance")
    return lines


def summary(report: dict[str, Any], folder: Path) -> list[str]:
    """Lines that say how it went."""
    metric = report["metric"]
    lines = [f"validation (it chose epoch {report['best_epoch']}): {metric} {report['validation'][metric]:.4f}"]
    for name in ("test", "test_not_in_train"):
        if name in report:
            lines.append(f"{name.replace('_', ' ')}: {metric} {report[name][metric]:.4f}")
    if "test" not in report:
        lines.append(
            "no test rows: the validation score is of the rows that chose the model, and so too high; for a score to "
            "quote give test rows, or test_fraction=0.2"
        )
    lines += evidence_sentences(report)
    if report["windows"]:
        lines.append("positions matter to this model: cut sequences to predict around the same point as these")
    lines.append(f"strands averaged in prediction: {'yes' if report['conjoin'] else 'no'}; results in {folder}")
    return lines


def evidence_sentences(report: Mapping[str, Any]) -> list[str]:
    """Which strand training showed, what the head sees of positions, and why."""
    shown = "on either strand" if report["rc_augment"] else "on the strand they are given"
    seen = "one mean over all letters"
    if report["windows"]:
        seen = f"{report['windows']} windows beside the mean over all letters, and training no shifts"
    return [
        f"training showed rows {shown}{_why('where strands are kept apart', report['strand_evidence'])}",
        f"the head sees {seen}{_why('where their position is known, too,', report['position_evidence'])}",
    ]


def _why(where: str, found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    said = "less" if found["gain"] >= 0 else "more"
    return f": {where} k-mers err {abs(found['gain']):.1%} {said} ({found['z']:+.1f} standard errors)"


def json_ready(value: Any) -> Any:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_card(
    folder: Path, config: FinetuneConfig, report: Mapping[str, Any], base: Mapping[str, Any], command: Sequence[str]
) -> None:
    """Write ``README.md`` and ``finetuning.json`` beside the weights.

    Parameters
    ----------
    folder
        Of the model.
    config, report
        What was asked for, and ``metrics.json``.
    base
        Name, digest and `had.training.finetuning_card.known_of_base` of the student it came from.
    command
        As in ``run.json``.

    Raises
    ------
    RunFault
        If the disk refused.
    """
    both = report["conjoin_validation"]
    asked = config.training.conjoin
    reason = (
        "as asked for" if asked != "auto" else ", ".join(f"{k} {v:.4f}" for k, v in both.items()) + " in validation"
    )
    made = circumstances(command, {}, config.seed, None, 1)
    rows = {name: fact["rows"] for name, fact in report["data"].items() if isinstance(fact, dict)}
    facts = {
        "task": report["task"],
        "classes": report["classes"],
        "base": dict(base),
        "frozen": config.freeze,
        "parameters": report["parameters"],
        "data": config.data,
        "digests": report["data_sha256"],
        "rows": rows,
        "split": report["validation_split"],
        "test_rows_also_in_train": report["data"]["test_rows_also_in_train"],
        "test_rows_of_unseen_labels": report["data"].get("test", {}).get("rows_of_unseen_labels", 0),
        "metric": report["metric"],
        "scores": {name: report[name] for name in _SCORES if name in report},
        "epoch": report["best_epoch"],
        "epochs": report["epochs"],
        "shown": evidence_sentences(report),
        "anchored": report["windows"] > 0,
        "trained_on": report["trained_on"],
        "conjoin": report["conjoin"],
        "conjoin_reason": reason,
        "training": to_dict(config.training),
        "seed": config.seed,
        "command": shlex.join(["had", *command[1:]]),
        "machine": report["machine"],
        **{key: made[key] for key in ("date", "had", "torch")},
    }
    ready = json_ready(facts)
    atomic_write_text(folder / TUNING_FILE, json.dumps(ready, indent=1, ensure_ascii=False) + "\n")
    atomic_write_text(folder / CARD_FILE, finetuned_card(ready))
