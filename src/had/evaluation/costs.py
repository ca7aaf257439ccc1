"""How long a unit will take, before it is computed: a pass of the network is timed, the rest are rules of thumb.

For progress bars and ``--dry-run``; estimates are of the order of the truth, no more.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from had.dna.alphabet import decode
from had.evaluation.contestants import Contestant
from had.evaluation.frozen_features import Extractor
from had.evaluation.selection import as_finetuning, build_classifier, finetune_config
from had.evaluation.suite_data import TaskData, make_part
from had.training.finetuning_batches import collate
from had.training.finetuning_recipe import FitConfig, schedule_epochs
from had.training.finetuning_scores import predict_logits

_TIMED_LETTERS = 8192
# Seconds of a logistic fit: for each row and feature over all penalties (dense), or letter (k-mers); of k-mer counting.
_DENSE, _SPARSE, _COUNTING = 2e-6, 1.5e-6, 2e-7
_BOOSTING = 3e-5
"""Seconds a letter of all trees that are tried."""
_LAYERS, _WIDTH = 6, 128


class Costs:
    """Estimates, with each contestant's network timed once."""

    def __init__(self, device: torch.device, model: str) -> None:
        self._device, self._model = device, model
        self._timed: dict[str, tuple[float, float]] = {}

    def seconds(self, contestant: Contestant, data: TaskData, configs: Sequence[FitConfig]) -> float:
        """One unit of a contestant on a task, with as many recipes to try as given."""
        fold = data.fold(0)
        lengths = np.array([len(sequence) for sequence in data.sequences])
        train, valid = int(lengths[fold.train].sum()), int(lengths[fold.valid].sum())
        test = int((data.task.n_test or len(fold.valid)) * lengths.mean())
        if contestant.kind == "kmer":
            return (train + valid + test) * _COUNTING + train * _SPARSE
        if contestant.kind == "places":
            return train * _SPARSE
        if contestant.kind == "places-boosted":
            return train * _BOOSTING
        step, forward = self._per_letter(contestant, data, configs)
        if not contestant.is_fitted:
            return (train + valid + test) * forward + len(fold.train) * _LAYERS * _WIDTH * _DENSE
        epochs = schedule_epochs(configs[0], len(fold.train))
        one = epochs * train * step + (epochs + 3) * valid * forward
        return one * len(configs) + 1.5 * test * forward

    def _per_letter(self, contestant: Contestant, data: TaskData, configs: Sequence[FitConfig]) -> tuple[float, float]:
        """Seconds per letter of a training step and of a forward pass."""
        if contestant.name not in self._timed:
            length = min(_TIMED_LETTERS, max(1, int(np.mean([len(s) for s in data.sequences]))))
            codes = np.random.default_rng(0).integers(0, 4, (max(2, _TIMED_LETTERS // length), length), dtype=np.uint8)
            rows = [decode(row) for row in codes]
            if contestant.is_fitted:
                self._timed[contestant.name] = self._time_classifier(contestant, data, configs[0], rows)
            else:
                extractor = Extractor(contestant, data, 0, self._device, self._model)
                seconds = _second_time(lambda: extractor.layers_of(rows))
                self._timed[contestant.name] = (0.0, seconds / codes.size)
        return self._timed[contestant.name]

    def _time_classifier(
        self, contestant: Contestant, data: TaskData, config: FitConfig, rows: list[str]
    ) -> tuple[float, float]:
        part = make_part(rows, np.zeros(len(rows), dtype=np.int64))
        setting = finetune_config(contestant, data, config, 0, self._model)
        model = build_classifier(contestant, setting, as_finetuning(data, part, part, ""), self._device)
        ids, mask = collate(part.codes)

        def step() -> None:
            model.zero_grad()
            model(ids, mask, conjoin=False).logits.float().sum().backward()
            _wait(self._device)

        letters = int(part.lengths.sum())
        trained = _second_time(step)
        return trained / letters, _second_time(lambda: predict_logits(model, part, False)) / letters


def _second_time(run: Callable[[], object]) -> float:
    """Seconds of a second call: the first may compile."""
    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
