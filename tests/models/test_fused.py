"""The compiled forms of the student's arithmetic against the plain ones in float64, forward and backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("numba")

from had.models import HADModel, functional, fused
from had.models.padding import Padding

HEADS, KEY, VALUE, WIDTH, HIDDEN = 2, 8, 16, 32, 24
CHANNELS = (HEADS * KEY, HEADS * KEY, HEADS * VALUE)


@dataclass
class Case:
    """A function and its differentiable inputs, in float64."""

    function: Callable[..., tuple[Tensor, ...]]
    inputs: list[Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    # Of float32 numbers, so that both precisions begin with the same.
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def some_padding(B: int, L: int) -> Padding:
    """Rows of the full length, of less and less, and of none."""
    return Padding.from_lengths(torch.tensor([max(0, L - row * (L // 2 + 1)) for row in range(B)]), L)


def make_case(name: str, B: int, L: int, padded: bool = False, taps: int = 4) -> Case:
    padding = some_padding(B, L) if padded else None
    x = normal(B, L, WIDTH, seed=1)
    if name == "norm":
        return Case(lambda x, w: functional.rms_norm_beside(x, w, 1e-6), [x, 1 + 0.3 * normal(WIDTH, seed=2)])
    if name == "mlp":
        weights = [0.3 * normal(2 * HIDDEN, WIDTH, seed=2), 0.3 * normal(WIDTH, HIDDEN, seed=3)]
        return Case(lambda *a: (functional.gated_mlp(*a),), [x, *weights, normal(B, L, WIDTH, seed=4)])
    if name in ("projections", "tokens"):
        rows = 2 * (sum(CHANNELS) + 2 * HEADS) + HEADS * VALUE
        weights = [
            0.3 * normal(rows, WIDTH, seed=2),
            0.5 * normal(2, sum(CHANNELS), taps, seed=3),
            normal(2, HEADS, seed=4),
            normal(2, HEADS, seed=5),
        ]
        if name == "tokens":
            return tokens_case(weights, B, L, padding)
        if padding is not None:
            x = x * padding.real[..., None]
        return Case(lambda *a: functional.project_both_ways(*a, CHANNELS, padding), [x, *weights])
    if name == "merge":
        inputs = [
            normal(2, B, L, HEADS, VALUE, seed=1),
            1 + 0.3 * normal(2, VALUE, seed=2),
            normal(B, L, HEADS * VALUE, seed=3),
        ]
        return Case(lambda *a: (functional.merge_directions(*a, 1e-6, padding),), inputs)
    assert name in WINDOWS
    angle = torch.rand(L, WIDTH // HEADS // 2, generator=torch.Generator().manual_seed(6))
    table = torch.stack((angle.cos(), angle.sin()))
    # What a letter of padding sees is nobody's business.
    real = torch.ones(B, L, 1) if padding is None else padding.real[..., None]
    return Case(
        lambda x, w: (functional.attend(x, w, HEADS, table, WINDOWS[name], padding).where(real > 0, 0.0),),
        [x, 0.5 * normal(3 * WIDTH, WIDTH, seed=2)],
    )


def tokens_case(weights: list[Tensor], B: int, L: int, padding: Padding | None) -> Case:
    """The same of a table's rows: in float64 letter by letter, in float32 by the table. Its last row is padding's."""
    tokens = torch.randint(0, 5, (B, L), generator=torch.Generator().manual_seed(7))
    if padding is not None:
        tokens[~padding.real] = 5

    def work(table: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        if table.dtype == torch.float64:
            return functional.project_both_ways(table[tokens], *weights, CHANNELS, padding)
        lengths = None if padding is None else padding.lengths
        return fused.tokens_both_ways(table, tokens, *weights, CHANNELS, lengths)

    return Case(work, [normal(6, WIDTH, seed=1).index_fill(0, torch.tensor(5), 0.0), *weights])


WINDOWS = {"attention": None, "banded": 70, "narrow": 3}
NAMES = ("norm", "mlp", "projections", "tokens", "merge", *WINDOWS)
PADDED = ("projections", "tokens", "merge", *WINDOWS)


def run(case: Case, dtype: torch.dtype, strided: bool = False) -> list[Tensor]:
    """Outputs and the gradient of every input."""
    leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in case.inputs]
    given = [torch.stack((x, x), dim=-1)[..., 0] for x in leaves] if strided else leaves
    outputs = case.function(*given)
    upstream = [normal(*out.shape, seed=10 + index).to(dtype) for index, out in enumerate(outputs)]
    if strided:
        upstream = [torch.stack((u, u), dim=-1)[..., 0] for u in upstream]
    return [out.detach() for out in outputs] + list(torch.autograd.grad(outputs, leaves, upstream))


def assert_close(found: list[Tensor], expected: list[Tensor], outputs: int) -> None:
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        if b.numel():
            allowed = (1e-5 if index < outputs else 1e-4) * b.abs().max() + 1e-30
            assert (a.double() - b.double()).abs().max() <= allowed, f"result {index}"


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HAD_BACKEND", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that ran."""
    names: list[str] = []

    def spy(module: str, name: str, *arguments: object) -> None:
        names.append(name)
        original(module, name, *arguments)

    original = fused.run_kernel
    monkeypatch.setattr(fused, "run_kernel", spy)
    return names


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill memory that is handed out unwritten with NaN."""
    new_empty, empty_like = Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape: new_empty(self, *shape).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(torch.nan))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("L", [1, 3, 4, 5, 6, 63, 64, 65, 1020])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_the_plain_form_in_float64(
    name: str, B: int, L: int, called: list[str]
) -> None:
    case = make_case(name, B, L)
    expected = run(case, torch.float64)
    assert not called, "the plain form has to be plain"
    found = run(case, torch.float32)
    assert len(called) >= 2, "no kernel ran"
    assert_close(found, expected, len(expected) - len(case.inputs))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("L", [1, 3, 4, 5, 6, 63, 65, 300])
@pytest.mark.parametrize("name", PADDED)
def test_the_reverse_direction_stays_within_each_length(name: str, L: int, called: list[str]) -> None:
    case = make_case(name, 3, L, padded=True)
    expected = run(case, torch.float64)
    found = run(case, torch.float32)
    assert len(called) >= 2
    assert_close(found, expected, len(expected) - len(case.inputs))


@pytest.mark.parametrize("taps", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("L", [1, 4, 70])
@pytest.mark.parametrize("name", ["projections", "tokens"])
def test_convolutions_of_other_widths(name: str, taps: int, L: int) -> None:
    case = make_case(name, 2, L, padded=True, taps=taps)
    assert_close(run(case, torch.float32), run(case, torch.float64), 6)


@pytest.mark.parametrize("name", NAMES)
def test_no_sequence_gives_nothing(name: str) -> None:
    case = make_case(name, 0, 5)
    results = run(case, torch.float32)
    expected = run(case, torch.float64)
    assert [x.shape for x in results] == [x.shape for x in expected]
    assert all((x == 0).all() for x in results[-len(case.inputs) :])


@pytest.mark.parametrize("name", NAMES)
def test_strides_make_no_difference(name: str, called: list[str]) -> None:
    case = make_case(name, 3, 40, padded=name in PADDED)
    plain, strided = run(case, torch.float32), run(case, torch.float32, strided=True)
    assert len(called) >= 4
    for a, b in zip(plain, strided, strict=True):
        assert torch.equal(a, b)


class OneThread(TorchDispatchMode):
    """Run each of PyTorch's own operations on one thread: the order of a product's sums may depend on their number."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return operation(*args, **(kwargs or {}))
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_bit_identical_with_any_number_of_threads(name: str) -> None:
    case = make_case(name, 3, 400, padded=name in PADDED)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with OneThread():
            results.append(run(case, torch.float32))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_is_right_and_gives_the_same_bits_again(name: str, threads: int) -> None:
    case = make_case(name, 3, 400, padded=name in PADDED)
    torch.set_num_threads(threads)
    first, again = run(case, torch.float32), run(case, torch.float32)
    assert all(map(torch.equal, first, again))
    assert_close(first, run(case, torch.float64), len(first) - len(case.inputs))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_gradients_that_reach_a_function_count(name: str) -> None:
    """A single output is used; the others have no gradient."""
    case = make_case(name, 2, 20)
    outputs = len(case.function(*(x.float() for x in case.inputs)))
    for index in range(outputs):
        grads = []
        for dtype in (torch.float32, torch.float64):
            leaves = [x.to(dtype, copy=True).requires_grad_() for x in case.inputs]
            out = case.function(*leaves)[index]
            upstream = normal(*out.shape, seed=3).to(dtype)
            grads.append(torch.autograd.grad(out, leaves, upstream, allow_unused=True))
        for a, b in zip(*grads, strict=True):
            missing = torch.zeros(())
            a, b = missing if a is None else a, missing if b is None else b
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_without_gradients_the_numbers_are_the_same() -> None:
    for name in NAMES:
        case = make_case(name, 3, 70, padded=name in PADDED)
        leaves = [x.float().requires_grad_() for x in case.inputs]
        with_gradients = case.function(*leaves)
        with torch.no_grad():
            for a, b in zip(with_gradients, case.function(*leaves), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "change"),
    [("HAD_BACKEND", "chunked"), ("HAD_BACKEND", "reference"), ("numba", "missing"), ("widths", "odd")],
)
def test_the_plain_form_runs_elsewhere(
    name: str, change: str, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case("norm", 2, 5)
    if name == "HAD_BACKEND":
        monkeypatch.setenv(name, change)
    elif name == "numba":
        monkeypatch.setattr(functional, "why_unavailable", lambda: "numba cannot be imported")
    else:
        case.inputs = [x[..., :30] for x in case.inputs]
    found = run(case, torch.float32)
    assert not called
    monkeypatch.undo()
    assert_close(found, run(case, torch.float64), 2)


def test_the_student_with_kernels_is_the_plain_student(monkeypatch: pytest.MonkeyPatch, called: list[str]) -> None:
    torch.manual_seed(0)
    model = HADModel()
    ids = torch.randint(7, 12, (3, 150))
    mask = torch.arange(150) >= torch.tensor([[0], [70], [148]])
    upstream = torch.randn(3, 150, 128)
    results = []
    for backend in ("cpu", "reference"):
        monkeypatch.setenv("HAD_BACKEND", backend)
        kernels = len(called)
        model.zero_grad()
        out = model(ids, mask).last_hidden_state
        (out * upstream).sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
        assert (len(called) > kernels) == (backend == "cpu")
    assert_close(*results, outputs=1)
