"""A decision that is fitted scores better on rows it has not seen than the one it began with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kagglekit import calibrated, class_weights, cutpoints, metrics, most_probable, thresholds
from kagglekit.decisions import Decision
from kagglekit.errors import UserError
from kagglekit.metrics import Metric

RNG = np.random.default_rng


def score(metric: Metric, target: np.ndarray, decided: np.ndarray) -> float:
    return metric(target, decided, pd.DataFrame(index=np.arange(len(target))))


def gain(decision: Decision, metric: Metric, target: np.ndarray, answers: np.ndarray) -> float:
    """What fitting on the first half gains on the second."""
    half = len(target) // 2
    begun = decision(target[:0], answers[:0])(answers[half:])
    fitted = decision(target[:half], answers[:half])(answers[half:])
    return score(metric, target[half:], fitted) - score(metric, target[half:], begun)


def rare(rows: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, one of them rare, and honest probabilities of them."""
    rng = RNG(0)
    logits = 1.5 * rng.standard_normal((rows, 3)) + np.array([1.5, 0.5, -2.0])
    answers = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (answers.cumsum(1) < rng.random((rows, 1))).sum(1), answers


@pytest.mark.parametrize("metric", [metrics.balanced_accuracy, metrics.macro_f1])
def test_weights_help_metrics_that_count_classes_alike(metric: Metric) -> None:
    target, answers = rare()
    assert gain(class_weights(metric), metric, target, answers) > 0.02
    begun = class_weights(metric)(target[:0], answers[:0])(answers)
    np.testing.assert_array_equal(begun, most_probable(target, answers)(answers))


def test_cutpoints_help_an_ordered_metric_with_drawn_in_answers() -> None:
    rng = RNG(0)
    target = rng.integers(0, 5, 2000)
    numbers = 2 + 0.4 * (target - 2) + 0.2 * rng.standard_normal(2000)
    decision = cutpoints(metrics.quadratic_kappa)
    assert gain(decision, metrics.quadratic_kappa, target, numbers) > 0.2
    begun = decision(target[:0], numbers[:0])(np.array([-0.2, 0.6, 3.9]))
    assert begun.tolist() == [0, 1, 4]
    beyond = decision(target, numbers)(np.array([-9.0, 9.0]))
    assert beyond.tolist() == [0, 4]


def test_cutpoints_of_probabilities_are_of_their_mean_class() -> None:
    answers = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8], [0.5, 0.0, 0.5]])
    decide = cutpoints(metrics.quadratic_kappa)(np.zeros(0, np.int64), answers[:0])
    assert decide(answers).tolist() == [0, 2, 1]


def test_a_threshold_finds_the_best_f1() -> None:
    rng = RNG(0)
    target = (rng.random(2000) < 0.1).astype(np.int64)
    answers = np.clip(0.3 * target + 0.15 * rng.random(2000), 0, 1)[:, None]  # never above 0.5
    assert gain(thresholds(metrics.dice), metrics.dice, target, answers) > 0.9
    two = np.hstack([1 - answers, answers])
    decided = thresholds(metrics.dice)(target, two)(two)
    assert decided.shape == (2000,)
    assert score(metrics.dice, target, decided) > 0.95


def test_every_label_has_a_threshold_of_its_own() -> None:
    rng = RNG(0)
    target = rng.integers(0, 2, (800, 2))
    answers = np.stack([0.2 + 0.1 * target[:, 0], 0.7 + 0.1 * target[:, 1]], axis=1)
    decided = thresholds(metrics.dice)(target, answers)(answers)
    np.testing.assert_array_equal(decided, target)
    with pytest.raises(UserError, match="class_weights"):
        thresholds(metrics.dice)(np.zeros(4, np.int64), np.zeros((4, 3)))


def test_calibrated_probabilities_have_a_lower_log_loss() -> None:
    target, answers = rare()
    sharp = answers**4 / (answers**4).sum(1, keepdims=True)
    assert gain(calibrated(), metrics.log_loss, target, sharp) < -0.1
    assert gain(calibrated(most_probable), metrics.accuracy, target, sharp) == 0
    with pytest.raises(UserError, match="a probability for each class"):
        calibrated()(np.zeros(3), np.zeros((3, 1)))


def test_of_equally_good_values_the_one_amidst_them_is_taken() -> None:
    target = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    answers = np.array([0.01, 0.02, 0.03, 0.04, 0.2, 0.21, 0.22, 0.23])[:, None]
    decide = thresholds(metrics.accuracy)(target, answers)
    assert decide(np.array([[0.06], [0.18]])).tolist() == [0, 1]
