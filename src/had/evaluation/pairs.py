"""Two models on the same test rows: which pairs a report compares, and their differences with intervals."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from had.bootstrap import Interval, t_interval
from had.evaluation.protocols import BenchmarkTask
from had.evaluation.resampling import paired_interval
from had.evaluation.unit_files import Predictions

_BESIDE_A_PROBE = ("probe", "teacher-probe", "kmer", "places", "places-boosted")
"""Kinds that a frozen student is compared with: what is not trained either, and counting."""


@dataclass(frozen=True)
class PairedDifference:
    """One model minus another on one task."""

    task: str
    reference: str
    other: str
    interval: Interval
    has_artefact: bool = False
    """Whether the task is left out of means (`BenchmarkTask.artefact`)."""


def pairs_of(kinds: Mapping[str, str], untrained: Collection[str]) -> dict[str, list[str]]:
    """Models that are compared with others, and with which.

    The first fine-tuned student (without one the first model) with every other; the first frozen student of trained
    weights with the other frozen networks and k-mers.

    Parameters
    ----------
    kinds
        Kind by name.
    untrained
        Names of the frozen students of fresh weights.
    """
    first = next((name for name, kind in kinds.items() if kind == "had"), next(iter(kinds)))
    pairs = {first: [name for name in kinds if name != first]}
    probe = next((name for name, kind in kinds.items() if kind == "probe" and name not in untrained), None)
    beside = [name for name, kind in kinds.items() if kind in _BESIDE_A_PROBE and name != probe]
    if probe is not None and probe not in pairs and beside:
        pairs[probe] = beside
    return pairs


def paired_differences(
    task: BenchmarkTask, found: Mapping[str, Mapping[int, Predictions]], pairs: Mapping[str, Sequence[str]]
) -> list[PairedDifference]:
    """Differences of the pairs that have predictions of this task, by model and seed."""
    result = []
    for reference, names in pairs.items():
        base = list(found.get(reference, {}).values())
        for name in names:
            others = list(found.get(name, {}).values())
            # Other training rows, under another name, may have other classes: their ids would not mean the same.
            rows_and_classes = {
                (one.record.facts["test_sha256"], *one.record.facts.get("classes", ())) for one in base + others
            }
            if not base or not others or len(rows_and_classes) > 1:
                continue
            ours, theirs = (np.stack([one.probabilities.argmax(1) for one in many]) for many in (base, others))
            n_classes = base[0].probabilities.shape[1]
            interval = paired_interval(task.metric, base[0].targets, ours, theirs, n_classes)
            result.append(PairedDifference(task.name, reference, name, interval, bool(task.artefact)))
    return result


def mean_difference(differences: Sequence[PairedDifference]) -> Interval:
    """Mean over tasks without an artefact, with its 95 % t interval over tasks; NaN for its ends with one task."""
    return t_interval([one.interval.mean for one in differences if not one.has_artefact])
