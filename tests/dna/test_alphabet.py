from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from had.dna import alphabet

dna = st.text("ACGTN", max_size=60)
KMERS = ["".join(letters) for letters in product("ATCG", repeat=6)]
COMPLEMENT_OF = {"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}


@given(dna)
def test_letters_survive_encoding_and_decoding(sequence: str) -> None:
    codes = alphabet.encode_bytes(sequence.encode())
    assert codes.dtype == np.uint8
    assert alphabet.decode(codes) == sequence


@given(dna)
def test_reverse_complement_is_that_of_the_textbook(sequence: str) -> None:
    codes = alphabet.encode_bytes(sequence.encode())
    expected = "".join(COMPLEMENT_OF[letter] for letter in reversed(sequence))
    assert alphabet.decode(alphabet.reverse_complement(codes)) == expected


def test_reverse_complement_turns_each_row_of_a_batch_alone() -> None:
    codes = np.array([[0, 1, 4], [3, 3, 2]], dtype=np.uint8)
    assert alphabet.reverse_complement(codes).tolist() == [[4, 2, 3], [1, 0, 0]]


@given(st.lists(st.text("ACGT", min_size=6, max_size=6), max_size=8))
def test_kmer_ids_follow_the_teachers_order(kmers: list[str]) -> None:
    codes = alphabet.encode_bytes("".join(kmers).encode())
    assert alphabet.kmer_ids(codes).tolist() == [6 + KMERS.index(kmer) for kmer in kmers]


def test_kmer_letters_are_the_inverse_of_kmer_indices() -> None:
    assert (alphabet.kmer_indices(alphabet.kmer_letters())[:, 0] == np.arange(4096)).all()


def test_a_ragged_window_has_no_kmers() -> None:
    with pytest.raises(ValueError, match="multiple of 6; got 7"):
        alphabet.kmer_indices(np.zeros((2, 7), dtype=np.uint8))


def test_every_byte_is_a_base_an_ambiguous_letter_or_invalid() -> None:
    expected = {"A": 0, "C": 1, "G": 2, "T": 3, "U": 3} | dict.fromkeys("RYSWKMBDHVN", 4)
    for byte in range(256):
        letter = chr(byte).upper() if byte < 128 else ""
        assert alphabet.ENCODE[byte] == expected.get(letter, alphabet.INVALID)
