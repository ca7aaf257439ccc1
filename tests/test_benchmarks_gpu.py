"""The script for a GPU machine and that for long inputs: limits, going on, what is left after a kill, windows."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

import gpu
import long_inputs

ENDLESS = (
    "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "open(sys.argv[1], 'w').write(str(p.pid)); print('started', flush=True); time.sleep(600)"
)


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-c", *arguments]


def main(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out), "--device", "cpu", *more])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    return int(stop.value.code or 0)


def test_steps_pass_fail_and_are_ended_and_a_later_call_does_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, pid = tmp_path / "out", tmp_path / "pid"
    count = "import sys; open(sys.argv[1], 'a').write('x'); print('well')"
    steps = [
        gpu.Step("good", 1.0, lambda limit: python(count, str(tmp_path / "good")), lambda folder: {"bp_per_s": 7}),
        gpu.Step("bad", 1.0, lambda limit: python("print('no'); raise SystemExit(3)"), lambda folder: {}["missing"]),
        gpu.Step("endless", 0.02, lambda limit: python(ENDLESS, str(pid))),
        gpu.Step("table", 1.0, lambda limit: python(count, str(tmp_path / "table"))),
    ]
    monkeypatch.setattr(gpu, "steps", lambda out, device: steps)
    monkeypatch.setattr(gpu, "SHORTEST", 0.0)
    assert main(monkeypatch, out, "--budget-seconds", "300") == 1
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))["steps"]
    assert summary["good"]["state"] == "passed"
    assert summary["good"]["said"] == "well"
    assert summary["good"]["result"] == {"bp_per_s": 7}
    assert summary["bad"]["state"] == "failed: 3"
    assert summary["bad"]["result"] == "none (KeyError: 'missing')"
    assert summary["endless"]["state"].startswith("ended at its limit of ")
    assert summary["table"]["state"] == "passed"
    assert "| good | passed |" in (out / "summary.md").read_text(encoding="utf-8")
    deadline = time.monotonic() + 20
    while alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(pid.read_text())), "a process that a step had started lives on"

    steps[1:3] = [gpu.Step("bad", 1.0, lambda limit: python("print('now')"))]
    assert main(monkeypatch, out, "--budget-seconds", "300") == 0
    assert (tmp_path / "good").read_text() == "x"
    assert (tmp_path / "table").read_text() == "xx"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    # A dead process that nobody has waited for.
    return not (status.exists() and "State:\tZ" in status.read_text())


def test_summary_is_there_while_later_steps_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    look = "import json, sys; print(json.load(open(sys.argv[1]))['steps']['first']['state'])"
    steps = [
        gpu.Step("first", 1.0, lambda limit: python("pass")),
        gpu.Step("second", 1.0, lambda limit: python(look, str(out / "summary.json"))),
    ]
    monkeypatch.setattr(gpu, "steps", lambda out, device: steps)
    assert main(monkeypatch, out, "--budget-seconds", "300") == 0
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["steps"]["second"]["said"] == "passed"


def test_no_time_left_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(monkeypatch, tmp_path, "--budget-seconds", "1") == 1
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["steps"]
    assert list(summary) == ["triton-tests", "gpu-tests", "training", "long-inputs", "table"]
    assert {row["state"] for row in summary.values()} == {"skipped: no time was left"}


def test_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out"), "--dry-run"])
    gpu.main()
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for part in ("tests/ops/test_triton_backend.py", "-m gpu", "training.precision=bf16", "long_inputs.py", "table.py"):
        assert part in said


def test_speed_of_a_run_leaves_its_first_quarter_out(tmp_path: Path) -> None:
    lines = [
        {"split": "train", "step": s, "bp": 100 * s, "seconds": 9.0 if s <= 2 else 0.5, "loss": 1 / s}
        for s in range(1, 9)
    ]
    lines.insert(4, {"split": "validation", "step": 4, "bp": 400, "seconds": 50.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert gpu.training_speed(tmp_path) == {"steps": 8, "counted": 6, "bp_per_s": 200.0, "loss": 0.125}


@pytest.mark.parametrize(
    ("length", "windows"), [(131_072, 1), (131_073, 2), (196_608, 2), (196_609, 3), (1_000_000, 15)]
)
def test_plan_of_a_long_sequence_counts_windows_and_letters(length: int, windows: int) -> None:
    found = long_inputs.plan(length, 131_072)
    assert found["windows"] == windows
    assert found["once"] + found["twice"] + found["more"] == length
    assert found["computed"] == windows * 131_072 == found["once"] + 2 * found["twice"] + 3 * found["more"]
    assert (found["computed"] == length) == (windows == 1)


def test_a_short_long_sequence_is_embedded_in_windows() -> None:
    settings = {"model": None, "window": 300, "pooling": "mean", "device": "cpu", "threads": 1}
    found = long_inputs.embed_once(settings, 700)
    assert found["bp_per_s"] == pytest.approx(700 / found["seconds"])
    # At least the weights.
    assert found["peak_mib"] >= 1_088_928 * 4 / 2**20
