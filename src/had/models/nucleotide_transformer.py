"""Nucleotide Transformer v2, written anew from its description (Dalla-Torre et al., Nature Methods 2024).

An ESM-style encoder over 6-mer tokens: pre-layer-norm attention with rotary positions, SwiGLU feed-forward
without biases, a final layer norm, and an untied language-model head. Numbers agree with the publisher's code
(tests compare with recorded outputs); its code and weights are CC BY-NC-SA 4.0 and no part of this package.

Shape letters: B batch, T tokens, D width, H heads, Q predicted positions.
"""

import dataclasses
import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from had.dna.alphabet import N_KMERS, kmer_letters
from had.models.ntv2_checkpoints import read_config, read_weights, write_checkpoint
from had.models.ntv2_published import check_fingerprint, find_checkpoint, stated_licence
from had.schema import build

MAX_TOKENS = 2048
"""Longest input the published models were trained for, ``<cls>`` included; longer ones are refused."""


@dataclass
class NucleotideTransformerConfig:
    """Sizes of the network; the field names are those of the Hub's ``config.json``."""

    vocab_size: int = 4107
    """Tokens: 6 special, 4,096 6-mers, A, T, C, G, N."""
    hidden_size: int = 512
    """Width D of the residual stream."""
    num_hidden_layers: int = 12
    """Number of transformer layers."""
    num_attention_heads: int = 16
    """Attention heads per layer."""
    intermediate_size: int = 2048
    """Hidden width of the gated feed-forward."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every layer norm."""
    max_position_embeddings: int = 2050
    """Rows of a table that checkpoints hold and the rotary network never reads; it limits nothing."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(NucleotideTransformerConfig):
            if field.type is int and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be positive; got {getattr(self, field.name)}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of twice num_attention_heads "
                f"({self.num_attention_heads}): rotary positions turn pairs"
            )

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, ``<cls>`` included."""
        return MAX_TOKENS


class NucleotideTransformerOutput(NamedTuple):
    """Result of a forward pass."""

    logits: Tensor | None
    """(B, T, vocabulary) unless the head was not asked for."""
    hidden_states: tuple[Tensor, ...]
    """Layers + 1 tensors (B, T, D): the embeddings first; the last one is layer-normed."""


