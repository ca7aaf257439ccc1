"""Held-out reports: intervals over blocks of neighbours, and words where there is none."""

import json

import numpy as np
import pytest

from had.errors import RunFault
from had.training.held_out import Scores, as_lines, report


def scores(n: int, lead: float = 0.5) -> dict[str, Scores]:
    """Losses of a model and, each ``lead`` larger on average, of a baseline; neighbours are alike in runs of 40."""
    rng = np.random.default_rng(0)
    model = 10 * np.repeat(rng.normal(1, 0.1, -(-n // 40)), 40)[:n]
    return {"loss": Scores(np.full(n, 10.0), model, {"mean": model + 10 * lead + rng.normal(0, 0.01, n)})}


@pytest.mark.parametrize(
    ("n", "size", "blocks"), [(6000, 100, 60), (2000, 100, 20), (1999, 99, 21), (100, 5, 20), (39, 1, 39), (7, 1, 7)]
)
def test_blocks_are_smaller_where_there_would_be_fewer_than_twenty(n: int, size: int, blocks: int) -> None:
    entry = report(scores(n))["loss"]
    assert (entry["windows"], entry["block"], entry["blocks"]) == (n, size, blocks)
    assert entry["better"] == ["mean"]
    line, other = as_lines({"loss": entry})
    assert f"on {n:,} held-out windows, {blocks} blocks of {size}" in line
    assert ("the intervals are too narrow" in line) == (blocks < 20)
    assert other.endswith("], better")


def test_an_interval_over_blocks_is_wider_than_one_over_windows_that_are_alike() -> None:
    wide, narrow = (report(scores(6000), block)["loss"]["model"] for block in (100, 1))
    assert wide[0] == pytest.approx(narrow[0])
    # Runs of 40 equal windows: 150 units instead of 6,000, so √40 as wide.
    assert wide[2] - wide[1] > 4 * (narrow[2] - narrow[1])


def test_one_window_gives_no_interval_and_no_verdict() -> None:
    result = report(scores(1))
    json.dumps(result, allow_nan=False)
    entry = result["loss"]
    assert entry["better"] is None
    assert entry["model"][1:] == entry["baselines"]["mean"][1:] == entry["difference"]["mean"][1:] == [None, None]
    text = "\n".join(as_lines(result))
    assert "which gives no interval" in text
    assert "nan" not in text
    assert "better" not in text
    assert text.endswith("difference -0.4999")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_gives_no_numbers_is_a_fault_in_words(value: float) -> None:
    broken = scores(50)
    broken["loss"].model[7] = value
    with pytest.raises(RunFault, match="loss is NaN or infinite on 1 of 50 held-out windows"):
        report(broken)
