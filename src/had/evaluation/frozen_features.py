"""Frozen features of a task's rows, computed once and kept while its seeds are fitted."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from had.errors import UserError
from had.evaluation.contestants import UNTRAINED, Contestant, student_sizes
from had.evaluation.features import student_layers, teacher_layers_of_any
from had.evaluation.suite_data import TaskData
from had.models.saving import find_folder
from had.models.student import HADModel
from had.models.teacher_loading import load_teacher
from had.models.teachers import NTv2Teacher
from had.training.finetuning_batches import portions

LETTERS_PER_CHUNK = 131_072
"""Letters, padding included, whose layers are in memory at once."""

Layers = dict[str, NDArray[np.float32]]


class Extractor:
    """A frozen network and its features of a task's rows."""

    def __init__(self, contestant: Contestant, data: TaskData, seed: int, device: torch.device, model: str) -> None:
        self._data = data
        self._rows: Layers | None = None
        self.seconds = 0.0
        """Spent on the features of the rows."""
        self.layers_of: Callable[[Sequence[str]], Layers]
        network: Any
        if contestant.kind == "teacher-probe":
            teacher = load_teacher(contestant.source, None, device)
            if not isinstance(teacher, NTv2Teacher):
                raise UserError(f"{contestant.source} is no Nucleotide Transformer; only these are probed as teachers")
            network = teacher.network
            self.layers_of = lambda sequences: teacher_layers_of_any(teacher, sequences)
        else:
            if contestant.source == UNTRAINED:
                torch.manual_seed(seed)
                student = HADModel(student_sizes(model))
            else:
                student = HADModel.from_pretrained(find_folder(contestant.source))
            network = student.to(device)
            self.layers_of = lambda sequences: student_layers(student, sequences)
        self.parameters = sum(p.numel() for p in network.parameters())

    def of_rows(self) -> Layers:
        """Every layer's features (n, d) of the task's rows, training and validation."""
        if self._rows is None:
            started = time.perf_counter()
            self._rows = self.of(self._data.sequences, None)
            self.seconds = time.perf_counter() - started
        return self._rows

    def of(self, sequences: Sequence[str], layers: Sequence[str] | None) -> Layers:
        """Features (n, d) float32 of sequences, of some layers or of all."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        result: Layers = {}
        with warnings.catch_warnings():
            # Other IUPAC letters are read as N; a warning for each sequence says no more.
            warnings.simplefilter("ignore", UserWarning)
            for chosen in portions(lengths, np.arange(len(sequences)), LETTERS_PER_CHUNK):
                found = self.layers_of([sequences[i] for i in chosen])
                for name, values in found.items():
                    if layers is None or name in layers:
                        place = result.setdefault(name, np.empty((len(sequences), values.shape[1]), np.float32))
                        place[chosen] = values
        return result


class FeatureTable:
    """Keeps the extractor used last: seeds of one task and model follow one another."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._extractor: Extractor | None = None

    def of(self, contestant: Contestant, data: TaskData, seed: int, device: torch.device, model: str) -> Extractor:
        """The extractor of a contestant on a task; an untrained network, of ``model``'s sizes, is new for each seed."""
        key = (contestant, data.task.name, seed if contestant.source == UNTRAINED else None)
        if self._extractor is None or key != self._key:
            self._extractor, self._key = Extractor(contestant, data, seed, device, model), key
        return self._extractor
