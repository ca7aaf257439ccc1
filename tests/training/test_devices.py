"""Where a run computes: its precision is its own, whatever ran before it in the same process."""

from pathlib import Path

import pytest
import torch

from had.training import devices
from had.training.devices import make_accelerator


def test_runs_of_one_process_choose_their_own_precision(tmp_path: Path) -> None:
    for precision, mixed in (("bf16", "bf16"), ("float32", "no"), ("bf16", "bf16")):
        accelerator = make_accelerator(precision, "cpu", [], tmp_path)
        assert accelerator.mixed_precision == mixed
        weight = torch.ones(4, 4)
        with accelerator.autocast():
            assert (weight @ weight).dtype == (torch.bfloat16 if mixed == "bf16" else torch.float32)


@pytest.mark.parametrize(("native", "mixed"), [(True, "bf16"), (False, "no")])
def test_auto_takes_bf16_where_it_is_native(native: bool, mixed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "native_bf16", lambda _: native)
    assert make_accelerator("auto", "cpu", [], None).mixed_precision == mixed
