"""What `had finetune` is told: data, model, split and recipe."""

from dataclasses import dataclass, field

from had.config import check_seed
from had.errors import UserError
from had.models.saving import DEFAULT_MODEL
from had.models.student import HADConfig
from had.training.finetuning_peaks import PeaksConfig
from had.training.finetuning_recipe import FitConfig

SCRATCH = "scratch"
"""Name of the model that is no checkpoint: fresh weights."""


@dataclass
class FinetuneConfig:
    """What is fine-tuned on what."""

    data: str
    """A CSV, TSV, FASTA or Parquet file of labelled sequences, or a folder with train, dev and test files; with genome,
    a BED or narrowPeak file of peaks."""
    model: str = DEFAULT_MODEL
    """A pre-trained student: bundled name, folder, Hub name; or scratch: the same network with fresh weights."""
    genome: list[str] = field(default_factory=list)
    """FASTA file(s) that peaks are of."""
    peaks: PeaksConfig = field(default_factory=PeaksConfig)
    """What peaks are told from."""
    freeze: bool = False
    """Train the head alone, on the student's features as they are (linear probe)."""
    task: str = "auto"
    """auto, binary, multiclass, multilabel or regression."""
    labels: list[str] = field(default_factory=list)
    """Columns of 0 and 1, one a label, instead of the column label: multilabel."""
    split: str = "auto"
    """Where the user gave no validation rows: auto (by locus where there are coordinates), locus or random."""
    valid_fraction: float = 0.1
    """Share of the training rows held out for validation where the user gave none."""
    test_fraction: float | None = None
    """Share of the training rows held out as a test where the user gave none; null: 0, and 0.1 for peaks."""
    max_length: int = 10_000
    """Longer sequences are cut to their middle, in bp."""
    seed: int = 0
    """Seed of the split, fresh weights, batches, augmentation and dropout."""
    student: HADConfig = field(default_factory=HADConfig)
    """Sizes of the student, with model: scratch."""
    training: FitConfig = field(default_factory=FitConfig)
    """How it is trained."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning with a UserError."""
        for name, least in (("valid_fraction", False), ("test_fraction", True)):
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 <= value < 1 or (value == 0 and not least):
                raise UserError(f"{name} is a share between 0 and 1; got {value}")
        check_seed(self.seed)
        if self.max_length < 1:
            raise UserError(f"max_length must be at least 1; got {self.max_length}")
        if self.split not in ("auto", "locus", "random"):
            raise UserError(f"--split is auto, locus or random; got {self.split!r}")
        if self.freeze and (self.training.optimizer == "muon" or self.training.muon_lr is not None):
            option = "--optimizer muon" if self.training.optimizer == "muon" else "training.muon_lr"
            raise UserError(f"a frozen student has no matrices for muon to train: leave --freeze or {option} out")
        if self.freeze and self.training.positions is True:
            raise UserError("the head of a frozen student sees one mean: leave --freeze or training.positions out")
