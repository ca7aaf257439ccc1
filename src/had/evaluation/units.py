"""Computing units of a benchmark: choose on the training rows, then open the test once, write, report.

What runs here runs in the benchmark's own process or in a worker; it writes nothing but predictions.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from had.console import Progress
from had.dna.labelled_tasks import UNSEEN
from had.evaluation.contestants import Contestant
from had.evaluation.frozen_features import FeatureTable
from had.evaluation.layouts import TaskFiles
from had.evaluation.protocols import BenchmarkTask, Suite
from had.evaluation.selection import METRIC, Chosen, choose
from had.evaluation.suite_data import TaskData, TestRows
from had.evaluation.unit_files import Record, Unit, forget_states, place_of, states_of, write_predictions
from had.training.devices import choose_device, memory_faults
from had.training.finetuning_recipe import FitConfig


@dataclass(frozen=True)
class TaskSpec:
    """What `TaskData` is made of; small, so that it can be sent to a worker."""

    suite: Suite
    task: BenchmarkTask
    files: TaskFiles
    split: str
    max_train_rows: int | None

    def load(self) -> TaskData:
        """Read the training rows."""
        return TaskData(self.suite, self.task, self.files, self.split, self.max_train_rows)


@dataclass(frozen=True)
class Job:
    """Seeds of one task and model that are computed one after the other."""

    spec: TaskSpec
    contestant: Contestant
    seeds: tuple[int, ...]
    configs: tuple[FitConfig, ...]
    """Recipes the first of these seeds chooses from (one: decided)."""
    settings: dict[str, Any]
    out: Path
    model: str
    device: str

    def unit(self, seed: int) -> Unit:
        """The unit of one seed."""
        return Unit(self.spec.task.name, self.contestant.name, seed)


class Shelf:
    """Keeps tasks that were read, up to a number of letters; the oldest goes first."""

    def __init__(self, letters: int = 100_000_000) -> None:
        self._limit = letters
        self._kept: dict[str, TaskData] = {}

    def get(self, spec: TaskSpec) -> TaskData:
        """The task's data, read where they are not kept."""
        name = spec.task.name
        if name not in self._kept:
            self._kept[name] = spec.load()
            while len(self._kept) > 1 and sum(map(_letters, self._kept.values())) > self._limit:
                del self._kept[next(iter(self._kept))]
        return self._kept[name]


def _letters(data: TaskData) -> int:
    return sum(map(len, data.sequences))


def stands_for_every_seed(contestant: Contestant, data: TaskData) -> bool:
    """Whether one fit of a contestant is that of every seed: nothing in it is random, and the folds are fixed."""
    return contestant.same_for_every_seed and not data.folds_differ


def run_job(job: Job, shelf: Shelf, features: FeatureTable, advance: Progress | None = None) -> Iterator[Record]:
    """Compute the units of a job; each is written before it is given.

    Raises
    ------
    UserError
        If data or model do not fit.
    RunFault
        If training diverged, memory did not suffice, or the disk refused.
    """
    data = shelf.get(job.spec)
    device = choose_device(job.device)
    decided: tuple[FitConfig, ...] = job.configs
    ready: tuple[Chosen, TestRows, NDArray[np.float64], dict[str, Any]] | None = None
    for seed in job.seeds:
        if ready is None or not stands_for_every_seed(job.contestant, data):
            with memory_faults("use fewer --jobs, another --device, or leave this model out"):
                ready = _compute(job, data, seed, decided, features, device, advance)
        chosen, test, outputs, facts = ready
        if len(decided) > 1:
            decided = tuple(config for config in decided if config.lr == facts["lr"])
        record = _record(job, data, seed, chosen, test, outputs, facts)
        write_predictions(place_of(job.out, job.unit(seed)), test, outputs, data.kind.classes, record)
        forget_states(job.out, job.unit(seed))
        yield record


def _compute(
    job: Job,
    data: TaskData,
    seed: int,
    configs: Sequence[FitConfig],
    features: FeatureTable,
    device: torch.device,
    advance: Progress | None,
) -> tuple[Chosen, TestRows, NDArray[np.float64], dict[str, Any]]:
    chosen = choose(
        job.contestant,
        data,
        seed,
        configs,
        features,
        model=job.model,
        device=device,
        advance=advance,
        states=states_of(job.out, job.unit(seed), {**job.settings, "device": device.type}),
    )
    # Only now: nothing that chose the model could have seen a test row.
    test = data.test()
    started = time.perf_counter()
    outputs = chosen.predict(test.sequences)
    seconds = time.perf_counter() - started
    facts = {
        **chosen.facts,
        "classes": list(data.kind.classes),
        "test_seconds": seconds,
        "test_bp": sum(map(len, test.sequences)),
        "test_sha256": test.digest,
        "rows_in_train_file": data.n_given,
        "rows_in_test_file": test.n_given,
        "trained_on_dev": data.trained_on_dev,
        "capped": job.spec.max_train_rows is not None and job.spec.max_train_rows < data.n_given,
        "seed_changes_nothing": stands_for_every_seed(job.contestant, data),
        "machine": f"{device.type}, {torch.get_num_threads()} thread(s)",
        "metrics": {name: score(name, test.targets, outputs) for name in METRIC},
    }
    return chosen, test, outputs, facts


def score(metric: str, targets: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """One metric of test rows; a row whose label no training row has counts as an error."""
    true = np.where(targets != UNSEEN, targets, probabilities.shape[1])
    return METRIC[metric](true, probabilities.argmax(1))


def _record(
    job: Job,
    data: TaskData,
    seed: int,
    chosen: Chosen,
    test: TestRows,
    outputs: NDArray[np.float64],
    facts: dict[str, Any],
) -> Record:
    metric = job.spec.task.metric
    notes = list(data.notes)
    if data.folds_differ:
        notes.append(f"validation: {chosen.facts['validation_rows']}")
    notes += [*chosen.notes, *test.notes]
    if facts["seed_changes_nothing"]:
        notes.append("nothing in it is random: the same for every seed")
    row = {
        "suite": job.spec.suite.name,
        "task": job.spec.task.name,
        "model": job.contestant.name,
        "seed": str(seed),
        "metric": metric,
        "value": f"{score(metric, test.targets, outputs):.6f}",
        "n_train": str(facts["n_train"]),
        "n_test": str(len(test)),
        "seconds": f"{facts['train_seconds'] + facts['test_seconds']:.2f}",
        "note": "; ".join(notes),
    }
    return Record(row, facts, job.settings)


def settings_of(spec: TaskSpec, contestant: Contestant, configs: Sequence[FitConfig], digest: str) -> dict[str, Any]:
    """Everything a score depends on besides the seed and the machine."""
    return {
        "metric": spec.task.metric,
        "split": spec.split,
        "max_train_rows": spec.max_train_rows,
        "training data": digest,
        "kind": contestant.kind,
        "model": contestant.digest,
        "recipes": [dataclasses.asdict(config) for config in configs],
    }
