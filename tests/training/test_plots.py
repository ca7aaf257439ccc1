"""The picture of the losses."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from had.training.plots import plot_losses


def synthetic_run(steps: int) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0).normal(size=(steps, 2))
    records: list[dict[str, Any]] = [
        {"split": "baseline", "step": 0, "name": "mean vector", "loss_align": 0.32},
        {"split": "baseline", "step": 0, "name": "6-mer means", "loss_align": 0.117},
        {"split": "baseline", "step": 0, "name": "base frequencies", "loss_rec": 1.375},
        {"split": "baseline", "step": 0, "name": "order-5 Markov", "loss_rec": 1.35},
    ]
    for step in range(1, steps + 1):
        align = 0.24 + 0.7 * math.exp(-step / (0.06 * steps)) + 0.012 * noise[step - 1, 0]
        rec = 1.33 + 0.12 * math.exp(-step / (0.15 * steps)) + 0.01 * noise[step - 1, 1]
        record = {"split": "train", "step": step, "bp": step * 32640, "loss": align + rec}
        records.append({**record, "loss_align": align, "loss_rec": rec})
        if step % max(1, steps // 8) == 0:
            validation = {"loss": align + rec + 0.02, "loss_align": align + 0.01, "loss_rec": rec + 0.01}
            records.append({"split": "validation", "step": step, **validation})
    return records


def colours(path: Path) -> int:
    from PIL import Image

    return len(np.unique(np.asarray(Image.open(path).convert("RGBA")).view(np.uint32)))


def test_a_run_becomes_a_png_with_three_panels(tmp_path: Path) -> None:
    from PIL import Image

    plot_losses(synthetic_run(300), tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    width, height = Image.open(tmp_path / "losses.png").size
    assert width > 3 * height
    assert colours(tmp_path / "losses.png") > 50


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"split": "train", "step": 1, "loss": None}],
        [{"split": "train", "step": 1, "bp": 10, "loss": 2.0, "loss_rec": 2.0}],
        [{"split": "validation", "step": 5, "loss": 1.0, "loss_align": math.nan}],
        [{"split": "train", "step": s, "loss": 1.0} for s in (1, 2)] + [{"split": "train", "step": 3, "loss": None}],
    ],
)
def test_short_and_broken_logs_are_drawn_too(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    plot_losses(records, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_plotting_leaves_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from had.training.plots import plot_losses; early = 'matplotlib' in sys.modules; "
        "plot_losses([], sys.argv[1]); print(early, 'matplotlib.pyplot' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "losses.png")]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split() == [
        "False",
        "False",
    ]
