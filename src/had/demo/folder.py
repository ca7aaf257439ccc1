"""The demo's folder: its own files are replaced by the next demo, anybody else's never."""

import json
import shutil
from pathlib import Path
from typing import Any

from had.errors import RunFault, UserError
from had.files import atomic_write_text
from had.training.locking import FolderLock

SUMMARY = "summary.json"
KIND = "had demo"
_OWN_FILES = ("losses.png", "tsne.png", "probes.csv", "README.txt", SUMMARY)
_OWN_FOLDER = "pretrain"


def check_free(out: Path) -> bool:
    """Whether an earlier demo is in the folder; nothing is written.

    Raises
    ------
    had.errors.UserError
        The path is a file, or a folder that holds something and no demo.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out} is a file, not a folder; use another --out.")
    if not any(not entry.name.startswith(".") for entry in out.iterdir()):
        return False
    if not _is_demo(out):
        raise UserError(f"{out}: this folder is not empty and holds no earlier demo; use another --out.")
    return True


def claim(out: Path) -> FolderLock:
    """Make the folder, or clear an earlier demo's files out of it; give the lock that keeps others out.

    Raises
    ------
    had.errors.UserError
        As `check_free`; or another process is at work in the folder, or it cannot be made.
    had.errors.RunFault
        The disk refused.
    """
    check_free(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{out}: cannot be made a folder ({error.strerror or error}); use another --out.") from error
    except OSError as error:
        raise RunFault(f"{out}: the folder cannot be made ({error.strerror or error}).") from error
    lock = FolderLock(out / ".lock")
    if not lock.acquire():
        raise UserError(f"{out}: another demo is running in this folder; use another --out.")
    # First of all, so that a demo that is killed can be told from somebody's own files.
    write_summary(out, {"finished": False})
    try:
        for name in _OWN_FILES:
            if name != SUMMARY:
                (out / name).unlink(missing_ok=True)
        if (out / _OWN_FOLDER).is_dir():
            shutil.rmtree(out / _OWN_FOLDER)
    except OSError as error:
        lock.release()
        raise RunFault(f"{out}: an earlier demo's files cannot be removed ({error.strerror or error}).") from error
    return lock


def write_summary(out: Path, facts: dict[str, Any]) -> None:
    """Write ``summary.json``, which also marks the folder as a demo's."""
    atomic_write_text(out / SUMMARY, json.dumps({"kind": KIND, **facts}, indent=1, ensure_ascii=False) + "\n")


def _is_demo(out: Path) -> bool:
    try:
        found = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND
