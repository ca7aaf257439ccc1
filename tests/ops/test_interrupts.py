"""Ctrl-C that meets a function called from C, where Python can only print it, ends the work all the same."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from had.ops import compiled, threads


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_none_is_lost_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def before_its_first_line(_: int | None) -> None:
        raise KeyboardInterrupt

    def team(*_: object) -> None:
        threads._Member(before_its_first_line)(None)

    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "_openmp_team", lambda: team)
    with pytest.raises(KeyboardInterrupt):
        threads.share(lambda first, last: None, 8)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("misses", [False, True])
def test_none_is_lost_while_a_kernel_is_compiled(misses: bool) -> None:
    def callback() -> None:
        raise KeyboardInterrupt

    def compile(_: object) -> None:
        ctypes.CFUNCTYPE(None)(callback)()
        if misses:
            raise RuntimeError("no compiled object yet")

    def name() -> None: ...

    hits = SimpleNamespace(cache_hits=SimpleNamespace(total=lambda: 0))
    kernel = SimpleNamespace(py_func=name, stats=hits, compile=compile)
    with pytest.raises(KeyboardInterrupt):
        compiled.compile_kernel(kernel, ("a signature", misses))

    def broken(_: object) -> None:
        raise RuntimeError("of its own")

    kernel.compile = broken
    with pytest.raises(RuntimeError, match="of its own"):
        compiled.compile_kernel(kernel, ("another signature", misses))
