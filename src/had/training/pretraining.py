"""`had pretrain`: distil a teacher into a student on the user's genome."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from had.config import check_seed
from had.models.cached_teacher import CachedTeacher
from had.models.student import HADConfig, HADModel
from had.models.teacher_loading import load_teacher
from had.models.teachers import Teacher, check_window
from had.training.cache_plan import teacher_batch
from had.training.cache_use import cached_table, check_windows, open_for_run, say_if_batches_differ
from had.training.data import DataConfig, WindowData
from had.training.devices import choose_precision
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
    cache: str | None = None
    """Folder of `had teacher cache` to read the teacher's features from; needs objective.teacher_view=full."""
    verify_cache: bool = True
    """Compare the cache's checksums at the start of every run."""


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

    def __post_init__(self) -> None:
        """Refuse a seed that cannot be one with a UserError; let the model know the windows it is trained on."""
        check_seed(self.seed)
        self.model = replace(self.model, training_window=self.data.window)


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
    if config.teacher.cache is None:
        return execute(config, out, options, lambda data, accelerator: make_objective(config, data, accelerator.device))
    cache, fixed = open_for_run(
        config.teacher.cache, config.teacher.name, config.teacher.options, config.objective, config.data
    )
    config = replace(config, data=fixed)

    def objective(data: WindowData, accelerator: Any) -> DistillationObjective:
        check_windows(cache, data)
        if config.teacher.verify_cache and accelerator.is_main_process:
            cache.verify(options.quiet)
        return make_objective(config, data, accelerator.device, cache)

    return execute(config, out, options, objective, {"teacher cache": cache.manifest.digest})


def make_objective(
    config: PretrainConfig, data: WindowData, device: torch.device, cache: CachedTeacher | None = None
) -> DistillationObjective:
    """Student at its start, teacher (or its cache), and the mean features fitted on training windows."""
    teacher: Teacher | None = None
    table = None
    if cache is not None:
        say_if_batches_differ(cache, teacher_batch(config.training))
        teacher, table = cache, cached_table(cache, data, config.objective, device)
    elif config.objective.w_align:
        options = teacher_options(config, device)
        teacher = load_teacher(config.teacher.name, options, device, config.seed)
        check_window(teacher, data.n_groups)
        table = fit_table(teacher, data, config.objective, device)
    torch.manual_seed(config.seed)
    module = DistillationModule(HADModel(config.model), teacher.width if teacher else None, config.objective)
    module.to(device)
    facts = describe_training(config, teacher, teacher_options(config, device), data)
    return DistillationObjective(module, teacher, table, data, facts, keep_features=cache is None)


def teacher_options(config: PretrainConfig, device: torch.device) -> dict[str, Any]:
    """The recipe's options; a Nucleotide Transformer computes in bfloat16 where the run does."""
    own_class = ":" in config.teacher.name and not config.teacher.name.startswith("random:")
    if own_class or "precision" in config.teacher.options:
        return config.teacher.options
    return {**config.teacher.options, "precision": choose_precision(config.training.precision, device)}


def describe_training(
    config: PretrainConfig, teacher: Teacher | None, options: dict[str, Any], data: WindowData
) -> dict[str, Any]:
    """Facts for the student's card, written beside its weights; ``options`` are those the teacher was loaded with."""
    facts = {
        "teacher": config.teacher.name if teacher else None,
        "teacher_options": options,
        "teacher_licence": teacher.licence if teacher else None,
        "teacher_digest": teacher.digest() if teacher else None,
        "genome_digest": data.genome.digest,
        "objective": json.loads(json.dumps(vars(config.objective))),
        "steps": config.training.steps,
        "bp": config.training.steps * config.training.global_batch * config.data.window,
        "training_window": config.data.window,
        "seed": config.seed,
    }
    if isinstance(teacher, CachedTeacher):
        there = teacher.manifest
        facts |= {"teacher_options": there.teacher["options"], "teacher_seed": there.teacher["seed"]}
        facts |= {"teacher_cache": {"digest": there.digest, "dtype": there.layout["dtype"]}}
    return facts
