"""Whether a checkpoint is a published Nucleotide Transformer v2 and computes what that one computes."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from had.dna.alphabet import KMER_CLS, KMER_PAD, encode_bytes, kmer_ids
from had.files import sha256_of_file
from had.models.ntv2_published import (
    PublishedModel,
    find_checkpoint,
    model_of_sizes,
    oracles,
    published_model,
    published_sha256,
)
from had.models.nucleotide_transformer import MAX_TOKENS, NucleotideTransformer

TOLERANCE = 1e-4
"""Largest difference allowed between a pooled feature and the recorded one, in float32.

Features are of order 1; another implementation of the same record came to within 5e-6, and the mistakes this
is meant to find (swapped halves, another epsilon, a forgotten mask, other weights) cost far more.
"""


@dataclass(frozen=True)
class TeacherReport:
    """What `verify_teacher` found; ``str(report)`` is the text for a person."""

    name: str
    """The name or folder that was asked for."""
    weights: str
    """Path of the weights."""
    size: str | None
    """Published size with the same dimensions (``50m`` …), None where there is none."""
    n_parameters: int
    """Parameters of the network, with the language-model head, without the stored but unused tensors."""
    licence: str
    """Licence of the weights, empty where none is stated."""
    sha256: str
    """Of the weights file."""
    published_sha256: str | None
    """On record for this file, None where there is no record."""
    max_difference: float | None
    """Largest absolute difference of pooled features from the recorded ones, None without a record."""
    tolerance: float = TOLERANCE
    """Largest `max_difference` that passes."""

    @property
    def passed(self) -> bool | None:
        """Whether the features agree with the recorded ones; None where nothing was recorded.

        The checksum does not decide: the same weights stored in another file have another one.
        """
        return None if self.max_difference is None else self.max_difference <= self.tolerance

    def __str__(self) -> str:
        """Lines for a person."""
        known = {None: "no published checksum", self.sha256: "as published"}
        checksum = known.get(self.published_sha256, f"published: {self.published_sha256}")
        if self.max_difference is None:
            verdict = "no published oracle: the keys and shapes fit, its outputs cannot be checked"
        else:
            word = "as published" if self.passed else "NOT as published"
            verdict = f"{word}: largest difference {self.max_difference:.1e}, allowed {self.tolerance:.0e}"
        lines = [
            f"teacher   {self.name} ({self.weights})",
            f"size      {self.size or 'none of the published ones'}, {self.n_parameters:,} parameters in use",
            f"licence   {self.licence or 'none stated'}",
            f"sha256    {self.sha256} ({checksum})",
            f"outputs   {verdict}",
        ]
        return "\n".join(lines)


def verify_teacher(
    name: str | os.PathLike[str], revision: str | None = None, device: str | torch.device = "cpu"
) -> TeacherReport:
    """Compare a checkpoint's features of one sequence with those recorded from the publisher's own code.

    The sequence, padded to 2,048 tokens, goes through the network in float32; the last hidden state is
    averaged over the real tokens, ``<cls>`` included. Records exist of the published 50m, 100m and 250m
    models; a checkpoint is compared with the one of its size. No record exists of the 500m model: its keys
    and shapes are checked, and its checksum is compared with the first one seen here.

    Parameters
    ----------
    name, revision
        As in `NucleotideTransformer.from_pretrained`.
    device
        Where to compute.

    Raises
    ------
    had.errors.UserError
        The checkpoint is not found, is damaged, or is of another architecture.
    """
    files = find_checkpoint(name, revision)
    network = NucleotideTransformer.from_pretrained(name, revision).to(device)
    sizes = vars(network.config)
    model = published_model(files.repository) or model_of_sizes(sizes)
    recorded = None if model is None else published_sha256(model, files.weights.name, files.revision)
    return TeacherReport(
        name=str(name),
        weights=str(files.weights),
        size=None if model is None else model.size,
        n_parameters=sum(parameter.numel() for parameter in network.parameters()),
        licence=network.licence,
        sha256=sha256_of_file(files.weights),
        published_sha256=recorded,
        max_difference=None if model is None else _largest_difference(network, model),
    )


def _largest_difference(network: NucleotideTransformer, model: PublishedModel) -> float | None:
    record = oracles()["models"].get(model.size)
    if record is None:
        return None
    pooled = pooled_features(network, oracles()["sequence"])
    return float((pooled.cpu() - torch.tensor(record["values"])).abs().max())


@torch.no_grad()
def pooled_features(network: NucleotideTransformer, sequence: str) -> Tensor:
    """Mean (D,) of the last hidden state of a sequence of whole A/C/G/T 6-mers, ``<cls>`` included."""
    real = [KMER_CLS, *kmer_ids(encode_bytes(sequence.encode())).tolist()]
    device = network.embedding.weight.device
    # Padded as in the record: this way the mask is tested, too.
    ids = torch.full((1, MAX_TOKENS), KMER_PAD, device=device)
    ids[0, : len(real)] = torch.tensor(real, device=device)
    mask = torch.zeros_like(ids)
    mask[0, : len(real)] = 1
    return network.last_hidden_state(ids, mask)[0, : len(real)].float().mean(0)
