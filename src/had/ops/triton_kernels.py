"""Triton kernels of the CUDA backend: the gated delta rule chunk by chunk, forward and backward.

One program runs through the chunks of one (sequence, head) and one block of value channels, with the state S
(K x V) in registers. In a chunk of C tokens, with a the decay from the chunk's start, b the decay to its end, γ the
decay of the whole chunk and D_ij the decay between tokens j ≤ i,

    A = strictly lower (β k kᵀ ⊙ D),   X = (I + A)⁻¹,   δ = X β (v - a k S),   M = lower (q kᵀ ⊙ D),
    o = a q S + M δ,   S' = γ S + (b k)ᵀ δ

and backward, with ∂S' the gradient that reaches S' from later chunks,

    ∂δ = Mᵀ ∂o + b k ∂S',   ∂r = Xᵀ ∂δ,   ∂v = β ∂r,   ∂A = - strictly lower (∂r δᵀ),   ∂M = lower (∂o δᵀ),
    ∂S = γ ∂S' + (a q)ᵀ ∂o - (a β k)ᵀ ∂r

The forward pass keeps S at the beginning of every chunk; the backward pass computes the rest of a chunk again.

Every decay is exp of a sum of g that is added up token by token, never a difference of two sums, so that a strong
decay beside a weak one costs no precision; nothing is divided by α or β. X is built by inverting diagonal blocks of
2, 4, … C tokens, which is exact whatever the keys, unlike a Neumann product. The gradient of a token's g is a sum of
terms that all contain that token's decay.

Inputs are contiguous (B, L, H, ·) tensors. Beyond the last token of a chunk every row is 0, which changes no other
number. Programs share no memory and write every element of their outputs once. Offsets of a whole tensor are 64-bit,
those inside a chunk 32-bit.

No product here may become one of Hopper's asynchronous matrix instructions (wgmma), from whose results some versions of
Triton read transposed tensors wrongly (fla-org/flash-linear-attention issues 640 and 984). The compiler takes them only
with four or more warps and 64 or more rows: the caller keeps below one of the two.

Shape suffixes: C tokens of a chunk, K key width, V value channels of a block.
"""

import triton
import triton.language as tl

from had.ops.arguments import EPSILON as _EPSILON

EPSILON = tl.constexpr(_EPSILON)


@triton.jit
def _decays(g, C: tl.constexpr):
    """Decay from the chunk's start (C,), to its end (C,), over all of it (), and between tokens j ≤ i (C, C)."""
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    between = tl.cumsum(tl.where(i > j, g[:, None], 0.0), axis=0)
    to_end = tl.sum(tl.where(i == C - 1, between, 0.0), axis=0)
    decay = tl.where(i >= j, tl.exp(between), 0.0)
    return tl.exp(tl.cumsum(g, axis=0)), tl.exp(to_end), tl.exp(tl.sum(g, axis=0)), decay


