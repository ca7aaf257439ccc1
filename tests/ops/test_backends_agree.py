"""Every backend against the sequential definition in float64: outputs, states and each gradient."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from had.ops import gated_delta_rule, reference_gated_delta_rule
from tests.ops.rule_cases import AWKWARD, NAMES, Case, assert_close, awkward_case, make_case, reference, run


@pytest.fixture(params=["cpu", "chunked", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        pytest.importorskip("numba")
    monkeypatch.setenv("HAD_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("L", [1, 5, 6, 63, 65])
def test_agrees_with_the_definition_at_odd_lengths(backend: str, L: int, normalise: bool) -> None:
    case = make_case(2, L, H=2, K=8, V=16)
    if not normalise:
        k = (case.k / case.k.norm(dim=-1, keepdim=True)).float().double()
        case = replace(case, q=case.q / 4, k=k, normalise=False)
    assert_close(run(gated_delta_rule, case, torch.float32), reference(case))


@functools.cache
def _student_window() -> tuple[Case, dict[str, torch.Tensor]]:
    case = make_case(1, 1020, H=2, K=32, V=64)
    return case, reference(case)


def test_agrees_with_the_definition_at_the_students_width(backend: str) -> None:
    case, expected = _student_window()
    assert_close(run(gated_delta_rule, case, torch.float32), expected)


@pytest.mark.parametrize(("K", "V"), [(1, 1), (3, 5), (16, 40), (40, 8), (64, 96)])
def test_any_width_is_computed(backend: str, K: int, V: int) -> None:
    case = make_case(1, 37, H=3, K=K, V=V)
    assert_close(run(gated_delta_rule, case, torch.float32), reference(case))


@pytest.mark.parametrize("kind", AWKWARD)
def test_agrees_with_the_definition_on_awkward_inputs(backend: str, kind: str) -> None:
    case = awkward_case(kind)
    assert_close(run(gated_delta_rule, case, torch.float32), reference(case))


def test_tiny_gradients_of_a_strong_decay_keep_their_relative_precision(backend: str) -> None:
    case = awkward_case("strong decay", K=32, V=64)
    single, double = run(gated_delta_rule, case, torch.float32), run(gated_delta_rule, case, torch.float64)
    assert double["dg"].abs().max() > 0
    for name in NAMES:
        error = (single[name].double() - double[name]).abs().max() / double[name].abs().max()
        assert error <= 1e-4, name


def test_a_decay_to_nothing_forgets_and_gives_finite_gradients(backend: str) -> None:
    case = make_case(1, 40)
    g = case.g.clone()
    g[:, 20] = float("-inf")
    whole = run(gated_delta_rule, replace(case, g=g), torch.float32)
    assert all(torch.isfinite(whole[name]).all() for name in NAMES)
    assert whole["dinitial_state"].abs().max() > 0
    alone = replace(
        case, **{name: getattr(case, name)[:, 20:] for name in ("q", "k", "v", "g", "beta", "do")},
        initial_state=torch.zeros_like(case.initial_state),
    )  # fmt: skip
    assert_close({name: whole[name][:, 20:] for name in ("o", "dv")}, reference(alone))


def test_in_float64_it_is_the_definition_to_rounding(backend: str) -> None:
    case = make_case(2, 65, K=16, V=24)
    found, expected = run(gated_delta_rule, case, torch.float64), reference(case)
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 3), st.integers(1, 12), st.integers(1, 40)),
    decay=st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
    write=st.sampled_from([0.0, 0.5, 1.0, 1.9]),
    seed=st.integers(0, 2**16),
)
def test_every_shape_and_gate_agrees_in_float64(
    backend: str, shape: tuple[int, int, int, int, int], decay: float, write: float, seed: int
) -> None:
    case = make_case(*shape, seed=seed)
    case = replace(case, g=case.g * 5 * decay, beta=case.beta * write)
    found, expected = run(gated_delta_rule, case, torch.float64), reference(case)
    for name in NAMES:
        scale = expected[name].abs().max().item() + 1e-30
        torch.testing.assert_close(found[name] / scale, expected[name] / scale, rtol=0, atol=1e-9)


def test_gradients_are_the_slopes_of_the_output() -> None:
    pytest.importorskip("numba")
    case = make_case(1, 4, H=1, K=3, V=2)
    leaves = [x.requires_grad_() for x in case.inputs()]

    def rule(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        o, state = gated_delta_rule(
            *tensors[:5], scale=0.7, initial_state=tensors[5], output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        assert state is not None
        return o, state

    assert torch.autograd.gradcheck(rule, leaves)


def test_nothing_depends_on_unwritten_memory(backend: str) -> None:
    case = make_case(2, 65, K=32, V=64)
    clean = run(gated_delta_rule, case, torch.float32)
    # In this mode PyTorch fills every new uninitialised tensor with NaN; the arrays leave NaN in freed memory too.
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        for size in (8, 32, 64, 256, 1024, 2048, 33 * 2048):
            _ = [np.full(size, np.nan, dtype=np.float32) for _ in range(4)]
        poisoned = run(gated_delta_rule, case, torch.float32)
        with torch.no_grad():
            forward = gated_delta_rule(*[x.float() for x in case.inputs()[:5]], use_qk_l2norm_in_kernel=True)[0]
    finally:
        torch.use_deterministic_algorithms(False)
    for name in NAMES:
        assert torch.equal(clean[name], poisoned[name]), name
    assert torch.isfinite(forward).all()


def test_nan_in_the_input_reaches_the_output(backend: str) -> None:
    case = make_case(1, 20)
    v = case.v.clone()
    v[0, 10, 0, 3] = float("nan")
    o = run(gated_delta_rule, replace(case, v=v), torch.float32)["o"]
    assert o[0, 10:, 0, 3].isnan().all()
    assert torch.isfinite(o[:, :, 1]).all()
    if backend != "chunked":
        # A chunk is computed at once, and 0 · NaN is NaN.
        assert torch.isfinite(o[:, :10]).all()


def _strided(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with gaps between and inside rows."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), float("nan"), dtype=x.dtype)
    view = wide[..., 1 : 2 * x.shape[-1] + 1 : 2]
    view.copy_(x)
    return view


@pytest.mark.parametrize("layout", ["gaps in rows", "heads first", "slices of one tensor"])
def test_strided_inputs_give_the_same_numbers(backend: str, layout: str) -> None:
    case = make_case(3, 33, H=2, K=8, V=32)
    expected = run(gated_delta_rule, case, torch.float32)
    inputs = [x.float() for x in case.inputs()]
    if layout == "gaps in rows":
        inputs = [_strided(x) for x in inputs]
    elif layout == "heads first":
        inputs[:5] = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:5]]
    else:
        joined = torch.cat(inputs[:3], dim=-1)
        inputs[:3] = list(joined.split([8, 8, 32], dim=-1))
    assert not inputs[0].is_contiguous()
    leaves = [x.detach().requires_grad_() for x in inputs]
    o, state = gated_delta_rule(
        *leaves[:5], initial_state=leaves[5], output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    upstream = case.do.float().transpose(1, 2).contiguous().transpose(1, 2)
    gradients = torch.autograd.grad([o, state], leaves, [upstream, case.dstate.float()])
    found = dict(zip(NAMES, (o.detach(), state.detach(), *gradients), strict=True))
    assert_close(found, reference(case))
    if backend == "cpu":  # its loops read any strides in one order; PyTorch's products need not
        assert all(torch.equal(found[name], expected[name]) for name in NAMES)


def test_an_expanded_upstream_gradient_is_read_correctly(backend: str) -> None:
    case = make_case(2, 9)
    case = replace(case, do=torch.ones_like(case.do), dstate=torch.zeros_like(case.dstate))
    expected = reference(case)
    leaves = [x.float().requires_grad_() for x in case.inputs()]
    gated_delta_rule(*leaves[:5], initial_state=leaves[5], use_qk_l2norm_in_kernel=True)[0].sum().backward()
    found = {name: leaf.grad for name, leaf in zip(NAMES[2:], leaves, strict=True) if leaf.grad is not None}
    assert found.keys() == set(NAMES[2:])
    assert_close(found, expected)


@pytest.mark.parametrize(("B", "L"), [(0, 7), (2, 0), (0, 0)])
def test_no_sequence_or_no_token_gives_empty_output(backend: str, B: int, L: int) -> None:
    case = make_case(B, L)
    leaves = [x.float().requires_grad_() for x in case.inputs()]
    o, state = gated_delta_rule(*leaves[:5], initial_state=leaves[5], output_final_state=True)
    assert o.shape == (B, L, 2, 16)
    assert state is not None
    assert torch.equal(state, leaves[5])
    (o.sum() + state.sum()).backward()
    assert leaves[2].grad is not None
    assert leaves[2].grad.shape == (B, L, 2, 16)


def test_two_segments_with_the_state_handed_on_are_one_run(backend: str) -> None:
    case = make_case(2, 65, K=32, V=64)

    def in_two(q, k, v, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel):
        state, outputs = initial_state, []
        for part in (slice(0, 40), slice(40, None)):
            o, state = gated_delta_rule(
                q[:, part], k[:, part], v[:, part], g[:, part], beta[:, part],
                initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            )  # fmt: skip
            outputs.append(o)
        return torch.cat(outputs, dim=1), state

    assert_close(run(in_two, case, torch.float32), reference(case))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_decay_or_write_is_an_exact_identity(backend: str, side: str) -> None:
    real, padding = make_case(2, 45, K=32, V=64), make_case(2, 21, K=32, V=64, seed=1)
    real = replace(real, initial_state=torch.zeros_like(real.initial_state))
    padding = replace(padding, g=padding.g * 0, beta=padding.beta * 0, do=padding.do * 0)
    if side == "right":
        real = replace(real, dstate=torch.zeros_like(real.dstate))
    first, second = (padding, real) if side == "left" else (real, padding)
    tensors = ("q", "k", "v", "g", "beta", "do")
    joined = {name: torch.cat([getattr(first, name), getattr(second, name)], 1) for name in tensors}
    whole = run(gated_delta_rule, replace(real, **joined), torch.float32)
    alone = run(gated_delta_rule, real, torch.float32)
    outside = slice(0, 21) if side == "left" else slice(45, None)
    inside = slice(21, None) if side == "left" else slice(0, 45)
    for name in ("dq", "dk", "dv", "dg", *(["dbeta"] if side == "right" else [])):
        assert not whole[name][:, outside].any(), name
    found = {name: whole[name] if name == "state" else whole[name][:, inside] for name in NAMES[:7]}
    if backend == "chunked":
        assert_close(found, reference(real))
    else:
        assert all(torch.equal(found[name], alone[name]) for name in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_returned_in_its_dtype(backend: str, dtype: torch.dtype) -> None:
    case = make_case(1, 40, K=8, V=16)
    rounded = [x.to(dtype) for x in case.inputs()[:5]]
    o, state = gated_delta_rule(*rounded, output_final_state=True, use_qk_l2norm_in_kernel=True)
    expected, expected_state = reference_gated_delta_rule(
        *[x.float() for x in rounded], output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    assert o.dtype == dtype
    assert state is not None
    assert expected_state is not None
    assert state.dtype == torch.float32
    assert_close({"state": state}, {"state": expected_state})
    assert (o.float() - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


def test_autocast_leaves_the_recurrence_in_float32(backend: str) -> None:
    case = make_case(1, 40)
    inputs = [x.float() for x in case.inputs()[:5]]
    expected = gated_delta_rule(*inputs)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gated_delta_rule(*inputs)[0], expected)


def test_the_final_state_comes_only_when_asked_for(backend: str) -> None:
    inputs = [x.float() for x in make_case(1, 3).inputs()[:5]]
    assert gated_delta_rule(*inputs)[1] is None


def test_the_default_scale_is_the_root_of_the_key_width(backend: str) -> None:
    inputs = [x.float() for x in make_case(1, 3, K=9).inputs()[:5]]
    torch.testing.assert_close(gated_delta_rule(*inputs)[0], gated_delta_rule(*inputs, scale=1 / 3)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("L", [1, 63, 65, 500])
def test_on_a_gpu_the_chunked_backend_agrees_too(monkeypatch: pytest.MonkeyPatch, L: int) -> None:
    monkeypatch.setenv("HAD_BACKEND", "chunked")
    case = make_case(2, L, K=32, V=64)
    on_gpu = Case(**{name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in vars(case).items()})
    found = {name: x.cpu() for name, x in run(gated_delta_rule, on_gpu, torch.float32).items()}
    assert_close(found, reference(case))
