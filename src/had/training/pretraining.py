"""`had pretrain`: distil a teacher into a student on the user's genome."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from had.models.student import HADConfig, HADModel
from had.models.teacher_loading import load_teacher
from had.models.teachers import Teacher, check_window
from had.training.data import DataConfig, WindowData
from had.training.devices import native_bf16
from had.training.distillation import DistillationModule, DistillationObjective, ObjectiveConfig, fit_table
from had.training.loop import TrainingConfig
from had.training.runs import RunOptions, execute


@dataclass
class TeacherConfig:
    """Who teaches."""

    name: str = "bundled"
    """bundled; a folder; a Hub name (50m, 100m, 250m, 500m or the full id); random:50m; or module:Class of your own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for a teacher class of your own."""


@dataclass
class PretrainConfig:
    """Everything of a `had pretrain` run."""

    seed: int = 0
    """Seed of weights, windows, strands and masks."""
    data: DataConfig = field(default_factory=DataConfig)
    """Genome, split, windows and masks."""
    model: HADConfig = field(default_factory=HADConfig)
    """The student's sizes."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher; not loaded where objective.w_align is 0."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Losses and ablations."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batches, optimizer, checkpoints."""


def pretrain(config: PretrainConfig, out: Path, options: RunOptions) -> int:
    """Distil into the run folder ``out``; return the step reached.

    Parameters
    ----------
    config
        The resolved recipe.
    out
        Run folder; ``out/model`` loads with `had.load`.
    options
        Resume, early stop, device, threads and the like.

    Raises
    ------
    UserError
        If data, teacher or options cannot be used; nothing was written.
    RunFault
        On a loss that is not finite or a full disk.
    """
    return execute(config, out, options, lambda data, accelerator: make_objective(config, data, accelerator.device))


def make_objective(config: PretrainConfig, data: WindowData, device: torch.device) -> DistillationObjective:
    """Student at its start, teacher, and the mean features fitted on training windows."""
    teacher: Teacher | None = None
    table = None
    if config.objective.w_align:
        options = teacher_options(config, device)
        teacher = load_teacher(config.teacher.name, options, device, config.seed)
        check_window(teacher, data.n_groups)
        table = fit_table(teacher, data, config.objective, device)
    torch.manual_seed(config.seed)
    module = DistillationModule(HADModel(config.model), teacher.width if teacher else None, config.objective)
    module.to(device)
    return DistillationObjective(module, teacher, table, data, describe_training(config, teacher, data))


def teacher_options(config: PretrainConfig, device: torch.device) -> dict[str, Any]:
    """The recipe's options; a Nucleotide Transformer computes in bfloat16 where the run does."""
    own_class = ":" in config.teacher.name and not config.teacher.name.startswith("random:")
    if own_class or "precision" in config.teacher.options:
        return config.teacher.options
    bf16 = config.training.precision != "float32" and native_bf16(device)
    return {**config.teacher.options, "precision": "bf16" if bf16 else "float32"}


def describe_training(config: PretrainConfig, teacher: Teacher | None, data: WindowData) -> dict[str, Any]:
    """Facts for the student's card, written beside its weights."""
    return {
        "teacher": config.teacher.name if teacher else None,
        "teacher_options": config.teacher.options,
        "teacher_licence": teacher.licence if teacher else None,
        "teacher_digest": teacher.digest() if teacher else None,
        "genome_digest": data.genome.digest,
        "objective": json.loads(json.dumps(vars(config.objective))),
        "steps": config.training.steps,
        "bp": config.training.steps * config.training.global_batch * config.data.window,
        "seed": config.seed,
    }
