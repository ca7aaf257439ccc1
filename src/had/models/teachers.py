"""Teachers: whatever gives one feature vector per 6-mer of a window of DNA.

A teacher is any object with the attributes and methods of `Teacher`; nothing needs to be inherited. The
network used in the paper, Nucleotide Transformer v2, is `NTv2Teacher`; with random weights it is the control
that shows what distillation owes to the teacher's training (`random_teacher`). ``load_teacher`` finds a
teacher by name.

Shape letters: B windows, L = 6·T letters, T groups (6-mers), D teacher width.
"""

import hashlib
import re
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from had.dna.alphabet import GROUP, KMER_CLS, KMER_MASK, KMER_OFFSET, N_KMERS, kmer_letters
from had.errors import UserError
from had.models.ntv2_published import PUBLISHED
from had.models.nucleotide_transformer import NucleotideTransformer, NucleotideTransformerConfig

Precision = Literal["float32", "bf16"]

# Enough to fill the device; more only costs memory.
_TOKENS_AT_ONCE = {"cpu": 4096}
_TOKENS_AT_ONCE_ELSEWHERE = 32_768


class Teacher(Protocol):
    """What distillation needs of a teacher; a class of your own needs these names and no base class."""

    name: str
    """For reports and logs."""
    licence: str
    """Licence of the weights, for reports; empty where none is stated."""
    width: int
    """D, length of a feature vector."""
    max_groups: int
    """Longest window in groups of six letters."""

    def digest(self) -> str:
        """Identify the features: the same text means the same features. Run folders and caches keep it."""
        ...

    def features(self, codes: Tensor, hidden: Tensor | None) -> Tensor:
        """Compute one vector per group, without gradients.

        Parameters
        ----------
        codes
            (B, 6·T) uint8 or int64 letters: A 0, C 1, G 2, T 3, nothing else.
        hidden
            (B, T) bool: groups whose letters the teacher must not look at. None: it sees the whole window.

        Returns
        -------
        Tensor
            (B, T, D) float32 on the teacher's device, finite.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move to a device and return the teacher itself."""
        ...


def check_window(teacher: Teacher, n_groups: int) -> None:
    """Refuse windows that are longer than the teacher can read.

    Raises
    ------
    had.errors.UserError
        ``n_groups`` is larger than ``teacher.max_groups``.
    """
    if n_groups > teacher.max_groups:
        raise UserError(
            f"windows of {n_groups * GROUP} letters ({n_groups} groups) are too long for the teacher "
            f"{teacher.name}, which reads at most {teacher.max_groups * GROUP} ({teacher.max_groups} groups); "
            "use shorter windows."
        )


