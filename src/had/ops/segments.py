"""A long sequence in segments that run beside one another, for backends that work on whole sequences at a time.

A segment acts on the state as S → M S + N with a (K x K) matrix M. Both come out of the rule itself: from the identity
as initial state and values of zero it gives M, from zero and the true values N. The maps of all segments before one,
composed, give the state that it begins with. The result is the same up to rounding, and so is every gradient; the rule
is computed about two and a half times instead of once, so this pays only where a device is otherwise idle.

Shape suffixes: B batch, N segments, L tokens, H heads, K key width, V value width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, Tensor | None, bool], tuple[Tensor, Tensor]]


def _compose(maps_NXKW: Tensor) -> Tensor:
    """Turn the maps [M | N] of segments, (N, B·H, K, K + V), into those of all segments up to each: log N products."""
    K = maps_NXKW.shape[2]
    reach = 1
    while reach < len(maps_NXKW):
        later, earlier = maps_NXKW[reach:], maps_NXKW[:-reach]
        joined = later[..., :K] @ earlier + F.pad(later[..., K:], (K, 0))
        maps_NXKW = torch.cat([maps_NXKW[:reach], joined])
        reach *= 2
    return maps_NXKW


def in_segments(
    rule: Rule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
    normalise: bool,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    """Run ``rule`` on segments of ``tokens`` tokens, all at once.

    Arguments and results as those of ``had.ops.cuda.cuda_gated_delta_rule``, which ``rule`` may be; the state in
    float32.
    """
    (B, L, H, K), V = q.shape, v.shape[-1]
    count = -(-L // tokens)

    def folded(x: Tensor) -> Tensor:
        # Zeros at the end change no state.
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, count * tokens - L))
        return x.reshape(B * count, tokens, *x.shape[2:])

    q_BLHK, k_BLHK, v_BLHV, g_BLH, beta_BLH = (folded(x) for x in (q, k, v, g, beta))
    with torch.autocast(q.device.type, enabled=False):
        identity = torch.eye(K, K + V, device=q.device).expand(B * count, H, K, K + V)
        _, maps = rule(q_BLHK, k_BLHK, F.pad(v_BLHV, (K, 0)), g_BLH, beta_BLH, scale, identity, normalise)
        maps_NXKW = _compose(maps.view(B, count, H, K, K + V).transpose(0, 1).flatten(1, 2))
        if initial_state is None:
            first_XKV = maps_NXKW.new_zeros(B * H, K, V)
        else:
            first_XKV = initial_state.to(maps_NXKW.dtype).flatten(0, 1)
        reached_NXKV = maps_NXKW[:-1, ..., :K] @ first_XKV + maps_NXKW[:-1, ..., K:]
        starts_NXKV = torch.cat([first_XKV[None], reached_NXKV])
        starts = starts_NXKV.view(count, B, H, K, V).transpose(0, 1).flatten(0, 1)
        o, ends = rule(q_BLHK, k_BLHK, v_BLHV, g_BLH, beta_BLH, scale, starts, normalise)
    return o.reshape(B, count * tokens, H, V)[:, :L], ends.view(B, count, H, K, V)[:, -1]
