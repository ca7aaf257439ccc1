"""The student with a task on top: mean pooling over real letters or windows of them, dropout, one linear layer.

What every classifier of sequences has in common is `SequenceClassifier`: fine-tuning knows nothing else of a model, so
a convolutional network or a fine-tuned teacher is trained by the same loop.

Shape suffixes: B batch, L length, D width, W windows, K outputs.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from had.console import some_of
from had.dna.alphabet import COMPLEMENT, NUCLEOTIDE_OFFSET
from had.errors import UserError
from had.models.prediction import TrainedOn, predict
from had.models.saving import (
    CLASSIFIER_TYPE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_folder,
    load_weights,
    read_config,
    write_folder,
)
from had.models.student import HADConfig, HADModel
from had.schema import build

TASKS = ("binary", "multiclass", "multilabel", "regression")


@dataclass
class HeadConfig:
    """What stands above a network, and what its outputs mean."""

    task: str = "binary"
    """binary, multiclass, multilabel or regression."""
    classes: list[str] = field(default_factory=lambda: ["0", "1"])
    """Names of the outputs, in their order; for regression the one name of the value."""
    dropout: float = 0.0
    """Share of the pooled features that training hides."""
    conjoin: bool = False
    """Whether the logits are the mean over both strands."""
    target_mean: float = 0.0
    """Regression: mean of the training values."""
    target_scale: float = 1.0
    """Regression: standard deviation of the training values."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning with a ValueError."""
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}; got {self.task!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout}")
        least = {"binary": 2, "multiclass": 2}.get(self.task, 1)
        if len(self.classes) < least or (self.task in ("binary", "regression") and len(self.classes) > least):
            raise ValueError(f"{self.task} has {least} or more outputs; got {len(self.classes)}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have one name")


@dataclass
class HADClassifierConfig(HeadConfig):
    """What stands above the student, and its sizes."""

    model_type: ClassVar[str] = CLASSIFIER_TYPE

    student: HADConfig = field(default_factory=HADConfig)
    """Sizes of the student."""
    windows: int = 0
    """Equal shares of each sequence that the head also sees apart, so that it knows where a feature stands; 0: none."""
    trained_on: TrainedOn | None = None
    """How the training rows were cut; None: not known."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning with a ValueError."""
        super().__post_init__()
        if not isinstance(self.windows, int) or self.windows < 0:
            raise ValueError(f"windows must be a whole number and not negative; got {self.windows!r}")

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, as ``config.json`` holds them."""
        return {**dataclasses.asdict(self), "student": self.student.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the model's config") -> "HADClassifierConfig":
        """Make a config of a dictionary; ``where`` names it in messages.

        Raises
        ------
        had.errors.UserError
            An unknown name, or a value that is not allowed.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise UserError(f"{where} has unknown names: {some_of(unknown)}; a newer version wrote it?")
        return build(cls, {**values, "student": HADConfig.from_dict(values.get("student", {}), where)}, where)


@dataclass
class ClassifierOutput:
    """Result of a forward pass."""

    logits: Tensor
    """(B, K): log-odds up to a constant per row (binary, multiclass), log-odds (multilabel), or the value in standard
    deviations of the training values from their mean (regression); `SequenceClassifier.probabilities` turns them over.
    """


def complement_ids(vocab_size: int) -> Tensor:
    """Student token id (vocab_size,) int64 of the complement of each token; special tokens are their own."""
    table = torch.arange(vocab_size)
    codes = torch.from_numpy(COMPLEMENT.astype("int64"))
    table[NUCLEOTIDE_OFFSET : NUCLEOTIDE_OFFSET + len(codes)] = codes + NUCLEOTIDE_OFFSET
    return table


