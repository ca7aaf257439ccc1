"""What a number was measured on and with: the machine, the versions, the source."""

import hashlib
import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "numba", "numpy", "transformers", "triton", "fla-core", "multimolecule")
_SOURCE = Path(__file__).resolve().parents[1] / "src" / "had"


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def caches() -> str:
    """Cache sizes as Linux gives them for the first core, such as ``L1d 32K, L2 1024K, L3 32768K``; or empty."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found.append(f"L{level}{'d' if kind == 'Data' else ''} {size}")
    return ", ".join(found)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def source_digest() -> str:
    """Twelve hexadecimal digits that change with the package's code."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.rglob("*.py")):
        digest.update(path.relative_to(_SOURCE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def describe() -> dict[str, Any]:
    """The part of a header on which the numbers depend, without what only PyTorch knows."""
    return {
        "cpu": processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "logical cores": os.cpu_count(),
        "caches": caches(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
        "source": source_digest(),
    }


def digest_of(header: dict[str, Any]) -> str:
    """Eight hexadecimal digits that name a header."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:8]


def occasion() -> dict[str, Any]:
    """When and how this was called, and how busy the machine was before."""
    has_load = hasattr(os, "getloadavg")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": shlex.join(["python", *sys.argv]),
        "load": f"{os.getloadavg()[0]:.1f}" if has_load else "unknown",
    }


def as_markdown(header: dict[str, Any], occasions: list[dict[str, Any]]) -> str:
    """A header as a Markdown list; ``occasions`` are all calls that added to the results."""
    lines = [f"- {name}: {value}" for name, value in header.items() if name != "versions" and value not in ("", None)]
    lines.append("- versions: " + ", ".join(f"{name} {value}" for name, value in header["versions"].items()))
    for call in occasions:
        lines.append(f"- {call['date']}: `{call['command']}`; load before: {call['load']}")
    return "\n".join(lines) + "\n"
