"""Letters of DNA as arrays: codes, look-up tables, reverse complement, 6-mer ids.

Codes are ``uint8``: A 0, C 1, G 2, T 3, N 4. Two vocabularies are derived from them by table look-up: the student's
nucleotide ids (HAD.md §4: the ids of HyenaDNA's character tokenizer) and the 6-mer ids of Nucleotide Transformer v2,
whose 6-mers stand in ``product("ATCG", repeat=6)`` order.
"""

import numpy as np
from numpy.typing import NDArray

A, C, G, T, N = range(5)
INVALID = 255
"""Code of a character that is no IUPAC nucleotide letter."""
LETTERS = "ACGTN"
GROUP = 6
"""Letters of one teacher token."""

NUCLEOTIDE_OFFSET = 7
"""Student id of a base = code + 7."""
NUCLEOTIDE_MASK, NUCLEOTIDE_PAD = 3, 4
KMER_MASK, KMER_CLS, KMER_UNK, KMER_PAD = 2, 3, 0, 1
KMER_OFFSET = 6
"""Id of the first 6-mer in the teacher's vocabulary."""
N_KMERS = 4**GROUP


def _encoding_table() -> NDArray[np.uint8]:
    table = np.full(256, INVALID, dtype=np.uint8)
    for letter in "RYSWKMBDHVN":
        table[ord(letter)] = table[ord(letter.lower())] = N
    for code, letter in enumerate("ACGT"):
        table[ord(letter)] = table[ord(letter.lower())] = code
    table[ord("U")] = table[ord("u")] = T
    return table


ENCODE = _encoding_table()
"""Code of each byte (256,): ACGT in either case, U as T, other IUPAC letters as N, all else ``INVALID``."""
DECODE = np.frombuffer(LETTERS.encode(), dtype=np.uint8)
COMPLEMENT = np.array([T, G, C, A, N], dtype=np.uint8)
# NTv2 counts its 6-mers over the letters A, T, C, G in that order.
_KMER_DIGIT = np.array([0, 2, 3, 1], dtype=np.int64)
_KMER_POWERS = 4 ** np.arange(GROUP - 1, -1, -1, dtype=np.int64)


def encode_bytes(letters: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes (n,) uint8 of ASCII letters; characters outside the IUPAC alphabet become ``INVALID`` (255)."""
    array = np.frombuffer(letters, dtype=np.uint8) if isinstance(letters, bytes) else letters
    return ENCODE[array]


def decode(codes: NDArray[np.uint8]) -> str:
    """Letters of a code array (n,) as an upper-case string."""
    return DECODE[codes].tobytes().decode("ascii")


def reverse_complement(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reverse complement of codes (..., L) along the last axis; N stays N."""
    return COMPLEMENT[codes[..., ::-1]]


def kmer_indices(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Index (..., T) in 0…4095 of each 6-mer of codes (..., 6·T) without N, in NTv2's order.

    Raises
    ------
    ValueError
        If the last axis is not a multiple of 6.
    """
    if codes.shape[-1] % GROUP:
        raise ValueError(f"the window length must be a multiple of {GROUP}; got {codes.shape[-1]}")
    digits = _KMER_DIGIT[codes].reshape(*codes.shape[:-1], -1, GROUP)
    return digits @ _KMER_POWERS


def kmer_ids(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Teacher token ids (..., T) of codes (..., 6·T) without N (no ``<cls>``)."""
    return kmer_indices(codes) + KMER_OFFSET


def kmer_letters() -> NDArray[np.uint8]:
    """Codes (4096, 6) of the letters of each 6-mer, in NTv2's order."""
    digit_code = np.argsort(_KMER_DIGIT).astype(np.uint8)
    index = np.arange(N_KMERS)
    return np.stack([digit_code[index // power % 4] for power in _KMER_POWERS], axis=1)


def n_groups(length: int) -> int:
    """Number of whole 6-mers in a window of ``length`` letters."""
    return length // GROUP
