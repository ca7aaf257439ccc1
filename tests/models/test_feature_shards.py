"""Features in files: exact sizes, stated errors, and the same numbers back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from had.errors import UserError
from had.models.feature_shards import (
    FEATURE_DTYPES,
    ShardLayout,
    bytes_per_token,
    decode_features,
    encode_features,
    map_shard,
    safetensors_bytes,
)


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normalised rows, some with one dominating number, one of zeros only."""
    torch.manual_seed(seed)
    made = torch.randn(*shape)
    made[..., ::3, 0] *= 40
    made = torch.nn.functional.layer_norm(made, shape[-1:])
    made[..., 0, :] = 0
    return made


def test_float32_gives_the_same_bits_back() -> None:
    made = features(3, 2, 7, 33)
    assert torch.equal(decode_features(encode_features(made, "float32")), made)


def test_float16_is_within_half_a_unit_in_the_last_place() -> None:
    made = features(4, 2, 9, 64)
    error = (decode_features(encode_features(made, "float16")) - made).abs()
    assert (error <= made.abs() * 2**-11 + 2**-25).all()
    assert error.max() > 0


def test_int8_is_within_half_a_step_of_its_tokens_scale() -> None:
    made = features(4, 2, 9, 64)
    stored = encode_features(made, "int8")
    assert stored["values"].dtype == torch.int8
    error = (decode_features(stored) - made).abs()
    half_step = made.abs().amax(-1, keepdim=True) / 254
    assert (error <= half_step * (1 + 1e-4)).all()
    assert (error.amax() / half_step.amax()) > 0.5
    assert torch.equal(decode_features(stored)[..., 0, :], torch.zeros_like(made[..., 0, :]))


@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
@pytest.mark.parametrize(("rows", "groups", "width", "per_shard"), [(10, 7, 5, 4), (8, 170, 16, 8), (1, 1, 3, 100)])
def test_sizes_are_known_before_a_file_is_written(dtype, rows: int, groups: int, width: int, per_shard: int) -> None:
    layout = ShardLayout("training", rows, 2, groups, width, dtype, per_shard)
    made = features(rows, 2, groups, width)
    sizes, covered = [], []
    for i in range(len(layout.shards)):
        part = layout.rows_of(i)
        data = save(encode_features(made[part.start : part.stop], dtype))
        assert len(data) == layout.shard_bytes(i)
        assert {k: tuple(v.shape) for k, v in layout.empty(i).items()} == layout.shapes(i)
        sizes.append(len(data))
        covered += list(part)
    assert sum(sizes) == layout.n_bytes
    assert covered == list(range(rows))
    tokens = rows * 2 * groups
    assert layout.n_bytes - tokens * bytes_per_token(width, dtype) < 300 * len(sizes)


def test_size_of_a_table_of_wide_types() -> None:
    data = save({"sums": torch.zeros(40, 3, dtype=torch.float64), "counts": torch.zeros(40, dtype=torch.int64)})
    assert safetensors_bytes({"sums": ("F64", (40, 3)), "counts": ("I64", (40,))}) == len(data)


@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
def test_a_memory_map_holds_what_the_library_reads(tmp_path: Path, dtype) -> None:
    path = tmp_path / "shard.safetensors"
    path.write_bytes(save(encode_features(features(3, 2, 5, 4), dtype)))
    mapped, read = map_shard(path), load_file(path)
    assert mapped.keys() == read.keys()
    for name, tensor in read.items():
        assert torch.equal(torch.from_numpy(mapped[name].copy()), tensor)
        assert not mapped[name].flags.writeable


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\xff" * 100, (8).to_bytes(8, "little") + b"{}[]{}[]", b"short"],
    ids=["absent", "empty", "header too long", "no JSON", "no header"],
)
def test_what_is_no_shard_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "training-00007.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="training-00007"):
        map_shard(path)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"values": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    path = tmp_path / "shard.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(UserError, match="shard"):
        map_shard(path)
