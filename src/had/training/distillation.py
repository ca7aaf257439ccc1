"""The HAD objective: match the teacher's features on visible 6-mers, reconstruct the hidden nucleotides.

[paper]: mean squared error on visible tokens against the frozen teacher's last layer; hidden letters are queries that
cross-attend to visible features. Heads, targets, views and weights beyond that are [ours] (HAD.md §5).

Shape letters: B batch, L letters, T = L / 6 groups, d student width, D teacher width, M aligned groups or letters.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from had.baselines.alignment import KmerTable
from had.console import progress
from had.dna.alphabet import GROUP, NUCLEOTIDE_MASK, NUCLEOTIDE_OFFSET, kmer_indices
from had.files import atomic_write_bytes, atomic_write_text
from had.models.cached_teacher import CachedTeacher, stored_in
from had.models.feature_shards import decode_features
from had.models.reconstruction import CrossAttentionDecoder, hidden_and_visible_index
from had.models.saving import FACTS_FILE
from had.models.student import HADModel
from had.models.teachers import Teacher
from had.training.card import student_card
from had.training.data import WindowData
from had.training.held_out import Scores, alignment_sums, fit_markov, markov_sums

VALIDATION_BATCH = 32
PROJECTION_FILE = "projection.safetensors"


@dataclass
class ObjectiveConfig:
    """What the student learns from; the defaults are the method, the rest are ablations and controls."""

    w_align: float = 1.0
    """Weight of the alignment loss; 0: no teacher is needed (reconstruction alone)."""
    w_rec: float = 1.0
    """Weight of the reconstruction loss; 0: distillation alone."""
    align_positions: Literal["visible", "masked", "all"] = "visible"
    """Which 6-mers are aligned."""
    align_head: Literal["mean", "concat"] = "mean"
    """mean: one linear layer on the mean of a 6-mer's six features; concat: on the six in order."""
    align_target: Literal["full", "contextual"] = "full"
    """full: the teacher's feature; contextual: minus the mean feature of that 6-mer on training windows."""
    granularity: Literal["group", "nucleotide"] = "group"
    """group: one comparison per 6-mer; nucleotide: each letter is compared with its 6-mer's feature."""
    teacher_view: Literal["masked", "full"] = "masked"
    """masked: hidden 6-mers are hidden from the teacher too; full: it sees the whole window."""
    fit_windows: int = 1024
    """Training windows on which the mean features (baselines and contextual target) are fitted."""

    def __post_init__(self) -> None:
        """Check what no type can."""
        if self.w_align < 0 or self.w_rec < 0 or not (self.w_align or self.w_rec):
            raise ValueError("objective.w_align and objective.w_rec must be at least 0, and not both 0")
        if self.granularity == "nucleotide" and self.align_head == "concat":
            raise ValueError("objective.align_head concat joins the letters of a 6-mer: it needs granularity group")


def windows_to_batch(
    codes: NDArray[np.uint8], hidden: NDArray[np.bool_], positions: str = "visible"
) -> dict[str, Tensor]:
    """Tensors of some windows, all that the student, the decoder and the teacher are shown.

    Parameters
    ----------
    codes
        Letters (B, L) uint8, A/C/G/T only.
    hidden
        Hidden letters (B, L) bool, equally many in every row.
    positions
        Which groups are aligned: visible, masked or all. A group with any hidden letter counts as masked.

    Returns
    -------
    dict
        ``input_ids`` (B, L) int64 with ``[MASK]`` at hidden letters; ``query_index`` (B, Q) and ``key_index``
        (B, L − Q), the hidden and the visible letters; ``query_codes`` (B, Q) their true codes; ``codes`` (B, L)
        uint8 and ``hidden_groups`` (B, T) for the teacher; ``aligned`` (B, T) bool, and ``aligned_index`` (M,) int64,
        the rising positions of its ones in the flattened array: to find them on a GPU, the CPU would have to wait.
    """
    letters = torch.from_numpy(codes).long()
    hidden_letters = torch.from_numpy(hidden)
    n_hidden = int(hidden[0].sum()) if len(hidden) else 0
    query, key = hidden_and_visible_index(hidden_letters, n_hidden)
    groups = hidden_letters.unflatten(1, (-1, GROUP)).any(-1)
    aligned = {"visible": ~groups, "masked": groups, "all": torch.ones_like(groups)}[positions]
    return {
        "input_ids": torch.where(hidden_letters, NUCLEOTIDE_MASK, letters + NUCLEOTIDE_OFFSET),
        "query_index": query,
        "key_index": key,
        "query_codes": letters.gather(1, query),
        "codes": torch.from_numpy(codes),
        "hidden_groups": groups,
        "aligned": aligned,
        "aligned_index": aligned.flatten().nonzero().squeeze(1),
    }


