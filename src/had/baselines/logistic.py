"""Logistic regression with the strength of its penalty chosen on development rows.

The k-mer baseline and the probes of frozen features share this fit.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from had.errors import UserError
from had.metrics import mcc

C_GRID = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Inverse penalties tried on standardised features, wide enough that an end is seldom chosen."""

Features: TypeAlias = NDArray | sparse.csr_array


@dataclass(frozen=True)
class LogisticFit:
    """A scaler and a logistic regression, fitted."""

    scaler: StandardScaler | MaxAbsScaler
    model: LogisticRegression
    C: float
    """The inverse penalty chosen."""
    dev_scores: dict[float, float]
    """Score on the development rows by C."""
    converged: bool
    """Whether the solver met its tolerance at every C."""

    @property
    def dev_score(self) -> float:
        """Score on the development rows at the chosen C."""
        return self.dev_scores[self.C]

    def probabilities(self, features: Features) -> NDArray[np.float64]:
        """Return the probabilities (n, classes), in the order of ``model.classes_``, of features (n, d)."""
        return self.model.predict_proba(_scaled(self.scaler, features))

    def predict(self, features: Features) -> NDArray[np.int64]:
        """Return the most probable class id (n,) of features (n, d)."""
        return self.model.predict(_scaled(self.scaler, features))


def fit_logistic(
    train_x: Features,
    train_y: ArrayLike,
    dev_x: Features,
    dev_y: ArrayLike,
    *,
    grid: Sequence[float] = C_GRID,
    metric: Callable[[ArrayLike, ArrayLike], float] = mcc,
    scaler: StandardScaler | MaxAbsScaler | None = None,
    sample_weight: NDArray[np.float64] | None = None,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> LogisticFit:
    """Fit a (multinomial) logistic regression, L2 penalty, and choose C by the score on development rows.

    Features are divided by the training rows' standard deviation; dense ones are centred as well. (Centring
    changes how fast the solver runs, not what it finds, since the intercept is free; it would fill a sparse
    matrix.) L-BFGS in float32, from the strongest penalty to the weakest, each starting from the one before.
    The tolerance is not looser because a stop after few steps is itself a penalty: C would no longer mean
    anything.

    Parameters
    ----------
    train_x, dev_x
        Features (n, d), dense or sparse.
    train_y, dev_y
        Class ids (n,).
    grid
        Inverse penalties to try. Of equal scores the strongest penalty (smallest C) is taken.
    metric
        Function of truth and prediction, higher is better.
    scaler
        Another scaler, fitted here; it must keep sparse features sparse.
    sample_weight
        Weight (n,) of each training row, in the standard deviations too.
    tol, max_iter
        Of the solver: largest gradient of the mean loss at which it stops, and the most iterations.

    Raises
    ------
    UserError
        If the training rows are of one class only, or there is no development row.
    """
    train_y, dev_y = np.asarray(train_y), np.asarray(dev_y)
    if len(np.unique(train_y)) < 2:
        raise UserError("logistic regression needs training rows of at least two classes; give more labelled rows")
    if len(dev_y) == 0:
        raise UserError("logistic regression chooses its penalty on development rows; give at least one")
    if scaler is None:
        scaler = StandardScaler(with_mean=not sparse.issparse(train_x))
        scaler.fit(_float32(train_x), sample_weight=sample_weight)
    else:
        scaler.fit(_float32(train_x))
    train_x, dev_x = _scaled(scaler, train_x), _scaled(scaler, dev_x)
    model = LogisticRegression(warm_start=True, tol=tol, max_iter=max_iter)
    best: tuple[float, NDArray, NDArray] | None = None
    scores: dict[float, float] = {}
    converged = True
    for C in sorted(grid):
        model.C = C
        with warnings.catch_warnings(record=True) as caught:
            # Told by `converged`, once, instead of by a line on the console for every C, layer and seed.
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(train_x, train_y, sample_weight=sample_weight)
        converged = converged and not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        scores[C] = metric(dev_y, model.predict(dev_x))
        if best is None or scores[C] > scores[best[0]]:
            best = C, model.coef_.copy(), model.intercept_.copy()
    if best is None:
        raise ValueError("the grid of penalties is empty")
    model.C, model.coef_, model.intercept_ = best
    return LogisticFit(scaler, model, best[0], scores, converged)


def _float32(features: Features) -> Features:
    return features.astype(np.float32, copy=False)


def _scaled(scaler: StandardScaler | MaxAbsScaler, features: Features) -> Features:
    return scaler.transform(_float32(features))
