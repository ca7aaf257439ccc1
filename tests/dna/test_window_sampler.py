import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from had.dna import Genome, WindowSampler, acgt_stretches
from had.dna.alphabet import decode
from had.errors import UserError

sequences = st.lists(st.text("ACGTacgtNR", min_size=1, max_size=120), min_size=1, max_size=4)


def slow_reverse_complement(sequence: str) -> str:
    return sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))


def windows_of(spans: list[tuple[int, int]], letters: str, length: int) -> list[int]:
    """Valid starts, by trying every one."""
    return [
        start
        for a, b in spans
        for start in range(a, b - length + 1)
        if set(letters[start : start + length]) <= set("ACGT")
    ]


@settings(max_examples=60, deadline=None)
@given(sequences, st.integers(1, 12), st.integers(0, 2**40), st.data())
def test_windows_are_acgt_only_and_inside_one_interval(
    parts: list[str], length: int, seed: int, data: st.DataObject
) -> None:
    genome = Genome.from_sequences({f"c{i}": part for i, part in enumerate(parts)})
    letters = decode(genome.codes)
    spans = []
    for contig in genome.contigs:
        start = data.draw(st.integers(0, contig.length - 1))
        end = data.draw(st.integers(start + 1, contig.length))
        spans.append((contig.offset + start, contig.offset + end))
    valid = windows_of(spans, letters, length)
    stretches = acgt_stretches(genome, np.array(spans))
    if not valid:
        with pytest.raises(UserError, match="shorter window"):
            WindowSampler(stretches, length, seed)
        return
    sampler = WindowSampler(stretches, length, seed)
    assert sampler.n_valid == len(valid)
    assert sampler.slots == -(-len(valid) // length)
    for epoch in range(3):
        indices = np.arange(sampler.slots) + epoch * sampler.slots
        positions, _ = sampler.draw(indices)
        # One draw from each run of `length` consecutive valid starts: even coverage.
        ranks = sorted(valid.index(position) for position in positions)
        assert [rank // length for rank in ranks] == list(range(sampler.slots))


@pytest.fixture(scope="module")
def genome() -> Genome:
    letters = np.random.default_rng(0).choice(list("ACGT"), 5_000)
    letters[1_200:1_250] = "N"
    return Genome.from_sequences({"a": "".join(letters[:3_000]), "b": "".join(letters[3_000:])})


@pytest.fixture
def sampler(genome: Genome) -> WindowSampler:
    return WindowSampler(genome.acgt_runs, 30, seed=11)


def test_a_window_is_a_function_of_seed_and_index(genome: Genome, sampler: WindowSampler) -> None:
    indices = np.arange(1_000)
    positions, reverse = sampler.draw(indices)
    shuffled = np.random.default_rng(1).permutation(indices)
    again, again_reverse = WindowSampler(genome.acgt_runs, 30, seed=11).draw(shuffled)
    assert (again == positions[shuffled]).all()
    assert (again_reverse == reverse[shuffled]).all()
    other, _ = WindowSampler(genome.acgt_runs, 30, seed=12).draw(indices)
    assert (other != positions).mean() > 0.9


def test_windows_are_the_same_on_every_machine_and_release() -> None:
    # Other values would change which windows every recorded run and teacher cache has seen.
    starts, reverse = WindowSampler(np.array([[0, 5_000]]), 60, seed=7).draw(np.array([0, 1, 2, 1_000]))
    assert starts.tolist() == [1_421, 1_843, 4_693, 4_305]
    assert reverse.tolist() == [True, False, False, True]


def test_order_starts_and_strands_each_follow_the_seed(genome: Genome) -> None:
    one, other = (WindowSampler(genome.acgt_runs, 30, seed=seed) for seed in (11, 12))
    indices, slots = np.arange(one.slots), np.arange(one.slots)
    # Unrelated draws agree once in so many slots, once in thirty starts, and on every second strand.
    assert (one.slots_of(indices) == other.slots_of(indices)).mean() < 0.1
    assert (one.starts_of_slots(slots) == other.starts_of_slots(slots)).mean() < 0.2
    assert 0.3 < (one.draw(indices)[1] == other.draw(indices)[1]).mean() < 0.7


def test_a_seed_of_starts_leaves_order_and_strands_to_the_seed_of_the_run(genome: Genome) -> None:
    options = {"fixed_starts": True, "starts_seed": 3}
    one, other = (WindowSampler(genome.acgt_runs, 30, seed=seed, **options) for seed in (11, 12))
    indices, slots = np.arange(one.slots), np.arange(one.slots)
    assert (one.starts_of_slots(slots) == other.starts_of_slots(slots)).all()
    assert (one.slots_of(indices) != other.slots_of(indices)).any()
    assert (one.draw(indices)[1] != other.draw(indices)[1]).any()


def test_fewer_slots_are_evenly_spread_over_all(genome: Genome) -> None:
    sampler = WindowSampler(genome.acgt_runs, 30, seed=11, slots=10)
    slots = np.sort(sampler.slots_of(np.arange(10)))
    assert slots[0] == 0
    assert set(np.diff(np.append(slots, sampler.all_slots))) <= {sampler.all_slots // 10, sampler.all_slots // 10 + 1}


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_ranks_together_see_what_one_process_sees(sampler: WindowSampler, n_ranks: int) -> None:
    whole, _ = sampler.draw(np.arange(64))
    parts = [sampler.draw(np.arange(64).reshape(n_ranks, -1)[rank])[0] for rank in range(n_ranks)]
    assert (np.concatenate(parts) == whole).all()


def test_epochs_visit_slots_in_another_order_at_another_phase(sampler: WindowSampler) -> None:
    first, second = np.arange(sampler.slots), np.arange(sampler.slots) + sampler.slots
    assert (sampler.slots_of(first) != sampler.slots_of(second)).any()
    starts = np.stack([sampler.starts_of_slots(np.arange(sampler.slots), epoch) for epoch in (0, 1)])
    assert (starts[0] % 6 != starts[1] % 6).any()


def test_starts_within_a_slot_are_uniform(genome: Genome) -> None:
    sampler = WindowSampler(genome.acgt_runs, 10, seed=0)
    starts = sampler.starts_of_slots(np.full(10_000, 3), np.arange(10_000))
    counts = np.bincount(starts - 30, minlength=10)
    assert counts.size == 10
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 40  # 9 degrees of freedom


def test_fixed_starts_do_not_change_over_epochs(genome: Genome) -> None:
    sampler = WindowSampler(genome.acgt_runs, 30, seed=11, fixed_starts=True)
    epochs = [np.sort(sampler.draw(np.arange(sampler.slots) + e * sampler.slots)[0]) for e in range(3)]
    assert (epochs[0] == epochs[1]).all()
    assert (epochs[0] == epochs[2]).all()


def test_codes_are_the_genomes_letters_reverse_complemented_where_drawn(genome: Genome, sampler: WindowSampler) -> None:
    letters = decode(genome.codes)
    positions, reverse = sampler.draw(np.arange(200))
    assert 60 < reverse.sum() < 140
    for row, start, turned in zip(sampler.codes(genome, np.arange(200)), positions, reverse, strict=True):
        window = letters[start : start + 30]
        assert decode(row) == (slow_reverse_complement(window) if turned else window)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_strands_follow_the_given_probability(genome: Genome, probability: float) -> None:
    sampler = WindowSampler(genome.acgt_runs, 30, seed=1, rc_probability=probability)
    assert (sampler.draw(np.arange(50))[1] == bool(probability)).all()


def test_senseless_options_are_refused(genome: Genome) -> None:
    with pytest.raises(UserError, match="at least one letter"):
        WindowSampler(genome.acgt_runs, 0, seed=1)
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        WindowSampler(genome.acgt_runs, 30, seed=1, rc_probability=2)
    with pytest.raises(ValueError, match="not negative"):
        WindowSampler(genome.acgt_runs, 30, seed=1).draw(np.array([-1]))
