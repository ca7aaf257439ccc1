"""One script for a machine with a GPU: tests, speed and a short training run, as files, in under nine minutes.

    python benchmarks/gpu.py --out gpu-results

It needs no network, and no installation of this package, only what the package depends on, and pytest. Steps, each a
process of its own with a time limit from the one budget:

    triton-tests   tests of the Triton kernels                               triton-tests.xml
    gpu-tests      all other tests that need a CUDA device                   gpu-tests.xml
    training       a short `had pretrain` on the bundled genome, bf16        training/, with letters per second
    long-inputs    benchmarks/long_inputs.py                                 long-inputs/
    table          benchmarks/table.py, with all the time that is left       table/

``summary.json`` and ``summary.md`` are written anew after every step, and each step's output goes to its ``.log``, so
that a kill leaves what is done. Called again with the same folder, it does what is missing: steps that passed are
skipped, the table goes on where it stopped. ``--dry-run`` only says what would be run. ``--device cpu`` runs everything
on a small scale, to try this script out.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src" / "had" / "assets"
SHORTEST = 5.0
"""Seconds below which a step is not begun."""
AT_THE_END = 8.0
"""Seconds between a step's own budget, where it takes one, and its limit."""
NO_TESTS = 5
"""pytest's exit code where it found none to run."""


@dataclass(frozen=True)
class Step:
    """One process."""

    name: str
    share: float
    """Of the time that is left, together with the shares of the steps after it."""
    command: Callable[[float], list[str]]
    """The command for a time limit in seconds."""
    result: Callable[[Path], Any] = lambda folder: None
    """What the summary says of it, read from the folder of the results."""


def steps(out: Path, device: str) -> list[Step]:
    """All steps, in their order."""
    python, tiny = sys.executable, device == "cpu"
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "--durations=5"]
    triton = "tests/ops/test_triton_backend.py"
    steps_of_training, batch = ("2", "2") if tiny else ("60", "256")
    training = [
        python, "-m", "had", "pretrain", "demo", "--genome", str(ASSETS / "demo_genome.fa.gz"),
        "--bed", str(ASSETS / "demo_split.bed"), "--out", str(out / "training"), "--device", device, "--quiet",
        "--steps", steps_of_training, f"training.global_batch={batch}",
        f"training.micro_batch={batch}", "training.validate_every=0",
        f"training.precision={'float32' if tiny else 'bf16'}", "data.validation_windows=8", "objective.fit_windows=8",
        "--resume", "auto",
    ]  # fmt: skip
    small_table = ["--lengths", "128,256", "--letters", "256", "--only", "op", "--cell-seconds", "0.05"]
    small_inputs = ["--lengths", "300,700", "--window", "300"]

    def benchmark(script: str, folder: str, limit: float, more: list[str]) -> list[str]:
        budget = f"{max(1.0, limit - AT_THE_END):.0f}"
        where = ["--out", str(out / folder), "--device", device, "--budget-seconds", budget]
        return [python, str(ROOT / "benchmarks" / script), *where, *more]

    return [
        Step("triton-tests", 2.0, lambda limit: [*pytest, triton, f"--junitxml={out / 'triton-tests.xml'}"]),
        Step(
            "gpu-tests",
            1.0,
            lambda limit: [*pytest, "-m", "gpu", "tests", f"--ignore={triton}", f"--junitxml={out / 'gpu-tests.xml'}"],
        ),
        Step("training", 1.5, lambda limit: training, lambda folder: training_speed(folder / "training")),
        Step(
            "long-inputs",
            1.5,
            lambda limit: benchmark("long_inputs.py", "long-inputs", limit, small_inputs if tiny else []),
            lambda folder: json.loads((folder / "long-inputs" / "long_inputs.json").read_text("utf-8"))["rows"],
        ),
        Step(
            "table",
            4.0,
            lambda limit: benchmark("table.py", "table", limit, small_table if tiny else ["--cell-seconds", "0.3"]),
        ),
    ]


