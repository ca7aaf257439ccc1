"""Rows held out for validation and test: whole loci, or equal sequences together, or row by row."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from had.console import some_of
from had.dna.alphabet import encode_bytes, reverse_complement
from had.dna.labelled_tasks import LabelledRow, Task
from had.errors import UserError
from had.training.finetuning_batches import Codes


def codes_of(sequence: str) -> Codes:
    """Codes (L,) uint8 of letters; UserError where one is no nucleotide letter."""
    return encode_bytes(sequence.encode("ascii"))


def strand_free_key(codes: Codes) -> bytes:
    """Equal for equal letters on either strand."""
    text = min(codes.tobytes(), reverse_complement(codes).tobytes())
    return hashlib.blake2b(text, digest_size=16).digest()


def _groups(rows: Sequence[LabelledRow]) -> NDArray[np.int64]:
    """Group id (n,): rows whose intervals overlap, or whose letters are equal on either strand, are one group."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[bytes, int] = {}
    for i, row in enumerate(rows):
        parent[root(i)] = root(first.setdefault(strand_free_key(codes_of(row.sequence)), i))
    located = sorted((row.locus, i) for i, row in enumerate(rows) if row.locus is not None)
    reach, holder = None, -1
    for locus, i in located:
        if reach is not None and locus.contig == reach[0] and locus.start < reach[1]:
            parent[root(i)] = root(holder)
            reach = (locus.contig, max(reach[1], locus.end))
        else:
            reach, holder = (locus.contig, locus.end), i
    return np.array([root(i) for i in range(len(rows))], dtype=np.int64)


def hold_out(
    rows: list[LabelledRow], task: Task, mode: str, fraction: float, seed: int, what: str, source: str = "the data"
) -> tuple[list[LabelledRow], list[LabelledRow], str]:
    """Take a share of each class's groups out of the rows.

    Parameters
    ----------
    rows, task
        Labelled rows, and what their labels are.
    mode
        auto or locus: rows of one locus, or of one sequence on either strand, stay together (locus insists on
        coordinates); random: row by row.
    fraction, seed
        Share of the rows, and the seed of the draw.
    what, source
        For whom, and from where, for the message.

    Returns
    -------
    The rows kept, the rows held out (both in their order), and how they were chosen, in words.

    Raises
    ------
    UserError
        If the rows have no coordinates where ``mode`` asks for them, or are too few or too much alike.
    """
    if mode not in ("auto", "locus", "random"):
        raise UserError(f"--split is auto, locus or random; got {mode!r}")
    n_located = sum(row.locus is not None for row in rows)
    if mode == "locus" and not n_located:
        raise UserError(f"{source}: --split locus needs columns chrom (or region), start and end")
    groups = np.arange(len(rows)) if mode == "random" else _groups(rows)
    by_label: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    label_of: dict[int, str] = {}
    for i, group in enumerate(groups.tolist()):
        label = rows[i].label if task.kind in ("binary", "multiclass") else ""
        by_label[label_of.setdefault(group, label)][group].append(i)
    rng = np.random.default_rng([seed, 0x5D1])
    held: set[int] = set()
    for label in sorted(by_label):
        members = list(by_label[label].values())
        wanted = max(1, round(fraction * sum(map(len, members))))
        taken = 0
        for index in rng.permutation(len(members))[: len(members) - 1]:
            group_rows = members[index]
            # One group larger than what is wanted would leave too little to train on.
            if taken < wanted and taken + len(group_rows) <= 2 * wanted:
                held.update(group_rows)
                taken += len(group_rows)
    if not held and len(label_of) == len(by_label) > 2:
        raise UserError(
            f"{source}: each of the {len(by_label)} labels ({some_of(sorted(by_label), 3)}) stands at one locus "
            "or sequence alone, and a class needs several; give the classes as labels (in FASTA >name|label)"
        )
    if not held:
        raise UserError(
            f"{source}: {len(rows)} rows are too few, or too much alike (one locus, or one sequence), to hold some out "
            f"for {what}; add rows, or give rows of your own to validate with"
            + ("" if mode == "locus" else ", or use --split random")
        )
    kept = [row for i, row in enumerate(rows) if i not in held]
    out = [rows[i] for i in sorted(held)]
    if mode == "random":
        said = "at random (rows of one locus or one sequence may stand on both sides)"
    elif n_located:
        said = f"by locus, overlapping intervals merged ({n_located:,} of {len(rows):,} rows have coordinates)"
    else:
        said = "at random, equal sequences kept together (the data have no coordinates)"
    return kept, out, f"{100 * len(out) / len(rows):.1f} % of the rows {said}"
