"""Which models stand in a benchmark, and with which recipe each is trained.

A row is named by ``KIND``, ``NAME=KIND`` or ``NAME=KIND:SOURCE``; kinds are in `KINDS`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from had.config import build
from had.errors import UserError
from had.evaluation.protocols import BenchmarkTask, Suite
from had.files import sha256_of_file
from had.models.ntv2_published import find_checkpoint
from had.models.saving import DEFAULT_MODEL, WEIGHTS_FILE, find_folder
from had.models.student import HADConfig, student_config
from had.training.finetuning_recipe import FitConfig, chosen_metric

KINDS = {
    "had": "a pre-trained student, fine-tuned (--model, or had:FOLDER)",
    "scratch": "the same network with fresh weights, trained the same way",
    "probe": "a frozen student and a linear probe (--model, probe:FOLDER, or probe:untrained)",
    "teacher": "a Nucleotide Transformer, fine-tuned (--teacher, or teacher:NAME)",
    "teacher-probe": "a frozen Nucleotide Transformer and a linear probe",
    "kmer": "logistic regression on counts of 4- and 6-mers",
    "places": "logistic regression on letters at their places",
    "places-boosted": "gradient boosting on letters at their places",
    "cnn": "Genomic Benchmarks' convolutional network",
}
FLOORS = ("scratch", "kmer", "places", "places-boosted", "cnn")
"""Kinds that a report misses where they were not run."""
FITTED = ("had", "scratch", "teacher", "cnn")
"""Kinds that are trained by gradient descent, with a learning rate to choose."""
UNTRAINED = "untrained"
RECIPES = ("protocol", "finetune")
TEACHER_RATES = (3e-5, 3e-4)
"""[ours] Peak learning rates of a fine-tuned teacher: those of a student would destroy a large one."""
CNN_RATE = 1e-3
"""That of the original's optimizer."""
_WORD = re.compile(r"(?:(?P<name>\w[\w.+\-]*)=)?(?P<kind>[a-z\-]+)(?::(?P<source>.+))?")
_WHOLE_BATCH = 1 << 30
_SECTIONS = {"had": "training", "scratch": "training", "teacher": "teacher", "cnn": "cnn"}


@dataclass(frozen=True)
class Contestant:
    """One row of the table."""

    name: str
    kind: str
    source: str = ""
    """Folder, bundled name, Hub name, ``untrained``; empty where the kind needs none."""
    digest: str = ""
    """sha256 of the weights it starts from, or the sizes of fresh ones; empty where it has none."""

    @property
    def is_fitted(self) -> bool:
        """Whether it is trained by gradient descent."""
        return self.kind in FITTED

    @property
    def same_for_every_seed(self) -> bool:
        """Whether, on the same rows, every seed gives the same model."""
        return not self.is_fitted and self.source != UNTRAINED


def parse_models(words: Sequence[str], model: str, teacher: str) -> list[Contestant]:
    """Read ``--models``.

    Parameters
    ----------
    words
        ``had``, ``kmer``, ``untrained=probe:untrained``, ``other=had:runs/b/model``, …
    model
        The student of had, scratch (its sizes) and probe, where they name none.
    teacher
        The teacher where none is named.

    Raises
    ------
    UserError
        If a word cannot be read, a name stands twice, or a model is not there.
    """
    found: list[Contestant] = []
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None or match["kind"] not in KINDS:
            raise UserError(f"--models: {word!r} is none of {', '.join(KINDS)}, and not NAME=KIND or NAME=KIND:FOLDER")
        kind, source = match["kind"], match["source"] or ""
        if source and kind in FLOORS:
            raise UserError(f"--models: {kind} takes no source; got {word!r}")
        name = match["name"] or kind
        if any(other.name == name for other in found):
            raise UserError(f"--models: two rows are named {name}; write NAME=KIND:SOURCE with another name")
        if kind in ("had", "probe"):
            source = source or model
        elif kind in ("teacher", "teacher-probe"):
            source = source or teacher
        found.append(Contestant(name, kind, source, _digest(kind, source, model)))
    if not found:
        raise UserError(f"--models names nothing; choose of {', '.join(KINDS)}")
    return found


def student_sizes(model: str) -> HADConfig:
    """Sizes of the student that ``--model`` names; the default ones where no student is bundled."""
    try:
        folder = find_folder(model)
    except UserError:
        if model != DEFAULT_MODEL:
            raise
        return HADConfig()
    return student_config(folder)


