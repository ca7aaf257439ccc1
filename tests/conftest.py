"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiled kernels outlive a session of tests, and commands that tests start find them, too.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "numba"))


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
