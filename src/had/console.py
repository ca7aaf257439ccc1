"""What a command says while it works: messages, warnings and progress, all on the error stream.

Standard output stays free for results. Of many processes only the first one speaks.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_SECONDS = 30.0
"""Between two progress lines where the error stream is no terminal, such as a log file."""

_state = {"quiet": False}


def setup_logging(quiet: bool = False) -> None:
    """Send the package's log messages to the error stream, one line each, and keep them off the progress bar.

    Parameters
    ----------
    quiet
        Silence `say`, `progress` and messages below a warning; warnings and errors are still shown.
    """
    _state["quiet"] = quiet
    logger = logging.getLogger("had")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _Handler)]:
        logger.removeHandler(handler)
    logger.addHandler(_Handler())
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


def say(*parts: object) -> None:
    """Print one message for the person at the terminal, unless quiet was asked for."""
    if not _state["quiet"]:
        _write(" ".join(str(part) for part in parts))


def some_of(names: Iterable[object], limit: int = 5) -> str:
    """Return the first few of many names for a message: ``a, b, c, d, e and 595 more``."""
    listed = [str(name) for name in names]
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def write_error(*lines: str) -> None:
    """Write lines to the error stream, quiet or not; one that cannot be written changes nothing."""
    for line in lines:
        _to_stderr(line)


def printable(text: str) -> str:
    """Escape control characters, such as terminal codes and changes of direction that come out of files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def progress(total: int | None, description: str, unit: str = "it", quiet: bool = False) -> "Progress":
    """Show how far a long piece of work is.

    Parameters
    ----------
    total
        How many units there are; None where nobody knows.
    description
        What is being done, such as ``training``.
    unit
        What is counted: ``bp``, ``windows``, ``bytes``.
    quiet
        Show nothing.

    Returns
    -------
    Progress
        A context manager, to be called with the number of units done since the last call.

    Examples
    --------
    >>> with progress(1000, "reading", "bp", quiet=True) as advance:
    ...     advance(250)
    """
    if quiet or _state["quiet"] or not _is_first_process():
        return Progress()
    if sys.stderr is not None and sys.stderr.isatty():
        return _Bar(total, description, unit)
    return _Lines(total, description, unit)


def in_words(seconds: float) -> str:
    """A duration for people: ``40 s``, ``7 min``, ``3.2 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Work in progress, shown to nobody."""

    def __call__(self, n: float = 1) -> None:
        """Count `n` more units as done (a part of one, too)."""

    def skip(self, n: int) -> None:
        """Count `n` units as done before, by the run that is resumed: they do not count in the rate."""

    def note(self, **values: float | str) -> None:
        """Show values, such as the loss, behind the rate."""

    def close(self) -> None:
        """Show the final state."""

    def __enter__(self) -> Self:
        """Start the work."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the final state, whether the work succeeded or not."""
        self.close()


class _Bar(Progress):
    def __init__(self, total: int | None, description: str, unit: str):
        self._bar = tqdm(
            total=total, desc=printable(description), unit=unit, unit_scale=True, dynamic_ncols=True, file=sys.stderr
        )

    def __call__(self, n: float = 1) -> None:
        self._bar.update(n)

    def skip(self, n: int) -> None:
        self._bar.initial += n
        self._bar.n += n
        self._bar.last_print_n += n
        self._bar.refresh()

    def note(self, **values: float | str) -> None:
        self._bar.set_postfix({key: _short(value) for key, value in values.items()}, refresh=False)

    def close(self) -> None:
        self._bar.close()


class _Lines(Progress):
    def __init__(self, total: int | None, description: str, unit: str):
        self._total, self._description, self._unit = total, description, unit
        self._done = self._skipped = 0.0
        self._notes: dict[str, float | str] = {}
        self._start = self._last = time.monotonic()
        self._closed = False

    def __call__(self, n: float = 1) -> None:
        self._done += n
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._print()

    def skip(self, n: int) -> None:
        self._done += n
        self._skipped += n

    def note(self, **values: float | str) -> None:
        self._notes = values

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        elapsed = max(self._last - self._start, 1e-9)
        rate = (self._done - self._skipped) / elapsed
        done = tqdm.format_sizeof(self._done)
        parts = []
        if self._total:
            parts.append(f"{100 * self._done / self._total:.0f} %")
            done = f"{done} of {tqdm.format_sizeof(self._total)}"
        parts += [f"{done} {self._unit}", f"{tqdm.format_sizeof(rate)} {self._unit}/s"]
        if self._closed or not self._total:
            parts.append(f"{tqdm.format_interval(round(elapsed))} taken")
        elif rate > 0:
            parts.append(f"{tqdm.format_interval(round((self._total - self._done) / rate))} left")
        parts += [f"{key} {_short(value)}" for key, value in self._notes.items()]
        _write(f"{self._description}: {', '.join(parts)}")


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        if _is_first_process() or record.levelno >= logging.ERROR:
            _to_stderr(f"had: {level}{record.getMessage()}")


def _write(text: str) -> None:
    if _is_first_process():
        _to_stderr(text)


def _to_stderr(text: str) -> None:
    # Nobody listens where it is closed (None), or the reader of the pipe went away: no reason to end the work.
    if sys.stderr is not None:
        with suppress(OSError):
            # tqdm takes its bar away while it writes.
            tqdm.write(printable(text), file=sys.stderr)
            sys.stderr.flush()


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _short(value: float | str) -> str:
    return printable(value) if isinstance(value, str) else f"{value:.4g}"
