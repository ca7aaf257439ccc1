"""Held-out losses of a finished teacher or student on any genome, beside the predictors that need no network."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from had.dna.intervals import acgt_stretches, tile
from had.errors import UserError
from had.models.nucleotide_transformer import NucleotideTransformer
from had.models.reconstruction import HADForMaskedLM
from had.models.saving import BUNDLED_FOLDER, CONFIG_FILE, find_folder
from had.models.student import HADConfig
from had.models.teacher_loading import load_teacher
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
from had.training.held_out import report
from had.training.loop import Objective
from had.training.masked_lm import MaskedLanguageObjective

BLOCK = 100
"""Consecutive tiles per bootstrap block: 102 kb at 1,020 bp."""


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
        Tiles per bootstrap block, when all tiles are used; with ``max_tiles`` blocks span as much of the genome.
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


def _is_student(model: str | os.PathLike[str]) -> bool:
    folder = Path(model) if Path(model).is_dir() else BUNDLED_FOLDER / model
    config = folder / CONFIG_FILE
    if not config.exists():
        return False
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type") == HADConfig.model_type
    except ValueError as error:
        raise UserError(f"{config}: is no JSON ({error})") from error


def _student_objective(
    model: str | os.PathLike[str], windows: WindowData, teacher_name: str | None, device: torch.device, seed: int
) -> DistillationObjective:
    folder = find_folder(model)
    masked_lm = HADForMaskedLM.from_pretrained(model)
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    config = build(ObjectiveConfig, facts["objective"], str(folder / FACTS_FILE))
    teacher = table = None
    if config.w_align:
        name = teacher_name or facts["teacher"]
        teacher = load_teacher(name, facts["teacher_options"], device, facts.get("teacher_seed", facts["seed"]))
        if facts["teacher_digest"] != teacher.digest():
            raise UserError(
                f"{folder}: was distilled from {facts['teacher']}, and {name} is another; name it by --teacher"
            )
        table = fit_table(teacher, windows, config, device)
    module = DistillationModule(masked_lm.model, teacher.width if teacher else None, config)
    module.decoder = masked_lm.decoder if config.w_rec else None
    if module.projection is not None:
        module.projection.load_state_dict(load_file(folder / PROJECTION_FILE))
    return DistillationObjective(module.to(device), teacher, table, windows, facts, keep_features=False)
