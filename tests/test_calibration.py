"""A temperature mends what is too sure, and leaves the order of classes alone."""

from __future__ import annotations

import numpy as np
import pytest

from kagglekit import calibration


def answered(rows: int = 4000, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Classes drawn from known probabilities, and these, sharpened."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.standard_normal((rows, 4))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = (honest.cumsum(1) < rng.random((rows, 1))).sum(1)
    return target, calibration.scaled(honest, 1 / sharpness)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_sharpened_the_answers(sharpness: float) -> None:
    target, answers = answered(sharpness=sharpness)
    found = calibration.temperature(target, answers)
    assert found == pytest.approx(sharpness, rel=0.1)
    mended = calibration.scaled(answers, found)
    np.testing.assert_array_equal(mended.argmax(1), answers.argmax(1))
    assert calibration.log_loss(target, mended) <= calibration.log_loss(target, answers)


def test_without_rows_answers_stay_as_they_are() -> None:
    _, answers = answered(5)
    assert calibration.temperature(np.zeros(0, np.int64), answers[:0]) == 1
    assert calibration.scaled(answers, 1.0) is answers


def test_certain_answers_make_no_nan() -> None:
    target = np.array([0, 1, 1])
    sure = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = calibration.temperature(target, sure)
    assert found > 1
    assert np.isfinite(calibration.scaled(sure, found)).all()
