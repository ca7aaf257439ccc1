"""A disk that is full at any write: exit code 1, words, and the last good checkpoint still loads."""

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from had.cli import main
from had.training import masked_lm, runs
from had.training.checkpoints import latest_valid, load_checkpoint
from tests.training.conftest import TINY_TEACHER

SIZE = ("training.steps=4", "training.checkpoint_every=2", "training.validate_every=2", "training.log_every=2")


class FullDisk:
    """Counts writes below a folder and refuses the n-th and all later ones."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.count, self.limit = str(folder), 0, -1
        plain_open = builtins.open

        def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if set(mode) & set("wax+") and str(file).startswith(self.folder):
                self.tick(file)
            return plain_open(file, mode, *args, **options)

        monkeypatch.setattr(builtins, "open", opening)
        monkeypatch.setattr(io, "open", opening)  # what pathlib calls
        for name in ("replace", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self.guard(getattr(os, name)))
        plain_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            self.tick("a file")
            plain_fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    def guard(self, function: Any) -> Any:
        def guarded(path: Any, *args: Any, **options: Any) -> Any:
            if str(path).startswith(self.folder):
                self.tick(path)
            return function(path, *args, **options)

        return guarded

    def tick(self, path: Any) -> None:
        self.count += 1
        if 0 <= self.limit < self.count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def train(monkeypatch: pytest.MonkeyPatch, genome: Path, out: Path) -> int:
    words = ["teacher", "train", "teacher", "--genome", str(genome), "--out", str(out), "--device", "cpu", "--quiet"]
    monkeypatch.setattr("sys.argv", ["had", *words, *TINY_TEACHER, *SIZE])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_full_disk_at_every_write(
    small_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Counting tables and pictures take most of so small a run; a write of either is one like the others.
    tables: list[Any] = []
    fit = masked_lm.fit_markov

    def fit_once(data: Any) -> Any:
        tables[:] = tables or [fit(data)]
        return tables[0]

    monkeypatch.setattr(masked_lm, "fit_markov", fit_once)
    monkeypatch.setattr(runs, "plot_losses", lambda metrics, path: Path(path).write_bytes(b"picture"))
    disk = FullDisk(tmp_path, monkeypatch)
    assert train(monkeypatch, small_genome, tmp_path / "first") == 0  # builds the genome's store in the cache
    disk.count = 0
    assert train(monkeypatch, small_genome, tmp_path / "whole") == 0
    writes = disk.count
    assert writes > 20
    seen_with_checkpoint = 0
    for n in range(writes):
        disk.count, disk.limit = 0, n
        out = tmp_path / f"run{n}"
        capsys.readouterr()
        code = train(monkeypatch, small_genome, out)
        disk.limit = -1
        message = capsys.readouterr().err
        assert code == 1, (n, message)
        assert "Traceback" not in message
        assert "had: " in message
        newest, _ = latest_valid(out / "checkpoints") if (out / "checkpoints").exists() else (None, [])
        if newest is not None:
            seen_with_checkpoint += 1
            assert load_checkpoint(newest)[0]
            assert newest.name in message, (n, message)
    assert seen_with_checkpoint > 3
