"""The log of a run: one JSON object a line, whole lines only."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from had.errors import UserError
from had.files import atomic_write_bytes


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line to a log and flush it.

    Values that are not finite have no JSON: they become null, and are named under ``not_finite``, such as
    ``{"loss": "nan"}``. NumPy and torch scalars are numbers.

    Raises
    ------
    OSError
        The line could not be written; no half of it stays.
    """
    line = (json.dumps(_finite_record(record), allow_nan=False) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            written = 0
            # A nearly full disk takes a part, and refuses the rest in the next call.
            while written < len(line):
                written += file.write(line[written:])
        except OSError:
            file.truncate(size)
            raise


def truncate_metrics(path: Path, step: int) -> int:
    """Cut the lines after `step`, and unreadable ones, off a log; the others stay byte for byte.

    Returns
    -------
    int
        How many lines were cut.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = []
    for line in lines:
        record = _parse_line(line) if line.endswith(b"\n") else None
        if record is not None and _step(record) <= step:
            kept.append(line)
    if len(kept) < len(lines):
        atomic_write_bytes(path, b"".join(kept))
    return len(lines) - len(kept)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a log of one JSON object a line.

    A last line without its end, as a kill leaves it, is left out.

    Raises
    ------
    had.errors.UserError
        Another line is not a JSON object; the message gives its number.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        record = _parse_line(line)
        if record is None:
            raise UserError(f"{path}, line {number}: not a JSON object; mend the line or remove it.")
        records.append(record)
    return records


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _step(record: Mapping[str, Any]) -> float:
    step = record.get("step", -1)
    return step if isinstance(step, int | float) else -1


def _finite_record(record: Mapping[str, Any]) -> dict[str, Any]:
    bad: dict[str, str] = {}

    def finite(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(name): finite(f"{key}.{name}", item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(f"{key}[{i}]", item) for i, item in enumerate(value)]
        if not isinstance(value, str | int | float | None) and hasattr(value, "item"):
            value = value.item()  # a NumPy or torch scalar
        if isinstance(value, float) and not math.isfinite(value):
            bad[key] = str(float(value))
            return None
        return value

    result = {str(key): finite(str(key), value) for key, value in record.items()}
    return {**result, "not_finite": bad} if bad else result
