"""Fixed-length vectors of DNA sequences: tokenise, batch by length, pool."""

from collections.abc import Iterator, Sequence
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


def _encode(sequences: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Give the codes (length,) of each sequence."""
    tokenizer = NucleotideTokenizer()
    codes = []
    for index, sequence in enumerate(sequences):
        try:
            ids = np.array(tokenizer.encode(sequence), dtype=np.uint8)
        except SequenceError as error:
            raise SequenceError(f"sequence {index}: {error}") from None
        if not ids.size:
            raise SequenceError(f"sequence {index} is empty: there is nothing to embed")
        codes.append(ids - np.uint8(NUCLEOTIDE_OFFSET))
    return codes


def _batches(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of sequences of similar length, a batch at a time."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # Lengths rise: the newcomer is the longest of its batch.
        if batch and (len(batch) == batch_size or lengths[index] * (len(batch) + 1) > LETTERS_PER_BATCH):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _features(model: "HADModel", codes: list[NDArray[np.uint8]], layer: int) -> Tensor:
    """Features (B, L, D) float32 of one right-padded batch, 0 at padding."""
    lengths = np.array([len(row) for row in codes])
    ids = np.full((len(codes), lengths.max()), model.config.pad_token_id, dtype=np.int64)
    for row, letters in zip(ids, codes, strict=True):
        row[: len(letters)] = letters + np.int64(NUCLEOTIDE_OFFSET)
    mask = None if lengths.min() == lengths.max() else np.arange(lengths.max()) < lengths[:, None]
    if layer == -1:
        return model(ids, mask).last_hidden_state.float()
    return model(ids, mask, output_hidden_states=True).hidden_states[layer].float()


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
        DNA, any mixture of lengths; lower case is read as upper case, U as T, other IUPAC letters as N.
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
        A sequence (named by its index) is empty, has a character that is no nucleotide letter, or is longer
        than ``config.max_length``. It is both a ``had.errors.UserError`` and a ``ValueError``.
    ValueError
        There is no sequence, or ``pooling``, ``batch_size`` or ``layer`` is out of range.
    TypeError
        ``sequences`` is a single string.
    """
    if isinstance(sequences, str):
        raise TypeError("embed takes a list of sequences; put the single sequence into a list")
    if pooling not in ("mean", "max", "none"):
        raise ValueError(f"pooling must be 'mean', 'max' or 'none'; got {pooling!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    n_states = model.config.n_blocks + 1
    if not -n_states <= layer < n_states:
        raise ValueError(f"layer must lie in {-n_states} … {n_states - 1}; got {layer}")
    codes = _encode(sequences)
    if not codes:
        raise ValueError("embed needs at least one sequence; got 0")
    lengths = [len(row) for row in codes]
    if max(lengths) > model.config.max_length:
        index = int(np.argmax(lengths))
        raise SequenceError(
            f"sequence {index} is {lengths[index]} letters long; the model takes {model.config.max_length} "
            "(config.max_length): cut it into windows"
        )
    results: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(codes)
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(lengths, batch_size):
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
