"""Which backend runs, what is said about it, and what is refused."""

import logging
import sys
from collections.abc import Iterator

import pytest
import torch

from had.errors import UserError
from had.ops import cpu, cuda, gated_delta_rule
from had.ops.gated_delta_rule import BACKENDS, _automatic, _say, known_bad
from tests.ops.rule_cases import make_case


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HAD_BACKEND", raising=False)
    _say.cache_clear()
    yield
    _say.cache_clear()


@pytest.fixture
def inputs() -> list[torch.Tensor]:
    return [x.float() for x in make_case(1, 4).inputs()[:5]]


@pytest.mark.parametrize(
    ("capability", "triton", "bad"),
    [
        ((9, 0), "3.3.1", False),
        ((9, 0), "3.4.0", True),
        ((9, 0), "3.4", True),
        ((9, 0), "3.5.1+git0f2c1a", True),
        ((9, 0), "3.7.0", True),
        ((9, 0), "3.7.1rc1", True),
        ((9, 0), "3.7.1", False),
        ((9, 0), "3.7.1+git0f2c1a", False),
        ((9, 0), "3.10.0", False),
        ((9, 0), "4.0.0", False),
        ((8, 0), "3.5.0", False),
        ((8, 9), "3.5.0", False),
        ((10, 0), "3.5.0", False),
    ],
)
def test_hopper_with_some_tritons_is_refused(capability: tuple[int, int], triton: str, bad: bool) -> None:
    assert known_bad(capability, triton) is bad


def test_a_triton_version_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="nightly"):
        known_bad((9, 0), "nightly")


def test_the_backend_is_said_once(inputs: list[torch.Tensor], caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("numba")
    with caplog.at_level(logging.INFO, logger="had"):
        for _ in range(3):
            gated_delta_rule(*inputs)
    said = [record for record in caplog.records if "gated delta rule on the CPU" in record.message]
    assert len(said) == 1
    assert said[0].levelno == logging.INFO
    assert "numba" in said[0].message


def test_without_numba_the_portable_backend_takes_over_and_says_so(
    inputs: list[torch.Tensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "why_unavailable", lambda: "numba cannot be imported (No module named 'numba')")
    monkeypatch.setattr(cpu, "cpu_gated_delta_rule", None)
    with caplog.at_level(logging.INFO, logger="had"):
        o, _ = gated_delta_rule(*inputs)
        gated_delta_rule(*inputs)
    assert o.shape == inputs[2].shape
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No module named 'numba'" in warnings[0].message


@pytest.mark.parametrize("name", ["reference", "chunked", "cpu"])
def test_a_backend_can_be_forced(name: str, inputs: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's attribute of this name is the function, so the modules are named in full.
    ran = []
    for module, attribute, backend in (
        ("had.ops.reference", "reference_gated_delta_rule", "reference"),
        ("had.ops.chunked", "chunked_gated_delta_rule", "chunked"),
        ("had.ops.cpu", "cpu_gated_delta_rule", "cpu"),
    ):
        original = getattr(sys.modules[module], attribute)

        def spy(*args, _original=original, _backend=backend, **options):
            ran.append(_backend)
            return _original(*args, **options)

        monkeypatch.setattr(sys.modules[module], attribute, spy)
        if hasattr(sys.modules["had.ops.gated_delta_rule"], attribute):
            monkeypatch.setattr(sys.modules["had.ops.gated_delta_rule"], attribute, spy)
    monkeypatch.setenv("HAD_BACKEND", name)
    gated_delta_rule(*inputs)
    assert ran == [name]


def test_an_unknown_backend_is_refused_with_the_choices(
    inputs: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAD_BACKEND", "gpu")
    with pytest.raises(UserError) as caught:
        gated_delta_rule(*inputs)
    assert all(name in str(caught.value) for name in ("'gpu'", *BACKENDS))


def test_a_forced_backend_that_cannot_run_is_refused(
    inputs: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda", "fla"):
        monkeypatch.setenv("HAD_BACKEND", name)
        monkeypatch.setattr(cuda, "why_unavailable", lambda device: f"the tensors are on {device}")
        with pytest.raises(UserError, match=f"HAD_BACKEND={name} cannot be used, because the tensors are on cpu"):
            gated_delta_rule(*inputs)
    monkeypatch.setenv("HAD_BACKEND", "cpu")
    monkeypatch.setattr(cpu, "why_unavailable", lambda: "numba cannot be imported")
    with pytest.raises(UserError, match="numba cannot be imported"):
        gated_delta_rule(*inputs)


class _OnGpu:
    """What the choice looks at of a tensor, where there is no GPU."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.shape = torch.device("cuda", 0), dtype, (1, 4, 2, 32)


WRONG, REFUSED = "its Triton kernels compute dq wrongly here", "flash-linear-attention's gradients are wrong here"


@pytest.mark.parametrize(
    ("dtype", "kernels", "fla", "backend", "level"),
    [
        (torch.bfloat16, None, REFUSED, "cuda", logging.INFO),
        (torch.float32, None, None, "cuda", logging.INFO),
        (torch.bfloat16, WRONG, None, "fla", logging.WARNING),
        (torch.bfloat16, WRONG, REFUSED, "chunked", logging.WARNING),
        (torch.float32, WRONG, None, "chunked", logging.WARNING),
        (torch.float64, None, None, "chunked", logging.WARNING),
    ],
)
def test_on_a_gpu_the_first_of_the_backends_that_are_right_is_chosen_and_said_once(
    dtype: torch.dtype,
    kernels: str | None,
    fla: str | None,
    backend: str,
    level: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules["had.ops.gated_delta_rule"]
    monkeypatch.setattr(module, "_why_not_kernels", lambda *tensors: kernels)
    monkeypatch.setattr(module, "_why_not_fla", lambda index: fla)
    tensor = _OnGpu(dtype)
    with caplog.at_level(logging.INFO, logger="had"):
        for _ in range(2):
            assert _automatic(tensor, tensor, tensor) == backend  # type: ignore[arg-type]
    assert [record.levelno for record in caplog.records] == [level]
    for reason in (kernels, fla):
        assert backend != "chunked" or dtype != torch.bfloat16 or reason in caplog.text


def test_triton_s_absence_is_a_reason_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    cuda.why_unavailable.cache_clear()
    try:
        assert cuda.why_unavailable(torch.device("cuda", 0)) == "Triton is not installed"
    finally:
        cuda.why_unavailable.cache_clear()


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (1, 4, 2), r"q needs the shape \(B, L, H, K\)"),
        (1, (1, 4, 2, 9), r"k needs the shape of q"),
        (2, (1, 4, 4, 16), r"4 heads but q and k have 2"),
        (2, (1, 5, 2, 16), r"v needs the shape"),
        (3, (1, 4), r"g needs the shape"),
        (4, (1, 4, 1), r"beta needs the shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    inputs: list[torch.Tensor], position: int, shape: tuple[int, ...], message: str
) -> None:
    inputs[position] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(*inputs)


def test_a_state_of_another_shape_and_integers_are_refused(inputs: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="initial_state needs the shape"):
        gated_delta_rule(*inputs, initial_state=torch.zeros(1, 2, 16, 8))
    with pytest.raises(ValueError, match=r"v needs a floating-point dtype; got torch.int64"):
        gated_delta_rule(inputs[0], inputs[1], inputs[2].long(), *inputs[3:])
