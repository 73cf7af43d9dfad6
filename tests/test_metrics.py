from __future__ import annotations

import time
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from kagglekit import metrics
from kagglekit.errors import UserError

law = settings(max_examples=25, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10_000)
DECIDED = [metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.micro_f1]
NUMERIC = [metrics.mse, metrics.rmse, metrics.mae, metrics.rmsle, metrics.r2]


def rows_of(values: np.ndarray, first: int = 0) -> pd.DataFrame:
    return pd.DataFrame(index=range(first, first + len(values)))


def drawn_classes(seed: int, classes: int = 6, rows: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Targets and answers that each miss some classes."""
    random = np.random.default_rng(seed)
    known = random.choice(classes, size=(2, 3))
    return random.choice(known[0], rows), random.choice(known[1], rows)


def drawn_probabilities(seed: int, classes: int, rows: int = 30) -> np.ndarray:
    """(rows, classes), coarse enough for ties."""
    counts = np.random.default_rng(seed).integers(1, 4, size=(rows, classes))
    return counts / counts.sum(1, keepdims=True)


@law
@given(seeds)
def test_metrics_of_decided_classes_equal_scikit_learn_s(seed):
    target, answers = drawn_classes(seed)
    expected = {
        "accuracy": reference.accuracy_score(target, answers),
        "macro_f1": reference.f1_score(target, answers, average="macro"),
        "micro_f1": reference.f1_score(target, answers, average="micro"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn remarks on answers of unseen classes
        expected["balanced_accuracy"] = reference.balanced_accuracy_score(target, answers)
    for metric in DECIDED:
        assert metric(target, answers, rows_of(target)) == pytest.approx(expected[metric.name])


@law
@given(seeds)
def test_quadratic_kappa_equals_scikit_learn_s_over_all_classes(seed):
    target, answers = drawn_classes(seed)
    target[0], answers[0] = 0, 5  # at least two classes
    expected = reference.cohen_kappa_score(
        target, answers, labels=list(range(6)), weights="quadratic"
    )
    assert metrics.quadratic_kappa(target, answers, rows_of(target)) == pytest.approx(expected)


def test_quadratic_kappa_of_one_class_alone_is_an_error():
    ones = np.ones(4, np.int64)
    with pytest.raises(UserError, match="every answer is class 1"):
        metrics.quadratic_kappa(ones, ones, rows_of(ones))


@law
@given(seeds, st.sampled_from([np.float32, np.float64]))
def test_log_loss_equals_scikit_learn_s_with_classes_missing_in_the_target(seed, kind):
    answers = drawn_probabilities(seed, 5).astype(kind)
    answers[0] = [0, 0, 1, 0, 0]
    target = np.random.default_rng(seed).choice([0, 1, 3], len(answers))
    expected = reference.log_loss(target, answers, labels=range(5))
    assert metrics.log_loss(target, answers, rows_of(target)) == pytest.approx(expected, rel=1e-5)


def test_log_loss_takes_one_column_as_the_probability_of_class_1():
    target, answers = np.array([0, 1, 1]), np.array([0.2, 0.7, 0.1])
    expected = reference.log_loss(target, answers)
    for shaped in (answers, answers[:, None], np.stack([1 - answers, answers], 1)):
        assert metrics.log_loss(target, shaped, rows_of(target)) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [[3.0, -2.0], [0.5, 0.6], [1.2, -0.2]])
def test_log_loss_of_what_is_no_probability_names_the_row(bad):
    answers = np.array([[0.5, 0.5], bad, bad])
    with pytest.raises(UserError, match="row 11 is no probability"):
        metrics.log_loss(np.array([0, 1, 0]), answers, rows_of(answers, first=10))


@law
@given(seeds)
def test_binary_ranking_metrics_equal_scikit_learn_s_with_ties(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(-4, 4, 30).astype(np.float32)
    target = random.integers(0, 2, 30)
    target[:2] = 0, 1
    rows = rows_of(target)
    for shaped in (scores, scores[:, None], np.stack([-scores, scores], 1)):
        area = metrics.roc_auc(target, shaped, rows)
        precision = metrics.average_precision(target, shaped, rows)
        assert area == pytest.approx(reference.roc_auc_score(target, scores))
        assert precision == pytest.approx(reference.average_precision_score(target, scores))


@law
@given(seeds)
def test_multiclass_ranking_metrics_equal_scikit_learn_s_one_against_rest(seed):
    answers = drawn_probabilities(seed, 4)
    target = np.random.default_rng(seed).permutation(np.arange(len(answers)) % 4)
    area = metrics.roc_auc(target, answers, rows_of(target))
    assert area == pytest.approx(reference.roc_auc_score(target, answers, multi_class="ovr"))
    precision = metrics.average_precision(target, answers, rows_of(target))
    assert precision == pytest.approx(reference.average_precision_score(target, answers))


@law
@given(seeds)
def test_multilabel_ranking_metrics_equal_scikit_learn_s(seed):
    random = np.random.default_rng(seed)
    target = random.integers(0, 2, (20, 3)).astype(float)
    target[:2] = [[0, 0, 0], [1, 1, 1]]
    answers = random.integers(0, 5, (20, 3)) / 5
    area = metrics.roc_auc(target, answers, rows_of(target))
    assert area == pytest.approx(reference.roc_auc_score(target, answers))
    precision = metrics.average_precision(target, answers, rows_of(target))
    assert precision == pytest.approx(reference.average_precision_score(target, answers))


def test_classes_missing_in_the_target_are_left_out_of_the_average():
    answers = drawn_probabilities(1, 4)
    target = np.arange(len(answers)) % 3
    rows = rows_of(target)
    areas = [reference.roc_auc_score(target == c, answers[:, c]) for c in range(3)]
    averages = [reference.average_precision_score(target == c, answers[:, c]) for c in range(3)]
    assert metrics.roc_auc(target, answers, rows) == pytest.approx(np.mean(areas))
    assert metrics.average_precision(target, answers, rows) == pytest.approx(np.mean(averages))


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (metrics.roc_auc, "only one class"),
        (metrics.eer, "only one class"),
        (metrics.average_precision, "no row is positive"),
    ],
)
def test_ranking_one_class_alone_is_an_error(metric, reason):
    with pytest.raises(UserError, match=reason):
        metric(np.zeros(5, np.int64), np.linspace(0, 1, 5), pd.DataFrame(index=range(5)))


def test_multiclass_auc_of_one_class_alone_is_an_error():
    answers = drawn_probabilities(0, 3)
    with pytest.raises(UserError, match="only one class"):
        metrics.roc_auc(np.full(len(answers), 2), answers, rows_of(answers))


def test_a_class_without_a_column_names_the_row():
    answers = drawn_probabilities(0, 3, rows=4)
    for metric in (metrics.roc_auc, metrics.average_precision, metrics.log_loss):
        with pytest.raises(UserError, match="row 2 is class 3"):
            metric(np.array([0, 1, 3, 3]), answers, rows_of(answers))


@law
@given(seeds)
def test_eer_lies_on_the_interpolated_roc_where_both_errors_are_equal(seed):
    random = np.random.default_rng(seed)
    target = np.append([0, 1], random.integers(0, 2, 25))
    scores = random.integers(0, 8, len(target)) + target
    false_rate, true_rate, _ = reference.roc_curve(target, scores, drop_intermediate=False)
    error = metrics.eer(target, scores, rows_of(target))
    fine = np.linspace(0, 1, 20_001)  # points along the curve, dense between its corners
    corners = np.linspace(0, 1, len(false_rate))
    along = np.interp(fine, corners, false_rate), np.interp(fine, corners, 1 - true_rate)
    nearest = np.argmin(abs(along[0] - along[1]))
    assert error == pytest.approx(along[0][nearest], abs=1e-3)


def test_eer_is_0_for_a_perfect_1_for_a_reversed_and_a_half_for_a_constant_score():
    target = np.array([0, 0, 1, 1])
    rows = rows_of(target)
    assert metrics.eer(target, np.array([0.1, 0.2, 0.3, 0.4]), rows) == 0
    assert metrics.eer(target, np.array([0.4, 0.3, 0.2, 0.1]), rows) == 1
    assert metrics.eer(target, np.ones(4), rows) == 0.5
    with pytest.raises(UserError, match="compares two classes"):
        metrics.eer(target, np.ones((4, 3)), rows)


@law
@given(seeds, st.sampled_from([(20,), (20, 1), (20, 3)]))
def test_numeric_metrics_equal_scikit_learn_s(seed, shape):
    random = np.random.default_rng(seed)
    target, answers = random.exponential(size=shape), random.exponential(size=shape)
    if len(shape) == 2 and seed % 2:
        target[:, 0] = 0.5  # a constant output
    squares = reference.mean_squared_error(target, answers)
    expected = {
        "mse": squares,
        "rmse": np.sqrt(squares),
        "mae": reference.mean_absolute_error(target, answers),
        "rmsle": np.sqrt(reference.mean_squared_log_error(target, answers)),
        "r2": reference.r2_score(target, answers),
    }
    for metric in NUMERIC:
        assert metric(target, answers, rows_of(target)) == pytest.approx(expected[metric.name])


@pytest.mark.parametrize("metric", NUMERIC)
def test_a_column_of_answers_is_never_broadcast_against_a_flat_target(metric):
    target, answers = np.arange(4.0), np.array([1.0, 0.0, 2.5, 3.0])
    flat = metric(target, answers, rows_of(target))
    assert metric(target, answers[:, None], rows_of(target)) == flat


@pytest.mark.parametrize("metric", NUMERIC)
def test_outputs_that_do_not_fit_the_target_are_an_error_with_both_shapes(metric):
    with pytest.raises(UserError, match=r"\(4, 2\).*\(4, 3\)"):
        metric(np.ones((4, 2)), np.ones((4, 3)), pd.DataFrame(index=range(4)))


def test_r2_counts_a_constant_output_as_scikit_learn_does():
    target, rows = np.ones(3), pd.DataFrame(index=range(3))
    assert metrics.r2(target, np.ones(3), rows) == 1
    assert metrics.r2(target, np.array([1.0, 1.0, 2.0]), rows) == 0
    with pytest.raises(UserError, match="row 0 alone"):
        metrics.r2(target[:1], target[:1], rows[:1])


def test_rmsle_of_numbers_below_its_range_names_the_row():
    with pytest.raises(UserError, match=r"answer of row 6 is -1\.5"):
        metrics.rmsle(np.ones(3), np.array([0.0, -1.5, -2.0]), rows_of(np.ones(3), first=5))


@law
@given(seeds)
def test_dice_is_the_f1_score_of_each_mask(seed):
    random = np.random.default_rng(seed)
    target, answers = random.integers(0, 2, (2, 6, 4, 3))
    target[0] = answers[0] = 0
    each = [
        reference.f1_score(a.ravel(), b.ravel(), zero_division=1.0)
        for a, b in zip(target, answers, strict=True)
    ]
    assert metrics.dice(target, answers, rows_of(target)) == pytest.approx(np.mean(each))
    flat = target[1:].ravel(), answers[1:].ravel()
    expected = reference.f1_score(*flat, zero_division=1.0)
    assert metrics.dice(*flat, rows_of(flat[0])) == pytest.approx(expected)


def test_dice_wants_decided_masks():
    with pytest.raises(UserError, match="answer of row 1 has values other than 0 and 1"):
        metrics.dice(np.eye(2), np.array([[0, 1], [0.5, 1]]), pd.DataFrame(index=range(2)))


ALL = [value for value in vars(metrics).values() if isinstance(value, metrics.Metric)]


def test_there_are_fifteen_metrics_and_each_is_named_as_its_variable():
    assert len(ALL) == 15
    for metric in ALL:
        assert getattr(metrics, metric.name) is metric


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_metric_refuses_nan_and_infinity_and_names_the_row(metric, bad):
    good = np.array([0.0, 1.0, 0.0, 1.0])
    broken = np.array([0.0, 1.0, bad, bad])
    rows = rows_of(good, first=7)
    with pytest.raises(UserError, match=f"answer of row 9 is {bad}"):
        metric(good, broken, rows)
    with pytest.raises(UserError, match=f"target of row 9 is {bad}"):
        metric(broken, good, rows)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_every_metric_refuses_lengths_that_differ_and_names_the_first_lone_row(metric):
    values = np.array([0, 1, 0, 1])
    rows = rows_of(values, first=20)
    for target, answers in ((values[:3], values), (values, values[:3]), (values, np.array(1.0))):
        with pytest.raises(UserError, match=r"from row 2[03] on"):
            metric(target, answers, rows)
    with pytest.raises(UserError, match="for 3 rows: from row 3 on"):
        metric(values, values, rows[:3])
    with pytest.raises(UserError, match="no rows to score"):
        metric(values[:0], values[:0], rows[:0])


def test_nan_in_one_of_many_outputs_is_found():
    answers = np.ones((5, 3))
    answers[2, 1] = np.nan
    with pytest.raises(UserError, match="answer of row 2 is nan"):
        metrics.mse(np.ones((5, 3)), answers, rows_of(answers))


@pytest.mark.parametrize("metric", [*DECIDED, metrics.quadratic_kappa])
def test_metrics_of_decided_classes_refuse_probabilities_and_hidden_targets(metric):
    target = np.array([0, 1, 0, 1])
    rows = rows_of(target)
    with pytest.raises(UserError, match="most_probable"):
        metric(target, np.full((4, 2), 0.5), rows)
    with pytest.raises(UserError, match=r"answer of row 1 is 0\.5"):
        metric(target, np.array([0, 0.5, 0, 1]), rows)
    with pytest.raises(UserError, match="target of row 3 is -1"):
        metric(np.array([0, 1, 0, -1]), target, rows)


def test_better_follows_the_metric_s_direction():
    assert metrics.accuracy.better(0.9, 0.8)
    assert not metrics.accuracy.better(0.8, 0.8)
    assert metrics.rmse.better(0.8, 0.9)
    assert not metrics.rmse.better(0.9, 0.8)


def test_a_metric_of_one_s_own_sees_the_rows_and_may_not_score_nan():
    weighted = metrics.Metric(
        "weighted", lambda t, a, rows: np.average(t == a, weights=rows["weight"]), True
    )
    rows = pd.DataFrame({"weight": [3, 1]})
    assert weighted(np.array([0, 1]), np.array([0, 0]), rows) == 0.75
    undefined = metrics.Metric("undefined", lambda t, a, rows: np.nan, True)
    with pytest.raises(UserError, match="undefined came out as nan"):
        undefined(np.array([0]), np.array([0]), rows[:1])


def test_accuracy_of_60_000_rows_takes_milliseconds():
    target = np.arange(60_000) % 10
    rows = rows_of(target)
    start = time.perf_counter()
    for _ in range(10):
        metrics.accuracy(target, target, rows)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "micro_f1",
                                  "quadratic_kappa", "log_loss", "mse", "rmse", "mae", "rmsle",
                                  "r2", "dice"])  # fmt: skip
def test_a_score_that_follows_from_means_is_the_score(name: str) -> None:
    rng = np.random.default_rng(0)
    metric = getattr(metrics, name)
    classes = rng.integers(0, 4, 300)
    numbers = rng.random((300, 2))
    cases = {
        "log_loss": [(classes, rng.dirichlet(np.ones(4), 300))],
        "dice": [(classes > 1, rng.integers(0, 2, 300)),
                 (numbers > 0.5, rng.integers(0, 2, (300, 2)))],
    }  # fmt: skip
    decided = np.where(rng.random(300) < 0.7, classes, rng.integers(0, 4, 300))
    usual = (classes, decided) if metric.greater_is_better and name != "r2" else (
        numbers, numbers + 0.1 * rng.random((300, 2))
    )  # fmt: skip
    for target, answers in cases.get(name, [usual]):
        assert metric.means is not None
        sums = metric.means.columns(np.asarray(target), answers, 4)
        expected = metric.score(np.asarray(target), answers, pd.DataFrame(index=range(300)))
        assert metric.means.score(sums.mean(0)) == pytest.approx(expected)
        several = np.stack([sums[:150].mean(0), sums[150:].mean(0)])
        assert metric.means.score(several).shape == (2,)
