"""The CUDA backend's Triton kernels against the definition: on a GPU, or interpreted on the CPU where there is none.

The interpreter shows that the arithmetic is right. What it cannot show (races, layouts, the compiler) is left to a GPU.
"""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from had.errors import UserError  # noqa: E402
from had.ops import cuda, gated_delta_rule  # noqa: E402
from had.ops.chunked import chunked_gated_delta_rule  # noqa: E402
from had.ops.cuda import cuda_gated_delta_rule, segment_length  # noqa: E402
from had.ops.cuda_trial import why_wrong  # noqa: E402
from had.ops.gated_delta_rule import _say  # noqa: E402
from had.ops.segments import in_segments  # noqa: E402
from tests.ops.rule_cases import AWKWARD, NAMES, Case, assert_close, awkward_case, make_case, reference, run  # noqa: E402
from tests.ops.triton_interpreter import cut_products, mend  # noqa: E402

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
pytestmark = [pytest.mark.gpu] if ON_GPU else []
only_on_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
only_interpreted = pytest.mark.skipif(ON_GPU, reason="looks into the interpreter")
if not ON_GPU:
    mend()


@pytest.fixture(autouse=True)
def _forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAD_BACKEND", "cuda")


def moved(case: Case) -> Case:
    return Case(**{name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in vars(case).items()})


def compute(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: x.cpu() for name, x in run(gated_delta_rule, moved(case), dtype).items()}


def one_head(case: Case) -> Case:
    """The first sequence and head: the interpreter's time grows with their number."""
    cut = {name: x[:1, :, :1] for name, x in vars(case).items() if isinstance(x, Tensor)}
    cut |= {name: getattr(case, name)[:1, :1] for name in ("initial_state", "dstate")}
    return replace(case, **cut)


@pytest.mark.parametrize(
    ("B", "L", "H"), [(2, 1, 3), (3, 5, 2), (2, 6, 2), (1, 15, 1), (1, 16, 1), (1, 17, 1), (1, 63, 1), (1, 65, 1)]
)
def test_agrees_with_the_definition_at_odd_lengths(B: int, L: int, H: int) -> None:
    case = make_case(B, L, H=H, K=32, V=64)
    assert_close(compute(case), reference(case))


@pytest.mark.slow
@pytest.mark.parametrize(("B", "L", "H"), [(2, 130, 2), (1, 1020, 1)])
def test_agrees_with_the_definition_at_more_lengths(B: int, L: int, H: int) -> None:
    case = make_case(B, L, H=H, K=32, V=64)
    assert_close(compute(case), reference(case))


def test_rows_that_are_already_of_unit_length_need_no_normalising() -> None:
    case = make_case(1, 37, H=1, K=32, V=64)
    k = (case.k / case.k.norm(dim=-1, keepdim=True)).float().double()
    case = replace(case, q=case.q / 4, k=k, normalise=False)
    assert_close(compute(case), reference(case))


@pytest.mark.parametrize(("K", "V"), [(2, 1), (5, 3), (16, 16), (16, 128), (40, 100), (64, 64), (64, 128)])
def test_any_width_up_to_the_largest_is_computed(K: int, V: int) -> None:
    case = make_case(1, 20, H=2, K=K, V=V)
    assert_close(compute(case), reference(case))


@pytest.mark.parametrize("kind", AWKWARD)
def test_agrees_with_the_definition_on_awkward_inputs(kind: str) -> None:
    case = one_head(awkward_case(kind, L=40, K=32, V=64))
    assert_close(compute(case), reference(case))


@pytest.mark.parametrize("tokens", [32])
def test_longer_chunks_agree_with_the_definition_too(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cuda.PLANS, "float32", replace(cuda.PLANS["float32"], tokens=tokens))
    for case in (make_case(1, 70, H=1, K=32, V=64), one_head(awkward_case("homopolymer", L=70, K=32, V=64))):
        assert_close(compute(case), reference(case))


def test_tiny_gradients_of_a_strong_decay_keep_their_relative_precision() -> None:
    case = one_head(awkward_case("strong decay", L=40, K=32, V=64))
    single = compute(case)
    double = run(_chunked, case, torch.float64)
    assert double["dg"].abs().max() > 0
    for name in NAMES:
        error = (single[name].double() - double[name]).abs().max() / double[name].abs().max()
        assert error <= 1e-4, name


def _chunked(q, k, v, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel):
    return chunked_gated_delta_rule(q, k, v, g, beta, q.shape[-1] ** -0.5, initial_state, use_qk_l2norm_in_kernel)


