"""From answers to what metric and submission want, and from several answers to one.

| decision | from | to |
|---|---|---|
| `as_is` | anything | the same |
| `most_probable` | (rows, classes) | position of the most probable class |
| `thresholds(metric)` | (rows,), (rows, 1), two classes, or (rows, labels) | 0 and 1 |
| `class_weights(metric)` | (rows, classes) | position of the largest weight · probability |
| `cutpoints(metric)` | (rows, classes) in their order, or a number a row | position of a class |
| `calibrated(decision)` | (rows, classes) | what `decision` makes of calibrated probabilities |

Thresholds, weights and cutpoints are those with which OOF answers score best, and `calibrated`
learns a temperature; the pipeline fits each without the rows that it is scored on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pandas as pd

from . import calibration
from .errors import UserError
from .metrics import Metric

Decide = Callable[[np.ndarray], np.ndarray]  # answers (rows, ...) -> decided answers (rows, ...)
Combine = Callable[[np.ndarray], np.ndarray]  # (members, rows, ...) -> (rows, ...)

_MOST_ROWS = 20_000  # on which is searched; more tell hardly more
_SWEEPS = 3
_CANDIDATES = 60  # of a threshold
_FACTORS = np.geomspace(0.25, 4, 17)  # by which a class's weight is tried


class Decision(Protocol):
    """Learns from OOF answers how to decide; the pipeline cross-fits it.

    The rows that a decision is scored on are never among those it was fitted on. Before any row
    has an OOF answer (the first fold's live score, a run of one fold) there are zero rows to learn
    from: a fitted decision then takes its starting point.
    """

    def __call__(self, target: np.ndarray, answers: np.ndarray) -> Decide:
        """Learn from the targets (rows, ...) and OOF answers (rows, ...) of some rows."""
        ...


def as_is(target: np.ndarray, answers: np.ndarray) -> Decide:
    """The answers themselves: numbers, or probabilities where the metric wants them."""
    return lambda answers: answers


def most_probable(target: np.ndarray, answers: np.ndarray) -> Decide:
    """The position of the most probable class: (rows, classes) -> (rows,)."""
    return lambda answers: answers.argmax(1)


def mean(answers: np.ndarray) -> np.ndarray:
    """The mean over members."""
    return answers.mean(0)


def thresholds(metric: Metric) -> Decision:
    """0 and 1 by a threshold for each label, at which `metric` is best; 0.5 to begin with.

    Two classes with a column each are decided by the second. Labels are tuned in turn, three
    times over. Raises UserError for classes that are more than two.
    """

    def decision(target: np.ndarray, answers: np.ndarray) -> Decide:
        columns = _columns(target, answers)
        known = np.full(columns.shape[1], 0.5)

        def decided(columns: np.ndarray, at: np.ndarray) -> np.ndarray:
            found = (columns >= at).astype(np.int64)
            return found if target.ndim > 1 and target.shape[1] > 1 else found[:, 0]

        search = _Search(metric, target, columns, decided)
        for _ in range(_SWEEPS if len(known) > 1 else 1):
            for label in range(len(known)):
                values = np.quantile(columns[:, label], np.linspace(0, 1, _CANDIDATES)) \
                    if len(columns) else np.zeros(0)  # fmt: skip
                known = search.better(known, label, (values[1:] + values[:-1]) / 2)
        return lambda answers: decided(_columns(target, answers), known)

    return decision


def class_weights(metric: Metric) -> Decision:
    """The class of the largest weight · probability, at whose weights `metric` is best.

    For metrics that count classes alike, as balanced accuracy and macro F1. All weights are 1 to
    begin with; they are tuned in turn, three times over (coordinate ascent).
    """

    def decision(target: np.ndarray, answers: np.ndarray) -> Decide:
        def decided(answers: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return (answers * weights).argmax(1)

        known = np.ones(answers.shape[1])
        search = _Search(metric, target, answers, decided)
        for _ in range(_SWEEPS):
            for position in range(len(known)):
                known = search.better(known, position, known[position] * _FACTORS)
        return lambda answers: decided(answers, known)

    return decision


def cutpoints(metric: Metric) -> Decision:
    """Ordered classes by cutpoints of one number a row, at which `metric` is best.

    The number is the answer itself, or the mean class position where answers are probabilities.
    To begin with it is rounded. For metrics that know an order, as quadratic kappa.
    """

    def decision(target: np.ndarray, answers: np.ndarray) -> Decide:
        several = answers.ndim > 1 and answers.shape[1] > 1
        if not len(target) and not several:  # how many classes there are is not known yet
            return lambda answers: np.maximum(np.rint(_expected(answers)), 0).astype(np.int64)
        top = answers.shape[1] - 1 if several else int(target.max(initial=1))
        known = np.arange(top) + 0.5

        def decided(numbers: np.ndarray, at: np.ndarray) -> np.ndarray:
            return np.searchsorted(np.sort(at), numbers, "right")

        numbers = _expected(answers)
        search = _Search(metric, target, numbers, decided)
        for _ in range(_SWEEPS):
            for position in range(len(known)):
                low = known[position - 1] if position else known[position] - 1
                high = known[position + 1] if position + 1 < len(known) else known[position] + 1
                known = search.better(known, position, np.linspace(low, high, 23)[1:-1])
        return lambda answers: decided(_expected(answers), known)

    return decision


def calibrated(decision: Decision = as_is) -> Decision:
    """`decision` of probabilities at the temperature at which their log loss is least.

    See `calibration.temperature`. Raises UserError for answers without a column for each class.
    """

    def learn(target: np.ndarray, answers: np.ndarray) -> Decide:
        if answers.ndim != 2 or answers.shape[1] < 2 or target.dtype.kind not in "iu":
            raise UserError(
                f"`calibrated` wants a probability for each class, and answers have shape "
                f"{answers.shape}: take it out of the competition's `decision`"
            )
        found = calibration.temperature(target, answers)
        then = decision(target, calibration.scaled(answers, found))
        return lambda answers: then(calibration.scaled(answers, found))

    return learn


class _Search:
    """Tries values for one of several numbers that decide, on a share of the rows."""

    def __init__(
        self,
        metric: Metric,
        target: np.ndarray,
        answers: np.ndarray,
        decided: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        rows = np.arange(len(target))
        if len(rows) > _MOST_ROWS:
            rows = np.random.default_rng(0).permutation(len(rows))[:_MOST_ROWS]
        self.metric, self.decided = metric, decided
        self.target, self.answers = target[rows], answers[rows]
        self.table = pd.DataFrame(index=np.arange(len(rows)))

    def better(self, known: np.ndarray, position: int, values: np.ndarray) -> np.ndarray:
        """`known` with the value at `position` that scores best; of equals the one amidst them."""
        if not len(self.target):
            return known
        values = np.unique(values)
        tried = [np.concatenate([known[:position], [value], known[position + 1 :]])
                 for value in values]  # fmt: skip
        scores = np.array([self._score(one) for one in tried])
        best = scores.max(initial=-np.inf)
        if not best > self._score(known):
            return known
        places = np.flatnonzero(scores == best)
        return tried[int(places[len(places) // 2])]

    def _score(self, known: np.ndarray) -> float:
        decided = self.decided(self.answers, known)
        try:
            score = self.metric.score(self.target, decided, self.table)
        except UserError:  # undefined, as kappa where all answers are one class
            return -np.inf
        return score if self.metric.greater_is_better else -score


def _flat(answers: np.ndarray) -> np.ndarray:
    """(rows, numbers of a row), also of no rows."""
    return answers.reshape(len(answers), math.prod(answers.shape[1:]))


def _columns(target: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(rows, labels) of numbers to hold against thresholds."""
    columns = _flat(answers)
    labels = target.shape[1] if target.ndim > 1 else 1
    if labels == 1 and columns.shape[1] == 2:
        return columns[:, 1:]
    if columns.shape[1] != labels:
        raise UserError(
            f"`thresholds` decides labels of 0 and 1, and answers have {columns.shape[1]} columns "
            f"for {labels}: decide classes by `class_weights` or `most_probable`"
        )
    return columns


def _expected(answers: np.ndarray) -> np.ndarray:
    """(rows,) the number itself, or the mean position of probabilities."""
    columns = _flat(answers)
    if columns.shape[1] == 1:
        return columns[:, 0]
    return columns @ np.arange(columns.shape[1])
