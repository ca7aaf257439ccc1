"""A batch that goes through the student a few sequences at a time gives what it gives as a whole."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")

from had.models import HADConfig, HADModel, pieces, student
from had.ops import threads as kernel_threads

BATCH, LENGTH = 7, 300


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HAD_BACKEND", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> HADModel:
    torch.manual_seed(0)
    return HADModel(HADConfig(recurrent_blocks=2))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 4, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def some_mask() -> Tensor:
    """Rows that begin late, end early, are whole, and are empty."""
    mask = torch.ones(BATCH, LENGTH)
    mask[1, :100] = 0
    mask[2, 17:] = 0
    mask[3] = 0
    return mask


def run(model: HADModel, ids: Tensor, mask: Tensor | None, threads: int) -> list[Tensor]:
    """Every hidden state, and the gradient of every weight."""
    torch.set_num_threads(threads)
    states = model(ids, mask, output_hidden_states=True).hidden_states
    assert states is not None
    loss = sum((state * torch.linspace(-1, 1, state.numel()).view(state.shape)).sum() for state in states)
    return [*(state.detach() for state in states), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("padded", [False, True])
def test_pieces_equal_the_whole_batch(
    model: HADModel, ids: Tensor, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = some_mask() if padded else None
    used = []
    original = student.in_pieces
    monkeypatch.setattr(student, "in_pieces", lambda *a: used.append(len(a[1])) or original(*a))
    monkeypatch.setattr(pieces, "PIECE_LETTERS", 2 * LENGTH + 1)
    found = run(model, ids, mask, threads=2)
    assert used == [4]
    monkeypatch.setattr(pieces, "PIECE_LETTERS", BATCH * LENGTH)
    expected = run(model, ids, mask, threads=1)
    assert used == [4]
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


@pytest.mark.parametrize("kind", ["openmp", "python"])
def test_no_number_depends_on_the_threads(
    model: HADModel, ids: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "python":
        monkeypatch.setattr(kernel_threads, "_openmp_team", lambda: None)
    monkeypatch.setattr(pieces, "PIECE_LETTERS", LENGTH)
    first = run(model, ids, some_mask(), threads=1)
    for threads in (2, 3):
        assert all(map(torch.equal, first, run(model, ids, some_mask(), threads)))


@pytest.mark.parametrize("kind", ["openmp", "python"])
def test_threads_are_as_the_caller_set_them(
    model: HADModel, ids: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "python":
        monkeypatch.setattr(kernel_threads, "_openmp_team", lambda: None)
    monkeypatch.setattr(pieces, "PIECE_LETTERS", LENGTH)
    torch.set_num_threads(3)
    model(ids)
    assert torch.get_num_threads() == 3


def test_modes_reach_the_threads(model: HADModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_LETTERS", LENGTH)
    torch.set_num_threads(2)
    with torch.inference_mode():
        assert model(ids).last_hidden_state.is_inference()
    with torch.no_grad():
        assert not model(ids).last_hidden_state.requires_grad
    assert not model.requires_grad_(False)(ids).last_hidden_state.requires_grad


def test_frozen_weights_get_no_gradient(model: HADModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_LETTERS", LENGTH)
    model.embedding.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    model(ids).last_hidden_state.square().sum().backward()
    assert model.embedding.weight.grad is None
    assert all(p.grad is None for p in model.blocks[0].parameters())
    assert all(p.grad is not None for p in model.blocks[1].parameters())


def test_a_graph_that_is_retained_is_gone_through_again(
    model: HADModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_LETTERS", LENGTH)
    loss = model(ids).last_hidden_state.square().sum()
    weights = list(model.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, weights)))


def test_hooks_in_the_model_see_the_whole_batch(model: HADModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_LETTERS", LENGTH)
    shapes: list[tuple[int, ...]] = []
    model.blocks[1].register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    model(ids)
    assert shapes == [(BATCH, LENGTH, model.config.hidden_size)]


class Wrapped(torch.nn.Module):
    """What tools for sharding or recomputing lay around a block."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block, self.calls = block, 0

    def forward(self, x: Tensor, padding: object = None) -> Tensor:
        self.calls += 1
        return self.block(x, padding)


def test_wrapped_blocks_are_called(model: HADModel, ids: Tensor) -> None:
    expected = model(ids).last_hidden_state
    wrappers = [Wrapped(block) for block in model.blocks]
    model.blocks = torch.nn.ModuleList(wrappers)
    torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    assert all(wrapper.calls for wrapper in wrappers)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_in_a_thread_is_the_callers(
    model: HADModel, ids: Tensor, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_LETTERS", LENGTH)
    torch.set_num_threads(threads)
    ids[4, 5] = 99
    with pytest.raises(IndexError):
        model(ids)


def test_an_empty_batch(model: HADModel) -> None:
    assert model(torch.zeros(0, LENGTH, dtype=torch.int64)).last_hidden_state.shape == (0, LENGTH, 128)
