"""Commands and recipes that make a small teacher cache and train from it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from had.config import build
from had.dna.alphabet import decode
from had.models.cached_teacher import Manifest
from had.training.cache_building import CacheOptions, cache_teacher
from had.training.pretraining import PretrainConfig
from tests.training.conftest import TINY_STUDENT

TEACHER = "random:16x2x2x24"
WINDOW = 60
SHARD_BYTES = 4_000  # some shards of some batches
SHARDS = ("--shard-mb", str(SHARD_BYTES / 2**20))
RUN = ("--device", "cpu", "--threads", "1", "training.precision=float32", "training.log_every=1")
DATA = ("data.slots=22", "data.validation_windows=40")
SMALL = (*RUN, *TINY_STUDENT, *DATA, "training.steps=8", "training.optimizer.lr=3e-3")
Run = Callable[..., tuple[int, str]]
FULL = "objective.teacher_view=full"
FIXED = "data.fixed_starts=true"


def cache_words(genome: Path, out: Path, *more: str | Path) -> tuple[str | Path, ...]:
    words = ("teacher", "cache", "laptop", "--genome", genome, "--teacher", TEACHER, "--out", out)
    return (*words, *SHARDS, *SMALL, *more)


def pretrain_words(genome: Path, out: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("pretrain", "laptop", "--genome", genome, "--teacher", TEACHER, "--out", out, *SMALL, *more)


def recipe(genome: Path, **data) -> PretrainConfig:
    values = {
        "data": {"genome": [str(genome)], "window": WINDOW, "validation_windows": 40, "slots": 22, **data},
        "teacher": {"name": TEACHER},
        "objective": {"fit_windows": 16},
        "training": {"global_batch": 4, "micro_batch": 2, "precision": "float32"},
    }
    return build(PretrainConfig, values)


def make(genome: Path, out: Path, dtype: str = "float32", **data) -> Manifest:
    options = CacheOptions(dtype, device="cpu", threads=1, quiet=True, shard_bytes=SHARD_BYTES)
    return cache_teacher(recipe(genome, **data), out, options)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def records(run_folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def losses(run_folder: Path) -> np.ndarray:
    return np.array([r["loss_align"] for r in records(run_folder) if r["split"] == "train"])


def assert_equal_runs(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    for name in ("model.safetensors", "decoder.safetensors", "projection.safetensors"):
        a, b = load_file(one / "model" / name), load_file(other / "model" / name)
        assert all(torch.equal(a[key], b[key]) for key in a)


def write_genome(path: Path, seed: int) -> Path:
    codes = np.random.default_rng(seed).integers(0, 4, 20_000).astype(np.uint8)
    path.write_text(f">one\n{decode(codes)}\n")
    return path
