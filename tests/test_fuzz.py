"""Damaged inputs of every kind: a sentence, the right exit code, nothing half written."""

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_damaged_inputs_end_with_a_sentence_and_the_right_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = Path(__file__).resolve().parents[1] / "scripts/fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    failed = fuzz.main(["--seed", "0", "--count", "64", "--keep", str(tmp_path)])
    assert not failed, capsys.readouterr().out