def training_speed(run: Path) -> dict[str, Any]:
    """Letters per second of a run, its first quarter left out: there kernels are compiled and memory is taken."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [row for row in map(json.loads, lines) if row["split"] == "train"]
    counted = logged[len(logged) // 4 :]
    seconds = sum(row["seconds"] for row in counted)
    letters = sum(row["bp"] / row["step"] for row in counted)
    return {"steps": len(logged), "counted": len(counted), "bp_per_s": letters / seconds, "loss": logged[-1]["loss"]}


def run(command: list[str], log: Path, limit: float) -> int | None:
    """Exit code of a process, or None where it was ended at its limit, with all that it had started."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, and what it has started: kindly, then not."""
    # An interrupted pytest still says what it has found.
    for how, patience in ((signal.SIGINT, 3.0), (signal.SIGKILL, 3.0)):
        try:
            os.killpg(process.pid, how)
        except (ProcessLookupError, PermissionError):
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if len(lines) > 1 else ""


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Both forms, each whole or not at all."""
    lines = [
        "# Results of a GPU machine",
        "",
        f"- {summary['date']}: `{summary['command']}`",
        f"- {summary['gpu']}",
        "",
    ]
    lines += ["| step | state | seconds | last line of its log | result |", "|---|---|---|---|---|"]
    for name, row in summary["steps"].items():
        result = json.dumps(row["result"]) if row.get("result") is not None else ""
        cells = [name, row["state"], f"{row['seconds']:.0f}", row["said"], result]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    for name, text in (
        ("summary.json", json.dumps(summary, indent=1) + "\n"),
        ("summary.md", "\n".join(lines) + "\n"),
    ):
        aside = out / f".{name}.part"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, out / name)


def gpu_name() -> str:
    """What nvidia-smi says."""
    ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return said or "no GPU that nvidia-smi knows"


def do(step: Step, out: Path, limit: float, device: str) -> dict[str, Any]:
    """Run a step; what the summary keeps of it."""
    log, began = out / f"{step.name}.log", time.monotonic()
    code = run(step.command(limit), log, limit)
    row: dict[str, Any] = {"seconds": time.monotonic() - began, "limit": limit, "said": last_line(log)}
    # Without a GPU all tests that need one are left out.
    passed = code == 0 or (code == NO_TESTS and device == "cpu")
    row["state"] = f"ended at its limit of {limit:.0f} s" if code is None else "passed" if passed else f"failed: {code}"
    try:
        row["result"] = step.result(out)
    except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        row["result"] = f"none ({type(error).__name__}: {error})"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--budget-seconds", type=float, default=520)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", help="only these, separated by commas")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    options = parser.parse_args()
    ends = time.monotonic() + options.budget_seconds
    out = options.out.resolve()
    wanted = [s for s in steps(out, options.device) if options.steps is None or s.name in options.steps.split(",")]
    path = out / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": {}}
    if summary.get("device", options.device) != options.device:
        raise SystemExit(f"gpu.py: {out} holds results of --device {summary['device']}; choose another --out")
    # The table is asked again: it knows itself what is missing.
    todo = [s for s in wanted if s.name == "table" or summary["steps"].get(s.name, {}).get("state") != "passed"]
    if options.dry_run:
        total = sum(step.share for step in todo)
        for step in todo:
            limit = options.budget_seconds * step.share / total
            print(f"{step.name}, at most {limit:.0f} s or more:\n    {shlex.join(step.command(limit))}")
        return
    out.mkdir(parents=True, exist_ok=True)
    # Whoever ends this script ends its steps, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    summary |= {
        "device": options.device,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": shlex.join(["python", *sys.argv]),
        "gpu": gpu_name(),
    }
    for place, step in enumerate(todo):
        left = ends - time.monotonic()
        limit = left * step.share / sum(later.share for later in todo[place:])
        print(f"{step.name}: at most {limit:.0f} s …", flush=True)
        if limit < SHORTEST:
            summary["steps"][step.name] = {"state": "skipped: no time was left", "seconds": 0.0, "said": ""}
        else:
            summary["steps"][step.name] = do(step, out, limit, options.device)
        write_summary(out, summary)
        print(f"    {summary['steps'][step.name]['state']}; {summary['steps'][step.name]['said']}", flush=True)
    states = [summary["steps"].get(step.name, {}).get("state", "") for step in wanted]
    print(f"{out / 'summary.md'}")
    raise SystemExit(0 if all(state == "passed" for state in states) else 1)


if __name__ == "__main__":
    main()
