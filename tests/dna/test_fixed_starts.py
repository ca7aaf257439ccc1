"""Fixed starts and subsets of slots: what a teacher cache relies on."""

import numpy as np
import pytest

from had.dna import Genome, WindowSampler
from had.errors import UserError


@pytest.fixture(scope="module")
def genome() -> Genome:
    letters = np.random.default_rng(0).choice(list("ACGT"), 5_000)
    return Genome.from_sequences({"a": "".join(letters)})


def test_every_slot_in_use_is_visited_once_an_epoch_in_another_order(genome: Genome) -> None:
    sampler = WindowSampler(genome.acgt_runs, 30, seed=3, fixed_starts=True, slots=50)
    first, second = (sampler.rows_of(np.arange(50) + 50 * epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()
    positions = [sampler.draw(np.arange(50) + 50 * epoch)[0] for epoch in (0, 1)]
    assert len(set(positions[0])) == 50
    assert set(positions[0]) == set(positions[1])


def test_slots_in_use_are_spread_evenly_and_keep_their_starts(genome: Genome) -> None:
    whole = WindowSampler(genome.acgt_runs, 30, seed=3, fixed_starts=True)
    some = WindowSampler(genome.acgt_runs, 30, seed=3, fixed_starts=True, slots=50)
    chosen = some.slots_of_rows(np.arange(50))
    gaps = np.diff(np.append(chosen, whole.slots + chosen[0]))
    assert set(gaps) <= {whole.slots // 50, whole.slots // 50 + 1}
    assert (some.starts_of_slots(chosen) == whole.starts_of_slots(chosen)).all()
    assert (whole.slots_of_rows(np.arange(whole.slots)) == np.arange(whole.slots)).all()


def test_starts_may_have_a_seed_of_their_own(genome: Genome) -> None:
    def starts(seed: int, starts_seed: int | None) -> np.ndarray:
        sampler = WindowSampler(genome.acgt_runs, 30, seed, fixed_starts=True, starts_seed=starts_seed)
        return sampler.starts_of_slots(np.arange(sampler.slots))

    assert (starts(1, 9) == starts(2, 9)).all()
    assert (starts(9, None) == starts(2, 9)).all()
    assert (starts(1, None) != starts(2, None)).mean() > 0.9


@pytest.mark.parametrize("slots", [0, 166 + 1, -1])
def test_as_many_slots_as_there_are_not(genome: Genome, slots: int) -> None:
    assert WindowSampler(genome.acgt_runs, 30, seed=1).slots == 166
    with pytest.raises(UserError, match="1 to 166"):
        WindowSampler(genome.acgt_runs, 30, seed=1, slots=slots)
