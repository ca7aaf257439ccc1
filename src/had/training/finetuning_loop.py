"""The loop of fine-tuning: epochs over labelled rows, averaged weights, early stopping on the task's metric."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from had.baselines.evidence import Evidence
from had.console import Progress, progress
from had.errors import UserError
from had.models.heads import SequenceClassifier
from had.training.checkpoints import load_checkpoint, save_checkpoint
from had.training.finetuning_batches import Part, augmented, collate, make_batches, portions
from had.training.finetuning_evidence import strands_of
from had.training.finetuning_recipe import RATES, FitConfig, chosen_metric, schedule_epochs
from had.training.finetuning_scores import (
    Diverged,
    in_logit_units,
    or_worst,
    pooled_features,
    predict_logits,
    score_logits,
)
from had.training.optimizer_state import optimizer_tensors, restore_optimizer
from had.training.optimizers import OptimizerConfig, build_optimizers, hidden_matrices, learning_rate, set_learning_rate

Classifier = TypeVar("Classifier", bound=SequenceClassifier)
"""Whatever model is fine-tuned: the same kind comes back."""


@dataclass
class FitResult(Generic[Classifier]):
    """The best model by validation."""

    model: Classifier
    """On its device, in evaluation mode, ``config.conjoin`` decided."""
    metric: str
    epoch: int
    """Epoch of the best validation score, counted from 1."""
    epochs_run: int
    validation: dict[str, float]
    """Metrics of the validation rows, which chose the model."""
    conjoin_scores: dict[str, float]
    """Validation score by ``off`` and ``on``, where both were measured."""
    rc_augment: bool
    """Whether training rows were shown on either strand."""
    strands: Evidence | None
    """What that was decided by; None where it was asked for, or where too few rows could tell."""
    finished: bool
    """Whether the schedule ended (or stopped early), and was not interrupted by ``stop_after``."""
    seconds_before: float
    """Spent on epochs before an interruption; 0 where there was none."""


def _loss_sum(model: SequenceClassifier, logits: Tensor, y: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Sum over rows of the weighted loss."""
    task = model.config.task
    if task == "regression":
        return ((logits[:, 0] - y) ** 2).sum()
    if task == "multilabel":
        smooth = y * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="none").mean(1).sum()
    loss = F.cross_entropy(logits, y, label_smoothing=smoothing, reduction="none")
    return (loss if weights is None else loss * weights[y]).sum()


def _weights(task: str, targets: NDArray, n_classes: int, device: torch.device) -> Tensor | None:
    if task == "regression":
        return None
    if task == "multilabel":
        positive = targets.sum(0)
        ratio = (len(targets) - positive) / np.maximum(positive, 1)
        return torch.tensor(np.clip(ratio, 0.01, 100), dtype=torch.float32, device=device)
    counts = np.bincount(targets, minlength=n_classes)
    return torch.tensor(len(targets) / (n_classes * np.maximum(counts, 1)), dtype=torch.float32, device=device)


