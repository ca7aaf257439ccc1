"""`had pretrain` → model → `had evaluate`: equal numbers, and a folder of somebody else's is data, never code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import had
from had.errors import UserError
from had.models import ntv2_published
from had.models.teacher_loading import load_teacher
from had.training import devices
from tests.training.cache_cases import TEACHER, Run
from tests.training.conftest import TINY_STUDENT

Evaluate = Callable[..., tuple[int, str, dict]]
TRAINING = ("--device", "cpu", "--threads", "1", *TINY_STUDENT, "data.valid_contigs=[two]", "training.steps=2")


def pretrain_words(genome: Path, out: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("pretrain", "laptop", "--genome", genome, "--out", out, *TRAINING, *more)


@pytest.fixture
def evaluate(run: Run, small_genome: Path, tmp_path: Path) -> Evaluate:
    """Evaluate a folder: exit code, messages and report."""

    def call(model: Path, *more: str | Path) -> tuple[int, str, dict]:
        out = tmp_path / "report.json"
        data = ("--genome", small_genome, "--valid-contig", "two", "--split", "validation", "--window", "60")
        code, text = run("evaluate", model, *data, "--device", "cpu", "--threads", "1", "--out", out, *more)
        return code, text, json.loads(out.read_text()) if code == 0 else {}

    return call


@pytest.fixture(scope="module")
def trained(small_genome: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a short run with a teacher in a folder, to be copied by those who damage it."""
    from had.config import build
    from had.training import distillation, runs
    from had.training.pretraining import PretrainConfig, pretrain

    folder = tmp_path_factory.mktemp("trained")
    load_teacher(TEACHER).network.save_pretrained(folder / "teacher")
    values = {
        "data": {"genome": [str(small_genome)], "window": 60, "validation_windows": 4, "valid_contigs": ["two"]},
        "model": {"hidden_size": 16, "intermediate_size": 24, "recurrent_blocks": 1, "key_width": 8, "value_width": 8},
        "teacher": {"name": str(folder / "teacher")},
        "objective": {"fit_windows": 16},
        "training": {"steps": 1, "global_batch": 2, "precision": "float32"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "plot_losses", lambda *_: None)
        patch.setattr(distillation, "fit_markov", lambda *_: None)
        patch.setattr(distillation, "markov_sums", lambda *_: ({}, {}))
        options = runs.RunOptions(device="cpu", threads=1, quiet=True)
        pretrain(build(PretrainConfig, values), folder / "run", options)
    return folder


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run" / "model", tmp_path / "model"))


def change_facts(model: Path, **values: object) -> None:
    path = model / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_student_has_the_same_losses_in_its_run_and_in_had_evaluate(
    run: Run, evaluate: Evaluate, small_genome: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "run"
    words = pretrain_words(small_genome, out, "--teacher", TEACHER, f"training.precision={precision}")
    code, text = run(*words, "data.validation_windows=0")
    assert code == 0, text
    assert json.loads((out / "model/training.json").read_text())["teacher_options"] == {"precision": precision}
    code, text, found = evaluate(out / "model")
    assert code == 0, text
    there = json.loads((out / "validation.json").read_text())
    last = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    assert (last["split"], last["step"]) == ("validation", 2)
    for metric in ("loss_align", "loss_rec", "acc_rec"):
        # 413 tiles: 20 blocks of 20 and what is left.
        assert [found[metric][key] for key in ("windows", "blocks", "block")] == [413, 21, 20]
        assert there[metric]["model"] == pytest.approx(found[metric]["model"], rel=1e-12)
        assert there[metric]["model"][0] == pytest.approx(last[metric], rel=1e-12)
    # Earlier versions wrote the recipe's options, whatever the run computed in.
    change_facts(out / "model", teacher_options={})
    assert evaluate(out / "model")[::2] == (0, found)
    change_facts(out / "model", seed=1)
    code, text, _ = evaluate(out / "model")
    assert code == 2
    assert "other weights" in text


def test_a_runs_blocks_span_as_much_of_the_genome_as_those_of_all_tiles(
    run: Run, small_genome: Path, tmp_path: Path
) -> None:
    more = ("data.window=12", "data.validation_windows=500", "data.valid_contigs=[one]", "objective.w_align=0")
    code, text = run(*pretrain_words(small_genome, tmp_path / "run", *more))
    assert code == 0, text
    entry = json.loads((tmp_path / "run/validation.json").read_text())["loss_rec"]
    # One of 6 of the 3,320 tiles: 17 of them span 100 tiles.
    assert (entry["windows"], entry["block"]) == (500, 17)


@pytest.mark.parametrize("name", ["os:system", "own_teacher_in_a_folder:Harmful", "50m", "someone/teacher", "absent/x"])
def test_a_name_out_of_a_models_folder_runs_no_code_and_asks_no_network(
    evaluate: Evaluate,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_teacher_in_a_folder.py").write_text("open('ran', 'w')\nclass Harmful: ...\n")
    monkeypatch.setattr(ntv2_published, "_on_hub", lambda *_: (tmp_path / "ran").touch())
    change_facts(model, teacher=name, teacher_options={"command": "touch ran"})
    code, text, _ = evaluate(model)
    assert code == 2
    message = text.splitlines()[-1]
    assert "training.json" in message
    assert ("pass --teacher module:Class" if ":" in name else "pass --teacher NAME") in message
    assert not (tmp_path / "ran").exists()


def test_a_teacher_that_is_passed_replaces_the_name_in_the_folder(
    evaluate: Evaluate, model: Path, trained: Path
) -> None:
    change_facts(model, teacher="os:system")
    code, text, found = evaluate(model, "--teacher", trained / "teacher")
    assert code == 0, text
    assert "loss_align" in found


def test_a_student_without_facts_is_evaluated_on_its_reconstruction(evaluate: Evaluate, model: Path) -> None:
    whole = evaluate(model)[2]
    (model / "training.json").unlink()
    code, text, found = evaluate(model)
    assert code == 0, text
    assert "reconstruction alone" in text
    assert found == {name: whole[name] for name in ("loss_rec", "acc_rec")}
    code, text, _ = evaluate(model, "--teacher", "bundled")
    assert code == 2
    assert "training.json" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *[
            ("training.json", content)
            for content in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"objective": 3}', b'{"objective": {"w": 1}}')
        ],
        *[
            ("training.json", json.dumps({"objective": {}, **facts}).encode())
            for facts in ({}, {"teacher": 3.5}, {"teacher": "bundled", "teacher_options": []}, {"seed": "x"})
        ],
        ("projection.safetensors", None),
        ("projection.safetensors", b"x" * 30),
        ("decoder.safetensors", None),
        ("config.json", b"\xff"),
        ("config.json", b'{"model_type": "had", "hidden_size": "x"}'),
        ("config.json", b'{"model_type": "had", "hidden_size": 16.5}'),
    ],
)
def test_a_damaged_student_is_refused_with_the_files_name(
    evaluate: Evaluate, model: Path, file: str, content: bytes | None
) -> None:
    (model / file).unlink()
    if content is not None:
        (model / file).write_bytes(content)
    code, text, _ = evaluate(model)
    assert code == 2, text
    assert file in text.splitlines()[-1]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "decoder.safetensors", "projection.safetensors", "teacher", "teacher.bin"]
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_file_and_tensor(
    evaluate: Evaluate, model: Path, trained: Path, tmp_path: Path, file: str, value: float
) -> None:
    path, more = model / file, ()
    if file.startswith("teacher"):
        folder = Path(shutil.copytree(trained / "teacher", tmp_path / "teacher"))
        path, more = folder / "model.safetensors", ("--teacher", folder)
    tensors = load_file(path)
    name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[-1]
    tensors[name].view(-1)[-1] = value
    if file.endswith(".bin"):
        path.unlink()
        path = path.with_name("pytorch_model.bin")
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    code, text, _ = evaluate(model, *more)
    assert code == 2, text
    assert f"{path} holds NaN or infinity in {name}:" in text.splitlines()[-1]
    if file == "model.safetensors":
        with pytest.raises(UserError, match=name):
            had.load(model)


