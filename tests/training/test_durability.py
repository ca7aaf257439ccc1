"""A checkpoint that has its name is on the disk, and so are the log's lines up to it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.conftest import TINY_STUDENT


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files are read from /proc")
def test_log_and_files_are_synced_before_a_checkpoint_has_its_name_and_the_name_after(
    small_genome: Path, run: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def sync(file: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    def name(source: Path, target: Path) -> None:
        events.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", name)
    out = tmp_path.resolve() / "run"
    words = ("--teacher", "random:16x1x2x24", "--out", out, "--steps", "1", "--device", "cpu", "--threads", "1")
    code, said = run("pretrain", "laptop", "--genome", small_genome, *words, *TINY_STUDENT)
    assert code == 0, said
    checkpoint = out / "checkpoints" / "step-00000001"
    at = events.index(("rename", str(checkpoint)))
    before, after = ([path for kind, path in part if kind == "sync"] for part in (events[:at], events[at:]))
    assert str(out / "metrics.jsonl") in before
    aside = [path for path in before if Path(path).parent == checkpoint.parent]
    assert len(aside) == 1, "the folder that is renamed"
    # A file may be synced under a temporary name of its own.
    assert len([path for path in before if Path(path).parent == Path(aside[0])]) >= len(list(checkpoint.iterdir()))
    assert str(checkpoint.parent) in after
