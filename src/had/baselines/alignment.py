"""What a constant and a table of 6-mers already align: the floors of the alignment loss.

Both are fitted in one pass over the teacher's features on training windows, in float64. The table is also the
``contextual`` target of distillation: the teacher's feature minus the mean feature of that 6-mer (HAD.md §5).
"""

from os import PathLike
from typing import Protocol, TypeAlias

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from had.dna.alphabet import N_KMERS
from had.errors import UserError
from had.files import atomic_write_bytes

Array: TypeAlias = Tensor | NDArray


class AlignmentBaseline(Protocol):
    """A prediction of the teacher's features that needs no student."""

    def update(self, features: Array, kmers: Array, visible: Array | None = None) -> None:
        """Add the features of some training windows."""

    def predict(self, kmers: Array) -> Tensor:
        """Predict features (…, D) of 6-mers (…)."""

    def squared_error(self, features: Array, kmers: Array) -> Tensor:
        """Mean over D of the squared error, (n, T)."""


class KmerTable:
    """Mean feature of each 6-mer over the training windows; the mean over all tokens for 6-mers never seen.

    Parameters
    ----------
    width
        D, the width of the teacher's features.

    Attributes
    ----------
    counts : torch.Tensor
        Tokens seen of each 6-mer, (4096,) int64.
    sums : torch.Tensor
        Sum of their features, (4096, D) float64.
    """

    def __init__(self, width: int) -> None:
        self.sums = torch.zeros(N_KMERS, width, dtype=torch.float64)
        self.counts = torch.zeros(N_KMERS, dtype=torch.int64)
        self._means_on: dict[torch.device, Tensor] = {}

    @property
    def width(self) -> int:
        """Width D of the features."""
        return self.sums.shape[1]

    def update(self, features: Array, kmers: Array, visible: Array | None = None) -> None:
        """Add the features of some training windows.

        Sums are kept on the CPU in float64, so they are the same whatever device the features come from.

        Parameters
        ----------
        features
            Teacher features (n, T, D) as the loss sees them (normalised), any floating type and device.
        kmers
            6-mer index (n, T) in 0…4095, the order of :func:`had.dna.alphabet.kmer_indices`
            (the teacher's token id minus 6).
        visible
            Tokens to use (n, T) bool; all where None. Leave hidden tokens out: their features do not know
            their 6-mers.
        """
        features, kmers = torch.as_tensor(features), torch.as_tensor(kmers)
        _check_shapes(features, kmers, self.width)
        # A window at a time: a float64 copy of the whole batch would take twice its memory.
        for i in range(len(features)):
            window, index = features[i].detach(), kmers[i].cpu().long()
            if visible is not None:
                keep = torch.as_tensor(visible[i])
                window, index = window[keep.to(window.device)], index[keep.cpu()]
            self.sums.index_add_(0, index, window.cpu().double())
            self.counts += torch.bincount(index, minlength=N_KMERS)
        self._means_on.clear()

    @property
    def mean(self) -> Tensor:
        """Mean feature of all tokens, (D,) float32.

        Raises
        ------
        ValueError
            If no token was seen.
        """
        total = self.counts.sum()
        if total == 0:
            raise ValueError("no token was seen: call update on some training windows first")
        return (self.sums.sum(dim=0) / total).float()

    @property
    def means(self) -> Tensor:
        """Mean feature of each 6-mer, (4096, D) float32; the mean over all tokens for a 6-mer never seen."""
        means = (self.sums / self.counts.clamp(min=1)[:, None]).float()
        return torch.where(self.counts[:, None] > 0, means, self.mean)

    def predict(self, kmers: Array) -> Tensor:
        """Predict the features (…, D) float32 of 6-mers (…), on the device of ``kmers``."""
        kmers = torch.as_tensor(kmers)
        if kmers.device not in self._means_on:
            self._means_on[kmers.device] = self.means.to(kmers.device)
        return self._means_on[kmers.device][kmers.long()]

    def squared_error(self, features: Array, kmers: Array) -> Tensor:
        """Squared error of the prediction, mean over D, of each token: (n, T) float32."""
        features = torch.as_tensor(features)
        return _squared_error(features, self.predict(torch.as_tensor(kmers, device=features.device)))

    def contextual(self, features: Array, kmers: Array) -> Tensor:
        """Teacher features (n, T, D) minus the mean feature of each token's own 6-mer."""
        features = torch.as_tensor(features)
        return features - self.predict(torch.as_tensor(kmers, device=features.device)).to(features.dtype)

    def save(self, path: str | PathLike[str]) -> None:
        """Write counts and sums as safetensors."""
        atomic_write_bytes(path, to_safetensors({"counts": self.counts, "sums": self.sums}))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "KmerTable":
        """Read what :meth:`save` wrote.

        Raises
        ------
        UserError
            If the file is absent, damaged, or holds something else.
        """
        tensors = _read(path)
        counts, sums = tensors.get("counts"), tensors.get("sums")
        if counts is None or sums is None or counts.shape != (N_KMERS,) or sums.shape[:-1] != (N_KMERS,):
            raise UserError(f"{path} is no table of {N_KMERS} 6-mer means: fit it again")
        table = cls(sums.shape[1])
        table.counts, table.sums = counts, sums
        return table


