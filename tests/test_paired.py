"""Intervals cover what they say, equal models are not told apart, and groups count as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import deciding
from kagglekit import metrics, paired
from kagglekit.data import Dependence
from kagglekit.metrics import Metric

RNG = np.random.default_rng


def judged(
    metric: Metric, target: np.ndarray, *answers: np.ndarray, groups: np.ndarray | None = None
) -> paired.Judged:
    table = pd.DataFrame(index=np.arange(len(target)))
    return paired.judged(metric, target, answers, table, Dependence(groups))


def found(
    metric: Metric, target: np.ndarray, *answers: np.ndarray, groups: np.ndarray | None = None
) -> paired.Difference:
    scores = judged(metric, target, *answers, groups=groups)
    return paired.difference(scores, 0, 1, metric.greater_is_better)


def errors(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = RNG(seed)
    target = rng.standard_normal(rows)
    common = rng.standard_normal(rows)
    return target, target + common, target + common + 0.5 * rng.standard_normal(rows)


def labels(rows: int, right: int, wrong: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two answers, of which the first alone is right in `right` rows and wrong in `wrong`."""
    target = np.arange(rows) % 3
    one, other = target.copy(), target.copy()
    other[:right] = (other[:right] + 1) % 3
    one[right : right + wrong] = (one[right : right + wrong] + 1) % 3
    return target, one, other


def test_intervals_cover_and_equal_models_are_not_told_apart() -> None:
    shares = [
        deciding.simulate(case, 130, seed=7)
        for case in deciding.CASES
        if case.name in ("accuracy, 500 rows", "RMSE, 300 rows", "RMSE, 100 groups of 10")
    ]
    covered, apart = np.mean(shares, axis=0)
    assert 0.93 <= covered <= 0.97
    assert apart <= 0.06  # 5 % of 390, give or take one standard error


def test_the_t_test_over_repeats_does_not_tell_equal_recipes_apart() -> None:
    covered, apart = deciding.simulate_repeats(100, seeds=2)
    assert covered >= 0.93
    assert apart <= 0.06


def test_the_interval_is_the_one_of_scipy() -> None:
    rng = RNG(0)
    target = np.zeros(60)
    one, other = rng.exponential(1, 60), rng.exponential(2, 60) ** 2
    ours = found(metrics.mae, target, one, other)
    theirs = stats.bootstrap(
        (other - one,),
        np.mean,
        method="BCa",
        n_resamples=9999,
        random_state=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.effect == pytest.approx(np.mean(other - one))
    assert ours.interval == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)
    middle = (ours.interval[0] + ours.interval[1]) / 2
    assert middle > ours.effect  # a skewed difference has a lopsided interval


@pytest.mark.parametrize(("right", "wrong"), [(5, 0), (9, 3), (40, 22), (30, 30)])
def test_accuracies_are_compared_as_by_mcnemar_s_exact_test(right: int, wrong: int) -> None:
    ours = found(metrics.accuracy, *labels(500, right, wrong))
    exact = stats.binomtest(right, right + wrong).pvalue
    assert ours.effect == pytest.approx((right - wrong) / 500)
    assert ours.p == pytest.approx(exact, abs=0.03)
    assert "permutation" in ours.method


def test_answers_that_are_alike_are_never_better() -> None:
    target, one, _ = errors(50)
    same = found(metrics.rmse, target, one, one)
    assert (same.effect, same.interval, same.probability, same.p) == (0, (0, 0), 0.5, 1)


@pytest.mark.parametrize("metric", [metrics.rmse, metrics.r2])
def test_a_lower_error_is_better_whatever_the_sign_of_the_metric(metric: Metric) -> None:
    target, better, worse = errors(400)
    ahead, behind = found(metric, target, better, worse), found(metric, target, worse, better)
    assert ahead.effect > 0 > behind.effect
    assert ahead.interval[0] > 0 > behind.interval[1]
    assert ahead.probability > 0.99
    assert behind.probability < 0.01
    assert ahead.p < 0.05
    assert behind.p < 0.05


def test_rows_of_one_group_are_one_piece_of_evidence() -> None:
    target, one, other = errors(60)
    alone = found(metrics.rmse, target, one, other)
    tenfold = [np.repeat(part, 10) for part in (target, one, other)]
    groups = np.repeat(np.arange(60), 10)
    grouped = found(metrics.rmse, *tenfold, groups=groups)
    blind = found(metrics.rmse, *tenfold)
    assert grouped.interval == pytest.approx(alone.interval, rel=0.02)
    assert grouped.p == pytest.approx(alone.p, abs=0.02)
    assert blind.interval[1] - blind.interval[0] < (alone.interval[1] - alone.interval[0]) / 2


