"""Fixtures shared by all tests."""

import logging
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Read when PyTorch is loaded: numbers, and their last bits, must not depend on how many cores there are.
# `make test-cpus` sets another number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from had import console

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Compiled kernels outlive a session of tests, and commands that tests start find them, too.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "numba"))
if find_spec("triton") is not None and not torch.cuda.is_available():
    # Read when Triton is imported, by whichever test: without a GPU its kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real reference data beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "README.md").exists():
        pytest.skip("the reference data beside the checkout is not here")
    return folder


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's own cache out of the tests."""
    monkeypatch.setenv("HAD_CACHE", str(tmp_path_factory.getbasetemp() / "had-cache"))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Undo what a command that a test ran in this process set for good: messages, threads, signals."""
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name, handler in handlers.items():
        signal.signal(name, handler)
    logger = logging.getLogger("had")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    console._state["quiet"] = False
