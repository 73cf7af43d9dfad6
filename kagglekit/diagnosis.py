"""What out-of-fold answers tell of a model: losses, intervals, confusions, calibration, slices.

Pure functions of arrays. Everywhere `target` is (rows,) class positions or (rows, outputs)
numbers, `probabilities` is (rows, classes), and an interval is a pair at 95 %.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .errors import UserError

Interval = tuple[float, float]
ScoreOf = Callable[[np.ndarray], float]  # positions of rows -> their score

BINS = 15  # of the calibration error, as Guo et al. 2017 count them
LEAST_ROWS = 10  # of a slice; fewer say nothing
MOST_SLICES = 12  # values of one column that are slices of their own
_Z = 1.959963984540054
_TINY = 1e-12


@dataclass(frozen=True)
class Bin:
    """Rows of like confidence: the mean of it, the share that is right with its interval."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class Slice:
    """The rows that share something, and their score."""

    column: str
    value: str
    rows: np.ndarray  # positions among the rows judged
    score: float
    interval: Interval | None = None

    def stands_out(self, whole: float) -> bool:
        """Whether the score of all rows is outside of this slice's interval."""
        return self.interval is not None and not self.interval[0] <= whole <= self.interval[1]


def class_losses(target: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(rows,) the log loss of each row: -ln of the probability that its class was given."""
    given = probabilities[np.arange(len(target)), target]
    return -np.log(np.clip(given.astype(np.float64), _TINY, None))


def residual_losses(target: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(rows,) squared residuals, each output in units of its own standard deviation, averaged."""
    truth = columns(target)
    scale = truth.std(0)
    scaled = (columns(answers) - truth) / np.where(scale > 0, scale, 1.0)
    return np.asarray((scaled**2).mean(1))


def columns(values: np.ndarray) -> np.ndarray:
    """(rows, outputs) float64 of (rows,) or (rows, outputs)."""
    return np.asarray(values, np.float64).reshape(len(values), -1)


def are_probabilities(answers: np.ndarray, classes: int) -> bool:
    """Whether each row of answers is a distribution over the classes."""
    if answers.ndim != 2 or answers.shape[1] != classes or not len(answers):
        return False
    fine = answers.min() >= -1e-6 and np.abs(answers.sum(1) - 1).max() < 1e-2
    return bool(fine)


def wilson(right: int, rows: int) -> Interval:
    """The interval of a share of `rows` that is `right` (Wilson 1927)."""
    if not rows:
        return 0.0, 1.0
    share, z = right / rows, _Z
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + (z / rows / 2) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


# --- classes ------------------------------------------------------------------------------------


def confusion(target: np.ndarray, answered: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) how often each class (row) was answered as each (column)."""
    counts = np.bincount(target * classes + answered, minlength=classes * classes)
    return counts.reshape(classes, classes)


def reliability(target: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The rows in bins of equal width by the probability of the class they were answered with."""
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == target
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            rows, hits = int(inside.sum()), int(right[inside].sum())
            edges = number / bins, (number + 1) / bins
            mean = float(confidence[inside].mean())
            found.append(Bin(*edges, rows, mean, hits / rows, wilson(hits, rows)))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: the mean of |confidence - accuracy| over rows (Guo 2017)."""
    rows = sum(part.rows for part in bins)
    return sum(part.rows * abs(part.confidence - part.accuracy) for part in bins) / max(rows, 1)


def label_issues(target: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Positions of the rows that are likely labelled wrongly, the most likely first.

    Confident learning (Northcutt et al. 2021, arXiv 1911.00068) by cleanlab: rows in the
    off-diagonal of the confident joint, ranked by the probability of their own label.
    """
    from cleanlab.filter import find_label_issues

    known = np.unique(target)
    if len(known) < 2:
        return np.zeros(0, np.int64)
    # of the classes that rows have; cleanlab wants no others
    shares = probabilities[:, known].astype(np.float64)
    shares /= np.maximum(shares.sum(1, keepdims=True), _TINY)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "May not flag all label issues")  # of a scarce class
        found = find_label_issues(
            np.searchsorted(known, target), shares, n_jobs=1,
            return_indices_ranked_by="self_confidence",
        )  # fmt: skip
    return np.asarray(found, np.int64)


# --- slices -------------------------------------------------------------------------------------


def slices(table: pd.DataFrame, score: ScoreOf) -> list[Slice]:
    """Scores of the rows that share a value, or a quarter of the range, of each column.

    Columns of more than 12 different values that are no numbers are left out, and so are slices
    of fewer than 10 rows or without a score.
    """
    found = []
    for column in table.columns:
        for value, rows in _shared(table[column]):
            with suppress(UserError):
                if len(rows) >= LEAST_ROWS:
                    found.append(Slice(str(column), value, rows, score(rows)))
    return found


def by_group(
    name: str, groups: np.ndarray, score: ScoreOf, greater_is_better: bool, most: int
) -> list[Slice]:
    """Scores of the `most` worst groups of at least 2 rows, the worst first."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(groups[order][1:] != groups[order][:-1]) + 1
    found = []
    for rows in np.split(order, starts):
        with suppress(UserError):
            if len(rows) >= 2:
                found.append(Slice(name, str(groups[rows[0]]), rows, score(rows)))
    return sorted(found, key=lambda part: part.score if greater_is_better else -part.score)[:most]


def _shared(values: pd.Series) -> Iterator[tuple[str, np.ndarray]]:
    """(name, positions) of a column's slices."""
    numbers = pd.to_numeric(values, errors="coerce")
    if values.nunique() > MOST_SLICES and numbers.notna().mean() > 0.5:
        codes, edges = pd.qcut(numbers, 4, labels=False, retbins=True, duplicates="drop")
        for number in range(len(edges) - 1):
            name = f"{edges[number]:.4g} to {edges[number + 1]:.4g}"
            yield name, np.flatnonzero((codes == number).to_numpy())
        missing = np.flatnonzero(numbers.isna().to_numpy())
        if len(missing):
            yield "no number", missing
    elif 1 < values.nunique() <= MOST_SLICES:
        text = values.astype(str).to_numpy(str)
        for value in sorted(set(text)):
            yield value, np.flatnonzero(text == value)