class DistillationModule(nn.Module):
    """Student, projection to the teacher, and decoder; the forward pass gives sums of both losses.

    Parameters
    ----------
    student
        The model that is distilled.
    teacher_width
        D of the teacher; None where nothing is aligned.
    config
        The objective.
    """

    def __init__(self, student: HADModel, teacher_width: int | None, config: ObjectiveConfig) -> None:
        super().__init__()
        self.student = student
        self.config = config
        width = student.config.hidden_size
        self.projection = None
        if config.w_align and teacher_width is not None:
            self.projection = nn.Linear(width * (GROUP if config.align_head == "concat" else 1), teacher_width)
            nn.init.normal_(self.projection.weight, std=student.config.initializer_range)
            nn.init.zeros_(self.projection.bias)
        self.decoder = CrossAttentionDecoder(student.config) if config.w_rec else None

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the batch: ``loss_align`` (mean over D, summed over groups), ``loss_rec`` (nats), ``acc_rec``."""
        sums = {}
        for name, values in self.per_window(batch).items():
            sums[name] = values.sum()
        return sums

    def per_window(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same sums, window by window (B,)."""
        features = self.student(batch["input_ids"]).last_hidden_state
        sums: dict[str, Tensor] = {}
        if self.projection is not None:
            sums["loss_align"] = self._alignment(features, batch["target"], batch["aligned_index"])
        if self.decoder is not None:
            query = batch["query_index"]
            if features.shape[1] <= self.decoder.window:
                logits = self.decoder(features, query, key_index=batch["key_index"]).float()
            else:
                hidden = torch.zeros_like(batch["input_ids"], dtype=torch.bool).scatter(1, query, True)
                logits = self.decoder.in_blocks(features, hidden).view(*query.shape, -1).float()
            losses = F.cross_entropy(logits.flatten(0, 1), batch["query_codes"].flatten(), reduction="none")
            sums["loss_rec"] = losses.view(len(features), -1).sum(1)
            sums["acc_rec"] = (logits.argmax(-1) == batch["query_codes"]).sum(1)
        return sums

    def _alignment(self, features: Tensor, target_M: Tensor, index_M: Tensor) -> Tensor:
        """Squared error (B,), mean over D, summed over the aligned groups of each window."""
        assert self.projection is not None
        n_groups = features.shape[1] // GROUP
        groups = features.reshape(-1, GROUP, features.shape[2]).index_select(0, index_M)
        if self.config.granularity == "nucleotide":
            error = (self.projection(groups).float() - target_M[:, None].float()).square().mean(-1).mean(-1)
        else:
            joined = groups.flatten(1) if self.config.align_head == "concat" else groups.mean(1)
            error = (self.projection(joined).float() - target_M.float()).square().mean(-1)
        if error.is_cuda:
            # There the order of `index_add` changes from run to run.
            return error.new_zeros(len(features) * n_groups).index_copy(0, index_M, error).view(-1, n_groups).sum(1)
        return error.new_zeros(len(features)).index_add(0, index_M // n_groups, error)


def normalise_features(features: Tensor) -> Tensor:
    """Teacher features (…, D) at zero mean and unit variance per token."""
    return F.layer_norm(features.float(), features.shape[-1:])


def teacher_features(teacher: Teacher, batch: Mapping[str, Tensor], view: str) -> Tensor:
    """Normalised features (B, T, D) float32 of the teacher; with ``view`` masked it does not see the hidden groups.

    Where the batch carries stored features, they are given instead.
    """
    if stored := stored_in(batch):
        return decode_features(stored)
    hidden = batch["hidden_groups"] if view == "masked" else None
    with torch.no_grad():
        return normalise_features(teacher.features(batch["codes"], hidden))


def stored_features(teacher: Teacher | None, data: WindowData, indices: NDArray[np.integer]) -> dict[str, Tensor]:
    """What a cached teacher holds of training windows by their index in the run; nothing for any other teacher."""
    if not isinstance(teacher, CachedTeacher):
        return {}
    return teacher.training(data.sampler.rows_of(indices), data.sampler.draw(indices)[1])


class DistillationObjective:
    """Distils a teacher into a student; see `ObjectiveConfig` for its terms and ablations.

    Parameters
    ----------
    module
        Student, projection and decoder.
    teacher
        Frozen; None where ``w_align`` is 0.
    table
        Mean teacher features per 6-mer, fitted on training windows: the contextual target subtracts them.
    data
        Windows of the run.
    facts
        What is written into the student's card.
    keep_features
        Ask the teacher about the held-out windows once, and keep its answers in memory.
    """

    def __init__(
        self,
        module: DistillationModule,
        teacher: Teacher | None,
        table: KmerTable | None,
        data: WindowData,
        facts: Mapping[str, Any],
        keep_features: bool = True,
    ) -> None:
        self.facts, self.keep_features = facts, keep_features
        self.module, self.teacher, self.table, self.data = module, teacher, table, data
        config = module.config
        self.config = config
        self.weights: Mapping[str, float] = {
            name: weight for name, weight in (("loss_align", config.w_align), ("loss_rec", config.w_rec)) if weight
        }
        self._held_out_features: dict[int, Tensor] = {}
        self._letter_sums: tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]] | None = None

    def batch(self, indices: NDArray[np.integer]) -> dict[str, Tensor]:
        """Windows by their index in the run."""
        batch = self._windows(*self.data.train(indices))
        return {**batch, **stored_features(self.teacher, self.data, indices)}

    def _windows(self, codes: NDArray[np.uint8], hidden: NDArray[np.bool_]) -> dict[str, Tensor]:
        batch = windows_to_batch(codes, hidden, self.config.align_positions)
        if self.config.align_target == "contextual":
            batch["kmers"] = kmer_index_of(batch["codes"])
        return batch

    def prepare(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Add the teacher's target (M, D) at the aligned groups."""
        if self.teacher is None:
            return batch
        features = teacher_features(self.teacher, batch, self.config.teacher_view)
        return {**batch, "target": self._target(batch, features)}

    def _target(self, batch: Mapping[str, Tensor], features: Tensor) -> Tensor:
        if self.config.align_target == "contextual":
            assert self.table is not None
            features = self.table.contextual(features, batch["kmers"])
        return features.flatten(0, 1).index_select(0, batch["aligned_index"])

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Aligned groups and hidden letters."""
        counts = {}
        if self.module.projection is not None:
            counts["loss_align"] = float(batch["aligned"].sum())
        if self.module.decoder is not None:
            counts["loss_rec"] = counts["acc_rec"] = float(batch["query_codes"].numel())
        return counts

    def validate(self) -> dict[str, float]:
        """Held-out losses and accuracy; empty where nothing is held out."""
        sums: dict[str, float] = {}
        totals: dict[str, float] = {}
        for batch in self._held_out():
            for name, values in self.module.per_window(batch).items():
                sums[name] = sums.get(name, 0.0) + float(values.double().sum())
            for name, count in self.counts(batch).items():
                totals[name] = totals.get(name, 0.0) + count
        means = {name: sums[name] / max(1.0, totals[name]) for name in sums}
        return {"loss": sum(w * means[name] for name, w in self.weights.items()), **means} if means else {}

    @torch.no_grad()
    def scores(self, quiet: bool = True) -> dict[str, Scores]:
        """Held-out sums per window of the student and of the baselines; empty where nothing is held out."""
        codes, hidden = self.data.validation_codes, self.data.validation_hidden
        sums: dict[str, list[Tensor]] = {}
        constants: dict[str, list[NDArray[np.float64]]] = {}
        n_aligned = []
        with progress(len(codes), "evaluating", "windows", quiet=quiet) as advance:
            for batch in self._held_out():
                for name, values in self.module.per_window(batch).items():
                    sums.setdefault(name, []).append(values.double().cpu())
                n_aligned.append(batch["aligned"].sum(1).double().cpu().numpy())
                if self.table is not None and self.teacher is not None:
                    aligned = (batch["codes"], batch["aligned"], batch["features"])
                    for name, part in self._constant_sums(*aligned).items():
                        constants.setdefault(name, []).append(part)
                advance(len(batch["codes"]))
        if not sums:
            return {}
        model = {name: torch.cat(parts).numpy() for name, parts in sums.items()}
        result: dict[str, Scores] = {}
        if "loss_align" in model:
            counts = np.concatenate(n_aligned)
            some = counts > 0
            by_name = {name: np.concatenate(parts)[some] for name, parts in constants.items()}
            result["loss_align"] = Scores(counts[some], model["loss_align"][some], by_name)
        if "loss_rec" in model:
            counts = hidden.sum(1).astype(float)
            losses, correct = self._letter_baselines(codes, hidden)
            result["loss_rec"] = Scores(counts, model["loss_rec"], losses)
            result["acc_rec"] = Scores(counts, model["acc_rec"], correct, lower_is_better=False)
        return result

    def _constant_sums(self, codes: Tensor, aligned: Tensor, features: Tensor) -> dict[str, NDArray[np.float64]]:
        assert self.table is not None
        kmers = kmer_index_of(codes)
        return alignment_sums(self.table, features, kmers, aligned, self.config.align_target == "contextual")

    def _letter_baselines(
        self, codes: NDArray[np.uint8], hidden: NDArray[np.bool_]
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        if self.data.config.mask != "group":
            return {}, {}
        if self._letter_sums is None:
            self._letter_sums = markov_sums(fit_markov(self.data), codes, hidden, "base")
        return self._letter_sums

    def _held_out(self) -> Iterator[Mapping[str, Tensor]]:
        """Prepared held-out batches; the teacher is asked once, since the masks are fixed."""
        codes, hidden = self.data.validation_codes, self.data.validation_hidden
        device = next(self.module.parameters()).device
        for i in range(0, len(codes), VALIDATION_BATCH):
            part = slice(i, i + VALIDATION_BATCH)
            batch = self._windows(codes[part], hidden[part])
            if isinstance(self.teacher, CachedTeacher):
                batch |= self.teacher.held_out(i, i + len(batch["codes"]))
            on_device: Mapping[str, Tensor] = {k: v.to(device) for k, v in batch.items()}
            if self.teacher is not None:
                features = self._held_out_features.get(i)
                if features is None:
                    features = teacher_features(self.teacher, on_device, self.config.teacher_view)
                    if self.keep_features:
                        self._held_out_features[i] = features.cpu()
                features = features.to(device)
                on_device = {**on_device, "features": features, "target": self._target(on_device, features)}
            yield on_device

    def digests(self) -> Mapping[str, str]:
        """Checksum of the teacher; that of a cache covers its teacher."""
        if self.teacher is None or isinstance(self.teacher, CachedTeacher):
            return {}
        return {"teacher": self.teacher.digest()}

    def describe_windows(self, indices: NDArray[np.integer]) -> list[tuple[str, int, str]]:
        """(contig, start, strand) of each window."""
        return self.data.describe(indices)

    def window_bp(self) -> int:
        """Letters of one window."""
        return self.data.config.window

    def export(self, folder: Path) -> None:
        """Write student, decoder, projection to the teacher, and what is known of the training."""
        self.module.student.save_pretrained(folder, decoder=self.module.decoder)
        if self.module.projection is not None:
            weights = {k: v.detach().cpu().contiguous() for k, v in self.module.projection.state_dict().items()}
            atomic_write_bytes(folder / PROJECTION_FILE, save(weights))
        atomic_write_text(folder / FACTS_FILE, json.dumps(self.facts, indent=1) + "\n")
        atomic_write_text(folder / "README.md", student_card(self.facts))


def kmer_index_of(codes: Tensor) -> Tensor:
    """6-mer index (B, T) in 0…4095 of codes (B, L), on their device."""
    return torch.from_numpy(kmer_indices(codes.cpu().numpy())).to(codes.device)


def fit_table(teacher: Teacher, data: WindowData, config: ObjectiveConfig, device: torch.device) -> KmerTable:
    """Mean teacher feature of each aligned 6-mer, over the first windows of the training order (epoch 0)."""
    table = KmerTable(teacher.width)
    for i in range(0, config.fit_windows, VALIDATION_BATCH):
        indices = np.arange(i, min(i + VALIDATION_BATCH, config.fit_windows))
        batch = windows_to_batch(*data.train(indices), config.align_positions)
        on_device = {k: v.to(device) for k, v in {**batch, **stored_features(teacher, data, indices)}.items()}
        features = teacher_features(teacher, on_device, config.teacher_view)
        table.update(features, kmer_index_of(batch["codes"]), batch["aligned"])
    return table