@pytest.mark.parametrize("metric", [metrics.mse, Metric("own", metrics.mse.score, False)])
def test_errors_that_time_carries_on_are_less_evidence(metric: Metric) -> None:
    target, one, other, time = deciding.in_time(0.9)(RNG(0), 3000, 0.2)
    shuffled = RNG(1).permutation(3000)  # rows come in any order: their times tell it
    table = pd.DataFrame(index=np.arange(3000))
    parts = [part[shuffled] for part in (target, one, other)]
    reach = {}
    for name, dependence in (("row", Dependence()), ("time", time.of(shuffled))):
        scores = paired.judged(metric, parts[0], parts[1:], table, dependence)
        ours = paired.difference(scores, 0, 1, metric.greater_is_better)
        reach[name] = ours.interval[1] - ours.interval[0]
        error = paired.standard_error(scores, 0, 1)
        assert 3.92 * error == pytest.approx(reach[name], rel=0.3)
    # the squares of an AR(1) process are carried on by the square of its share
    assert reach["time"] / reach["row"] == pytest.approx(np.sqrt(1.81 / 0.19), rel=0.3)
    assert "circular block bootstrap" in ours.method
    assert "times" in ours.method


def test_intervals_cover_also_where_time_carries_errors_on() -> None:
    case = next(case for case in deciding.CASES if case.name == "time: RMSE, 500, AR 0.6")
    covered, apart = deciding.simulate(case, 60, seed=3)
    assert covered >= 0.86
    assert apart <= 0.12
    by_row = deciding.simulate(replace(case, by_row=True), 60, seed=3)
    assert by_row[0] <= covered - 0.04
    assert by_row[1] >= apart + 0.04


def test_many_rows_spread_as_theory_says() -> None:
    target, one, other = errors(50_000)
    apart = (other - target) ** 2 - (one - target) ** 2
    ours = found(metrics.mse, target, one, other)
    reach = 1.96 * apart.std() / np.sqrt(len(apart))
    assert ours.interval == pytest.approx((apart.mean() - reach, apart.mean() + reach), rel=0.05)
    assert "percentile" in ours.method


def test_a_metric_that_is_no_mean_is_resampled_row_by_row() -> None:
    rng = RNG(0)
    target = np.arange(200) % 2
    good, poor = (target + s * rng.standard_normal(200) for s in (0.5, 3.0))
    scores = judged(metrics.roc_auc, target, good, poor)
    drawn = scores.resampled(60, seed=0)
    ours = paired.difference(scores, 0, 1, True, drawn)
    assert ours.interval[0] > 0
    assert ours.p < 0.05
    assert paired.standard_error(scores, 0, 1) == pytest.approx(
        np.std(drawn[:, 0] - drawn[:, 1], ddof=1), rel=0.4
    )


def test_a_class_that_no_drawn_row_has_is_left_out_of_the_count() -> None:
    target = np.array([0] * 20 + [1])
    answers = target + 0.1 * RNG(0).standard_normal(21)
    scores = judged(metrics.roc_auc, target, answers, -answers)
    drawn = scores.resampled(40, seed=0)
    assert np.isnan(drawn).any()
    assert np.isfinite(paired.difference(scores, 0, 1, True, drawn).interval).all()


def test_the_jackknife_leaves_out_each_unit_once() -> None:
    target, one, other = labels(40, 6, 2)
    scores = judged(metrics.accuracy, target, one, other)
    apart = (one == target).astype(float) - (other == target)
    theory = apart.std(ddof=1) / np.sqrt(40)
    assert paired.standard_error(scores, 0, 1) == pytest.approx(theory)


def test_more_units_than_there_are_may_be_drawn() -> None:
    target, one, other = errors(80)
    few, many = (
        judged(metrics.mse, target, one, other).resampled(400, 0, share) for share in (1, 9)
    )
    assert many.std(0) * 3 == pytest.approx(few.std(0), rel=0.2)


def test_holm_adjusts_for_all_that_is_compared() -> None:
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.5, 0.9]) == [1.0, 1.0]
    assert paired.holm([]) == []


def test_the_t_test_is_corrected_for_shared_training_rows() -> None:
    differences = np.array([0.1, 0.3, 0.2, 0.4, 0.0])
    ours = paired.repeated(differences, ratio=0.25)
    assert ours is not None
    error = np.sqrt((1 / 5 + 0.25) * differences.var(ddof=1))
    assert ours.effect == pytest.approx(0.2)
    assert ours.p == pytest.approx(2 * stats.t.sf(0.2 / error, 4))
    assert ours.interval[0] == pytest.approx(0.2 - stats.t.ppf(0.975, 4) * error)
    plain = stats.ttest_1samp(differences, 0).pvalue
    assert ours.p > plain
    assert paired.repeated(differences[:1], 0.25) is None


def test_more_members_decide_only_what_training_rows_allow() -> None:
    rng = RNG(0)
    clear = 1.5 + rng.standard_normal(5)
    needed = paired.members_needed(clear, 0.25, 0.05, 500)
    assert needed is not None
    grown = np.tile(clear, 1 + needed // 5)[:needed]
    assert paired.repeated(grown, 0.25).p < 0.1  # type: ignore[union-attr]
    assert paired.members_needed(clear - clear.mean() + 0.1, 0.25, 0.05, 500) is None


def test_the_mean_of_seeds_has_an_interval_by_student() -> None:
    values = [0.91, 0.93, 0.92]
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert paired.mean_interval(values) == pytest.approx(expected)
    assert paired.mean_interval([0.9]) is None