@triton.jit
def _inverse(A, C: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """(I + A)⁻¹ of a strictly lower triangular A (C, C), from the inverses of its diagonal blocks."""
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    # Blocks of two tokens need no product.
    X = tl.where(i == j, 1.0, 0.0) - tl.where((i == j + 1) & (i % 2 == 1), A, 0.0)
    for level in tl.static_range(1, LEVELS):
        low, high = j >> level, i >> level
        corner = tl.where((high == low + 1) & (high % 2 == 1), A, 0.0)
        half = tl.dot(X, corner, input_precision=PRECISION)
        X -= tl.dot(half, X, input_precision=PRECISION)
    return X


@triton.jit
def _factors(x, NORMALISE: tl.constexpr):
    """1 / norm of each row, or ones."""
    squares = tl.sum(x * x, axis=1)
    return tl.rsqrt(squares + EPSILON) if NORMALISE else tl.zeros_like(squares) + 1.0


@triton.jit(do_not_specialize=["L", "H"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, beta_ptr, start_ptr, o_ptr, end_ptr, kept_ptr, L, H, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr,
    NORMALISE: tl.constexpr, HAS_START: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr, INVERSE_PRECISION: tl.constexpr,
):  # fmt: skip
    """Output, final state and, with KEEP, the state before every chunk; grid (B·H, blocks of V)."""
    unit = tl.program_id(0).to(tl.int64)
    row, i, j = tl.arange(0, C), tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    key, value = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    state_at = key[:, None] * V + value[None, :]
    state_inside = (key < K)[:, None] & (value < V)[None, :]
    keys_at, values_at = row[:, None] * (H * K) + key[None, :], row[:, None] * (H * V) + value[None, :]
    if HAS_START:
        S = tl.load(start_ptr + unit * (K * V) + state_at, mask=state_inside, other=0.0)
    else:
        S = tl.zeros((BK, BV), dtype=tl.float32)
    # Where the chunk begins in rows of (B, L, H), where its state is kept, and how many tokens are left.
    n_chunks = tl.cdiv(L, C)
    at = (unit // H) * L * H + unit % H
    kept_at = unit * n_chunks * (K * V)
    tokens = L
    for _ in range(n_chunks):
        inside = row < tokens
        keys_inside, values_inside = inside[:, None], inside[:, None]
        if K != BK:
            keys_inside = keys_inside & (key < K)[None, :]
        if V % BV != 0:
            values_inside = values_inside & (value < V)[None, :]
        q = tl.load(q_ptr + at * K + keys_at, mask=keys_inside, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + at * K + keys_at, mask=keys_inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at * V + values_at, mask=values_inside, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + at + row * H, mask=inside, other=0.0).to(tl.float32)
        beta = tl.load(beta_ptr + at + row * H, mask=inside, other=0.0).to(tl.float32)
        if KEEP:
            tl.store(kept_ptr + kept_at + state_at, S, mask=state_inside)
        q *= (_factors(q, NORMALISE) * scale)[:, None]
        k *= _factors(k, NORMALISE)[:, None]
        from_start, to_end, over_all, D = _decays(g, C)
        kT = tl.trans(k)
        A = tl.where(i > j, tl.dot(k, kT, input_precision=PRECISION) * D * beta[:, None], 0.0)
        X = _inverse(A, C, LEVELS, INVERSE_PRECISION)
        read = tl.dot(k, S, input_precision=PRECISION)
        delta = tl.dot(X, beta[:, None] * (v - from_start[:, None] * read), input_precision=PRECISION)
        M = tl.dot(q, kT, input_precision=PRECISION) * D
        o = tl.dot(q, S, input_precision=PRECISION) * from_start[:, None]
        o += tl.dot(M, delta, input_precision=PRECISION)
        tl.store(o_ptr + at * V + values_at, o.to(o_ptr.dtype.element_ty), mask=values_inside)
        S = S * over_all + tl.dot(kT * to_end[None, :], delta, input_precision=PRECISION)
        at += C * H
        kept_at += K * V
        tokens -= C
    tl.store(end_ptr + unit * (K * V) + state_at, S, mask=state_inside)


@triton.jit
def _row_gradients(d_rows, x, factors, scale, NORMALISE: tl.constexpr):
    """Gradient of x (C, K) from that of y = x · factor · scale: factor · scale · ∂y - factor² (y · ∂y) x."""
    found = d_rows * (factors * scale)[:, None]
    if NORMALISE:
        along = tl.sum(d_rows * x, axis=1) * scale * factors * factors * factors
        found -= along[:, None] * x
    return found


@triton.jit(do_not_specialize=["L", "H", "n_rows"])
def backward_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, beta_ptr, kept_ptr, do_ptr, d_end_ptr,
    dq_ptr, dk_ptr, dv_ptr, dg_ptr, dbeta_ptr, d_start_ptr, L, H, n_rows, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr,
    NORMALISE: tl.constexpr, HAS_END: tl.constexpr, HAS_START: tl.constexpr,
    PRECISION: tl.constexpr, INVERSE_PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of every input; grid (B·H, blocks of V).

    dq, dk, dg and dbeta have one more axis in front, the block of V, over which the caller sums; ``n_rows`` is B·L·H.
    """
    unit = tl.program_id(0).to(tl.int64)
    row, i, j = tl.arange(0, C), tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    key, value = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    part = tl.program_id(1).to(tl.int64) * n_rows
    state_at = key[:, None] * V + value[None, :]
    state_inside = (key < K)[:, None] & (value < V)[None, :]
    keys_at, values_at = row[:, None] * (H * K) + key[None, :], row[:, None] * (H * V) + value[None, :]
    if HAS_END:
        dS = tl.load(d_end_ptr + unit * (K * V) + state_at, mask=state_inside, other=0.0)
    else:
        dS = tl.zeros((BK, BV), dtype=tl.float32)
    n_chunks = tl.cdiv(L, C)
    last = (n_chunks - 1).to(tl.int64)
    at = (unit // H) * L * H + unit % H + last * (C * H)
    kept_at = (unit * n_chunks + last) * (K * V)
    tokens = L - (n_chunks - 1) * C
    for _ in range(n_chunks):
        inside = row < tokens
        keys_inside, values_inside = inside[:, None], inside[:, None]
        if K != BK:
            keys_inside = keys_inside & (key < K)[None, :]
        if V % BV != 0:
            values_inside = values_inside & (value < V)[None, :]
        q_raw = tl.load(q_ptr + at * K + keys_at, mask=keys_inside, other=0.0).to(tl.float32)
        k_raw = tl.load(k_ptr + at * K + keys_at, mask=keys_inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at * V + values_at, mask=values_inside, other=0.0).to(tl.float32)
        do = tl.load(do_ptr + at * V + values_at, mask=values_inside, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + at + row * H, mask=inside, other=0.0).to(tl.float32)
        beta = tl.load(beta_ptr + at + row * H, mask=inside, other=0.0).to(tl.float32)
        S = tl.load(kept_ptr + kept_at + state_at, mask=state_inside, other=0.0)
        q_factors, k_factors = _factors(q_raw, NORMALISE), _factors(k_raw, NORMALISE)
        q = q_raw * (q_factors * scale)[:, None]
        k = k_raw * k_factors[:, None]

        # The chunk's forward pass again.
        from_start, to_end, over_all, D = _decays(g, C)
        kT = tl.trans(k)
        N = tl.where(i > j, tl.dot(k, kT, input_precision=PRECISION) * D, 0.0)
        X = _inverse(N * beta[:, None], C, LEVELS, INVERSE_PRECISION)
        error = v - from_start[:, None] * tl.dot(k, S, input_precision=PRECISION)
        delta = tl.dot(X, beta[:, None] * error, input_precision=PRECISION)
        M = tl.dot(q, kT, input_precision=PRECISION) * D

        d_delta = tl.dot(tl.trans(M), do, input_precision=PRECISION)
        d_delta += tl.dot(k * to_end[:, None], dS, input_precision=PRECISION)
        d_right = tl.dot(tl.trans(X), d_delta, input_precision=PRECISION)
        dv = d_right * beta[:, None]
        tl.store(dv_ptr + at * V + values_at, dv.to(dv_ptr.dtype.element_ty), mask=values_inside)

        deltaT = tl.trans(delta)
        dA = tl.where(i > j, -tl.dot(d_right, deltaT, input_precision=PRECISION), 0.0)
        dM = tl.where(i >= j, tl.dot(do, deltaT, input_precision=PRECISION), 0.0)
        dbeta = tl.sum(d_right * error, axis=1) + tl.sum(dA * N, axis=1)

        ST = tl.trans(S)
        dq_start = tl.dot(do, ST, input_precision=PRECISION) * from_start[:, None]
        d_read = dv * -from_start[:, None]
        dk_start = tl.dot(d_read, ST, input_precision=PRECISION)
        dk_end = tl.dot(delta, tl.trans(dS), input_precision=PRECISION) * to_end[:, None]

        # Of ∂g at t: decays between j < t ≤ i, from the start to i ≥ t, from j < t to the end, and over the chunk.
        pairs = tl.where(i > j, dM * M, 0.0) + dA * N * beta[:, None]
        before = tl.cumsum(pairs, axis=1) - pairs
        from_starts = tl.sum(dq_start * q + dk_start * k, axis=1)
        to_ends = tl.sum(dk_end * k, axis=1)
        dg = tl.sum(tl.where(i >= j, before + from_starts[:, None], to_ends[:, None]), axis=0)
        dg += over_all * tl.sum(tl.sum(dS * S, axis=1), axis=0)

        d_qk = dM * D
        d_kk = dA * D * beta[:, None]
        dq = dq_start + tl.dot(d_qk, k, input_precision=PRECISION)
        dk = dk_start + dk_end + tl.dot(tl.trans(d_qk), q, input_precision=PRECISION)
        dk += tl.dot(d_kk + tl.trans(d_kk), k, input_precision=PRECISION)
        dq = _row_gradients(dq, q_raw, q_factors, scale, NORMALISE)
        dk = _row_gradients(dk, k_raw, k_factors, 1.0, NORMALISE)
        tl.store(dq_ptr + (part + at) * K + keys_at, dq.to(dq_ptr.dtype.element_ty), mask=keys_inside)
        tl.store(dk_ptr + (part + at) * K + keys_at, dk.to(dk_ptr.dtype.element_ty), mask=keys_inside)
        tl.store(dg_ptr + part + at + row * H, dg.to(dg_ptr.dtype.element_ty), mask=inside)
        tl.store(dbeta_ptr + part + at + row * H, dbeta.to(dbeta_ptr.dtype.element_ty), mask=inside)

        dS = dS * over_all + tl.dot(tl.trans(q * from_start[:, None]), do, input_precision=PRECISION)
        dS += tl.dot(kT, d_read, input_precision=PRECISION)
        at -= C * H
        kept_at -= K * V
        tokens += C
    if HAS_START:
        tl.store(d_start_ptr + unit * (K * V) + state_at, dS, mask=state_inside)
