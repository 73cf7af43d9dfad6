"""How well cheap learners do with what should tell nothing: names, sizes, order, origin, groups."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .randomness import derive

MOST_ROWS = 5000  # of which a cheap learner sees no more

_FOLDS = 5
_SURE = 4.0  # standard errors; chance is further off in one of 30,000 looks
_TREES = 24
_PARTS = 10  # stretches of rows in their order that stand for all
_PERIODS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)  # of labels that take turns
_ENDS = 4  # letters at either end of a name


@dataclass(frozen=True)
class Score:
    """What rows that were held out say of a cheap learner.

    | kind | value | chance |
    |---|---|---|
    | balanced accuracy | mean over classes of the share found | 1 / classes |
    | R² of ranks | share of the variance of the target's ranks | 0 |
    | AUC | probability that a test row ranks above a training row | 0.5 |
    | accuracy, R² | as they are | |
    """

    kind: str
    value: float
    error: float  # standard error
    chance: float
    rows: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by the normal approximation, cut at the best score that there is."""
        half = 1.96 * self.error
        return self.value - half, min(self.value + half, 1.0)

    @property
    def tells(self) -> bool:
        """Whether it beats chance beyond doubt."""
        return self.value - _SURE * self.error > self.chance

    @property
    def share(self) -> float:
        """How far the value is from chance to perfection, 0…1."""
        return max(0.0, (self.value - self.chance) / (1 - self.chance))


@dataclass(frozen=True)
class Known:
    """Rows whose target is known."""

    features: np.ndarray  # (rows, numbers)
    target: np.ndarray  # (rows,) class positions, or numbers, (rows,) or (rows, outputs)
    classes: int  # 0 for numbers
    groups: np.ndarray | None = None  # (rows,) numbers: what is never parted by a fold

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.features)

    def take(self, rows: np.ndarray) -> Known:
        """These rows alone."""
        groups = None if self.groups is None else self.groups[rows]
        return Known(self.features[rows], self.target[rows], self.classes, groups)


def stretches(rows: int, most: int = MOST_ROWS) -> np.ndarray:
    """Positions of at most `most` of so many rows, in stretches that keep their order whole."""
    if rows <= most:
        return np.arange(rows)
    length = most // _PARTS
    starts = np.linspace(0, rows - length, _PARTS).astype(np.int64)
    return (starts[:, None] + np.arange(length)).ravel()


def of_names(names: Sequence[str]) -> np.ndarray:
    """Numbers that say how names are written, (rows, numbers): lengths, digits, first and last."""
    rows = []
    for name in names:
        stem = name.rsplit(".", 1)[0] if "." in name else name
        digits = re.findall(r"\d+", stem)
        last = float(digits[-1][-15:]) if digits else -1.0
        padded = stem.ljust(_ENDS)[:_ENDS] + stem.rjust(_ENDS)[-_ENDS:]
        counts = (len(name), len(digits), sum(map(str.isdigit, stem)), sum(map(str.isupper, stem)))
        rows.append([*counts, last, *map(ord, padded)])
    return np.array(rows, np.float64).reshape(len(rows), -1)


def of_order(positions: np.ndarray) -> np.ndarray:
    """Numbers that say where rows stand, (rows, numbers): the place, and it modulo small ones."""
    columns = [positions, *(positions % period for period in _PERIODS)]
    return np.stack(columns, 1).astype(np.float64)


def predicts(known: Known, seed: int = 0) -> Score | None:
    """How well trees tell the target from the features, cross-validated.

    Numbers are ranked; of several outputs the best told counts. None where there is nothing to tell
    or to tell it by.
    """
    varying = np.flatnonzero(known.features.std(0) > 0) if len(known) else np.zeros(0, np.int64)
    if not len(varying) or not _enough(known):
        return None
    known = replace(known, features=known.features[:, varying])
    if not known.classes:
        return _of_numbers(known, seed)
    sizes = np.bincount(known.target, minlength=known.classes)
    known = known.take(np.flatnonzero(sizes[known.target] >= _FOLDS))
    names, codes = np.unique(known.target, return_inverse=True)
    if len(names) < 2 or not _enough(known):
        return None
    asked = replace(known, target=codes, classes=len(names))
    return _balanced(asked, _answers(_forest(True, seed), asked, seed))


