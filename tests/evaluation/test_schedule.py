"""Jobs in worker processes: what is done counts, and nothing of the caller's is touched."""

import gc
import multiprocessing
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from had.console import Progress
from had.errors import RunFault
from had.evaluation import schedule
from had.evaluation.schedule import Planned, run_in_parallel, run_serially
from had.evaluation.unit_files import Unit
from had.evaluation.units import Shelf
from had.evaluation.workers import worker_pool
from had.training.devices import memory_faults


def test_seeds_that_were_done_before_one_failed_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(job: Any, *_: Any) -> Iterator[Any]:
        yield from ("first", "second")
        raise RunFault("the third is broken")

    @contextmanager
    def threads(*_: Any) -> Iterator[Executor]:
        with ThreadPoolExecutor(1) as pool:
            yield pool

    monkeypatch.setattr(schedule, "run_job", run_job)
    monkeypatch.setattr(schedule, "worker_pool", threads)
    job: Any = SimpleNamespace(
        seeds=(3, 5, 7, 9),
        configs=(),
        contestant=SimpleNamespace(is_fitted=False),
        unit=lambda seed: Unit("task", "kmer", seed),
    )
    events = list(run_in_parallel([Planned(job, 2.0, 0)], 2, 1, Progress()))
    assert [event.record for event in events] == ["first", "second", None]
    assert events[-1].failed == (Unit("task", "kmer", 7), Unit("task", "kmer", 9))
    assert "third is broken" in str(events[-1].reason)
    assert sum(event.cost for event in events) == pytest.approx(8.0)


def test_what_a_failed_unit_held_is_free_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        """Large."""

    held: list[weakref.ref[Model]] = []

    def run_job(job: Any, *_: Any) -> Iterator[Any]:
        if job.seeds == (1,):
            gc.collect()
            assert held[0]() is None
            yield SimpleNamespace(unit=Unit("task", "had", 1))
            return
        model = Model()
        held.append(weakref.ref(model))
        with memory_faults("nothing"):
            raise MemoryError

    monkeypatch.setattr(schedule, "run_job", run_job)
    jobs = [SimpleNamespace(seeds=(seed,), configs=(), unit=lambda seed: Unit("task", "had", seed)) for seed in (0, 1)]
    planned: list[Any] = [Planned(job, 1.0, 0) for job in jobs]  # type: ignore[arg-type]
    failed, done = run_serially(planned, Shelf(), Progress())
    assert failed.failed == (Unit("task", "had", 0),)
    assert done.record is not None


def test_the_callers_own_processes_live_on_and_the_pools_end() -> None:
    mine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    mine.start()
    try:
        with worker_pool(1, 1, "all is saved") as pool:
            assert pool.submit(abs, -3).result() == 3
            pool.submit(time.sleep, 60)
            assert len(multiprocessing.active_children()) == 2
        deadline = time.monotonic() + 30
        while len(multiprocessing.active_children()) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert multiprocessing.active_children() == [mine]
    finally:
        mine.kill()


def test_a_killed_worker_is_said_with_what_is_saved() -> None:
    def work() -> None:
        with worker_pool(1, 1, "all is saved") as pool:
            future = pool.submit(time.sleep, 60)
            while not future.running():
                time.sleep(0.05)
            for child in multiprocessing.active_children():
                child.kill()
            future.result()

    with pytest.raises(RunFault, match=r"a worker process was killed .*; all is saved, and the same command goes on"):
        work()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_memory_that_does_not_suffice_is_a_fault_with_advice(error: Exception) -> None:
    with pytest.raises(RunFault, match=r"memory did not suffice \(.*; buy some$"), memory_faults("buy some"):
        raise error
    with pytest.raises(RuntimeError, match="something else"), memory_faults("buy some"):
        raise RuntimeError("something else")
