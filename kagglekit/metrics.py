"""Metrics: how good answers are, in the terms of the competition, checked before they are scored.

Every metric takes a target and decided answers of the same rows. Several outputs are averaged
plainly: over all rows and outputs where errors are summed, over outputs for R².
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .errors import UserError

Score = Callable[[np.ndarray, np.ndarray, pd.DataFrame], float]  # (target, answers, rows) -> score


@dataclass(frozen=True)
class Means:
    """A score that follows from means over rows: what makes thousands of resamplings quick.

    `columns` takes target, answers and the number of classes to (rows, k); `score` takes means of
    these, (..., k), to (...) scores, NaN where there is none.
    """

    columns: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    score: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A score by name: call it with a target, the decided answers and what is known of the rows.

    `score` may take its arguments as finite and equally long; what else it needs it checks itself.
    `means` gives the same score where it follows from means over rows; None where it does not.
    """

    name: str
    score: Score
    greater_is_better: bool
    means: Means | None = None

    def __call__(self, target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
        """The score of `answers` (rows, ...) for `target` (rows,) or (rows, outputs).

        Raises UserError, naming the first row at fault by its label in `rows`, for NaN or infinity
        in either, for lengths or shapes that do not fit, and for a score that is not finite.
        """
        target, answers = np.asarray(target), np.asarray(answers)
        self._check_lengths(target, answers, rows)
        self._check_finite("target", target, rows, "correct that row or leave it out")
        self._check_finite(
            "answer", answers, rows, "look for a diverged training, or bad input in that row"
        )
        score = float(self.score(target, answers, rows))
        if not math.isfinite(score):
            raise UserError(f"{self.name} came out as {score}: no score can be given to the run")
        return score

    def better(self, score: float, other: float) -> bool:
        """Whether `score` beats `other`."""
        return score > other if self.greater_is_better else score < other

    def _check_lengths(self, target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> None:
        lengths = [len(part) if part.ndim else 0 for part in (target, answers)]
        if max(*lengths, len(rows)) == 0:
            raise UserError(f"{self.name} has no rows to score: there must be at least one")
        shortest = min(*lengths, len(rows))
        if shortest != max(*lengths, len(rows)):
            first = rows.index[shortest] if shortest < len(rows) else shortest
            raise UserError(
                f"{self.name} got {lengths[0]} targets and {lengths[1]} answers for {len(rows)} "
                f"rows: from row {first} on one of them is missing; give one of each a row"
            )

    def _check_finite(self, what: str, values: np.ndarray, rows: pd.DataFrame, advice: str) -> None:
        if values.dtype.kind not in "fc":
            return  # integers are always finite; what is no number is for `score` to judge
        finite = np.isfinite(values)
        if not finite.all():
            position = _first(~finite)
            worst = values[position][~finite[position]] if values.ndim > 1 else values[[position]]
            raise UserError(
                f"{self.name} cannot be computed: the {what} of row {rows.index[position]} "
                f"is {worst.flat[0]}; {advice}"
            )


def _first(wrong: np.ndarray) -> int:
    """Position of the first row with a True anywhere: (rows, ...) -> int."""
    return int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))[0])


