"""Masked 6-mer language modelling: the objective with which a teacher is trained, and its evaluation."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from had.console import progress
from had.dna.alphabet import GROUP, KMER_CLS, KMER_MASK, kmer_ids
from had.models.nucleotide_transformer import NucleotideTransformer
from had.training.data import WindowData
from had.training.held_out import Scores, fit_markov, markov_sums

_EVALUATION_BATCH = 32


def masked_tokens(codes: NDArray[np.uint8], hidden: NDArray[np.bool_]) -> dict[str, Tensor]:
    """Tokens of windows for masked-language modelling.

    Parameters
    ----------
    codes
        Letters (n, L) uint8, A/C/G/T only, L a multiple of 6.
    hidden
        Hidden letters (n, L) bool, whole 6-mers, equally many in every row.

    Returns
    -------
    dict
        ``ids`` (n, 1 + T) with ``<cls>`` in front and ``<mask>`` at hidden groups, ``positions`` (n, Q) of the hidden
        tokens in ``ids``, ``targets`` (n, Q) their true ids; all int64.
    """
    true = kmer_ids(codes)
    groups = hidden[:, ::GROUP]
    positions = np.nonzero(groups)[1].reshape(len(groups), -1) if len(groups) else np.zeros((0, 0), dtype=np.int64)
    ids = np.concatenate([np.full((len(true), 1), KMER_CLS), np.where(groups, KMER_MASK, true)], axis=1)
    targets = np.take_along_axis(true, positions, axis=1)
    return {
        "ids": torch.from_numpy(ids),
        "positions": torch.from_numpy(positions + 1),
        "targets": torch.from_numpy(targets),
    }


class MaskedLanguageModule(nn.Module):
    """Sums of cross-entropy and of right answers over the hidden tokens of a batch."""

    def __init__(self, model: NucleotideTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the batch: ``loss_mlm`` (nats) and ``acc_mlm``."""
        logits = self.logits(batch)
        targets = batch["targets"].flatten()
        return {
            "loss_mlm": F.cross_entropy(logits, targets, reduction="sum"),
            "acc_mlm": (logits.argmax(-1) == targets).sum(),
        }

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (n·Q, vocabulary) float32 at the hidden tokens only."""
        states = self.model.hidden_states(batch["ids"], positions=batch["positions"])
        return self.model.head(states[-1]).flatten(0, 1).float()


@torch.inference_mode()
def score_hidden_groups(
    model: NucleotideTransformer, codes: NDArray[np.uint8], hidden: NDArray[np.bool_], quiet: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Negative log probability (n, Q) in nats of each hidden 6-mer, and whether the best guess is right (n, Q)."""
    module = MaskedLanguageModule(model).eval()
    device = model.embedding.weight.device
    losses, correct = [], []
    with progress(len(codes), "evaluating", "windows", quiet=quiet) as advance:
        for part in _portions(len(codes)):
            batch = {k: v.to(device) for k, v in masked_tokens(codes[part], hidden[part]).items()}
            logits, targets = module.logits(batch), batch["targets"]
            loss = F.cross_entropy(logits, targets.flatten(), reduction="none")
            losses.append(loss.double().view(targets.shape).cpu().numpy())
            correct.append((logits.argmax(-1).view(targets.shape) == targets).cpu().numpy())
            advance(len(codes[part]))
    return np.concatenate(losses), np.concatenate(correct)


def _portions(n: int) -> Iterable[slice]:
    return [slice(i, i + _EVALUATION_BATCH) for i in range(0, n, _EVALUATION_BATCH)]


class MaskedLanguageObjective:
    """Trains a Nucleotide-Transformer-style network to name hidden 6-mers."""

    weights: Mapping[str, float] = {"loss_mlm": 1.0}

    def __init__(self, model: NucleotideTransformer, data: WindowData) -> None:
        self.data = data
        self.module = MaskedLanguageModule(model)
        self._baseline_sums: tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]] | None = None

    def batch(self, indices: NDArray[np.integer]) -> dict[str, Tensor]:
        """Masked tokens of these windows."""
        return masked_tokens(*self.data.train(indices))

    def prepare(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Nothing to add."""
        return batch

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Hidden tokens."""
        n = float(batch["targets"].numel())
        return {"loss_mlm": n, "acc_mlm": n}

    def validate(self) -> dict[str, float]:
        """Mean loss (nats per 6-mer) and accuracy on the held-out windows; empty where there are none."""
        if not len(self.data.validation_codes):
            return {}
        loss, correct = score_hidden_groups(self.module.model, self.data.validation_codes, self.data.validation_hidden)
        return {"loss": float(loss.mean()), "loss_mlm": float(loss.mean()), "acc_mlm": float(correct.mean())}

    def scores(self, quiet: bool = True) -> dict[str, Scores]:
        """Held-out sums per window of the network and of the counting predictors; empty where nothing is held out."""
        codes, hidden = self.data.validation_codes, self.data.validation_hidden
        if not len(codes):
            return {}
        losses, correct = score_hidden_groups(self.module.model, codes, hidden, quiet)
        counts = np.full(len(codes), float(losses.shape[1]))
        base_losses, base_correct = self._baselines()
        return {
            "loss_mlm": Scores(counts, losses.sum(1), base_losses),
            "acc_mlm": Scores(counts, correct.sum(1).astype(float), base_correct, lower_is_better=False),
        }

    def _baselines(self) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        if self._baseline_sums is None:
            codes, hidden = self.data.validation_codes, self.data.validation_hidden
            self._baseline_sums = markov_sums(fit_markov(self.data), codes, hidden, "kmer")
        return self._baseline_sums

    def digests(self) -> Mapping[str, str]:
        """Nothing is read besides the windows."""
        return {}

    def describe_windows(self, indices: NDArray[np.integer]) -> list[tuple[str, int, str]]:
        """(contig, start, strand) of each window."""
        return self.data.describe(indices)

    def window_bp(self) -> int:
        """Letters of one window."""
        return self.data.config.window

    def export(self, folder: Path) -> None:
        """Write the network in the Hub's format."""
        self.module.model.save_pretrained(folder)