def reverse_complement_ids(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Reverse complement of token ids (B, L), each row within its letters: padding stays where it is.

    Parameters
    ----------
    input_ids
        Student token ids, padded on either side.
    attention_mask
        (B, L), 0 at padding; None: nothing is padded.
    """
    table = complement_ids(max(12, int(input_ids.max()) + 1)).to(input_ids.device)
    if attention_mask is None:
        return table[input_ids.flip(1)]
    real = attention_mask != 0
    length = real.sum(1, keepdim=True)
    start = real.int().argmax(1, keepdim=True)
    position = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    mirrored = torch.where(real, 2 * start + length - 1 - position, position)
    return torch.where(real, table[input_ids.gather(1, mirrored)], input_ids)


class SequenceClassifier(nn.Module):
    """A network that pools a sequence into one vector, dropout, and one linear layer.

    Parameters
    ----------
    config
        Task and classes.
    backbone
        Name and network below the head: it keeps its own name among the weights.
    width
        D of the pooled vectors.
    std
        Standard deviation of the head's fresh weights; None: torch's own start.
    """

    def __init__(
        self, config: HeadConfig, backbone: tuple[str, nn.Module], width: int, std: float | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self._backbone = backbone[0]
        self.add_module(*backbone)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, len(config.classes))
        if std is not None:
            nn.init.normal_(self.head.weight, std=std)
            nn.init.zeros_(self.head.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def backbone(self) -> nn.Module:
        """The network below the head, which a linear probe leaves as it is."""
        return self.get_submodule(self._backbone)

    def pool(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """One vector (B, D) float32 for each row of student token ids (B, L), which are on the model's device."""
        raise NotImplementedError

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """Logits (B, K) of pooled features (B, D); for regression see `probabilities`."""
        return self.head(self.dropout(pooled_BD))

    def forward(
        self,
        input_ids: Tensor | NDArray[Any],
        attention_mask: Tensor | NDArray[Any] | None = None,
        conjoin: bool | None = None,
    ) -> ClassifierOutput:
        """Compute the logits of each sequence.

        Parameters
        ----------
        input_ids
            (B, L) student token ids, as `had.dna.NucleotideTokenizer` gives them.
        attention_mask
            (B, L), 0 at padding, which may stand on either side and does not change the logits.
        conjoin
            Average the logits over both strands; None: as ``config.conjoin`` says.

        Raises
        ------
        ValueError
            As `had.HADModel.forward`.
        """
        ids = torch.as_tensor(input_ids).to(self.device, torch.int64)
        mask = None if attention_mask is None else torch.as_tensor(attention_mask)
        logits_BK = self.classify(self.pool(ids, mask))
        if self.config.conjoin if conjoin is None else conjoin:
            turned = reverse_complement_ids(ids, None if mask is None else mask.to(self.device))
            logits_BK = (logits_BK + self.classify(self.pool(turned, mask))) / 2
        return ClassifierOutput(logits_BK)

    def probabilities(self, logits_BK: Tensor) -> Tensor:
        """Probability (B, K) of each class; each label's own for multilabel.

        For regression the values, in float64 (on the CPU, since not every device has it): logits are in units of
        ``config.target_scale`` from ``config.target_mean``, which float32 could not add without loss where it is large.
        """
        if self.config.task == "regression":
            return logits_BK.cpu().double() * self.config.target_scale + self.config.target_mean
        return logits_BK.sigmoid() if self.config.task == "multilabel" else logits_BK.softmax(1)


_SHARES = 2**25
"""Numbers of the table of `window_sums` that are held at a time."""


def window_sums(features_BLD: Tensor, real_BL: Tensor, windows: int) -> tuple[Tensor, Tensor]:
    """Sums (B, W, D) of the features in each window, and the letters (B, W, 1) of each, in fractions of letters.

    Windows overlap: a letter between the middles of two belongs to both, more to the nearer, in shares that sum to 1.
    As many windows as letters are the letters themselves.

    Parameters
    ----------
    features_BLD
        One vector for each letter.
    real_BL
        1.0 at letters, 0.0 at padding, which may stand on either side.
    windows
        W.
    """
    place_BL = (real_BL.cumsum(1) - 0.5) * windows / real_BL.sum(1, keepdim=True).clamp_min(1) - 0.5
    place_BL = place_BL.clamp(0, windows - 1)
    middles_W = torch.arange(windows, device=real_BL.device)[:, None]
    # A product with a dense table of shares, unlike adding by index, has a fixed order of summation on a GPU as well.
    step = max(1, _SHARES // max(1, len(real_BL) * windows))
    sums_BWD = features_BLD.new_zeros(len(real_BL), windows, features_BLD.shape[2])
    letters_BW1 = features_BLD.new_zeros(len(real_BL), windows, 1)
    for place_Bl, real_Bl, features_BlD in zip(
        place_BL.split(step, 1), real_BL.split(step, 1), features_BLD.split(step, 1), strict=True
    ):
        shares_BWl = (1 - (place_Bl[:, None] - middles_W).abs()).clamp_min(0) * real_Bl[:, None]
        sums_BWD = sums_BWD + shares_BWl @ features_BlD
        letters_BW1 = letters_BW1 + shares_BWl.sum(2, keepdim=True)
    return sums_BWD, letters_BW1


class HADForSequenceClassification(SequenceClassifier):
    """A student with one linear layer on its features, averaged over the letters or over windows of them.

    Parameters
    ----------
    config
        Task, classes and the student's sizes.
    student
        A trained student of these sizes, taken over as it is; None: a fresh one.
    """

    config: HADClassifierConfig
    student: HADModel

    def __init__(self, config: HADClassifierConfig | None = None, student: HADModel | None = None) -> None:
        config = config or HADClassifierConfig()
        student = HADModel(config.student) if student is None else student
        width = config.student.hidden_size
        super().__init__(config, ("student", student), width * (1 + config.windows), config.student.initializer_range)
        # Training starts from the mean over the letters.
        nn.init.zeros_(self.head.weight[:, width:])

    def pool(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mean (B, D) float32 of the student's features over the real letters of each row; 0 for a row of none.

        With windows (B, D + W * D): behind the mean what each window differs from it, divided by √W so that one
        learning rate suits both parts.
        """
        features_BLD = self.student(input_ids, attention_mask).last_hidden_state.float()
        if attention_mask is None:
            real_BL = torch.ones(features_BLD.shape[:2], device=features_BLD.device)
        else:
            real_BL = (attention_mask != 0).to(features_BLD)
        letters_B1 = real_BL.sum(1, keepdim=True).clamp_min(1)
        # Features are 0 at padding, so the sum is over the letters alone.
        mean_BD = features_BLD.sum(1) / letters_B1
        if not self.config.windows:
            return mean_BD
        sums_BWD, letters_BW1 = window_sums(features_BLD, real_BL, self.config.windows)
        apart_BWD = sums_BWD - letters_BW1 * mean_BD[:, None]
        # A row of fewer letters than windows fills them in part.
        apart_BWD = apart_BWD / (letters_B1 / self.config.windows).clamp_min(1)[..., None]
        return torch.cat([mean_BD, apart_BWD.flatten(1) / self.config.windows**0.5], 1)

    def predict(
        self,
        sequences: Sequence[str],
        batch_size: int = 32,
        both_strands: bool | None = None,
        as_written: bool = False,
    ) -> NDArray[np.floating]:
        """Predict for DNA sequences: `had.models.prediction.predict` of this model, whose docstring has the details.

        Returns
        -------
        numpy.ndarray
            (n, K) float32 in the order of ``config.classes``: the probability of each class, of multilabel each label's
            own; of regression the value, float64 (K = 1). A row of NaN for a sequence without any letter A, C, G or T.
        """
        return predict(self, sequences, batch_size, both_strands, as_written)

    def embed(
        self,
        sequences: Sequence[str],
        pooling: Literal["mean", "max", "none"] = "mean",
        batch_size: int = 32,
        both_strands: bool = False,
        layer: int = -1,
    ) -> Any:
        """Embed DNA sequences with the fine-tuned student, as `had.HADModel.embed` does."""
        return self.student.embed(sequences, pooling, batch_size, both_strands, layer)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` (task, classes, sizes) and ``model.safetensors``.

        Raises
        ------
        had.errors.UserError
            ``folder`` is a file.
        had.errors.RunFault
            The disk refused.
        """
        write_folder(folder, self.config.model_type, self.config.to_dict(), {WEIGHTS_FILE: self})

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], revision: str | None = None
    ) -> "HADForSequenceClassification":
        """Load a fine-tuned model from its folder, its run folder, or a Hub repository: on the CPU, for evaluation.

        Raises
        ------
        had.errors.UserError
            Nothing of that name is found, or it is no fine-tuned model.
        """
        folder = find_folder(name, revision)
        found = read_config(folder, HADClassifierConfig.model_type)
        config = HADClassifierConfig.from_dict(found, str(folder / CONFIG_FILE))
        model = cls(config)
        load_weights(model, folder / WEIGHTS_FILE)
        return model.eval()
