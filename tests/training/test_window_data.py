"""The windows of a run: which seeds they follow, and what is held out."""

import numpy as np
import pytest

from had.dna import Genome, WindowSampler
from had.training.data import DataConfig, WindowData

WINDOW = 60


@pytest.fixture(scope="module")
def genome() -> Genome:
    return Genome.from_sequences({"x": "".join(np.random.default_rng(7).choice(list("ACGT"), 12_000))})


def data(genome: Genome, seed: int = 0, **options) -> WindowData:
    return WindowData(genome, DataConfig(genome=["x"], window=WINDOW, **options), seed)


@pytest.mark.parametrize("mask", ["group", "nucleotide"])
def test_windows_strands_and_masks_follow_the_seed(genome: Genome, mask: str) -> None:
    indices = np.arange(40)
    one, same, other = (data(genome, seed, mask=mask) for seed in (1, 1, 2))
    for ours, again, others in zip(one.train(indices), same.train(indices), other.train(indices), strict=True):
        assert (ours == again).all()
        assert not (ours == others).all()
    assert (one.validation_codes == other.validation_codes).all()
    assert not (one.validation_hidden == other.validation_hidden).all()


def test_training_windows_are_those_of_the_sampler_on_the_training_part(genome: Genome) -> None:
    run = data(genome, 5, rc_probability=0.25)
    sampler = WindowSampler(run.splits.train, WINDOW, 5, 0.25)
    assert (run.train(np.arange(200))[0] == sampler.codes(genome, np.arange(200))).all()


@pytest.mark.parametrize("mask", ["group", "nucleotide"])
def test_masks_of_held_out_windows_are_not_those_of_training_windows_of_the_same_index(
    genome: Genome, mask: str
) -> None:
    run = data(genome, 3, mask=mask)
    n = len(run.validation_hidden)
    hidden = run.train(np.arange(n))[1]
    # Two unrelated masks share 15 % of what each hides.
    assert (run.validation_hidden & hidden).sum() < 0.4 * hidden.sum()


def test_held_out_windows_are_evenly_spread_tiles_read_forward(genome: Genome) -> None:
    every = data(genome, validation_windows=0)
    (start, end), *more = every.splits.validation
    assert not more
    assert every.validation_starts.tolist() == list(range(start, end - WINDOW + 1, WINDOW))
    few = data(genome, validation_windows=4)
    assert set(few.validation_starts) <= set(every.validation_starts)
    assert few.validation_starts[[0, -1]].tolist() == every.validation_starts[[0, -1]].tolist()
    gaps = np.diff(few.validation_starts)
    assert gaps.max() - gaps.min() <= WINDOW
    for window, at in zip(few.validation_codes, few.validation_starts, strict=True):
        assert (window == genome.codes[at : at + WINDOW]).all()


def test_runs_of_several_seeds_may_share_the_windows_of_a_few_slots(genome: Genome) -> None:
    def windows(seed: int, epoch: int, **options) -> set[bytes]:
        run = data(genome, seed, slots=7, fixed_starts=True, rc_probability=0, **options)
        return {window.tobytes() for window in run.train(np.arange(7) + 7 * epoch)[0]}

    assert len(windows(1, 0, starts_seed=3)) == 7
    assert windows(1, 0, starts_seed=3) == windows(1, 1, starts_seed=3) == windows(2, 0, starts_seed=3)
    assert windows(1, 0) != windows(2, 0)
