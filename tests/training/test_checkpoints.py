"""Checkpoints under kills, full disks and damage."""

import builtins
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from had.errors import RunFault, UserError
from had.training import checkpoints
from had.training.checkpoints import (
    checkpoint_step,
    latest_valid,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    set_aside_after,
    verify_checkpoint,
)

STATE = {"seed": 3, "loss": 0.1 + 0.2, "best": float("inf"), "nested": {"names": ["a", "b"], "none": None}}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 7, generator=generator)
    return {
        "weight": weight,
        "tied": weight,
        "row": weight[2],
        "turned": weight.T,
        "half": weight.bfloat16(),
        "count": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "codes": torch.arange(9, dtype=torch.uint8),
        "odd values": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "needs gradient": torch.nn.Parameter(torch.ones(2)),
    }


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = (x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (one, other))
    return torch.equal(one, other)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run" / "checkpoints", 12, tensors(), STATE)
    assert path == tmp_path / "run" / "checkpoints" / "step-00000012"
    assert verify_checkpoint(path) is None
    assert checkpoint_step(path) == 12
    loaded, state = load_checkpoint(path)
    assert state == STATE
    assert loaded.keys() == tensors().keys()
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors().items())
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "state.json",
        "tensors.safetensors",
    ]
    assert hidden(path.parent) == []


def test_a_state_that_is_no_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "c", 1, tensors(), {"weight": torch.ones(1)})
    assert not (tmp_path / "c").exists()


