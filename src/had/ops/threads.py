"""Threads that share work on a CPU: as many as PyTorch is set to use.

They are the threads of PyTorch's own OpenMP runtime where that is GNU's or speaks its language: after each operation
of PyTorch those wait for the next at full speed for some milliseconds, and would keep other threads from their cores.
Elsewhere they are Python threads. In either, PyTorch's operations run on one thread each. What a compiled kernel
computes of a unit does not depend on which thread computes it, nor on how many there are.

A forked child begins with one thread: those of the OpenMP runtime do not survive the fork, and PyTorch would wait for
them for ever.
"""

import ctypes
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

PIECES_PER_THREAD = 4
"""Pieces of work handed out per thread, so that a thread on a busy core does not hold up the others."""

_Member = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_here = threading.local()
"""``busy`` is set in a thread that is at work."""
_forked = False


@functools.cache
def _openmp_team() -> Any:
    """``GOMP_parallel`` of the runtime that PyTorch has loaded, which calls a function on several threads; or None."""
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError, TypeError):
        return None
    team.argtypes = (_Member, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    team.restype = None
    return team


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Python threads in which every operation of PyTorch runs by itself."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="had")
    before, together = torch.get_num_threads(), threading.Barrier(threads)

    def begin() -> None:
        # A thread takes over the common setting when it is first asked, were that after its own was made.
        torch.get_num_threads()
        torch.set_num_threads(1)
        together.wait()

    for started in [pool.submit(begin) for _ in range(threads)]:
        started.result()
    # A thread's setting is its own, but what threads to come begin with is not.
    torch.set_num_threads(before)
    return pool


def _after_fork() -> None:
    """Let a child, such as a data-loading worker, compute on one thread: neither kind of thread survives a fork."""
    global _forked
    _forked = True
    _pool.cache_clear()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _on_threads(worker: Callable[[], None], threads: int) -> None:
    """Call ``worker`` on several threads, and raise what the first that fails raises, once none is at work."""
    failures: list[BaseException] = []
    caller, caller_is_through = threading.get_ident(), False

    def member(_: int | None = None) -> None:
        nonlocal caller_is_through
        calls = threading.get_ident() == caller
        _here.busy = True
        try:
            worker()
        except BaseException as error:
            failures.append(error)
        finally:
            _here.busy = False
        if calls:
            caller_is_through = True

    team = None if _forked else _openmp_team()
    if team is None:
        wait([_pool(threads).submit(member) for _ in range(threads)])
    else:
        team(_Member(member), None, threads, 0)
        if not caller_is_through and not failures:
            # Ctrl-C at the first or last instruction of a function called from C: Python prints it and goes on.
            raise KeyboardInterrupt
    if failures:
        raise failures[0]


def share(work: Callable[[int, int], None], units: int, pieces: int | None = None) -> None:
    """Call ``work(first, last)`` until 0 to ``units`` is covered, on as many threads as PyTorch is set to use.

    Parameters
    ----------
    work
        Does some neighbouring units. Called from within work that is itself shared, it is not shared again.
    units
        Their number; with none nothing is called.
    pieces
        Calls among which they are divided, which begin in order; default four a thread.
    """
    threads = 1 if getattr(_here, "busy", False) else min(torch.get_num_threads(), units)
    if threads <= 1 and pieces is None:
        if units:
            work(0, units)
        return
    pieces = min(units, threads * PIECES_PER_THREAD if pieces is None else pieces)
    todo = deque(itertools.pairwise(units * piece // pieces for piece in range(pieces + 1)) if pieces else ())

    def worker() -> None:
        while True:
            try:
                first, last = todo.popleft()
            except IndexError:
                return
            work(first, last)

    if threads <= 1:
        worker()
    else:
        _on_threads(worker, threads)