def test_a_run_is_not_resumed_with_another_teacher(run: Run, trained: Path, small_genome: Path, tmp_path: Path) -> None:
    teacher, out = Path(shutil.copytree(trained / "teacher", tmp_path / "teacher")), tmp_path / "run"
    words = pretrain_words(small_genome, out, "--teacher", teacher, "training.checkpoint_every=1")
    code, text = run(*words, "--stop-after", "1")
    assert code == 0, text
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    load_teacher(TEACHER, seed=1).network.save_pretrained(teacher)
    code, text = run(*words, "--resume", "auto")
    assert code == 2
    assert "the data 'teacher' are not the same" in text
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # A run of an earlier version goes on, with a sentence, and is checked from there on.
    facts = json.loads((out / "run.json").read_text())
    del facts["data"]["teacher"], facts["precision"]
    (out / "run.json").write_text(json.dumps(facts))
    code, text = run(*words, "--resume", "auto")
    assert code == 0, text
    assert "did not record its teacher and precision" in text
    load_teacher(TEACHER, seed=2).network.save_pretrained(teacher)
    code, text = run(*words, "--resume", "auto")
    assert code == 2
    assert "the data 'teacher' are not the same" in text


@pytest.mark.parametrize("native", [False, True])
def test_a_run_is_not_resumed_in_another_precision(
    run: Run, small_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    words = pretrain_words(small_genome, tmp_path / "run", "--teacher", TEACHER, "training.precision=auto")
    then, now = ("bf16", "float32") if native else ("float32", "bf16")
    monkeypatch.setattr(devices, "native_bf16", lambda _: native)
    code, text = run(*words, "--stop-after", "1")
    assert code == 0, text
    monkeypatch.setattr(devices, "native_bf16", lambda _: not native)
    code, text = run(*words, "--resume", "auto")
    assert code == 2
    assert f"the precision is {then} there and {now} here (pass training.precision={then})" in text
    assert "'teacher'" not in text
    code, text = run(*words, "--resume", "auto", f"training.precision={then}")
    assert code == 0, text
