"""Nucleotide Transformer checkpoints: what is read, refused, written, found on the Hub, and verified."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from had.errors import RunFault, UserError
from had.files import sha256_of_file
from had.models import NucleotideTransformer, ntv2_checkpoints, ntv2_published, ntv2_verification
from had.models.ntv2_checkpoints import unused_shapes
from had.models.ntv2_published import LICENCE, PUBLISHED, PublishedModel, find_checkpoint, published_model
from had.models.ntv2_verification import verify_teacher
from tests.models.ntv2_reference import Reference, tiny_config, tiny_network

IDS = torch.tensor([[3, 8, 9, 10, 70]])


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A folder as the Hub has them, tensors that nothing uses included."""
    folder = tmp_path / "checkpoint"
    network = tiny_network(tiny_config(max_position_embeddings=9))
    network.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    shapes = unused_shapes(vars(network.config))
    unused = {key: torch.ones(shape) for key, shape in shapes.items()}
    save_file({**weights, **unused}, folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch, tmp_path):
    """Nothing shown or recorded yet, and messages reach caplog whatever other tests set up."""
    monkeypatch.setattr(ntv2_published, "_notices_shown", set())
    monkeypatch.setenv("HAD_CACHE", str(tmp_path / "had-cache"))
    monkeypatch.setattr(logging.getLogger("had"), "propagate", True)


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def as_torch_file(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def logits(network: NucleotideTransformer) -> torch.Tensor:
    with torch.no_grad():
        return network(IDS).logits


def test_a_checkpoint_of_the_publishers_format_loads_and_is_frozen_in_nothing(checkpoint):
    network = NucleotideTransformer.from_pretrained(checkpoint)
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(logits(network), logits(tiny_network()))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_loaded_network_does_not_follow_its_file(checkpoint, kind):
    if kind == "bin":
        as_torch_file(checkpoint)
    path = find_checkpoint(checkpoint).weights
    network = NucleotideTransformer.from_pretrained(checkpoint)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(logits(network), logits(tiny_network()))


def test_the_micro_checkpoint_survives_saving(shared, tmp_path):
    network = NucleotideTransformer.from_pretrained(shared / "ntv2" / "micro")
    network.save_pretrained(tmp_path / "copy")
    original = load_file(shared / "ntv2" / "micro" / "model.safetensors")
    copy = load_file(tmp_path / "copy" / "model.safetensors")
    assert original.keys() - copy.keys() == unused_shapes(vars(network.config)).keys()
    assert all(torch.equal(copy[key], original[key]) for key in copy)
    config = json.loads((shared / "ntv2" / "micro" / "config.json").read_text())
    written = json.loads((tmp_path / "copy" / "config.json").read_text())
    ignored = {"auto_map", "architectures", "transformers_version"}
    assert {k: v for k, v in config.items() if k not in ignored}.items() <= written.items()
    assert "model_type" not in written


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_stored_in_the_dtype_asked_for(tmp_path, dtype):
    network = tiny_network()
    network.save_pretrained(tmp_path / "saved", dtype)
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == str(dtype)[6:]
    loaded = NucleotideTransformer.from_pretrained(tmp_path / "saved")
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype).float())
    assert NucleotideTransformer.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).decoder.weight.dtype == (
        torch.bfloat16
    )


def test_dtypes_that_cannot_hold_the_weights_are_refused(tmp_path):
    network = tiny_network()
    with pytest.raises(ValueError, match="float64"):
        network.save_pretrained(tmp_path / "saved", torch.float64)
    with torch.no_grad():
        network.decoder.bias[0] = 1e6
    with pytest.raises(ValueError, match="too large for float16"):
        network.save_pretrained(tmp_path / "saved", torch.float16)
    assert not (tmp_path / "saved").exists()
    network.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="floating-point"):
        NucleotideTransformer.from_pretrained(tmp_path / "saved", dtype=torch.int64)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    tiny_network().save_pretrained(tmp_path)

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(ntv2_checkpoints, "save_file", fail)
    with pytest.raises(RunFault, match="no space left"):
        tiny_network(seed=1).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(logits(NucleotideTransformer.from_pretrained(tmp_path)), logits(tiny_network()))


def test_a_file_is_no_place_to_save_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        tiny_network().save_pretrained(tmp_path / "file")


