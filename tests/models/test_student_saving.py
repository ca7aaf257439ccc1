"""Saved students: the same bits back, and damaged folders are named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import had
from had.errors import RunFault, UserError
from had.models import CrossAttentionDecoder, HADConfig, HADForMaskedLM, HADModel, saving

CONFIG = HADConfig(hidden_size=16, intermediate_size=8, recurrent_blocks=1, key_width=8, value_width=8)


@pytest.fixture
def model() -> HADModel:
    torch.manual_seed(0)
    return HADModel(CONFIG)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_bit_comes_back(model, folder):
    for loaded in (HADModel.from_pretrained(folder), had.load(folder), had.load(str(folder))):
        assert loaded.config == model.config
        assert not loaded.training
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
        ids = torch.randint(7, 11, (2, 30))
        assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)


def test_config_says_what_it_is(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "had"
    assert config["hidden_size"] == 16
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_saving_again_replaces_and_removes_a_stale_decoder(model, folder):
    decoder = CrossAttentionDecoder(CONFIG)
    model.save_pretrained(folder, decoder)
    assert (folder / "decoder.safetensors").is_file()
    both = HADForMaskedLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(both.decoder.parameters(), decoder.parameters(), strict=True))
    with torch.no_grad():
        model.norm.weight += 1
    model.save_pretrained(folder)
    assert torch.equal(HADModel.from_pretrained(folder).norm.weight, model.norm.weight)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(UserError, match=r"decoder\.safetensors"):
        HADForMaskedLM.from_pretrained(folder)


def edit(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("norm.weight"), r"missing: norm\.weight"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "unexpected: extra"),
        (
            lambda tensors: tensors.update({"norm.weight": torch.ones(3)}),
            r"norm\.weight \(3,\) instead of \(16,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(folder, change, message):
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        HADModel.from_pretrained(folder)


def test_a_long_list_of_faults_is_cut(folder):
    edit(folder, dict.clear)
    with pytest.raises(UserError, match=r"and \d+ more"):
        HADModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_cut_files_are_named(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        HADModel.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        HADModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "JSON object"),
        ('{"model_type": "esm"}', "'esm'"),
        ('{"model_type": "had", "hiden_size": 3}', "hiden_size"),
        ('{"model_type": "had", "hidden_size": "x"}', r"config\.json: .hidden_size.: expected a whole number"),
        ('{"model_type": "had", "hidden_size": 0}', "hidden_size"),
    ],
)
def test_a_config_that_is_none_is_explained(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        HADModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such", "/no/such/folder", "a/b/c", ""])
def test_names_that_are_nothing_never_reach_the_network(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saving, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(UserError):
        had.load(name)


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saving, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match="runs/model"):
        had.load("runs/model")


def test_a_hub_name_is_asked_for_weights_config_and_what_is_known_of_them_only(monkeypatch, folder):
    asked = {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, allow_patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(saving, "snapshot_download", download)
    HADModel.from_pretrained("owner/had-1.1m", revision="v1")
    assert asked == {
        "name": "owner/had-1.1m",
        "revision": "v1",
        "allow_patterns": ["config.json", "*.safetensors", "README.md", "training.json", "finetuning.json"],
    }


def test_a_hub_that_refuses_is_the_users_to_know(monkeypatch):
    def refuse(*args, **options):
        raise OSError("401 Client Error\nmore lines")

    monkeypatch.setattr(saving, "snapshot_download", refuse)
    with pytest.raises(UserError, match="401 Client Error"):
        had.load("owner/private")


def test_the_bundled_student_loads_or_says_that_it_is_not_there(tmp_path, monkeypatch, model):
    monkeypatch.setattr(saving, "BUNDLED_FOLDER", tmp_path)
    with pytest.raises(UserError, match="student"):
        had.load()
    model.save_pretrained(tmp_path / "student")
    assert saving.bundled_models() == ["student"]
    assert had.load().config == CONFIG
    assert had.load("student").config == CONFIG


def test_a_file_is_no_folder(model, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(UserError, match="file"):
        HADModel.from_pretrained(tmp_path / "file")


def test_a_failed_save_leaves_the_old_model(model, folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        model.norm.weight += 1
    monkeypatch.setattr("had.files.write_durably", full)
    with pytest.raises(RunFault, match="No space left"):
        model.save_pretrained(folder)
    assert (HADModel.from_pretrained(folder).norm.weight == 1).all()
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_uploading_sends_the_saved_folder(model, monkeypatch):
    sent = {}

    class Hub:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            sent["repo"] = (repo_id, private)

        def upload_folder(self, repo_id, folder_path, commit_message):
            sent["model"] = HADModel.from_pretrained(folder_path)
            return "address"

    monkeypatch.setattr(saving, "HfApi", Hub)
    assert model.push_to_hub("owner/name", private=True, token="t") == "address"
    assert sent["repo"] == ("owner/name", True)
    assert torch.equal(sent["model"].norm.weight, model.norm.weight)
