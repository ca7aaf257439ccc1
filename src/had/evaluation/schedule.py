"""Running the jobs of a benchmark: one after the other, or several at a time in processes of their own."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from had.console import Progress
from had.errors import RunFault, UserError
from had.evaluation.frozen_features import FeatureTable
from had.evaluation.unit_files import Record, Unit
from had.evaluation.units import Job, Shelf, run_job
from had.evaluation.workers import worker_pool


@dataclass(frozen=True)
class Planned:
    """A job and what it is estimated to cost."""

    job: Job
    seconds: float
    """Of one unit whose learning rate is decided."""
    rows: int
    """That such a unit trains on, over all epochs; 0 for a kind that does not tell."""
    once: bool = False
    """Whether one computation stands for every seed."""

    @property
    def following(self) -> float:
        """Estimate of each unit after the first."""
        return 0.0 if self.once else self.seconds

    @property
    def first(self) -> float:
        """Estimate of the first unit: it tries every recipe."""
        return self.seconds * max(1, len(self.job.configs))

    @property
    def cost(self) -> float:
        """Estimate of the whole job."""
        return self.first + self.following * (len(self.job.seeds) - 1)


@dataclass(frozen=True)
class Event:
    """A unit was done, or some failed."""

    cost: float
    """What was estimated for it."""
    record: Record | None = None
    failed: tuple[Unit, ...] = ()
    reason: Exception | None = None


class _Meter(Progress):
    """Rows trained on, as a share of what a unit was estimated to cost; never more than that."""

    def __init__(self, bar: Progress, planned: Planned) -> None:
        self._bar = bar
        self._each = planned.seconds / planned.rows if planned.rows else 0.0
        self._left = planned.first

    def __call__(self, n: float = 1) -> None:
        """Count rows."""
        step = min(n * self._each, self._left)
        self._left -= step
        self._bar(step)

    def skip(self, n: int) -> None:
        """Count rows that an interrupted run has trained on."""
        self(n)

    def finish(self, following: float) -> None:
        """Count the rest of this unit, and go on to one of another cost."""
        self._bar(self._left)
        self._left = following


def run_serially(planned: Sequence[Planned], shelf: Shelf, bar: Progress) -> Iterator[Event]:
    """Compute jobs in this process; a job that fails does not keep the others from running."""
    features = FeatureTable()
    for item in planned:
        job, cost, left = item.job, item.first, list(item.job.seeds)
        meter = _Meter(bar, item)
        try:
            for record in run_job(job, shelf, features, meter):
                meter.finish(item.following)
                left.remove(record.unit.seed)
                yield Event(cost, record)
                cost = item.following
        except (RunFault, UserError) as reason:
            # What it was raised from holds the model and its tensors, and memory may be why it failed.
            reason.__cause__ = reason.__context__ = None
            reason.with_traceback(None)
            meter.finish(0.0)
            bar(item.following * (len(left) - 1))
            yield Event(cost + item.following * (len(left) - 1), None, tuple(map(job.unit, left)), reason)


def run_in_parallel(planned: Sequence[Planned], jobs: int, threads: int, bar: Progress) -> Iterator[Event]:
    """Compute jobs in ``jobs`` processes of ``threads`` threads each.

    The first seed of a fitted model decides the learning rate; its other seeds start when it is done.

    Raises
    ------
    RunFault
        If a process was killed.
    """
    following: dict[Future[tuple[list[Record], Exception | None]], tuple[Planned, Planned | None]] = {}
    with worker_pool(jobs, threads, "what was done is saved") as pool:

        def submit(item: Planned, later: Planned | None = None) -> None:
            following[pool.submit(_work, item.job)] = (item, later)

        for item in planned:
            for now, later in _parts(item):
                submit(now, later)
        while following:
            ready, _ = wait(following, return_when=FIRST_COMPLETED)
            for future in ready:
                item, later = following.pop(future)
                records, reason = future.result()
                each = item.cost / len(item.job.seeds)
                for record in records:
                    bar(each)
                    yield Event(each, record)
                if reason is not None:
                    lost = item.job.seeds[len(records) :] + (later.job.seeds if later else ())
                    cost = item.cost - each * len(records) + (later.cost if later else 0.0)
                    bar(cost)
                    yield Event(cost, None, tuple(map(item.job.unit, lost)), reason)
                elif later is not None:
                    decided = tuple(c for c in later.job.configs if c.lr == records[0].facts["lr"])
                    for seed in later.job.seeds:
                        submit(dataclasses.replace(later, job=_job(later, (seed,), decided)))


def _work(job: Job) -> tuple[list[Record], Exception | None]:
    """Compute a job in a worker process: the records of its seeds, in order, and why the next one failed."""
    if "shelf" not in _own:
        # Tasks that are read once more cost less than memory that each process keeps.
        _own.update(shelf=Shelf(letters=0), features=FeatureTable())
    records: list[Record] = []
    try:
        for record in run_job(job, _own["shelf"], _own["features"]):
            records.append(record)
    except (RunFault, UserError) as reason:
        return records, reason
    return records, None


_own: dict[str, Any] = {}
"""What a worker process keeps between jobs."""


def _parts(item: Planned) -> Iterator[tuple[Planned, Planned | None]]:
    """What can start at once, and what must wait for it."""
    job = item.job
    if not job.contestant.is_fitted:
        yield item, None
    elif len(job.configs) > 1:
        first, rest = job.seeds[:1], job.seeds[1:]
        later = dataclasses.replace(item, job=_job(item, rest, job.configs)) if rest else None
        yield dataclasses.replace(item, job=_job(item, first, job.configs)), later
    else:
        for seed in job.seeds:
            yield dataclasses.replace(item, job=_job(item, (seed,), job.configs)), None


def _job(item: Planned, seeds: tuple[int, ...], configs: tuple) -> Job:
    return dataclasses.replace(item.job, seeds=seeds, configs=configs)
