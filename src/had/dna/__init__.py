"""DNA as arrays: letters, tokenizers, genomes, intervals, windows and masks; no neural network.

Names are resolved on first use, so importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from had.dna.genome import Contig, Genome
    from had.dna.intervals import Interval, Splits, make_splits, read_bed
    from had.dna.masking import group_masks, nucleotide_masks
    from had.dna.sampling import WindowSampler
    from had.dna.spans import acgt_stretches, tile
    from had.dna.tokenizers import KmerTokenizer, NucleotideTokenizer

__all__ = [
    "Contig",
    "Genome",
    "Interval",
    "KmerTokenizer",
    "NucleotideTokenizer",
    "Splits",
    "WindowSampler",
    "acgt_stretches",
    "group_masks",
    "make_splits",
    "nucleotide_masks",
    "read_bed",
    "tile",
]

_HOMES = {
    "genome": ("Contig", "Genome"),
    "intervals": ("Interval", "Splits", "make_splits", "read_bed"),
    "masking": ("group_masks", "nucleotide_masks"),
    "sampling": ("WindowSampler",),
    "spans": ("acgt_stretches", "tile"),
    "tokenizers": ("KmerTokenizer", "NucleotideTokenizer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
