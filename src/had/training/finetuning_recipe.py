"""How a model is fine-tuned: the recipe's keys, their defaults, and what a task may be judged by."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from had.errors import UserError
from had.training.finetuning_scores import LETTERS_PER_PASS

_OF_CLASSES = ("mcc", "accuracy", "macro_f1", "auroc", "auprc")
METRICS_OF = {
    "binary": _OF_CLASSES,
    "multiclass": _OF_CLASSES,
    "multilabel": (*_OF_CLASSES, "exact_match"),
    "regression": ("pearson", "spearman", "r2"),
}
"""What a task may be judged by; the first is the default."""

RATES = {"muon": 5e-3, "adamw": 1e-3}
"""Peak learning rates of the whole student."""
_EPOCHS = 5
_EPOCHS_FROZEN = 20
"""[ours] A head on features that are computed once costs next to nothing."""
_LEAST_STEPS = 150
"""[ours] Some hundred rows need more than five passes: the recipe search's smallest task took so many steps."""


@dataclass
class FitConfig:
    """How a model is fine-tuned; the defaults are meant for every task."""

    BEFORE: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "positions": False}
    """What was done before there were these keys: a stored recipe without them is not one with their defaults."""

    epochs: int | None = None
    """Passes over the training rows of the whole schedule; null: 5 (20 of a frozen student), and more where these are
    fewer than 150 steps."""
    batch_size: int = 64
    """Rows per optimizer step."""
    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    """adamw; or muon for the weight matrices of the layers and AdamW for the rest (head, embedding, norms, gates);
    auto: muon where such matrices are trained."""
    lr: float | None = None
    """Peak learning rate; null: 5e-3 with muon, 1e-3 with adamw, 1e-2 for a frozen student's head. With muon that of
    AdamW's part."""
    muon_lr: float | None = None
    """Peak learning rate of Muon's matrices, whose updates have the usual size of AdamW's; null: as lr."""
    weight_decay: float = 0.1
    """Decoupled weight decay of weight matrices."""
    warmup: float = 0.05
    """Share of the steps with a rising learning rate; a cosine down to 0 follows."""
    dropout: float = 0.1
    """Share of the pooled features hidden in training."""
    label_smoothing: float = 0.0
    """Share of the probability given to all classes alike."""
    ema: float = 0.99
    """Decay of the average of weights that is validated and saved, reached gradually; 0: the weights as they are."""
    rc_augment: bool | Literal["auto"] = "auto"
    """Show each training row on either strand; auto: unless the strand tells something of the label, and where the head
    knows positions only if strands clearly tell nothing."""
    shift: int = 2
    """Letters cut off each training row, left and right in random shares; rows shorter than 8 times that stay whole,
    and all rows where the head knows positions."""
    positions: bool | Literal["auto"] = "auto"
    """Let the head know where a feature stands: beside the mean over all letters it sees each letter's place (windows,
    where rows are longer than 512), and rows are not shifted; auto: where positions tell something of the label."""
    conjoin: Literal["off", "on", "auto"] = "auto"
    """Average the logits of both strands in prediction; auto: where validation is better with it."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs the same in the loss."""
    patience: int = 0
    """Stop after so many epochs without a better validation score; 0: never."""
    metric: str = "auto"
    """What early stopping and the best checkpoint go by; auto: mcc, for regression pearson."""
    precision: Literal["auto", "float32", "bf16"] = "float32"
    """bf16 autocast or float32 in training; validation, test and prediction are float32."""
    letters_per_pass: int = LETTERS_PER_PASS
    """Letters, padding included, in one forward pass in training; bounds memory, changes sums in the last bits only."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning with a UserError."""
        for name in ("epochs", "batch_size", "letters_per_pass"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("warmup", "dropout", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 0 and below 1; got {getattr(self, name)}")
        for name in ("shift", "patience", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in ("lr", "muon_lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be above 0; got {value}")
        if self.muon_lr is not None and self.optimizer == "adamw":
            raise UserError(f"muon_lr goes with the optimizer muon; got optimizer {self.optimizer}")


def schedule_epochs(config: FitConfig, n_rows: int, freeze: bool = False) -> int:
    """Epochs of the schedule on ``n_rows`` training rows."""
    if config.epochs is not None:
        return config.epochs
    least = math.ceil(_LEAST_STEPS / math.ceil(n_rows / config.batch_size))
    return max(_EPOCHS_FROZEN if freeze else _EPOCHS, least)


def chosen_metric(task: str, metric: str) -> str:
    """The metric that early stopping goes by; UserError where the task has none of that name."""
    if metric == "auto":
        return METRICS_OF[task][0]
    if metric not in METRICS_OF[task]:
        raise UserError(f"the metric of {task} is one of {', '.join(METRICS_OF[task])}; got {metric!r}")
    return metric


def check_recipe(config: FitConfig, task: str) -> None:
    """Refuse, with a UserError, what does not go with a kind of task."""
    chosen_metric(task, config.metric)
    if task == "regression":
        for name, idle in (("class_weights", "none"), ("label_smoothing", 0.0)):
            if getattr(config, name) != idle:
                raise UserError(f"{name} is of classes, but values are learnt here (regression); leave it out")
