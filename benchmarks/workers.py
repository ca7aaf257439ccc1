"""Processes in which cells are measured, and what becomes of those that die or take too long.

On a CPU every cell has a process of its own, so that its peak memory is its own. They are forked from one that has
imported everything once (where the system cannot fork they import it anew). On a GPU PyTorch accounts for memory itself
and can start its account anew, so one process measures cell after cell; after a fault a fresh one takes over.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cells import Unavailable

_HERE = Path(__file__).resolve().parent
PRELOAD = "HAD_BENCHMARK_PRELOAD"
"""Environment variable with the modules, separated by commas, that are imported before processes are forked."""


class TookTooLong(Exception):
    """The process was ended at its time limit."""


class Died(Exception):
    """The process ended by itself without an answer; the message says how."""


def _end_with_parent() -> None:
    """Whoever ends the table ends the cell that is being measured."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _serve(pipe: Connection) -> None:
    """Answer calls (module, function, arguments) until the pipe is closed."""
    # Where memory runs out, the system is to end this process rather than another.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            module, function, arguments = pipe.recv()
            try:
                answer = getattr(import_module(module), function)(*arguments), None
            except Unavailable as reason:
                answer = None, reason
            pipe.send(answer)


class Workers:
    """Runs functions in other processes.

    Parameters
    ----------
    device
        cpu: a new process for every call; cuda: one for all.
    preload
        Modules that take long to import and that calls will need; those that cannot be imported are left out.
    """

    def __init__(self, device: str, preload: Sequence[str] = ()) -> None:
        self._keep = device == "cuda"
        forks = not self._keep and "forkserver" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if forks else "spawn")
        # The fork server looks for modules where any new Python does, and nowhere else.
        paths = [str(_HERE), str(_HERE.parent / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
        if forks:
            os.environ[PRELOAD] = ",".join(preload)
            self._context.set_forkserver_preload(["preload"])
        self._process: Any = None
        self._pipe: Any = None

    def _start(self) -> None:
        self._pipe, far_end = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(far_end,), daemon=True)
        self._process.start()
        far_end.close()

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = None

    def call(self, place: str, arguments: tuple[Any, ...], limit: float) -> Any:
        """Give what a function, named as ``module:function``, returns in such a process.

        Raises
        ------
        Unavailable
            The function says so.
        TookTooLong
            After ``limit`` seconds.
        Died
            The process is gone.
        """
        if self._process is None:
            self._start()
        began = time.monotonic()
        try:
            self._pipe.send((*place.split(":"), arguments))
            while not self._pipe.poll(max(0.0, min(0.5, limit - (time.monotonic() - began)))):
                if time.monotonic() - began >= limit:
                    raise TookTooLong
            answer, reason = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join(5)
            code = self._process.exitcode
            self.stop()
            # 9: the system's answer to a process that takes more memory than there is.
            raise Died("out of memory" if code == -9 else f"its process ended with code {code}") from error
        except BaseException:
            self.stop()
            raise
        if not self._keep:
            self.stop()
        if reason is not None:
            raise reason
        return answer
