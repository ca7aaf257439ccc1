"""What the table has rows for, and what one of its cells is; imports nothing heavy."""

from dataclasses import dataclass

HAD, RULE = "had", "transformers' chunk rule"
OPS = (
    HAD,
    "had (chunked)",
    RULE,
    "flash-linear-attention",
    "softmax attention",
)
"""The gated delta rule (H 2, K 32, V 64: one direction of a student's layer), and attention of equal width, H·V."""
MODELS = (
    HAD,
    RULE,
    "NTv2-50m shape",
    "NTv2-500m shape",
    "CNN",
    "HyenaDNA (multimolecule)",
    "DNABERT-2 (multimolecule)",
)
"""Networks with random weights. The second is the student of the first on transformers' rule and plain PyTorch."""
KINDS = ("forward", "training")
"""training: forward and backward pass to every input (op) or weight (model), without an optimizer."""
HEADS, KEYS, VALUES = 2, 32, 64
WIDTH = HEADS * VALUES

NEEDS = {
    RULE: ("transformers",),
    "flash-linear-attention": ("fla",),
    "HyenaDNA (multimolecule)": ("multimolecule",),
    "DNABERT-2 (multimolecule)": ("multimolecule",),
}
"""Packages without which a row cannot be measured."""


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    part: str
    """op or model."""
    what: str
    """Of ``OPS`` or ``MODELS``."""
    kind: str
    """Of ``KINDS``."""
    length: int
    """Letters of a sequence."""
    batch: int
    """Sequences."""
    threads: int
    dtype: str
    """float32 or bfloat16."""
    device: str
    """cpu or cuda."""
    against: str = ""
    """Another row, measured in turn with this one in the same process: the cell is then a ratio."""

    @property
    def row(self) -> tuple[str, str, str, str]:
        """What all lengths of a row have in common."""
        return self.part, self.what, self.kind, self.against

    @property
    def letters(self) -> int:
        """Letters of the batch."""
        return self.length * self.batch


class Unavailable(Exception):
    """A cell cannot be measured here, for the reason that the message gives."""