def _positions(what: str, values: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """Class positions, int64 (rows,), from whole numbers of any type, (rows,) or (rows, 1)."""
    if values.size != len(values) or values.dtype.kind not in "biuf":
        raise UserError(
            f"the {what}s have shape {values.shape} and type {values.dtype}, but this metric wants "
            "one class position a row: give the competition a `decision` such as `most_probable`"
        )
    values = values.reshape(-1)
    positions = values.astype(np.int64)
    wrong = (positions != values) | (positions < 0)
    if wrong.any():
        position = _first(wrong)
        raise UserError(
            f"the {what} of row {rows.index[position]} is {values[position]}, but this metric "
            "wants class positions: whole numbers from 0"
        )
    return positions


def _decided(
    target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    return _positions("target", target, rows), _positions("answer", answers, rows)


def _counts(
    target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class, (classes,): rows answered rightly, rows of it, rows answered as it."""
    target, answers = _decided(target, answers, rows)
    classes = int(max(target.max(), answers.max())) + 1
    hits = np.bincount(target[target == answers], minlength=classes)
    return hits, np.bincount(target, minlength=classes), np.bincount(answers, minlength=classes)


def _accuracy(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    target, answers = _decided(target, answers, rows)
    return float(np.mean(target == answers))


def _balanced_accuracy(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    hits, sizes, _ = _counts(target, answers, rows)
    return float(np.mean(hits[sizes > 0] / sizes[sizes > 0]))


def _macro_f1(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    hits, sizes, answered = _counts(target, answers, rows)
    occurring = sizes + answered > 0
    return float(np.mean(2 * hits[occurring] / (sizes + answered)[occurring]))


def _quadratic_kappa(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    # The mean squared difference that independent answers of the same spread would have is
    # var(target) + var(answers) + (difference of means)²; the weights' scale cancels.
    target, answers = _decided(target, answers, rows)
    chance = target.var() + answers.var() + (target.mean() - answers.mean()) ** 2
    if chance == 0:
        raise UserError(
            f"quadratic kappa is undefined: every target and every answer is class {target[0]}; "
            "score rows of two classes or more"
        )
    return float(1 - np.mean((target - answers) ** 2) / chance)


def _one_vs_rest(
    target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Each class or label against all else: (positive, scores), both (rows, labels).

    One label, "class 1", where answers have one or two columns; all classes where they have more;
    all labels where the target itself has several columns of 0 and 1.
    """
    scores = answers.reshape(len(answers), -1).astype(np.float64)
    if target.ndim > 1 and target.shape[1] > 1:
        return _mask("target", _same_shape(target, scores), rows), scores
    classes = _columns_exist(_positions("target", target, rows), scores, rows)
    if scores.shape[1] <= 2:
        return (classes == 1)[:, None], scores[:, -1:]
    return classes[:, None] == np.arange(scores.shape[1]), scores


def _columns_exist(classes: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """`classes` (rows,), each with a column in `answers`; a lone column is that of class 1."""
    known = max(answers.shape[1], 2)
    if classes.max() >= known:
        position = _first(classes >= known)
        raise UserError(
            f"the target of row {rows.index[position]} is class {classes[position]}, "
            f"but answers of shape {answers.shape} know {known} classes: give one column a class"
        )
    return classes


def _same_shape(target: np.ndarray, answers: np.ndarray) -> np.ndarray:
    if target.shape != answers.shape:
        raise UserError(
            f"the target has shape {target.shape} and the answers have shape {answers.shape}: "
            "give one answer for each target"
        )
    return target


def _mask(what: str, values: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """`values` of 0 and 1 as truth values."""
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        position = _first(wrong)
        raise UserError(
            f"the {what} of row {rows.index[position]} has values other than 0 and 1: "
            "this metric wants decided ones, so give the competition a `decision`"
        )
    return values.astype(bool)


def _curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows accepted by each threshold as it falls past each distinct score, none accepted first.

    (rows,) and (rows,) -> true and false positives, both (distinct scores + 1,).
    """
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true = np.cumsum(positive)[last_of_ties]
    false = last_of_ties + 1 - true
    return np.append(0, true), np.append(0, false)


def _roc_auc(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    areas = []
    positives, columns = _one_vs_rest(target, answers, rows)
    for positive, scores in zip(positives.T, columns.T, strict=True):
        if positive.any() and not positive.all():
            true, false = _curve(positive, scores)
            trapezoids = (true[1:] + true[:-1]) / 2 * np.diff(false)
            areas.append(trapezoids.sum() / (true[-1] * false[-1]))
    if not areas:
        raise UserError(
            "ROC AUC is undefined: the target has only one class; score rows of two or more"
        )
    return float(np.mean(areas))


def _average_precision(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    averages = []
    positives, columns = _one_vs_rest(target, answers, rows)
    for positive, scores in zip(positives.T, columns.T, strict=True):
        if positive.any():
            true, false = _curve(positive, scores)
            precision = true[1:] / (true[1:] + false[1:])
            averages.append((np.diff(true) * precision).sum() / true[-1])
    if not averages:
        raise UserError(
            "average precision is undefined: no row is positive; score rows of class 1 too"
        )
    return float(np.mean(averages))


def _eer(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    positive, scores = _one_vs_rest(target, answers, rows)
    if positive.shape[1] != 1:
        raise UserError(
            f"the equal error rate compares two classes, but the answers have shape "
            f"{answers.shape}: give one score a row, higher for class 1"
        )
    if positive.all() or not positive.any():
        raise UserError(
            "the equal error rate is undefined: the target has only one class; score rows of both"
        )
    true, false = _curve(positive[:, 0], scores[:, 0])
    accepted, rejected = false / false[-1], 1 - true / true[-1]  # FPR rises, FNR falls
    gap = accepted - rejected
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


_SLACK = 1e-2  # what half precision leaves of "probabilities sum to 1"; logits are further off


def _log_loss(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    return float(_log_losses(target, answers, rows).mean())


def _log_losses(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """(rows,) of -log(probability of the row's class)."""
    answers = answers.reshape(len(answers), -1)
    if answers.dtype.kind != "f":
        answers = answers.astype(np.float64)
    if answers.shape[1] == 1:
        answers = np.hstack([1 - answers, answers])
    classes = _columns_exist(_positions("target", target, rows), answers, rows)
    sums = answers.sum(1, dtype=np.float64)
    wrong = (abs(sums - 1) > _SLACK) | (answers.min(1) < -_SLACK)
    if wrong.any():
        position = _first(wrong)
        raise UserError(
            f"the answer of row {rows.index[position]} is no probability (sum "
            f"{sums[position]:.4g}, least {answers[position].min():.4g}): log loss wants one "
            "column a class that sum to 1"
        )
    least = np.finfo(answers.dtype).eps  # as scikit-learn clips
    chosen = answers[np.arange(len(classes)), classes].astype(np.float64)
    return -np.log(chosen.clip(least, 1 - least))


def _numbers(target: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (rows, outputs); (rows,) and (rows, 1) are the same thing."""
    target, answers = (part.reshape(len(part), -1).astype(np.float64) for part in (target, answers))
    return _same_shape(target, answers), answers


def _mse(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    target, answers = _numbers(target, answers)
    return float(np.mean((target - answers) ** 2))


def _rmse(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    return math.sqrt(_mse(target, answers, rows))


def _mae(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    target, answers = _numbers(target, answers)
    return float(np.mean(abs(target - answers)))


def _rmsle(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    target, answers = _numbers(target, answers)
    for what, values in (("target", target), ("answer", answers)):
        if (values <= -1).any():
            position = _first(values <= -1)
            raise UserError(
                f"the {what} of row {rows.index[position]} is {values[position].min():g}, but "
                "RMSLE wants numbers above -1: clip the answers at 0, or choose another metric"
            )
    return _rmse(np.log1p(target), np.log1p(answers), rows)


def _r2(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    target, answers = _numbers(target, answers)
    if len(target) < 2:
        raise UserError(f"R² of row {rows.index[0]} alone is undefined: score two rows or more")
    left = ((target - answers) ** 2).sum(0)
    spread = ((target - target.mean(0)) ** 2).sum(0)
    constant = spread == 0
    explained = 1 - left / np.where(constant, 1, spread)
    return float(np.where(constant, left == 0, explained).mean())


def _dice(target: np.ndarray, answers: np.ndarray, rows: pd.DataFrame) -> float:
    if target.ndim == 1:
        answers = answers.reshape(-1) if answers.size == len(target) else answers
    target = _mask("target", _same_shape(target, answers), rows)
    answers = _mask("answer", answers, rows)
    masks = (1, -1) if target.ndim == 1 else (len(target), -1)
    target, answers = target.reshape(masks), answers.reshape(masks)
    both = (target & answers).sum(1)
    sizes = target.sum(1) + answers.sum(1)
    return float(np.where(sizes == 0, 1, 2 * both / np.maximum(sizes, 1)).mean())


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above` / `below`, NaN where that is 0 / 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is no NaN; NaN where all are."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def _only(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def _hits(target: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """(rows, 1): whether the answer is right."""
    return (target.reshape(-1) == answers.reshape(-1))[:, None].astype(np.float64)


def _class_columns(target: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """(rows, 3 · classes): answered rightly, of it, answered as it; the means of `_counts`."""
    known = np.arange(classes)
    of_it = target.reshape(-1, 1) == known
    as_it = answers.reshape(-1, 1) == known
    return np.hstack([of_it & as_it, of_it, as_it]).astype(np.float64)


def _recall_of_means(means: np.ndarray) -> np.ndarray:
    hits, sizes, _ = np.split(means, 3, axis=-1)
    return _mean_of_known(_ratio(hits, sizes))


def _f1_of_means(means: np.ndarray) -> np.ndarray:
    hits, sizes, answered = np.split(means, 3, axis=-1)
    return _mean_of_known(_ratio(2 * hits, sizes + answered))


def _kappa_columns(target: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    t, a = (part.reshape(-1).astype(np.float64) for part in (target, answers))
    return np.stack([t, a, t**2, a**2, (t - a) ** 2], axis=1)


def _kappa_of_means(means: np.ndarray) -> np.ndarray:
    t, a, t2, a2, apart = np.moveaxis(means, -1, 0)
    return 1 - _ratio(apart, (t2 - t**2) + (a2 - a**2) + (t - a) ** 2)


def _log_loss_columns(target: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    return _log_losses(target, answers, pd.DataFrame(index=np.arange(len(target))))[:, None]


def _error_columns(power: int) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """(rows, 1): a row's mean absolute or squared error over its outputs."""

    def columns(target: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
        target, answers = _numbers(target, answers)
        return (abs(target - answers) ** power).mean(1)[:, None]

    return columns


def _rmsle_columns(target: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    target, answers = _numbers(target, answers)
    return ((np.log1p(target) - np.log1p(answers)) ** 2).mean(1)[:, None]


def _root(means: np.ndarray) -> np.ndarray:
    return np.sqrt(means[..., 0])


def _r2_columns(target: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Squared errors, and the target and its square about its mean: (rows, 3 · outputs)."""
    target, answers = _numbers(target, answers)
    middle = target - target.mean(0)  # else the difference of large squares loses all digits
    return np.hstack([(target - answers) ** 2, middle, middle**2])


def _r2_of_means(means: np.ndarray) -> np.ndarray:
    left, middle, square = np.split(means, 3, axis=-1)
    spread = np.maximum(square - middle**2, 0)
    constant = spread <= 1e-12 * square.max(initial=0)
    explained = 1 - left / np.where(constant, 1, spread)
    return np.where(constant, left == 0, explained).mean(-1)


def _dice_columns(target: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Each mask's own coefficient; of one mask whose pixels are the rows: both, either."""
    if target.ndim > 1:
        target, answers = (
            part.reshape(len(part), -1).astype(np.int64) for part in (target, answers)
        )
        both, sizes = (target * answers).sum(1), target.sum(1) + answers.sum(1)
        return np.where(sizes == 0, 1, 2 * both / np.maximum(sizes, 1))[:, None]
    target, answers = target.astype(np.float64), answers.reshape(-1).astype(np.float64)
    return np.stack([2 * target * answers, target + answers], axis=1)


def _dice_of_means(means: np.ndarray) -> np.ndarray:
    if means.shape[-1] == 1:
        return means[..., 0]
    return np.where(means[..., 1] == 0, 1.0, _ratio(means[..., 0], means[..., 1]))


accuracy = Metric("accuracy", _accuracy, True, Means(_hits, _only))
"""Share of rows whose class position is right; target and answers (rows,)."""

balanced_accuracy = Metric(
    "balanced_accuracy", _balanced_accuracy, True, Means(_class_columns, _recall_of_means)
)
"""Mean recall over the classes that the target has; target and answers (rows,)."""

macro_f1 = Metric("macro_f1", _macro_f1, True, Means(_class_columns, _f1_of_means))
"""Mean F1 over the classes that the target or the answers have; both (rows,)."""

micro_f1 = Metric("micro_f1", _accuracy, True, Means(_hits, _only))
"""F1 over all rows' decisions together; with one class a row that is the accuracy. Both (rows,)."""

quadratic_kappa = Metric(
    "quadratic_kappa", _quadratic_kappa, True, Means(_kappa_columns, _kappa_of_means)
)
"""Cohen's kappa with weights (i - j)², i and j being the class positions, both (rows,).

scikit-learn's with `labels=range(classes)`: a class that nobody uses still takes its place.
"""

log_loss = Metric("log_loss", _log_loss, False, Means(_log_loss_columns, _only))
"""Mean of -log(probability of the row's class); answers (rows, classes), or (rows,) for class 1.

Probabilities are clipped by their type's machine epsilon, as in scikit-learn. A class may be
missing in the target, never in the answers; rows that do not sum to 1 raise UserError.
"""

roc_auc = Metric("roc_auc", _roc_auc, greater_is_better=True)
"""Area under the ROC curve; ties count half.

Two classes: scores of class 1, (rows,) or (rows, 1), or (rows, 2), where the second column counts.
More: (rows, classes), each class against the rest, averaged over the classes that the target has.
A target (rows, labels) of 0 and 1: averaged over the labels that have both. One class alone raises.
"""

average_precision = Metric("average_precision", _average_precision, greater_is_better=True)
"""Sum of precision x gain in recall over falling thresholds, without interpolation.

Shapes as for `roc_auc`, averaged over the classes that the target has; no positive row raises.
"""

eer = Metric("eer", _eer, greater_is_better=False)
"""Equal error rate: where false positive rate = false negative rate as the threshold falls.

Between two thresholds the ROC curve is interpolated linearly. Scores (rows,), (rows, 1) or
(rows, 2), higher for class 1.
"""

mse = Metric("mse", _mse, False, Means(_error_columns(2), _only))
"""Mean squared error, plainly over all rows and outputs."""

rmse = Metric("rmse", _rmse, False, Means(_error_columns(2), _root))
"""Square root of `mse`: of the mean over all rows and outputs, not a mean of roots."""

mae = Metric("mae", _mae, False, Means(_error_columns(1), _only))
"""Mean absolute error, plainly over all rows and outputs."""

rmsle = Metric("rmsle", _rmsle, False, Means(_rmsle_columns, _root))
"""`rmse` of log(1 + target) and log(1 + answers); numbers of -1 or less raise UserError."""

r2 = Metric("r2", _r2, True, Means(_r2_columns, _r2_of_means))
"""Coefficient of determination, averaged uniformly over outputs.

An output whose target is constant counts 1 where every answer is right, else 0, as in scikit-learn.
"""

dice = Metric("dice", _dice, True, Means(_dice_columns, _dice_of_means))
"""2|A∩B| / (|A|+|B|) of masks of 0 and 1, (rows, ...), averaged over rows; 1 where both are empty.

A target of shape (rows,) is one mask whose pixels are the rows: the F1 score of class 1.
"""
