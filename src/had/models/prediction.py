"""What a fine-tuned student says of DNA sequences: tokenise, batch by length, probabilities."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from had.dna.alphabet import N
from had.dna.bed import MIDDLE, SUMMIT
from had.errors import UserError
from had.models.embedding import encode_sequences, length_batches, padded_ids

if TYPE_CHECKING:
    from had.models.heads import HADForSequenceClassification


@dataclass(frozen=True)
class TrainedOn:
    """How the rows that a model was fine-tuned on were cut, so that what it predicts can be cut alike."""

    shortest: int
    """Letters of the shortest training row, in bp."""
    longest: int
    """Letters of the longest training row, in bp."""
    width: int | None = None
    """Letters that peaks were cut to; None: rows are sequences, or intervals as written."""
    anchor: str = MIDDLE
    """``summit`` if peaks that have a summit were cut around it, else ``middle``."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning with a ValueError."""
        numbers = (self.shortest, self.longest, self.width or 1)
        if not all(isinstance(number, int) and number > 0 for number in numbers) or self.shortest > self.longest:
            raise ValueError(f"trained_on has lengths that are not positive whole numbers in order: {numbers}")
        if self.anchor not in (SUMMIT, MIDDLE):
            raise ValueError(f"the anchor of trained_on must be summit or middle; got {self.anchor!r}")

    @property
    def bp(self) -> str:
        """The lengths of the training rows in words."""
        return bp_range(self.shortest, self.longest)

    @property
    def around(self) -> str:
        """What peaks were cut around in words."""
        return "summits (middles where there is none)" if self.anchor == SUMMIT else "middles"

    def fits(self, length: int) -> bool:
        """Return True if a sequence of this length is neither shorter nor longer than all training rows."""
        return self.shortest <= length <= self.longest


def bp_range(shortest: int, longest: int) -> str:
    """Return ``200 bp`` or ``150 to 1,200 bp``."""
    return f"{longest:,} bp" if shortest == longest else f"{shortest:,} to {longest:,} bp"


@torch.inference_mode()
def predict(
    model: "HADForSequenceClassification",
    sequences: Sequence[str],
    batch_size: int = 32,
    both_strands: bool | None = None,
    as_written: bool = False,
) -> NDArray[np.floating]:
    """Predict for DNA sequences.

    Sequences that are shorter or longer than all training rows give a Python warning. Where the head knows positions
    they are refused.

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
    as_written
        Take sequences of any length without warning or refusal.

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
        A sequence is longer than the model reads, or of another length than the training rows of a model that knows
        positions.
    ValueError
        There is no sequence, or ``batch_size`` is out of range.
    TypeError
        ``sequences`` is a single string, a mapping or a data frame.
    """
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
    trained = model.config.trained_on
    if trained is not None and not as_written:
        other = [index for index, row in enumerate(codes) if not trained.fits(len(row))]
        if other and model.config.windows:
            raise UserError(
                f"sequence {other[0]} has {len(codes[other[0]]):,} bp, but the model knows positions in sequences of "
                f"{trained.bp}: cut it as the training rows were, or pass as_written=True"
            )
        if other:
            warnings.warn(
                f"{len(other):,} of {len(codes):,} sequences are shorter or longer than the training rows "
                f"({trained.bp}); the first is sequence {other[0]} with {len(codes[other[0]]):,} bp",
                stacklevel=4,
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
