"""The rows of the table as things that run: each gives a pass over random input of a length and batch.

A pass returns its output. For training it ends with the backward pass from a fixed random gradient to every floating
input (op) or weight (model); the gradients are dropped before the next one. Models run under autocast where the dtype
is bfloat16, their weights in float32; an op gets q, k and v in the dtype.
"""

import contextlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cells import HAD, HEADS, KEYS, NEEDS, RULE, VALUES, Cell, Unavailable
from had.dna.alphabet import NUCLEOTIDE_OFFSET
from had.models import HADModel, NucleotideTransformer
from had.models.cnn import SHORTEST, CNNConfig, CNNForSequenceClassification
from had.models.ntv2_published import PUBLISHED
from had.models.nucleotide_transformer import MAX_TOKENS, NucleotideTransformerConfig
from rules import Rule, make_inputs, plain_student, transformers_rule, with_backend

Pass = Callable[[], Tensor]
LETTERS_PER_BPE_TOKEN = 5
"""Letters for which one token of DNABERT-2 stands here; the true number depends on the sequence."""
HYENA_LONGEST = 160_000
"""Letters that the HyenaDNA shape measured here (hyenadna-medium-160k) is made for."""


class Contender:
    """One row on one device: built once, then asked for passes of any size."""

    def __init__(self, cell: Cell) -> None:
        for package in NEEDS.get(cell.what, ()):
            if find_spec(package) is None:
                raise Unavailable(f"{package} is not installed")
        self.cell = cell
        self.train = cell.kind == "training"
        self.module: nn.Module | None = None

    def make_pass(self, length: int, batch: int) -> Pass:
        """Inputs of this size, made now, and the function that computes on them."""
        raise NotImplementedError


class Op(Contender):
    """The gated delta rule, or attention on the same values."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.rule: Rule | None = {
            HAD: lambda: with_backend(None),
            "had (chunked)": lambda: with_backend("chunked"),
            RULE: transformers_rule,
            "flash-linear-attention": lambda: with_backend("fla"),
            "softmax attention": lambda: None,
        }[cell.what]()

    def make_pass(self, length: int, batch: int) -> Pass:
        """A pass of the op."""
        keys = VALUES if self.rule is None else KEYS
        inputs, gradient = make_inputs(batch, length, HEADS, keys, VALUES)
        dtype = getattr(torch, self.cell.dtype)
        leaves = [x.to(self.cell.device, dtype) for x in inputs[:3]] + [x.to(self.cell.device) for x in inputs[3:]]
        leaves = [x.requires_grad_(self.train) for x in (leaves if self.rule is not None else leaves[:3])]
        gradient = gradient.to(self.cell.device, dtype)

        def compute() -> Tensor:
            if self.rule is None:
                q, k, v = (x.transpose(1, 2) for x in leaves)
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            return self.rule(*leaves, use_qk_l2norm_in_kernel=True)[0]

        return with_gradient(compute, leaves, gradient) if self.train else torch.no_grad()(compute)


class Model(Contender):
    """A network with random weights; what it gives is its features, or the CNN's logits."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        torch.manual_seed(0)
        self.per_token, self.first_id, self.n_ids, self.longest = 1, NUCLEOTIDE_OFFSET, 4, 1 << 40
        self.features: Callable[[Tensor], Tensor]
        self.module = self._build(cell.what).to(cell.device).train(self.train)
        self.patch: Callable[[], Any] = contextlib.nullcontext
        if cell.what == RULE:
            rule = transformers_rule()
            self.patch = lambda: plain_student(rule)
        if cell.length > self.longest:
            raise Unavailable(f"it reads at most {self.longest:,} bp at once")

    def _build(self, what: str) -> nn.Module:
        if what in (HAD, RULE):
            os.environ.pop("HAD_BACKEND", None)
            student = HADModel()
            self.longest = student.config.max_length
            self.features = lambda ids: student(ids).last_hidden_state
            return student
        if what.startswith("NTv2-"):
            size = what.removeprefix("NTv2-").removesuffix(" shape")
            network = NucleotideTransformer(NucleotideTransformerConfig(**PUBLISHED[size].sizes()))
            self.per_token, self.first_id, self.n_ids = 6, 6, 4096
            self.longest = self.per_token * (MAX_TOKENS - 1)
            self.features = network.last_hidden_state
            return network
        if what == "CNN":
            if self.cell.length < SHORTEST:
                raise Unavailable(f"it reads at least {SHORTEST} bp")
            cnn = CNNForSequenceClassification(CNNConfig(length=self.cell.length))
            self.features = lambda ids: cnn(ids).logits
            return cnn
        return self._build_peer(what)

    def _build_peer(self, what: str) -> nn.Module:
        """Networks of the package multimolecule, of the shapes of its defaults."""
        import multimolecule

        if what.startswith("HyenaDNA"):
            peer = multimolecule.HyenaDnaModel(multimolecule.HyenaDnaConfig(), add_pooling_layer=False)
            self.first_id, self.n_ids, self.longest = 6, 4, HYENA_LONGEST
            self.features = lambda ids: peer(ids).last_hidden_state
            return peer
        config = multimolecule.DnaBert2Config()
        peer = multimolecule.DnaBert2Model(config, add_pooling_layer=False)
        self.per_token, self.first_id, self.n_ids = LETTERS_PER_BPE_TOKEN, 6, config.vocab_size - 6
        self.features = lambda ids: peer(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return peer

    def tokens(self, length: int) -> int:
        """Tokens for so many letters."""
        if self.cell.what.startswith("NTv2"):
            # <cls>, 6-mers, and single letters for what is left.
            return 1 + length // 6 + length % 6
        return -(-length // self.per_token)

    def make_pass(self, length: int, batch: int) -> Pass:
        """A pass of the network over random tokens."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, self.tokens(length))
        ids = torch.randint(self.first_id, self.first_id + self.n_ids, shape, generator=generator)
        ids = ids.to(self.cell.device)
        half = self.cell.dtype == "bfloat16"

        def compute() -> Tensor:
            with self.patch(), torch.autocast(self.cell.device, torch.bfloat16) if half else contextlib.nullcontext():
                return self.features(ids)

        if not self.train:
            return torch.no_grad()(compute)
        assert self.module is not None
        return with_gradient(compute, list(self.module.parameters()), None)


def with_gradient(compute: Pass, leaves: list[Tensor], gradient: Tensor | None) -> Pass:
    """The pass and its backward pass, from a random gradient that is drawn at the first call where none is given."""

    def run() -> Tensor:
        nonlocal gradient
        for leaf in leaves:
            leaf.grad = None
        out = compute()
        if gradient is None:
            gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        out.backward(gradient)
        return out.detach()

    return run


def build(cell: Cell) -> Contender:
    """The contender of a cell.

    Raises
    ------
    Unavailable
        It cannot run here, or not at this length.
    """
    return (Op if cell.part == "op" else Model)(cell)
