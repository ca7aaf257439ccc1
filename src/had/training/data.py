"""Windows, strands and masks of a run: pure functions of the seed and the window's index."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import GROUP
from had.dna.genome import Genome
from had.dna.intervals import Splits, acgt_stretches, make_splits, tile
from had.dna.masking import MASK_FRACTION, expand, group_masks, nucleotide_masks
from had.dna.sampling import WindowSampler
from had.errors import UserError

# Validation masks must not coincide with training masks of the same index.
_VALIDATION_STREAM = 0x56414C


@dataclass
class DataConfig:
    """What a run reads and how windows are drawn from it."""

    genome: list[str] = field(default_factory=list)
    """FASTA files, plain, gzip or bgzip (usually given as --genome)."""
    bed: str | None = None
    """BED file of the intervals to use; its fourth column may name the split."""
    stretch: int | None = None
    """Use start … start + stretch of every BED row instead of the row as written."""
    valid_contigs: list[str] = field(default_factory=list)
    """Contigs held out for validation, where the BED names no split."""
    test_contigs: list[str] = field(default_factory=list)
    """Contigs that neither train nor validate."""
    window: int = 1020
    """Letters of a window: a multiple of 6."""
    mask_fraction: float = MASK_FRACTION
    """Share of the 6-mers (or letters) that is hidden."""
    mask: Literal["group", "nucleotide"] = "group"
    """group: whole 6-mers of the teacher's grid; nucleotide: single letters (a control)."""
    rc_probability: float = 0.5
    """Probability that a training window is read on the reverse strand."""
    validation_windows: int = 256
    """Held-out windows validated on, evenly spread; 0: all."""
    fixed_starts: bool = False
    """A slot's window starts at the same base in every epoch, as with a teacher cache; false: anew in every epoch."""
    starts_seed: int | None = None
    """Seed of fixed starts, so that runs of several seeds share one teacher cache; null: the run's seed."""
    slots: int = 0
    """Slots of an epoch that are used, evenly spread; 0: all."""

    def __post_init__(self) -> None:
        """Check what no type can."""
        if self.window < GROUP or self.window % GROUP:
            raise ValueError(
                f"data.window must be a positive multiple of {GROUP}; got {self.window}, "
                f"the nearest is {max(GROUP, round(self.window / GROUP) * GROUP)}"
            )
        if not 0 < self.mask_fraction < 1:
            raise ValueError(f"data.mask_fraction must lie between 0 and 1; got {self.mask_fraction}")
        if not 0 <= self.rc_probability <= 1:
            raise ValueError(f"data.rc_probability must lie between 0 and 1; got {self.rc_probability}")
        if self.validation_windows < 0:
            raise ValueError(f"data.validation_windows must be at least 1, or 0 for all; got {self.validation_windows}")
        if self.slots < 0:
            raise ValueError(f"data.slots must be at least 1, or 0 for all; got {self.slots}")
        if self.starts_seed is not None and not self.fixed_starts:
            raise ValueError("data.starts_seed is the seed of fixed starts: it needs data.fixed_starts=true")


class WindowData:
    """The windows of one run.

    Attributes
    ----------
    genome, splits, sampler
        Where they come from.
    stretches : int64 (m, 2)
        ACGT-only training stretches, global half-open positions.
    validation_codes : uint8 (n, L); validation_hidden : bool (n, L)
        Held-out windows with their fixed masks, without reverse complement; n may be 0.
    validation_starts : int64 (n,)
        Their global starts.
    validation_spacing : int
        Every how many tiles of the split there is one of them.
    """

    def __init__(self, genome: Genome, config: DataConfig, seed: int) -> None:
        self.genome, self.config, self.seed = genome, config, seed
        self.splits: Splits = make_splits(
            genome, config.bed, config.valid_contigs, config.test_contigs, config.window, config.stretch
        )
        self.stretches = acgt_stretches(genome, self.splits.train)
        self.sampler = WindowSampler(
            self.stretches,
            config.window,
            seed,
            config.rc_probability,
            config.fixed_starts,
            config.starts_seed,
            config.slots or None,
        )
        starts = tiles = tile(acgt_stretches(genome, self.splits.validation), config.window)
        if config.validation_windows and len(tiles) > config.validation_windows:
            starts = tiles[np.linspace(0, len(tiles) - 1, config.validation_windows).astype(np.int64)]
        self.validation_spacing = max(1, len(tiles) // max(1, len(starts)))
        self.validation_starts = starts
        self.validation_codes, self.validation_hidden = self.held_out(starts)

    @classmethod
    def open(cls, config: DataConfig, seed: int, progress: bool = True) -> "WindowData":
        """Open the genome (built into the cache at first) and lay out the windows.

        Raises
        ------
        UserError
            If no genome is named, or it or the BED cannot be used.
        """
        if not config.genome:
            raise UserError("no genome was given: name at least one FASTA file with --genome")
        return cls(Genome.open(config.genome, progress=progress), config, seed)

    @property
    def n_groups(self) -> int:
        """6-mers of a window."""
        return self.config.window // GROUP

    def held_out(self, starts: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Letters (n, L) at these global starts, forward strand, and their fixed masks (n, L)."""
        codes = self.genome.fetch(starts, self.config.window)
        return codes, self._hidden(self.seed ^ _VALIDATION_STREAM, np.arange(len(starts)))

    def train(self, indices: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Letters (n, L) uint8 and hidden letters (n, L) bool of training windows by their index in the run."""
        return self.sampler.codes(self.genome, indices), self._hidden(self.seed, indices)

    def _hidden(self, seed: int, indices: NDArray[np.integer]) -> NDArray[np.bool_]:
        fraction = self.config.mask_fraction
        if self.config.mask == "nucleotide":
            return nucleotide_masks(seed, indices, self.config.window, fraction)
        return expand(group_masks(seed, indices, self.n_groups, fraction))

    def describe(self, indices: NDArray[np.integer]) -> list[tuple[str, int, str]]:
        """(contig, 0-based start, strand) of training windows by their index in the run."""
        positions, reverse = self.sampler.draw(indices)
        contigs, starts = self.genome.locate(positions)
        names = [self.genome.contigs[i].name for i in contigs]
        return [(n, int(s), "-" if r else "+") for n, s, r in zip(names, starts, reverse, strict=True)]

    def facts(self) -> list[str]:
        """Sentences for the start of a run: what trains, what is held out, what was dropped."""
        usable = int((self.stretches[:, 1] - self.stretches[:, 0]).sum())
        spans = int((self.splits.train[:, 1] - self.splits.train[:, 0]).sum())
        lines = [f"Split: {self.splits.description}."]
        lines.append(
            f"Training windows start at {self.sampler.n_valid:,} positions; {spans - usable:,} bp other than A, C, G, T"
            " are in no window."
        )
        if self.config.slots:
            lines.append(f"{self.sampler.slots:,} of {self.sampler.all_slots:,} slots are used, evenly spread.")
        if self.config.fixed_starts:
            lines.append("Fixed starts: every epoch reads the same windows, on strands drawn anew.")
        if self.genome.ambiguous:
            count = sum(sum(letters.values()) for letters in self.genome.ambiguous.values())
            lines.append(f"{count:,} IUPAC letters other than A, C, G, T, N were read as N.")
        if not len(self.validation_codes):
            lines.append("Warning: the held-out part has no whole window: there will be no validation.")
        return lines + [f"Warning: {warning}" for warning in self.splits.warnings]
