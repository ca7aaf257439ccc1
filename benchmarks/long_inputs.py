"""What it costs to embed one long sequence: seconds, peak memory, and how much of it is computed more than once.

    PYTHONPATH=src python benchmarks/long_inputs.py --out results/ --threads 2
    PYTHONPATH=src python benchmarks/long_inputs.py --out results/ --device cuda

Random letters; a student with random weights, or the one that ``--model`` names. Every length is embedded once, in a
process of its own, after a sequence of 1,000 letters that does not count. Writes ``long_inputs.md``, ``.csv`` and
``.json`` anew after every length; one that would not fit into what is left of the budget, judged by the seconds per
window of the one before, is written as skipped. A sequence up to the model's ``max_length`` is read in one pass, a
longer one in windows of that length that overlap by at least half (``had.models.embedding``).
"""

import argparse
import csv
import io
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cells import Unavailable
from had.files import atomic_write_text
from machine import as_markdown, describe, occasion
from presentation import number, table
from workers import Died, TookTooLong, Workers

LENGTHS = [131_072, 1_000_000]
STARTING = 300.0
COLUMNS = {
    "length": "bp",
    "windows": "windows",
    "computed": "letters computed",
    "once": "in one window",
    "twice": "in two",
    "more": "in three",
    "seconds": "seconds",
    "bp_per_s": "bp/s",
    "peak_mib": "peak MiB",
    "status": "",
}


def plan(length: int, window: int) -> dict[str, int]:
    """Windows of a sequence, letters computed in all, and letters by the number of windows they are in."""
    import numpy as np

    from had.models.embedding import window_starts

    starts = window_starts(length, window)
    size = min(length, window)
    steps = np.zeros(length + 1, dtype=np.int64)
    for start in starts:
        steps[start] += 1
        steps[start + size] -= 1
    times = np.cumsum(steps[:-1])
    counts = {"once": int((times == 1).sum()), "twice": int((times == 2).sum()), "more": int((times > 2).sum())}
    return {"windows": len(starts), "computed": len(starts) * size, **counts}


def settle(model: str | None, window: int | None) -> int:
    """Longest input that is computed in one pass."""
    return window or _load(model, window).config.max_length


def _load(name: str | None, window: int | None) -> Any:
    import torch

    import had

    torch.manual_seed(0)
    student = had.HADModel() if name is None else had.load(name)
    if window is not None:
        student.config.max_length = window
    return student.eval()


def embed_once(settings: dict[str, Any], length: int) -> dict[str, float]:
    """Seconds and peak memory of one sequence."""
    import numpy as np
    import torch

    from measure import Memory

    torch.set_num_threads(settings["threads"])
    student = _load(settings["model"], settings["window"]).to(settings["device"])
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    sequence = letters[np.random.default_rng(0).integers(0, 4, length)].tobytes().decode("ascii")
    student.embed([sequence[:1000]], settings["pooling"])
    memory = Memory(settings["device"])
    began = time.perf_counter()
    # What it gives lies in the CPU's memory: the device has finished.
    student.embed([sequence], settings["pooling"])
    seconds = time.perf_counter() - began
    weights = sum(x.numel() * x.element_size() for x in (*student.parameters(), *student.buffers()))
    return {"seconds": seconds, "bp_per_s": length / seconds, "peak_mib": memory.peak(weights) / 2**20}


def write(folder: Path, header: dict[str, Any], call: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """All three files."""
    atomic_write_text(
        folder / "long_inputs.json", json.dumps({"header": header, "occasion": call, "rows": rows}, indent=1) + "\n"
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(folder / "long_inputs.csv", text.getvalue())
    body = []
    for row in rows:
        whole = [f"{row[name]:,}" for name in ("length", "windows", "computed", "once", "twice", "more")]
        measured = [number(row.get(name)) for name in ("seconds", "bp_per_s", "peak_mib")]
        body.append([*whole, *measured, "" if row["status"] == "measured" else row["status"]])
    page = f"# Embedding one long sequence\n\n{as_markdown(header, [call])}\n{table(COLUMNS.values(), body)}"
    atomic_write_text(folder / "long_inputs.md", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")], default=LENGTHS)
    parser.add_argument("--model", help="a student that had.load knows; default: random weights")
    parser.add_argument("--window", type=int, help="letters of one pass; default: the model's max_length")
    parser.add_argument("--pooling", choices=("mean", "max", "none"), default="mean")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="default: PyTorch's own")
    parser.add_argument("--budget-seconds", type=float, default=3600)
    options = parser.parse_args()
    ends = time.monotonic() + options.budget_seconds
    options.out.mkdir(parents=True, exist_ok=True)
    workers = Workers("cpu", ["measure"]) if options.device == "cpu" else Workers("cuda")
    rows: list[dict[str, Any]] = []
    call = occasion()
    try:
        facts = workers.call("measure:describe_device", (options.device,), STARTING)
        settings = {name: getattr(options, name) for name in ("model", "window", "pooling", "device")}
        settings["threads"] = options.threads or facts["threads"]
        window = workers.call("long_inputs:settle", (options.model, options.window), STARTING)
        header = {**describe(), **facts, **settings, "model": options.model or "random weights", "window": window}
        per_window = None
        for length in tqdm(sorted(options.lengths), unit="sequence", disable=None):
            row: dict[str, Any] = {"length": length, **plan(length, window)}
            left = ends - time.monotonic()
            need = None if per_window is None else per_window * row["windows"]
            if left <= 0 or (need is not None and need > left):
                why = "is used up" if left <= 0 else f"has {left:.0f} s left; this would take about {need:.0f} s"
                row["status"] = f"skipped: the budget of {options.budget_seconds:.0f} s {why}"
            else:
                try:
                    row |= workers.call("long_inputs:embed_once", (settings, length), left)
                    row["status"] = "measured"
                    per_window = row["seconds"] / row["windows"]
                except TookTooLong:
                    row["status"] = f"skipped: took longer than the {left:.0f} s that were left of the budget"
                except Died as death:
                    row["status"] = f"skipped: {death}"
            rows.append(row)
            write(options.out, header, call, rows)
    except Unavailable as error:
        raise SystemExit(f"long_inputs.py: {error}") from error
    finally:
        workers.stop()
    print((options.out / "long_inputs.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
