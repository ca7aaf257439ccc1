"""Vectors of DNA sequences: tokenise, batch by length, pool.

A sequence of up to ``config.max_length`` letters is read in one pass. A longer one is read in windows of that length
which overlap by at least half; each letter's features come from the window in which it is farthest from an edge.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from had.dna.alphabet import NUCLEOTIDE_OFFSET, reverse_complement
from had.dna.tokenizers import NucleotideTokenizer, SequenceError

if TYPE_CHECKING:
    from had.models.student import HADModel

LETTERS_PER_BATCH = 131_072
"""Most letters, padding included, in a batch of several sequences: this bounds memory."""


def encode_sequences(sequences: Sequence[str], purpose: str = "embed") -> list[NDArray[np.uint8]]:
    """Return the codes (length,) of each sequence; a SequenceError names the index of one that cannot be read.

    A string, a mapping or a table, which iterate over letters or names, is a TypeError.
    """
    if isinstance(sequences, str | bytes):
        raise TypeError("the sequences are a single string; put it into a list")
    if isinstance(sequences, Mapping):
        raise TypeError(
            "the sequences are a mapping, of which only the names would be read; pass list(mapping.values())"
        )
    if hasattr(sequences, "columns"):
        raise TypeError("the sequences are a table; pass one column of it, such as list(table['sequence'])")
    tokenizer = NucleotideTokenizer()
    codes = []
    for index, sequence in enumerate(sequences):
        try:
            ids = np.array(tokenizer.encode(sequence), dtype=np.uint8)
        except SequenceError as error:
            raise SequenceError(f"sequence {index}: {error}") from None
        if not ids.size:
            raise SequenceError(f"sequence {index} is empty: there is nothing to {purpose}")
        codes.append(ids - np.uint8(NUCLEOTIDE_OFFSET))
    return codes


def length_batches(lengths: list[int], batch_size: int, longest: int) -> Iterator[list[int]]:
    """Yield the indices of sequences of similar length, up to ``longest`` letters, a batch at a time."""
    batch: list[int] = []
    short = (index for index, length in enumerate(lengths) if length <= longest)
    for index in sorted(short, key=lambda i: lengths[i]):
        # Lengths rise: the newcomer is the longest of its batch.
        if batch and (len(batch) == batch_size or lengths[index] * (len(batch) + 1) > LETTERS_PER_BATCH):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded_ids(codes: list[NDArray[np.uint8]], padding: int) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """Token ids (B, L) of one right-padded batch, and the mask (B, L), None where no row is padded."""
    lengths = np.array([len(row) for row in codes])
    ids = np.full((len(codes), lengths.max()), padding, dtype=np.int64)
    for row, letters in zip(ids, codes, strict=True):
        row[: len(letters)] = letters + np.int64(NUCLEOTIDE_OFFSET)
    return ids, None if lengths.min() == lengths.max() else np.arange(lengths.max()) < lengths[:, None]


def _features(model: "HADModel", codes: list[NDArray[np.uint8]], layer: int) -> Tensor:
    """Features (B, L, D) float32 of one right-padded batch, 0 at padding."""
    ids, mask = padded_ids(codes, model.config.pad_token_id)
    if layer == -1:
        return model(ids, mask).last_hidden_state.float()
    return model(ids, mask, output_hidden_states=True).hidden_states[layer].float()


def window_starts(length: int, window: int) -> list[int]:
    """First letters of evenly spaced windows that cover ``length`` letters and overlap by at least half."""
    if length <= window:
        return [0]
    steps = -(-(length - window) // max(1, window // 2))
    return [i * (length - window) // steps for i in range(steps + 1)]


def _pieces(
    model: "HADModel", codes: NDArray[np.uint8], layer: int, both_strands: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Features (n, D) of a long sequence, stretch by stretch: each letter once, in order."""
    window = model.config.max_length
    starts = window_starts(len(codes), window)
    # The border between two windows is the middle of what they share.
    borders = [0, *((a + window + b) // 2 for a, b in pairwise(starts)), len(codes)]
    for start, (first, last) in zip(starts, pairwise(borders), strict=True):
        letters = codes[start : start + window]
        features = _features(model, [letters], layer)[0]
        if both_strands:
            other = _features(model, [reverse_complement(letters)], layer)[0]
            features = (features + other.flip(0)) / 2
        yield slice(first, last), features[first - start : last - start]


def _embed_long(
    model: "HADModel", codes: NDArray[np.uint8], pooling: str, layer: int, both_strands: bool
) -> NDArray[np.float32]:
    """Embed a sequence that is longer than one pass takes; memory is that of one window, and of the result."""
    width = model.config.hidden_size
    if pooling == "none":
        letters = np.empty((len(codes), width), np.float32)
        for place, features in _pieces(model, codes, layer, both_strands):
            letters[place] = features.cpu().numpy()
        return letters
    if pooling == "mean":
        pieces = _pieces(model, codes, layer, both_strands)
        total = sum((features.double().sum(0).cpu() for _, features in pieces), torch.zeros(width, dtype=torch.float64))
        return (total / len(codes)).float().numpy()
    # As for short sequences, each strand has a maximum of its own.
    strands = [codes, reverse_complement(codes)] if both_strands else [codes]
    maxima = [torch.stack([piece.amax(0) for _, piece in _pieces(model, s, layer, False)]).amax(0) for s in strands]
    return torch.stack(maxima).mean(0).cpu().numpy()


def _pool(features_BLD: Tensor, lengths: list[int], pooling: str) -> Tensor:
    """Mean or maximum (B, D) over each row's real letters."""
    length_B = torch.tensor(lengths, device=features_BLD.device)[:, None]
    if pooling == "mean":
        return features_BLD.sum(1) / length_B
    real = torch.arange(features_BLD.shape[1], device=features_BLD.device) < length_B
    return features_BLD.masked_fill(~real[..., None], -torch.inf).amax(1)


@torch.inference_mode()
def embed(
    model: "HADModel",
    sequences: Sequence[str],
    pooling: str = "mean",
    batch_size: int = 32,
    both_strands: bool = False,
    layer: int = -1,
) -> NDArray[np.float32] | list[NDArray[np.float32]]:
    """Embed DNA sequences.

    Parameters
    ----------
    model
        The student; it stays on its device, and its training mode is restored.
    sequences
        DNA, any mixture of lengths; lower case is read as upper case, U as T, other IUPAC letters as N. What is
        longer than ``config.max_length`` is read in windows that overlap by at least half.
    pooling
        ``"mean"`` or ``"max"`` over each sequence's letters, or ``"none"`` for the features of every letter.
    batch_size
        Most sequences computed at once. Sequences of similar length travel together; the numbers do not
        depend on it beyond rounding (1e-5 of the largest).
    both_strands
        Average the result with that of the reverse complement (for ``"none"``: letter by letter, turned
        back).
    layer
        Index into ``hidden_states``: 0 the embedding, -1 the last.

    Returns
    -------
    numpy.ndarray or list of numpy.ndarray
        (n, D) float32, in the order of ``sequences``; for ``"none"`` n arrays (length, D) float32.

    Raises
    ------
    had.dna.tokenizers.SequenceError
        A sequence (named by its index) is empty or has a character that is no nucleotide letter. It is both a
        ``had.errors.UserError`` and a ``ValueError``.
    ValueError
        There is no sequence, or ``pooling``, ``batch_size`` or ``layer`` is out of range.
    TypeError
        ``sequences`` is a single string, a mapping or a data frame.
    """
    if pooling not in ("mean", "max", "none"):
        raise ValueError(f"pooling must be 'mean', 'max' or 'none'; got {pooling!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    n_states = model.config.n_blocks + 1
    if not -n_states <= layer < n_states:
        raise ValueError(f"layer must lie in {-n_states} … {n_states - 1}; got {layer}")
    codes = encode_sequences(sequences)
    if not codes:
        raise ValueError("embed needs at least one sequence; got 0")
    lengths = [len(row) for row in codes]
    results: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(codes)
    was_training = model.training
    model.eval()
    try:
        for index, letters_of_one in enumerate(codes):
            if len(letters_of_one) > model.config.max_length:
                results[index] = _embed_long(model, letters_of_one, pooling, layer, both_strands)
        for batch in length_batches(lengths, batch_size, model.config.max_length):
            rows = [codes[index] for index in batch]
            sizes = [lengths[index] for index in batch]
            strands = [_features(model, rows, layer)]
            if both_strands:
                strands.append(_features(model, [reverse_complement(row) for row in rows], layer))
            if pooling != "none":
                pooled = torch.stack([_pool(strand, sizes, pooling) for strand in strands]).mean(0)
                for index, vector in zip(batch, pooled.cpu().numpy(), strict=True):
                    results[index] = vector
                continue
            for row, (index, size) in enumerate(zip(batch, sizes, strict=True)):
                letters = strands[0][row, :size]
                if both_strands:
                    letters = (letters + strands[1][row, :size].flip(0)) / 2
                results[index] = letters.cpu().numpy().copy()
    finally:
        model.train(was_training)
    return results if pooling == "none" else np.stack(results)
