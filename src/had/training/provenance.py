"""Under which circumstances a run was made, and whether two configs are of the same run."""

import dataclasses
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, get_type_hints

from had.config import build, dump_yaml, parse_yaml
from had.errors import UserError

MAY_DIFFER = frozenset(
    {"checkpoint_every", "device", "keep_checkpoints", "log_every", "log_windows", "logging", "out", "quiet"}
    | {"resume", "stop_after", "threads", "trackers", "workers"}
)
"""Keys, at any depth, that change nothing in the result, so that a resumed run may set them anew."""


def differences(then: Any, now: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Compare two nested configs of plain values: {dotted key: (then, now)} where they are not the same."""
    if isinstance(then, dict) and isinstance(now, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*then, *(key for key in now if key not in then)]:
            dotted = f"{prefix}.{key}" if prefix else str(key)
            found |= differences(then.get(key, "absent"), now.get(key, "absent"), dotted)
        return found
    return {} if then == now and type(then) is type(now) else {prefix: (then, now)}


def with_later_keys(then: Any, config: object) -> Any:
    """Give a stored config the keys that came with later versions, as runs were made before.

    That is their defaults, and where these changed what is done, what the dataclass's ``BEFORE`` names by key. Only
    where ``config``, that of now, is a dataclass that the stored one still fits; else it stays as it is.
    """
    if not dataclasses.is_dataclass(config) or not isinstance(then, Mapping):
        return then
    try:
        return parse_yaml(dump_yaml(build(type(config), _as_it_was(type(config), then), "config")), "config")
    except UserError:
        return then


def _as_it_was(cls: type, then: Mapping[str, Any]) -> dict[str, Any]:
    values = {**getattr(cls, "BEFORE", {}), **then}
    hints = get_type_hints(cls)
    for name, section in then.items():
        if isinstance(section, Mapping) and dataclasses.is_dataclass(inner := hints.get(name)):
            values[name] = _as_it_was(inner, section)  # type: ignore[arg-type]
    return values


def circumstances(
    command: Sequence[str],
    data_digests: Mapping[str, str],
    seed: int | None,
    threads: int | None,
    processes: int,
) -> dict[str, Any]:
    """Record what a repetition of the run would need besides the config, as JSON values."""
    return {
        "command": list(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "had": _version("had"),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "platform": f"{platform.platform()} ({sys.byteorder} endian)",
        "seed": seed,
        "threads": threads,
        "processes": processes,
        "data": dict(data_digests),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed (run from source)"
