"""What Markov statistics of the genome already predict: floors of the two masked-language-model losses.

One for a teacher (a hidden 6-mer: nats per 6-mer, log 4096 = 8.32 when nothing is known) and one for the
student's reconstruction (a hidden base: nats per base, log 4 = 1.386), at the same masks (HAD.md, section 5).

Shape legend: H hidden groups, X left contexts and Y right contexts (1,024 and one for "none"), V the last
five letters of a 6-mer (1,024), W 6-mers (4,096), a the first letter of a 6-mer (4).
"""

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from had.dna.alphabet import GROUP, T
from had.dna.kmers import kmer_index, reverse_complement_index

_BLOCK = 1 << 20
"""Letters counted at a time: bounds the memory, and keeps the temporary arrays in cache."""
_CONTEXTS = 4**5
_NONE = _CONTEXTS
"""Row (column) of a context that lies outside the window."""


class MarkovModel:
    """Markov chain of DNA letters: p(letter | the ``order`` letters before it).

    Parameters
    ----------
    order
        Letters of context, 0…7.
    pseudo_count
        Added to every count when probabilities are formed (1: Laplace's rule).

    Attributes
    ----------
    counts : numpy.ndarray
        Counts (4^order, 4) int64 of each context and the letter that follows it, without the pseudo-count.
    """

    def __init__(self, order: int = 5, pseudo_count: float = 1.0) -> None:
        if not 0 <= order <= 7:
            raise ValueError(f"order must be 0…7; got {order}")
        if not pseudo_count > 0:
            raise ValueError(f"pseudo_count must be positive, or what was not seen is impossible; got {pseudo_count}")
        self.order = order
        self.pseudo_count = pseudo_count
        self.counts = np.zeros((4**order, 4), dtype=np.int64)

    def fit(self, stretches: Iterable[NDArray[np.uint8]], both_strands: bool = True) -> Self:
        """Add the letters of some sequence to the counts (call again for more).

        Parameters
        ----------
        stretches
            Code arrays (any length each) uint8 of A, C, G, T only; a memory-mapped one is read a block at a
            time. No k-mer spans two stretches.
        both_strands
            Count the reverse complement as well.

        Raises
        ------
        ValueError
            If a stretch holds a code other than 0…3.
        """
        width = self.order + 1
        count = np.zeros(4**width, dtype=np.int64)
        for stretch in stretches:
            for start in range(0, len(stretch) - self.order, _BLOCK):
                block = np.asarray(stretch[start : start + _BLOCK + self.order])
                if block.max() > T:
                    raise ValueError("a stretch holds a letter other than A, C, G, T; split the sequence there")
                count += np.bincount(kmer_index(block, width), minlength=len(count))
        if both_strands:
            count += count[reverse_complement_index(width)]
        self.counts += count.reshape(self.counts.shape)
        return self

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """p(letter | context), (4^order, 4); every row sums to 1."""
        smoothed = self.counts + self.pseudo_count
        return smoothed / smoothed.sum(axis=1, keepdims=True)

    @property
    def base_frequencies(self) -> NDArray[np.float64]:
        """Frequencies (4,) of A, C, G, T."""
        smoothed = self.counts.sum(axis=0) + self.pseudo_count
        return smoothed / smoothed.sum()

    @property
    def kmer_frequencies(self) -> NDArray[np.float64]:
        """Frequencies (4^(order + 1),) of the k-mers of order + 1 letters, over every offset."""
        smoothed = self.counts.ravel() + self.pseudo_count
        return smoothed / smoothed.sum()


class Scores(NamedTuple):
    """How a predictor does at each hidden place."""

    nll: NDArray[np.float64]
    """Minus log p(truth), in nats: (H,) for 6-mers, (H, 6) for bases."""
    correct: NDArray[np.float64]
    """1 where the most probable answer is right, else 0; 1 / (number of answers) where all are equal."""