QUERY = "esm.encoder.layer.1.attention.self.query.bias"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop(QUERY), f"missing: {QUERY}"),
        (lambda w: w.pop("lm_head.decoder.weight"), "missing: lm_head.decoder.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "unexpected: extra"),
        (lambda w: w.update({f"{QUERY}.more": torch.ones(1)}), f"unexpected: {QUERY}.more"),
        (lambda w: w.update({QUERY: torch.ones(23)}), rf"{QUERY} \(23,\) instead of \(24,\)"),
        (
            lambda w: w.update({"esm.embeddings.position_embeddings.weight": torch.ones(8, 24)}),
            r"position_embeddings.weight \(8, 24\) instead of \(9, 24\)",
        ),
        (
            lambda w: w.update({"esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq": torch.ones(3)}),
            r"inv_freq \(3,\) instead of \(4,\)",
        ),
        (lambda w: w.update({QUERY: torch.ones(24, dtype=torch.int64)}), "int64"),
    ],
)
def test_any_other_key_or_shape_is_an_error_that_names_it(checkpoint, kind, edit, message):
    edit_weights(checkpoint, edit)
    if kind == "bin":
        as_torch_file(checkpoint)
    with pytest.raises(UserError, match=message) as error:
        NucleotideTransformer.from_pretrained(checkpoint)
    assert str(checkpoint) in str(error.value)


def test_many_faulty_keys_are_listed_in_part(checkpoint):
    edit_config(checkpoint, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"missing: .* and \d+ more"):
        NucleotideTransformer.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_dropout": True}, "token_dropout is true"),
        ({"emb_layer_norm_before": True}, "emb_layer_norm_before is true"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"add_bias_fnn": True}, "add_bias_fnn"),
        ({"position_embedding_type": "absolute"}, 'position_embedding_type is "absolute"'),
        ({"position_embedding_type": "absent"}, "position_embedding_type is null"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"is_folding_model": True}, "is_folding_model"),
        ({"mask_token_id": 32}, "mask_token_id"),
        ({"model_type": "had"}, "type 'had'"),
        ({"hidden_size": "absent"}, "lacks hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 25}, "multiple of twice num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive"),
    ],
)
def test_a_config_that_the_network_does_not_implement_is_refused(checkpoint, values, message):
    edit_config(checkpoint, **values)
    with pytest.raises(UserError, match=message) as error:
        NucleotideTransformer.from_pretrained(checkpoint)
    assert str(checkpoint / "config.json") in str(error.value)


