"""k-mer counts, GC content and duplicates against letter-by-letter counting."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from had.dna import alphabet, kmers
from had.errors import UserError

SEQUENCES = st.lists(st.text("ACGTNacgtuRn", max_size=30), max_size=8)
PAIR = str.maketrans("ACGT", "TGCA")


def slow_counts(sequence: str, k: int, canonical: bool) -> Counter[str]:
    letters = sequence.upper().replace("U", "T")
    found: Counter[str] = Counter()
    for i in range(len(letters) - k + 1):
        kmer = letters[i : i + k]
        if set(kmer) <= set("ACGT"):
            found[min(kmer, kmer.translate(PAIR)[::-1]) if canonical else kmer] += 1
    return found


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(1, 4), st.booleans())
def test_counts_equal_counting_letter_by_letter(sequences: list[str], k: int, canonical: bool) -> None:
    words = ["".join(letters) for letters in product("ACGT", repeat=k)]
    if canonical:
        words = [word for word in words if word <= word.translate(PAIR)[::-1]]
    table = kmers.kmer_counts(sequences, k, canonical=canonical).toarray()
    assert table.shape == (len(sequences), len(words))
    for row, sequence in zip(table, sequences, strict=True):
        expected = slow_counts(sequence, k, canonical)
        assert row.tolist() == [expected[word] for word in words]


def test_counts_do_not_depend_on_how_rows_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sequences = [alphabet.decode(rng.integers(0, 5, n).astype(np.uint8)) for n in rng.integers(0, 60, 40)]
    whole = kmers.kmer_counts(sequences, 3).toarray()
    gc = kmers.gc_content(sequences)
    monkeypatch.setattr(kmers, "_CELLS_PER_CHUNK", 64 * 3)
    assert np.array_equal(kmers.kmer_counts(sequences, 3).toarray(), whole)
    assert np.array_equal(kmers.gc_content(sequences), gc, equal_nan=True)


def test_frequencies_sum_to_one_and_rows_too_short_stay_empty() -> None:
    table = kmers.kmer_counts(["ACGTACG", "AC", "NNNNNN"], 3, canonical=True, frequencies=True)
    assert np.asarray(table.sum(axis=1)).ravel() == pytest.approx([1, 0, 0])


def test_canonical_columns_join_strands() -> None:
    assert kmers.canonical_columns(4)[1] == 136
    column, width = kmers.canonical_columns(6)
    assert width == 2080
    assert np.array_equal(column, column[kmers.reverse_complement_index(6)])
    sequence = "ACGTTGCAAGTCCATG"
    other = sequence.translate(PAIR)[::-1]
    table = kmers.kmer_counts([sequence, other], 6, canonical=True).toarray()
    assert np.array_equal(table[0], table[1])


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 7, 8, 9, 11, 15])
def test_kmer_index_reads_letters_in_base_four(k: int) -> None:
    codes = np.random.default_rng(k).integers(0, 4, 40).astype(np.uint8)
    expected = [int("".join(map(str, codes[i : i + k])), 4) for i in range(40 - k + 1)]
    assert kmers.kmer_index(codes, k).tolist() == expected
    assert len(kmers.kmer_index(codes[: k - 1], k)) == 0


def test_gc_counts_letters_that_are_known() -> None:
    gc = kmers.gc_content(["GGCC", "acgu", "", "NNN", "GNNA"])
    assert gc == pytest.approx([1, 0.5, np.nan, np.nan, 0.5], nan_ok=True)
    assert len(kmers.gc_content([])) == 0


def test_a_foreign_character_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match="sequence 1 has '!' at position 2"):
        kmers.kmer_counts(["ACGT", "AC!T"], 2)
    with pytest.raises(UserError, match="sequence 0 has '€' at position 0"):
        kmers.gc_content(["€"])


def test_duplicates_are_found_on_both_strands_whatever_the_case() -> None:
    others = ["AACG", "TTTT", "ACGT"]
    found = kmers.find_duplicates(["aacg", "CGUU", "AAAA", "ACGT", "GGGG", "AACGA", "ANCG"], others)
    assert found.exact.tolist() == [True, False, False, True, False, False, False]
    assert found.reverse_complement.tolist() == [False, True, True, True, False, False, False]
    assert found.either.sum() == 4
    assert kmers.find_duplicates([], others).exact.shape == (0,)
    assert kmers.find_duplicates(["RAC"], ["GTY"]).reverse_complement.tolist() == [True]


def test_shared_kmers_agree_with_counting_by_hand() -> None:
    rng = np.random.default_rng(5)
    others = ["".join(rng.choice(list("ACGT"), n)) for n in (30, 45, 3, 60)]
    turned = others[1].translate(str.maketrans("ACGT", "TGCA"))[::-1]
    sequences = [others[0], turned, others[3][10:] + others[0][:10], "ACGNACGTA", "AC", "", "N" * 20, "a" * 12]

    def words(text: str, k: int) -> set[str]:
        text = text.upper()
        found = [text[i : i + k] for i in range(len(text) - k + 1)]
        both = [(word, word.translate(str.maketrans("ACGT", "TGCA"))[::-1]) for word in found if "N" not in word]
        return {min(pair) for pair in both}

    for k in (4, 9):
        expected = []
        for sequence in sequences:
            own = words(sequence, k)
            expected.append(max((len(own & words(other, k)) / len(own) for other in others), default=0) if own else 0.0)
        assert kmers.shared_kmers(sequences, others, k).tolist() == pytest.approx(expected)
    assert kmers.shared_kmers(sequences[:2], others, 12).tolist() == [1.0, 1.0]
    assert kmers.shared_kmers(sequences[:2], [], 12).tolist() == [0.0, 0.0]
    assert kmers.shared_kmers([], others, 12).shape == (0,)


def test_shared_kmers_in_small_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    others = ["".join(rng.choice(list("AC"), 20)) for _ in range(9)]
    sequences = ["".join(rng.choice(list("AC"), 20)) for _ in range(7)]
    whole = kmers.shared_kmers(sequences, others, 6)
    monkeypatch.setattr("had.dna.kmers._ROWS_COMPARED", 3)
    monkeypatch.setattr("had.dna.kmers._OTHERS_COMPARED", 2)
    assert np.array_equal(kmers.shared_kmers(sequences, others, 6), whole)
    assert 0 < whole.max() < 1
