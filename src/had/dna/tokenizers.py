"""Tokenizers for people: the student's nucleotides and Nucleotide Transformer v2's 6-mers.

Training does not pass through here: it looks tokens up from base codes (`had.dna.alphabet`), hundreds of
times faster; a test holds the two equal.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import (
    GROUP,
    INVALID,
    KMER_CLS,
    KMER_MASK,
    KMER_OFFSET,
    KMER_PAD,
    KMER_UNK,
    N_KMERS,
    NUCLEOTIDE_MASK,
    NUCLEOTIDE_OFFSET,
    NUCLEOTIDE_PAD,
    N,
    decode,
    encode_bytes,
    kmer_ids,
    kmer_letters,
)
from had.errors import UserError

Ids = NDArray[np.int64]
Side = Literal["left", "right"]


class SequenceError(UserError, ValueError):
    """A sequence, or a list of token ids, that a tokenizer cannot read."""


class _Tokenizer:
    """What both tokenizers share: a vocabulary, batches, decoding."""

    pad_token_id: ClassVar[int]
    mask_token_id: ClassVar[int]
    cls_token_id: ClassVar[int]
    unk_token_id: ClassVar[int]
    _separator: ClassVar[str]
    model_max_length: ClassVar[int | None] = None
    special_ids: ClassVar[frozenset[int]]
    """Ids that ``decode(…, skip_special_tokens=True)`` leaves out."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tuple(tokens)
        self._id_of = {token: i for i, token in enumerate(self._tokens)}

    def _ids(self, sequence: str) -> Ids:
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._tokens)

    def __len__(self) -> int:
        """Count the tokens of the vocabulary."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """Token → id."""
        return dict(self._id_of)

    def encode(self, sequence: str) -> list[int]:
        """Token ids of one sequence.

        Raises
        ------
        SequenceError
            If the sequence cannot be read; a `had.errors.UserError` and a ValueError.
        """
        return self._ids(_checked(sequence)).tolist()

    def tokenize(self, sequence: str) -> list[str]:
        """Tokens of one sequence, as `encode` would number them."""
        return self.convert_ids_to_tokens(self.encode(sequence))

    def __call__(
        self,
        sequences: str | Iterable[str],
        padding_side: Side = "right",
        max_length: int | None = None,
        return_tensors: Literal["pt", "np"] | None = None,
        padding: bool | Literal["longest", "max_length"] = "longest",
        truncation: bool | None = None,
    ) -> dict[str, Any]:
        """Token ids of a batch, padded to one length.

        Parameters
        ----------
        sequences
            Sequences; a single string is a batch of one.
        padding_side
            Where the padding stands.
        max_length
            Cut what is longer, at the right end, to so many tokens.
        return_tensors
            ``"pt"`` for torch tensors; by default numpy arrays.
        padding
            Pad to the longest sequence of the batch, or with ``"max_length"`` to ``max_length``.
        truncation
            True also cuts without ``max_length``, to the model's largest length; False never cuts.

        Returns
        -------
        dict
            ``input_ids`` and ``attention_mask`` (1 = token, 0 = padding), int64 (n, T).

        Raises
        ------
        SequenceError
            If a sequence cannot be read; the message counts sequences from 0.
        ValueError
            If an option has no meaning.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is 'left' or 'right'; got {padding_side!r}")
        if return_tensors not in (None, "np", "pt"):
            raise ValueError(f"return_tensors is None, 'np' or 'pt'; got {return_tensors!r}")
        if max_length is not None and max_length < 0:
            raise ValueError(f"max_length is not negative; got {max_length}")
        batch = [sequences] if isinstance(sequences, str) else list(sequences)
        rows = []
        for i, sequence in enumerate(batch):
            try:
                rows.append(self._ids(_checked(sequence)))
            except SequenceError as error:
                raise SequenceError(f"sequence {i}: {error}") from None
        if truncation is not False and (max_length is not None or truncation):
            limit = self.model_max_length if max_length is None else max_length
            rows = [row[:limit] for row in rows]
        width = max((row.size for row in rows), default=0)
        if padding == "max_length" and max_length is not None:
            width = max(width, max_length)
        elif padding is False and any(row.size != width for row in rows):
            raise ValueError("sequences of different lengths make a batch only with padding")
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for i, row in enumerate(rows):
            place = slice(width - row.size, width) if padding_side == "left" else slice(0, row.size)
            input_ids[i, place] = row
            attention_mask[i, place] = 1
        if return_tensors == "pt":
            import torch

            return {
                "input_ids": torch.from_numpy(input_ids),
                "attention_mask": torch.from_numpy(attention_mask),
            }
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Tokens of ids.

        Raises
        ------
        SequenceError
            If an id is not in the vocabulary.
        """
        tokens = []
        for token_id in map(int, ids):
            if not 0 <= token_id < len(self._tokens):
                raise SequenceError(f"the id {token_id} is not in the vocabulary of {len(self)}")
            tokens.append(self._tokens[token_id])
        return tokens

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens; what is no token gets the id of the unknown token."""
        return [self._id_of.get(token, self.unk_token_id) for token in tokens]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids.

        Raises
        ------
        SequenceError
            If an id is not in the vocabulary.
        """
        kept = [i for i in map(int, ids) if not (skip_special_tokens and i in self.special_ids)]
        return self._separator.join(self.convert_ids_to_tokens(kept))


class NucleotideTokenizer(_Tokenizer):
    """One token per letter: the student's vocabulary of 12 (HAD.md §4), with the ids of HyenaDNA's tokenizer.

    No special tokens are added, so ``len(ids) == len(sequence)``. Lower case is upper case, U is T; other
    IUPAC letters are N, and a warning says how many there were (`iupac_count`). Any other character is an
    error.

    Examples
    --------
    >>> NucleotideTokenizer().encode("ACGTN")
    [7, 8, 9, 10, 11]
    """

    pad_token_id = NUCLEOTIDE_PAD
    mask_token_id = NUCLEOTIDE_MASK
    cls_token_id = 0
    unk_token_id = 6
    special_ids = frozenset(range(NUCLEOTIDE_OFFSET))
    _separator = ""

    def __init__(self) -> None:
        super().__init__(["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", *"ACGTN"])

    def iupac_count(self, sequence: str) -> int:
        """Count the IUPAC letters other than A, C, G, T, U, N, which are read as N.

        Raises
        ------
        SequenceError
            If the sequence has a character that is no nucleotide letter.
        """
        sequence = _checked(sequence)
        unknown = sequence.count("N") + sequence.count("n")
        return int(np.count_nonzero(self._codes(sequence) == N)) - unknown

    def _codes(self, sequence: str) -> NDArray[np.uint8]:
        codes = encode_bytes(sequence.encode("latin-1", errors="replace"))
        invalid = np.flatnonzero(codes == INVALID)
        if invalid.size:
            at = int(invalid[0])
            raise SequenceError(
                f"the character {sequence[at]!r} at position {at + 1:,} (0-based: {at}) is no nucleotide "
                "letter; DNA sequences have A, C, G, T, N and the other IUPAC letters"
            )
        return codes

    def _ids(self, sequence: str) -> Ids:
        codes = self._codes(sequence)
        if (codes == N).any() and (ambiguous := self.iupac_count(sequence)):
            warnings.warn(f"{ambiguous:,} IUPAC letters other than A, C, G, T, N are read as N", stacklevel=4)
        return codes.astype(np.int64) + NUCLEOTIDE_OFFSET


class KmerTokenizer(_Tokenizer):
    """Nucleotide Transformer v2's tokenizer: ``<cls>``, then 6-mers left to right, single letters between.

    As in the publisher's: six of A, C, G, T in a row are one token; other letters A, C, G, T and N are tokens
    of their own; any run of other characters, *lower case among them*, is one ``<unk>``; white space
    separates; ``<mask>``, ``<pad>``, ``<cls>``, ``<unk>``, ``<eos>`` and ``<bos>`` in the text are these
    tokens.

    Parameters
    ----------
    uppercase
        Turn letters to upper case first (special tokens stay), so that soft-masked stretches do not vanish.

    Examples
    --------
    >>> KmerTokenizer().encode("ATTCCGN")
    [3, 369, 4106]
    """

    pad_token_id = KMER_PAD
    mask_token_id = KMER_MASK
    cls_token_id = KMER_CLS
    unk_token_id = KMER_UNK
    model_max_length = 2048
    special_ids = frozenset({KMER_UNK, KMER_PAD, KMER_MASK, KMER_CLS})
    _separator = " "
    _SPECIAL = ("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>")
    _LETTERS = "ATCGN"
    _FIRST_LETTER = KMER_OFFSET + N_KMERS
    _ANY_SPECIAL = "|".join(_SPECIAL)
    _SPLIT_AT_SPECIAL = re.compile(f"({_ANY_SPECIAL})")
    _TOKEN = re.compile(f"{_ANY_SPECIAL}|[ACGT]{{{GROUP}}}|[ACGTN]|(?P<unknown>(?:(?!{_ANY_SPECIAL})[^ACGTN\\s])+)")
    _PLAIN = re.compile("[ACGT]*")

    def __init__(self, uppercase: bool = False) -> None:
        letters = decode(kmer_letters().reshape(-1))
        kmers = [letters[i : i + GROUP] for i in range(0, len(letters), GROUP)]
        super().__init__([*self._SPECIAL, *kmers, *self._LETTERS])
        self.uppercase = uppercase

    def encode(self, sequence: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one sequence, ``<cls>`` first unless ``add_special_tokens`` is False.

        Raises
        ------
        SequenceError
            If the argument is no string.
        """
        ids = self._ids(_checked(sequence)).tolist()
        return ids if add_special_tokens else ids[1:]

    def _ids(self, sequence: str) -> Ids:
        if self.uppercase:
            # The odd parts are special tokens, whose names are lower case.
            parts = self._SPLIT_AT_SPECIAL.split(sequence)
            sequence = "".join(part if i % 2 else part.upper() for i, part in enumerate(parts))
        if self._PLAIN.fullmatch(sequence):
            codes = encode_bytes(sequence.encode("ascii"))
            n_kmers = codes.size // GROUP
            rest = [self._id_of[letter] for letter in sequence[n_kmers * GROUP :]]
            return np.concatenate(
                [[self.cls_token_id], kmer_ids(codes[: n_kmers * GROUP]), np.array(rest, dtype=np.int64)]
            )
        ids = [self.cls_token_id]
        for match in self._TOKEN.finditer(sequence):
            ids.append(self.unk_token_id if match["unknown"] else self._id_of[match[0]])
        return np.array(ids, dtype=np.int64)


def _checked(sequence: object) -> str:
    if not isinstance(sequence, str):
        raise SequenceError(f"a sequence is a string of letters; got {type(sequence).__name__}")
    return sequence
