"""One vector per labelled sequence from every layer of the student and of the teacher."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from had.dna.alphabet import GROUP, N, decode, encode_bytes
from had.dna.tokenizers import KmerTokenizer, NucleotideTokenizer
from had.errors import UserError
from had.models.student import HADModel
from had.models.teachers import NTv2Teacher

BATCH = 256


def student_layers(model: HADModel, sequences: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Mean feature over the letters of each sequence, in every layer of the student.

    `HADModel.embed` gives one layer a pass; this gives all in one.

    Returns
    -------
    Layer name (``embedding``, ``block 1``, …) → float32 (n, d).
    """
    tokenizer = NucleotideTokenizer()
    parts: list[list[NDArray[np.float32]]] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for i in range(0, len(sequences), BATCH):
                tokens = tokenizer(list(sequences[i : i + BATCH]))
                lengths = torch.from_numpy(tokens["attention_mask"].sum(1, keepdims=True)).to(model.device)
                states = model(**tokens, output_hidden_states=True).hidden_states
                # Padding is 0 in every layer.
                parts.append([(state.float().sum(1) / lengths).cpu().numpy() for state in states])
    finally:
        model.train(was_training)
    return _joined(parts, "block")


def teacher_layers(teacher: NTv2Teacher, sequences: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Mean feature over the 6-mers of each sequence, in every layer of the teacher.

    The teacher reads whole 6-mers. Where a sequence's length is no multiple of 6 it is read twice, from its first
    letter and up to its last, and the two means are averaged: every letter counts, and no 6-mer is broken into
    single-letter tokens, which a teacher trained on whole 6-mers has never seen.

    Parameters
    ----------
    teacher
        A Nucleotide Transformer.
    sequences
        Of A, C, G, T, at least 6 letters each.

    Returns
    -------
    Layer name (``embedding``, ``layer 1``, …) → float32 (n, D).

    Raises
    ------
    had.errors.UserError
        A sequence has fewer than 6 letters, or another letter; the message has its index.
    """
    codes = [encode_bytes(sequence.encode("latin-1", "replace")) for sequence in sequences]
    for index, row in enumerate(codes):
        if len(row) < GROUP or row.max() >= N:
            raise UserError(f"sequence {index}: the teacher needs {GROUP} letters or more, all of them A, C, G or T")
    lengths = np.array([len(row) for row in codes])
    results: dict[str, NDArray[np.float32]] = {}
    for length in np.unique(lengths):
        where = np.flatnonzero(lengths == length)
        whole = length - length % GROUP
        starts = sorted({0, int(length - whole)})
        parts = []
        for chosen in np.array_split(where, -(-len(where) // BATCH)):
            letters = torch.from_numpy(np.stack([codes[i] for i in chosen]))
            views = [_group_means(teacher, letters[:, start : start + whole]) for start in starts]
            parts.append([np.mean(layer, axis=0) for layer in zip(*views, strict=True)])
        for name, values in _joined(parts, "layer").items():
            into = results.setdefault(name, np.empty((len(codes), values.shape[1]), np.float32))
            into[where] = values
    return results


def teacher_layers_of_any(teacher: NTv2Teacher, sequences: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """As `teacher_layers`, of sequences that may be short or hold an N.

    Those are read as the publisher's tokenizer would, with single-letter tokens, and the mean is over all tokens but
    ``<cls>``; what lies behind the longest input is left out.
    """
    codes = [encode_bytes(sequence.encode("latin-1", "replace")) for sequence in sequences]
    whole = np.array([len(row) >= GROUP and int(row.max()) < N for row in codes])
    results: dict[str, NDArray[np.float32]] = {}
    if whole.any():
        found = teacher_layers(teacher, [sequences[i] for i in np.flatnonzero(whole).tolist()])
        for name, values in found.items():
            results[name] = np.zeros((len(codes), values.shape[1]), np.float32)
            results[name][whole] = values
    tokenizer = KmerTokenizer()
    for i in np.flatnonzero(~whole):
        ids = torch.tensor([tokenizer.encode(decode(codes[i]))[: teacher.max_groups + 1]], device=teacher.device)
        with torch.inference_mode():
            states = teacher.network.hidden_states(ids)
        parts = [[state[:, 1:].float().mean(1).cpu().numpy() for state in states]]
        for name, values in _joined(parts, "layer").items():
            results.setdefault(name, np.zeros((len(codes), values.shape[1]), np.float32))[i] = values[0]
    return results


def _group_means(teacher: NTv2Teacher, codes: torch.Tensor) -> list[NDArray[np.float32]]:
    """Mean over the 6-mers (B, D) in each layer, ``<cls>`` left out."""
    with torch.inference_mode():
        states = teacher.network.hidden_states(teacher.tokens(codes))
        return [state[:, 1:].float().mean(1).cpu().numpy() for state in states]


def _joined(parts: list[list[NDArray[np.float32]]], unit: str) -> dict[str, NDArray[np.float32]]:
    names = ["embedding", *(f"{unit} {i}" for i in range(1, len(parts[0])))]
    return {name: np.concatenate(batches) for name, batches in zip(names, zip(*parts, strict=True), strict=True)}
