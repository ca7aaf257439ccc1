"""What a fine-tuned student says of DNA sequences: tokenise, batch by length, probabilities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from had.dna.alphabet import N
from had.errors import UserError
from had.models.embedding import encode_sequences, length_batches, padded_ids

if TYPE_CHECKING:
    from had.models.heads import HADForSequenceClassification


@torch.inference_mode()
def predict(
    model: "HADForSequenceClassification",
    sequences: Sequence[str],
    batch_size: int = 32,
    both_strands: bool | None = None,
) -> NDArray[np.floating]:
    """Predict for DNA sequences.

    Parameters
    ----------
    model
        The fine-tuned student; it stays on its device, and its training mode is restored.
    sequences
        DNA, any mixture of lengths up to ``model.config.student.max_length``; letters as for `had.HADModel.embed`.
    batch_size
        Most sequences computed at once; the numbers do not depend on it beyond rounding.
    both_strands
        Average the logits with those of the reverse complement; None: as fine-tuning decided on validation rows.

    Returns
    -------
    numpy.ndarray
        (n, K) float32 in the order of ``sequences`` and of ``model.config.classes``: the probability of each class, of
        multilabel each label's own; of regression the value, float64 (K = 1). NaN where a sequence has no letter A, C,
        G or T.

    Raises
    ------
    had.dna.tokenizers.SequenceError
        A sequence (named by its index) is empty or has a character that is no nucleotide letter. It is both a
        ``had.errors.UserError`` and a ``ValueError``.
    had.errors.UserError
        A sequence is longer than the model reads.
    ValueError
        There is no sequence, or ``batch_size`` is out of range.
    TypeError
        ``sequences`` is a single string.
    """
    if isinstance(sequences, str):
        raise TypeError("predict takes a list of sequences; put the single sequence into a list")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    codes = encode_sequences(sequences, "predict for")
    if not codes:
        raise ValueError("predict needs at least one sequence; got 0")
    longest = model.config.student.max_length
    for index, row in enumerate(codes):
        if len(row) > longest:
            raise UserError(
                f"sequence {index} has {len(row):,} bp; the model reads up to {longest:,} bp: cut it, or predict for "
                "windows of it"
            )
    dtype = np.float64 if model.config.task == "regression" else np.float32
    result = np.full((len(codes), len(model.config.classes)), np.nan, dtype=dtype)
    known = [index for index, row in enumerate(codes) if (row != N).any()]
    was_training = model.training
    model.eval()
    try:
        for batch in length_batches([len(codes[index]) for index in known], batch_size, longest):
            rows = [known[i] for i in batch]
            ids, mask = padded_ids([codes[index] for index in rows], model.config.student.pad_token_id)
            logits = model(ids, mask, conjoin=both_strands).logits.float()
            result[rows] = model.probabilities(logits).cpu().numpy()
    finally:
        model.train(was_training)
    return result
