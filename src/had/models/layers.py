"""Layers of the student: RMSNorm, gated MLP, bidirectional Gated DeltaNet, rotary self-attention.

The recurrence and its gates are those of Gated DeltaNet (Yang, Kautz, Hatamizadeh, arXiv 2412.06464); which
weights the two directions have each and which they share is this project's decision (HAD's authors published
no code).

Shape suffixes: B batch, L length, D width of the stream, H heads, K key width, V value width, 2 the two
directions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from had.models.functional import (
    attend,
    gated_mlp,
    merge_directions,
    project,
    project_both_ways,
    rms_norm,
    rms_norm_beside,
)
from had.models.fused import tokens_both_ways
from had.models.padding import Padding
from had.ops import gated_delta_rule


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., width) over its last axis."""
        return rms_norm(x, self.weight, self.eps)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``x``, for a residual connection, and its normalised form."""
        return rms_norm_beside(x, self.weight, self.eps)


class GatedMLP(nn.Module):
    """``W_out · (SiLU(W_gate · x) * W_up · x)`` (Shazeer, arXiv 2002.05202); ``in_proj`` holds both."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map ``x`` (..., width) to the same shape, and add ``residual`` where there is one."""
        return gated_mlp(x, self.in_proj.weight, self.out_proj.weight, residual)


class BiGatedDeltaNet(nn.Module):
    """Gated DeltaNet on the sequence and on its reverse.

    Each direction has its own projections to q, k, v, a and b, convolutions, ``A_log``, ``dt_bias`` and
    output norm. The output gate and the output projection are shared: the two normalised outputs are summed,
    gated, projected.

    Parameters
    ----------
    width
        D of the residual stream.
    heads, key_width, value_width
        H, K and V of the recurrence, per direction.
    conv_width
        Taps of the depth-wise convolution on q, k and v.
    eps
        Of the output norm.

    Notes
    -----
    The rows of ``in_proj.weight`` are [q, k, v, a, b] of the forward direction, the same of the reverse one,
    and the gate: (2·(2·H·K + H·V + 2·H) + H·V, D). The two directions travel as one batch of 2·B through a
    single call of the gated delta rule.
    """

    def __init__(self, width: int, heads: int, key_width: int, value_width: int, conv_width: int, eps: float) -> None:
        super().__init__()
        self.heads, self.key_width, self.value_width, self.eps = heads, key_width, value_width, eps
        self.sizes = (heads * key_width, heads * key_width, heads * value_width)
        self.channels = sum(self.sizes)
        """Channels of q, k and v together, per direction."""
        self.rows = self.channels + 2 * heads
        """Rows of ``in_proj`` per direction."""
        self.in_proj = nn.Linear(width, 2 * self.rows + heads * value_width, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(2, self.channels, conv_width))
        self.A_log = nn.Parameter(torch.empty(2, heads))
        self.dt_bias = nn.Parameter(torch.empty(2, heads))
        self.norm_weight = nn.Parameter(torch.ones(2, value_width))
        self.out_proj = nn.Linear(heads * value_width, width, bias=False)
        self.reset_recurrence()

    @torch.no_grad()
    def reset_recurrence(self) -> None:
        """Draw the convolutions, ``A_log`` and ``dt_bias`` as the code of Gated DeltaNet does."""
        nn.init.kaiming_uniform_(self.conv_weight.flatten(0, 1).unsqueeze(1), a=math.sqrt(5))
        # log U(0, 16), kept from 0, whose logarithm is no number.
        self.A_log.uniform_(0, 16).clamp_(min=1e-2).log_()
        low, high = math.log(1e-3), math.log(0.1)
        step = self.dt_bias.uniform_(low, high).exp_()
        # The inverse of softplus.
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Tensor, padding: Padding | None = None, residual: Tensor | None = None) -> Tensor:
        """Map ``x`` (B, L, D) to the same shape, and add ``residual`` where there is one."""
        if padding is not None:
            # No linear has a bias: a zero here is a zero in the convolution.
            x = x.masked_fill(~padding.real[..., None], 0.0)
        weights = (self.in_proj.weight, self.conv_weight, self.A_log, self.dt_bias)
        return self._recur(project_both_ways(x, *weights, self.sizes, padding), padding, residual)

    def from_tokens(self, table: Tensor, tokens: Tensor, padding: Padding | None, residual: Tensor) -> Tensor:
        """What ``forward`` gives for ``table[tokens]``, sooner: with few tokens, (T, D), few products are different.

        For float32 on a CPU with compiled kernels only.
        """
        if padding is not None:
            tokens = tokens.masked_fill(~padding.real, len(table))
            table = F.pad(table, (0, 0, 0, 1))
        lengths = None if padding is None else padding.lengths
        weights = (self.in_proj.weight, self.conv_weight, self.A_log, self.dt_bias)
        return self._recur(tokens_both_ways(table, tokens, *weights, self.sizes, lengths), padding, residual)

    def _recur(self, inputs: tuple[Tensor, ...], padding: Padding | None, residual: Tensor | None) -> Tensor:
        """Both directions' recurrences, merged, projected, and added to ``residual``."""
        q, k, v, log_decay, beta, gate = inputs
        batch, length = gate.shape[:2]
        o, _ = gated_delta_rule(
            q.view(-1, length, self.heads, self.key_width),
            k.view(-1, length, self.heads, self.key_width),
            v.view(-1, length, self.heads, self.value_width),
            log_decay.flatten(0, 1),
            beta.flatten(0, 1),
            scale=self.key_width**-0.5,
            use_qk_l2norm_in_kernel=True,
        )
        o = o.to(gate.dtype).view(2, batch, length, self.heads, self.value_width)
        merged = merge_directions(o, self.norm_weight, gate, self.eps, padding)
        return project(merged, self.out_proj.weight, residual)


