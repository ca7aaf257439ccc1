"""What storing a teacher's features in fewer bits costs: errors against a float32 cache, and losses of runs.

had teacher cache laptop --genome G.fa --slots 1000 --dtype float32 --out F32       (and float16, int8)
had pretrain laptop --genome G.fa --teacher-cache F32 --out RUN-F32 objective.teacher_view=full …
python benchmarks/teacher_cache.py F32 F16 I8 --runs RUN-ONLINE RUN-F32 RUN-F16 RUN-I8
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from had.models.cached_teacher import CachedTeacher, stored_in
from had.models.feature_shards import decode_features

_ROWS = 50


def features(cache: CachedTeacher, first: int) -> torch.Tensor:
    """Features of some rows on both strands (2, n, T, D)."""
    rows = np.arange(first, min(first + _ROWS, cache.manifest.training.rows))
    read = [cache.training(rows, np.full(len(rows), strand)) for strand in (False, True)]
    return torch.stack([decode_features(stored_in(part)) for part in read])


def errors(exact: CachedTeacher, other: CachedTeacher) -> str:
    """Largest and mean squared difference of all numbers, as a row of a table."""
    largest = squared = squares = 0.0
    for first in range(0, exact.manifest.training.rows, _ROWS):
        a, b = features(exact, first), features(other, first)
        largest = max(largest, float((a - b).abs().max()))
        squared += float((a - b).double().square().sum())
        squares += float(a.double().square().sum())
    manifest = other.manifest
    size = sum(manifest.files[name]["bytes"] for name in manifest.training.shards)
    bp = 2 * manifest.windows["slots"] * manifest.windows["length"]
    return f"{manifest.layout['dtype']} | {size / bp:.1f} | {largest:.1e} | {(squared / squares) ** 0.5:.1e}"


def losses(run: Path, split: str) -> np.ndarray:
    """Alignment losses of the log (n,)."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([r["loss_align"] for r in map(json.loads, lines) if r["split"] == split])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", help="The first is the float32 one.")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="The first is the one to compare with.")
    options = parser.parse_args()
    exact, *others = [CachedTeacher.open(folder) for folder in options.caches]
    print("dtype | bytes per bp and strand | largest error | root mean square error, relative")
    print("---|---|---|---")
    for other in (exact, *others):
        print(errors(exact, other))
    if options.runs:
        print("\nrun | steps | largest relative difference of a training loss | held-out loss | its difference")
        print("---|---|---|---|---")
    for run in options.runs:
        first = options.runs[0]
        train = np.abs(losses(run, "train") / losses(first, "train") - 1)
        held_out = losses(run, "validation")[-1]
        difference = held_out - losses(first, "validation")[-1]
        print(f"{run.name} | {len(train)} | {train.max():.1e} | {held_out:.5f} | {difference:+.1e}")


if __name__ == "__main__":
    main()