def _fresh(sizes: HADConfig) -> dict[str, Any]:
    """Sizes of a network with fresh weights, which no training window has shaped."""
    # Without those that are not set: earlier versions did not know attention_window.
    return {name: size for name, size in sizes.to_dict().items() if name != "training_window" and size is not None}


def _digest(kind: str, source: str, model: str) -> str:
    if kind == "scratch":
        return json.dumps(_fresh(student_sizes(model)), sort_keys=True)
    if kind in ("had", "probe"):
        if source == UNTRAINED:
            sizes = _fresh(student_sizes(model))
            return UNTRAINED if sizes == _fresh(HADConfig()) else json.dumps(sizes, sort_keys=True)
        return sha256_of_file(find_folder(source) / WEIGHTS_FILE)
    if kind in ("teacher", "teacher-probe"):
        return source if source.startswith("random:") else sha256_of_file(find_checkpoint(source).weights)
    return ""


def check_settings(recipe: str, changes: Mapping[str, Any], contestants: Sequence[Contestant]) -> list[str]:
    """Refuse settings that mean nothing, of models that are not run too; what is to be said of the others.

    Parameters
    ----------
    recipe
        As `fit_configs`.
    changes
        Settings by section, as given.
    contestants
        Who is run.

    Raises
    ------
    UserError
        If the recipe, a section or a setting is unknown, or a value has no meaning.
    """
    if recipe not in RECIPES:
        raise UserError(f"--recipe is {' or '.join(RECIPES)}; got {recipe!r}")
    notes = []
    for section, values in changes.items():
        if section not in _SECTIONS.values() or not isinstance(values, Mapping):
            raise UserError(
                f"{section!r} is no section of settings; they are training, teacher and cnn, as cnn.epochs=5"
            )
        config = build(FitConfig, dict(values), f"options ({section})")
        # Whatever the suite, its tasks are classes.
        chosen_metric("multiclass", config.metric)
        kinds = [kind for kind, own in _SECTIONS.items() if own == section]
        if not any(contestant.kind in kinds for contestant in contestants):
            notes.append(f"{section}.{next(iter(values), '')} changes nothing here: no model is {' or '.join(kinds)}")
    return notes


def fit_configs(
    suite: Suite,
    task: BenchmarkTask,
    contestant: Contestant,
    recipe: str = "protocol",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[FitConfig]:
    """Recipes of a fitted contestant, one for each learning rate that validation chooses from.

    Parameters
    ----------
    suite, task, contestant
        What is trained on what.
    recipe
        protocol: epochs, batch size, weight decay, warm-up and learning rates of the suite, everything else as
        `had finetune` has it; finetune: the recipe of `had finetune` as it is. The convolutional network has its own:
        no augmentation, no averaged weights, no weight decay.
    changes
        Settings by section: ``training`` (had, scratch), ``teacher``, ``cnn``. A learning rate here is the only one.

    Raises
    ------
    UserError
        If a setting is unknown or has no meaning.
    """
    of_suite: dict[str, Any] = {"metric": task.metric, "epochs": suite.epochs, "batch_size": suite.batch_size}
    of_suite["warmup"] = suite.warmup
    rates: Sequence[float | None] = suite.rates
    if contestant.kind == "cnn":
        plain = {"weight_decay": 0.0, "dropout": 0.0, "ema": 0.0, "rc_augment": False, "shift": 0, "conjoin": "off"}
        plain["optimizer"] = "adamw"
        # Batch normalisation must see a whole batch at once.
        values = of_suite | plain | {"letters_per_pass": _WHOLE_BATCH}
        rates = (CNN_RATE,)
    elif recipe == "finetune":
        values, rates = {"metric": task.metric}, (None,)
    else:
        values = of_suite | {"weight_decay": suite.weight_decay, "optimizer": "adamw"}
    if contestant.kind == "teacher":
        rates = TEACHER_RATES
        values["optimizer"] = "adamw"
    section = _SECTIONS[contestant.kind]
    values |= (changes or {}).get(section, {})
    config = build(FitConfig, values, f"options ({section})")
    if "lr" in values:
        rates = (config.lr,)
    if contestant.kind == "cnn" and config.optimizer == "muon":
        raise UserError("the cnn has no matrices for muon: leave out cnn.optimizer=muon")
    return [dataclasses.replace(config, lr=rate) for rate in rates]
