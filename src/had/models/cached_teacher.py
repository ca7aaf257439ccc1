"""A teacher whose answers are read from a folder: the cache that ``had teacher cache`` writes.

Layout of the folder::

    manifest.json                   what the features are of, and size and sha256 of every file below
    training-00000.safetensors …    (n, 2, T, D): windows of the slots, forward and reverse-complemented
    held-out-00000.safetensors …    (n, 1, T, D) float32: the validation windows
    table.safetensors               mean features per 6-mer, as a run fits them on training windows

Features are normalised per token, as the alignment loss compares them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from had.console import progress
from had.dna.alphabet import GROUP
from had.errors import UserError
from had.files import atomic_write_text, sha256_of_file
from had.models.feature_shards import ShardLayout, map_shard

FORMAT = 1
MANIFEST_FILE, TABLE_FILE = "manifest.json", "table.safetensors"
STORED = "stored_"
"""Prefix of the keys under which a batch carries what was stored."""
_OPEN_SHARDS = 256
"""Memory maps held at a time: each takes one file handle, of which systems allow about a thousand."""


@dataclass
class Manifest:
    """What a cache holds; all but ``circumstances`` and ``files`` decides whether it is the right one."""

    teacher: dict[str, Any]
    """name, digest, licence, width, options, seed."""
    windows: dict[str, Any]
    """genome (digest), length, slots, all_slots, starts_seed, starts (digest), held_out, held_out_starts (digest)."""
    layout: dict[str, Any]
    """dtype, batch (windows in one question to the teacher), rows_per_shard, held_out_rows_per_shard."""
    fit: dict[str, Any]
    """How the table of 6-mer means was fitted."""
    circumstances: list[dict[str, Any]] = field(default_factory=list)
    """Device, threads and versions, one entry each time they changed, with the first file made so."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File name → bytes, sha256."""

    @property
    def identity(self) -> dict[str, Any]:
        """The part that must be equal for two caches to be the same."""
        return {"teacher": self.teacher, "windows": self.windows, "layout": self.layout, "fit": self.fit}

    @property
    def digest(self) -> str:
        """Sha256 (hex) of identity and contents."""
        return _sha256([self.identity, self.files])

    @property
    def training(self) -> ShardLayout:
        """Layout of the training windows' features."""
        return self._layout("training", self.windows["slots"], 2, self.layout["dtype"], self.layout["rows_per_shard"])

    @property
    def held_out(self) -> ShardLayout:
        """Layout of the validation windows' features."""
        return self._layout("held-out", self.windows["held_out"], 1, "float32", self.layout["held_out_rows_per_shard"])

    def _layout(self, name: str, rows: int, strands: int, dtype: Any, rows_per_shard: int) -> ShardLayout:
        groups = self.windows["length"] // GROUP
        return ShardLayout(name, rows, strands, groups, self.teacher["width"], dtype, rows_per_shard)

    @property
    def missing(self) -> list[str]:
        """Files that are still to be made."""
        return [name for name in (*self.held_out.shards, TABLE_FILE, *self.training.shards) if name not in self.files]

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` in one piece."""
        body = {**asdict(self), "files": dict(sorted(self.files.items()))}
        signed = {"format": FORMAT, "manifest": body, "sha256": _sha256(body)}
        atomic_write_text(folder / MANIFEST_FILE, json.dumps(signed, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``manifest.json``.

        Raises
        ------
        had.errors.UserError
            There is none, it is damaged, or another version of had wrote it.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} is no teacher cache (it has no {MANIFEST_FILE}); make one with had teacher cache."
            )
        try:
            signed = json.loads(path.read_text(encoding="utf-8"))
            if signed["format"] != FORMAT:
                raise UserError(
                    f"{path} is of format {signed['format']}, this had reads {FORMAT}; make the cache again."
                )
            if signed["sha256"] != _sha256(signed["manifest"]):
                raise ValueError("its checksum is wrong")
            return cls(**signed["manifest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); make the cache again in another folder.") from error


class CachedTeacher:
    """Stands where a `had.models.teachers.Teacher` does, and knows the windows of its cache alone.

    Attributes
    ----------
    folder, manifest
        Where the features are and what they are of.
    name, licence, width
        The teacher's.
    max_groups : int
        Groups of the cached windows.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.name: str = manifest.teacher["name"]
        self.licence: str = manifest.teacher["licence"]
        self.width: int = manifest.teacher["width"]
        self.max_groups: int = manifest.windows["length"] // GROUP
        self._map = lru_cache(_OPEN_SHARDS)(lambda name: map_shard(folder / name))

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> Self:
        """Open a finished cache; checksums are left to `verify`.

        Raises
        ------
        had.errors.UserError
            There is no cache, it is not finished, or a file is absent or of another size.
        """
        folder = Path(folder)
        manifest = Manifest.load(folder)
        if missing := manifest.missing:
            n = len(manifest.files) + len(missing)
            raise UserError(
                f"{folder}: this cache is not finished ({len(manifest.files)} of {n} files); give the same "
                "had teacher cache command again, which goes on where it stopped."
            )
        for name in manifest.files:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is gone; give the same had teacher cache command to make it anew.")
            check_size(folder, manifest, name)
        return cls(folder, manifest)

    def verify(self, quiet: bool = False) -> None:
        """Compare the sha256 of every file with the recorded one.

        Raises
        ------
        had.errors.UserError
            A file is damaged; the message names it.
        """
        verify_files(self.folder, self.manifest, quiet)

    def digest(self) -> str:
        """Identify the teacher whose features these are."""
        return str(self.manifest.teacher["digest"])

    def to(self, device: torch.device | str) -> Self:
        """Return itself: stored features go wherever the batch goes."""
        return self

    def features(self, codes: Tensor, hidden: Tensor | None) -> Tensor:
        """Refuse: a cache is asked for windows by their rows (`training`, `held_out`), not by their letters."""
        raise RuntimeError("a cached teacher holds the features of its own windows only: read them by their rows")

    def training(self, rows: NDArray[np.integer], reverse: NDArray[np.bool_]) -> dict[str, Tensor]:
        """What is stored of training windows (n,) on the strand wanted, as a batch carries it (CPU)."""
        return self._read(self.manifest.training, rows, reverse.astype(np.int64))

    def held_out(self, first: int, last: int) -> dict[str, Tensor]:
        """What is stored of validation windows first … last - 1, as a batch carries it (CPU)."""
        rows = np.arange(first, last)
        return self._read(self.manifest.held_out, rows, np.zeros_like(rows))

    def _read(self, layout: ShardLayout, rows: NDArray[np.integer], strands: NDArray[np.integer]) -> dict[str, Tensor]:
        rows = np.asarray(rows)
        if rows.size and (rows.min() < 0 or rows.max() >= layout.rows):
            raise IndexError(f"rows of the {layout.name} features lie in 0 … {layout.rows - 1}")
        shards, names = rows // layout.rows_per_shard, layout.shards
        found: dict[str, NDArray] = {}
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            local = rows[here] - shard * layout.rows_per_shard
            for name, tensor in self._map(names[shard]).items():
                part = tensor[local, strands[here]]
                if name not in found:
                    found[name] = np.empty((len(rows), *part.shape[1:]), part.dtype)
                found[name][here] = part
        return {STORED + name: torch.from_numpy(array) for name, array in found.items()}


def verify_files(folder: Path, manifest: Manifest, quiet: bool = False) -> None:
    """Compare size and sha256 of every recorded file with the record; see `CachedTeacher.verify`."""
    total = sum(entry["bytes"] for entry in manifest.files.values())
    with progress(total, "checking the teacher cache", "B", quiet=quiet) as done:
        for name, entry in manifest.files.items():
            check_size(folder, manifest, name)
            if sha256_of_file(folder / name) != entry["sha256"]:
                raise damaged(folder / name, "its sha256 is not the recorded one")
            done(entry["bytes"])


def check_size(folder: Path, manifest: Manifest, name: str) -> None:
    """Compare a file's size with the recorded one; the error names the file."""
    size, wanted = (folder / name).stat().st_size, manifest.files[name]["bytes"]
    if size != wanted:
        raise damaged(folder / name, f"it has {size:,} bytes instead of {wanted:,}")


def damaged(path: Path, why: str) -> UserError:
    """Say that a file of a cache is damaged and how to heal the cache."""
    return UserError(
        f"{path} is damaged ({why}); delete this file and give the same had teacher cache command again, which makes "
        "it anew."
    )


def stored_in(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stored features that a batch carries, without the prefix; empty where it carries none."""
    return {key.removeprefix(STORED): value for key, value in batch.items() if key.startswith(STORED)}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