class MeanVector:
    """Mean feature of all tokens of the training windows.

    Parameters
    ----------
    width
        D, the width of the teacher's features.
    """

    def __init__(self, width: int) -> None:
        self.sum = torch.zeros(width, dtype=torch.float64)
        self.count = 0

    @classmethod
    def of(cls, table: KmerTable) -> "MeanVector":
        """Take the tokens that a table was fitted on: one pass over the teacher serves both."""
        mean = cls(table.width)
        mean.sum, mean.count = table.sums.sum(dim=0), int(table.counts.sum())
        return mean

    def update(self, features: Array, kmers: Array | None = None, visible: Array | None = None) -> None:
        """Add the features (n, T, D) of some training windows; ``kmers`` is not looked at."""
        features = torch.as_tensor(features).detach()
        tokens = (
            features.reshape(-1, features.shape[-1])
            if visible is None
            else features[torch.as_tensor(visible, device=features.device)]
        )
        self.sum += tokens.cpu().sum(dim=0, dtype=torch.float64)
        self.count += len(tokens)

    @property
    def mean(self) -> Tensor:
        """The mean feature (D,) float32.

        Raises
        ------
        ValueError
            If no token was seen.
        """
        if self.count == 0:
            raise ValueError("no token was seen: call update on some training windows first")
        return (self.sum / self.count).float()

    def predict(self, kmers: Array) -> Tensor:
        """Predict the mean feature for each of some 6-mers (…): (…, D) float32."""
        kmers = torch.as_tensor(kmers)
        return self.mean.to(kmers.device).expand(*kmers.shape, -1)

    def squared_error(self, features: Array, kmers: Array | None = None) -> Tensor:
        """Squared error of the mean, mean over D, of each token: (n, T) float32."""
        features = torch.as_tensor(features)
        return _squared_error(features, self.mean.to(features.device))

    def save(self, path: str | PathLike[str]) -> None:
        """Write sum and count as safetensors."""
        atomic_write_bytes(path, to_safetensors({"count": torch.tensor(self.count), "sum": self.sum}))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "MeanVector":
        """Read what :meth:`save` wrote; raises :class:`had.errors.UserError` where it cannot."""
        tensors = _read(path)
        if set(tensors) != {"count", "sum"}:
            raise UserError(f"{path} is no mean vector: fit it again")
        mean = cls(len(tensors["sum"]))
        mean.sum, mean.count = tensors["sum"], int(tensors["count"])
        return mean


def _check_shapes(features: Tensor, kmers: Tensor, width: int) -> None:
    if features.shape != (*kmers.shape, width):
        raise ValueError(
            f"features {tuple(features.shape)} do not fit 6-mers {tuple(kmers.shape)} and a width of {width}"
        )


def _squared_error(features: Tensor, prediction: Tensor) -> Tensor:
    return (features.float() - prediction).square().mean(dim=-1)


def _read(path: str | PathLike[str]) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): fit it again") from error