def test_a_decay_to_nothing_forgets_and_gives_finite_gradients() -> None:
    case = make_case(1, 40, H=1, K=32, V=64)
    g = case.g.clone()
    g[:, 20] = float("-inf")
    case = replace(case, g=g)
    found, expected = compute(case), reference(case)
    assert all(torch.isfinite(found[name]).all() for name in NAMES)
    assert_close(found, expected)


def test_nothing_depends_on_unwritten_memory() -> None:
    case = make_case(1, 37, H=2, K=5, V=40)
    clean = compute(case)
    # In this mode PyTorch fills every new uninitialised tensor with NaN.
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        poisoned = compute(case)
        with torch.no_grad():
            inputs = [x.float().to(DEVICE) for x in case.inputs()[:5]]
            forward = gated_delta_rule(*inputs, use_qk_l2norm_in_kernel=True)[0]
    finally:
        torch.use_deterministic_algorithms(False)
    for name in NAMES:
        assert torch.equal(clean[name], poisoned[name]), name
    assert torch.isfinite(forward).all()


def test_without_gradients_the_output_is_the_same_and_no_state_is_kept() -> None:
    inputs = [x.float().to(DEVICE) for x in make_case(1, 20, H=1, K=32, V=64).inputs()[:5]]
    o, end, kept = torch.ops.had.gated_delta_rule_forward(*inputs, None, 0.25, True, False)
    with_kept = torch.ops.had.gated_delta_rule_forward(*inputs, None, 0.25, True, True)
    assert kept.numel() == 0
    assert torch.equal(o, with_kept[0])
    assert torch.equal(end, with_kept[1])
    # The first kept state is the initial one, none here.
    assert not with_kept[2][0, 0].any()


def test_nan_in_the_input_reaches_the_output_of_its_head_only() -> None:
    case = make_case(1, 20, K=16, V=16)
    v = case.v.clone()
    v[0, 10, 0, 3] = float("nan")
    o = compute(replace(case, v=v))["o"]
    assert o[0, 10:, 0, 3].isnan().all()
    assert torch.isfinite(o[:, :, 1]).all()


