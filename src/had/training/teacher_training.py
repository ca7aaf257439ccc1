"""`had teacher train`: masked-LM pre-training of a Nucleotide-Transformer-style teacher on the user's genome."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from had.baselines.markov import MarkovModel
from had.config import check_seed
from had.console import say
from had.dna.alphabet import GROUP, kmer_letters
from had.models.nucleotide_transformer import NucleotideTransformer, NucleotideTransformerConfig
from had.training.data import DataConfig, WindowData
from had.training.loop import TrainingConfig
from had.training.masked_lm import MaskedLanguageObjective
from had.training.runs import RunOptions, execute


@dataclass
class TeacherModelConfig(NucleotideTransformerConfig):
    """Sizes of the teacher and how it starts."""

    start: Literal["letters", "normal"] = "letters"
    """letters: 6-mer rows start as sums of letter vectors, the output bias as log frequencies; normal: random."""
    weights: str | None = None
    """Folder of a checkpoint in the Hub's format whose weights to start from instead (the optimizer starts anew)."""


@dataclass
class TeacherTrainingConfig:
    """Everything of a `had teacher train` run."""

    seed: int = 0
    """Seed of weights, windows, strands and masks."""
    data: DataConfig = field(default_factory=DataConfig)
    """Genome, split, windows and masks."""
    model: TeacherModelConfig = field(default_factory=TeacherModelConfig)
    """The network."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batches, optimizer, checkpoints."""

    def __post_init__(self) -> None:
        """Refuse a seed that cannot be one with a UserError."""
        check_seed(self.seed)


def make_teacher(config: TeacherModelConfig, data: WindowData, seed: int) -> NucleotideTransformer:
    """A network at its start: fresh, or with the weights of ``config.weights``."""
    if config.weights:
        model = NucleotideTransformer.from_pretrained(config.weights)
        say(f"Starting from the weights in {config.weights}; their optimizer is not taken over.")
        return model
    torch.manual_seed(seed)
    model = NucleotideTransformer(config)
    if config.start == "letters":
        stretches = (data.genome.codes[a:b] for a, b in data.stretches)
        frequencies = MarkovModel(5).fit(stretches).kmer_frequencies
        # Chains number 6-mers over A, C, G, T; the network's vocabulary is in another order.
        number = kmer_letters().astype(np.int64) @ 4 ** np.arange(GROUP - 1, -1, -1)
        model.initialise_by_letters(torch.from_numpy(np.log(frequencies[number])).float(), seed)
    return model


def train_teacher(config: TeacherTrainingConfig, out: Path, options: RunOptions) -> int:
    """Train a teacher into the run folder ``out``; return the step reached.

    Parameters
    ----------
    config
        The resolved recipe.
    out
        Run folder; ``out/model`` loads with `NucleotideTransformer.from_pretrained`.
    options
        Resume, early stop, device, threads and the like.

    Raises
    ------
    UserError
        If the data or the options cannot be used; nothing was written.
    RunFault
        On a loss that is not finite or a full disk.
    """
    return execute(config, out, options, lambda data, accelerator: _objective(config, data))


def _objective(config: TeacherTrainingConfig, data: WindowData) -> MaskedLanguageObjective:
    return MaskedLanguageObjective(make_teacher(config.model, data, config.seed), data)
