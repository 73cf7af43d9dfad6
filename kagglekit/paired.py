"""Statistics of several answers to the same rows: resampling, permutation, intervals, Holm.

Everything is deterministic: draws come from a fixed seed. A *unit* is what is resampled: a row,
a group of rows where folds keep groups together, or a time where they go forward in time: then
neighbours in time are drawn together, in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from . import blocks
from .blocks import Blocks
from .data import INDEPENDENT, Dependence
from .errors import UserError
from .metrics import Metric

Interval = tuple[float, float]

DRAWS = 1999  # so that both ends of a 95 % interval are a draw of their own
SLOW_DRAWS = 999  # where each draw calls the metric
MOST_BCA_UNITS = 5000  # above these the percentile interval is as good
_MOST_CELLS = 20_000  # rows beyond these are pooled at random, a few a cell, and cells resampled
_MOST_SLOW_ROWS = 5000  # of a draw that calls the metric; the spread of more follows from its root
_MOST_SWAPPED_ROWS = 2000  # of a permutation that calls the metric
_CHUNK = 1 << 23  # numbers of one block of draws
_BLOCKS = 100  # of the jackknife where each value calls the metric
_RARE = 10  # fewer draws than these beyond the observed say less than a normal tail


class Judged(Protocol):
    """Several runs' answers to the same rows, as scores of any resampling of these rows."""

    units: int
    blocks: Blocks | None  # in which units are drawn where they follow in time

    def whole(self) -> np.ndarray:
        """(runs,) scores of all rows."""
        ...

    def resampled(self, draws: int, seed: int, share: float = 1.0) -> np.ndarray:
        """(draws, runs) scores of units drawn with replacement, `share` times as many as are."""
        ...

    def jackknife(self) -> tuple[np.ndarray, np.ndarray]:
        """(values, runs) scores without one unit (or block of them), and how often each occurs."""
        ...

    def swapped(self, one: int, other: int, draws: int, seed: int) -> np.ndarray | None:
        """(draws,) differences of two runs whose units' answers are exchanged at random.

        None where that would take too long.
        """
        ...


def judged(
    metric: Metric,
    target: np.ndarray,
    answers: Sequence[np.ndarray],
    rows: pd.DataFrame,
    dependence: Dependence = INDEPENDENT,
) -> Judged:
    """Several decided answers (rows, ...) to one target; groups drawn whole, times in blocks."""
    if metric.means is not None:
        return _ByMeans(metric, target, answers, dependence)
    return _ByRows(metric, target, answers, rows, dependence)


# --- scores of resamplings ----------------------------------------------------------------------


