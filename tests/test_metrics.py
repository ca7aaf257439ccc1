"""Metrics against hand-computed numbers, and every degenerate case."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from had import metrics


def test_mcc_of_a_hand_computed_table() -> None:
    # TP 3, TN 2, FP 1, FN 2: (3·2 - 1·2) / sqrt(4·5·3·4)
    true = [1, 1, 1, 1, 1, 0, 0, 0]
    pred = [1, 1, 1, 0, 0, 0, 0, 1]
    assert metrics.mcc(true, pred) == pytest.approx(4 / math.sqrt(240))
    assert metrics.accuracy(true, pred) == pytest.approx(5 / 8)
    # F1 of class 1: 6 / (6 + 1 + 2); of class 0: 4 / (4 + 2 + 1)
    assert metrics.macro_f1(true, pred) == pytest.approx((6 / 9 + 4 / 7) / 2)


def test_mcc_of_three_classes_follows_gorodkin() -> None:
    true, pred = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]
    table = np.zeros((3, 3))
    np.add.at(table, (true, pred), 1)
    t, p, right, n = table.sum(1), table.sum(0), np.trace(table), table.sum()
    expected = (right * n - t @ p) / math.sqrt((n**2 - p @ p) * (n**2 - t @ t))
    assert metrics.mcc(true, pred) == pytest.approx(expected)


@pytest.mark.parametrize(("true", "pred"), [([1, 1, 1], [1, 1, 1]), ([0, 0, 0], [0, 1, 0]), ([0, 1, 0], [1, 1, 1])])
@pytest.mark.filterwarnings("error")
def test_mcc_is_zero_where_one_class_is_all_there_is(true: list[int], pred: list[int]) -> None:
    assert metrics.mcc(true, pred) == 0.0


@pytest.mark.filterwarnings("error")
def test_no_rows_give_nan_everywhere() -> None:
    for function in (
        metrics.mcc, metrics.accuracy, metrics.macro_f1, metrics.auroc, metrics.auprc,
        metrics.pearson, metrics.spearman, metrics.r2, metrics.mse,
    ):  # fmt: skip
        assert np.isnan(function([], [])), function.__name__
    assert metrics.confusion_matrix([], [], 3).tolist() == [[0] * 3] * 3
    for task, scores in (("binary", np.zeros((0, 2))), ("multiclass", np.zeros((0, 3)))):
        assert all(np.isnan(v) for v in metrics.compute(task, [], scores=scores).values())
    empty = np.zeros((0, 2), dtype=int)
    assert all(np.isnan(v) for v in metrics.compute("multilabel", empty, empty, empty).values())


def test_macro_f1_counts_absent_predictions_as_zero_and_leaves_out_absent_classes() -> None:
    # Class 2 is predicted and never true (F1 0), class 1 true and never predicted (F1 0), class 3 neither.
    assert metrics.macro_f1([0, 0, 1], [0, 0, 2]) == pytest.approx(1 / 3)


def test_areas_count_ties_half_and_do_not_depend_on_row_order() -> None:
    true, score = np.array([0, 1, 0, 1]), np.array([0.3, 0.3, 0.1, 0.8])
    assert metrics.auroc(true, score) == pytest.approx(3.5 / 4)
    # Thresholds .8: precision 1, recall 1/2; .3: precision 2/3, recall 1.
    assert metrics.auprc(true, score) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.auroc(true, np.zeros(4)) == pytest.approx(0.5)
    assert metrics.auprc(true, np.zeros(4)) == pytest.approx(0.5)
    for order in ([1, 0, 3, 2], [3, 2, 1, 0]):
        assert metrics.auprc(true[order], score[order]) == pytest.approx(metrics.auprc(true, score))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_areas_are_nan_where_one_class_only_is_present(label: int) -> None:
    assert np.isnan(metrics.auroc([label] * 3, [0.1, 0.2, 0.3]))
    assert np.isnan(metrics.auprc([label] * 3, [0.1, 0.2, 0.3]))


def test_regression_of_hand_computed_values() -> None:
    result = metrics.compute("regression", [1, 2, 3, 4], [1, 2, 3, 8])
    assert result["mse"] == pytest.approx(4.0)
    assert result["r2"] == pytest.approx(1 - 16 / 5)
    assert result["spearman"] == pytest.approx(1.0)
    assert result["pearson"] == pytest.approx(11 / math.sqrt(5 * 29))


@pytest.mark.filterwarnings("error")
def test_constant_sides_have_no_correlation() -> None:
    constant_truth = metrics.compute("regression", [2, 2, 2], [1, 2, 3])
    assert np.isnan([constant_truth[k] for k in ("pearson", "spearman", "r2")]).all()
    assert constant_truth["mse"] == pytest.approx(2 / 3)
    constant_prediction = metrics.compute("regression", [1, 2, 3], [2, 2, 2])
    assert np.isnan([constant_prediction[k] for k in ("pearson", "spearman")]).all()
    assert constant_prediction["r2"] == pytest.approx(0.0)
    assert np.isnan(metrics.r2([1.0], [1.0]))


def test_confusion_matrix_keeps_empty_classes_and_refuses_unknown_ones() -> None:
    assert metrics.confusion_matrix([0, 2, 2], [2, 2, 0], 4).tolist() == [
        [0, 0, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 1, 0],
        [0, 0, 0, 0],
    ]
    with pytest.raises(ValueError, match="0…1"):
        metrics.confusion_matrix([0, 2], [0, 0], 2)


def test_compute_takes_the_class_of_the_highest_score_and_averages_areas_over_classes() -> None:
    true = [0, 0, 1, 1]
    scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    result = metrics.compute("multiclass", true, scores=scores)
    assert result["accuracy"] == pytest.approx(0.5)
    # Class 2 never occurs: no area. Class 0: (.8, .2) against (.3, .1); class 1: (.4, .2) against (.1, .7).
    assert result["auroc"] == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_compute_reads_binary_scores_of_one_or_two_columns_alike() -> None:
    true, p = np.array([0, 1, 1, 0, 1]), np.array([0.2, 0.9, 0.4, 0.6, 0.7])
    one = metrics.compute("binary", true, (p > 0.5).astype(int), p)
    two = metrics.compute("binary", true, scores=np.stack([1 - p, p], axis=1))
    assert one == two
    assert set(one) == {"mcc", "accuracy", "macro_f1", "auroc", "auprc"}
    with pytest.raises(ValueError, match="y_pred"):
        metrics.compute("binary", true, scores=p)


def test_multilabel_averages_over_labels_where_defined() -> None:
    true = np.array([[1, 0], [0, 0], [1, 0]])
    pred = np.array([[1, 0], [0, 1], [0, 0]])
    scores = np.array([[0.9, 0.1], [0.2, 0.6], [0.4, 0.2]])
    result = metrics.compute("multilabel", true, pred, scores)
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["exact_match"] == pytest.approx(1 / 3)
    assert result["auroc"] == pytest.approx(1.0), "the second label has one class and no area"
    assert result["mcc"] == pytest.approx((0.5 + 0) / 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        metrics.compute("binary", [0, 1], [0, 1], [0.5, bad])
    with pytest.raises(ValueError, match="finite"):
        metrics.compute("regression", [0, 1], [0.5, bad])


def test_shapes_and_tasks_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(n,\)"):
        metrics.mcc([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="task must be one of"):
        metrics.compute("ranking", [0], [0])
    with pytest.raises(ValueError, match="0 and 1"):
        metrics.auroc([1, 2], [0.1, 0.2])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_renaming_classes_changes_nothing(pairs: list[tuple[int, int]]) -> None:
    true, pred = np.array(pairs).T
    rename = np.array([2, 0, 1])
    for function in (metrics.mcc, metrics.accuracy, metrics.macro_f1):
        assert function(true, pred) == pytest.approx(function(rename[true], rename[pred]), abs=1e-12)
