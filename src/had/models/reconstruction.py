"""Reconstruction of hidden letters from visible features: the decoder, and masked-letter prediction with it.

As in CrossMAE (Fu et al., arXiv 2401.14391), which HAD follows: hidden positions are queries that attend to
the visible features only, never to one another. The query is a mask embedding plus a sinusoidal position;
that the keys carry the same position and the values do not, the initialisation, and all sizes are this
project's decisions.

Shape suffixes: B batch, L length, Q queries, M keys, D width, H heads, K head width.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from had.errors import UserError
from had.models.layers import GatedMLP, RMSNorm
from had.models.saving import DECODER_FILE, find_folder, load_weights
from had.models.student import HADConfig, HADModel, initialise

BASES = 4
"""Letters that are predicted: A, C, G, T, the codes 0 … 3."""
BLOCKS_AT_ONCE = 16
"""Blocks of a long input that are decoded together, or as many as the batch has rows where these are more."""


def sinusoidal_positions(length: int, width: int, device: torch.device) -> Tensor:
    """Compute sines and cosines (L, width) float32 of positions from 0 (Vaswani et al., arXiv 1706.03762)."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    frequency = 10_000.0 ** -(torch.arange(0, width, 2, dtype=dtype, device=device) / width)
    angle = torch.outer(torch.arange(length, dtype=dtype, device=device), frequency)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).float()


def hidden_and_visible_index(hidden: Tensor, n_hidden: int) -> tuple[Tensor, Tensor]:
    """Give the rising positions of hidden (B, n_hidden) and of visible letters (B, L - n_hidden), int64.

    ``hidden`` is (B, L) bool with exactly ``n_hidden`` True in every row, which is not checked: a look at the
    numbers would make the CPU wait for the GPU.
    """
    order = torch.argsort((~hidden).to(torch.uint8), dim=1, stable=True)
    return order[:, :n_hidden], order[:, n_hidden:]


class CrossAttentionDecoder(nn.Module):
    """One block of cross-attention and gated MLP, from queries at hidden positions to logits over A, C, G, T.

    Parameters
    ----------
    config
        The student's; ``decoder_heads`` and ``intermediate_size`` are the decoder's own sizes.
    """

    def __init__(self, config: HADConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.decoder_heads
        self.window = config.training_window
        self.mask_embedding = nn.Parameter(torch.empty(width))
        self.feature_norm = RMSNorm(width, config.norm_eps)
        self.query_norm = RMSNorm(width, config.norm_eps)
        self.query_proj = nn.Linear(width, width, bias=False)
        self.key_proj = nn.Linear(width, width, bias=False)
        self.value_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width, config.norm_eps)
        self.mlp = GatedMLP(width, config.intermediate_size)
        self.norm = RMSNorm(width, config.norm_eps)
        self.head = nn.Linear(width, BASES, bias=False)
        nn.init.normal_(self.mask_embedding, std=config.initializer_range)
        initialise(self, config.initializer_range, n_blocks=1)
        with torch.no_grad():
            # Equal projections make the first scores a product of sinusoids, largest where query and key are
            # close. From independent ones attention starts flat, and the loss stays on a plateau for long.
            nn.init.normal_(self.query_proj.weight, std=width**-0.5)
            self.key_proj.weight.copy_(self.query_proj.weight)

    def _heads(self, x_BMD: Tensor) -> Tensor:
        return x_BMD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        features: Tensor,
        query_index: Tensor,
        key_index: Tensor | None = None,
        key_mask: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Predict the letters at the query positions.

        Parameters
        ----------
        features
            (B, L, D), the student's last hidden state.
        query_index
            (B, Q) int64 positions to predict. Queries do not see one another, so rows with fewer may be
            filled up with any position, whose logits are then ignored.
        key_index
            (B, M) int64 positions that are visible, the same number in every row: the way without a mask, for
            training (see ``hidden_and_visible_index``). M may be 0.
        key_mask
            (B, L) bool, True where visible: the general way. Without either everything is visible.
        start
            (B,) int64 position of the first letter of each row, from which positions are counted; default 0.

        Returns
        -------
        Tensor
            Logits (B, Q, 4) over A, C, G, T. In a row without a visible position the attention contributes
            exactly 0.

        Raises
        ------
        ValueError
            Both ``key_index`` and ``key_mask`` are given.
        """
        if key_index is not None and key_mask is not None:
            raise ValueError("give key_index or key_mask, not both")
        length, width = features.shape[1:]
        table = sinusoidal_positions(length, width, features.device)
        key_position = torch.arange(length, device=features.device) if key_index is None else key_index
        if key_index is not None:
            features = features.gather(1, key_index[..., None].expand(-1, -1, width))
        query_position = query_index
        if start is not None:
            key_position = (key_position - start[:, None]).clamp_min(0)
            query_position = (query_position - start[:, None]).clamp_min(0)
        x = self.mask_embedding + F.embedding(query_position, table)
        x = x + self._attend(x, self.feature_norm(features), F.embedding(key_position, table), key_mask)
        x = x + self.mlp(self.mlp_norm(x))
        return self.head(self.norm(x))

    def in_blocks(self, features: Tensor, hidden: Tensor, real: Tensor | None = None) -> Tensor:
        """Predict hidden letters of inputs of any length, in blocks of the length that training has shown the decoder.

        Positions are counted from the block's first letter, and a query attends to the visible letters of its block.
        Blocks begin every quarter of that length, and a letter is predicted in the one whose middle is nearest; at the
        ends of a row, in its first or last block. A row of at most that length is one block.

        Parameters
        ----------
        features
            (B, L, D), the student's last hidden state.
        hidden
            (B, L) bool, True at letters to predict; every other letter is visible.
        real
            (B, L) bool, False at padding before or after the letters of a row; None: nothing is padded.

        Returns
        -------
        Tensor
            Logits (N, 4) over A, C, G, T of the N hidden letters, row by row.
        """
        B, L = hidden.shape
        row, position = hidden.nonzero(as_tuple=True)
        if len(row) == 0:
            return features.new_zeros(0, BASES)
        visible = ~hidden if real is None else ~hidden & real
        start = row.new_zeros(B) if real is None else real.int().argmax(1)
        width, block_row, block_start, block = min(L, self.window), torch.arange(B, device=row.device), start, row
        if width < L:
            length = row.new_full((B,), L) if real is None else real.sum(1)
            step = max(1, width // 4)
            place = position - start[row]
            first = (place // step * step - (width - step) // 2).minimum(length[row] - width).clamp_min(0)
            blocks, block = (row * L + first).unique(return_inverse=True)
            block_row = blocks // L
            block_start = start[block_row] + blocks % L
        # A short row behind padding ends with the input, and its block begins before its first letter.
        block_first = block_start.clamp_max(L - width)
        letters = block_first[:, None] + torch.arange(width, device=row.device)
        counts = block.bincount(minlength=len(block_row))
        ends = counts.cumsum(0)
        # Blocks with fewer hidden letters than the most are filled up; `slot` is a letter's place among its block's.
        slot = torch.arange(len(block), device=row.device) - (ends - counts)[block]
        query_index = row.new_zeros(len(block_row), int(counts.max()))
        query_index[block, slot] = position - block_first[block]
        logits, together = [], max(B, BLOCKS_AT_ONCE)
        for i in range(0, len(block_row), together):
            some = slice(i, i + together)
            at = block_row[some, None], letters[some]
            origin = (block_start - block_first)[some]
            logits.append(self(features[at], query_index[some], key_mask=visible[at], start=origin))
        return torch.cat(logits)[block, slot]

    def _attend(self, x_BQD: Tensor, features_BMD: Tensor, position_BMD: Tensor, key_mask_BM: Tensor | None) -> Tensor:
        """Cross-attention of queries to visible features (B, Q, D)."""
        query = self._heads(self.query_proj(self.query_norm(x_BQD)))
        key = self._heads(self.key_proj(features_BMD + position_BMD))
        value = self._heads(self.value_proj(features_BMD))
        if features_BMD.shape[1] == 0:
            # Sums over nothing: exact zeros that every weight still has a (zero) gradient from.
            mixed = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        elif key_mask_BM is None:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            # A row that sees nothing looks at its first position, so that softmax is finite, and what it
            # finds is dropped.
            some = key_mask_BM.any(1, keepdim=True)
            seen = key_mask_BM.clone()
            seen[:, :1] |= ~some
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
            mixed = mixed.masked_fill(~some[:, :, None, None], 0.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


@dataclass
class MaskedLMOutput:
    """Result of masked-letter prediction."""

    logits: Tensor
    """(B, L, 4) over A, C, G, T at ``[MASK]`` positions; NaN elsewhere."""
    last_hidden_state: Tensor
    """(B, L, D), the student's features."""