def test_options_left_out_of_the_config_are_as_published(checkpoint):
    names = ("token_dropout", "emb_layer_norm_before", "tie_word_embeddings", "add_bias_fnn", "pad_token_id")
    edit_config(checkpoint, **dict.fromkeys(names, "absent"))
    NucleotideTransformer.from_pretrained(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_broken_config_is_refused(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json .*JSON"):
        NucleotideTransformer.from_pretrained(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 20, 5000])
def test_damaged_weights_are_refused(checkpoint, name, keep):
    if name.endswith("bin"):
        as_torch_file(checkpoint)
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged") as error:
        NucleotideTransformer.from_pretrained(checkpoint)
    assert str(path) in str(error.value)


def test_a_torch_file_is_read_where_there_is_no_other(checkpoint):
    as_torch_file(checkpoint)
    assert torch.equal(logits(NucleotideTransformer.from_pretrained(checkpoint)), logits(tiny_network()))


class _Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("bare", [True, False])
def test_code_in_a_torch_file_is_refused_and_does_not_run(checkpoint, tmp_path, bare):
    state = {**load_file(checkpoint / "model.safetensors"), "attack": _Attack(tmp_path / "trace")}
    (checkpoint / "model.safetensors").unlink()
    if bare:
        (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(state["attack"], protocol=2))
    else:
        torch.save(state, checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match="run code"):
        NucleotideTransformer.from_pretrained(checkpoint)
    assert not (tmp_path / "trace").exists()


def test_a_torch_file_that_holds_no_named_tensors_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save([torch.ones(3)], checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match="tensors by name"):
        NucleotideTransformer.from_pretrained(checkpoint)


def test_folders_without_a_checkpoint_are_refused_with_a_hint(tmp_path, checkpoint, monkeypatch):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        find_checkpoint(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copytree(checkpoint, tmp_path / "run" / "model")
    with pytest.raises(UserError, match=r"did you mean .*run.model"):
        find_checkpoint(tmp_path / "run")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        find_checkpoint(checkpoint)
    with pytest.raises(UserError, match="is a file"):
        find_checkpoint(checkpoint / "config.json")
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere", "75m", "run/absent", "a/b/c", ""):
        with pytest.raises(UserError):
            find_checkpoint(name)


def test_the_bundled_teacher_is_found_once_it_is_there(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(ntv2_published, "BUNDLED_FOLDER", tmp_path / "absent")
    with pytest.raises(UserError, match="not part of this installation"):
        NucleotideTransformer.from_pretrained("bundled")
    monkeypatch.setattr(ntv2_published, "BUNDLED_FOLDER", checkpoint)
    NucleotideTransformer.from_pretrained("bundled")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A Hub cache without network; call it to put a checkpoint's files there."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repository: str, revision: str, *files: Path) -> Path:
        snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, snapshot)
        return snapshot

    return put


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_models_come_from_the_pinned_commits_in_the_cache(checkpoint, hub_cache, size):
    pinned = {
        "50m": "81b29e5786726d891dbf929404ef20adca5b36f1",
        "100m": "f34324c6fde36a4f635f0f1f06cac5d25acd6798",
        "250m": "8040e28eedfb7a9d769de536b61b265c18585f17",
        "500m": "06615c1660c892fc199840c18123f8385b3542a8",
    }
    repository = f"InstaDeepAI/nucleotide-transformer-v2-{size}-multi-species"
    hub_cache(repository, pinned[size], checkpoint / "config.json", checkpoint / "model.safetensors")
    for name in (size, size.upper(), f"ntv2-{size}", f"nt-v2-{size}", repository):
        files = find_checkpoint(name)
        assert (files.repository, files.revision) == (repository, pinned[size])
    network = NucleotideTransformer.from_pretrained(size)
    assert network.licence == "CC BY-NC-SA 4.0"
    assert torch.equal(logits(network), logits(tiny_network()))


def test_the_main_branch_of_250m_is_read_from_its_torch_file(checkpoint, hub_cache):
    as_torch_file(checkpoint)
    main = "c0f0359229f36ff6bc3a021247eefe0a9c344bd1"
    files = (checkpoint / "config.json", checkpoint / "pytorch_model.bin")
    hub_cache(PUBLISHED["250m"].repository, main, *files)
    NucleotideTransformer.from_pretrained("250m", revision=main)


@pytest.mark.parametrize("name", ["500m", "somebody/something"])
def test_what_is_not_cached_offline_is_refused_with_what_to_do(hub_cache, name):
    model = published_model(name)
    with pytest.raises(UserError, match="hf download") as error:
        NucleotideTransformer.from_pretrained(name)
    assert (model.revision if model else "main") in str(error.value)


def test_a_repository_without_weights_in_the_cache_is_refused(checkpoint, hub_cache):
    hub_cache(PUBLISHED["50m"].repository, PUBLISHED["50m"].revision, checkpoint / "config.json")
    with pytest.raises(UserError, match="hf download"):
        NucleotideTransformer.from_pretrained("50m")


def put_500m(checkpoint: Path, hub_cache) -> Path:
    model = PUBLISHED["500m"]
    return hub_cache(model.repository, model.revision, checkpoint / "config.json", checkpoint / "model.safetensors")


def test_the_licence_of_the_publishers_weights_is_shown_once_and_stays_with_them(
    checkpoint, hub_cache, tmp_path, caplog
):
    put_500m(checkpoint, hub_cache)
    with caplog.at_level(logging.INFO, "had"):
        for _ in range(2):
            network = NucleotideTransformer.from_pretrained("500m")
    assert caplog.text.count("CC BY-NC-SA 4.0") == 1
    network.save_pretrained(tmp_path / "derived")
    assert NucleotideTransformer.from_pretrained(tmp_path / "derived").licence == LICENCE


def test_a_copy_of_a_published_folder_keeps_its_licence_and_an_own_network_has_none(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    files = find_checkpoint(checkpoint)
    assert ntv2_published.stated_licence(files, config) == ""
    auto_map = {"AutoModelForMaskedLM": "modeling_esm.EsmForMaskedLM"}
    copied = {**config, **PUBLISHED["50m"].sizes(), "auto_map": auto_map}
    assert ntv2_published.stated_licence(files, copied) == LICENCE


def test_the_first_checksum_seen_is_recorded_and_a_change_is_warned_of(checkpoint, hub_cache, caplog):
    snapshot = put_500m(checkpoint, hub_cache)
    weights = snapshot / "model.safetensors"
    first = sha256_of_file(weights)
    with caplog.at_level(logging.INFO, "had"):
        NucleotideTransformer.from_pretrained("500m")
    assert f"no published checksum; recorded sha256 {first}" in caplog.text
    caplog.clear()
    NucleotideTransformer.from_pretrained("500m")
    assert "sha256" not in caplog.text
    edit_weights(snapshot, lambda w: w["lm_head.bias"].add_(1))
    for _ in range(2):
        caplog.clear()
        NucleotideTransformer.from_pretrained("500m")
        assert f"expected {first}" in caplog.text
        assert sha256_of_file(weights) in caplog.text


def test_an_unwritable_cache_folder_does_not_stop_loading(checkpoint, hub_cache, tmp_path, monkeypatch, caplog):
    put_500m(checkpoint, hub_cache)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HAD_CACHE", str(tmp_path / "file"))
    NucleotideTransformer.from_pretrained("500m")
    assert "could not be recorded" in caplog.text


def test_weights_other_than_the_published_ones_are_warned_of(checkpoint, hub_cache, caplog):
    model = PUBLISHED["50m"]
    hub_cache(model.repository, model.revision, checkpoint / "config.json", checkpoint / "model.safetensors")
    NucleotideTransformer.from_pretrained("50m")
    assert "expected 17e75af297556ea56828716d8aa539e8f12b8b625547204b74171ab91aa33569" in caplog.text


@pytest.fixture
def tiny_published(tmp_path, monkeypatch) -> Path:
    """A folder whose network stands for a published one, with its recorded features by the slow reference."""
    network = tiny_network(tiny_config(vocabulary=4107))
    network.save_pretrained(tmp_path / "tiny")
    model = PublishedModel("50m", "0" * 40, 24, 2, 20, 0, num_attention_heads=3)
    monkeypatch.setattr(ntv2_published, "PUBLISHED", {"50m": model})
    pooled = Reference(tmp_path / "tiny").hidden_states(np.array([3, 369, 369, 369]), None)[-1].mean(0)
    sha256 = {"model.safetensors": sha256_of_file(tmp_path / "tiny" / "model.safetensors")}
    record = {"revision": "0" * 40, "sha256": sha256, "values": pooled.tolist()}
    book = {"sequence": "ATTCCGATTCCGATTCCG", "models": {"50m": record}}
    monkeypatch.setattr(ntv2_published, "oracles", lambda: book)
    monkeypatch.setattr(ntv2_verification, "oracles", lambda: book)
    return tmp_path / "tiny"


def test_verification_passes_the_recorded_network(tiny_published):
    report = verify_teacher(tiny_published)
    assert report.passed
    assert report.sha256 == report.published_sha256
    assert report.size == "50m"
    assert "sha256    " + report.sha256 + " (as published)" in str(report)


def test_verification_fails_other_weights(tiny_published):
    edit_weights(tiny_published, lambda w: w["esm.embeddings.word_embeddings.weight"][369].mul_(1.001))
    report = verify_teacher(tiny_published)
    assert report.passed is False
    assert report.max_difference > report.tolerance == 1e-4
    assert report.sha256 != report.published_sha256
    assert "NOT as published" in str(report)


def test_verification_says_where_there_is_no_oracle(checkpoint, hub_cache):
    put_500m(checkpoint, hub_cache)
    assert "no published oracle" in str(verify_teacher(checkpoint))
    report = verify_teacher("500m")
    assert report.size == "500m"
    assert report.passed is None
    assert report.max_difference is None
    assert "no published oracle" in str(report)


def test_the_shipped_record_is_complete_and_is_that_of_the_reference_data(shared):
    book = json.loads((shared / "ntv2" / "real_weights_oracles.json").read_text())
    shipped = ntv2_published.oracles()
    for name in ("source", "sequence", "input_ids", "pooling"):
        assert shipped[name] == book[name]
    for size, record in shipped["models"].items():
        original = book["models"][size]
        np.testing.assert_array_equal(np.float32(record["values"]), np.float32(original["values"]))
        assert len(record["values"]) == PUBLISHED[size].hidden_size
        assert original["checkpoint_sha256"] in record["sha256"].values()
        assert record["revision"] == original["revision"]
    assert shipped["models"].keys() == {"50m", "100m", "250m"}
