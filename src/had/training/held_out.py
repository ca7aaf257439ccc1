"""Held-out losses beside what needs no network: mean vectors, base frequencies, Markov chains, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from had.baselines.alignment import KmerTable, MeanVector
from had.baselines.markov import HiddenGroupBaselines, MarkovModel
from had.bootstrap import Interval, bootstrap_difference, bootstrap_mean, consecutive_blocks
from had.dna.alphabet import GROUP
from had.errors import RunFault
from had.training.data import WindowData

MARKOV_ORDER = 5
BLOCK = 100
"""Consecutive tiles per bootstrap block: 102 kb at 1,020 bp."""
MIN_BLOCKS = 20
"""With fewer blocks a percentile interval is too narrow, so few windows are put into smaller blocks."""
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


def report(scores: Mapping[str, Scores], block: int = BLOCK, seed: int = 0) -> dict[str, Any]:
    """Means and differences to every baseline, with 95 % bootstrap intervals over blocks of windows.

    Parameters
    ----------
    scores
        Metric → sums per window, in the order of the genome.
    block
        Consecutive windows per bootstrap block; fewer where there would be less than `MIN_BLOCKS` blocks.
    seed
        Of the resampling.

    Returns
    -------
    dict
        Metric → ``model``, ``baselines`` and ``difference`` (model − baseline), each ``[mean, low, high]``; the number
        of windows, of blocks, and of windows per block; ``better``: the baselines where the interval of the difference
        excludes 0 on the good side. One window gives no interval: ``low``, ``high`` and ``better`` are then None.

    Raises
    ------
    RunFault
        The model's numbers are not finite.
    """
    result: dict[str, Any] = {}
    for metric, score in scores.items():
        if broken := int((~np.isfinite(score.model)).sum()):
            raise RunFault(
                f"{metric} is NaN or infinite on {broken:,} of {len(score.model):,} held-out windows: the model's "
                "training diverged, or its weights are damaged."
            )
        size = max(1, min(block, len(score.counts) // MIN_BLOCKS))
        blocks = consecutive_blocks(len(score.counts), size)
        options: dict[str, Any] = {"blocks": blocks, "weights": score.counts, "seed": seed}
        per_unit = score.model / score.counts
        entry: dict[str, Any] = {"windows": len(score.counts), "blocks": int(blocks[-1]) + 1, "block": size}
        entry["model"] = _bounds(bootstrap_mean(per_unit, **options))
        entry["baselines"], entry["difference"] = {}, {}
        entry["better"] = [] if entry["blocks"] > 1 else None
        for name, sums in score.baselines.items():
            other = sums / score.counts
            entry["baselines"][name] = _bounds(bootstrap_mean(other, **options))
            difference = bootstrap_difference(per_unit, other, **options)
            entry["difference"][name] = _bounds(difference)
            if (difference.high < 0) if score.lower_is_better else (difference.low > 0):
                entry["better"].append(name)
        result[metric] = entry
    return result


def _bounds(interval: Interval) -> list[float | None]:
    """Mean, low and high as JSON values: None where one block gives no interval."""
    return [interval.mean, *((interval.low, interval.high) if interval.n_blocks > 1 else (None, None))]


def as_lines(result: Mapping[str, Any]) -> list[str]:
    """The report as sentences for a terminal."""
    lines = []
    for metric, entry in result.items():
        windows, blocks = entry["windows"], entry["blocks"]
        held_out = f"on {windows:,} held-out windows, {blocks:,} blocks of {entry['block']:,}"
        if blocks == 1:
            held_out = "on 1 held-out window, which gives no interval"
        elif blocks < MIN_BLOCKS:
            held_out += f" (fewer than {MIN_BLOCKS}: the intervals are too narrow)"
        lines.append(f"{metric}: {_in_brackets(entry['model'])} {held_out}")
        for name, (other, _, _) in entry["baselines"].items():
            line = f"    {name}: {other:.4f}; difference {_in_brackets(entry['difference'][name], '+')}"
            if entry["better"] is not None:
                line += ", better" if name in entry["better"] else ", not better"
            lines.append(line)
    return lines


def _in_brackets(bounds: Sequence[float | None], sign: str = "") -> str:
    mean, *ends = (f"{value:{sign}.4f}" for value in bounds if value is not None)
    return f"{mean} [{', '.join(ends)}]" if ends else mean
