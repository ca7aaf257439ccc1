"""The student: HAD's bidirectional Gated DeltaNet with one attention block, on single nucleotides.

The order of layers is that of "HAD: Hybrid Architecture Distillation …" (Yang et al., arXiv 2505.20836);
sizes, what the two directions share, and the initialisation are this project's, since the authors published
no code.

Shape suffixes: B batch, L length, D width.
"""

import dataclasses
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from had.console import some_of
from had.errors import UserError
from had.models.embedding import embed
from had.models.functional import uses_kernels
from had.models.layers import BiGatedDeltaNet, Block, RMSNorm, SelfAttention
from had.models.padding import Layout, Padding
from had.models.pieces import cut, has_hooks, in_pieces
from had.models.saving import (
    CLASSIFIER_TYPE,
    CONFIG_FILE,
    DECODER_FILE,
    STUDENT_TYPE,
    WEIGHTS_FILE,
    find_folder,
    load_weights,
    model_type_of,
    read_config,
    upload_folder,
    write_folder,
)
from had.schema import build

_FOREIGN_KEYS = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
"""What transformers adds to a config.json; nothing here depends on it."""


@dataclass
class HADConfig:
    """Sizes of the student and its decoder; by default the student has 1,088,928 parameters."""

    model_type: ClassVar[str] = STUDENT_TYPE

    vocab_size: int = 12
    """Number of tokens (those of HyenaDNA's character tokenizer)."""
    pad_token_id: int = 4
    """Id of ``[PAD]``."""
    mask_token_id: int = 3
    """Id of ``[MASK]``."""
    hidden_size: int = 128
    """Width d of the residual stream."""
    intermediate_size: int = 320
    """Hidden width of each gated MLP."""
    recurrent_blocks: int = 4
    """Blocks of bidirectional Gated DeltaNet and MLP."""
    attention_blocks: int = 1
    """Blocks of softmax attention and MLP, after the recurrent ones."""
    recurrent_heads: int = 2
    """Heads H of the gated delta rule, per direction."""
    key_width: int = 32
    """Width K of queries and keys, per head of the gated delta rule."""
    value_width: int = 64
    """Width V of values, per head of the gated delta rule."""
    conv_width: int = 4
    """Taps of the depth-wise convolution on q, k and v."""
    attention_heads: int = 2
    """Heads of softmax attention, each hidden_size / attention_heads wide."""
    attention_window: int | None = None
    """Softmax attention of a letter reaches so many letters to each side; None: the whole input, in quadratic time."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""
    initializer_range: float = 0.02
    """Standard deviation of fresh linears and embeddings; output projections have 1/√(2·blocks) of it."""
    max_length: int = 131_072
    """Longest input in letters. No weight depends on it: it guards against attention's quadratic time."""
    decoder_heads: int = 4
    """Heads of the reconstruction decoder's cross-attention."""
    training_window: int = 1020
    """Letters of a window of pre-training (``data.window``); longer inputs are decoded in blocks of that length."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes with a ValueError."""
        sizes = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.type is int and field.name not in ("pad_token_id", "mask_token_id", "attention_blocks")
        }
        for name, value in sizes.items():
            if value < (0 if name == "recurrent_blocks" else 1):
                raise ValueError(f"{name} must be positive; got {value}")
        if self.attention_window is not None and self.attention_window < 1:
            raise ValueError(f"attention_window must be positive, or None; got {self.attention_window}")
        for name in ("attention_heads", "decoder_heads"):
            if self.hidden_size % (2 * getattr(self, name)):
                raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of twice {name}")
        if self.n_blocks < 1:
            raise ValueError("a model needs at least one block")
        for name in ("pad_token_id", "mask_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} must be at least 0 and below vocab_size; got {getattr(self, name)}")

    @property
    def n_blocks(self) -> int:
        """Blocks of both kinds."""
        return self.recurrent_blocks + self.attention_blocks

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, as ``config.json`` holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the model's config") -> "HADConfig":
        """Make a config of a dictionary, refusing names it does not know; ``where`` names it in messages.

        Raises
        ------
        had.errors.UserError
            An unknown name, or a value that is not allowed.
        """
        if not isinstance(values, dict):
            raise UserError(f"{where} must hold names with values; got {values!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known - _FOREIGN_KEYS - {"model_type"}):
            raise UserError(f"{where} has unknown names: {some_of(unknown)}; a newer version wrote it?")
        return build(cls, {name: value for name, value in values.items() if name in known}, where)


@dataclass
class HADOutput:
    """Result of a forward pass; at padding every feature is 0."""

    last_hidden_state: Tensor
    """(B, L, D), after the final RMSNorm."""
    hidden_states: tuple[Tensor, ...] | None = None
    """Blocks + 1 tensors (B, L, D): the embedding, then each block; the last is ``last_hidden_state``."""


class HADModel(nn.Module):
    """The student: character tokens → blocks of bidirectional Gated DeltaNet → one attention block → RMSNorm.

    Parameters
    ----------
    config
        Sizes; the default is the 1.1 M-parameter student. Weights are drawn from torch's global generator.
    """

    def __init__(self, config: HADConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HADConfig()
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        mixers: list[nn.Module] = [
            BiGatedDeltaNet(
                width,
                config.recurrent_heads,
                config.key_width,
                config.value_width,
                config.conv_width,
                config.norm_eps,
            )
            for _ in range(config.recurrent_blocks)
        ]
        mixers += [
            SelfAttention(width, config.attention_heads, config.rotary_base, config.attention_window)
            for _ in range(config.attention_blocks)
        ]
        self.blocks = nn.ModuleList(Block(mixer, width, config.intermediate_size, config.norm_eps) for mixer in mixers)
        self.norm = RMSNorm(width, config.norm_eps)
        initialise(self, config.initializer_range, config.n_blocks)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def forward(
        self,
        input_ids: Tensor | NDArray[Any],
        attention_mask: Tensor | NDArray[Any] | None = None,
        output_hidden_states: bool = False,
    ) -> HADOutput:
        """Compute the features of each letter.

        Parameters
        ----------
        input_ids
            (B, L) integer token ids, torch or numpy.
        attention_mask
            (B, L), 0 at padding. Padding may stand before or after the letters of a row; real positions then
            have the numbers each sequence has alone (up to the rounding of sums in another order), and padded
            ones are 0. A row without any letter is allowed. None (nothing is padded) is fastest.
        output_hidden_states
            Whether to keep the output of every block.

        Raises
        ------
        ValueError
            ``input_ids`` is not a (B, L) integer array with 1 ≤ L ≤ ``config.max_length``, or the mask has
            another shape or a hole. Holes are looked for only in masks that are in the CPU's memory.
        """
        ids = torch.as_tensor(input_ids)
        if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"input_ids must be integers of shape (B, L); got {ids.dtype} {tuple(ids.shape)}")
        if not 1 <= ids.shape[1] <= self.config.max_length:
            raise ValueError(
                f"input_ids must be 1 to {self.config.max_length} letters long (config.max_length); got {ids.shape[1]}"
            )
        ids = ids.to(self.device, torch.int64, non_blocking=self.device.type == "cuda")
        layout = Layout.from_mask(attention_mask, ids)
        padding = None if layout is None else layout.padding
        states = self._states(ids if layout is None else ids.take(layout.index), padding, output_hidden_states)
        if layout is not None:
            states = tuple(layout.restore(state) for state in states)
        return HADOutput(states[-1], states if output_hidden_states else None)

    def _states(self, ids_BL: Tensor, padding: Padding | None, every: bool) -> tuple[Tensor, ...]:
        """Embedding and output of each block, the last one normalised, or that last one only: (B, L, D) each."""
        table, first = self.embedding.weight, self.blocks[0]
        fast = ids_BL.numel() > 0 and uses_kernels(table) and not has_hooks(self)
        # A block that someone has wrapped is called as any module is.
        by_tokens = (
            fast
            and isinstance(first, Block)
            and isinstance(first.mixer, BiGatedDeltaNet)
            and uses_kernels(table, *first.mixer.sizes)
        )

        def work(rows: slice) -> tuple[Tensor, ...]:
            ids, own = ids_BL[rows], None if padding is None else padding.rows(rows)
            states = [self.embedding(ids)]
            for block in self.blocks:
                x = states[-1]
                if by_tokens and block is first:
                    assert isinstance(first, Block)
                    states.append(first.from_tokens(x, table, ids, own))
                else:
                    states.append(block(x, own))
                if not every:
                    del states[0]
            return (*states[:-1], self.norm(states[-1]))

        pieces = cut(*ids_BL.shape)
        if len(pieces) <= 1 or not fast:
            return work(slice(None))
        return in_pieces(work, pieces, [p for p in self.parameters() if p.requires_grad])

    def embed(
        self,
        sequences: Sequence[str],
        pooling: Literal["mean", "max", "none"] = "mean",
        batch_size: int = 32,
        both_strands: bool = False,
        layer: int = -1,
    ) -> Any:
        """Embed DNA sequences: ``had.models.embedding.embed`` of this model, whose docstring has the details.

        Returns
        -------
        numpy.ndarray
            (n, D) float32, one row per sequence, in order; for ``pooling="none"`` a list of n arrays
            (length, D).
        """
        return embed(self, sequences, pooling, batch_size, both_strands, layer)

    def save_pretrained(self, folder: str | os.PathLike[str], decoder: nn.Module | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and, with a decoder, ``decoder.safetensors``.

        Each file appears whole or not at all. Without a decoder one that an earlier save left is removed.

        Raises
        ------
        had.errors.UserError
            ``folder`` is a file.
        had.errors.RunFault
            The disk refused.
        """
        weights = {WEIGHTS_FILE: self, DECODER_FILE: decoder}
        write_folder(folder, self.config.model_type, self.config.to_dict(), weights)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], revision: str | None = None) -> "HADModel":
        """Load a student from a folder, a bundled name or a Hub repository, on the CPU, in evaluation mode.

        Of a fine-tuned model it is the student below the head.

        Raises
        ------
        had.errors.UserError
            Nothing of that name is found, or its files are missing, damaged or of another model.
        """
        folder = find_folder(name, revision)
        model = cls(student_config(folder))
        load_weights(model, folder / WEIGHTS_FILE, "student." if model_type_of(folder) == CLASSIFIER_TYPE else "")
        return model.eval()

    def push_to_hub(
        self, repo_id: str, decoder: nn.Module | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Save to the Hugging Face Hub as ``owner/name`` and give the address of the commit.

        Raises
        ------
        had.errors.UserError
            The Hub cannot be reached or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, decoder)
            return upload_folder(folder, repo_id, private, token)


@torch.no_grad()
def initialise(module: nn.Module, spread: float, n_blocks: int) -> None:
    """Draw every linear and embedding from N(0, spread²); output projections from (spread / √(2·blocks))²."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            is_output = name.rpartition(".")[2] == "out_proj"
            nn.init.normal_(part.weight, std=spread / math.sqrt(2 * n_blocks) if is_output else spread)


def student_config(folder: Path) -> HADConfig:
    """Sizes of the student that a folder holds, with a head or without.

    Raises
    ------
    had.errors.UserError
        As `had.models.saving.read_config`.
    """
    path = str(folder / CONFIG_FILE)
    if model_type_of(folder) == CLASSIFIER_TYPE:
        return HADConfig.from_dict(read_config(folder, CLASSIFIER_TYPE).get("student", {}), path)
    return HADConfig.from_dict(read_config(folder, HADConfig.model_type), path)
