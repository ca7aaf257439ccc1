"""Tables of a search: every trial, means and paired differences by setting and task, and the same for people."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from had.bootstrap import Interval, t_interval
from had.files import atomic_write_text

TRIAL_COLUMNS = (
    *("setting", "task", "seed", "metric", "dev", "one_strand", "both_strands", "last_epoch", "epoch", "n_train"),
    *("n_dev", "auroc", "loss", "seconds", "note"),
)
SETTING_COLUMNS = ("setting", "task", "seeds", "dev", "difference", "low", "high", "seconds")
ALL = "all"
Scores = dict[tuple[str, int], float]
"""Score by task and seed; NaN where training diverged."""


@dataclass(frozen=True)
class Line:
    """One setting over all tasks."""

    setting: str
    by_task: dict[str, float]
    """Mean over seeds."""
    differences: dict[str, float]
    """Mean over the seeds of both of this setting minus the first one."""
    interval: Interval | None
    """Of the mean difference, over tasks; None where a score is missing or not a number."""
    seconds: float
    n_trials: int
    one_strand: float
    both_strands: float
    auroc: float
    """Mean over trials, where the task has one: it varies less from one sample of rows to the next than MCC does."""

    @property
    def mean(self) -> float:
        """Mean over tasks."""
        return float(np.mean(list(self.by_task.values()))) if self.by_task else math.nan


def summarise(settings: Sequence[str], trials: Sequence[Mapping[str, Any]]) -> list[Line]:
    """One line for each setting that has a trial, best mean first; those that lack trials come last.

    Parameters
    ----------
    settings
        Names; the others are compared with the first.
    trials
        As `had.evaluation.recipe_search.run_trial` gives them.
    """
    scores: dict[str, Scores] = {name: {} for name in settings}
    for trial in trials:
        scores[trial["setting"]][trial["task"], trial["seed"]] = _number(trial["dev"])
    lines = []
    for name in settings:
        own = [trial for trial in trials if trial["setting"] == name]
        if not own:
            continue
        differences = _by_task(
            {key: value - scores[settings[0]][key] for key, value in scores[name].items() if key in scores[settings[0]]}
        )
        values = list(differences.values())
        lines.append(
            Line(
                name,
                _by_task(scores[name]),
                differences,
                t_interval(values) if values and np.isfinite(values).all() else None,
                sum(trial["seconds"] for trial in own),
                len(own),
                float(np.mean([_number(trial["one_strand"]) for trial in own])),
                float(np.mean([_number(trial["both_strands"]) for trial in own])),
                float(np.mean([_number(trial["scores"].get("auroc")) for trial in own])),
            )
        )
    most = max((line.n_trials for line in lines), default=0)
    # A mean over fewer tasks is no mean to compare.
    return sorted(lines, key=lambda line: (line.n_trials < most, -line.mean if math.isfinite(line.mean) else math.inf))


def write_tables(out: Path, settings: Sequence[str], trials: Sequence[Mapping[str, Any]]) -> None:
    """Write ``trials.csv``, ``settings.csv`` and ``table.md``; RunFault where the disk refuses."""
    lines = summarise(settings, trials)
    atomic_write_text(out / "trials.csv", _as_csv(TRIAL_COLUMNS, [_trial_row(trial) for trial in trials]))
    rows = []
    for line in lines:
        own = [trial for trial in trials if trial["setting"] == line.setting]
        for task, mean in line.by_task.items():
            of_task = [trial for trial in own if trial["task"] == task]
            difference = line.differences.get(task, math.nan)
            seconds = sum(trial["seconds"] for trial in of_task)
            values = (line.setting, task, len(of_task), _text(mean), _text(difference), "", "", f"{seconds:.1f}")
            rows.append(dict(zip(SETTING_COLUMNS, values, strict=True)))
        found = line.interval
        three = ("", "", "") if found is None else (_text(found.mean), _text(found.low), _text(found.high))
        seeds = len({trial["seed"] for trial in own})
        overall = (line.setting, ALL, seeds, _text(line.mean), *three, f"{line.seconds:.1f}")
        rows.append(dict(zip(SETTING_COLUMNS, overall, strict=True)))
    atomic_write_text(out / "settings.csv", _as_csv(SETTING_COLUMNS, rows))
    atomic_write_text(out / "table.md", as_markdown(lines, settings[0]))


def as_markdown(lines: Sequence[Line], reference: str) -> str:
    """The settings as a Markdown table, best mean first; ``reference`` is what they are compared with."""
    tasks = sorted({task for line in lines for task in line.by_task})
    most = max((line.n_trials for line in lines), default=0)
    header = ["setting", "mean", f"minus {reference}", "better on", *tasks]
    header += ["one strand", "both strands", "AUROC", "seconds"]
    text = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for line in lines:
        partly = "" if line.n_trials == most else f" ({line.n_trials} of {most} trials)"
        wins = f"{sum(value > 0 for value in line.differences.values())} of {len(line.differences)}"
        is_reference = line.setting == reference
        cells = [
            line.setting.replace("|", "/") + partly,
            _cell(line.mean),
            "" if is_reference else _difference(line.interval),
            "" if is_reference else wins,
            *(_cell(line.by_task.get(task, math.nan)) for task in tasks),
            _cell(line.one_strand),
            _cell(line.both_strands),
            _cell(line.auroc),
            f"{line.seconds:,.0f}",
        ]
        text.append("| " + " | ".join(cells) + " |")
    text += [
        "",
        "Scores of validation rows at the best epoch, which the same rows chose: for comparing settings, not for "
        f"quoting. Differences are paired by task and seed against `{reference}`; in brackets 95 % t "
        "intervals over the tasks. `–`: not measured, or diverged.",
        "",
    ]
    return "\n".join(text)


def _by_task(scores: Scores) -> dict[str, float]:
    tasks = sorted({task for task, _ in scores})
    return {task: float(np.mean([value for (name, _), value in scores.items() if name == task])) for task in tasks}


def _trial_row(trial: Mapping[str, Any]) -> dict[str, Any]:
    curve = trial["curve"]
    scores = {name: trial["scores"].get(name) for name in ("auroc", "loss")}
    row = {**trial, **scores, "last_epoch": curve[-1] if curve else None}
    return {key: "" if row.get(key) is None else row[key] for key in TRIAL_COLUMNS}


def _as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _text(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else ""


def _cell(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    around = f" [{_signed(interval.low)}, {_signed(interval.high)}]" if math.isfinite(interval.low) else ""
    return _signed(interval.mean) + around


def _signed(value: float) -> str:
    # Adding 0 turns a rounded -0 into 0.
    return f"{round(value, 3) + 0.0:+.3f}"
