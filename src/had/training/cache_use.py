"""Training from a teacher cache: is it the right one, and what it fixes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from had.baselines.alignment import KmerTable
from had.console import say
from had.dna.genome import Genome
from had.errors import UserError
from had.models.cached_teacher import TABLE_FILE, CachedTeacher
from had.models.teacher_loading import load_teacher
from had.training.cache_plan import fit_facts, window_facts
from had.training.data import DataConfig, WindowData
from had.training.distillation import ObjectiveConfig, fit_table
from had.training.provenance import differences

# Identity keys of a manifest, in a user's words.
_WORDS = {
    "teacher.digest": "the teacher's weights or precision",
    "teacher.name": "the teacher",
    "teacher.options": "the teacher's options",
    "windows.genome": "the genome",
    "windows.length": "data.window",
    "windows.starts": "the training windows (the BED, the split or the seed)",
    "windows.held_out": "the number of held-out windows (data.validation_windows)",
    "windows.held_out_starts": "the held-out windows (the BED or the split)",
    "windows.slots": "the number of slots",
    "layout.dtype": "--dtype",
    "layout.batch": "the teacher's batch (training.micro_batch)",
}
_HEX_DIGITS = 64


def name_differences(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Say the differences of two identities: ``data.window is 1020 there and 510 here``."""
    sentences = []
    for key, (there, here) in found.items():
        if key == "windows.all_slots":
            # Follows from the genome or the intervals, whose digests differ too.
            continue
        words = _WORDS.get(key, key)
        if isinstance(there, str) and len(there) == _HEX_DIGITS:
            sentences.append(f"{words} is not the same")
        else:
            sentences.append(f"{words} is {there} there and {here} here")
    return sentences


def open_for_run(
    folder: str | Path, teacher: str, options: Mapping[str, Any], objective: ObjectiveConfig, data: DataConfig
) -> tuple[CachedTeacher, DataConfig]:
    """Open a finished cache for a recipe, and fix the recipe's windows to those of the cache.

    Parameters
    ----------
    folder
        Of `had.training.cache_building.cache_teacher`.
    teacher, options
        Teacher and options that the recipe names. Weights that are here are compared by their digest; else the name
        decides, and the weights are not needed.
    objective, data
        Of the recipe.

    Returns
    -------
    tuple
        The cache, and ``data`` with fixed starts, their seed, and the slots of the cache.

    Raises
    ------
    UserError
        The cache is not finished, or is of another teacher, genome, window or view.
    """
    if not objective.w_align:
        raise UserError(
            "teacher.cache is given, but with objective.w_align=0 no teacher is asked; leave one of them out."
        )
    if objective.teacher_view != "full":
        raise UserError(
            "a teacher cache holds features of whole windows: train from it with objective.teacher_view=full (here it "
            f"is {objective.teacher_view})."
        )
    cache = CachedTeacher.open(folder)
    windows = cache.manifest.windows
    _check_teacher(cache, teacher, options)
    wrong = []
    if data.window != windows["length"]:
        wrong.append(f"data.window is {windows['length']} there and {data.window} here")
    if data.slots not in (0, windows["slots"]):
        wrong.append(f"data.slots is {windows['slots']} there and {data.slots} here")
    if data.genome and Genome.open(data.genome).digest != windows["genome"]:
        wrong.append("the genome is not the same")
    _refuse(cache, wrong)
    some = windows["slots"] != windows["all_slots"]
    return cache, replace(
        data, fixed_starts=True, starts_seed=windows["starts_seed"], slots=windows["slots"] if some else 0
    )


def check_windows(cache: CachedTeacher, data: WindowData) -> None:
    """Refuse a run whose windows are not those of the cache; say what is read from it.

    Raises
    ------
    UserError
        The BED, the split or the held-out windows are others.
    """
    _refuse(cache, name_differences(differences(cache.manifest.windows, window_facts(data), "windows")))
    dtype = cache.manifest.layout["dtype"]
    say(
        f"Teacher features of {cache.name} come from {cache.folder} ({dtype}): each slot's start is the same in every "
        "epoch."
    )


def say_if_batches_differ(cache: CachedTeacher, batch: int) -> None:
    """Say when float32 features are not to the bit those that this run would have asked for."""
    there = cache.manifest.layout["batch"]
    if cache.manifest.layout["dtype"] == "float32" and there != batch:
        say(
            f"The teacher was asked about {there} windows at a time, this run would ask about {batch}: the features "
            "may differ from those of a run without a cache in the last bits."
        )


def cached_table(cache: CachedTeacher, data: WindowData, objective: ObjectiveConfig, device: torch.device) -> KmerTable:
    """The cache's table of 6-mer means where it was fitted as this run fits it; else one of the cached features."""
    if fit_facts(data, objective) == cache.manifest.fit:
        return KmerTable.load(cache.folder / TABLE_FILE)
    say("The means per 6-mer are fitted anew, on cached features: seed, masks or objective are not the cache's.")
    return fit_table(cache, data, objective, device)


def _check_teacher(cache: CachedTeacher, name: str, options: Mapping[str, Any]) -> None:
    there = cache.manifest.teacher
    if name == "bundled" or Path(name).is_dir():
        # The features' own options: the digest includes the precision.
        if load_teacher(name, there["options"], "cpu", there["seed"]).digest() != there["digest"]:
            _refuse(cache, [f"its teacher is {there['name']}, and the weights of {name} here are others"])
    elif name != there["name"]:
        _refuse(cache, [f"its teacher is {there['name']}, and the recipe names {name} (say --teacher {there['name']})"])
    # How many tokens are asked about at a time changes no feature by more than its last bits.
    wanted = {key: value for key, value in options.items() if key != "tokens_at_once"}
    _refuse(
        cache,
        [
            f"teacher.options.{key} is {there['options'].get(key)} there and {value} here"
            for key, value in wanted.items()
            if there["options"].get(key) != value
        ],
    )


def _refuse(cache: CachedTeacher, reasons: list[str]) -> None:
    if reasons:
        raise UserError(f"{cache.folder} is no cache for this run: {'; '.join(reasons)}.")
