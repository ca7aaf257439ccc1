"""Letters at their places: what single letters at fixed positions say of a label, without any language model.

Two models on the same features, one letter at one position each: logistic regression, which adds letters up, and
gradient boosting, which also combines them. A benchmark whose rows are cut at a fixed position may be solved by
these alone, and then its scores do not measure what a model knows of DNA.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.preprocessing import MaxAbsScaler
from threadpoolctl import threadpool_limits

from had.baselines.logistic import LogisticFit, fit_logistic
from had.dna import alphabet
from had.errors import UserError
from had.metrics import mcc

MAX_PLACES = 1000
"""[ours] Letters further from the start of a sequence are not read."""


class PlacesLogisticRegression:
    """Logistic regression on letters at their positions, counted from the first letter of each sequence.

    The width is the length of the longest training sequence, at most `MAX_PLACES`. Longer sequences are cut at their
    end; the missing letters of shorter ones, and letters other than A, C, G and T, are zero at all four features.

    Parameters
    ----------
    grid
        Inverse penalties, chosen by ``metric`` on the development rows.
    metric
        Function of truth and prediction, higher is better.

    Attributes
    ----------
    width : int
        After :meth:`fit`: the number of positions.
    fitted : LogisticFit
        After :meth:`fit`: the model, the chosen C and the development scores.
    """

    width: int
    fitted: LogisticFit

    def __init__(
        self, grid: Sequence[float] = (0.001, 0.01, 0.1, 1.0), metric: Callable[[ArrayLike, ArrayLike], float] = mcc
    ) -> None:
        self.grid = tuple(grid)
        self.metric = metric

    def features(self, sequences: Sequence[str]) -> sparse.csr_array:
        """Return the indicators (n, 4 * width) float32 of each letter at each position."""
        codes = letters_at_places(sequences, self.width)
        known = codes <= alphabet.T
        column = (4 * np.arange(self.width) + codes)[known]
        ends = np.concatenate([[0], np.cumsum(known.sum(1))])
        return sparse.csr_array((np.ones(len(column), np.float32), column, ends), (len(codes), 4 * self.width))

    def fit(self, train: Sequence[str], train_labels: ArrayLike, dev: Sequence[str], dev_labels: ArrayLike) -> Self:
        """Fit on training sequences, with C chosen on development sequences (labels are class ids (n,)).

        Raises
        ------
        UserError
            If the training labels are of one class, there is no development row, or a sequence is no DNA.
        """
        self.width = _width(train)
        self.fitted = fit_logistic(
            self.features(train),
            train_labels,
            self.features(dev),
            dev_labels,
            grid=self.grid,
            metric=self.metric,
            scaler=MaxAbsScaler(),
        )
        return self

    def probabilities(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        """Return the probabilities (n, classes), the classes of the training labels in ascending order."""
        return self.fitted.probabilities(self.features(sequences))


class PlacesBoosting:
    """Gradient boosting (scikit-learn's histogram-based trees) on letters at their positions.

    Width and cutting are those of :class:`PlacesLogisticRegression`; each position is a category with four values,
    missing where the sequence has no such letter. It runs on one thread, because the sums of several would depend on
    their number.

    Parameters
    ----------
    leaves
        Leaves of a tree; this and the number of trees are chosen by ``metric`` on the development rows.
    most_trees
        Trees grown (for each class, where there are more than two).
    metric
        Function of truth and prediction, higher is better.

    Attributes
    ----------
    width : int
        After :meth:`fit`: the number of positions.
    classes : ndarray of int
        After :meth:`fit`: the classes of the training labels, ascending.
    chosen_leaves, chosen_trees : int
        After :meth:`fit`: the smallest model with the best development score.
    dev_score : float
        After :meth:`fit`: that score.
    """

    width: int
    classes: NDArray[np.int64]
    chosen_leaves: int
    chosen_trees: int
    dev_score: float

    def __init__(
        self,
        leaves: Sequence[int] = (4, 16),
        most_trees: int = 400,
        metric: Callable[[ArrayLike, ArrayLike], float] = mcc,
    ) -> None:
        self.leaves = tuple(leaves)
        self.most_trees = most_trees
        self.metric = metric

    def fit(self, train: Sequence[str], train_labels: ArrayLike, dev: Sequence[str], dev_labels: ArrayLike) -> Self:
        """Fit on training sequences, with the trees' size and number chosen on development sequences.

        Raises
        ------
        UserError
            If the training labels are of one class, there is no development row, or a sequence is no DNA.
        """
        if len(np.unique(train_labels)) < 2:
            raise UserError("gradient boosting needs training rows of at least two classes; give more labelled rows")
        if len(dev) == 0:
            raise UserError("gradient boosting chooses its trees on development rows; give at least one")
        self.width = _width(train)
        rows, dev_rows = self._features(train), self._features(dev)
        best = -np.inf
        with threadpool_limits(1):
            for leaves in self.leaves:
                model = HistGradientBoostingClassifier(
                    max_iter=self.most_trees,
                    max_leaf_nodes=leaves,
                    early_stopping=False,
                    categorical_features=range(self.width),
                    random_state=0,
                ).fit(rows, train_labels)
                for trees, predicted in enumerate(model.staged_predict(dev_rows), 1):
                    score = self.metric(dev_labels, predicted)
                    if score > best:
                        best, self._model = score, model
                        self.chosen_leaves, self.chosen_trees = leaves, trees
        self.dev_score, self.classes = float(best), self._model.classes_
        return self

    def probabilities(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        """Return the probabilities (n, classes), the classes of the training labels in ascending order."""
        with threadpool_limits(1):
            stages = self._model.staged_predict_proba(self._features(sequences))
            return next(islice(stages, self.chosen_trees - 1, None))

    def _features(self, sequences: Sequence[str]) -> NDArray[np.float32]:
        codes = letters_at_places(sequences, self.width)
        return np.where(codes <= alphabet.T, codes, np.nan).astype(np.float32)


def letters_at_places(sequences: Sequence[str], width: int) -> NDArray[np.uint8]:
    """Return the codes (n, width) of the first letters of each sequence; N where a sequence is shorter.

    Raises
    ------
    UserError
        If a sequence holds a character that is not a nucleotide letter.
    """
    codes = np.full((len(sequences), width), alphabet.N, dtype=np.uint8)
    for i, sequence in enumerate(sequences):
        found = alphabet.encode_bytes(sequence[:width].encode("latin-1", "replace"))
        if (found == alphabet.INVALID).any():
            raise UserError(f"sequence {i + 1} holds a character that is not a nucleotide letter; correct it")
        codes[i, : len(found)] = found
    return codes


def _width(sequences: Sequence[str]) -> int:
    return min(MAX_PLACES, max(1, *map(len, sequences)))
