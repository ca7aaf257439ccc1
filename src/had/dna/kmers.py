"""k-mer counts of many sequences, GC content, and duplicates between sets.

A k-mer's index reads its letters as a number in base 4 with A 0, C 1, G 2, T 3, first letter most significant
(alphabetical order). This is *not* the order of the teacher's vocabulary (see
:func:`had.dna.alphabet.kmer_indices`).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from had.dna import alphabet
from had.errors import UserError

_CELLS_PER_CHUNK = 1 << 24
"""Cells of the dense count table held at a time (128 MB of int64)."""
_ROWS_COMPARED, _OTHERS_COMPARED = 512, 20_000
"""Sequences whose k-mers are compared at a time."""
_TO_UPPER_DNA = bytes.maketrans(b"acgtuU" + b"rywskmbdhvn", b"ACGTTT" + b"RYWSKMBDHVN")
_TO_COMPLEMENT = bytes.maketrans(b"ACGTRYWSKMBDHVN", b"TGCAYRWSMKVHDBN")


def kmer_index(codes: NDArray[np.uint8], k: int) -> NDArray[np.unsignedinteger]:
    """Index of the k-mer that starts at every offset of a code array.

    Parameters
    ----------
    codes
        Codes (n,) uint8 of A, C, G, T (0…3). An N spoils the k-mers it touches without an error, so split at
        N before.
    k
        Letters of a k-mer, 1…15.

    Returns
    -------
    Array (max(0, n - k + 1),) of uint16 (k ≤ 8) or uint32, values 0…4^k - 1.
    """
    if not 1 <= k <= 15:
        raise ValueError(f"k must be 1…15; got {k}")
    if len(codes) < k:
        return np.zeros(0, dtype=np.uint16 if k <= 8 else np.uint32)
    dtype = np.uint16 if k <= 8 else np.uint32
    table: dict[int, NDArray] = {1: codes.astype(dtype)}

    def index_of(width: int) -> NDArray:
        # A k-mer is two halves side by side: log2(k) passes over the sequence where letter by letter takes k.
        if width not in table:
            left, right = width // 2, width - width // 2
            head, tail = index_of(left), index_of(right)
            index = head[: len(head) - right] * dtype(4**right)
            index += tail[left:]
            table[width] = index
        return table[width]

    return index_of(k)


def reverse_complement_index(k: int) -> NDArray[np.int64]:
    """Index (4^k,) of the reverse complement of each k-mer."""
    index = np.arange(4**k)
    reverse = np.zeros_like(index)
    for _ in range(k):
        reverse = reverse * 4 + (3 - index % 4)
        index = index // 4
    return reverse


def canonical_columns(k: int) -> tuple[NDArray[np.int64], int]:
    """Give each k-mer its column (4^k,) in a table that joins reverse complements, and count the columns.

    The columns stand in the order of the alphabetically smaller k-mer of each pair; there are 2,080 for k =
    6, 136 for k = 4.
    """
    smaller = np.minimum(np.arange(4**k), reverse_complement_index(k))
    unique, column = np.unique(smaller, return_inverse=True)
    return column, len(unique)


def kmer_counts(
    sequences: Sequence[str], k: int, *, canonical: bool = False, frequencies: bool = False
) -> sparse.csr_array:
    """Count the k-mers of each sequence.

    Parameters
    ----------
    sequences
        n sequences of any length (IUPAC letters, either case, U is T). k-mers with a letter other than A, C,
        G, T are left out; a sequence shorter than k has an empty row.
    k
        Letters of a k-mer, 1…8.
    canonical
        Count a k-mer and its reverse complement as one.
    frequencies
        Divide each row by its sum (empty rows stay 0).

    Returns
    -------
    Sparse matrix (n, 4^k), or (n, columns of :func:`canonical_columns`), float32.

    Raises
    ------
    UserError
        If a sequence holds a character that is no nucleotide letter.
    """
    if not 1 <= k <= 8:
        raise ValueError(f"k must be 1…8; got {k}")
    column, width = canonical_columns(k) if canonical else (np.arange(4**k), 4**k)
    parts = [sparse.csr_array((0, width), dtype=np.float32)]
    for first, last in _chunks([len(s) for s in sequences], max(1, _CELLS_PER_CHUNK // width)):
        parts.append(_count_chunk(sequences[first:last], first, k, column, width))
    counts = sparse.csr_array(sparse.vstack(parts, format="csr", dtype=np.float32))
    if frequencies:
        total = np.asarray(counts.sum(axis=1)).ravel()
        counts.data /= np.repeat(total, np.diff(counts.indptr))
    return counts


def _chunks(lengths: Sequence[int], most_rows: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows of at most ``most_rows`` rows and (but for single rows) 16 M letters."""
    first = letters = 0
    for row, length in enumerate(lengths):
        if row > first and (row - first >= most_rows or letters + length > _CELLS_PER_CHUNK):
            yield first, row
            first, letters = row, 0
        letters += length
    if first < len(lengths):
        yield first, len(lengths)


def _count_chunk(
    sequences: Sequence[str], first_row: int, k: int, column: NDArray[np.int64], width: int
) -> sparse.csr_array:
    codes = _encode_joined(sequences, first_row)
    # One N follows every sequence, so no k-mer spans two of them.
    row = np.repeat(np.arange(len(sequences)), [len(s) + 1 for s in sequences])
    spoilt = np.concatenate([[0], np.cumsum(codes > alphabet.T)])
    clean = spoilt[k:] == spoilt[:-k] if len(codes) >= k else np.zeros(0, dtype=bool)
    start = np.flatnonzero(clean)
    index = column[kmer_index(np.minimum(codes, alphabet.T), k)[start]]
    table = np.bincount(row[start] * width + index, minlength=len(sequences) * width)
    return sparse.csr_array(table.reshape(len(sequences), width).astype(np.float32))


