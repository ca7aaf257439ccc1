"""The gated delta rule as its definition reads: one token after another, in plain PyTorch.

Slow, and the twin that every backend is tested against. Shape suffixes: B batch, H heads, K key width, V value width.
"""

import torch
from torch import Tensor

from had.ops.arguments import check_arguments, normalise, working_dtype


def reference_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Run the gated delta rule sequentially; gradients come from autograd.

    Per head, with state S of shape (K, V) (Yang, Kautz, Hatamizadeh, arXiv 2412.06464)::

        S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,    o_t = scale · S_tᵀ q_t,    α_t = exp(g_t)

    Parameters
    ----------
    q, k
        Queries and keys, (B, L, H, K), of any floating-point dtype.
    v
        Values, (B, L, H, V).
    g
        Logarithm of the decay α, ≤ 0, (B, L, H).
    beta
        Write strength, (B, L, H).
    scale
        Factor of the queries; ``K ** -0.5`` by default.
    initial_state
        State before the first token, (B, H, K, V); zero by default.
    output_final_state
        Also return the state after the last token.
    use_qk_l2norm_in_kernel
        Divide each row of q and k by its norm first.

    Returns
    -------
    tuple
        The output (B, L, H, V) in the dtype of v, and the final state (B, H, K, V) in float32 (float64 where v is
        float64), or None.

    Raises
    ------
    ValueError
        Where shapes, dtypes or devices do not fit together.
    """
    check_arguments(q, k, v, g, beta, initial_state)
    B, L, H, K = q.shape
    V = v.shape[-1]
    dtype = working_dtype(v)
    scale = K**-0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        q_BLHK, k_BLHK, v_BLHV, g_BLH, beta_BLH = (x.to(dtype) for x in (q, k, v, g, beta))
        if use_qk_l2norm_in_kernel:
            q_BLHK, k_BLHK = normalise(q_BLHK), normalise(k_BLHK)
        if initial_state is None:
            state_BHKV = torch.zeros(B, H, K, V, dtype=dtype, device=q.device)
        else:
            state_BHKV = initial_state.to(dtype)
        outputs = []
        for t in range(L):
            state_BHKV = state_BHKV * g_BLH[:, t, :, None, None].exp()
            read_BHV = (state_BHKV * k_BLHK[:, t, :, :, None]).sum(-2)
            write_BHV = beta_BLH[:, t, :, None] * (v_BLHV[:, t] - read_BHV)
            state_BHKV = state_BHKV + k_BLHK[:, t, :, :, None] * write_BHV[:, :, None, :]
            outputs.append((state_BHKV * q_BLHK[:, t, :, :, None]).sum(-2) * scale)
        o_BLHV = torch.stack(outputs, dim=1) if outputs else v_BLHV
    return o_BLHV.to(v.dtype), state_BHKV if output_final_state else None
