"""Peaks and their background as rows to fine-tune on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from had.dna.alphabet import decode, reverse_complement
from had.dna.genome import Genome
from had.dna.labelled_records import Locus
from had.dna.labelled_tasks import LabelledRow, Task
from had.dna.peaks import BACKGROUND, PEAK, PeakSet, Region, peaks_with_background
from had.errors import UserError
from had.files import atomic_write_text, sha256_of_file
from had.metrics import auroc
from had.training.finetuning_data import FinetuningData, prepare_rows
from had.training.finetuning_split import hold_out


@dataclass
class PeaksConfig:
    """What peaks are told from; used where the data are a BED or narrowPeak file."""

    width: int | None = None
    """Letters of each window, around the peak's summit or else its middle; null: the intervals as written."""
    ratio: int = 1
    """Background regions for each peak."""
    gc_tolerance: float = 0.02
    """Largest difference between the GC shares of a peak and its background, where the genome allows it."""
    blacklist: str | None = None
    """BED of intervals that background must not touch."""
    valid_contigs: list[str] = field(default_factory=list)
    """Contigs that validate; none named: some are drawn that hold about a tenth of the peaks, or up to twice
    that where contigs are large."""
    test_contigs: list[str] = field(default_factory=list)
    """Contigs that test; none named: as for validation."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning with a UserError."""
        if self.width is not None and self.width < 1:
            raise UserError(f"peaks.width must be at least 1; got {self.width}")
        if self.ratio < 1:
            raise UserError(f"peaks.ratio must be at least 1; got {self.ratio}")
        if not 0 <= self.gc_tolerance <= 1:
            raise UserError(f"peaks.gc_tolerance is a share between 0 and 1; got {self.gc_tolerance}")


def load_peaks(
    path: Path,
    genome_files: Sequence[str],
    config: PeaksConfig,
    *,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    max_length: int = 10_000,
    progress: bool = True,
) -> tuple[FinetuningData, PeakSet]:
    """Read peaks, draw their background, split by contig (by position where no contig can be held out).

    Where that gives no validation rows (few peaks), training rows are held out by locus.

    Raises
    ------
    UserError
        If a file cannot be used, or there is no room for background.
    """
    genome = Genome.open(genome_files, progress=progress)
    peaks = peaks_with_background(
        path,
        genome,
        width=config.width,
        ratio=config.ratio,
        blacklist=config.blacklist,
        valid_contigs=config.valid_contigs,
        test_contigs=config.test_contigs,
        fractions=(valid_fraction, test_fraction),
        tolerance=config.gc_tolerance,
        seed=seed,
    )
    given: dict[str, list[LabelledRow]] = {"train": [], "dev": [], "test": []}
    for number, region in enumerate(peaks.regions, start=1):
        offset = genome.contig(region.contig).offset
        codes = genome.codes[offset + region.start : offset + region.end]
        letters = decode(reverse_complement(codes) if region.strand == "-" else codes)
        locus = Locus(region.contig, region.start, region.end)
        # Background bears its peak's name: that is no repetition, however many there are for each.
        name = region.name if region.label == PEAK else str(number)
        given[region.split].append(LabelledRow(number, number, letters, region.label, name, locus))
    if not given["train"]:
        raise UserError(f"{path}: the contigs named for validation and test hold all peaks; none is left to train on")
    how = peaks.split
    if not given["dev"]:
        task = Task("binary", (BACKGROUND, PEAK))
        given["train"], given["dev"], said = hold_out(
            given["train"], task, "locus", valid_fraction, seed, "validation", str(path)
        )
        how += f"; validation: {said}"
        for row in given["dev"]:
            # The files of regions say what validated.
            peaks.regions[row.number - 1] = peaks.regions[row.number - 1]._replace(split="dev")
    # How background is drawn, and peaks are read, may change between versions: a run must not go on with others.
    drawn = "".join(map(_bed_row, peaks.regions))
    digests = {"peaks": sha256_of_file(path), "genome": genome.digest}
    digests["regions"] = hashlib.sha256(drawn.encode()).hexdigest()
    if config.blacklist is not None:
        digests["blacklist"] = sha256_of_file(config.blacklist)
    gc = auroc([region.label == PEAK for region in peaks.regions], [region.gc for region in peaks.regions])
    peaks.notes.append(f"GC content alone tells peaks from their background with an AUROC of {gc:.2f} (.5: not at all)")
    data = prepare_rows(
        {name: rows for name, rows in given.items() if rows},
        {},
        digests,
        str(path),
        how=how,
        task="binary",
        max_length=max_length,
    )
    data.facts["auroc_of_gc_content"] = gc
    data.anchor = peaks.anchor
    return data, peaks


def write_regions(peaks: PeakSet, folder: Path) -> list[Path]:
    """Write ``peaks.bed`` and ``background.bed``: BED6 (name, score 0, strand), then split and GC share."""
    written = []
    for label in (PEAK, BACKGROUND):
        path = folder / f"{'peaks' if label == PEAK else label}.bed"
        rows = [_bed_row(region) for region in peaks.regions if region.label == label]
        atomic_write_text(path, "#chrom\tstart\tend\tname\tscore\tstrand\tsplit\tgc\n" + "".join(rows))
        written.append(path)
    return written


def _bed_row(region: Region) -> str:
    place = f"{region.contig}\t{region.start}\t{region.end}\t{region.name}"
    return f"{place}\t0\t{region.strand}\t{region.split}\t{region.gc:.4f}\n"
