"""The table of speed and memory: what is skipped and why, going on, growth, operations, and two real cells."""

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import flops
import measure
import table
from cells import HAD, RULE, Cell
from contenders import Model
from presentation import report
from results import Results, Row, forecast, growth
from workers import Died, TookTooLong, Workers

ROOT = Path(__file__).resolve().parents[1]
CELL = Cell("op", HAD, "forward", 128, 2, 1, "float32", "cpu")
HEADER = {"cpu": "made up", "versions": {"python": "3"}}


def open_results(folder: Path, setup: str = "aaaa") -> Results:
    results = Results(folder, setup)
    results.setups[setup] = {
        "header": HEADER,
        "occasions": [{"date": "today", "command": "python table.py", "load": "0.0"}],
        "limit": {"gflop_per_s": 50.0, "size": 2048, "dtype": "float32"},
    }
    return results


def at(*lengths: int, like: Cell = CELL) -> list[Cell]:
    return [replace(like, length=length, batch=1) for length in lengths]


def linear(cell: Cell, left: float) -> Row:
    """A contender of 1 ms and 1 MiB a letter."""
    seconds = 1e-3 * cell.letters
    return {
        "status": "measured", "seconds": seconds, "bp_per_s": 1e3, "peak_mib": float(cell.letters),
        "gflop": 10 * seconds, "gflop_per_s": 10.0, "repeats": 1,
    }  # fmt: skip


def fill(
    results: Results,
    cells: list[Cell],
    call: Callable[[Cell, float], Row] = linear,
    seconds: float = 1e6,
    free: float = 1e9,
) -> dict[int, str]:
    """Statuses by length."""
    table.fill(cells, results, table.Budget(seconds, 1.0), call, lambda: free)
    return {cell.length: results.rows()[cell]["status"] for cell in cells}


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_growth_of_a_power_law_is_its_exponent(power: float) -> None:
    found = growth([(2**n, 3e-7 * 2 ** (n * power)) for n in range(7, 18)])
    assert found is not None
    assert found[0] == pytest.approx(power)
    assert found[1:] == (2**14, 2**17)


def test_growth_looks_at_the_longest_octaves_only_and_needs_three_points() -> None:
    flat_then_square = [(2**n, 1.0 if n < 10 else 4.0 ** (n - 10)) for n in range(5, 14)]
    assert growth(flat_then_square)[0] == pytest.approx(2.0)
    assert growth([(128, 1.0), (256, 2.0)]) is None
    assert growth([(1, 1.0), (128, 1.0), (256, 2.0)]) is None


def test_forecast_goes_on_as_the_last_step_between_linear_and_square() -> None:
    assert forecast([], 100) is None
    assert forecast([(100, 1.0)], 50) is None
    assert forecast([(100, 1.0)], 200) == pytest.approx(4.0)
    assert forecast([(100, 1.0)], 200, from_one=1.0) == pytest.approx(2.0)
    assert forecast([(100, 1.0), (200, 1.1)], 400) == pytest.approx(2.2)
    assert forecast([(100, 1.0), (200, 16.0)], 400) == pytest.approx(64.0)
    assert forecast([(100, 1.0), (200, 2**1.5)], 400) == pytest.approx(8.0)


def test_what_does_not_fit_is_written_with_its_reason(tmp_path: Path) -> None:
    time_short = fill(open_results(tmp_path / "a"), at(1000, 2000, 1_000_000), seconds=60)
    assert [time_short[n] for n in (1000, 2000)] == ["measured"] * 2
    assert time_short[1_000_000].startswith("skipped: would take about 1000 s; ")
    memory_short = fill(open_results(tmp_path / "b"), at(1000, 2000, 4000), free=4500)
    assert memory_short[2000] == "measured"
    assert memory_short[4000] == "skipped: would need up to 4,800 MiB; 4,500 are free"
    none_left = fill(open_results(tmp_path / "c"), at(1000), seconds=0)
    assert none_left[1000] == "skipped: the budget of 0 s is used up"


