"""What a teacher cache will hold, how large it will be and how long it will take, before anything is computed."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from had.dna.alphabet import GROUP, N_KMERS, reverse_complement
from had.errors import UserError
from had.models.cached_teacher import TABLE_FILE, Manifest
from had.models.feature_shards import FeatureDtype, bytes_per_token, encode_features, safetensors_bytes
from had.models.teachers import Teacher
from had.training.data import WindowData
from had.training.distillation import VALIDATION_BATCH, ObjectiveConfig, normalise_features
from had.training.loop import TrainingConfig, split_batch

SHARD_BYTES = 256 << 20
ASK_ABOVE_BYTES = 20_000_000_000
ASK_ABOVE_SHARE = 0.5
"""Of the free space."""
_TIMED_BATCHES, _TIMED_SECONDS = 3, 20.0


def teacher_batch(training: TrainingConfig) -> int:
    """Windows in one question to the teacher when a single process trains by this recipe."""
    return len(split_batch(training.global_batch, training.micro_batch, 0, 1)[0])


def window_facts(data: WindowData) -> dict[str, Any]:
    """What decides which windows a run reads: equal facts, equal windows in equal rows."""
    sampler = data.sampler
    rows = np.arange(sampler.slots)
    return {
        "genome": data.genome.digest,
        "length": sampler.length,
        "slots": sampler.slots,
        "all_slots": sampler.all_slots,
        "starts_seed": sampler.starts_seed,
        "starts": _sha256(sampler.starts_of_slots(sampler.slots_of_rows(rows))),
        "held_out": len(data.validation_starts),
        "held_out_starts": _sha256(data.validation_starts),
    }


def fit_facts(data: WindowData, objective: ObjectiveConfig) -> dict[str, Any]:
    """What, besides teacher and windows, decides the table of 6-mer means that a run fits."""
    config = data.config
    return {
        "fit_windows": objective.fit_windows,
        "align_positions": objective.align_positions,
        "mask": config.mask,
        "mask_fraction": config.mask_fraction,
        "rc_probability": config.rc_probability,
        "seed": data.seed,
    }


def plan(
    data: WindowData,
    teacher: Teacher,
    teacher_facts: dict[str, Any],
    objective: ObjectiveConfig,
    batch: int,
    dtype: FeatureDtype,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Manifest of the cache that is wanted, without files.

    Parameters
    ----------
    data
        With fixed starts.
    teacher
        Who is asked.
    teacher_facts
        ``name``, ``options`` and ``seed`` with which it was loaded.
    objective
        How the table of 6-mer means is fitted.
    batch
        Windows in one question. A shard holds whole batches, so a cache that is resumed asks the same questions.
    dtype
        How training features are stored; held-out ones are float32 always.
    shard_bytes
        Largest size of a shard, about.
    """

    def rows_per_shard(per_row: int, together: int) -> int:
        return max(1, shard_bytes // (per_row * together)) * together

    row = data.n_groups * bytes_per_token(teacher.width, dtype)
    held_out_row = data.n_groups * bytes_per_token(teacher.width, "float32")
    facts = {**teacher_facts, "digest": teacher.digest(), "licence": teacher.licence, "width": teacher.width}
    manifest = Manifest(
        # What JSON gives back must be equal to what it was given.
        json.loads(json.dumps(facts, default=str)),
        window_facts(data),
        {
            "dtype": dtype,
            "batch": batch,
            "rows_per_shard": rows_per_shard(2 * row, batch),
            "held_out_rows_per_shard": rows_per_shard(held_out_row, VALIDATION_BATCH),
        },
        fit_facts(data, objective),
    )
    return manifest


def predicted_bytes(manifest: Manifest) -> dict[str, int]:
    """Size of every file of a cache but the manifest, in the order in which they are made."""
    sizes: dict[str, int] = {}
    training, held_out = manifest.training, manifest.held_out
    for layout in (held_out, training):
        sizes |= {name: layout.shard_bytes(i) for i, name in enumerate(layout.shards)}
    width = manifest.teacher["width"]
    table = {"counts": ("I64", (N_KMERS,)), "sums": ("F64", (N_KMERS, width))}
    return {name: sizes[name] if name in sizes else safetensors_bytes(table) for name in manifest.missing}


def strand_codes(codes: NDArray[np.uint8], strand: int) -> NDArray[np.uint8]:
    """Letters (n, L) as they are, or (strand 1) reverse-complemented."""
    return reverse_complement(codes) if strand else codes


def seconds_per_window(
    teacher: Teacher, data: WindowData, batch: int, dtype: FeatureDtype, device: torch.device
) -> float:
    """Time of one window on one strand: teacher, encoding and checksum, measured on a few batches; not the disk's."""
    rows = np.arange(batch) % data.sampler.slots
    starts = data.sampler.starts_of_slots(data.sampler.slots_of_rows(rows))
    codes = data.genome.fetch(starts, data.sampler.length)
    begin, n = 0.0, 0
    # The first batch pays for what happens once.
    for i in range(1 + _TIMED_BATCHES):
        if i == 1:
            begin = time.monotonic()
        elif i > 1 and time.monotonic() - begin > _TIMED_SECONDS:
            break
        asked = torch.from_numpy(strand_codes(codes, i % 2)).to(device)
        stored = encode_features(normalise_features(teacher.features(asked, None)), dtype)
        hashlib.sha256(stored["values"].cpu().numpy().data).digest()
        n += i > 0
    return (time.monotonic() - begin) / (n * batch)


def n_questions(manifest: Manifest, missing: list[str]) -> int:
    """Windows that the teacher is still to be asked about, each strand counted."""
    training, held_out = manifest.training, manifest.held_out
    n = sum(2 * len(training.rows_of(i)) for i, name in enumerate(training.shards) if name in missing)
    n += sum(len(held_out.rows_of(i)) for i, name in enumerate(held_out.shards) if name in missing)
    return n + (manifest.fit["fit_windows"] if TABLE_FILE in missing else 0)


def describe(manifest: Manifest, sizes: dict[str, int], out: Path, free: int) -> str:
    """Say what is computed and how much it takes, in one sentence."""
    windows, teacher, dtype = manifest.windows, manifest.teacher, manifest.layout["dtype"]
    per_bp = bytes_per_token(teacher["width"], dtype) / GROUP
    there = f", {len(manifest.files)} files of it are there" if manifest.files else ""
    return (
        f"Features of {teacher['name']} (width {teacher['width']:,}) in {dtype}, {per_bp / 1e3:.3g} KB per bp and "
        f"strand: "
        f"{windows['slots']:,} of {windows['all_slots']:,} slots of {windows['length']:,} bp on both strands, "
        f"{windows['held_out']:,} held-out windows in float32{there}: {say_bytes(sum(sizes.values()))} to write into "
        f"{out}, where {say_bytes(free)} are free."
    )


def free_bytes(out: Path) -> int:
    """Free space of the disk on which a folder is or would be."""
    there = out.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def check_room(needed: int, free: int, out: Path, yes: bool) -> None:
    """Refuse what does not fit, and without ``yes`` what is large.

    Raises
    ------
    had.errors.UserError
        The cache needs more than is free; or more than 20 GB or half of what is free, and nobody said yes.
    """
    less = "or make a part of it with --share 0.1, --slots N or a --bed, or store it in --dtype int8"
    if needed > free:
        raise UserError(
            f"{out}: the cache needs {say_bytes(needed)} and {say_bytes(free)} are free there; use another disk, "
            f"{less}. Nothing was written."
        )
    if not yes and (needed > ASK_ABOVE_BYTES or needed > ASK_ABOVE_SHARE * free):
        raise UserError(
            f"{out}: the cache takes {say_bytes(needed)} of {say_bytes(free)} that are free there; say --yes if that "
            f"is meant, {less}. Nothing was written."
        )


def say_bytes(n: float) -> str:
    """Size in decimal units, such as 1.5 GB."""
    units = ["B", "KB", "MB", "GB"]
    while n >= 1000 and units:
        n /= 1000
        units.pop(0)
    return f"{n:.3g} {(units or ['TB'])[0]}"


def say_seconds(seconds: float) -> str:
    """Duration such as 12 s, 8 min, 3.5 h, 12 days."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}"
    return f"{seconds / 86_400:.2g} days"


def _sha256(starts: NDArray[np.int64]) -> str:
    return hashlib.sha256(starts.astype("<i8").tobytes()).hexdigest()