class HiddenGroupBaselines:
    """Predictors of hidden 6-mers, and of their letters, from counts alone.

    For 6-mers (:meth:`score_groups`):

    - ``uniform``: all 4,096 equally probable;
    - ``unigram``: frequency of the 6-mer over every offset of the training sequence;
    - ``left``: the chain's probability of the 6-mer after the five letters on its left;
    - ``two_sided``: the chain's probability of (five letters on the left, 6-mer, five letters on the right),
      normalised over the 4,096 6-mers.

    For bases (:meth:`score_bases`): ``frequency``, and ``two_sided``: each letter's marginal under the
    two-sided 6-mer distribution above.

    The neighbouring letters are the true ones, even where they are hidden too, so the Markov predictors know
    slightly more than a model does. Beyond the window nothing is known: the first group's left context is
    averaged out (p(w) = Σ_x p(x) p(w | x), x over the 1,024 contexts by their frequency), the last group's
    right context is left out.

    Parameters
    ----------
    model
        A fitted Markov model of order 5.
    """

    def __init__(self, model: MarkovModel) -> None:
        if model.order != 5:
            raise ValueError(f"6-mers and their neighbours need a Markov model of order 5; got {model.order}")
        self._log_unigram = np.log(model.kmer_frequencies)
        self._base_frequencies = model.base_frequencies
        p = model.probabilities
        context = np.arange(_CONTEXTS)
        # Letter by letter: after x, w_1 … w_i the chain's state is the last five letters.
        p_xw = np.ones((_CONTEXTS, 1))
        p_vy = np.ones((_CONTEXTS, 1))
        for i in range(1, GROUP + 1):
            state = (context[:, None] * 4 ** (i - 1) + np.arange(4 ** (i - 1))) % _CONTEXTS
            p_xw = (p_xw[:, :, None] * p[state]).reshape(_CONTEXTS, -1)
            if i < GROUP:
                p_vy = (p_vy[:, :, None] * p[state]).reshape(_CONTEXTS, -1)
        context_weight = (model.counts + model.pseudo_count).sum(axis=1)
        average = context_weight @ p_xw / context_weight.sum()
        self._p_XW = np.vstack([p_xw, average])
        self._p_VY = np.hstack([p_vy, np.ones((_CONTEXTS, 1))])

    def score_groups(self, codes: NDArray[np.uint8], mask: NDArray[np.bool_]) -> dict[str, Scores]:
        """Score the hidden 6-mers of some windows.

        Parameters
        ----------
        codes
            Windows (n, L) uint8 of A, C, G, T, L a multiple of 6.
        mask
            Hidden groups (n, L / 6) bool, True = hidden.

        Returns
        -------
        For each predictor, arrays (H,) over the True places of ``mask`` in row-major order.
        """
        left, true, right = _neighbourhoods(codes, mask)
        joint = self._p_XW[left, true] * self._p_VY[true % _CONTEXTS, right]
        n = len(true)
        best = self._argmax_XY
        return {
            "uniform": Scores(np.full(n, np.log(4.0**GROUP)), np.full(n, 4.0**-GROUP)),
            "unigram": Scores(-self._log_unigram[true], (true == self._log_unigram.argmax()).astype(float)),
            "left": Scores(-np.log(self._p_XW[left, true]), (true == best[left, _NONE]).astype(float)),
            "two_sided": Scores(np.log(self._z_XY[left, right] / joint), (true == best[left, right]).astype(float)),
        }

    def score_bases(self, codes: NDArray[np.uint8], mask: NDArray[np.bool_]) -> dict[str, Scores]:
        """Score the six letters of each hidden group; the arguments are those of :meth:`score_groups`.

        Returns
        -------
        For ``frequency`` and ``two_sided``, arrays (H, 6).
        """
        left, true, right = _neighbourhoods(codes, mask)
        letters = true[:, None] // 4 ** np.arange(GROUP - 1, -1, -1) % 4
        p_base = self.base_marginals_XY[left, right]
        p_true = np.take_along_axis(p_base, letters[:, :, None], axis=2)[:, :, 0]
        return {
            "frequency": Scores(
                -np.log(self._base_frequencies[letters]),
                (letters == self._base_frequencies.argmax()).astype(float),
            ),
            "two_sided": Scores(-np.log(p_true, dtype=np.float64), (letters == p_base.argmax(axis=2)).astype(float)),
        }

    def group_distribution(self, left: int | None, right: int | None) -> NDArray[np.float64]:
        """Give the two-sided p(w) (4096,), alphabetical, between two 5-mers by index (None: unknown)."""
        p_w = self._p_XW[_NONE if left is None else left] * np.tile(self._p_VY[:, _NONE if right is None else right], 4)
        return p_w / p_w.sum()

    @cached_property
    def _z_XY(self) -> NDArray[np.float64]:
        """Normalisers (1025, 1025); the right side does not see the first letter of w: summed out first."""
        return self._p_XW.reshape(-1, 4, _CONTEXTS).sum(axis=1) @ self._p_VY

    @cached_property
    def _argmax_XY(self) -> NDArray[np.int16]:
        """The most probable 6-mer (1025, 1025) between each pair of contexts, found in the same two steps."""
        p_XaV = self._p_XW.reshape(-1, 4, _CONTEXTS)
        first_letter = p_XaV.argmax(axis=1)
        best_XV = np.log(p_XaV.max(axis=1)).astype(np.float32)
        log_YV = np.ascontiguousarray(np.log(self._p_VY).T, dtype=np.float32)
        best = np.empty((len(best_XV), len(log_YV)), dtype=np.int16)
        for x, best_V in enumerate(best_XV):
            v = (best_V + log_YV).argmax(axis=1)
            best[x] = first_letter[x, v] * _CONTEXTS + v
        return best

    @cached_property
    def base_marginals_XY(self) -> NDArray[np.float32]:
        """p(base) at each of the six letters between each pair of contexts, (1025, 1025, 6, 4): 101 MB."""
        p_XaV = self._p_XW.reshape(-1, 4, _CONTEXTS)
        p_XV = p_XaV.sum(axis=1)
        last_five = np.arange(_CONTEXTS)
        marginals = np.empty((*self._z_XY.shape, GROUP, 4), dtype=np.float32)
        for letter in range(4):
            marginals[:, :, 0, letter] = p_XaV[:, letter] @ self._p_VY / self._z_XY
            for i in range(1, GROUP):
                has_letter = np.flatnonzero(last_five // 4 ** (GROUP - 1 - i) % 4 == letter)
                marginals[:, :, i, letter] = p_XV[:, has_letter] @ self._p_VY[has_letter] / self._z_XY
        return marginals


def _neighbourhoods(
    codes: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Index the five letters before, the six of, and the five after each hidden group: three arrays (H,)."""
    if codes.shape != (mask.shape[0], mask.shape[1] * GROUP):
        raise ValueError(f"windows {codes.shape} do not fit a mask of {mask.shape} groups of {GROUP}")
    if codes.size and codes.max() > T:
        raise ValueError("the windows hold a letter other than A, C, G, T")
    n_groups = mask.shape[1]
    powers = 4 ** np.arange(GROUP - 1, -1, -1)
    index = codes.reshape(-1, n_groups, GROUP) @ powers
    row, group = np.nonzero(mask)
    left = np.where(group > 0, index[row, np.maximum(group - 1, 0)] % _CONTEXTS, _NONE)
    right = np.where(group < n_groups - 1, index[row, np.minimum(group + 1, n_groups - 1)] // 4, _NONE)
    return left, index[row, group], right