def rotary_tables(
    n_tokens: int, head_width: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, head_width), at least float32: bfloat16 costs 9 to 59 % relative error."""
    # The checkpoints store the frequencies in float32, computed this way: those are the ones to use, even in
    # float64.
    frequency = 1.0 / 10000.0 ** (torch.arange(0, head_width, 2, dtype=torch.float32, device=device) / head_width)
    angle = torch.outer(torch.arange(n_tokens, dtype=dtype, device=device), frequency.to(dtype))
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def apply_rotary(x_BHTd: Tensor, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
    """Rotate the two halves of each head; computed in at least float32, returned in the dtype of ``x``."""
    first, second = x_BHTd.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (x_BHTd * cos_Td + rotated * sin_Td).to(x_BHTd.dtype)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and gated feed-forward."""

    def __init__(self, config: NucleotideTransformerConfig) -> None:
        super().__init__()
        width, self.n_heads = config.hidden_size, config.num_attention_heads
        self.attention_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_output = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.ffn_in = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.ffn_out = nn.Linear(config.intermediate_size, width, bias=False)

    def _heads(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, width = x_BTD.shape
        return x_BTD.view(batch, tokens, self.n_heads, width // self.n_heads).transpose(1, 2)

    def forward(
        self,
        x_BTD: Tensor,
        cos_Td: Tensor,
        sin_Td: Tensor,
        key_mask: Tensor | None,
        positions_BQ: Tensor | None = None,
    ) -> Tensor:
        """One layer; with ``positions_BQ`` only these are computed (B, Q, D), with the same numbers."""
        normed = self.attention_norm(x_BTD)
        cos_q, sin_q, asked = cos_Td, sin_Td, normed
        if positions_BQ is not None:
            index = positions_BQ.unsqueeze(-1).expand(-1, -1, x_BTD.shape[-1])
            asked, x_BTD = normed.gather(1, index), x_BTD.gather(1, index)
            cos_q, sin_q = cos_Td[positions_BQ].unsqueeze(1), sin_Td[positions_BQ].unsqueeze(1)
        query = apply_rotary(self._heads(self.query(asked)), cos_q, sin_q)
        key = apply_rotary(self._heads(self.key(normed)), cos_Td, sin_Td)
        value = self._heads(self.value(normed))
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
        x_BTD = x_BTD + self.attention_output(context.transpose(1, 2).flatten(2))
        gate, up = self.ffn_in(self.ffn_norm(x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.ffn_out(F.silu(gate) * up)


class NucleotideTransformer(nn.Module):
    """The encoder with its masked-language-model head.

    Parameters
    ----------
    config
        Sizes. Weights are drawn from torch's global generator.
    """

    def __init__(self, config: NucleotideTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.licence = ""
        """Licence of the weights, empty where none is stated; kept by `save_pretrained`."""
        width, eps = config.hidden_size, config.layer_norm_eps
        # Drawn below; nn.Embedding(…) would draw, too, and on the meta device that imports half of torch's
        # compiler.
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, width), freeze=False)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(width, eps)
        self.head_dense = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width, eps)
        self.decoder = nn.Linear(width, config.vocab_size)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def initialise_by_letters(self, log_frequencies: Tensor | None = None, seed: int = 0) -> None:
        """Start 6-mer rows of embedding and decoder as sums of one vector per (position, letter).

        A fresh table must learn 4,096 unrelated rows; this one knows from the start which 6-mers share
        letters. [ours]; for training from scratch only.

        Parameters
        ----------
        log_frequencies
            Log frequency (4,096,) of each 6-mer, in the order of the vocabulary: becomes the output bias.
        seed
            Of the letter vectors.
        """
        generator = torch.Generator().manual_seed(seed)
        letters = torch.from_numpy(kmer_letters().astype(np.int64))
        for table in (self.embedding.weight, self.decoder.weight):
            parts = torch.randn(letters.shape[1], 4, table.shape[1], generator=generator)
            rows = parts[torch.arange(letters.shape[1]), letters].sum(1) / math.sqrt(letters.shape[1])
            table[6 : 6 + N_KMERS].mul_(0.5).add_(self.config.initializer_range * rows.to(table))
        if log_frequencies is not None:
            self.decoder.bias[6 : 6 + N_KMERS] = log_frequencies.to(self.decoder.bias)
            self.decoder.bias[:6] = self.decoder.bias[6 + N_KMERS :] = -20.0

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], revision: str | None = None, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load a checkpoint in the Hub's format, on the CPU, in evaluation mode.

        Parameters
        ----------
        name
            A folder (``config.json`` with ``model.safetensors``, or with a ``pytorch_model.bin``, which is
            read without running code), ``bundled``, a size of the published models (``50m``, ``100m``,
            ``250m``, ``500m``) or a Hub repository. The published models come from pinned commits and are CC
            BY-NC-SA 4.0.
        revision
            Branch, tag or commit of the Hub repository, instead of the pinned one.
        dtype
            Floating-point type of the weights.

        Raises
        ------
        had.errors.UserError
            Nothing of that name is found, or its files are damaged, are not of this architecture, or hold
            other keys or shapes than it needs.
        """
        files = find_checkpoint(name, revision)
        found = read_config(files.config)
        known = {field.name for field in dataclasses.fields(NucleotideTransformerConfig)}
        sizes = {key: value for key, value in found.items() if key in known}
        config = build(NucleotideTransformerConfig, sizes, str(files.config))
        with torch.device("meta"):
            model = cls(config)
        wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        model.load_state_dict(read_weights(files.weights, wanted, sizes, dtype), assign=True)
        check_fingerprint(files)
        model.licence = stated_licence(files, found)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write ``model.safetensors`` and ``config.json`` in the Hub's format, each whole or not at all.

        Parameters
        ----------
        folder
            Made where it does not exist.
        dtype
            Of the stored weights: float32, float16 or bfloat16.

        Raises
        ------
        ValueError
            Another dtype, or a weight that float16 cannot hold.
        had.errors.UserError
            ``folder`` is a file.
        had.errors.RunFault
            The disk refused.
        """
        known = [field.name for field in dataclasses.fields(NucleotideTransformerConfig)]
        sizes = {name: getattr(self.config, name) for name in known}
        write_checkpoint(folder, sizes, self.state_dict(), dtype, self.licence)

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        if input_ids.ndim != 2 or not input_ids.shape[1]:
            raise ValueError(f"input_ids must be (sequences, tokens) with at least one token; got {input_ids.shape}")
        if input_ids.shape[1] > self.config.max_tokens:
            raise ValueError(
                f"the input has {input_ids.shape[1]} tokens, <cls> included, but this model was made for at "
                f"most {self.config.max_tokens}; split the sequence"
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask is {attention_mask.shape} but input_ids is {input_ids.shape}")

    def _states(self, input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Iterator[Tensor]:
        """Embeddings, then each layer's output as it is computed; the last one is layer-normed."""
        self._check(input_ids, attention_mask)
        x = self.embedding(input_ids)
        key_mask = None
        if attention_mask is not None:
            x = x * attention_mask.unsqueeze(-1).to(x.dtype)
            # In the dtype attention computes in: float32's smallest number is -inf in bfloat16.
            kind = x.device.type
            casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if casts else x.dtype
            # finfo.min, not -inf: a row without any token then gives numbers, not NaN, as in the original.
            key_mask = (1.0 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        yield x
        head_width = self.config.hidden_size // self.config.num_attention_heads
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        cos, sin = rotary_tables(input_ids.shape[1], head_width, x.device, wide)
        for layer in self.layers[:-1]:
            x = layer(x, cos, sin, key_mask)
            yield x
        yield self.final_norm(self.layers[-1](x, cos, sin, key_mask, positions))

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Embeddings and the output of each layer, without the language-model head.

        Parameters
        ----------
        input_ids
            Token ids (B, T) int64, ``<cls>`` first.
        attention_mask
            (B, T), 1 where a token stands. Without it every position is attended, padding included.
        positions
            (B, Q) int64: compute the last layer at these positions only; the last entry is then (B, Q, D).

        Raises
        ------
        ValueError
            If there are more than 2,048 tokens or none, or the mask has another shape.
        """
        return tuple(self._states(input_ids, attention_mask, positions))

    def last_hidden_state(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Give the last of `hidden_states` (B, T or Q, D) without keeping the others in memory."""
        return deque(self._states(input_ids, attention_mask, positions), maxlen=1).pop()

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, vocabulary) of final hidden states (…, D)."""
        return self.decoder(self.head_norm(F.gelu(self.head_dense(hidden))))

    def forward(
        self, input_ids: Tensor | np.ndarray, attention_mask: Tensor | np.ndarray | None = None
    ) -> NucleotideTransformerOutput:
        """Logits and all hidden states of token ids (B, T); numpy arrays are accepted."""
        device = self.embedding.weight.device
        ids = torch.as_tensor(input_ids, device=device)
        mask = None if attention_mask is None else torch.as_tensor(attention_mask, device=device)
        states = self.hidden_states(ids, mask)
        return NucleotideTransformerOutput(self.head(states[-1]), states)
