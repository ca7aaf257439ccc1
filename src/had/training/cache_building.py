"""`had teacher cache`: ask a teacher about every window of a run once, on both strands, and keep its answers."""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from had.console import progress, say
from had.errors import Interrupted, RunFault, UserError
from had.files import atomic_write_bytes, sha256_of_file
from had.models.cached_teacher import MANIFEST_FILE, TABLE_FILE, Manifest, verify_files
from had.models.feature_shards import FEATURE_DTYPES, FeatureDtype, encode_features
from had.models.teacher_loading import load_teacher
from had.models.teachers import Teacher, check_window
from had.training.cache_plan import (
    SHARD_BYTES,
    check_room,
    describe,
    free_bytes,
    n_questions,
    plan,
    predicted_bytes,
    say_seconds,
    seconds_per_window,
    strand_codes,
    teacher_batch,
)
from had.training.cache_use import name_differences
from had.training.data import WindowData
from had.training.devices import choose_device, keep_freed_memory, set_threads
from had.training.distillation import VALIDATION_BATCH, ObjectiveConfig, fit_table, normalise_features
from had.training.locking import FolderLock
from had.training.pretraining import PretrainConfig, teacher_options
from had.training.provenance import differences

_LOCK_FILE = ".lock"


@dataclass
class CacheOptions:
    """How a cache is made."""

    dtype: FeatureDtype = "float16"
    """float32 (exact), float16 or int8."""
    slots: int | None = None
    """Use only so many slots, evenly spread."""
    share: float | None = None
    """Use only this part of the slots, above 0 and at most 1."""
    yes: bool = False
    """Write it even if it is large."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads; None: the machine's default."""
    dry_run: bool = False
    """Only say what would be computed and written."""
    quiet: bool = False
    """No progress bar and no remarks."""
    shard_bytes: int = SHARD_BYTES
    """Largest size of a shard, about."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.dtype not in FEATURE_DTYPES:
            raise UserError(f"--dtype is {', '.join(FEATURE_DTYPES)}; got {self.dtype!r}.")
        if self.slots is not None and self.share is not None:
            raise UserError("give --slots or --share, not both.")
        if self.slots is not None and self.slots < 1:
            raise UserError(f"--slots must be at least 1; got {self.slots}.")
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"--share must lie above 0 and at most at 1; got {self.share}.")
        if self.shard_bytes < 1:
            raise UserError("--shard-mb must be above 0.")


def cache_teacher(config: PretrainConfig, out: Path, options: CacheOptions) -> Manifest:
    """Make the cache ``out``, or go on with it; return its manifest.

    Parameters
    ----------
    config
        The recipe of the runs that will train from it: data, teacher, seed, batch, and how the table is fitted.
    out
        New, empty, or a cache of the same windows and teacher.
    options
        Storage, subset, device.

    Raises
    ------
    UserError
        Data, teacher or options cannot be used, the folder is another's, a file in it is damaged, or the cache is
        large and ``yes`` was not given. Nothing was written.
    RunFault
        The disk is full, or somebody interrupted; whole shards stay.
    """
    keep_freed_memory()
    set_threads(options.threads)
    data = _open_data(config, options)
    for line in data.facts():
        say(line)
    device = choose_device(options.device)
    asked = teacher_options(config, device)
    teacher = load_teacher(config.teacher.name, asked, device, config.seed)
    check_window(teacher, data.n_groups)
    batch = teacher_batch(config.training)
    objective = replace(config.objective, teacher_view="full")
    facts = {"name": config.teacher.name, "options": asked, "seed": config.seed}
    wanted = plan(data, teacher, facts, objective, batch, options.dtype, options.shard_bytes)
    manifest = _done_before(out, wanted)
    sizes = predicted_bytes(manifest)
    if sizes:
        free = free_bytes(out)
        say(describe(manifest, sizes, out, free))
        seconds = seconds_per_window(teacher, data, batch, options.dtype, device)
        n = n_questions(manifest, list(sizes))
        say(
            f"{n:,} windows at {seconds * 1e3:.3g} ms ({batch} at a time, device {device.type}, "
            f"{torch.get_num_threads()} thread(s)): about {say_seconds(n * seconds)}, besides the disk's time."
        )
        check_room(sum(sizes.values()), free, out, options.yes)
    if options.dry_run:
        return manifest
    with _locked(out):
        manifest = _done_before(out, wanted)
        if manifest.files:
            verify_files(out, manifest, options.quiet)
        if manifest.missing:
            _Builder(out, manifest, data, teacher, objective, device).build(options.quiet)
    say(f"{out} is complete, {len(manifest.files)} files. Train from it with had pretrain … --teacher-cache {out}.")
    return manifest


def _open_data(config: PretrainConfig, options: CacheOptions) -> WindowData:
    """The recipe's windows with starts that stay, and the subset of slots that was asked for."""
    fixed = replace(config.data, fixed_starts=True, slots=options.slots or config.data.slots)
    data = WindowData.open(fixed, config.seed, progress=not options.quiet)
    if options.share is None:
        return data
    slots = math.ceil(options.share * data.sampler.all_slots)
    return WindowData(data.genome, replace(fixed, slots=slots), config.seed)


