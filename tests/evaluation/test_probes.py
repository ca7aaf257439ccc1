"""Probes on planted data, and bootstrap intervals."""

import numpy as np
import pytest

from had.baselines.logistic import fit_logistic
from had.bootstrap import bootstrap_difference, bootstrap_mean, consecutive_blocks, t_interval
from had.errors import UserError
from had.evaluation.probes import linear_probe, probe_layers

Arrays = tuple[np.ndarray, np.ndarray]


def planted(n: int, seed: int, signal: float = 2.0, width: int = 12, classes: int = 2) -> Arrays:
    """Features that hold the label in one direction, at scales far apart, beside noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(n, width))
    x[:, 0] += signal * y
    return (x * np.geomspace(1e-3, 1e3, width) + 5).astype(np.float32), y


def test_a_planted_direction_is_found_whatever_its_scale() -> None:
    result = linear_probe(*planted(2000, 0), *planted(500, 1), *planted(4000, 2))
    # Two unit normals two apart: the best possible accuracy is Φ(1) = .841, that is MCC .683.
    assert result.test == pytest.approx(0.683, abs=0.04)
    assert result.converged
    assert (result.n_train, result.n_distinct, result.n_available) == (2000, 2000, 2000)


def test_noise_probes_at_zero() -> None:
    result = linear_probe(*planted(1000, 0, signal=0), *planted(500, 1, 0), *planted(4000, 2, 0))
    assert abs(result.test) < 0.06


def test_seeds_vary_the_training_rows_and_repeat_exactly() -> None:
    data = *planted(300, 0), *planted(200, 1), *planted(1000, 2)
    first, again, other = (linear_probe(*data, seed=seed) for seed in (0, 0, 1))
    assert (first.test, first.dev, first.C) == (again.test, again.dev, again.C)
    assert first.test != other.test
    assert first.n_train == 300
    assert 0.55 < first.n_distinct / 300 < 0.72


def test_weights_stand_for_repeated_rows() -> None:
    train_x, train_y = planted(200, 0)
    rest = *planted(100, 1), *planted(500, 2)
    drawn = np.random.default_rng(3).integers(200, size=200)
    by_weight = linear_probe(train_x, train_y, *rest, seed=3)
    by_rows = linear_probe(train_x[drawn], train_y[drawn], *rest)
    assert by_weight.test == pytest.approx(by_rows.test, abs=0.01)
    assert by_weight.C == by_rows.C
    # The standard deviations by which features are divided are weighted, too.
    count = np.bincount(drawn, minlength=200).astype(float)
    scales = [
        fit_logistic(x, y, *rest[:2], sample_weight=weight).scaler.scale_
        for x, y, weight in ((train_x, train_y, count), (train_x[drawn], train_y[drawn], None))
    ]
    np.testing.assert_allclose(*scales, rtol=1e-4)
    assert not np.allclose(scales[0], train_x.std(0), rtol=1e-2)


def test_the_largest_number_of_rows_is_kept_and_recorded() -> None:
    data = *planted(500, 0), *planted(200, 1), *planted(300, 2)
    cut = linear_probe(*data, max_rows=100)
    assert (cut.n_train, cut.n_distinct, cut.n_available) == (100, 100, 500)
    assert linear_probe(*data, max_rows=100).test == cut.test
    seeded = linear_probe(*data, max_rows=100, seed=1)
    assert seeded.n_train == 100
    assert seeded.n_distinct < 100


def test_the_layer_is_chosen_by_development_rows_even_where_test_rows_disagree() -> None:
    (train_x, train_y), (dev_x, dev_y), (test_x, test_y) = (planted(n, s) for s, n in enumerate((500, 300, 300)))
    rng = np.random.default_rng(0)
    good_on_dev = train_x, dev_x, rng.permutation(test_x)
    half_mixed = np.concatenate([dev_x[:150], rng.permutation(dev_x[150:])])
    good_on_test = train_x, half_mixed, test_x
    noise = tuple(rng.normal(size=x.shape).astype(np.float32) for x in (train_x, dev_x, test_x))
    layers = list(zip(noise, good_on_dev, good_on_test, strict=True))
    result = probe_layers(layers[0], train_y, layers[1], dev_y, layers[2], test_y, names=["noise", "dev", "test"])
    assert result.best.layer == "dev"
    assert [probe.layer for probe in result.layers] == ["noise", "dev", "test"]
    assert result.layers[2].test > result.best.test + 0.3
    unnamed = probe_layers(layers[0][:1], train_y, layers[1][:1], dev_y, layers[2][:1], test_y)
    assert unnamed.best.layer == "0"


def test_several_classes_and_other_metrics_are_probed() -> None:
    from had.metrics import accuracy

    data = *planted(1500, 0, 4, classes=3), *planted(300, 1, 4, classes=3), *planted(600, 2, 4, classes=3)
    assert linear_probe(*data).test > 0.85
    assert linear_probe(*data, metric=accuracy).test > 0.9


def test_impossible_probes_are_refused() -> None:
    x, y = planted(20, 0)
    with pytest.raises(UserError, match="two classes"):
        linear_probe(x, np.zeros(20, dtype=int), x, y, x, y)
    with pytest.raises(UserError, match="development rows"):
        linear_probe(x, y, x[:0], y[:0], x, y)
    with pytest.raises(ValueError, match="do not fit"):
        linear_probe(x, y[:-1], x, y, x, y)
    with pytest.raises(ValueError, match="every layer"):
        probe_layers([x], y, [x, x], y, [x], y)
    assert np.isnan(linear_probe(x, y, x, y, x[:0], y[:0]).test)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        interval = bootstrap_mean(rng.exponential(size=60), confidence=0.9, n_resamples=400, seed=i)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.82 <= hits / 200 <= 0.95


def test_blocks_of_neighbours_that_go_together_widen_the_interval_to_the_truth() -> None:
    rng = np.random.default_rng(1)
    single, blocked = 0, 0
    for i in range(100):
        values = np.repeat(rng.normal(size=50), 20) + 0.1 * rng.normal(size=1000)
        low, high = bootstrap_mean(values, n_resamples=300, seed=i)[1:3]
        single += low <= 0 <= high
        low, high = bootstrap_mean(values, blocks=consecutive_blocks(1000, 20), n_resamples=300, seed=i)[1:3]
        blocked += low <= 0 <= high
    assert single < 60
    assert blocked >= 86


def test_intervals_over_five_units_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    intervals = [t_interval(rng.normal(size=5)) for _ in range(2000)]
    hits = sum(one.low <= 0 <= one.high for one in intervals)
    # Three standard deviations of a count around 95 %; a bootstrap of five units has 84 %.
    assert 0.935 <= hits / 2000 <= 0.965
    assert t_interval([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, -1.461, 6.128, 3), abs=1e-3)
    for few in ([], [1.5]):
        assert np.isnan(t_interval(few)[1:3]).all()
        assert t_interval(few).n_blocks == len(few)


def test_weighted_blocks_give_the_ratio_of_sums() -> None:
    values, weights = np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 2.0])
    interval = bootstrap_mean(values, weights=weights, blocks=["a", "a", "b"], n_resamples=2000)
    assert interval.mean == pytest.approx(15 / 4)
    # The two blocks: means 1.5 and 6, weights 2 and 2; a resample has one of them twice in 1 of 4 cases.
    assert (interval.low, interval.high) == (1.5, 6.0)
    assert interval.n_blocks == 2


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(2)
    hard = 5 * rng.normal(size=400)
    a, b = hard + 0.1 * rng.normal(size=400), hard + 0.1 * rng.normal(size=400) - 0.1
    difference = bootstrap_difference(a, b)
    assert difference.low > 0.05
    assert difference.high < 0.15
    assert bootstrap_mean(a).high - bootstrap_mean(a).low > 0.5
    # Of a normal distribution half lies within 0.674 standard deviations, 95 % within 1.96.
    half = bootstrap_difference(a, b, confidence=0.5)
    assert (half.high - half.low) / (difference.high - difference.low) == pytest.approx(0.344, rel=0.1)


def test_resampling_is_reproducible_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=50)
    first = bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) == first
    assert bootstrap_mean(values, seed=5) != first
    monkeypatch.setattr("had.bootstrap._CELLS_PER_CHUNK", 333)
    assert bootstrap_mean(values, seed=4) == first


@pytest.mark.filterwarnings("error")
def test_degenerate_intervals_are_nan() -> None:
    assert np.isnan(bootstrap_mean([])[:3]).all()
    one = bootstrap_mean([1.0, 2.0], blocks=[7, 7])
    assert one.mean == 1.5
    assert np.isnan(one[1:3]).all()
    assert bootstrap_mean([3.0, 3.0])[:3] == (3, 3, 3)


def test_wrong_arguments_of_the_bootstrap_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, np.nan])
    with pytest.raises(ValueError, match="one length"):
        bootstrap_mean([1.0, 2.0], blocks=[0])
    with pytest.raises(ValueError, match="weights of a block"):
        bootstrap_mean([1.0, 2.0], weights=[0.0, 1.0])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_mean([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="same units"):
        bootstrap_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one unit"):
        consecutive_blocks(3, 0)
