"""Seconds and peak memory of a cell, in the process that computes it.

Seconds are the median of several passes after one of the same size that does not count; a pass of more than
``cell_seconds`` on a CPU is not repeated, and then the only thing before it is a pass over a short sequence. On a GPU
the clock stops when the device has finished.

Peak memory on a CPU is the high-water mark of the process during the passes, minus what the process held before the
inputs were made, plus the weights: what Python, PyTorch and compiled kernels take by themselves is not in it. On a GPU
it is PyTorch's own account of allocated memory, weights included.
"""

import ctypes
import gc
import logging
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

import flops
from cells import Cell, Unavailable
from contenders import Contender, Model, Pass, build
from had.errors import UserError

FEWEST, MOST = 3, 25
"""Passes that count."""
SHORT = 130
"""Letters of the sequence with which a contender is tried before it is measured."""
ALLOWED = {"float32": 1e-3, "bfloat16": 1e-1}
"""Largest difference of two contenders that compute the same thing, relative to the largest number."""


class Memory:
    """Peak memory between two moments, in bytes."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).malloc_trim(0)
            # The kernel forgets the high-water mark; getrusage would also keep that of the process we were forked from.
            # Where it refuses, the mark may be one that the imports left, and the result too high.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.before = psutil.Process().memory_info().rss

    def peak(self, weights: int) -> int:
        """The most since then, weights included."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        if sys.platform.startswith("linux"):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            high = 1024 * int(status.split("VmHWM:")[1].split()[0])
        elif sys.platform == "win32":
            high = psutil.Process().memory_info().peak_wset
        else:
            import resource

            high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return max(0, high - self.before) + weights


def clock(run: Pass, device: str) -> tuple[float, Tensor]:
    """Seconds of one pass, and its output."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    out = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, out


def repeat(once: Callable[[], float], cell_seconds: float, cuda: bool) -> list[float]:
    """Times of as many passes as fit into ``cell_seconds``, one and three at least, after one that does not count."""
    first = once()
    if first > cell_seconds and not cuda:
        return [first]
    times = [once()]
    while times[0] <= cell_seconds and len(times) < MOST and (len(times) < FEWEST or sum(times) < cell_seconds):
        times.append(once())
    return times


def weights_of(contender: Contender) -> int:
    """Bytes of parameters and buffers."""
    if contender.module is None:
        return 0
    tensors = [*contender.module.parameters(), *contender.module.buffers()]
    return sum(x.numel() * x.element_size() for x in tensors)


class _Notes(logging.Handler):
    """Collects what the dispatcher says of the backend that it chose."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def measure_cell(cell: Cell, cell_seconds: float) -> dict[str, Any]:
    """Seconds, peak memory and operations of a cell, as columns of the table."""
    notes = _Notes()
    logger = logging.getLogger("had.ops.gated_delta_rule")
    logger.setLevel(logging.INFO)
    logger.addHandler(notes)
    contender = build(cell)
    contender.make_pass(SHORT, 1)()
    if contender.module is not None:
        # Gradients are part of what a training pass takes.
        contender.module.zero_grad(set_to_none=True)
    memory = Memory(cell.device)
    run = contender.make_pass(cell.length, cell.batch)
    times = repeat(lambda: clock(run, cell.device)[0], cell_seconds, cell.device == "cuda")
    peak = memory.peak(weights_of(contender))
    seconds = statistics.median(times)
    operations = flops.count(cell, contender if isinstance(contender, Model) else None)
    return {
        "seconds": seconds,
        "bp_per_s": cell.letters / seconds,
        "peak_mib": peak / 2**20,
        "gflop": operations / 1e9,
        "gflop_per_s": operations / 1e9 / seconds,
        "repeats": len(times),
        "note": notes.lines[0] if notes.lines else "",
    }


def measure_ratio(cell: Cell, cell_seconds: float) -> dict[str, Any]:
    """Times of ``cell.against`` divided by those of the cell, the two run in turn; both first computed and compared."""
    contenders = [build(cell), build(replace(cell, what=cell.against))]
    for contender in contenders:
        contender.make_pass(SHORT, 1)()
    runs = [contender.make_pass(cell.length, cell.batch) for contender in contenders]
    pairs: list[tuple[float, float]] = []

    def once() -> float:
        (own, ours), (other, theirs) = (clock(run, cell.device) for run in runs)
        if not pairs:
            difference = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
            if not difference <= ALLOWED[cell.dtype]:
                raise ValueError(f"the two outputs differ by {difference:.1g} of the largest number")
        pairs.append((own, other))
        return own + other

    count = len(repeat(once, cell_seconds, cell.device == "cuda"))
    ratios = [other / own for own, other in pairs[-count:]]
    low, middle, high = statistics.quantiles(ratios, n=4) if count > 1 else (None, ratios[0], None)
    seconds = statistics.median(own for own, _ in pairs[-count:])
    return {"seconds": seconds, "repeats": count, "ratio": middle, "ratio_low": low, "ratio_high": high}


def measure_limit(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """GFLOP/s of a large square matrix product, the best of several: the limit that shares are of."""
    torch.set_num_threads(threads)
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best = min(clock(lambda: a @ b, device)[0] for _ in range(8))
    return {"size": size, "dtype": dtype, "gflop_per_s": 2 * size**3 / best / 1e9}


def describe_device(device: str) -> dict[str, Any]:
    """What only PyTorch knows of the machine: its own threads, and the GPU."""
    facts: dict[str, Any] = {"threads": torch.get_num_threads()}
    if device == "cuda":
        if not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA device here")
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_mib": properties.total_memory / 2**20,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return facts


def prepare(cells: list[Cell]) -> None:
    """Compute short versions of cells, so that what is compiled once and kept is compiled before the clock runs."""
    for cell in cells:
        measure(replace(cell, length=SHORT, batch=1), 0.0)


def measure(cell: Cell, cell_seconds: float) -> dict[str, Any]:
    """Columns of a cell; ``status`` says why there are no numbers where there are none."""
    torch.set_num_threads(cell.threads)
    try:
        found = (measure_ratio if cell.against else measure_cell)(cell, cell_seconds)
    except (Unavailable, UserError) as reason:
        return {"status": f"skipped: {reason}"}
    except Exception as fault:
        if isinstance(fault, torch.OutOfMemoryError) or "can't allocate memory" in str(fault):
            return {"status": "skipped: out of memory"}
        # Whatever a contender raises becomes its row; the other rows go on.
        return {"status": f"failed: {type(fault).__name__}: {str(fault).strip().split(chr(10))[0][:200]}"}
    return {"status": "measured", **found}