def _done_before(out: Path, wanted: Manifest) -> Manifest:
    """The wanted manifest with what an earlier command has already made."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder; use another --out.")
    if not (out / MANIFEST_FILE).exists():
        if out.exists() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise UserError(f"{out} is not empty and holds no teacher cache; use another --out.")
        return wanted
    before = Manifest.load(out)
    if different := name_differences(differences(before.identity, wanted.identity)):
        raise UserError(
            f"{out} holds another cache: {'; '.join(different)}. Give the command that made it, or use another --out."
        )
    files = {name: entry for name, entry in before.files.items() if (out / name).exists()}
    return replace(before, files=files)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made a folder ({error.strerror or error}); use another --out.") from error
    lock = FolderLock(out / _LOCK_FILE)
    if not lock.acquire():
        raise UserError(f"{out}: another process is making this cache; wait for it, or use another --out.")
    try:
        yield
    finally:
        lock.release()


class _Builder:
    """Makes the files that a manifest lacks, one after another, each written in one piece."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        data: WindowData,
        teacher: Teacher,
        objective: ObjectiveConfig,
        device: torch.device,
    ) -> None:
        self.folder, self.manifest, self.data = folder, manifest, data
        self.teacher, self.objective, self.device = teacher, objective, device

    def build(self, quiet: bool) -> None:
        manifest, length = self.manifest, self.data.sampler.length
        missing = manifest.missing
        todo = n_questions(manifest, missing)
        done = n_questions(replace(manifest, files={}), replace(manifest, files={}).missing) - todo
        try:
            self._remove_leftovers()
            self._note_circumstances(missing[0])
            with progress((todo + done) * length, "asking the teacher", "bp", quiet=quiet) as bar:
                bar.skip(done * length)
                self._advance: Callable[[int], None] = lambda windows: bar(windows * length)
                self._held_out(missing)
                self._table(missing)
                self._training(missing)
        except KeyboardInterrupt:
            raise Interrupted(f"{self.folder}: interrupted. {self._saved()}") from None
        except OSError as error:
            raise RunFault(f"{error.filename or self.folder}: {error.strerror or error}. {self._saved()}") from error
        except RunFault as fault:
            raise RunFault(f"{fault} {self._saved()}") from fault

    def _saved(self) -> str:
        there = len(self.manifest.files)
        n = there + len(self.manifest.missing)
        return f"{there} of {n} files of the cache are whole; the same command goes on from there."

    def _remove_leftovers(self) -> None:
        """Parts that a killed command left; nobody else writes here while the lock is held."""
        for name in self.manifest.missing:
            for part in self.folder.glob(f".{name}.*.part"):
                part.unlink(missing_ok=True)

    def _note_circumstances(self, first_file: str) -> None:
        now = _circumstances(self.device)
        entries = self.manifest.circumstances
        before = {key: value for key, value in entries[-1].items() if key != "first_file"} if entries else now
        for key, (then, here) in differences(before, now).items():
            say(f"{key} is now {here}, it was {then}: the features may differ in the last bits.")
        if not entries or before != now:
            entries.append({"first_file": first_file, **now})
        self.manifest.save(self.folder)

    def _held_out(self, missing: list[str]) -> None:
        """Validation windows, in the batches in which a run without a cache asks about them."""
        layout, codes = self.manifest.held_out, self.data.validation_codes
        for i, name in enumerate(layout.shards):
            if name not in missing:
                continue
            parts = []
            rows = layout.rows_of(i)
            for first in range(rows.start, rows.stop, VALIDATION_BATCH):
                part = codes[first : min(first + VALIDATION_BATCH, rows.stop)]
                parts.append(self._ask(part).cpu())
                self._advance(len(part))
            self._write(name, encode_features(torch.cat(parts)[:, None], layout.dtype))

    def _table(self, missing: list[str]) -> None:
        if TABLE_FILE in missing:
            table = fit_table(self.teacher, self.data, self.objective, self.device)
            self._advance(self.objective.fit_windows)
            path = self.folder / TABLE_FILE
            table.save(path)
            self._record(TABLE_FILE, path.stat().st_size, sha256_of_file(path))

    def _training(self, missing: list[str]) -> None:
        layout, sampler = self.manifest.training, self.data.sampler
        batch = self.manifest.layout["batch"]
        for i, name in enumerate(layout.shards):
            if name not in missing:
                continue
            rows, tensors = layout.rows_of(i), layout.empty(i)
            for first in range(rows.start, rows.stop, batch):
                n = min(batch, rows.stop - first)
                # Every question is of the same shape: the last one repeats its last window.
                asked = np.minimum(np.arange(first, first + batch), rows.stop - 1)
                codes = self.data.genome.fetch(sampler.starts_of_slots(sampler.slots_of_rows(asked)), sampler.length)
                for strand in (0, 1):
                    encoded = encode_features(self._ask(strand_codes(codes, strand))[:n], layout.dtype)
                    for key, values in encoded.items():
                        tensors[key][first - rows.start : first - rows.start + n, strand] = values.cpu()
                self._advance(2 * n)
            self._write(name, tensors)

    def _ask(self, codes: np.ndarray) -> Tensor:
        return normalise_features(self.teacher.features(torch.from_numpy(codes).to(self.device), None))

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        atomic_write_bytes(self.folder / name, data)
        self._record(name, len(data), hashlib.sha256(data).hexdigest())

    def _record(self, name: str, size: int, sha256: str) -> None:
        self.manifest.files[name] = {"bytes": size, "sha256": sha256}
        self.manifest.save(self.folder)


def _circumstances(device: torch.device) -> dict[str, Any]:
    from had import __version__

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "had": __version__,
    }
