"""Floating-point operations of a cell, counted from what has to be computed, whoever computes it and how.

Counted are matrix products, convolutions and the recurrence; a multiplication and an addition are two. Element-wise
work (norms, activations, gates, softmax) is not. So two implementations of one thing have the same count, and one that
takes a detour gets no credit for it.

- Gated delta rule, a token and head: forward 7·K·V (decay 1, two products with the state 4, the write 2), backward
  15·K·V more, as in the docstring of ``had.ops.cpu_kernels``; a state computed twice is counted once.
- Softmax attention of width D over T tokens: 4·T²·D forward.
- Student, Nucleotide Transformer, CNN: ``torch.utils.flop_counter`` on a forward pass over tensors without data, plus
  the rule as above.
- Peers, which do not run without data: 2 for each weight of a linear layer and token, attention as above, and for
  HyenaDNA's long convolutions three Fourier transforms of 2·L numbers at 2.5·N·log2 N.
- Backward twice as much as forward for all but the rule: a product's gradients are two products of its size.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cells import HEADS, KEYS, RULE, VALUES, WIDTH, Cell
from contenders import Model
from rules import plain_student


def rule_flops(tokens: int, heads: int, train: bool) -> float:
    """Of the gated delta rule in one direction over so many tokens in all."""
    return (22 if train else 7) * tokens * heads * KEYS * VALUES


def attention_flops(length: int, batch: int, width: int, train: bool) -> float:
    """Of softmax attention, every token with every token."""
    return (12 if train else 4) * batch * length**2 * width


def _no_rule(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, **options: object) -> tuple[Tensor, None]:
    """In the rule's place while all else is counted."""
    return v, None


def _of_peer(model: Model, cell: Cell) -> float:
    tokens, train = model.tokens(cell.length), cell.kind == "training"
    assert model.module is not None
    linears = sum(m.weight.numel() for m in model.module.modules() if isinstance(m, nn.Linear))
    total = 2.0 * linears * tokens * cell.batch
    config = model.module.config
    if cell.what.startswith("DNABERT"):
        total += config.num_hidden_layers * attention_flops(tokens, cell.batch, config.hidden_size, False)
    else:
        transform = 2.5 * (2 * tokens) * math.log2(2 * tokens)
        total += config.num_hidden_layers * config.hidden_size * cell.batch * 3 * transform
    return 3 * total if train else total


def count(cell: Cell, model: Model | None) -> float:
    """Floating-point operations of one pass of a cell; ``model`` is its contender where it is a model."""
    train = cell.kind == "training"
    if cell.part == "op":
        if cell.what == "softmax attention":
            return attention_flops(cell.length, cell.batch, WIDTH, train)
        return rule_flops(cell.letters, HEADS, train)
    assert model is not None
    if "multimolecule" in cell.what:
        return _of_peer(model, cell)
    # Not of a backward pass: there the counter takes depth-wise convolutions for full ones.
    with torch.device("meta"):
        shadow = Model(replace(cell, kind="forward", device="meta", dtype="float32"))
    student = cell.what in ("had", RULE)
    shadow.patch = lambda: plain_student(_no_rule)
    with FlopCounterMode(display=False) as counter:
        shadow.make_pass(cell.length, cell.batch)()
    total = (3.0 if train else 1.0) * counter.get_total_flops()
    if student:
        layers = model.module.config.recurrent_blocks  # type: ignore[union-attr]
        total += layers * 2 * rule_flops(cell.letters, HEADS, train)
    return total
