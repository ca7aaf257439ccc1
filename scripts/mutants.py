"""Break the code in known places, one at a time, in a copy, and list the mutants that no test notices.

Example:
    python scripts/mutants.py scripts/mutants.yaml --only loop.py

A table is a YAML list of mutants: file, old (a text that occurs once in it), new, and tests, the arguments of pytest
that are to fail. Exit code 1: a mutant survived, or could not be made or tested.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests", "scripts", "benchmarks", "docs", "pyproject.toml", "README.md", "Makefile")
KILLED, SURVIVED = "killed", "SURVIVED"
OUTCOMES = {0: SURVIVED, 1: KILLED}
"""By pytest's exit code; any other means that no test could run."""


def copy_checkout(folder: Path) -> None:
    """Copy sources and tests to ``folder``; time stamps are kept, so that compiled kernels are found again."""
    for name in COPIED:
        shutil.rmtree(folder / name, ignore_errors=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)


def run_tests(folder: Path, tests: str, timeout: float) -> str:
    """Run pytest in the copy until the first failure; return the outcome."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    try:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"{KILLED} (no end within {timeout:g} s)"
    failed = [line.split(" - ")[0] for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"{OUTCOMES.get(result.returncode, 'NOT TESTED')} {' '.join(failed)}".strip()


def try_mutant(folder: Path, mutant: dict[str, str], timeout: float) -> str:
    """Break one file of the copy, run the tests, mend it; return the outcome."""
    path = folder / mutant["file"]
    text, stamp = path.read_text(encoding="utf-8"), path.stat()
    if (n := text.count(mutant["old"])) != 1:
        return f"NOT MADE: the old text occurs {n} times"
    path.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
    try:
        return run_tests(folder, mutant["tests"], timeout)
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def main() -> None:
    """Try the mutants of the tables named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="mutants whose file, old or new text holds this")
    parser.add_argument("--copy", type=Path, default=Path(tempfile.gettempdir()) / "had-mutants", help="where to work")
    parser.add_argument("--timeout", type=float, default=300, help="seconds until a mutant counts as killed")
    options = parser.parse_args()
    mutants = [mutant for table in options.tables for mutant in yaml.safe_load(table.read_text(encoding="utf-8"))]
    mutants = [m for m in mutants if any(options.only in m[key] for key in ("file", "old", "new"))]
    options.copy.mkdir(parents=True, exist_ok=True)
    copy_checkout(options.copy)
    tests = " ".join(dict.fromkeys(word for mutant in mutants for word in mutant["tests"].split()))
    if not (unbroken := run_tests(options.copy, tests, options.timeout * len(mutants))).startswith(SURVIVED):
        sys.exit(f"The tests do not pass on the unbroken code: {unbroken}")
    n_killed = 0
    for mutant in mutants:
        start = time.monotonic()
        outcome = try_mutant(options.copy, mutant, options.timeout)
        n_killed += outcome.startswith(KILLED)
        change = " → ".join(" ".join(mutant[key].split()) for key in ("old", "new"))
        print(f"{mutant['file']}: {change}\n    {outcome} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{n_killed} of {len(mutants)} killed")
    sys.exit(n_killed < len(mutants))


if __name__ == "__main__":
    main()
