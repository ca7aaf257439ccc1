"""A teacher's features in files: how a number is stored, what goes into which shard, and memory maps to read them.

Shape letters: n windows, S strands, T groups (6-mers) of a window, D teacher width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from os import PathLike
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from had.errors import UserError

FeatureDtype: TypeAlias = Literal["float32", "float16", "int8"]
FEATURE_DTYPES: tuple[FeatureDtype, ...] = ("float32", "float16", "int8")

_TORCH = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
# Names of safetensors: width in bytes, and the type of numpy.
_STORED = {"F64": (8, "<f8"), "I64": (8, "<i8"), "F32": (4, "<f4"), "F16": (2, "<f2"), "I8": (1, "i1")}
_CODE = {"float32": "F32", "float16": "F16", "int8": "I8"}
_STEPS = 127


def encode_features(features: Tensor, dtype: FeatureDtype) -> dict[str, Tensor]:
    """Store normalised features (…, D) float32 as ``values`` (…, D), and for int8 ``scales`` (…) float32.

    float32 is exact. float16 is off by at most |x|·2⁻¹¹ + 2⁻²⁵ per number x. int8 counts steps of 1/127 of the
    largest magnitude in the token (its scale), so it is off by at most half a step.
    """
    if dtype != "int8":
        return {"values": features.to(_TORCH[dtype])}
    scales = features.abs().amax(-1) / _STEPS
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))
    values = (features / steps[..., None]).round().clamp(-_STEPS, _STEPS)
    return {"values": values.to(torch.int8), "scales": scales}


def decode_features(stored: Mapping[str, Tensor]) -> Tensor:
    """Features (…, D) float32 of what `encode_features` gave, on its device."""
    values = stored["values"].float()
    return values * stored["scales"][..., None] if "scales" in stored else values


@dataclass(frozen=True)
class ShardLayout:
    """One array of features (n, S, T, D), cut along its windows into safetensors files.

    Attributes
    ----------
    name
        First part of the files' names.
    rows, strands, groups, width
        n, S, T, D.
    dtype
        How numbers are stored.
    rows_per_shard
        Windows of every shard but the last.
    """

    name: str
    rows: int
    strands: int
    groups: int
    width: int
    dtype: FeatureDtype
    rows_per_shard: int

    @property
    def shards(self) -> list[str]:
        """File names in the order of the rows."""
        return [f"{self.name}-{i:05d}.safetensors" for i in range(-(-self.rows // self.rows_per_shard))]

    def rows_of(self, shard: int) -> range:
        """Rows that a shard holds."""
        first = shard * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.rows))

    def shapes(self, shard: int) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of a shard: ``values`` and, for int8, ``scales``."""
        tokens = (len(self.rows_of(shard)), self.strands, self.groups)
        shapes: dict[str, tuple[int, ...]] = {"values": (*tokens, self.width)}
        return {**shapes, "scales": tokens} if self.dtype == "int8" else shapes

    def empty(self, shard: int) -> dict[str, Tensor]:
        """Tensors of a shard to be filled."""
        types = {"values": _TORCH[self.dtype], "scales": torch.float32}
        return {name: torch.empty(shape, dtype=types[name]) for name, shape in self.shapes(shard).items()}

    def shard_bytes(self, shard: int) -> int:
        """Size of a shard's file, known before it is written."""
        codes = {"values": _CODE[self.dtype], "scales": "F32"}
        return safetensors_bytes({name: (codes[name], shape) for name, shape in self.shapes(shard).items()})

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        n = len(self.shards)
        # All but the last are of one size.
        return self.shard_bytes(0) * (n - 1) + self.shard_bytes(n - 1) if n else 0


def safetensors_bytes(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> int:
    """Size of a safetensors file of tensors given as name → (dtype such as F16, shape)."""
    header, offset = {}, 0
    # In the order of the library: wide types first, then by name.
    for name, (code, shape) in sorted(tensors.items(), key=lambda item: (-_STORED[item[1][0]][0], item[0])):
        end = offset + prod(shape) * _STORED[code][0]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + offset


def bytes_per_token(width: int, dtype: FeatureDtype) -> int:
    """Bytes of one group's feature of ``width`` numbers, without the files' headers."""
    return width * _STORED[_CODE[dtype]][0] + (4 if dtype == "int8" else 0)


def map_shard(path: str | PathLike[str]) -> dict[str, NDArray]:
    """Memory-map the tensors of a shard, read-only.

    Raises
    ------
    had.errors.UserError
        The file is absent or no shard.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        return {
            name: np.memmap(
                path,
                dtype=_STORED[entry["dtype"]][1],
                mode="r",
                offset=8 + size + entry["data_offsets"][0],
                shape=tuple(entry["shape"]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as a shard of features ({error})") from error
