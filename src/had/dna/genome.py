"""Genomes as one array of base codes: open FASTA once, then gather windows by position with one look-up."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from had.console import some_of
from had.dna.alphabet import N
from had.dna.fasta import read_fasta
from had.dna.store import Contig, Layout, cache_folder, lay_out, open_store
from had.errors import UserError
from had.files import expand_user

__all__ = ["Contig", "Genome"]

_SCAN_BLOCK = 1 << 24
_NAMES_SHOWN = 8


class Genome:
    """Contigs as one array of codes (A 0, C 1, G 2, T 3, N 4), addressed by global 0-based positions.

    Make one with `Genome.open` or `Genome.from_sequences`. Soft-masked (lower-case) bases are like any other;
    IUPAC letters other than A, C, G, T, U are N. Records without letters are kept as contigs of length 0.

    Attributes
    ----------
    contigs : tuple of Contig
        In the order of the files.
    codes : uint8 (total,)
        All contigs one after another; read-only and memory-mapped where it comes from a file.
    digest : str
        sha256 (hex) of names, lengths and codes: equal for equal genomes, however their files are written.
    n_acgt : int
        Letters A, C, G, T of all contigs.
    ambiguous : dict
        Contig name → counts of its IUPAC letters other than A, C, G, T, U, N; contigs without any are left
        out.
    source : str
        The files, for messages.
    """

    def __init__(self, layout: Layout, codes: NDArray[np.uint8], source: str) -> None:
        self.contigs = layout.contigs
        self.codes = codes
        self.digest = layout.digest
        self.n_acgt = layout.n_acgt
        self.ambiguous = layout.ambiguous
        self.source = source
        self._by_name = {contig.name: contig for contig in self.contigs}
        self._offsets = np.array([contig.offset for contig in self.contigs], dtype=np.int64)

    @classmethod
    def open(
        cls,
        paths: str | PathLike[str] | Sequence[str | PathLike[str]],
        cache: str | PathLike[str] | None = None,
        progress: bool = True,
    ) -> "Genome":
        """Open FASTA files (plain, gzip or bgzip), reading them only if they are not in the cache yet.

        Parameters
        ----------
        paths
            One file or several; their records follow each other. Nothing is written beside them.
        cache
            Cache folder; default ``$HAD_CACHE``, else the user's cache folder of the operating system.
        progress
            Show a progress bar on standard error while reading.

        Raises
        ------
        had.errors.UserError
            If a file is missing, damaged or no nucleotide FASTA, two records have one name, or the cache
            folder cannot be written to.
        had.errors.RunFault
            If the disk is full.
        """
        files = [paths] if isinstance(paths, str | PathLike) else list(paths)
        if not files:
            raise UserError("no genome was named; give at least one FASTA file")
        resolved = [expand_user(file) for file in files]
        layout, codes = open_store(resolved, cache_folder(cache), progress)
        return cls(layout, codes, some_of(files))

    @classmethod
    def from_sequences(cls, sequences: Mapping[str, str]) -> "Genome":
        """Genome in memory from name → letters, read by the rules of FASTA.

        Raises
        ------
        had.errors.UserError
            As `Genome.open`.
        """
        blocks = (f">{name}\n{sequence}\n".encode() for name, sequence in sequences.items())
        parts: list[bytes] = []
        layout = lay_out(read_fasta(blocks, "sequences"), parts.append, "sequences")
        return cls(layout, np.frombuffer(b"".join(parts), dtype=np.uint8), "sequences")

    def __len__(self) -> int:
        """Bases of all contigs."""
        return int(self.codes.size)

    def __repr__(self) -> str:
        """Name the source and the size."""
        return f"Genome({self.source!r}, {len(self.contigs)} contigs, {len(self):,} bp)"

    def fetch(self, positions: NDArray[np.integer], length: int) -> NDArray[np.uint8]:
        """Windows by global start.

        Parameters
        ----------
        positions
            Global 0-based starts (B,). Windows may not reach beyond the last contig; that they lie inside one
            contig is the caller's care.
        length
            Letters per window.

        Returns
        -------
        uint8 (B, length), a copy.

        Raises
        ------
        IndexError
            If a window reaches outside the genome.
        """
        starts = np.asarray(positions, dtype=np.int64)
        if starts.size and (starts.min() < 0 or starts.max() + length > self.codes.size):
            raise IndexError(f"a window of {length:,} bp reaches outside the genome's {len(self):,} bp")
        if not starts.size or length > self.codes.size:
            return np.empty((starts.size, length), dtype=np.uint8)
        return np.lib.stride_tricks.sliding_window_view(self.codes, length)[starts]

    def locate(self, positions: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Contig index (B,) and 0-based start in that contig (B,) of global positions (B,)."""
        positions = np.asarray(positions, dtype=np.int64)
        index = np.searchsorted(self._offsets, positions, side="right") - 1
        return index, positions - self._offsets[index]

    def contig(self, name: str) -> Contig:
        """Contig by name.

        Raises
        ------
        had.errors.UserError
            If there is none of that name; the message lists names that exist.
        """
        if name in self._by_name:
            return self._by_name[name]
        twin = name[3:] if name.lower().startswith("chr") else f"chr{name}"
        twins = {"M": "MT", "MT": "M", "chrMT": "chrM", "chrM": "chrMT"}
        guesses = [guess for guess in (twin, twins.get(twin), twins.get(name)) if guess in self._by_name]
        guesses = guesses or get_close_matches(name, self._by_name, n=1)
        hint = f"; did you mean {guesses[0]!r}?" if guesses else ""
        raise UserError(f"{self.source} has no record {name!r}{hint} (it has {some_of(self._by_name, _NAMES_SHOWN)})")

    @cached_property
    def acgt_runs(self) -> NDArray[np.int64]:
        """Maximal spans (m, 2) int64 of A, C, G, T only: global, half-open, in order, within contigs."""
        edges = [np.zeros(0, dtype=np.int64)]
        # An edge stands wherever the kind of letter changes; blocks overlap by one letter so none is lost.
        for start in range(0, self.codes.size, _SCAN_BLOCK):
            known = self.codes[start : start + _SCAN_BLOCK + 1] != N
            edges.append(np.flatnonzero(known[1:] != known[:-1]) + start + 1)
        cuts = np.unique(np.concatenate([*edges, self._offsets]))
        cuts = cuts[cuts < self.codes.size]
        runs = np.stack([cuts, np.append(cuts[1:], self.codes.size)], axis=1)
        return runs[self.codes[runs[:, 0]] != N]
