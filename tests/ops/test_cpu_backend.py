"""Threads, forks and the compile cache of the CPU backend."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba")

import had  # noqa: E402
from had.ops import compiled, cpu, gated_delta_rule, threads  # noqa: E402
from tests.ops.rule_cases import NAMES, make_case, run  # noqa: E402


@pytest.fixture(autouse=True)
def _forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAD_BACKEND", "cpu")


@pytest.fixture(params=["openmp", "python"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Threads of PyTorch's OpenMP runtime, or Python's."""
    if request.param == "python":
        monkeypatch.setattr(threads, "_openmp_team", lambda: None)
    elif threads._openmp_team() is None:
        pytest.skip("PyTorch has no OpenMP runtime whose threads could be used")
    return request.param


def test_the_callers_thread_setting_is_used_and_left_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, asked, original = make_case(3, 20), [], threads._on_threads
    monkeypatch.setattr(threads, "_on_threads", lambda worker, n: asked.append(n) or original(worker, n))
    before = torch.get_num_threads()
    results = {}
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            results[n] = run(gated_delta_rule, case, torch.float32)
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(before)
    assert set(asked) == {2, 4}
    for name in NAMES:
        assert torch.equal(results[1][name], results[2][name])
        assert torch.equal(results[1][name], results[4][name])


