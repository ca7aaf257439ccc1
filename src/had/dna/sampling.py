"""Stateless sampling of training windows: window k of a run is a pure function of (seed, k) (HAD.md §3)."""

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import reverse_complement
from had.dna.genome import Genome
from had.dna.hashing import bernoulli, permute, uniform_below
from had.errors import UserError

_ORDER_STREAM, _START_STREAM, _STRAND_STREAM = 0x6F72646572, 0x7374617274, 0x737472616E64


class WindowSampler:
    """Windows of ``length`` letters from ACGT-only stretches, covered evenly, epoch by epoch.

    A *valid start* is a position from which ``length`` letters lie inside one stretch. The N valid starts are
    numbered along the stretches; an epoch has ⌈N / length⌉ slots, visited in a keyed permutation, and slot j
    draws its start uniformly from the valid starts j·length … min((j + 1)·length, N) - 1.

    Parameters
    ----------
    stretches
        Global half-open spans (m, 2) int64 without any letter but A, C, G, T
        (`had.dna.intervals.acgt_stretches`).
    length
        Letters per window, L.
    seed
        Seed of the run.
    rc_probability
        Probability that a window is reverse-complemented.
    fixed_starts
        A slot's start stays the same in every epoch, so that a teacher's features can be stored and used
        again.
    starts_seed
        Seed of the starts, where it is not that of the run: several runs then share one set of fixed starts.
    slots
        Use only so many slots, evenly spread over all; None: all.

    Attributes
    ----------
    n_valid : int
        Number of valid starts, N.
    all_slots : int
        ⌈N / length⌉.
    slots : int
        Slots in use: windows per epoch.

    Raises
    ------
    had.errors.UserError
        If no stretch is as long as a window, or there are fewer slots than asked for.
    """

    def __init__(
        self,
        stretches: NDArray[np.int64],
        length: int,
        seed: int,
        rc_probability: float = 0.5,
        fixed_starts: bool = False,
        starts_seed: int | None = None,
        slots: int | None = None,
    ) -> None:
        if length < 1:
            raise UserError(f"a window has at least one letter; got length {length}")
        if not 0.0 <= rc_probability <= 1.0:
            raise UserError(f"the reverse-complement probability lies in [0, 1]; got {rc_probability}")
        spans = np.asarray(stretches, dtype=np.int64).reshape(-1, 2)
        n_starts = spans[:, 1] - spans[:, 0] - length + 1
        usable = n_starts > 0
        self._first = spans[usable, 0]
        self._ends = np.cumsum(n_starts[usable])
        if not self._ends.size:
            raise UserError(
                f"no training interval holds {length:,} letters A, C, G, T in a row; use a shorter window, "
                "a longer sequence or other intervals"
            )
        self._before = self._ends - n_starts[usable]
        self.length = length
        self.seed = seed
        self.rc_probability = rc_probability
        self.fixed_starts = fixed_starts
        self.starts_seed = seed if starts_seed is None else starts_seed
        self.n_valid = int(self._ends[-1])
        self.all_slots = -(-self.n_valid // length)
        self.slots = self.all_slots if slots is None else slots
        if not 1 <= self.slots <= self.all_slots:
            raise UserError(
                f"{self.slots:,} slots were asked for, but the training intervals have {self.all_slots:,} (one per "
                f"{length:,} valid starts); ask for 1 to {self.all_slots:,}"
            )

    def rows_of(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Row (n,) in 0 … slots - 1, among the slots in use, that each window index visits in its epoch."""
        indices = self._checked(indices)
        return permute(indices % self.slots, self.slots, self.seed, _ORDER_STREAM, indices // self.slots)

    def slots_of_rows(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Slot (n,), among all slots, of rows of those in use."""
        return np.atleast_1d(np.asarray(rows, dtype=np.int64)) * self.all_slots // self.slots

    def slots_of(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Slot (n,) that each window index visits in its epoch."""
        return self.slots_of_rows(self.rows_of(indices))

    def starts_of_slots(self, slots: NDArray[np.integer], epochs: NDArray[np.integer] | int = 0) -> NDArray[np.int64]:
        """Global start (n,) that each slot draws in each epoch (with fixed starts: in every epoch)."""
        slots = np.atleast_1d(np.asarray(slots, dtype=np.int64))
        low = slots * self.length
        width = np.minimum(low + self.length, self.n_valid) - low
        epoch = 0 if self.fixed_starts else epochs
        start = low + uniform_below(width, self.starts_seed, _START_STREAM, epoch, slots)
        stretch = np.searchsorted(self._ends, start, side="right")
        return self._first[stretch] + start - self._before[stretch]

    def draw(self, indices: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Windows of a run by their index.

        Parameters
        ----------
        indices
            Window indices (n,) ≥ 0, counted over the whole run and all processes; epoch = index // slots.

        Returns
        -------
        positions : int64 (n,)
            Global starts.
        reverse : bool (n,)
            True where the window is read on the reverse strand.
        """
        indices = self._checked(indices)
        positions = self.starts_of_slots(self.slots_of(indices), indices // self.slots)
        return positions, bernoulli(self.rc_probability, self.seed, _STRAND_STREAM, indices)

    def codes(self, genome: Genome, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Letters (n, L) uint8 of the drawn windows, reverse-complemented where the draw says so."""
        positions, reverse = self.draw(indices)
        windows = genome.fetch(positions, self.length)
        windows[reverse] = reverse_complement(windows[reverse])
        return windows

    @staticmethod
    def _checked(indices: NDArray[np.integer]) -> NDArray[np.int64]:
        checked = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if checked.size and checked.min() < 0:
            raise ValueError("window indices are not negative")
        return checked