class _ByMeans:
    """Scores that follow from means over rows: a draw is one row of a matrix product."""

    def __init__(
        self,
        metric: Metric,
        target: np.ndarray,
        answers: Sequence[np.ndarray],
        dependence: Dependence,
    ) -> None:
        assert metric.means is not None
        self.score = metric.means.score
        self.blocks, labels = _drawn_together(target, answers, dependence)
        target, answers, times = _distinct(target, answers, labels)
        whole = all(part.dtype.kind in "biu" for part in (target, *answers))
        classes = 1 + int(max(part.max() for part in (target, *answers))) if whole else 0
        columns = [metric.means.columns(target, part, classes) for part in answers]
        self.runs, self.width = len(columns), columns[0].shape[1]
        # (units, 1 + runs · width): the number of rows, then every run's sums
        table = np.hstack([np.ones((len(target), 1)), *columns])
        if labels is not None:
            table = _pooled(table, labels)
            times = np.ones(len(table), np.int64)
        elif len(table) > _MOST_CELLS:
            # a few rows a cell: independent draws of like size, so their sums spread alike
            cells = np.random.default_rng(0).permutation(np.arange(times.sum()) % _MOST_CELLS)
            table = _pooled(np.repeat(table, times, axis=0), cells)
            times = np.ones(len(table), np.int64)
        self.table, self.times = table, times
        self.units = int(times.sum())

    def _scores(self, sums: np.ndarray) -> np.ndarray:
        """(..., runs) from sums (..., 1 + runs · width)."""
        means = sums[..., 1:] / sums[..., :1]
        return self.score(means.reshape(*sums.shape[:-1], self.runs, self.width))

    def whole(self) -> np.ndarray:
        return self._scores(self.times @ self.table)

    def resampled(self, draws: int, seed: int, share: float = 1.0) -> np.ndarray:
        rng, size = np.random.default_rng(seed), max(1, round(share * self.units))
        counts = (self._counts(rng, part, size) for part in _parts(draws, len(self.table)))
        return np.concatenate([self._scores(part @ self.table) for part in counts])

    def _counts(self, rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
        """(draws, distinct units): how often each is drawn."""
        if self.blocks is not None:
            return self.blocks.counts(rng, draws, size)
        distinct = len(self.table)
        if distinct < self.units or size > 4 * distinct:
            return rng.multinomial(size, self.times / self.units, draws).astype(np.float64)
        drawn = rng.integers(0, distinct, (draws, size))
        drawn += np.arange(draws)[:, None] * distinct
        counts = np.bincount(drawn.ravel(), minlength=draws * distinct)
        return counts.reshape(draws, distinct).astype(np.float64)

    def jackknife(self) -> tuple[np.ndarray, np.ndarray]:
        sums = self.times @ self.table
        if self.blocks is None:
            return self._scores(sums - self.table), self.times
        pieces = _pooled(self.table, self.blocks.pieces)
        return self._scores(sums - pieces), np.ones(len(pieces), np.int64)

    def swapped(self, one: int, other: int, draws: int, seed: int) -> np.ndarray | None:
        rng = np.random.default_rng(seed)
        first, second = (self._of(run) for run in (one, other))
        apart, times = self.table[:, second] - self.table[:, first], self.times
        if self.blocks is not None:
            apart = _pooled(apart, self.blocks.pieces)
            times = np.ones(len(apart), np.int64)
        differ = apart.any(axis=1)
        apart, times = apart[differ], times[differ]
        sums = self.times @ self.table
        found = []
        for part in _parts(draws, len(apart)):
            if (times == 1).all():
                taken = rng.integers(0, 2, (part, len(times)), np.uint8).astype(np.float64)
            else:
                taken = rng.binomial(times, 0.5, (part, len(times))).astype(np.float64)
            moved = taken @ apart
            scores = [
                self.score((sums[run] + sign * moved) / sums[0])
                for run, sign in ((first, 1), (second, -1))
            ]
            found.append(scores[0] - scores[1])
        return np.concatenate(found)

    def _of(self, run: int) -> slice:
        return slice(1 + run * self.width, 1 + (run + 1) * self.width)


class _ByRows:
    """Scores of any metric: each draw calls it."""

    def __init__(
        self,
        metric: Metric,
        target: np.ndarray,
        answers: Sequence[np.ndarray],
        rows: pd.DataFrame,
        dependence: Dependence,
    ) -> None:
        self.metric, self.target, self.answers, self.rows = metric, target, answers, rows
        self.blocks, labels = _drawn_together(target, answers, dependence)
        self.members = _rows_of(np.arange(len(target)) if labels is None else labels)
        self.units = len(self.members)

    def _score(self, answers: np.ndarray, at: np.ndarray) -> float:
        try:
            return float(self.metric.score(self.target[at], answers[at], self.rows.iloc[at]))
        except UserError:  # a class that no drawn row has, as AUC needs both
            return math.nan

    def whole(self) -> np.ndarray:
        everything = np.arange(len(self.target))
        return np.array([self._score(part, everything) for part in self.answers])

    def resampled(self, draws: int, seed: int, share: float = 1.0) -> np.ndarray:
        rng, size = np.random.default_rng(seed), max(1, round(share * self.units))
        drawn = min(size, max(1, round(_MOST_SLOW_ROWS * self.units / len(self.target))))
        scores = np.array([self._draw(rng, drawn) for _ in range(draws)])
        whole = self.whole()
        return whole + (scores - whole) * math.sqrt(drawn / size)  # m out of n, scaled

    def _draw(self, rng: np.random.Generator, size: int) -> list[float]:
        if self.blocks is not None:
            at = self._rows(self.blocks.positions(rng, size))
        else:
            units = rng.integers(0, self.units, size)
            at = units if self.units == len(self.target) else self._rows(units)
        return [self._score(part, at) for part in self.answers]

    def _rows(self, units: np.ndarray) -> np.ndarray:
        return np.concatenate([self.members[unit] for unit in units])

    def jackknife(self) -> tuple[np.ndarray, np.ndarray]:
        order, most = np.random.default_rng(0).permutation(self.units), _BLOCKS
        if self.blocks is not None:
            order, most = np.arange(self.units), min(most, int(self.blocks.pieces[-1]) + 1)
        blocks = np.array_split(order, most)
        kept = np.ones(len(self.target), bool)
        values = []
        for block in (block for block in blocks if len(block)):
            kept[self._rows(block)] = False
            at = np.flatnonzero(kept)
            values.append([self._score(part, at) for part in self.answers])
            kept[:] = True
        return np.array(values), np.ones(len(values), np.int64)

    def swapped(self, one: int, other: int, draws: int, seed: int) -> np.ndarray | None:
        if len(self.target) > _MOST_SWAPPED_ROWS:
            return None
        rng, everything = np.random.default_rng(seed), np.arange(len(self.target))
        first, second = self.answers[one], self.answers[other]
        pieces = np.arange(self.units) if self.blocks is None else self.blocks.pieces
        found = []
        for _ in range(min(draws, SLOW_DRAWS)):
            taken = rng.integers(0, 2, int(pieces[-1]) + 1)[pieces]
            at = self._rows(np.flatnonzero(taken))
            left, right = first.copy(), second.copy()
            left[at], right[at] = second[at], first[at]
            found.append(self._score(left, everything) - self._score(right, everything))
        return np.array(found)


def _drawn_together(
    target: np.ndarray, answers: Sequence[np.ndarray], dependence: Dependence
) -> tuple[Blocks | None, np.ndarray | None]:
    """Blocks of the units where they follow in time, and each row's unit where it is not alone."""
    moments = dependence.moments
    if moments is None:
        return None, dependence.groups
    times = math.ceil((int(moments.max()) + 1) / _MOST_CELLS)  # a few neighbours a unit
    losses = [_losses(target, part) for part in answers]
    return blocks.of(losses, moments // times, times), moments // times


def _losses(target: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(rows,) how wrong each answer is, in no unit: enough to see how time carries errors on."""
    if answers.size == target.size:
        wrong = answers.reshape(len(target), -1) - target.reshape(len(target), -1).astype(float)
        return np.asarray((wrong != 0) if answers.dtype.kind in "biu" else abs(wrong)).mean(axis=1)
    if target.ndim == 1 and target.dtype.kind in "iu" and answers.ndim == 2:
        return -answers[np.arange(len(target)), target].astype(float)
    return answers.reshape(len(target), -1).mean(axis=1)


def _distinct(
    target: np.ndarray, answers: Sequence[np.ndarray], groups: np.ndarray | None
) -> tuple[np.ndarray, Sequence[np.ndarray], np.ndarray]:
    """Decided classes that rows share, once each, and how many rows share them."""
    once = np.ones(len(target), np.int64)
    parts = [part.reshape(-1) for part in (target, *answers) if part.size == len(target)]
    labels = len(parts) == 1 + len(answers) and all(part.dtype.kind in "biu" for part in parts)
    if groups is not None or not labels:
        return target, answers, once
    found, times = np.unique(np.stack(parts, axis=1), axis=0, return_counts=True)
    return found[:, 0], list(found[:, 1:].T), times


def _pooled(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sums of the rows that share a label, in the labels' order."""
    order = np.argsort(labels, kind="stable")
    first = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return np.add.reduceat(table[order], first, axis=0)


def _rows_of(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _parts(draws: int, width: int) -> Iterator[int]:
    """`draws` in blocks that fit in memory."""
    block = max(1, _CHUNK // max(width, 1))
    for begun in range(0, draws, block):
        yield min(block, draws - begun)


# --- a difference -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far one run is ahead of another; positive is better.

    `probability` is that of being ahead, `p` of so large a difference if they were equally good.
    """

    effect: float
    interval: Interval  # at 95 %
    probability: float
    p: float
    method: str


def difference(
    scores: Judged, one: int, other: int, greater_is_better: bool, drawn: np.ndarray | None = None
) -> Difference:
    """Run `one` against run `other` of `scores`; `drawn` are its `resampled` scores, if at hand.

    Interval and probability by the paired bootstrap, BCa (Efron 1987,
    doi:10.1080/01621459.1987.10478410) for up to 5,000 units and the percentiles above; p by the
    paired permutation test (Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses,
    ch. 3), where that takes too long by the bootstrap's normal tail. Where units follow in time,
    `blocks` of neighbours are resampled, left out and exchanged instead of single units.
    """
    effect, interval, probability = gain(scores, one, other, greater_is_better, drawn)
    if interval[0] == interval[1]:
        return Difference(effect, interval, probability, 1.0, "no row differs")
    moved = scores.swapped(one, other, DRAWS, seed=1)
    p = _spread_p(effect, interval) if moved is None else _permutation_p(effect, moved)
    kind = "BCa" if scores.units <= MOST_BCA_UNITS else "percentile"
    tail = "normal tail" if moved is None else "permutation test"
    if scores.blocks is None:
        return Difference(effect, interval, probability, p, f"{kind} bootstrap, {tail}")
    method = f"{kind} circular block bootstrap, {tail}, blocks of {scores.blocks.span} times"
    return Difference(effect, interval, probability, p, method)


def gain(
    scores: Judged, one: int, other: int, greater_is_better: bool, drawn: np.ndarray | None = None
) -> tuple[float, Interval, float]:
    """How far run `one` is ahead, with its 95 % interval and the probability that it is ahead."""
    sign = 1.0 if greater_is_better else -1.0
    if drawn is None:
        drawn = bootstrap(scores)
    whole = scores.whole()
    effect = sign * float(whole[one] - whole[other])
    found = sign * (drawn[:, one] - drawn[:, other])
    found = np.sort(found[np.isfinite(found)])
    if len(found) < 2 or np.ptp(found) == 0:
        return effect, (effect, effect), 0.5 if effect == 0 else float(effect > 0)
    z0 = acceleration = 0.0
    if scores.units <= MOST_BCA_UNITS:
        z0 = _bias(found, effect)
        acceleration = sign * _acceleration(scores, one, other)
    interval = _interval(found, z0, acceleration, _reach(pieces(scores)))
    return effect, interval, float(np.mean(found > 0) + np.mean(found == 0) / 2)


def bootstrap(scores: Judged) -> np.ndarray:
    """(draws, runs): the draws that `difference` and `score_interval` share."""
    return scores.resampled(SLOW_DRAWS if isinstance(scores, _ByRows) else DRAWS, seed=0)


def score_interval(drawn: np.ndarray) -> Interval | None:
    """95 % interval of one run's score from its resampled scores; None where there is none."""
    known = np.sort(drawn[np.isfinite(drawn)])
    return _interval(known, 0.0, 0.0, _Z) if len(known) > 1 else None


def _bias(found: np.ndarray, effect: float) -> float:
    below = np.mean(found < effect) + np.mean(found == effect) / 2
    least = 1 / (len(found) + 1)
    return _quantile(float(np.clip(below, least, 1 - least)))


def _acceleration(scores: Judged, one: int, other: int) -> float:
    values, times = scores.jackknife()
    kept = values[:, one] - values[:, other]
    known = np.isfinite(kept)
    kept, times = kept[known], times[known]
    apart = (times @ kept) / times.sum() - kept
    square = times @ apart**2
    return float(times @ apart**3 / (6 * square**1.5)) if square > 0 else 0.0


def pieces(scores: Judged) -> int:
    """How many pieces of evidence there are: units, or blocks of them."""
    return scores.units if scores.blocks is None else int(scores.blocks.pieces[-1]) + 1


def _reach(units: int) -> float:
    """1.96, widened for few units as Student's t is (Hesterberg 2015, arXiv:1411.5279)."""
    from scipy.special import stdtrit

    units = max(units, 2)
    return float(stdtrit(units - 1, 0.975)) * math.sqrt(units / (units - 1))


def _interval(found: np.ndarray, z0: float, acceleration: float, reach: float) -> Interval:
    ends = []
    for z in (-reach, reach):
        shifted = z0 + z
        level = _cumulative(z0 + shifted / max(1 - acceleration * shifted, 1e-3))
        at = np.clip(level * (len(found) + 1) - 1, 0, len(found) - 1)
        ends.append(float(np.interp(at, np.arange(len(found)), found)))
    return ends[0], ends[1]


def _permutation_p(effect: float, moved: np.ndarray) -> float:
    """Two-sided, the observed arrangement counted among the draws."""
    moved = moved[np.isfinite(moved)]
    if not len(moved):
        return 1.0
    slack = 1e-12 * max(abs(effect), float(abs(moved).max()))
    beyond = int((abs(moved) >= abs(effect) - slack).sum())
    p = (1 + beyond) / (1 + len(moved))
    return min(p, _normal_p(effect, moved)) if beyond < _RARE else p


def _normal_p(effect: float, found: np.ndarray) -> float:
    deviation = float(found.std(ddof=1)) if len(found) > 1 else 0.0
    if deviation == 0:
        return 1.0
    return math.erfc(abs(effect) / deviation / math.sqrt(2))


_Z = 1.959963984540054


def _spread_p(effect: float, interval: Interval) -> float:
    """By a normal distribution that is as wide as the interval."""
    deviation = (interval[1] - interval[0]) / 2 / _Z
    return math.erfc(abs(effect) / deviation / math.sqrt(2))


def _cumulative(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def _quantile(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))


# --- many differences, and repeats --------------------------------------------------------------


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, Scand. J. Statist. 6, 65-70)."""
    adjusted, largest = [1.0] * len(values), 0.0
    for rank, position in enumerate(np.argsort(values, kind="stable")):
        largest = max(largest, min(1.0, (len(values) - rank) * values[position]))
        adjusted[position] = largest
    return adjusted


def repeated(differences: np.ndarray, ratio: float) -> Difference | None:
    """The corrected resampled t-test over folds and seeds; None for fewer than two differences.

    `differences` (members,) are scores of one run less the other's, each of the same fold and
    seed, positive where the first is better; `ratio` is validation rows over training rows. The
    members' training rows overlap, so the variance of their mean is not s²/J but (1/J + ratio) s²
    (Nadeau and Bengio 2003, doi:10.1023/A:1024068626366). The probability is that of Corani and
    Benavoli 2015, doi:10.1007/s10994-015-5486-z: the same t distribution, read as a posterior.
    """
    count = len(differences)
    if count < 2:
        return None
    from scipy.special import stdtr, stdtrit

    effect = float(differences.mean())
    error = math.sqrt((1 / count + ratio) * float(differences.var(ddof=1)))
    if error == 0:
        certain = 0.5 if effect == 0 else float(effect > 0)
        p = 1.0 if effect == 0 else 0.0
        return Difference(effect, (effect, effect), certain, p, _CORRECTED)
    reach = float(stdtrit(count - 1, 0.975)) * error
    p = 2 * float(stdtr(count - 1, -abs(effect) / error))
    probability = float(stdtr(count - 1, effect / error))
    return Difference(effect, (effect - reach, effect + reach), probability, p, _CORRECTED)


_CORRECTED = "corrected resampled t-test"


def members_needed(differences: np.ndarray, ratio: float, level: float, most: int) -> int | None:
    """How many differences like these would make the t-test's p at most `level`.

    None where more than `most` would be needed: the training rows that members share bound it.
    """
    from scipy.special import stdtr

    effect, deviation = abs(float(differences.mean())), float(differences.std(ddof=1))
    if deviation == 0:
        return len(differences) if effect else None
    counts = np.arange(2, most + 1)
    errors = deviation * np.sqrt(1 / counts + ratio)
    enough = np.asarray(2 * stdtr(counts - 1, -effect / errors)) <= level
    return int(counts[int(enough.argmax())]) if enough.any() else None


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of independent values by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return mean - reach, mean + reach


def standard_error(scores: Judged, one: int, other: int) -> float:
    """Of the difference of two runs' scores as a sample of units, by the jackknife (Tukey 1958)."""
    values, times = scores.jackknife()
    kept = values[:, one] - values[:, other]
    known = np.isfinite(kept)
    kept, times = kept[known], times[known]
    count = int(times.sum())
    if count < 2:
        return 0.0
    apart = kept - (times @ kept) / count
    return math.sqrt((count - 1) / count * float(times @ apart**2))