def _encode_joined(sequences: Sequence[str], first_row: int = 0) -> NDArray[np.uint8]:
    """Codes of the sequences one after the other, an N after each."""
    joined = ("N".join(sequences) + "N").encode("latin-1", "replace")
    codes = alphabet.encode_bytes(joined)
    if len(sequences) and codes.max() == alphabet.INVALID:
        row, position = _locate(sequences, int(np.argmax(codes == alphabet.INVALID)))
        raise UserError(
            f"sequence {first_row + row} has {sequences[row][position]!r} at position {position}, "
            "which is no nucleotide letter; remove it or write N"
        )
    return codes


def _locate(sequences: Sequence[str], offset: int) -> tuple[int, int]:
    end = np.cumsum([len(s) + 1 for s in sequences])
    row = int(np.searchsorted(end, offset, side="right"))
    return row, offset - (int(end[row - 1]) if row else 0)


def gc_content(sequences: Sequence[str]) -> NDArray[np.float64]:
    """Fraction (n,) of G and C among the A, C, G, T letters of each sequence; NaN where there are none."""
    fraction = np.full(len(sequences), np.nan)
    for first, last in _chunks([len(s) for s in sequences], len(sequences)):
        codes = _encode_joined(sequences[first:last], first)
        start = np.cumsum([0] + [len(s) + 1 for s in sequences[first:last]])[:-1]
        strong = np.add.reduceat((codes == alphabet.C) | (codes == alphabet.G), start, dtype=np.int64)
        letters = np.add.reduceat(codes <= alphabet.T, start, dtype=np.int64)
        np.divide(strong, letters, out=fraction[first:last], where=letters > 0)
    return fraction


class Duplicates(NamedTuple):
    """Which sequences of one set stand in another."""

    exact: NDArray[np.bool_]
    """(n,) The same letters stand there (upper case, U as T)."""
    reverse_complement: NDArray[np.bool_]
    """(n,) Its reverse complement stands there (its own reverse complement: counts in both)."""

    @property
    def either(self) -> NDArray[np.bool_]:
        """(n,) Either strand stands there."""
        return self.exact | self.reverse_complement


def find_duplicates(sequences: Sequence[str], others: Sequence[str]) -> Duplicates:
    """Find the sequences (n,) that stand, as written or as reverse complement, among ``others``."""
    known = {_normal(other) for other in others}
    letters = [_normal(sequence) for sequence in sequences]
    exact = np.fromiter((s in known for s in letters), dtype=bool, count=len(letters))
    reverse = np.fromiter((s.translate(_TO_COMPLEMENT)[::-1] in known for s in letters), dtype=bool, count=len(letters))
    return Duplicates(exact, reverse)


def _normal(sequence: str) -> bytes:
    return sequence.encode("latin-1", "replace").translate(_TO_UPPER_DNA)


def shared_kmers(sequences: Sequence[str], others: Sequence[str], k: int = 12) -> NDArray[np.float64]:
    """Share of each sequence's k-mers that stand in one and the same other sequence, on either strand.

    Near-duplicates show by it: unrelated sequences of 500 bp share about one 12-mer in 100, a sequence and its copy
    shifted by a tenth of the length 90 in 100; low complexity (poly-A has one k-mer) can look like a copy.

    Parameters
    ----------
    sequences, others
        n sequences, and those they are looked for in; any length, IUPAC letters, either case.
    k
        Letters of a k-mer, 1…15. k-mers with a letter other than A, C, G, T are left out; each counts once, as one with
        its reverse complement.

    Returns
    -------
    The largest share (n,) over ``others``, 0…1; 0 for a sequence without k-mers, or where there are no others.

    Raises
    ------
    UserError
        If a sequence holds a character that is no nucleotide letter.
    """
    best = np.zeros(len(sequences))
    row, kmer = _distinct_kmers(sequences, k)
    known, column = np.unique(kmer, return_inverse=True)
    if not len(known):
        return best
    ones = np.ones(len(row), dtype=np.int32)
    table = sparse.csr_array((ones, (row, column)), shape=(len(sequences), len(known)))
    for start, end in _chunks([len(s) for s in others], _OTHERS_COMPARED):
        other_row, other_kmer = _distinct_kmers(others[start:end], k)
        place = np.minimum(np.searchsorted(known, other_kmer), len(known) - 1)
        shared = known[place] == other_kmer
        ones = np.ones(int(shared.sum()), dtype=np.int32)
        other = sparse.csr_array((ones, (place[shared], other_row[shared])), shape=(len(known), end - start))
        for first in range(0, len(sequences), _ROWS_COMPARED):
            some = slice(first, first + _ROWS_COMPARED)
            best[some] = np.maximum(best[some], (table[some] @ other).max(axis=1).toarray().ravel())
    return best / np.maximum(np.bincount(row, minlength=len(sequences)), 1)


def _distinct_kmers(sequences: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and canonical index of every k-mer of every sequence, each pair once."""
    codes = _encode_joined(sequences)
    if len(codes) < k:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    row = np.repeat(np.arange(len(sequences)), [len(s) + 1 for s in sequences])
    spoilt = np.concatenate([[0], np.cumsum(codes > alphabet.T)])
    start = np.flatnonzero(spoilt[k:] == spoilt[:-k])
    letters = np.minimum(codes, alphabet.T)
    forward = kmer_index(letters, k)[start]
    backward = kmer_index(alphabet.COMPLEMENT[letters[::-1]], k)[::-1][start]
    pairs = np.unique(row[start] * 4**k + np.minimum(forward, backward))
    return pairs // 4**k, pairs % 4**k