def test_a_cell_that_dies_or_takes_too_long_does_not_end_the_table(tmp_path: Path) -> None:
    def call(cell: Cell, left: float) -> Row:
        if cell.length == 100:
            raise Died("out of memory")
        if cell.length == 200:
            raise TookTooLong
        return {"status": "failed: ValueError: no"} if cell.length == 300 else linear(cell, left)

    states = fill(open_results(tmp_path), at(100, 200, 300, 400), call, seconds=1000)
    assert states == {
        100: "skipped: out of memory",
        200: "skipped: took longer than the 1000 s that were left of the budget",
        300: "failed: ValueError: no",
        400: "measured",
    }


def test_a_later_call_goes_on_and_keeps_other_setups(tmp_path: Path) -> None:
    calls: list[int] = []

    def call(cell: Cell, left: float) -> Row:
        calls.append(cell.length)
        return linear(cell, left)

    fill(open_results(tmp_path), at(128, 256), call)
    fill(open_results(tmp_path), at(512), call, seconds=0)
    before = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()
    again = open_results(tmp_path)
    assert fill(again, at(128, 256, 512), call) == dict.fromkeys((128, 256, 512), "measured")
    assert calls == [128, 256, 512]
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[:3] == before[:3]
    assert again.rows()[at(256)[0]]["seconds"] == 0.256
    assert again.rows()[at(512)[0]]["share_of_limit"] == 0.2
    fill(open_results(tmp_path, "bbbb"), at(128), call)
    assert calls == [128, 256, 512, 128]
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        assert [(row["setup"], row["length"]) for row in csv.DictReader(file)] == [
            ("aaaa", "128"), ("aaaa", "256"), ("aaaa", "512"), ("bbbb", "128"),
        ]  # fmt: skip


def test_report_has_machine_growth_ratios_and_every_reason(tmp_path: Path) -> None:
    results = open_results(tmp_path)
    fill(results, at(128, 256, 512, 1024))
    ratio = replace(CELL, against=RULE)
    results.add(
        ratio, {"status": "measured", "seconds": 1.0, "repeats": 5, "ratio": 4.5, "ratio_low": 4, "ratio_high": 5}
    )
    results.add(replace(CELL, what="flash-linear-attention"), {"status": "skipped: fla is not installed"})
    text = report(results)
    for expected in (
        "- cpu: made up",
        "`python table.py`",
        "| op | had | forward | 1.00 (128 to 1,024) | 1.00 (128 to 1,024) |",
        "| op | forward | 128 | 2 | 4.5 | 4 to 5 | 5 |",
        "| flash-linear-attention | * |",
        "skipped: fla is not installed",
        "| had | 1,000 | 1,000 | 1,000 | 1,000 |",
        "| 20 | 1 |",
    ):
        assert expected in text, expected


