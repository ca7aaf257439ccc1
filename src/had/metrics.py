"""Numbers from predictions, by scikit-learn and SciPy, with the degenerate cases defined.

Everywhere: no rows give NaN; a NaN or infinite score, truth or prediction is an error (a metric must not hide
that a model diverged); ties between scores count half (AUROC) or fall on one threshold (AUPRC), so the order
of rows never matters. Each function says what it returns where its definition divides by zero.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics as sk

TASKS = ("binary", "multiclass", "multilabel", "regression")


def mcc(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Matthews correlation of class ids (n,); 0 where only one class is present, or predicted."""
    true, pred = _pair(y_true, y_pred)
    if len(true) == 0:
        return np.nan
    # scikit-learn warns of a confusion matrix of one cell; its answer there is 0 as well.
    if _is_constant(true) or _is_constant(pred):
        return 0.0
    return float(sk.matthews_corrcoef(true, pred))


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Share of class ids (n,) predicted right."""
    true, pred = _pair(y_true, y_pred)
    return float(np.mean(true == pred)) if len(true) else np.nan


def macro_f1(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean over classes of F1, of class ids (n,).

    A class that is present but never predicted, or predicted but not present, has F1 0; a class that is
    neither is left out of the mean (scikit-learn's convention, and that of the published tables).
    """
    true, pred = _pair(y_true, y_pred)
    return float(sk.f1_score(true, pred, average="macro", zero_division=0)) if len(true) else np.nan


