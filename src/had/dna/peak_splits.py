"""Which peaks of a genome train, validate and test: whole contigs, or stretches of each where none can be held out.

Coordinates are 0-based half-open.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from had.console import some_of
from had.dna.genome import Genome
from had.dna.labelled import SPLITS
from had.dna.spans import Spans


def split_contigs(
    counts: Mapping[str, int], valid: Sequence[str], test: Sequence[str], fractions: tuple[float, float], seed: int
) -> dict[str, str]:
    """Split (train, dev or test) of each contig with peaks.

    The named contigs decide; where none is named for a split, contigs are drawn until they hold about the wanted
    fraction of the peaks. Contigs that would take it beyond twice that are passed over, and one always trains.
    """
    split = {name: "test" if name in test else "dev" if name in valid else "train" for name in counts}
    order = np.random.default_rng([seed, 0x9EA5]).permutation(len(counts))
    names = [sorted(counts)[i] for i in order]
    for kind, named, fraction in (("test", test, fractions[1]), ("dev", valid, fractions[0])):
        if named or not fraction:
            continue
        wanted = fraction * sum(counts.values())
        taken = 0
        for name in names:
            free = [other for other, part in split.items() if part == "train"]
            if name in free and len(free) > 1 and taken < wanted and taken + counts[name] <= 2 * wanted:
                split[name] = kind
                taken += counts[name]
    return split


def split_positions(spans: NDArray[np.int64], fractions: tuple[float, float]) -> tuple[int, int]:
    """Where validation begins and where test begins on a contig: the wanted fractions of its peaks lie behind.

    ``spans`` (n, 2) are its peaks. No peak lies on both sides of a border; where that leaves nothing behind one, it is
    the largest possible number.
    """
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.append(-1, np.maximum.accumulate(spans[:, 1])[:-1])
    apart = np.flatnonzero(spans[:, 0] >= reach)
    borders = []
    for fraction in (sum(fractions), fractions[1]):
        behind = apart[apart >= round((1 - fraction) * len(spans))]
        # The first peak always trains.
        behind = behind[behind > 0]
        borders.append(int(spans[behind[0], 0]) if len(behind) and fraction else np.iinfo(np.int64).max)
    return borders[0], borders[1]


def contig_spans(genome: Genome, names: Sequence[str]) -> Spans:
    """Sorted global spans (n, 2) of whole contigs."""
    contigs = sorted((genome.contig(name) for name in names), key=lambda contig: contig.offset)
    return np.array([(c.offset, c.offset + c.length) for c in contigs], dtype=np.int64).reshape(-1, 2)


def by_position(
    genome: Genome, spans: Spans, index: NDArray[np.int64], fractions: tuple[float, float]
) -> tuple[dict[str, Spans], str]:
    """Stretches (n, 2) of each split where every contig trains at its beginning and tests at its end."""
    parts: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for c in np.unique(index):
        contig = genome.contigs[c]
        end = contig.offset + contig.length
        valid, test = (min(border, end) for border in split_positions(spans[index == c], fractions))
        for split, piece in zip(SPLITS, ((contig.offset, valid), (valid, test), (test, end)), strict=True):
            if piece[0] < piece[1]:
                parts[split].append(piece)
    shares = f"{100 * fractions[0]:g} % and {100 * fractions[1]:g} %"
    how = f"by position: about the last {shares} of the peaks of each contig validate and test"
    return {split: np.array(p, dtype=np.int64).reshape(-1, 2) for split, p in parts.items()}, how


def by_contig(part_of: Mapping[str, str], counts: Mapping[str, int]) -> str:
    """Which contigs are held out, in words; empty where none is."""
    parts = []
    for split, word in (("dev", "validation"), ("test", "test")):
        names = sorted(name for name, part in part_of.items() if part == split)
        if names:
            share = 100 * sum(counts[name] for name in names) / sum(counts.values())
            parts.append(f"{word} {some_of(names)} ({share:.1f} % of the peaks)")
    return f"by contig: {'; '.join(parts)}" if parts else ""