def test_the_oldest_are_dropped_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (5, 20, 100, 99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, {"x": torch.tensor(step)}, {}, keep=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [99_999_999, 100_000_000]
    path, skipped = latest_valid(tmp_path)
    assert path is not None
    assert path.name == "step-100000000"
    assert skipped == []
    save_checkpoint(tmp_path, 100_000_001, {}, {}, keep=None)
    assert len(list_checkpoints(tmp_path)) == 3
    save_checkpoint(tmp_path, 100_000_002, {}, {}, keep=1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [100_000_002]
    with pytest.raises(UserError, match="at least 1"):
        save_checkpoint(tmp_path, 100_000_003, {}, {}, keep=0)


def test_later_checkpoints_neither_outlive_nor_replace_a_resumed_run(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, {}, {"first": step}, keep=None)
    sentences = set_aside_after(tmp_path, 10)
    assert len(sentences) == 2
    assert latest_valid(tmp_path)[0] == tmp_path / "step-00000010"
    save_checkpoint(tmp_path, 20, {}, {"second": 20}, keep=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "abandoned-step-00000030",
        "step-00000010",
        "step-00000020",
    ]
    assert load_checkpoint(tmp_path / "step-00000020")[1] == {"second": 20}
    save_checkpoint(tmp_path, 30, {}, {"second": 30}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, {"try": 1})
    save_checkpoint(tmp_path, 1, {}, {"try": 2})
    assert load_checkpoint(tmp_path / "step-00000001")[1] == {"try": 2}
    assert len(list(tmp_path.iterdir())) == 1


@contextmanager
def full_disk_from(call: int, calls: list[int], *, once: bool) -> Iterator[None]:
    """Refuse the k-th change of the disk, and unless `once` all later ones; count them."""
    real: dict[tuple[Any, str], Callable[..., Any]] = {}

    def refusing(owner: Any, name: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            reads = name == "open" and isinstance(mode, str) and mode.startswith("r")
            if not reads:
                calls[0] += 1
                if calls[0] == call or (calls[0] > call and not once):
                    raise OSError(errno.ENOSPC, "No space left on device")
            return real[owner, name](*args, **kwargs)

        return wrapper

    points = [(os, "fsync"), (os, "rename"), (os, "mkdir"), (builtins, "open"), (checkpoints, "save_file")]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in points:
            real[owner, name] = getattr(owner, name)
            patch.setattr(owner, name, refusing(owner, name))
        yield


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_full_disk_at_any_write_leaves_the_last_good_checkpoint(tmp_path: Path, once: bool, replaces: bool) -> None:
    refused = 0
    before = tmp_path / "before"
    save_checkpoint(before, 1, tensors(1), {"step": 1})
    save_checkpoint(before, 2, tensors(2), {"step": 2})
    step = 2 if replaces else 3
    for call in range(1, 100):
        folder = shutil.copytree(before, tmp_path / str(call))
        calls = [0]
        fault = None
        with full_disk_from(call, calls, once=once):
            try:
                save_checkpoint(folder, step, tensors(3), {"step": "new"}, keep=1)
            except RunFault as caught:
                fault = str(caught)
        newest, skipped = latest_valid(folder)
        assert newest is not None
        assert skipped == []
        loaded, state = load_checkpoint(newest)
        if fault is not None:
            refused += 1
            assert "No space left on device" in fault
            assert "--resume auto" in fault
            if not replaces or once:
                assert str(newest) in fault
        if fault is None and calls[0] < call:
            assert state == {"step": "new"}
            break
        seed = 3 if state["step"] == "new" else state["step"]
        assert same_bits(loaded["weight"], tensors(seed)["weight"])
        assert (folder / "step-00000001").exists() or fault is None, "nothing is dropped before the new is safe"
        assert not [name for name in hidden(folder) if name.endswith(".part")]
    else:
        pytest.fail("the number of writes has no end")
    assert refused >= 9


@pytest.mark.parametrize("large", [{"x": torch.zeros(10_000)}, {}], ids=["tensors", "state"])
def test_a_file_the_system_cuts_short_is_a_fault_and_not_a_checkpoint(
    tmp_path: Path, large: dict[str, torch.Tensor]
) -> None:
    resource = pytest.importorskip("resource")
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(10)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunFault, match=r"could not be saved .*last good checkpoint is .*step-00000001"):
            save_checkpoint(tmp_path, 2, large, {"text": "" if large else "x" * 40_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_first_checkpoint_that_fails_says_that_nothing_is_saved(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(RunFault, match="No checkpoint is saved yet"):
        save_checkpoint(tmp_path / "checkpoints", 1, {}, {})


class Killed(BaseException):
    """Stands in for a signal that nothing handles."""


@pytest.mark.parametrize("replaces", [False, True])
def test_what_a_kill_leaves_is_ignored_and_then_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    """Copy the folder before every rename and fsync: each copy is what a kill at that moment leaves."""
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, 1, tensors(1), {"step": 1})
    copies: list[Path] = []

    def copying(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            copies.append(tmp_path / f"copy-{len(copies)}")
            shutil.copytree(folder, copies[-1])
            return real(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", copying(os.rename))
        patch.setattr(os, "fsync", copying(os.fsync))
        save_checkpoint(folder, 1 if replaces else 2, tensors(2), {"step": "new"}, keep=1)
    assert len(copies) >= 6
    assert any(hidden(copy) for copy in copies)
    for copy in copies:
        unread = shutil.copytree(copy, tmp_path / "unread" / copy.name)
        save_checkpoint(unread, 3, tensors(3), {"step": 3}, keep=None)
        assert len(list_checkpoints(unread)) >= 2, "saving at once must lose nothing either"
        newest, skipped = latest_valid(copy)
        assert newest is not None
        assert skipped == []
        assert load_checkpoint(newest)[1]["step"] in (1, "new")
        save_checkpoint(copy, 3, tensors(3), {"step": 3})
        assert hidden(copy) == []
        assert latest_valid(copy)[0] == copy / "step-00000003"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("written"), 7, tensors(), STATE)


FILES = st.sampled_from(["tensors.safetensors", "state.json", "manifest.json"])
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def damaged(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    content = path.read_bytes()
    try:
        path.write_bytes(change(content))
        yield
    finally:
        path.write_bytes(content)


@QUICK
@given(name=FILES, place=st.floats(0, 1, exclude_max=True), other=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_found(written: Path, name: str, place: float, other: int) -> None:
    def flip(content: bytes) -> bytes:
        i = int(place * len(content))
        return content[:i] + bytes([content[i] ^ other]) + content[i + 1 :]

    with damaged(written / name, flip):
        reason = verify_checkpoint(written)
        assert reason is not None
        assert "damaged" in reason
        assert str(written / name) in reason
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(written)
    assert verify_checkpoint(written) is None


@pytest.mark.parametrize(("written_as", "changed_to"), [(b"\n ", b"\n\t"), (b": 7\n", b": 7.0\n"), (b"1,", b"2,")])
def test_a_manifest_that_means_the_same_or_lies_is_damaged_too(
    written: Path, written_as: bytes, changed_to: bytes
) -> None:
    def replace(content: bytes) -> bytes:
        assert written_as in content
        return content.replace(written_as, changed_to, 1)

    with damaged(written / "manifest.json", replace):
        assert "damaged" in (verify_checkpoint(written) or "")


@QUICK
@given(name=FILES, place=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_found(written: Path, name: str, place: float) -> None:
    with damaged(written / name, lambda content: content[: int(place * len(content))]):
        reason = verify_checkpoint(written)
        assert reason is not None
        assert name in reason
        assert latest_valid(written.parent) == (None, [reason])


def test_longer_missing_and_renamed_are_told_apart(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step-00000007"
    for damage, expected in [
        (lambda: (copy / "state.json").open("a").write(" "), "too long"),
        (lambda: (copy / "state.json").unlink(), "state.json is missing"),
        (lambda: (copy / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda: shutil.rmtree(copy), "does not exist"),
        (lambda: (shutil.rmtree(copy), copy.write_text("x")), "not a folder"),
    ]:
        shutil.copytree(written, copy)
        damage()
        assert expected in (verify_checkpoint(copy) or "")
        shutil.rmtree(copy, ignore_errors=True)
        copy.unlink(missing_ok=True)
    renamed = shutil.copytree(written, tmp_path / "step-00000008")
    assert "holds step 7" in (verify_checkpoint(renamed) or "")
    assert verify_checkpoint(shutil.copytree(written, tmp_path / "best")) is None


def test_the_newest_valid_one_is_taken_and_the_damaged_ones_are_named(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, tensors(step), {}, keep=None)
    (tmp_path / "step-00000004" / "tensors.safetensors").unlink()
    with (tmp_path / "step-00000003" / "state.json").open("r+b") as file:
        file.truncate(1)
    (tmp_path / "notes.txt").write_text("left alone")
    path, skipped = latest_valid(tmp_path)
    assert path == tmp_path / "step-00000002"
    assert re.search("step-00000004.*missing", skipped[0])
    assert re.search("step-00000003.*cut short", skipped[1])
    assert latest_valid(tmp_path / "nowhere") == (None, [])


def test_a_folder_around_checkpoints_is_answered_with_one_inside(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoints", 1, {}, {})
    for named in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(UserError, match=re.escape(str(path))):
            load_checkpoint(named)


def test_a_checkpoint_holds_no_pickle(written: Path) -> None:
    json.loads((written / "state.json").read_text())
    json.loads((written / "manifest.json").read_text())
    raw = (written / "tensors.safetensors").read_bytes()
    json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