def test_a_fault_in_another_thread_reaches_the_caller(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    started = threading.Barrier(2, timeout=30)

    def work(first: int, last: int) -> None:
        started.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.share(work, 2)


@pytest.mark.parametrize(("units", "pieces"), [(0, None), (1, None), (7, None), (100, None), (0, 3), (7, 3), (7, 7)])
@pytest.mark.parametrize("n", [1, 3])
def test_every_unit_is_done_once(
    kind: str, n: int, units: int, pieces: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: n)
    done: list[int] = []
    threads.share(lambda first, last: done.extend(range(first, last)), units, pieces)
    assert sorted(done) == list(range(units))


def test_shared_work_is_not_shared_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    inner: list[tuple[int, int, bool]] = []

    def work(first: int, last: int) -> None:
        own = threading.get_ident()
        threads.share(lambda a, b: inner.append((a, b, threading.get_ident() == own)), 50)

    threads.share(work, 8, 8)
    assert inner == [(0, 50, True)] * 8


def test_several_python_threads_may_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cases = [make_case(2, 30 + seed, seed=seed) for seed in range(6)]
    expected = [run(gated_delta_rule, case, torch.float32) for case in cases]
    found: dict[int, dict[str, torch.Tensor]] = {}

    def worker(index: int) -> None:
        for _ in range(5):
            found[index] = run(gated_delta_rule, cases[index], torch.float32)

    workers = [threading.Thread(target=worker, args=(index,)) for index in range(len(cases))]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    for index, result in enumerate(expected):
        for name in NAMES:
            assert torch.equal(found[index][name], result[name])


def _compute(case, many: torch.Tensor) -> list[torch.Tensor]:
    """A result of the kernels, and of operations that PyTorch shares among its threads."""
    return [run(gated_delta_rule, case, torch.float32)["dq"], many + 1, many @ many[:8].T]


def _in_child(case, many: torch.Tensor, queue) -> None:
    queue.put((torch.get_num_threads(), [x.numpy() for x in _compute(case, many)]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_is_forked_after_threads_were_used_computes_on_one() -> None:
    torch.set_num_threads(2)
    case, many = make_case(3, 20), torch.ones(100_000, 8)
    expected = _compute(case, many)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(case, many, queue))
    child.start()
    try:
        threads_there, found = queue.get(timeout=60)
    finally:
        child.join(timeout=10)
        child.kill()
    assert threads_there == 1
    assert torch.get_num_threads() == 2
    for a, b in zip(found, expected, strict=True):
        assert (a == b.numpy()).all()


def _trivial_kernels() -> SimpleNamespace:
    @numba.njit
    def forward(x):
        return x + 1

    @numba.njit
    def backward(x):
        return x - 1

    return SimpleNamespace(__file__=__file__, forward=forward, backward=backward)


def test_compiled_kernels_are_kept_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAD_CACHE", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    before = numba.config.CACHE_DIR
    kernels = _trivial_kernels()
    compiled.keep_compiled(kernels, ("forward", "backward"))
    assert kernels.forward(2) == 3
    assert list((tmp_path / "numba").rglob("*.nbi"))
    assert before == numba.config.CACHE_DIR


def test_a_cache_folder_that_cannot_be_written_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HAD_CACHE", str(tmp_path / "file"))
    kernels = _trivial_kernels()

    def nowhere() -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(kernels.backward, "enable_caching", nowhere)
    compiled.keep_compiled(kernels, ("forward", "backward"))
    assert kernels.forward(2) == 3
    assert kernels.backward(2) == 1
    assert "no locator available" in caplog.text


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache folder of this user's, with compiled kernels in it; temporary files are beside it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    folder = tmp_path / "cache"
    monkeypatch.setenv("HAD_CACHE", str(folder))
    assert _keep() == [folder]
    return folder


def _keep() -> list[Path]:
    """Let kernels be kept, and compile one: the folders of the cache or of temporary files where it was written."""
    compiled._folder_of_kernels.cache_clear()
    kernels = _trivial_kernels()
    compiled.keep_compiled(kernels, ("forward", "backward"))
    assert kernels.forward(2) == 3
    top = Path(os.environ["HAD_CACHE"])
    found = [folder for folder in (top, top.parent / "temporary") for _ in folder.rglob("*.nbi")]
    for file in [*top.rglob("*.nb?"), *(top.parent / "temporary").rglob("*.nb?")]:
        file.unlink()
    return found


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner here")
@pytest.mark.parametrize("what", [".", "numba", "numba/*", "numba/*/*"])
@pytest.mark.parametrize("how", ["group", "everybody", "owner"])
def test_compiled_kernels_are_not_taken_from_a_folder_that_others_may_write_to(
    cache: Path, what: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for inner in [cache / "numba", *(cache / "numba").iterdir()]:
        inner.chmod(0o755)  # as earlier versions made them
    (place,) = cache.glob(what) if what != "." else (cache,)
    if how == "owner":
        stat, other = Path.stat, os.getuid() + 1
        changed = SimpleNamespace(st_uid=other, st_mode=place.stat().st_mode)
        monkeypatch.setattr(Path, "stat", lambda path, **o: changed if path == place else stat(path, **o))
    else:
        place.chmod(0o775 if how == "group" else 0o757)
    temporary = cache.parent / "temporary"
    assert _keep() == [temporary]
    assert f"others may write to {place}," in caplog.text
    assert "HAD_CACHE" in caplog.text
    (own,) = temporary.iterdir()
    assert own.stat().st_mode & 0o077 == 0
    own.chmod(0o755)
    assert _keep() == [], "neither place is safe"
    assert "compiled anew in every process" in caplog.text


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner here")
def test_a_careless_umask_leaves_the_cache_folder_usable(cache: Path, tmp_path: Path) -> None:
    shutil.rmtree(cache)
    before = os.umask(0o002)
    try:
        assert _keep() == _keep() == [cache]
    finally:
        os.umask(before)


def test_without_compilation_the_portable_form_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import had, numpy, sys; numpy.save(sys.argv[1], had.load().embed(['ACGTTGCATTAGGC' * 9]))"
    settings = {"HAD_BACKEND": "", "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "found.npy")]
    result = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "slower chunked PyTorch, because NUMBA_DISABLE_JIT is set" in result.stderr
    monkeypatch.setenv("HAD_BACKEND", "chunked")
    expected = had.load().embed(["ACGTTGCATTAGGC" * 9])
    assert np.abs(np.load(tmp_path / "found.npy") - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_time_of_compiling_is_reported_apart() -> None:
    assert cpu.prepare() > 0
    assert cpu.prepare() == cpu.prepare(torch.float32)
