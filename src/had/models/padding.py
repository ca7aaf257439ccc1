"""Padding that changes nothing: masks read and checked, rows brought to the left, reversed within their length.

Padding before the letters and after them are one case inside the model: each row is rolled so that its letters come
first, and the features are rolled back at the end. Behind its letters a row then has padding that no causal
convolution and no recurrence has met before; reversing a row within its own length keeps it so in the other
direction, and the sums are those of the sequence alone, bit for bit where the kernels allow.
"""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Padding:
    """Where the letters of a right-padded batch are; every layer takes it, or None for no padding."""

    real: Tensor
    """(B, L) bool: True at real letters, which stand at the beginning of their row."""
    keys: Tensor
    """(B, 1, 1, L) bool: what attention sees; position 0 of a row without letters, for a finite softmax."""
    lengths: Tensor
    """(B,) int64: number of real letters."""
    reverse: Tensor
    """(B, L) int64: flat source of each position when every row is reversed within its own length."""

    @classmethod
    def from_lengths(cls, lengths_B: Tensor, length: int) -> "Padding":
        """Describe rows of ``lengths_B`` (B,) real letters in a batch that is ``length`` long."""
        position = torch.arange(length, device=lengths_B.device)
        lengths = lengths_B[:, None]
        real = position < lengths
        reverse = torch.where(real, lengths - 1 - position, position)
        row = torch.arange(len(lengths_B), device=lengths_B.device)[:, None]
        keys = position < lengths.clamp_min(1)
        return cls(real, keys[:, None, None], lengths_B, reverse + row * length)

    def rows(self, rows: slice) -> "Padding":
        """Give that of some rows of the batch."""
        first = rows.indices(len(self.real))[0]
        reverse = self.reverse[rows] - first * self.real.shape[1]
        return Padding(self.real[rows], self.keys[rows], self.lengths[rows], reverse)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return torch.index_select(x.flatten(0, 1), 0, index.flatten()).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return torch.index_select(grad.flatten(0, 1), 0, inverse.flatten()).view(grad.shape), None, None


def permute_letters(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Reorder the letters of each row of ``x`` (B, L, ...): a gather in both passes, never a scatter.

    ``index`` and its inverse permutation are (B, L) int64 positions in ``x.flatten(0, 1)``.
    """
    return _Permute.apply(x, index, inverse)


def reverse_letters(x: Tensor, padding: Padding | None) -> Tensor:
    """Reverse each row of ``x`` (B, L, ...) within its own length; its own inverse."""
    if padding is None:
        return x.flip(1)
    return permute_letters(x, padding.reverse, padding.reverse)


@dataclass(frozen=True)
class Layout:
    """How a padded batch of the caller is turned into a right-padded one and back."""

    padding: Padding
    mask: Tensor
    """(B, L) bool: True at real letters, in the caller's layout."""
    index: Tensor
    """(B, L) int64: flat source of each position of the right-padded batch; every row is rolled."""
    inverse: Tensor
    """(B, L) int64: the inverse permutation."""

    @classmethod
    def from_mask(cls, attention_mask: Tensor | NDArray[Any] | None, input_ids: Tensor) -> "Layout | None":
        """Read the attention mask (B, L) of ``input_ids``; None where nothing is padded.

        Raises
        ------
        ValueError
            The mask has another shape than ``input_ids``, or a hole. Masks on a GPU are not looked into: the CPU
            would wait for the GPU at every step.
        """
        if attention_mask is None:
            return None
        mask = torch.as_tensor(attention_mask) != 0
        if mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask is {tuple(mask.shape)} but input_ids is {tuple(input_ids.shape)}")
        if mask.device.type == "cpu":
            if mask.all():
                return None
            runs = mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
            if (runs > 1).any():
                raise ValueError(
                    f"attention_mask has a hole in row {int((runs > 1).nonzero()[0])}: padding may stand only "
                    "before or after the letters"
                )
        # Without waiting for a GPU; towards the CPU a copy has to be waited for.
        mask = mask.to(input_ids.device, non_blocking=input_ids.is_cuda)
        batch, length = mask.shape
        row = torch.arange(batch, device=mask.device)[:, None] * length
        position = torch.arange(length, device=mask.device)
        start = mask.int().argmax(1)[:, None]
        index, inverse = (position + start) % length + row, (position - start) % length + row
        return cls(Padding.from_lengths(mask.sum(1), length), mask, index, inverse)

    def restore(self, x_BLD: Tensor) -> Tensor:
        """Put features back where the caller's letters are, 0 elsewhere."""
        return permute_letters(x_BLD, self.inverse, self.index).masked_fill(~self.mask[..., None], 0.0)
