"""A run that is stopped, killed or damaged goes on as if nothing had happened."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from had.models import HADModel
from tests.dying import dying_script
from tests.training.conftest import TINY_STUDENT, TINY_TEACHER, Command

STEPS = 14


def lines(run: Path) -> list[dict]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def teacher_words(genome: Path, out: Path, *more: str) -> tuple[str, ...]:
    options = ("--genome", str(genome), "--out", str(out), "--threads", "1", "--device", "cpu")
    return ("teacher", "train", "teacher", *options, "--steps", str(STEPS), *more, *TINY_TEACHER)


@pytest.fixture(scope="module")
def uninterrupted(small_genome: Path, had_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = had_command(*teacher_words(small_genome, out))
    assert result.returncode == 0, result.stderr
    return out


def assert_same_run(run: Path, whole: Path) -> None:
    assert lines(run) == lines(whole)
    weights, expected = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    assert weights.keys() == expected.keys()
    for name in expected:
        assert weights[name].tobytes() == expected[name].tobytes(), name


def test_stopped_run_resumes_bit_for_bit(
    small_genome: Path, had_command: Command, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = had_command(*teacher_words(small_genome, out, "--stop-after", "6"))
    assert first.returncode == 0, first.stderr
    assert max(record["step"] for record in lines(out)) == 6
    again = had_command(*teacher_words(small_genome, out, "--resume", "auto"))
    assert again.returncode == 0, again.stderr
    assert_same_run(out, uninterrupted)


def test_killed_run_resumes_bit_for_bit(
    small_genome: Path, had_command: Command, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = teacher_words(small_genome, out, "training.log_every=1")
    (tmp_path / "killed.py").write_text(dying_script("had.training.state", "save_checkpoint", 3))
    killed = had_command(*words, launcher=(str(tmp_path / "killed.py"),))
    assert killed.returncode == -9, killed.stderr
    assert [path.name for path in sorted((out / "checkpoints").iterdir())][-1] == "step-00000008"
    assert not (out / "model").exists()
    again = had_command(*teacher_words(small_genome, out, "--resume", "auto"))
    assert again.returncode == 0, again.stderr
    assert_same_run(out, uninterrupted)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_checkpoint_is_skipped_with_a_sentence(
    small_genome: Path, had_command: Command, uninterrupted: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "run"
    assert had_command(*teacher_words(small_genome, out, "--stop-after", "10")).returncode == 0
    newest = out / "checkpoints" / "step-00000010" / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    newest.write_bytes(data if damage == "flip" else data[: len(data) // 3])
    again = had_command(*teacher_words(small_genome, out, "--resume", "auto"))
    assert again.returncode == 0, again.stderr
    assert "step-00000010" in again.stderr
    assert_same_run(out, uninterrupted)


def test_damaged_checkpoint_named_by_the_user_is_refused(
    small_genome: Path, had_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert had_command(*teacher_words(small_genome, out, "--stop-after", "4")).returncode == 0
    checkpoint = out / "checkpoints" / "step-00000004"
    (checkpoint / "state.json").write_text("{")
    before = (out / "metrics.jsonl").read_bytes()
    again = had_command(*teacher_words(small_genome, out, "--resume", str(checkpoint)))
    assert again.returncode == 2
    assert "step-00000004" in again.stderr
    assert "Traceback" not in again.stderr
    assert (out / "metrics.jsonl").read_bytes() == before


def test_a_student_knows_its_training_window_also_where_the_run_began_without_it(
    small_genome: Path, run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("pretrain", "laptop", "--genome", small_genome, "--out", out, "--steps", "6", "--device", "cpu")
    more = (*TINY_STUDENT, "objective.w_align=0")
    assert run(*words, "--stop-after", "4", *more)[0] == 0
    recipe = (out / "config.yaml").read_text()
    assert "  training_window: 60\n" in recipe
    (out / "config.yaml").write_text(recipe.replace("  training_window: 60\n", ""))
    code, text = run(*words, "--resume", "auto", *more)
    assert code == 0, text
    assert HADModel.from_pretrained(out).config.training_window == 60
    assert "windows: 60 bp" in (out / "model" / "README.md").read_text()
    config = json.loads((out / "model" / "config.json").read_text())
    del config["training_window"]
    (out / "model" / "config.json").write_text(json.dumps(config))
    assert HADModel.from_pretrained(out).config.training_window == 1020
