"""Several processes compute what one does."""

import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from had.launch import processes_asked_for
from tests.training.conftest import TINY_STUDENT, Command

ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port")
STEPS = 20


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def words(genome: Path, out: Path) -> tuple[str, ...]:
    options = ("--genome", str(genome), "--teacher", "random:16x2x2x24", "--out", str(out))
    run = ("--threads", "1", "--device", "cpu", "--steps", str(STEPS))
    precision = ("training.precision=float32", "training.optimizer.lr=3e-3", "training.log_windows=true")
    return ("pretrain", "laptop", *options, *run, *TINY_STUDENT, *precision)


def losses(run: Path) -> np.ndarray:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in records if r["split"] == "train"]
    return np.array([[r["loss"], r["loss_align"], r["loss_rec"]] for r in train])


def largest_relative_difference(run: Path, other: Path) -> float:
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (run, other))
    return max(float(np.abs(a[k] - b[k]).max() / np.abs(b[k]).max()) for k in b)


def windows(run: Path) -> list[set[str]]:
    return [set(path.read_text().splitlines()) for path in sorted(run.glob("windows-rank*.tsv"))]


@pytest.fixture(scope="module")
def one(small_genome: Path, had_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    result = had_command(*words(small_genome, out))
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.slow
def test_two_processes_equal_one(small_genome: Path, had_command: Command, one: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    result = had_command(*words(small_genome, out), launcher=(*ACCELERATE, free_port(), "-m", "had"))
    assert result.returncode == 0, result.stderr
    assert losses(out).shape == (STEPS, 3)
    np.testing.assert_allclose(losses(out), losses(one), atol=1e-4, rtol=0)
    assert largest_relative_difference(out, one) <= 1e-3
    first, second = windows(out)
    (whole,) = windows(one)
    assert first
    assert not first & second
    assert first | second == whole


@pytest.mark.slow
def test_without_gradient_reduction_the_comparison_fails(
    small_genome: Path, had_command: Command, one: Path, tmp_path: Path
) -> None:
    script = tmp_path / "unreduced.py"
    script.write_text(
        "import sys\n"
        "from accelerate import Accelerator\n"
        "Accelerator.prepare = lambda self, module: module\n"
        "from had.cli import main\n"
        "main()\n"
    )
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", str(script))
    out = tmp_path / "two"
    result = had_command(*words(small_genome, out), launcher=launcher)
    assert result.returncode == 0, result.stderr
    same_losses = np.allclose(losses(out), losses(one), atol=1e-4, rtol=0)
    assert not (same_losses and largest_relative_difference(out, one) <= 1e-3)


@pytest.mark.parametrize(
    ("environment", "parent", "expected"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, ["x", "--num_processes", "2"], 2),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, ["x", "--num-processes=3", "-m"], 3),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, ["x", "--num_processes", "2"], 1),
        ({"MASTER_ADDR": "127.0.0.1"}, ["x", "--num_processes", "2"], 1),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "h", "WORLD_SIZE": "2"},
            ["x", "--num_processes", "2"],
            1,
        ),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, [sys.executable], 1),
    ],
)
def test_processes_that_accelerate_left_out(environment: dict, parent: list[str], expected: int) -> None:
    assert processes_asked_for(environment, parent) == expected