def _enough(known: Known) -> bool:
    groups = len(known) if known.groups is None else len(np.unique(known.groups))
    return len(known) >= 4 * _FOLDS and groups >= 2 * _FOLDS


def _of_numbers(known: Known, seed: int) -> Score | None:
    scores = []
    for column in known.target.reshape(len(known), -1).T:
        if np.ptp(column) > 0:
            asked = replace(known, target=column.argsort().argsort() / (len(column) - 1))
            scores.append(_variance(asked, _answers(_forest(False, seed), asked, seed)))
    return max(scores, key=lambda score: score.value - _SURE * score.error, default=None)


def told_apart(
    train: np.ndarray, test: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> Score | None:
    """How well trees tell test rows from training rows, (rows, numbers) each: adversarial
    validation, as the mean of the AUC of five folds.

    `groups` are (train and test rows,) numbers; rows that share one are never parted. The standard
    error is Hanley and McNeil's (1982, doi:10.1148/radiology.143.1.7063747), or that of the folds'
    mean where that is larger. None where there are too few rows, or no features.
    """
    rng = np.random.default_rng(derive(seed, "told apart"))
    rows = np.concatenate([_drawn(len(train), rng), len(train) + _drawn(len(test), rng)])
    origin = (rows >= len(train)).astype(np.int64)
    features = np.concatenate([train, test])[rows]
    known = Known(features, origin, 2, None if groups is None else groups[rows])
    if not _enough(known) or min(np.bincount(origin, minlength=2)) < 2 * _FOLDS:
        return None
    aucs, errors = [], []
    for learnt, held in _folds(known, seed):
        if np.ptp(origin[held]) and np.ptp(origin[learnt]):
            model = _forest(True, seed).fit(features[learnt], origin[learnt])
            auc, error = area(model.predict_proba(features[held])[:, 1], origin[held] == 1)
            aucs.append(auc)
            errors.append(error)
    if len(aucs) < 2:
        return None
    within = math.sqrt(sum(error**2 for error in errors)) / len(errors)
    between = float(np.std(aucs, ddof=1)) / math.sqrt(len(aucs)) if groups is not None else 0.0
    return Score("AUC", float(np.mean(aucs)), max(within, between), 0.5, len(origin))


def area(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve, ties counted half, and its standard error."""
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    yes, no = int(positive.sum()), int((~positive).sum())
    auc = (float(ranks[positive].sum()) - yes * (yes + 1) / 2) / (yes * no)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (yes - 1) * (q1 - auc**2) + (no - 1) * (q2 - auc**2)
    return auc, math.sqrt(max(variance, 0.0) / (yes * no))


def most_shifted(train: np.ndarray, test: np.ndarray) -> list[tuple[int, float]]:
    """Columns that alone tell test from train, with their AUC, the most telling first."""
    found = []
    for number in range(train.shape[1]):
        values = np.concatenate([train[:, number], test[:, number]])
        auc, error = area(values, np.arange(len(values)) >= len(train))
        if abs(auc - 0.5) > _SURE * max(error, 1e-9):
            found.append((number, max(auc, 1 - auc)))
    return sorted(found, key=lambda item: -item[1])


# --- with and without groups --------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """CV score of one cheap learner, with rows of a group apart and with groups kept together."""

    shuffled: Score
    grouped: Score
    difference: float  # how much higher the shuffled score is
    error: float  # of the difference, from whole groups drawn again

    @property
    def matters(self) -> bool:
        """Whether the shuffled score is too good beyond doubt."""
        return self.difference > 2.5 * self.error and self.difference > 0.002


def gap(known: Known, seed: int = 0) -> Gap | None:
    """The scores of a linear classifier or ridge regression, with and without `known.groups`.

    Several outputs are judged by their mean R². None where there are too few groups or rows.
    """
    known = known.take(_drawn(len(known), np.random.default_rng(derive(seed, "gap"))))
    if known.groups is None or not known.features.size or not _enough(known):
        return None
    if known.classes and np.bincount(known.target)[np.unique(known.target)].min() < _FOLDS:
        return None
    ways = []
    for asked in (replace(known, groups=None), known):
        rounds = [_right(known, _answers(_linear(known), asked, seed + i)) for i in range(2)]
        ways.append(np.mean(rounds, axis=0))
    kind = "accuracy" if known.classes else "R²"
    shuffled, grouped = (
        Score(kind, float(way.mean()), _clustered(way, known.groups), 0.0, len(way)) for way in ways
    )
    lost = ways[0] - ways[1]
    return Gap(shuffled, grouped, float(lost.mean()), _clustered(lost, known.groups))


def _right(known: Known, answers: np.ndarray) -> np.ndarray:
    """How right each answer is, (rows,), so that the mean is accuracy or R²."""
    if known.classes:
        return (known.target == answers).astype(np.float64)
    target = known.target.reshape(len(known), -1)
    wrong = (target - answers.reshape(target.shape)) ** 2
    return 1 - (wrong / np.maximum(target.var(0), 1e-300)).mean(1)


def _clustered(values: np.ndarray, groups: np.ndarray | None) -> float:
    """Standard error of the mean of `values`, whose groups are independent and rows in one not."""
    codes = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(codes, values - values.mean())
    count = len(sums)
    return float(math.sqrt((sums**2).sum() * count / max(1, count - 1)) / len(values))


# --- cheap learners -----------------------------------------------------------------------------


def _forest(classifies: bool, seed: int) -> Any:
    """Trees that find thresholds, blocks and single values alike, without being told a scale."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    shared: dict[str, Any] = {
        "n_estimators": _TREES, "min_samples_leaf": 3, "max_features": None,
        "random_state": _seed(seed, "forest"),
    }  # fmt: skip
    if classifies:
        return ExtraTreesClassifier(class_weight="balanced", **shared)
    return ExtraTreesRegressor(**shared)


def _linear(known: Known) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    return LogisticRegression(C=0.1, max_iter=200) if known.classes else Ridge(1.0)


def _answers(model: Any, known: Known, seed: int) -> np.ndarray:
    """Every row's answer by `model` fitted to the other folds, shaped as the target."""
    from sklearn.base import clone

    answers = np.zeros(known.target.shape, np.int64 if known.classes else np.float64)
    with _quiet():
        for learnt, held in _folds(known, seed):
            fitted = clone(model).fit(known.features[learnt], known.target[learnt])
            # scikit-learn drops the axis of a single output
            answers[held] = fitted.predict(known.features[held]).reshape(answers[held].shape)
    return answers


def _folds(known: Known, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    if known.groups is None:
        rule = StratifiedKFold if known.classes else KFold
    else:
        rule = StratifiedGroupKFold if known.classes else GroupKFold
    splitter = rule(_FOLDS, shuffle=True, random_state=_seed(seed, "folds"))
    with _quiet():
        target = known.target if known.classes else None
        drawn = list(splitter.split(known.features, target, known.groups))
    yield from drawn


@contextmanager
def _quiet() -> Iterator[None]:
    """A cheap learner need not have converged, and a fold may lack a class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _seed(seed: int, purpose: str) -> int:
    return derive(seed, purpose) % 2**32  # scikit-learn takes no more


def _drawn(rows: int, rng: np.random.Generator) -> np.ndarray:
    if rows <= MOST_ROWS:
        return np.arange(rows)
    return np.sort(rng.choice(rows, MOST_ROWS, replace=False))


# --- scores -------------------------------------------------------------------------------------


def _balanced(known: Known, answers: np.ndarray) -> Score:
    sizes = np.bincount(known.target, minlength=known.classes)
    right = (answers == known.target).astype(np.float64)
    shares = np.bincount(known.target, right, known.classes) / sizes
    # how far each row moves the mean over classes, for the error; its own mean is zero
    pulls = (right - shares[known.target]) * len(known) / (known.classes * sizes[known.target])
    # as of one more row of each kind, so that no few rows are taken for certainty
    softer = (shares * sizes + 1) / (sizes + 2)
    least = math.sqrt(float((softer * (1 - softer) / sizes).sum())) / known.classes
    error = max(_clustered(pulls, known.groups), least)
    return Score("balanced accuracy", float(shares.mean()), error, 1 / known.classes, len(known))


def _variance(known: Known, answers: np.ndarray) -> Score:
    squares = (known.target - known.target.mean()) ** 2
    gained = (squares - (known.target - answers) ** 2) / squares.mean()
    error = _clustered(gained, known.groups)
    return Score("R² of ranks", float(gained.mean()), error, 0.0, len(gained))
