"""Frozen models compared by linear probes over several labelled tasks: every layer, the best one chosen by dev."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from had.baselines.kmer_regression import KmerLogisticRegression
from had.bootstrap import t_interval
from had.config import check_seed
from had.console import progress, say
from had.dna.labelled import LabelledSequences, read_splits
from had.errors import UserError
from had.evaluation.features import student_layers, teacher_layers
from had.evaluation.probes import draw_rows, probe_layers
from had.files import atomic_write_text, why_no_folder
from had.metrics import mcc
from had.models.saving import find_folder
from had.models.student import HADConfig, HADModel
from had.models.teacher_loading import load_teacher
from had.models.teachers import NTv2Teacher

FIELDS = ("task", "model", "layer", "chosen", "dev_mcc", "test_mcc", "n_train", "n_dev", "n_test")
SPLITS = ("train", "dev", "test")

Layers = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Comparison:
    """A model against another over the same tasks, each at the layer its development scores chose."""

    model: str
    reference: str
    n_tasks: int
    mean: float
    """Mean test MCC of ``model``."""
    difference: float
    """Mean of the paired differences."""
    low: float
    high: float
    """95 % t interval of the difference over tasks; NaN with one task, from which none can be given."""
    wins: int
    """Tasks on which ``model`` is better."""

    def sentence(self) -> str:
        """The comparison in words; one task gives no interval."""
        interval = f"[{self.low:+.3f}, {self.high:+.3f}]" if self.n_tasks > 1 else "(one task gives no interval)"
        return (
            f"{self.model}: mean test MCC {self.mean:.3f} over {self.n_tasks} task(s); against {self.reference} "
            f"{self.difference:+.3f} {interval}, better on {self.wins}"
        )


def open_model(spec: str, device: torch.device) -> Callable[[Sequence[str]], Layers]:
    """Function from sequences to features of every layer.

    ``spec`` is a student's folder or bundled name, ``untrained:SEED`` (the student at its start), or ``teacher:NAME``.
    """
    kind, _, rest = spec.partition(":")
    if kind == "untrained":
        if not re.fullmatch(r"\d{1,20}", rest, re.ASCII):
            raise UserError(f"untrained:SEED needs a whole number; got {spec!r}")
        check_seed(int(rest))
        torch.manual_seed(int(rest))
        student = HADModel(HADConfig()).to(device)
    elif kind == "teacher":
        teacher = load_teacher(rest, None, device)
        if not isinstance(teacher, NTv2Teacher):
            raise UserError(f"{rest} is no Nucleotide Transformer: only these are probed as teachers")
        return lambda sequences: teacher_layers(teacher, sequences)
    else:
        student = HADModel.from_pretrained(find_folder(spec)).to(device)
    return lambda sequences: student_layers(student, sequences)


def probe_tasks(
    data: Path, tasks: Sequence[str], models: Mapping[str, str], out: Path, device: torch.device, max_rows: int | None
) -> list[dict[str, str]]:
    """Probe every layer of each model on each task; rows already in ``out`` are not computed again.

    Parameters
    ----------
    data
        Folder with a folder per task, each with ``{train,dev,test}.csv(.gz)`` (the layout of GUE).
    tasks
        Folders below ``data``, such as ``prom/prom_core_tata``.
    models
        Name in the table → specification (see `open_model`), or ``kmers``.
    out
        CSV file, one row per task, model and layer; written after each model.
    device
        Where features are computed.
    max_rows
        Training rows of each task used at most, the same fixed subset for every model; None: all. Development and
        test rows are always used whole.

    Returns
    -------
    All rows of ``out``.

    Raises
    ------
    UserError
        If a task or a model cannot be used, or ``out`` has rows of a task that were fitted on more or fewer rows.
    """
    if max_rows is not None and max_rows < 2:
        raise UserError(f"--max-rows must be at least 2; got {max_rows}")
    if out.is_dir() or (reason := why_no_folder(out.absolute().parent)):
        raise UserError(f"{out} cannot be written ({'it is a folder' if out.is_dir() else reason}); use another --out")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.absolute().parent} is no folder; make it, or use another --out")
    rows = _read(out)
    done = {(row["task"], row["model"]) for row in rows}
    with progress(len(tasks) * len(models), "probing", "probes") as advance:
        for task in tasks:
            splits = read_splits(data / task)
            if missing := [name for name in SPLITS if name not in splits]:
                raise UserError(f"{data / task}: has no {missing[0]} file; a probe needs train, dev and test")
            n_train = min(len(splits["train"]), len(splits["train"]) if max_rows is None else max_rows)
            for row in rows:
                if row["task"] == task and int(row["n_train"]) != n_train:
                    raise UserError(
                        f"{out}: {row['model']} on {task} was fitted on {row['n_train']} training rows, not on "
                        f"{n_train}; use the same --max-rows, or another --out"
                    )
            for name, spec in models.items():
                if (task, name) not in done:
                    rows += _probe(task, name, spec, splits, device, max_rows)
                    atomic_write_text(out, _as_csv(rows))
                advance()
    return rows


def _probe(
    task: str,
    name: str,
    spec: str,
    splits: Mapping[str, LabelledSequences],
    device: torch.device,
    max_rows: int | None,
) -> list[dict[str, str]]:
    train, dev, test = (splits[split] for split in SPLITS)
    # Cut before anything is embedded: the features of rows that no probe reads are the greater part of the work.
    rows = draw_rows(len(train), None, max_rows)[0]
    sequences, labels = [train.sequences[i] for i in rows], train.labels[rows]
    sizes = {"n_train": str(len(rows)), "n_dev": str(len(dev)), "n_test": str(len(test))}
    if spec == "kmers":
        regression = KmerLogisticRegression().fit(sequences, labels, dev.sequences, dev.labels)
        score = mcc(test.labels, regression.predict(test.sequences))
        scores = [("4- and 6-mer counts", regression.fitted.dev_score, score)]
        best = 0
    else:
        features = open_model(spec, device)
        layers = [features(texts) for texts in (sequences, dev.sequences, test.sequences)]
        names = list(layers[0])
        of_split = [[part[layer] for layer in names] for part in layers]
        result = probe_layers(
            of_split[0],
            labels,
            of_split[1],
            dev.labels,
            of_split[2],
            test.labels,
            names=names,
        )
        scores = [(probe.layer, probe.dev, probe.test) for probe in result.layers]
        best = result.best_index
    say(f"{task}, {name}: test MCC {scores[best][2]:.3f} ({scores[best][0]})")
    return [
        {
            "task": task,
            "model": name,
            "layer": layer,
            "chosen": str(int(i == best)),
            "dev_mcc": f"{dev_score:.6f}",
            "test_mcc": f"{test_score:.6f}",
            **sizes,
        }
        for i, (layer, dev_score, test_score) in enumerate(scores)
    ]


def compare(rows: Sequence[Mapping[str, str]], reference: str) -> list[Comparison]:
    """Every model against ``reference``, paired over the tasks that both have; where there is none it is left out."""
    chosen: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["chosen"] == "1":
            chosen.setdefault(row["model"], {})[row["task"]] = float(row["test_mcc"])
    comparisons = []
    for model, scores in chosen.items():
        tasks = sorted(scores.keys() & chosen[reference].keys())
        if not tasks:
            continue
        ours, theirs = (np.array([s[task] for task in tasks]) for s in (scores, chosen[reference]))
        interval = t_interval(ours - theirs)
        comparisons.append(
            Comparison(
                model,
                reference,
                len(tasks),
                float(ours.mean()),
                interval.mean,
                interval.low,
                interval.high,
                int((ours > theirs).sum()),
            )
        )
    return comparisons


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        rows = list(reader) if tuple(reader.fieldnames or ()) == FIELDS else [{}]
    if any(None in row.values() or row.keys() != set(FIELDS) for row in rows):
        raise UserError(f"{path}: is no whole table of probes; name another file by --out")
    return rows


def _as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