def auroc(y_true: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of labels 0, 1 (n,) by scores (n,); NaN where one class only is present."""
    true, score = _binary(y_true, scores)
    if not 0 < true.sum() < len(true):
        return np.nan
    return float(sk.roc_auc_score(true, score))


def auprc(y_true: ArrayLike, scores: ArrayLike) -> float:
    """Average precision of labels 0, 1 (n,) by scores (n,); NaN where one class only is present.

    Its level under chance is the share of positives, so compare it on equal rows only. (With positives alone
    it would be 1 for any scores: NaN says that nothing was measured.)
    """
    true, score = _binary(y_true, scores)
    if not 0 < true.sum() < len(true):
        return np.nan
    return float(sk.average_precision_score(true, score))


def pearson(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Pearson's correlation of values (n,); NaN for n < 2 or a constant side."""
    return _correlation(stats.pearsonr, y_true, y_pred)


def spearman(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Spearman's rank correlation of values (n,), ties at mid-rank; NaN for n < 2 or a constant side."""
    return _correlation(stats.spearmanr, y_true, y_pred)


def r2(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Coefficient of determination of values (n,); NaN for n < 2 or a constant truth."""
    true, pred = _finite_pair(y_true, y_pred)
    if len(true) < 2 or _is_constant(true):
        return np.nan
    return float(sk.r2_score(true, pred))


def mse(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean squared error of values (n,), in squared units of the values."""
    true, pred = _finite_pair(y_true, y_pred)
    return float(sk.mean_squared_error(true, pred)) if len(true) else np.nan


def confusion_matrix(y_true: ArrayLike, y_pred: ArrayLike, n_classes: int) -> NDArray[np.int64]:
    """Count rows by true (first axis) and predicted class: (n_classes, n_classes), empty classes included.

    Raises
    ------
    ValueError
        If a class id (n,) is negative, or n_classes or more.
    """
    true, pred = _pair(y_true, y_pred)
    if len(true) == 0:
        return np.zeros((n_classes, n_classes), dtype=np.int64)
    if min(true.min(), pred.min()) < 0 or max(true.max(), pred.max()) >= n_classes:
        raise ValueError(f"class ids must lie in 0…{n_classes - 1}")
    return sk.confusion_matrix(true, pred, labels=range(n_classes)).astype(np.int64)


def compute(
    task: str, y_true: ArrayLike, y_pred: ArrayLike | None = None, scores: ArrayLike | None = None
) -> dict[str, float]:
    """Compute the metrics of a task.

    Parameters
    ----------
    task
        ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
    y_true
        Class ids (n,); (n, labels) of 0 and 1 for multilabel; values (n,) for regression.
    y_pred
        Predictions in the same form. For binary and multiclass it may be left out where ``scores`` has a
        column per class: the class of the highest score (the first of equals).
    scores
        Probabilities or any increasing function of them: (n, classes), for binary also (n,) for class 1;
        (n, labels) for multilabel. Optional: without them the areas under curves are left out.

    Returns
    -------
    - binary: ``mcc``, ``accuracy``, ``macro_f1`` and, with scores, ``auroc``, ``auprc``;
    - multiclass: the same; ``auroc`` and ``auprc`` of each class against the rest, mean over those defined;
    - multilabel: each of these per label, mean over those defined, and ``exact_match`` (share of rows with
      every label right);
    - regression: ``pearson``, ``spearman``, ``r2``, ``mse``.

    Raises
    ------
    ValueError
        If shapes disagree, a number is not finite, or neither ``y_pred`` nor scores per class are given.
    """
    if task == "regression":
        if y_pred is None:
            raise ValueError("regression needs y_pred")
        return {f.__name__: f(y_true, y_pred) for f in (pearson, spearman, r2, mse)}
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    true = np.asarray(y_true)
    score = None if scores is None else np.asarray(scores, dtype=np.float64)
    if score is not None and not np.isfinite(score).all():
        raise ValueError("a score is not finite")
    if y_pred is None:
        if score is None or score.ndim != 2 or task == "multilabel":
            raise ValueError(f"{task} needs y_pred, or for one label per row scores with a column per class")
        y_pred = score.argmax(axis=1) if score.size else np.zeros(len(score), dtype=np.int64)
    pred = np.asarray(y_pred)
    if task == "multilabel":
        return _multilabel(true, pred, score)
    result = {f.__name__: f(true, pred) for f in (mcc, accuracy, macro_f1)}
    if score is not None:
        result |= _areas(task, true, score)
    return result


def _areas(task: str, true: NDArray, score: NDArray[np.float64]) -> dict[str, float]:
    if task == "binary":
        score = score[:, 1] if score.ndim == 2 else score
        return {f.__name__: f(true, score) for f in (auroc, auprc)}
    return {f.__name__: _mean([f(true == c, s) for c, s in enumerate(score.T)]) for f in (auroc, auprc)}


def _multilabel(true: NDArray, pred: NDArray, score: NDArray[np.float64] | None) -> dict[str, float]:
    if true.ndim != 2 or true.shape != pred.shape or (score is not None and score.shape != true.shape):
        raise ValueError("multilabel needs truth, predictions and scores of one shape (n, labels)")

    def over_labels(metric: Callable[[ArrayLike, ArrayLike], float], other: NDArray) -> float:
        return _mean([metric(t, o) for t, o in zip(true.T, other.T, strict=True)])

    result = {f.__name__: over_labels(f, pred) for f in (mcc, accuracy, macro_f1)}
    result["exact_match"] = float(np.mean((true == pred).all(axis=1))) if len(true) else np.nan
    if score is not None:
        result |= {f.__name__: over_labels(f, score) for f in (auroc, auprc)}
    return result


def _mean(values: list[float]) -> float:
    """Mean of the defined values; NaN, without NumPy's warning, where there are none."""
    defined = [v for v in values if not np.isnan(v)]
    return float(np.mean(defined)) if defined else np.nan


def _correlation(function: Callable, y_true: ArrayLike, y_pred: ArrayLike) -> float:
    true, pred = _finite_pair(y_true, y_pred)
    if len(true) < 2 or _is_constant(true) or _is_constant(pred):
        return np.nan
    return float(function(true, pred).statistic)


def _pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray, NDArray]:
    true, pred = np.asarray(y_true), np.asarray(y_pred)
    if true.ndim != 1 or true.shape != pred.shape:
        raise ValueError(f"truth and predictions must be two arrays (n,); got {true.shape} and {pred.shape}")
    return true, pred


def _finite_pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    true, pred = (a.astype(np.float64) for a in _pair(y_true, y_pred))
    if not (np.isfinite(true).all() and np.isfinite(pred).all()):
        raise ValueError("a value is not finite")
    return true, pred


def _binary(y_true: ArrayLike, scores: ArrayLike) -> tuple[NDArray, NDArray[np.float64]]:
    true, score = _pair(y_true, scores)
    if not np.isin(true, (0, 1)).all():
        raise ValueError("binary labels must be 0 and 1")
    score = score.astype(np.float64)
    if not np.isfinite(score).all():
        raise ValueError("a score is not finite")
    return true.astype(np.int64), score


def _is_constant(values: NDArray) -> bool:
    return bool((values == values[0]).all())
