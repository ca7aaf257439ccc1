"""Inputs, runs and tolerances that the tests of the gated delta rule share."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from had.ops import reference_gated_delta_rule

NAMES = ("o", "state", "dq", "dk", "dv", "dg", "dbeta", "dinitial_state")


@dataclass
class Case:
    """Inputs in float64 that float32 holds exactly, and upstream gradients."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    initial_state: Tensor
    do: Tensor
    dstate: Tensor
    normalise: bool = True

    def inputs(self) -> list[Tensor]:
        return [self.q, self.k, self.v, self.g, self.beta, self.initial_state]


def make_case(B: int, L: int, H: int = 2, K: int = 8, V: int = 16, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    return Case(
        q=normal(B, L, H, K),
        k=normal(B, L, H, K),
        v=normal(B, L, H, V),
        g=-(0.2 * normal(B, L, H).abs()).float().double(),
        beta=torch.sigmoid(normal(B, L, H)).float().double(),
        initial_state=normal(B, H, K, V),
        do=normal(B, L, H, V),
        dstate=normal(B, H, K, V),
    )


def awkward_case(kind: str, L: int = 100, K: int = 8, V: int = 16) -> Case:
    case = make_case(2, L, K=K, V=V)
    if kind == "strong decay":
        return replace(case, g=torch.full_like(case.g, -20.0))
    if kind == "strong beside weak decay":
        g = case.g * 0.01
        g[:, ::3] = -30.0
        return replace(case, g=g.float().double())
    if kind == "no decay":
        return replace(case, g=torch.zeros_like(case.g))
    if kind == "full writes":
        return replace(case, beta=torch.full_like(case.beta, 0.9990234375))
    if kind == "identical keys":
        k, beta = case.k[:, :1].expand_as(case.k).clone(), torch.full_like(case.beta, 0.9990234375)
        return replace(case, k=k, beta=beta, g=case.g * 0.125)
    if kind == "homopolymer":
        case = replace(case, g=torch.full_like(case.g, -0.0009765625), beta=torch.full_like(case.beta, 0.9990234375))
        repeated = [x[:, :1].expand_as(x).clone() for x in (case.q, case.k, case.v)]
        return replace(case, q=repeated[0], k=repeated[1], v=repeated[2])
    if kind == "zero rows":
        return replace(case, q=case.q * 0, k=case.k * (torch.arange(L) % 2).double()[:, None, None])
    raise KeyError(kind)


AWKWARD = (
    "strong decay",
    "strong beside weak decay",
    "no decay",
    "full writes",
    "identical keys",
    "homopolymer",
    "zero rows",
)


def run(rule: Callable[..., tuple[Tensor, Tensor | None]], case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output, final state and the gradient of every input."""
    leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in case.inputs()]
    o, state = rule(
        *leaves[:5], initial_state=leaves[5], output_final_state=True, use_qk_l2norm_in_kernel=case.normalise
    )
    assert state is not None
    gradients = torch.autograd.grad([o, state], leaves, [case.do.to(o.dtype), case.dstate.to(state.dtype)])
    return dict(zip(NAMES, (o.detach(), state.detach(), *gradients), strict=True))


def reference(case: Case) -> dict[str, Tensor]:
    """Results in float64; those of one channel of q and k with the magnitudes of what cancels in their gradients."""
    results = run(reference_gated_delta_rule, case, torch.float64)
    if case.normalise and case.q.shape[-1] == 1:
        # Normalised, a channel of its own is a sign: its gradient is a difference of two numbers that are nearly equal.
        lengths = {"q": (case.q**2 + 1e-6).sqrt(), "k": (case.k**2 + 1e-6).sqrt()}
        signs = replace(case, q=case.q / lengths["q"], k=case.k / lengths["k"], normalise=False)
        terms = run(reference_gated_delta_rule, signs, torch.float64)
        results |= {f"terms of d{name}": terms[f"d{name}"] / length for name, length in lengths.items()}
    return results


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Hold float32 results to the project's tolerances against float64 ones, whatever the order of their sums."""
    for name in found.keys() & set(NAMES):
        largest = expected.get(f"terms of {name}", expected[name]).abs().max().item()
        error = (found[name].double() - expected[name].double()).abs().max().item()
        allowed = (1e-5 if name in ("o", "state") else 1e-4) * largest + (2e-5 if name == "dg" else 0.0)
        assert error <= allowed, f"{name}: error {error:.1e}, allowed {allowed:.1e}"