def _strided(x: Tensor) -> Tensor:
    """The same numbers with gaps between and inside rows."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), float("nan"), dtype=x.dtype, device=x.device)
    view = wide[..., 1 : 2 * x.shape[-1] + 1 : 2]
    view.copy_(x)
    return view


@pytest.mark.parametrize("layout", ["gaps in rows", "heads first", "slices of one tensor"])
def test_strided_inputs_give_the_same_numbers(layout: str) -> None:
    case = make_case(2, 17, H=2, K=16, V=32)
    expected = compute(case)
    inputs = [x.float().to(DEVICE) for x in case.inputs()]
    if layout == "gaps in rows":
        inputs = [_strided(x) for x in inputs]
    elif layout == "heads first":
        inputs[:5] = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:5]]
    else:
        inputs[:3] = list(torch.cat(inputs[:3], dim=-1).split([16, 16, 32], dim=-1))
    assert not inputs[0].is_contiguous()
    leaves = [x.detach().requires_grad_() for x in inputs]
    o, state = gated_delta_rule(
        *leaves[:5], initial_state=leaves[5], output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    upstream = case.do.float().to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)
    d_state = case.dstate.float().to(DEVICE).transpose(2, 3).contiguous().transpose(2, 3)
    gradients = torch.autograd.grad([o, state], leaves, [upstream, d_state])
    for name, found in zip(NAMES, (o, state, *gradients), strict=True):
        torch.testing.assert_close(found.cpu(), expected[name], rtol=0, atol=1e-6)


def test_the_gradient_of_only_the_output_or_only_the_state_is_right() -> None:
    case = make_case(2, 9, K=16, V=16)
    nothing = {"do": torch.zeros_like(case.do), "dstate": torch.zeros_like(case.dstate)}
    for index, name in enumerate(("do", "dstate")):
        expected = reference(replace(case, **{k: x for k, x in nothing.items() if k != name}))
        leaves = [x.float().to(DEVICE).requires_grad_() for x in case.inputs()]
        results = gated_delta_rule(
            *leaves[:5], initial_state=leaves[5], output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        upstream = getattr(case, name).float().to(DEVICE)
        found = torch.autograd.grad(results[index], leaves, upstream)
        assert_close(
            {**expected, **{k: x.cpu() for k, x in zip(NAMES[2:], found, strict=True)}},
            expected,
        )


@pytest.mark.parametrize(("B", "L"), [(0, 7), (2, 0), (0, 0)])
def test_no_sequence_or_no_token_gives_empty_output(B: int, L: int) -> None:
    case = make_case(B, L)
    leaves = [x.float().to(DEVICE).requires_grad_() for x in case.inputs()]
    o, state = gated_delta_rule(*leaves[:5], initial_state=leaves[5], output_final_state=True)
    assert o.shape == (B, L, 2, 16)
    assert state is not None
    assert torch.equal(state, leaves[5])
    (o.sum() + state.sum()).backward()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_decay_or_write_is_an_identity_with_no_gradient(side: str) -> None:
    real, padding = make_case(1, 25, H=1, K=32, V=64), make_case(1, 21, H=1, K=32, V=64, seed=1)
    real = replace(real, initial_state=torch.zeros_like(real.initial_state))
    padding = replace(padding, g=padding.g * 0, beta=padding.beta * 0, do=padding.do * 0)
    if side == "right":
        real = replace(real, dstate=torch.zeros_like(real.dstate))
    first, second = (padding, real) if side == "left" else (real, padding)
    tensors = ("q", "k", "v", "g", "beta", "do")
    joined = {name: torch.cat([getattr(first, name), getattr(second, name)], 1) for name in tensors}
    whole, alone = compute(replace(real, **joined)), compute(real)
    outside = slice(0, 21) if side == "left" else slice(25, None)
    inside = slice(21, None) if side == "left" else slice(0, 25)
    for name in ("dq", "dk", "dv", "dg", *(["dbeta"] if side == "right" else [])):
        assert not whole[name][:, outside].any(), name
    for name in NAMES[:7]:
        found = whole[name] if name == "state" else whole[name][:, inside]
        torch.testing.assert_close(found, alone[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["random", "identical keys", "strong beside weak decay"])
def test_half_precisions_err_by_their_rounding(dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the CPU the products' operands are cut to what a matrix unit reads.
    seen = [] if ON_GPU else cut_products(monkeypatch)
    case = make_case(1, 37, H=1, K=32, V=64)
    if kind != "random":
        case = one_head(awkward_case(kind, L=37, K=32, V=64))
    rounded = {name: getattr(case, name).to(dtype).double() for name in ("q", "k", "v", "do")}
    case = moved(replace(case, **rounded))
    halves = [x.to(dtype).requires_grad_() for x in (case.q, case.k, case.v)]
    leaves = halves + [x.float().requires_grad_() for x in (case.g, case.beta, case.initial_state)]
    o, state = gated_delta_rule(
        *leaves[:5], initial_state=leaves[5], output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    assert o.dtype == dtype
    assert state is not None
    assert state.dtype == torch.float32
    gradients = torch.autograd.grad([o, state], leaves, [case.do.to(dtype), case.dstate.float()])
    assert [x.dtype for x in gradients] == [x.dtype for x in leaves]
    expected = reference(case)
    for name, found in zip(NAMES, (o, state, *gradients), strict=True):
        error = (found.double() - expected[name]).abs().max() / expected[name].abs().max()
        # The errors v - S k, of which dbeta is made, are differences where keys repeat.
        assert error <= (2e-2 if name == "dbeta" else 1e-2), (name, float(error))
    assert ON_GPU or set(seen) == {"TF32", "TF32x3"}


@only_interpreted
def test_float32_is_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = cut_products(monkeypatch)
    compute(make_case(1, 3, H=1, K=16, V=16))
    assert set(seen) == {"IEEE"}


def test_autocast_leaves_the_recurrence_as_it_is() -> None:
    inputs = [x.float().to(DEVICE) for x in make_case(1, 20, K=16, V=16).inputs()[:5]]
    expected = gated_delta_rule(*inputs)[0]
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert torch.equal(gated_delta_rule(*inputs)[0], expected)


def _rule_in_segments(q, k, v, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel):
    return in_segments(
        chunked_gated_delta_rule, q, k, v, g, beta, q.shape[-1] ** -0.5, initial_state, use_qk_l2norm_in_kernel, 32,
    )  # fmt: skip


@pytest.mark.parametrize("L", [20, 64, 97, 300])
def test_segments_computed_beside_one_another_agree_with_the_definition(L: int) -> None:
    for case in (make_case(2, L, K=8, V=12), awkward_case("homopolymer", L=L), awkward_case("strong decay", L=L)):
        assert_close(run(_rule_in_segments, case, torch.float32), reference(case))


def test_a_long_sequence_alone_on_a_gpu_is_cut_into_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "SHORTEST_SEGMENT", 8)
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 1)
    cut = []
    monkeypatch.setattr(cuda, "in_segments", lambda *args: cut.append(args[-1]) or in_segments(*args))
    case = make_case(1, 130, H=1, K=16, V=16)
    assert_close(compute(case), reference(case))
    assert cut == [64]


@pytest.mark.parametrize(
    ("B", "L", "expected"), [(512, 1020, 1020), (2, 1020, 1020), (2, 131_072, 1024), (16, 131_072, 8192)]
)
def test_segments_are_cut_only_where_a_gpu_would_be_idle(B: int, L: int, expected: int) -> None:
    assert segment_length(B, L, 2, programs=1, multiprocessors=132) == expected


def test_a_compiled_function_holds_the_rule_in_one_graph() -> None:
    case = make_case(1, 20, H=1, K=16, V=16)
    expected = compute(case)

    def rule(*inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        return gated_delta_rule(
            *inputs[:5], initial_state=inputs[5], output_final_state=True, use_qk_l2norm_in_kernel=True
        )

    compiled = torch.compile(rule, backend="aot_eager", fullgraph=True)
    leaves = [x.float().to(DEVICE).requires_grad_() for x in case.inputs()]
    results = compiled(*leaves)
    upstream = [case.do.float().to(DEVICE), case.dstate.float().to(DEVICE)]
    gradients = torch.autograd.grad(results, leaves, upstream)
    for name, found in zip(NAMES, (*results, *gradients), strict=True):
        torch.testing.assert_close(found.cpu(), expected[name], rtol=0, atol=1e-6)


def test_the_operators_are_what_pytorch_asks_of_operators() -> None:
    inputs = [x.float().to(DEVICE).requires_grad_() for x in make_case(1, 3, H=1, K=16, V=16).inputs()]
    torch.library.opcheck(torch.ops.had.gated_delta_rule_forward, (*inputs, 0.25, True, True))
    with torch.no_grad():
        results = torch.ops.had.gated_delta_rule_forward(*inputs, 0.25, True, True)
    plain = [x.detach() for x in inputs]
    torch.library.opcheck(
        torch.ops.had.gated_delta_rule_backward,
        (*plain[:5], results[2], torch.ones_like(plain[2]), torch.ones_like(results[1]), 0.25, True, True),
    )


def test_the_trial_passes_right_kernels() -> None:
    why_wrong.cache_clear()
    assert why_wrong(DEVICE, torch.float32, 16, 16, False) is None


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("broken", ["wrong", "NaN", "failing"])
def test_the_trial_finds_wrong_kernels(broken: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*args):
        if broken == "failing":
            raise RuntimeError("out of resources\nmore lines")
        o, state = chunked_gated_delta_rule(*args)
        # Forward right, gradients wrong, is what is known of other kernels.
        factor = torch.full_like(o, float("nan") if broken == "NaN" else 1.5)
        return (o * factor).detach() + o - o.detach() if not train else o.detach() + (o - o.detach()) * factor, state

    # The package's attribute of this name is the function, so the module is named in full.
    monkeypatch.setattr("had.ops.cuda_trial.cuda_gated_delta_rule", spoiled)
    why_wrong.cache_clear()
    reason = why_wrong(DEVICE, torch.float32, 16, 16, train)
    why_wrong.cache_clear()
    assert reason is not None
    assert ("fail here (RuntimeError: out of resources)" if broken == "failing" else "wrongly") in reason
    assert "\n" not in reason


def test_what_the_kernels_do_not_compute_is_refused_when_forced() -> None:
    for case, dtype, message in (
        (make_case(1, 4, K=65), torch.float32, "K up to 64"),
        (make_case(1, 4), torch.float64, "float32, bfloat16 and float16 only"),
    ):
        with pytest.raises(UserError, match=message):
            gated_delta_rule(*[x.to(DEVICE, dtype) for x in case.inputs()[:5]])


@only_interpreted
def test_the_backend_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    _say.cache_clear()
    inputs = [x.float() for x in make_case(1, 2, H=1, K=16, V=16).inputs()[:5]]
    with caplog.at_level(logging.INFO, logger="had"):
        for _ in range(2):
            gated_delta_rule(*inputs)
    assert [record.message for record in caplog.records] == ["gated delta rule: cuda (HAD_BACKEND)"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("capability", "kind", "K", "V"), [(90, "half", 32, 64), (90, "half", 64, 128), (80, "half", 32, 64)]
)
def test_the_compiler_makes_no_asynchronous_products_and_needs_little_shared_memory(
    capability: int, kind: str, K: int, V: int
) -> None:
    command = [sys.executable, "-m", "tests.ops.compile_for_gpu", str(capability), kind, str(K), str(V)]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for kernel in json.loads(result.stdout):
        assert kernel["asynchronous"] == 0
        assert kernel["tensor_core"] > 0
        # What every GPU since 2018 gives a program without asking.
        assert kernel["shared_bytes"] <= 48 * 1024


@only_on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_size_of_a_training_step_it_agrees_with_the_chunked_rule(dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    B, L = 256, 1020
    inputs = [normal(B, L, 2, 32), normal(B, L, 2, 32), normal(B, L, 2, 64)]
    gates = [-0.1 * normal(B, L, 2).abs(), torch.sigmoid(normal(B, L, 2))]
    upstream = normal(B, L, 2, 64)
    results = []
    for rule in (cuda_gated_delta_rule, chunked_gated_delta_rule):
        leaves = [x.to(dtype).requires_grad_() for x in inputs] + [x.clone().requires_grad_() for x in gates]
        o, _ = rule(*leaves, 32**-0.5, None, True)
        results.append([o.detach(), *torch.autograd.grad(o, leaves, upstream.to(dtype))])
    for name, ours, theirs in zip(("o", *NAMES[2:7]), *results, strict=True):
        error = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
        assert error <= (1e-4 if dtype == torch.float32 else 2e-2), (name, float(error))


@only_on_gpu
def test_runs_are_repeatable_bit_for_bit() -> None:
    """A race would show as numbers that change."""
    case = moved(make_case(64, 1020, K=32, V=64))
    first, second = (run(gated_delta_rule, case, torch.bfloat16) for _ in range(2))
    for name in NAMES:
        assert torch.equal(first[name], second[name]), name


@only_on_gpu
def test_offsets_beyond_32_bits_are_right() -> None:
    B, L = 140_000, 256
    v = torch.zeros(B, L, 1, 64, dtype=torch.bfloat16, device="cuda")
    assert v.numel() > 2**31
    v[-1] = torch.randn(L, 1, 64, device="cuda")
    q = torch.randn(1, L, 1, 16, device="cuda", dtype=torch.bfloat16).expand(B, -1, -1, -1)
    gates = torch.full((B, L, 1), -0.1, device="cuda"), torch.full((B, L, 1), 0.5, device="cuda")
    with torch.no_grad():
        o, _ = gated_delta_rule(q, q, v, *gates, use_qk_l2norm_in_kernel=True)
        last, _ = gated_delta_rule(q[-1:], q[-1:], v[-1:], *(x[-1:] for x in gates), use_qk_l2norm_in_kernel=True)
    assert torch.equal(o[-1], last[0])
    assert not o[:-1].any()


@only_on_gpu
def test_a_long_input_agrees_with_the_chunked_rule() -> None:
    inputs = [x.float().cuda() for x in make_case(1, 131_072, H=2, K=32, V=64).inputs()[:5]]
    with torch.no_grad():
        o, state = cuda_gated_delta_rule(*inputs, 32**-0.5, None, True)
        expected, expected_state = chunked_gated_delta_rule(*inputs, 32**-0.5, None, True)
    for found, right in ((o, expected), (state, expected_state)):
        assert (found - right).abs().max() <= 1e-4 * right.abs().max()


@only_on_gpu
def test_a_cuda_graph_holds_both_passes() -> None:
    case = moved(make_case(2, 65, K=32, V=64))
    leaves = [x.float().requires_grad_() for x in case.inputs()[:5]]

    def step() -> tuple[Tensor, ...]:
        o, _ = gated_delta_rule(*leaves, use_qk_l2norm_in_kernel=True)
        return o, *torch.autograd.grad(o, leaves, case.do.float())

    expected = [x.clone() for x in step()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for x in captured:
        x.detach().zero_()
    graph.replay()
    for found, right in zip(captured, expected, strict=True):
        assert torch.equal(found, right)


@only_on_gpu
def test_the_rule_never_waits_for_the_gpu() -> None:
    case = moved(make_case(2, 65, K=32, V=64))
    leaves = [x.float().requires_grad_() for x in case.inputs()[:5]]
    gated_delta_rule(*leaves, use_qk_l2norm_in_kernel=True)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gated_delta_rule(*leaves, use_qk_l2norm_in_kernel=True)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