def test_operations_of_attention_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = (torch.randn(2, 2, 40, 64, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert flops.attention_flops(40, 2, 128, False) == forward
    assert flops.attention_flops(40, 2, 128, True) == counter.get_total_flops()


def test_operations_of_the_student_are_its_products_and_the_rule() -> None:
    cell = Cell("model", HAD, "forward", 1000, 1, 1, "float32", "cpu")
    student = Model(cell)
    assert student.module is not None
    products = sum(p.numel() for n, p in student.module.named_parameters() if "proj" in n or "conv_weight" in n)
    rule = 4 * 2 * flops.rule_flops(1000, 2, False)
    by_hand = 2 * products * 1000 + flops.attention_flops(1000, 1, 128, False) + rule
    # PyTorch's convolution computes three letters more than there are.
    assert flops.count(cell, student) == pytest.approx(by_hand, rel=1e-3)
    assert flops.count(replace(cell, what=RULE), student) == flops.count(cell, student)
    trained = flops.count(replace(cell, kind="training"), student)
    assert trained == pytest.approx(3 * by_hand + rule / 7, rel=1e-3)


def test_peak_memory_is_what_was_taken_in_between() -> None:
    # More than the allocator keeps for itself.
    memory = measure.Memory("cpu")
    before = torch.ones(64 << 18)
    del before
    assert memory.peak(weights=1 << 20) == pytest.approx(65 << 20, abs=4 << 20)


def test_peak_memory_of_training_has_weights_and_gradients() -> None:
    # Nearly all of this network is one matrix of 21 MB.
    cell = Cell("model", "CNN", "training", 20_000, 1, 1, "float32", "cpu")
    weights = measure.weights_of(Model(cell)) / 2**20
    assert measure.measure(cell, 0.0)["peak_mib"] > 1.9 * weights
    assert weights < measure.measure(replace(cell, kind="forward"), 0.0)["peak_mib"] < 1.9 * weights


def test_repetitions_end_with_the_time_that_a_cell_has() -> None:
    def taking(seconds: float) -> Callable[[], float]:
        return lambda: seconds

    assert measure.repeat(taking(2.0), 1.0, cuda=False) == [2.0]
    assert measure.repeat(taking(2.0), 1.0, cuda=True) == [2.0]
    assert len(measure.repeat(taking(0.4), 1.0, cuda=False)) == 3
    assert len(measure.repeat(taking(0.1), 1.0, cuda=False)) in (10, 11)
    assert len(measure.repeat(taking(1e-6), 1.0, cuda=False)) == measure.MOST


def test_a_ratio_of_different_things_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAD_BACKEND", "chunked")
    cell = Cell("op", "had (chunked)", "forward", 40, 1, 1, "float32", "cpu", against="softmax attention")
    assert measure.measure(cell, 0.01)["status"].startswith("failed: ValueError: the two outputs differ by ")
    same = measure.measure(replace(cell, against=cell.what), 1e-9)
    assert same["status"] == "measured"
    assert same["ratio"] > 0


def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    too_long = Cell("model", "CNN", "forward", 20, 1, 1, "float32", "cpu")
    assert measure.measure(too_long, 0.01) == {"status": "skipped: it reads at least 57 bp"}
    monkeypatch.setattr("contenders.find_spec", lambda name: None)
    missing = replace(CELL, what="flash-linear-attention")
    assert measure.measure(missing, 0.01) == {"status": "skipped: fla is not installed"}


def test_a_worker_that_dies_or_hangs_is_told_apart() -> None:
    workers = Workers("cpu")
    try:
        with pytest.raises(Died, match="ended with code 3"):
            workers.call("os:_exit", (3,), 60)
        with pytest.raises(TookTooLong):
            workers.call("time:sleep", (60,), 0.5)
        assert workers.call("math:sqrt", (9.0,), 60) == 3
    finally:
        workers.stop()


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    script = (
        "import threading, time\n"
        "from workers import Workers\n"
        "workers = Workers('cpu')\n"
        "threading.Thread(target=workers.call, args=('time:sleep', (300,), 300), daemon=True).start()\n"
        "while workers._process is None or workers._process.pid is None: time.sleep(0.05)\n"
        "print(workers._process.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.is_running()
        parent.kill()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def run_table(out: Path, *more: str) -> list[dict[str, Any]]:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "table.py"), "--out", str(out), "--threads", "1", "--only", "op",
        "--what", "forward", "--rows", "had (chunked),softmax attention", "--letters", "64",
        "--cell-seconds", "0.001", *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with open(out / "table.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.timeout(900)
def test_two_cells_are_measured_and_not_measured_again(tmp_path: Path) -> None:
    first = run_table(tmp_path, "--lengths", "64")
    assert [(row["what"], row["status"], row["batch"]) for row in first] == [
        ("had (chunked)", "measured", "1"), ("softmax attention", "measured", "1"),
    ]  # fmt: skip
    for row in first:
        assert float(row["bp_per_s"]) == pytest.approx(64 / float(row["seconds"]), rel=1e-3)
        assert float(row["gflop_per_s"]) == pytest.approx(float(row["gflop"]) / float(row["seconds"]), rel=1e-3)
        assert float(row["share_of_limit"]) > 0
        assert 0 <= float(row["peak_mib"]) < 64
    again = run_table(tmp_path, "--lengths", "64,128", "--budget-seconds", "0")
    assert again[:2] == first
    assert [row["status"] for row in again[2:]] == ["skipped: the budget of 0 s is used up"] * 2
    assert "skipped: the budget of 0 s is used up" in (tmp_path / "table.md").read_text(encoding="utf-8")
