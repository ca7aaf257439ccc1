"""Held-out losses beside what needs no network: mean vectors, base frequencies, Markov chains, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from had.baselines.alignment import KmerTable, MeanVector
from had.baselines.markov import HiddenGroupBaselines, MarkovModel
from had.bootstrap import bootstrap_difference, bootstrap_mean, consecutive_blocks
from had.dna.alphabet import GROUP
from had.training.data import WindowData

MARKOV_ORDER = 5
_BATCH = 256


@dataclass
class Scores:
    """Sums per held-out window of one metric, for the model and for each baseline.

    Attributes
    ----------
    counts : float64 (n,)
        Groups, 6-mers or letters of each window.
    model : float64 (n,)
        The model's sums.
    baselines
        Name → sums (n,).
    lower_is_better
        True for losses, False for accuracies.
    """

    counts: NDArray[np.float64]
    model: NDArray[np.float64]
    baselines: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    lower_is_better: bool = True


def fit_markov(data: WindowData) -> HiddenGroupBaselines:
    """Order-5 chain counted on the training stretches, both strands, pseudo-count 1."""
    stretches = (data.genome.codes[start:end] for start, end in data.stretches)
    return HiddenGroupBaselines(MarkovModel(MARKOV_ORDER).fit(stretches))


def markov_sums(
    markov: HiddenGroupBaselines, codes: NDArray[np.uint8], hidden: NDArray[np.bool_], unit: str
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Negative log likelihood and right answers per window (n,) of each counting predictor.

    Parameters
    ----------
    markov
        Fitted predictors.
    codes, hidden
        Letters (n, L) and hidden letters (n, L), whole 6-mers.
    unit
        ``kmer``: sums over hidden 6-mers; ``base``: over their letters.
    """
    losses: dict[str, list[NDArray[np.float64]]] = {}
    correct: dict[str, list[NDArray[np.float64]]] = {}
    for i in range(0, len(codes), _BATCH):
        groups = hidden[i : i + _BATCH, ::GROUP]
        row = np.nonzero(groups)[0]
        score = markov.score_groups if unit == "kmer" else markov.score_bases
        for name, scores in score(codes[i : i + _BATCH], groups).items():
            for values, into in ((scores.nll, losses), (scores.correct, correct)):
                per_group = values.reshape(len(row), -1).sum(1)
                into.setdefault(name, []).append(np.bincount(row, per_group, minlength=len(groups)).astype(np.float64))
    return (
        {name: np.concatenate(parts) for name, parts in losses.items()},
        {name: np.concatenate(parts) for name, parts in correct.items()},
    )


def alignment_sums(
    table: KmerTable, features: Any, kmers: Any, aligned: Any, contextual: bool
) -> dict[str, NDArray[np.float64]]:
    """Squared error per window (n,) of the mean vector and of the per-6-mer table, over the aligned groups.

    ``features`` (n, T, D) are the teacher's, before the table is subtracted; with ``contextual`` targets the table's
    own prediction is 0 by construction and the mean vector's is the mean of what is left, 0 too.
    """
    by_kmer = table.squared_error(features, kmers)
    constant = by_kmer if contextual else MeanVector.of(table).squared_error(features, kmers)
    weight = aligned.to(by_kmer.dtype)
    result = {"mean_vector": constant, "kmer_table": by_kmer}
    return {name: (error * weight).sum(1).double().cpu().numpy() for name, error in result.items()}


def baseline_records(scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Lines of the metrics log, one per baseline: its name and its mean in each metric it has."""
    records: dict[str, dict[str, Any]] = {}
    for metric, score in scores.items():
        total = score.counts.sum()
        for name, sums in score.baselines.items():
            record = records.setdefault(name, {"split": "baseline", "step": 0, "name": name})
            record[metric] = float(sums.sum() / total)
    return list(records.values())


def report(scores: Mapping[str, Scores], block: int = 1, seed: int = 0) -> dict[str, Any]:
    """Means and differences to every baseline, with 95 % bootstrap intervals over blocks of windows.

    Parameters
    ----------
    scores
        Metric → sums per window.
    block
        Consecutive windows per bootstrap block.
    seed
        Of the resampling.

    Returns
    -------
    dict
        Metric → ``model``, ``baselines`` and ``difference`` (model − baseline), each ``[mean, low, high]``; the number
        of windows and blocks; ``better``: the baselines where the interval of the difference excludes 0 on the good
        side.
    """
    result: dict[str, Any] = {}
    for metric, score in scores.items():
        blocks = consecutive_blocks(len(score.counts), block)
        options: dict[str, Any] = {"blocks": blocks, "weights": score.counts, "seed": seed}
        per_unit = score.model / score.counts
        entry: dict[str, Any] = {"windows": len(score.counts), "blocks": int(blocks[-1]) + 1, "block": block}
        entry["model"] = list(bootstrap_mean(per_unit, **options)[:3])
        entry["baselines"], entry["difference"], entry["better"] = {}, {}, []
        for name, sums in score.baselines.items():
            other = sums / score.counts
            entry["baselines"][name] = list(bootstrap_mean(other, **options)[:3])
            difference = bootstrap_difference(per_unit, other, **options)
            entry["difference"][name] = list(difference[:3])
            if (difference.high < 0) if score.lower_is_better else (difference.low > 0):
                entry["better"].append(name)
        result[metric] = entry
    return result


def as_lines(result: Mapping[str, Any]) -> list[str]:
    """The report as sentences for a terminal."""
    lines = []
    for metric, entry in result.items():
        mean, low, high = entry["model"]
        lines.append(f"{metric}: {mean:.4f} [{low:.4f}, {high:.4f}] on {entry['windows']:,} held-out windows")
        for name, (other, _, _) in entry["baselines"].items():
            d, d_low, d_high = entry["difference"][name]
            verdict = "better" if name in entry["better"] else "not better"
            lines.append(f"    {name}: {other:.4f}; difference {d:+.4f} [{d_low:+.4f}, {d_high:+.4f}], {verdict}")
    return lines
