"""Held-out losses of a finished teacher or student on any genome, beside the predictors that need no network."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from had.console import say
from had.dna.intervals import acgt_stretches, tile
from had.errors import UserError
from had.models.nucleotide_transformer import NucleotideTransformer
from had.models.saving import (
    BUNDLED_FOLDER,
    CONFIG_FILE,
    DECODER_FILE,
    STUDENT_TYPE,
    find_folder,
    load_weights,
    model_type_of,
    read_object,
)
from had.models.student import HADModel
from had.models.teacher_loading import check_stored_name, load_teacher
from had.models.teachers import NTv2Teacher, Teacher
from had.schema import build
from had.training.data import DataConfig, WindowData
from had.training.distillation import (
    FACTS_FILE,
    PROJECTION_FILE,
    DistillationModule,
    DistillationObjective,
    ObjectiveConfig,
    fit_table,
)
from had.training.held_out import BLOCK, report
from had.training.loop import Objective
from had.training.masked_lm import MaskedLanguageObjective


def evaluate_held_out(
    model: str | os.PathLike[str],
    data: DataConfig,
    *,
    split: str = "test",
    teacher: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    block: int = BLOCK,
    max_tiles: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Losses on the ACGT-only tiles of the held-out split, one mask a tile, with bootstrap intervals over blocks.

    Parameters
    ----------
    model
        A student's folder (as ``RUN/model``) or bundled name, or a teacher's folder or name.
    data
        Genome, BED and window; the baselines are counted on its training split. ``validation_windows`` is not used.
    split
        ``test`` or ``validation``.
    teacher
        The teacher of a student's alignment loss; default: the one it was distilled from.
    device
        Where to compute.
    seed
        Of masks and resampling.
    block
        Tiles per bootstrap block, when all tiles are used; with ``max_tiles`` blocks span as much of the genome. Few
        tiles are put into smaller blocks, so that there are at least 20.
    max_tiles
        Use at most this many tiles, evenly spaced over the split; None: all.
    progress
        Show progress bars.

    Returns
    -------
    dict
        As :func:`had.training.held_out.report`.

    Raises
    ------
    UserError
        If the model, the genome or the split cannot be used.
    """
    windows = WindowData.open(data, seed, progress)
    spans = getattr(windows.splits, split)
    starts = tile(acgt_stretches(windows.genome, spans), data.window)
    if not len(starts):
        raise UserError(
            f"the split {split} holds no whole window of {data.window:,} bp; name one in the BED's column 4"
        )
    # Every n-th tile: blocks hold fewer, so that each still spans as much of the genome.
    step = 1 if max_tiles is None else -(-len(starts) // max_tiles)
    starts, block = starts[::step], -(-block // step)
    windows.validation_codes, windows.validation_hidden = windows.held_out(starts)
    device = torch.device(device)
    if _is_student(model):
        objective: Objective = _student_objective(model, windows, teacher, device, seed)
    else:
        objective = MaskedLanguageObjective(NucleotideTransformer.from_pretrained(model), windows)
    objective.module.to(device).eval()
    return report(objective.scores(quiet=not progress), block, seed)


@dataclass
class _Facts:
    """What is read of a student's ``training.json``."""

    objective: ObjectiveConfig
    seed: int = 0
    teacher: str | None = None
    teacher_options: dict[str, Any] = field(default_factory=dict)
    teacher_digest: str | None = None
    teacher_seed: int | None = None
    """Of the teacher's weights, where it is not the run's."""


def _is_student(model: str | os.PathLike[str]) -> bool:
    folder = Path(model) if Path(model).is_dir() else BUNDLED_FOLDER / model
    return (folder / CONFIG_FILE).exists() and model_type_of(folder) == STUDENT_TYPE


def _student_objective(
    model: str | os.PathLike[str], windows: WindowData, teacher_name: str | None, device: torch.device, seed: int
) -> DistillationObjective:
    folder = find_folder(model)
    student = HADModel.from_pretrained(folder)
    facts = _read_facts(folder, teacher_name)
    config = facts.objective
    teacher = table = None
    if config.w_align:
        teacher = _find_teacher(folder, facts, teacher_name, device)
        table = fit_table(teacher, windows, config, device)
    module = DistillationModule(student, teacher.width if teacher else None, config)
    if module.decoder is not None:
        load_weights(module.decoder, folder / DECODER_FILE)
    if module.projection is not None:
        load_weights(module.projection, folder / PROJECTION_FILE)
    return DistillationObjective(module.to(device), teacher, table, windows, {}, keep_features=False)


def _read_facts(folder: Path, teacher_name: str | None) -> _Facts:
    path = folder / FACTS_FILE
    if path.exists():
        found = read_object(path)
        names = {entry.name for entry in fields(_Facts)}
        return build(_Facts, {name: value for name, value in found.items() if name in names}, str(path))
    if teacher_name is not None:
        raise UserError(
            f"{folder} holds no {FACTS_FILE}, which says how the student was aligned with its teacher: leave out "
            "--teacher to evaluate its reconstruction alone."
        )
    say(f"{folder} holds no {FACTS_FILE}: the reconstruction alone is evaluated.")
    return _Facts(ObjectiveConfig(w_align=0))


def _find_teacher(folder: Path, facts: _Facts, name: str | None, device: torch.device) -> Teacher:
    """The teacher that the student was distilled from: the one passed, or what the student's folder names."""
    path = folder / FACTS_FILE
    if name is None:
        if facts.teacher is None:
            raise UserError(f"{path} names no teacher; pass --teacher NAME.")
        name = facts.teacher
        check_stored_name(name, path)
    seed = facts.seed if facts.teacher_seed is None else facts.teacher_seed
    teacher = load_teacher(name, facts.teacher_options, device, seed)
    if (
        teacher.digest() != facts.teacher_digest
        and isinstance(teacher, NTv2Teacher)
        and "precision" not in facts.teacher_options
    ):
        # Earlier versions did not record that the run, and its teacher with it, computed in bf16.
        teacher = load_teacher(name, {**facts.teacher_options, "precision": "bf16"}, device, seed)
    if teacher.digest() != facts.teacher_digest:
        raise UserError(
            f"{folder}: the student was distilled from {facts.teacher}, and {name} holds other weights; pass its "
            "teacher with --teacher."
        )
    return teacher
