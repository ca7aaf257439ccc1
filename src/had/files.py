"""Files that are either the old ones or the new ones, never half of each."""

import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from had.errors import RunFault, UserError

_CHUNK_BYTES = 1 << 20


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Give the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def why_no_folder(path: str | os.PathLike[str]) -> str | None:
    """Say why a folder could not be made or written into, as far as can be told beforehand; None where it could."""
    above = Path(path).absolute()
    while not os.path.exists(above) and above != above.parent:
        above = above.parent
    if not above.is_dir():
        return f"{above} is a file"
    return None if os.access(above, os.W_OK | os.X_OK) else f"no permission to write into {above}"


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Replace ``~`` or ``~name`` at the beginning by the home folder; UserError where there is no such folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {Path(path).parts[0]} has no home folder here; write the whole path") from error


def writable_by_others(folder: Path, *names: str) -> Path | None:
    """Find what somebody else than this user and root owns or may write to: a folder, or something in it.

    Parameters
    ----------
    folder
        One that is absent is nobody's.
    names
        Look only at these entries, and all that is below them; default: all. What is in a folder that nobody else may
        enter is left out.

    Returns
    -------
    Path or None
        The first found; None also where files have no owner (Windows).
    """
    try:
        status = folder.stat()
        if not hasattr(os, "getuid"):
            return None
        if status.st_uid not in (0, os.getuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return folder
        if not stat.S_ISDIR(status.st_mode) or not status.st_mode & (stat.S_IXGRP | stat.S_IXOTH):
            return None
        for entry in [folder / name for name in names] or sorted(folder.iterdir()):
            if (found := writable_by_others(entry)) is not None:
                return found
    except OSError:
        pass
    return None


def own_temporary_folder() -> Path:
    """Make, or find, this user's folder below the system's folder for temporary files; nobody else may enter it.

    Raises
    ------
    had.errors.UserError
        There is no place for it, or somebody else has made it.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"had-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UserError(f"no folder for temporary files can be made ({error.strerror or error})") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UserError(f"{folder} is not a folder that only you may enter; remove it")
    return folder


def is_no_plain_file(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a device or pipe, such as /dev/stdout: written into, and never replaced by a file."""
    path = Path(path)
    return path.exists() and not path.is_file() and not path.is_dir()


def temporary_name(path: str | os.PathLike[str]) -> Path:
    """Name a hidden sibling of `path` that no other process uses."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def fsync_file(path: str | os.PathLike[str]) -> None:
    """Make the bytes of a file that somebody else wrote durable."""
    # Windows flushes only handles that may write.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: str | os.PathLike[str]) -> None:
    """Make creations and renames inside a folder durable (Windows has no such call and needs none)."""
    if os.name != "nt":
        fsync_file(path)


def write_durably(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a new file and fsync it; the file must not exist yet.

    Raises
    ------
    OSError
        Whatever the system says, for instance that the disk is full; a part of the file may be left.
    """
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, a crash or a full disk sees the old content or the new, nothing between.

    Parameters
    ----------
    path
        Where to write; a symbolic link is written through, a pipe or device written into. The folder must exist.
    data
        The whole new content.

    Raises
    ------
    had.errors.RunFault
        The system refused (full disk, no permission); the old file is untouched, nothing is left beside it.
    """
    target = Path(os.path.realpath(path))
    aside = temporary_name(target)
    try:
        if is_no_plain_file(path):
            with open(path, "wb") as device:
                device.write(data)
            return
        try:
            write_durably(aside, data)
            os.replace(aside, target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        fsync_folder(target.parent)
    except OSError as error:
        kept = "the file that was there is untouched" if target.exists() else "nothing was left there"
        raise RunFault(f"{path}: could not be written ({error.strerror or error}); {kept}.") from error


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8, its line ends as they are, in the manner of `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))
