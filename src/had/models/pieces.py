"""A batch on a CPU, a few sequences at a time: each thread takes its own through all layers.

Threads that share every operation wait for each other after each; threads that have sequences of their own do not, and
what a sequence leaves behind in one layer is still in the processor's cache in the next. Which sequences go together
depends on their length alone, and gradients are summed in the order of the batch, so that with more than one piece no
number depends on how many threads there are.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from had.ops.threads import share

PIECE_LETTERS = 2048
"""Letters that go through the layers together, or one sequence where that is longer."""

Outputs = tuple[Tensor, ...]
Work = Callable[[slice], Outputs]
"""What is computed of some rows of a batch: tensors that begin with an axis of that many rows."""


def cut(rows: int, length: int) -> list[slice]:
    """Divide the rows of a batch into pieces of about ``PIECE_LETTERS``."""
    together = max(1, PIECE_LETTERS // max(1, length))
    return [slice(first, min(first + together, rows)) for first in range(0, rows, together)]


def has_hooks(module: nn.Module) -> bool:
    """Whether something that a user hung into the module's parts would see pieces instead of the batch."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, kind) for part in module.modules() if part is not module for kind in kinds)


def _forward(work: Work, pieces: Sequence[slice], grad: bool) -> list[Outputs]:
    results: list[Outputs] = [()] * len(pieces)
    inference = torch.is_inference_mode_enabled()

    def run(index: int, _: int) -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            results[index] = work(pieces[index])

    share(run, len(pieces), len(pieces))
    return results


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Work, pieces: Sequence[slice], *parameters: Tensor) -> Outputs:
        ctx.results, ctx.parameters = _forward(work, pieces, grad=True), parameters
        ctx.work, ctx.pieces = work, pieces
        ctx.set_materialize_grads(False)
        return tuple(torch.cat([part.detach() for part in parts]) for parts in zip(*ctx.results, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = [index for index, grad in enumerate(grads) if grad is not None]
        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        finished: dict[int, tuple[Tensor | None, ...]] = {}
        lock, summed = threading.Lock(), 0

        def run(index: int, _: int) -> None:
            nonlocal summed
            rows = ctx.pieces[index]
            with torch.enable_grad():
                # A second backward pass, of a graph that was retained, finds nothing kept.
                outputs = ctx.results[index] or ctx.work(rows)
            ctx.results[index] = ()
            own = torch.autograd.grad(
                [outputs[i] for i in wanted],
                ctx.parameters,
                [grads[i][rows] for i in wanted],  # type: ignore[index]
                allow_unused=True,
            )
            with lock:
                finished[index] = own
                while summed in finished:
                    for i, part in enumerate(finished.pop(summed)):
                        if part is not None:
                            sums[i] = part if sums[i] is None else sums[i].add_(part)  # type: ignore[union-attr]
                    summed += 1

        if wanted:
            share(run, len(ctx.pieces), len(ctx.pieces))
        return None, None, *sums


def in_pieces(work: Work, pieces: Sequence[slice], parameters: Sequence[Tensor]) -> Outputs:
    """Join what ``work`` computes of each piece, and let gradients flow to ``parameters``, where they are wanted.

    Parameters
    ----------
    work
        Computes some rows of the batch; no tensor that it reads except ``parameters`` gets a gradient. It is called
        by several threads.
    pieces
        From ``cut``.
    parameters
        Leaves that require a gradient.
    """
    if torch.is_grad_enabled() and parameters:
        return _Pieces.apply(work, pieces, *parameters)
    return tuple(torch.cat(parts) for parts in zip(*_forward(work, pieces, grad=False), strict=True))
