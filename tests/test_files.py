"""Files are whole or untouched."""

import errno
import os
from pathlib import Path

import pytest

from had import files
from had.errors import RunFault


def test_content_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.atomic_write_text(path, "one\n")
    files.atomic_write_bytes(path, "zwölf\n".encode())
    assert path.read_text(encoding="utf-8") == "zwölf\n"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "builtins.open"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, exists: bool
) -> None:
    path = tmp_path / "a.txt"
    if exists:
        path.write_text("old")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(RunFault, match=r"a\.txt.*No space left on device"):
            files.atomic_write_text(path, "new")
    assert os.listdir(tmp_path) == (["a.txt"] if exists else [])
    if exists:
        assert path.read_text() == "old"


def test_a_link_is_written_through_and_permissions_follow_the_umask(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("links and permissions of POSIX")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    files.atomic_write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("pipes of POSIX")
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.atomic_write_bytes(tmp_path / "pipe", b"x")
    assert os.read(pipe, 10) == b"x"
    os.close(pipe)
    assert (tmp_path / "pipe").is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_the_sum_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_of_file(tmp_path / "abc") == expected