class NTv2Teacher:
    """A Nucleotide Transformer as teacher: features are its last, layer-normed hidden state at each 6-mer.

    Parameters
    ----------
    network
        Taken over: it is frozen and put in evaluation mode; with bf16 its matrices are converted.
    name
        For reports and logs.
    precision
        ``float32``, or ``bf16`` for matrix products; the sum of the residual stream and the norms stay
        float32.
    tokens_at_once
        Largest number of tokens in one forward pass; larger batches are cut into equal parts. Default: 4,096
        on a CPU, 32,768 elsewhere.

    Raises
    ------
    had.errors.UserError
        The network's vocabulary is not that of 6-mers.
    """

    def __init__(
        self,
        network: NucleotideTransformer,
        name: str,
        precision: Precision = "float32",
        tokens_at_once: int | None = None,
    ) -> None:
        if network.config.vocab_size < KMER_OFFSET + N_KMERS:
            raise UserError(
                f"the teacher {name} has a vocabulary of {network.config.vocab_size} tokens, which cannot "
                f"hold the {N_KMERS} 6-mers; use a 6-mer Nucleotide Transformer v2."
            )
        self.network = network.eval().requires_grad_(False)
        self.name, self.licence, self.precision = name, network.licence, precision
        self.width = network.config.hidden_size
        self.max_groups = network.config.max_tokens - 1
        self.tokens_at_once = tokens_at_once
        self._digest = ""
        if precision == "bf16":
            # Autocast would convert every matrix anew in each pass.
            for module in network.modules():
                if isinstance(module, torch.nn.Linear):
                    module.to(torch.bfloat16)
        powers = 4 ** torch.arange(GROUP - 1, -1, -1)
        order = (torch.from_numpy(kmer_letters()).long() * powers).sum(-1)
        self._powers = powers.to(self.device)
        # NTv2 counts its 6-mers in the order A, T, C, G; codes count in the order A, C, G, T.
        self._ids = torch.empty_like(order).scatter_(0, order, torch.arange(N_KMERS) + KMER_OFFSET).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.embedding.weight.device

    def to(self, device: torch.device | str) -> Self:
        """Move to a device and return the teacher itself."""
        self.network.to(device)
        self._powers, self._ids = self._powers.to(device), self._ids.to(device)
        return self

    def digest(self) -> str:
        """SHA-256 over the weights and the precision, the same on every device."""
        if not self._digest:
            sha256 = hashlib.sha256(self.precision.encode())
            for key, tensor in self.network.state_dict().items():
                sha256.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                sha256.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
            self._digest = sha256.hexdigest()
        return self._digest

    def tokens(self, codes: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Token ids (B, 1 + T) int64 on the teacher's device: ``<cls>``, then 6-mers, or ``<mask>``.

        Raises
        ------
        ValueError
            Codes are not (B, 6·T) integers 0 … 3, or ``hidden`` is not (B, T). Values are looked at on the
            CPU only.
        had.errors.UserError
            The windows are longer than the network can read.
        """
        if codes.ndim != 2 or codes.shape[1] % GROUP or codes.is_floating_point():
            raise ValueError(f"codes must be integers (windows, 6·groups); got {codes.dtype} {tuple(codes.shape)}")
        groups = (codes.shape[0], codes.shape[1] // GROUP)
        check_window(self, groups[1])
        if codes.device.type == "cpu" and codes.numel() and (codes.max() > 3 or codes.min() < 0):
            raise ValueError("codes must be 0 … 3 (A, C, G, T); a teacher's windows hold no other letters")
        digits = codes.to(self.device, torch.int64).view(*groups, GROUP)
        ids = self._ids[(digits * self._powers).sum(-1)]
        if hidden is not None:
            if tuple(hidden.shape) != groups or hidden.dtype != torch.bool:
                raise ValueError(f"hidden must be bool {groups}; got {hidden.dtype} {tuple(hidden.shape)}")
            ids = ids.masked_fill(hidden.to(self.device), KMER_MASK)
        return torch.nn.functional.pad(ids, (1, 0), value=KMER_CLS)

    # Not inference_mode: its tensors cannot be used in a loss that is differentiated.
    @torch.no_grad()
    def features(self, codes: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Features (B, T, D) float32 of each 6-mer: ``hidden_states[-1][:, 1 + i]`` for group i.

        Parameters
        ----------
        codes
            (B, 6·T) uint8 or int64 letters: A 0, C 1, G 2, T 3.
        hidden
            (B, T) bool: groups that are ``<mask>`` to the network. None: it sees the whole window.

        Raises
        ------
        ValueError, had.errors.UserError
            As `tokens`.
        """
        ids = self.tokens(codes, hidden)
        kind = self.device.type
        budget = self.tokens_at_once or _TOKENS_AT_ONCE.get(kind, _TOKENS_AT_ONCE_ELSEWHERE)
        parts = ids.chunk(max(1, -(-ids.numel() // budget)))
        # The caller may train in bf16: that must not change what the teacher says.
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            states = [self.network.last_hidden_state(part)[:, 1:].float() for part in parts]
        return torch.cat(states)


def random_teacher(
    size: str,
    seed: int = 0,
    precision: Precision = "float32",
    tokens_at_once: int | None = None,
) -> NTv2Teacher:
    """Make a Nucleotide Transformer with random weights: the control for what a teacher's training is worth.

    Parameters
    ----------
    size
        A published size (``50m``) or ``<hidden>x<layers>x<heads>x<ffn>`` (``256x6x4x1024``).
    seed
        Of the weights: the same seed gives the same teacher on every device.
    precision, tokens_at_once
        As in `NTv2Teacher`.

    Raises
    ------
    had.errors.UserError
        The size cannot be read or built.
    """
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes: dict[str, Any]
    if size.lower() in PUBLISHED:
        sizes = PUBLISHED[size.lower()].sizes()
    elif re.fullmatch(r"\d+x\d+x\d+x\d+", size):
        sizes = dict(zip(names, map(int, size.split("x")), strict=True))
    else:
        raise UserError(
            f"random:{size} names no size; write random:50m, or random:<hidden>x<layers>x<heads>x<ffn> such "
            "as random:256x6x4x1024."
        )
    try:
        config = NucleotideTransformerConfig(**sizes)
    except ValueError as error:
        raise UserError(f"random:{size} cannot be built: {error}.") from error
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        network = NucleotideTransformer(config)
    return NTv2Teacher(network, f"random:{size}", precision, tokens_at_once)