class HADForMaskedLM(nn.Module):
    """Student and decoder: logits of the letters behind ``[MASK]``, as zero-shot variant scores use them."""

    def __init__(self, model: HADModel, decoder: CrossAttentionDecoder | None = None) -> None:
        super().__init__()
        self.model = model
        self.decoder = CrossAttentionDecoder(model.config) if decoder is None else decoder

    @property
    def config(self) -> HADConfig:
        """The student's."""
        return self.model.config

    def forward(
        self, input_ids: Tensor | NDArray[Any], attention_mask: Tensor | NDArray[Any] | None = None
    ) -> MaskedLMOutput:
        """Predict the letters behind ``[MASK]`` from the visible ones.

        Parameters
        ----------
        input_ids, attention_mask
            As ``HADModel.forward`` takes them. Rows may have any number of ``[MASK]``, none and all included.

        Raises
        ------
        ValueError
            As ``HADModel.forward``.
        """
        features = self.model(input_ids, attention_mask).last_hidden_state
        hidden, real = torch.as_tensor(input_ids).to(features.device) == self.config.mask_token_id, None
        if attention_mask is not None:
            real = (torch.as_tensor(attention_mask) != 0).to(features.device)
            hidden = hidden & real
        found = self.decoder.in_blocks(features, hidden, real)
        logits = features.new_full((*hidden.shape, BASES), torch.nan)
        return MaskedLMOutput(logits.index_put(hidden.nonzero(as_tuple=True), found.to(logits.dtype)), features)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write student and decoder; ``HADModel.from_pretrained`` reads the same folder.

        Raises
        ------
        had.errors.UserError, had.errors.RunFault
            As ``HADModel.save_pretrained``.
        """
        self.model.save_pretrained(folder, self.decoder)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], revision: str | None = None) -> "HADForMaskedLM":
        """Load student and decoder from a folder, a bundled name or a Hub repository, in evaluation mode.

        Raises
        ------
        had.errors.UserError
            As ``HADModel.from_pretrained``; or the folder holds no decoder.
        """
        folder = find_folder(name, revision)
        model = HADModel.from_pretrained(folder)
        if not (folder / DECODER_FILE).is_file():
            raise UserError(
                f"{folder} holds no {DECODER_FILE}: this student was saved without its decoder and cannot "
                "predict letters; use a pre-trained one."
            )
        decoder = CrossAttentionDecoder(model.config)
        load_weights(decoder, folder / DECODER_FILE)
        return cls(model, decoder).eval()
