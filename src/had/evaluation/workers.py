"""Worker processes of a benchmark or a search: started alike, and gone when their pool is."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from had.console import setup_logging
from had.errors import RunFault
from had.training.devices import keep_freed_memory, set_threads


@contextmanager
def worker_pool(jobs: int, threads: int | None, saved: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes for the time of a ``with``; what has not begun by its end is dropped.

    Parameters
    ----------
    jobs, threads
        Processes, and threads of each (None: the machine's).
    saved
        What is saved where a process is killed, in words.

    Raises
    ------
    RunFault
        If a process was killed.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=start_worker, initargs=(threads,)
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RunFault(
            f"a worker process was killed (out of memory? fewer --jobs need less); {saved}, and the same command goes "
            "on from there"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # The pool would let them finish their work first. Other children are the caller's own.
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


def start_worker(threads: int | None) -> None:
    """Prepare a worker process: its threads, silence, and an end if its parent ends."""
    # Ctrl-C reaches every process of the terminal: idle workers would show tracebacks, and the parent ends them anyway.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup_logging(quiet=True)
    logging.getLogger("had").setLevel(logging.ERROR)
    keep_freed_memory()
    set_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