class Fit(Generic[Classifier]):
    """Fine-tunes one model; see `run`."""

    def __init__(
        self,
        model: Classifier,
        train: Part,
        valid: Part,
        config: FitConfig,
        *,
        seed: int,
        freeze: bool = False,
        bf16: bool = False,
        quiet: bool = True,
    ) -> None:
        self.model, self.train, self.valid, self.config, self.seed, self.freeze = (
            model, train, valid, config, seed, freeze,
        )  # fmt: skip
        self.bf16 = bf16
        self.metric = chosen_metric(model.config.task, config.metric)
        if freeze:
            model.backbone.requires_grad_(False)
            model.eval()
            with progress(len(train) + len(valid), "reading with the frozen student", "rows", quiet=quiet) as advance:
                for part in (train, valid):
                    part.features = pooled_features(model, part, advance=advance)
        windows = getattr(model.config, "windows", 0)
        # A head that knows positions must not have them moved.
        self.shift = 0 if windows else config.shift
        self.strands = strands_of(model.config.task, train, windows, quiet) if config.rc_augment == "auto" else None
        if config.rc_augment != "auto":
            self.rc_augment = config.rc_augment
        elif windows:
            # Rows that are cut around an anchor mostly have a direction.
            self.rc_augment = self.strands is not None and self.strands.hurts
        else:
            self.rc_augment = self.strands is None or not self.strands.matters
        # With a frozen student the average is of the head alone, but one module keeps all of it simple.
        self.shadow = copy.deepcopy(model).eval().requires_grad_(False)
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.epochs = schedule_epochs(config, len(train), freeze)
        total = self.steps_per_epoch * self.epochs
        optimizer = config.optimizer
        if optimizer == "auto":
            optimizer = "muon" if hidden_matrices(model) else "adamw"
        lr = config.lr if config.lr is not None else 1e-2 if freeze else RATES[optimizer]
        schedule = OptimizerConfig(
            optimizer, lr, 0.0, 0.0, round(config.warmup * total), weight_decay=config.weight_decay
        )
        self.total = total
        self.optimizers = build_optimizers(model, schedule)
        if optimizer == "muon" and len(self.optimizers) == 1:
            raise UserError("nothing that is trained here is a weight matrix of a layer: use the optimizer adamw")
        muon = replace(schedule, lr=lr if config.muon_lr is None else config.muon_lr)
        self.schedules = [schedule, muon][: len(self.optimizers)]
        self.class_weights = None
        if config.class_weights == "balanced":
            self.class_weights = _weights(model.config.task, train.targets, len(model.config.classes), model.device)
        self.epoch = self.best_epoch = 0
        self.better_epoch = 0
        """Last epoch whose score, whatever its loss, was better than all before: patience counts from it."""
        self.seconds = self.seconds_before = 0.0
        self.best_key: tuple[float, float] | None = None
        self.best: dict[str, Tensor] = {}

    def run(
        self,
        *,
        log: Callable[[dict[str, Any]], None] | None = None,
        advance: Progress | None = None,
        checkpoints: Path | None = None,
        resume_from: Path | None = None,
        stop_after: int | None = None,
        save_seconds: float = 0.0,
    ) -> FitResult[Classifier]:
        """Train to the end of the schedule, or until patience ends or epoch ``stop_after`` is done.

        Parameters
        ----------
        log, advance
            Are told the scores of every epoch, and the rows of every batch.
        checkpoints, save_seconds
            Folder in which the state is saved after an epoch, not more often than this.
        resume_from
            A checkpoint of the same model, data, recipe and seed: what follows is, bit for bit, what would have.
        stop_after
            Epoch to stop after.

        Raises
        ------
        Diverged
            If the loss is not finite.
        RunFault
            If the disk is full.
        """
        config = self.config
        advance = advance or Progress()
        if resume_from is not None:
            self._load(resume_from)
            advance.skip(self.epoch * len(self.train))
        saved = time.monotonic()
        while self.epoch < self.epochs and not self._out_of_patience():
            if stop_after is not None and self.epoch >= stop_after:
                break
            started = time.monotonic()
            loss = self._one_epoch(advance)
            scores = score_logits(
                self.model, self.valid.targets, predict_logits(self.shadow, self.valid, config.conjoin == "on")
            )
            self.epoch += 1
            # Where two epochs have one score (often 0: one class predicted), the smaller loss decides.
            key = (or_worst(scores.get(self.metric, math.nan)), or_worst(-scores["loss"]))
            if self.best_key is None or key[0] > self.best_key[0]:
                self.better_epoch = self.epoch
            if self.best_key is None or key > self.best_key:
                self.best_key, self.best_epoch = key, self.epoch
                self.best = {k: v.detach().clone() for k, v in self.shadow.state_dict().items()}
            advance.note(loss=loss, **{self.metric: scores.get(self.metric, math.nan)})
            if log is not None:
                bp = int(self.train.lengths.sum()) * self.epoch
                step = self.epoch * self.steps_per_epoch
                common = {"epoch": self.epoch, "step": step, "bp": bp}
                log({"split": "train", **common, "loss": loss, "lr": self._rate(step - 1)})
                log({"split": "validation", **common, **scores})
            self.seconds += time.monotonic() - started
            if checkpoints is not None and time.monotonic() - saved >= save_seconds:
                self._save(checkpoints)
                saved = time.monotonic()
        return self._result()

    def _out_of_patience(self) -> bool:
        return bool(self.config.patience) and self.epoch - self.better_epoch >= self.config.patience

    def _rate(self, step: int, number: int = 0) -> float:
        return learning_rate(step, self.total, self.schedules[number])

    def _one_epoch(self, advance: Progress) -> float:
        config, model = self.config, self.model
        # Everything random in an epoch follows from (seed, epoch), so a resumed run draws the same.
        rng = np.random.default_rng([self.seed, self.epoch])
        torch.manual_seed(int(rng.integers(0, 2**63 - 1)))
        model.train()
        if self.freeze:
            model.backbone.eval()
        sums = rows_done = 0.0
        for number, batch in enumerate(make_batches(self.train.lengths, config.batch_size, rng)):
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            cut = int(rng.integers(0, self.shift + 1))
            batch_loss = 0.0
            for chosen in self._passes(batch):
                with self._autocast():
                    logits = self._training_logits(chosen, rng, cut)
                y = torch.from_numpy(in_logit_units(self.model, self.train.targets[chosen]))
                # Not every device has float64.
                y = (y.float() if y.is_floating_point() else y).to(model.device)
                loss = _loss_sum(model, logits.float(), y, config.label_smoothing, self.class_weights) / len(batch)
                loss.backward()
                batch_loss += loss.item()
            if not math.isfinite(batch_loss):
                raise Diverged(f"the loss is not finite in epoch {self.epoch + 1}; lower lr and start into a new --out")
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            step = self.epoch * self.steps_per_epoch + number
            for which, optimizer in enumerate(self.optimizers):
                set_learning_rate([optimizer], self._rate(step, which))
                optimizer.step()
            self._average(step)
            sums += batch_loss * len(batch)
            rows_done += len(batch)
            advance(len(batch))
        return sums / rows_done

    def _passes(self, batch: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [batch] if self.freeze else portions(self.train.lengths, batch, self.config.letters_per_pass)

    def _training_logits(self, chosen: NDArray[np.int64], rng: np.random.Generator, cut: int) -> Tensor:
        if self.train.features is not None:
            strands = rng.integers(0, 2 if self.rc_augment else 1, len(chosen))
            return self.model.classify(self.train.features[chosen, strands])
        rows = [augmented(self.train.codes[i], rng, self.rc_augment, cut) for i in chosen]
        ids, mask = collate(rows)
        return self.model(ids, mask, conjoin=False).logits

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.model.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step)) if self.config.ema else 0.0
        for mean, now in zip(self.shadow.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        # Running statistics of batch normalisation are averages already.
        for kept, current in zip(self.shadow.buffers(), self.model.buffers(), strict=True):
            kept.copy_(current)

    def _result(self) -> FitResult[Classifier]:
        model, config = self.shadow, self.config
        if self.best:
            model.load_state_dict(self.best)
        sides = {"off": [False], "on": [True], "auto": [False, True]}[config.conjoin]
        scored = {}
        for side in sides:
            scores = score_logits(model, self.valid.targets, predict_logits(model, self.valid, side))
            scored[side] = ((or_worst(scores.get(self.metric, math.nan)), or_worst(-scores["loss"])), scores)
        # On equal terms one strand is enough: prediction is then twice as fast.
        conjoin = max(scored, key=lambda side: (scored[side][0], not side))
        model.config.conjoin = self.model.config.conjoin = conjoin
        done = self.epoch >= self.epochs or self._out_of_patience()
        both = {"on" if side else "off": scores.get(self.metric, math.nan) for side, (_, scores) in scored.items()}
        return FitResult(
            model,
            self.metric,
            self.best_epoch,
            self.epoch,
            scored[conjoin][1],
            both,
            self.rc_augment,
            self.strands,
            done,
            self.seconds_before,
        )

    def _save(self, folder: Path) -> None:
        tensors = {f"module/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.shadow.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        states = []
        for i, optimizer in enumerate(self.optimizers):
            own, state = optimizer_tensors(optimizer, self.model.named_parameters(), prefix=f"optimizer{i}")
            tensors.update(own)
            states.append(state)
        key = None if self.best_key is None else [repr(value) for value in self.best_key]
        extra: dict[str, Any] = {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_key": key}
        extra["better_epoch"] = self.better_epoch
        extra |= {"optimizers": states, "seconds": self.seconds, "rc_augment": self.rc_augment}
        save_checkpoint(folder, self.epoch * self.steps_per_epoch, tensors, extra, keep=1)

    def _load(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)

        def named(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.model.load_state_dict(named("module/"))
            self.shadow.load_state_dict(named("average/"))
        except RuntimeError as error:
            raise UserError(f"{path}: is a checkpoint of another model; use another --out") from error
        if len(state["optimizers"]) != len(self.optimizers):
            raise UserError(f"{path}: is a checkpoint of other optimizers; use another --out")
        self.best = named("best/")
        for i, (optimizer, saved) in enumerate(zip(self.optimizers, state["optimizers"], strict=True)):
            own = {k: v for k, v in tensors.items() if k.startswith(f"optimizer{i}/")}
            restore_optimizer(optimizer, self.model.named_parameters(), own, saved, prefix=f"optimizer{i}")
        self.epoch, self.best_epoch = int(state["epoch"]), int(state["best_epoch"])
        self.better_epoch = int(state.get("better_epoch", self.best_epoch))
        # As it was decided then: sums on another number of threads may fall on the other side of a threshold.
        self.rc_augment = bool(state.get("rc_augment", self.rc_augment))
        self.seconds = self.seconds_before = float(state.get("seconds", 0.0))
        self.best_key = tuple(float(value) for value in state["best_key"]) if state["best_key"] else None  # type: ignore[assignment]
