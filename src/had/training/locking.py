"""One writing process per run folder."""

import errno
import importlib
import os
from pathlib import Path
from typing import IO, Any


class FolderLock:
    """A lock on a file that ends with the process that holds it, however that ends.

    Within one process the lock may be taken again, as a test or a notebook does. Where the system has no such
    locks (Windows, some network file systems), `acquire` succeeds and nothing is guarded.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process holds it."""
        if os.name != "posix":
            return True
        fcntl: Any = importlib.import_module("fcntl")
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115  (held as long as the lock)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN) and self._file is not None:
                self.release()
                return False
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None
