"""The convolutional network of Genomic Benchmarks, written anew from its description, as a baseline.

Grešová et al., BMC Genomic Data 24:25 (2023): letters embedded in 100 dimensions; three blocks of convolution (16, 8
and 4 filters of width 8), batch normalisation, ReLU and max-pooling by 2; then a dense layer of 512 and the output,
with nothing between these two. The dense layer's size follows from the input's length, so the input has one length: the
longest training row's, shorter ones padded, longer ones cut. With an input of 1,020 bp and two classes it has 264,110
parameters, with 251 bp 67,502.

Shape suffixes: B batch, L length, C channels, D width.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from had.dna.alphabet import LETTERS, NUCLEOTIDE_OFFSET, NUCLEOTIDE_PAD
from had.models.heads import HeadConfig, SequenceClassifier

EMBEDDING = 100
FILTERS = (16, 8, 4)
WIDTH = 8
DENSE = 512
SHORTEST = 57
"""Below this the last block would see a single position, of which a batch of one has no variance."""


@dataclass
class CNNConfig(HeadConfig):
    """Classes and input length."""

    length: int = 500
    """Letters of the input; at least `SHORTEST`."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning with a ValueError."""
        super().__post_init__()
        if self.length < SHORTEST:
            raise ValueError(f"the network needs an input of {SHORTEST} letters or more; got {self.length}")


class _Convolutions(nn.Module):
    """Embedding, three blocks, dense layer."""

    def __init__(self, length: int) -> None:
        super().__init__()
        # One row a letter, and one for padding: it is a letter like the others, as in the original.
        self.embedding = nn.Embedding(len(LETTERS) + 1, EMBEDDING)
        blocks: list[nn.Module] = []
        channels = EMBEDDING
        for filters in FILTERS:
            blocks += [nn.Conv1d(channels, filters, WIDTH), nn.BatchNorm1d(filters), nn.ReLU(), nn.MaxPool1d(2)]
            channels = filters
            length = (length - WIDTH + 1) // 2
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Linear(channels * length, DENSE)

    def forward(self, codes_BL: Tensor) -> Tensor:
        """Output (B, 512) of the dense layer for letters as numbers."""
        # Embedding and first convolution are one convolution of six channels, at a tenth of the arithmetic.
        first = cast(nn.Conv1d, self.blocks[0])
        kernel = torch.einsum("vc,ock->ovk", self.embedding.weight, first.weight)
        letters_BVL = F.one_hot(codes_BL, len(LETTERS) + 1).transpose(1, 2).to(kernel.dtype)
        return self.dense(self.blocks[1:](F.conv1d(letters_BVL, kernel, first.bias)).flatten(1))


class CNNForSequenceClassification(SequenceClassifier):
    """Genomic Benchmarks' network.

    Parameters
    ----------
    config
        Classes and input length; the weights are drawn from torch's global generator.
    """

    config: CNNConfig
    codes: Tensor

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config, ("convolutions", _Convolutions(config.length)), DENSE)
        table = torch.full((12,), LETTERS.index("N"))
        table[NUCLEOTIDE_OFFSET : NUCLEOTIDE_OFFSET + len(LETTERS)] = torch.arange(len(LETTERS))
        table[NUCLEOTIDE_PAD] = len(LETTERS)
        self.register_buffer("codes", table, persistent=False)

    def pool(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Output (B, 512) of the dense layer for student token ids (B, L), padded on the right."""
        codes_BL = self.codes[input_ids[:, : self.config.length]]
        missing = self.config.length - codes_BL.shape[1]
        return self.backbone(F.pad(codes_BL, (0, missing), value=len(LETTERS))).float()
