"""The gated delta rule in chunks, with PyTorch's own operators: runs wherever PyTorch runs, gradients by autograd.

Within a chunk the delta rule is a lower triangular system (the WY form of Yang et al., arXiv 2406.06484 and
2412.06464), solved directly: the Neumann product that replaces the solve elsewhere diverges on repeated keys, such as
homopolymers give. Sums of log decays are added up inside the chunk, never subtracted from one another, and
exponentiated only where they are ≤ 0, so that a strong decay beside a weak one costs no precision.

Shape suffixes: N chunks, Z = B·H sequences and heads, C tokens of a chunk, K key width, V value width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from had.ops.arguments import normalise, working_dtype

CHUNK = 32
"""Tokens of a chunk."""


def _chunks(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L, H, D) → (N, B·H, CHUNK, D), padded at the end with zeros, which change no state."""
    B, L, H, D = x.shape
    x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, -L % CHUNK))
    return x.reshape(B, -1, CHUNK, H, D).permute(1, 0, 3, 2, 4).reshape(-1, B * H, CHUNK, D)


def chunked_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the gated delta rule in chunks of ``CHUNK`` tokens, on any device.

    Arguments as those of ``had.ops.gated_delta_rule``, checked by it, with at least one token. Half precisions are
    computed in float32. Returns the output (B, L, H, V) in the dtype of v and the final state (B, H, K, V).
    """
    B, L, H, K = q.shape
    V = v.shape[-1]
    dtype = working_dtype(v)
    with torch.autocast(q.device.type, enabled=False):
        q_NZCK, k_NZCK, v_NZCV = _chunks(q, dtype), _chunks(k, dtype), _chunks(v, dtype)
        g_NZC1, beta_NZC1 = _chunks(g[..., None], dtype), _chunks(beta[..., None], dtype)
        if use_qk_l2norm_in_kernel:
            q_NZCK, k_NZCK = normalise(q_NZCK), normalise(k_NZCK)
        q_NZCK = q_NZCK * scale

        later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril(-1)
        # Entry (i, j) is the log decay between tokens j < i: the sum of g over j < m ≤ i.
        log_decay_NZCC = g_NZC1.expand(-1, -1, -1, CHUNK).masked_fill(~later, 0).cumsum(-2)
        decay_NZCC = log_decay_NZCC.masked_fill(later.T, float("-inf")).exp()
        from_start_NZC1 = g_NZC1.cumsum(-2).exp()
        to_end_NZC1 = decay_NZCC[:, :, -1, :, None]

        k_beta_NZCK = k_NZCK * beta_NZC1
        system_NZCC = ((k_beta_NZCK @ k_NZCK.mT) * decay_NZCC).tril(-1)
        right_NZCX = torch.cat([v_NZCV * beta_NZC1, k_beta_NZCK * from_start_NZC1], dim=-1)
        solved_NZCX = torch.linalg.solve_triangular(system_NZCC, right_NZCX, upper=False, unitriangular=True)
        write_NZCV, read_NZCK = solved_NZCX.split([V, K], dim=-1)
        attention_NZCC = (q_NZCK @ k_NZCK.mT) * decay_NZCC
        q_NZCK = q_NZCK * from_start_NZC1
        k_NZKC = (k_NZCK * to_end_NZC1).mT

        if initial_state is None:
            state_ZKV = torch.zeros(B * H, K, V, dtype=dtype, device=q.device)
        else:
            state_ZKV = initial_state.to(dtype).reshape(B * H, K, V)
        outputs = []
        for n in range(q_NZCK.shape[0]):
            delta_ZCV = write_NZCV[n] - read_NZCK[n] @ state_ZKV
            outputs.append(q_NZCK[n] @ state_ZKV + attention_NZCC[n] @ delta_ZCV)
            state_ZKV = state_ZKV * from_start_NZC1[n, :, -1:] + k_NZKC[n] @ delta_ZCV
        o_NZCV = torch.stack(outputs)
        o_BLHV = o_NZCV.reshape(-1, B, H, CHUNK, V).permute(1, 0, 3, 2, 4).reshape(B, -1, H, V)[:, :L]
    return o_BLHV.to(v.dtype), state_ZKV.reshape(B, H, K, V)