def rotary_table(length: int, width: int, base: float, device: torch.device) -> Tensor:
    """Compute cosines and sines (2, L, width / 2) float32 of positions from 0 (arXiv 2104.09864)."""
    # In float32 the angle of a letter 100 kb away would be off by 0.01 rad; mps has no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    frequency = base ** -(torch.arange(0, width, 2, dtype=dtype, device=device) / width)
    angle = torch.outer(torch.arange(length, dtype=dtype, device=device), frequency)
    return torch.stack((angle.cos(), angle.sin())).float()


class SelfAttention(nn.Module):
    """Softmax self-attention with rotary positions: each letter sees those at most ``window`` away, on both sides.

    Memory is linear in the length, and so is time, except with ``window=None``: every letter sees every other one.
    """

    def __init__(self, width: int, heads: int, rotary_base: float, window: int | None) -> None:
        super().__init__()
        self.heads, self.head_width, self.rotary_base, self.window = heads, width // heads, rotary_base, window
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, padding: Padding | None = None, residual: Tensor | None = None) -> Tensor:
        """Map ``x`` (B, L, D) to the same shape, and add ``residual``; position 0 is the first letter."""
        table = rotary_table(x.shape[1], self.head_width, self.rotary_base, x.device)
        mixed = attend(x, self.in_proj.weight, self.heads, table, self.window, padding)
        return project(mixed, self.out_proj.weight, residual)


class Block(nn.Module):
    """A mixer of letters and a gated MLP, each behind an RMSNorm and beside a residual connection."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(width, eps)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(width, eps)
        self.mlp = GatedMLP(width, hidden)

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        """Map ``x`` (B, L, D) to the same shape."""
        x, normal = self.mixer_norm.beside(x)
        return self._through_mlp(self.mixer(normal, padding, x))

    def from_tokens(self, x: Tensor, table: Tensor, tokens: Tensor, padding: Padding | None) -> Tensor:
        """What ``forward`` gives for ``x = table[tokens]``: as ``BiGatedDeltaNet.from_tokens``."""
        assert isinstance(self.mixer, BiGatedDeltaNet)
        return self._through_mlp(self.mixer.from_tokens(self.mixer_norm(table), tokens, padding, x))

    def _through_mlp(self, x: Tensor) -> Tensor:
        x, normal = self.mlp_norm.beside(x)
        return self.mlp(normal, x)
