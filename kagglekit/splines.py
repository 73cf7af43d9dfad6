"""Regression on one input by a spline that finds its order, its smoothing and its breaks itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import (
    BSpline,
    make_interp_spline,
    make_lsq_spline,
    make_smoothing_spline,
)
from scipy.optimize import brentq, minimize_scalar

Array = NDArray[np.float64]
State = dict[str, NDArray[Any]]


class _Points(NamedTuple):
    """Sorted distinct abscissae, the mean ordinate at each, and how many rows it stands for."""

    x: Array
    y: Array
    weight: Array

    def take(self, rows: NDArray[Any] | slice) -> _Points:
        return _Points(self.x[rows], self.y[rows], self.weight[rows])


class _Segment(NamedTuple):
    """A spline that answers on [low, high)."""

    low: float
    high: float
    spline: BSpline


_UNLIMITED = 2**31  # knots
_Criterion = Callable[[float, int, int], float]  # (residual sum of squares, rows, parameters)


class _Break(NamedTuple):
    """A place where a regression spline may jump or, where it is no jump, bend."""

    place: float
    jump: bool


@dataclass(frozen=True)
class Spline:
    """Piecewise spline of one variable, for rows with or without noise.

    Whether there is noise is decided first: does smoothing by local polynomials predict rows better
    than interpolation by them does?

    *Exact rows* are interpolated. A break (jump, kink, any lost smoothness) is assumed in a gap
    between two rows where splines fitted to either side alone have much smaller held-out errors
    than one spline through both; their logs are compared, and `gain` says how much is enough. Each
    piece takes the degree with the least held-out error. It is continued past its ends, and into a
    gap with a break, by polynomials whose degree predicted each of the rows near that end best
    from those before it. Two pieces meet where they cross; where they do not, the answer is the
    mean over all places that the jump may have.

    *Noisy rows* get a least-squares spline with knots at quantiles, their number and the degree by
    generalised cross-validation (Craven and Wahba 1979, doi:10.1007/BF01404567). Breaks are
    knots of higher multiplicity, kept where they lower Schwarz' criterion (Yao 1988,
    doi:10.1016/0167-7152(88)90118-6), each place counting three parameters as in MARS (Friedman
    1991, doi:10.1214/aos/1176347963), unless a spline without breaks, or with a roughness penalty,
    predicts held-out rows better.
    """

    degrees: tuple[int, ...] = (1, 3, 5, 7, 9, 11, 13)  # of interpolation
    folds: int = 5  # of the inner cross-validation
    gain: float = 7.0  # standard errors by which a break must lower log errors of exact rows
    fewest_rows: int = 12  # between two breaks
    most_breaks: int = 30

    def fit(self, x: Array, y: Array, seed: int = 0) -> State:
        """Fit (rows, 1) to each column of (rows, outputs); the rows may be in any order.

        Raises ValueError for more than one input.
        """
        if x.ndim != 2 or x.shape[1] != 1:
            raise ValueError(f"a spline takes (rows, 1) inputs, not {x.shape}")
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return _packed([self._segments(_points(x[:, 0], column), seed) for column in y.T])

    def predict(self, state: State, x: Array) -> Array:
        """(rows, outputs) for (rows, 1)."""
        place = np.asarray(x, np.float64)[:, 0]
        answers = np.zeros((len(place), int(state["outputs"])))
        for output, segment in _unpacked(state):
            here = (place >= segment.low) & (place < segment.high)
            answers[here, output] = segment.spline(place[here])
        return answers

    def _segments(self, points: _Points, seed: int) -> list[_Segment]:
        if len(points.x) == 1:
            return [_Segment(-np.inf, np.inf, _constant(points))]
        if len(points.x) < 4:
            return _joined([_Piece.through(points, 1, self.degrees)])
        fold = np.random.default_rng(seed).permutation(len(points.x)) % self.folds
        if _is_noisy(points):
            return _Regression(points, self).segments(fold)
        search = _ExactBreaks(points, self, fold)
        edges = [0, *search.breaks(), len(points.x)]
        pieces = [
            _Piece.through(points.take(slice(*ends)), search.degree(*ends), self.degrees)
            for ends in pairwise(edges)
        ]
        return _joined(pieces)


def _points(x: Array, y: Array) -> _Points:
    """Sort by x and merge rows of equal x into their mean."""
    distinct, which = np.unique(x, return_inverse=True)
    count = np.bincount(which).astype(np.float64)
    return _Points(distinct, np.bincount(which, weights=y) / count, count)


def _constant(points: _Points) -> BSpline:
    ends = np.array([points.x[0], points.x[0] + 1.0])
    return BSpline(ends, np.array([np.average(points.y, weights=points.weight)]), 0)


# --- exact rows ---------------------------------------------------------------------------------


def _interpolating(points: _Points, degree: int) -> BSpline:
    return make_interp_spline(points.x, points.y, k=min(degree, len(points.x) - 1))


def _continued(points: _Points, degrees: Iterable[int], upwards: bool) -> BSpline:
    """The polynomial through the outermost rows that continues a piece past its upper or lower end.

    The highest order is seldom right out there, and held-out ends are too few to tell: so each of
    the rows near that end is predicted from those just inside of it, and the best degree is taken.
    """
    x, y = (points.x, points.y) if upwards else (points.x[::-1], points.y[::-1])
    largest = min(max(degrees), len(x) - 1)
    errors = [_step_error(x, y, degree) for degree in range(1, largest + 1)]
    outermost = slice(-1 - (1 + int(np.argmin(errors))), None)
    ends = np.argsort(x[outermost])
    return _interpolating(
        _Points(x[outermost][ends], y[outermost][ends], points.weight), len(ends) - 1
    )


def _step_error(x: Array, y: Array, degree: int) -> float:
    """RMS error of predicting each of the last rows from the `degree` + 1 before it."""
    if len(x) < degree + 3:  # with a single trial the luckiest degree would win
        return np.inf if degree > 1 else 0.0
    windows = np.lib.stride_tricks.sliding_window_view(x, degree + 2)[-_NEAR:]
    values = np.lib.stride_tricks.sliding_window_view(y, degree + 2)[-_NEAR:]
    known, next_one = windows[:, :-1], windows[:, -1:]
    # Lagrange: the basis polynomial of each known row at the next one
    between = known[:, :, None] - known[:, None, :] + np.eye(degree + 1)
    ahead = next_one - known
    basis = ahead.prod(1, keepdims=True) / ahead / between.prod(2)
    error = (basis * values[:, :-1]).sum(1) - values[:, -1]
    return float(np.sqrt(np.mean(error**2)))


def _held_out(points: _Points, degree: int, fold: NDArray[np.int64]) -> Array:
    """(rows,) errors of interpolation at rows that it did not see."""
    errors = np.full(len(points.x), np.inf)
    for number in np.unique(fold):
        held = fold == number
        kept = points.take(~held)
        if len(kept.x) < 2:
            continue
        x = points.x[held]
        answers = _interpolating(kept, degree)(x)
        for beyond, upwards in ((x < kept.x[0], False), (x > kept.x[-1], True)):
            if beyond.any():
                answers[beyond] = _continued(kept, (degree,), upwards)(x[beyond])
        errors[held] = answers - points.y[held]
    return errors


class _Piece(NamedTuple):
    """An interpolating spline between two breaks and its continuation on either side."""

    points: _Points
    inside: BSpline
    below: BSpline
    above: BSpline

    @staticmethod
    def through(points: _Points, degree: int, degrees: Sequence[int]) -> _Piece:
        ends = [_continued(points, degrees, upwards) for upwards in (False, True)]
        return _Piece(points, _interpolating(points, degree), *ends)

    def segments(self, low: float, high: float) -> list[_Segment]:
        """Line, continuation, spline, continuation, line: those parts that [low, high) has."""
        x = self.points.x
        margin = _TRUSTED_GAPS * (x[-1] - x[0]) / (len(x) - 1)
        edges = [-np.inf, x[0] - margin, x[0], x[-1], x[-1] + margin, np.inf]
        below, above = _tangent(self.below, edges[1]), _tangent(self.above, edges[4])
        splines = [below, self.below, self.inside, self.above, above]
        return [
            _Segment(max(start, low), min(stop, high), spline)
            for (start, stop), spline in zip(pairwise(edges), splines, strict=True)
            if max(start, low) < min(stop, high)
        ]


def _tangent(spline: BSpline, at: float) -> BSpline:
    """The straight line that goes on from a spline at a point."""
    value, slope = float(spline(at)), float(spline(at, nu=1)) if spline.k else 0.0
    step = max(abs(at), 1.0)
    knots = np.array([at, at, at + step, at + step])
    return BSpline(knots, np.array([value, value + slope * step]), 1)


def _joined(pieces: Sequence[_Piece]) -> list[_Segment]:
    """All pieces side by side, each up to where it meets the next."""
    segments: list[_Segment] = []
    low = -np.inf
    for left, right in pairwise(pieces):
        gap = float(left.points.x[-1]), float(right.points.x[0])
        place = _crossing(left.above, right.below, gap)
        ends = gap if place is None else (place, place)
        segments += left.segments(low, ends[0])
        if place is None:
            segments.append(_ramp(left.above, right.below, gap))
        low = ends[1]
    return segments + pieces[-1].segments(low, np.inf)


def _crossing(left: BSpline, right: BSpline, gap: tuple[float, float]) -> float | None:
    """Where the continuations of two pieces meet in the gap between them, if they do."""

    def difference(at: float) -> float:
        return float(left(at) - right(at))

    if not difference(gap[0]) * difference(gap[1]) < 0:
        return None
    return float(brentq(difference, *gap, xtol=1e-15 * max(*np.abs(gap), 1.0)))


def _ramp(left: BSpline, right: BSpline, gap: tuple[float, float]) -> _Segment:
    """The way from one side of a jump to the other: their mean, if it may be anywhere in the gap.

    Of all answers this has the least expected squared error.
    """
    degree = max(left.k, right.k) + 1
    share = 0.5 - 0.5 * np.cos(np.pi * np.arange(degree + 1) / degree)
    place = gap[0] + share * (gap[1] - gap[0])
    mean = (1 - share) * left(place) + share * right(place)
    return _Segment(*gap, make_interp_spline(place, mean, k=degree))


class _ExactBreaks:
    """Breaks of exact rows, judged by the held-out errors of the rows around each.

    Interpolation is local: what a break spoils, it spoils nearby. So a break is tested in a window
    that ends at its neighbours, with all held-out rows counted on both sides of the comparison.
    """

    def __init__(self, points: _Points, settings: Spline, fold: NDArray[np.int64]) -> None:
        self.points, self.settings, self.fold = points, settings, fold
        # below this an error is rounding, and its ratios mean nothing
        self.rounding = 1e-12 * float(np.abs(points.y).max()) + 1e-300
        self.known: dict[tuple[int, int], float] = {}

    def degree(self, start: int, stop: int) -> int:
        """The degree with the least held-out RMS error between two breaks."""
        points, fold = self.points.take(slice(start, stop)), self.fold[start:stop]

        def error(degree: int) -> float:
            # past the last rows the continuation answers, whatever the degree inside
            inside = _held_out(points, degree, fold)[1:-1]
            return float((inside**2).mean())

        return min(self.settings.degrees, key=error)

    def breaks(self) -> list[int]:
        """Positions of the first row behind each break, in order."""
        found: list[int] = []
        candidates = self._candidates()
        while len(found) < self.settings.most_breaks:
            open_ones = [cut for cut in candidates if self._has_room(cut, found)]
            best = max(open_ones, key=lambda cut: self._gain(cut, found), default=None)
            if best is None:
                break
            best = self._shifted(best, found)
            if self._gain(best, found) < self.settings.gain:
                break
            found = sorted([*found, best])
        return self._pruned(found)

    def _pruned(self, found: list[int]) -> list[int]:
        """Without those breaks that others, found later, have made superfluous."""
        while found:
            gains = [self._gain(cut, [c for c in found if c != cut]) for cut in found]
            weakest = int(np.argmin(gains))
            if gains[weakest] >= self.settings.gain:
                break
            del found[weakest]
        return found

    def _shifted(self, cut: int, found: list[int]) -> int:
        """The best place nearby: one row on the wrong side spoils a piece."""
        near = [cut + step for step in range(-_SHIFT, _SHIFT + 1)]
        room = [other for other in near if self._has_room(other, found)]
        return max(room, key=lambda other: self._gain(other, found))

    def _has_room(self, cut: int, found: Iterable[int]) -> bool:
        edges = [0, len(self.points.x), *found]
        return min(abs(cut - edge) for edge in edges) >= self.settings.fewest_rows

    def _gain(self, cut: int, found: Iterable[int]) -> float:
        """How far a break lowers the logs of the held-out errors around it, in standard errors.

        By a break in a line only its next rows gain, by one in a curve many: so two windows.
        """
        edges = [0, len(self.points.x), *found]
        least = max(edge for edge in edges if edge <= cut)
        most = min(edge for edge in edges if edge > cut)
        return max(
            self._gain_within(max(least, cut - reach), cut, min(most, cut + reach))
            for reach in _WINDOWS
        )

    def _gain_within(self, start: int, cut: int, stop: int) -> float:
        gain = self._log_error(start, stop)
        gain -= self._log_error(start, cut) + self._log_error(cut, stop)
        # from row to row the log of an error has a spread of about 1
        return gain / float(np.sqrt(stop - start))

    def _log_error(self, start: int, stop: int) -> float:
        """Sum of logs of the held-out errors, by the degree for which that is least.

        A few rows beside wide gaps have errors many times those of all others, and would hide
        from a sum of squares what a break does to its neighbourhood. A sum of logs sees it.
        """
        if (start, stop) not in self.known:
            points, fold = self.points.take(slice(start, stop)), self.fold[start:stop]
            errors = [_held_out(points, degree, fold) for degree in self.settings.degrees]
            logs = [np.log(np.abs(error) + self.rounding).sum() for error in errors]
            self.known[start, stop] = float(min(logs))
        return self.known[start, stop]

    def _candidates(self) -> list[int]:
        """Gaps where short polynomials on either side fit better than one across."""
        cuts: set[int] = set()
        for half, degree in _SCANS:
            scores = _break_scores(self.points, half, degree)
            for _ in range(self.settings.most_breaks):
                gap = int(scores.argmax())
                if not scores[gap] > 0:
                    break
                scores[max(gap - half, 0) : gap + half] = -np.inf
                cuts.add(gap + 1)
        return sorted(cuts)


def _break_scores(points: _Points, half: int, degree: int) -> Array:
    """How much two polynomials beat one with as many coefficients, for each gap.

    Entry g: log of the residual sum of squares of a polynomial of degree 2q + 1 over 2 x half rows,
    less that of two of degree q on either side of the gap between rows g and g + 1. It is below 0
    where the function is smooth, and large at a jump or kink.
    """
    scores = np.full(len(points.x) - 1, -np.inf)
    if len(points.x) < 2 * half:
        return scores
    x = np.lib.stride_tricks.sliding_window_view(points.x, 2 * half)
    y = np.lib.stride_tricks.sliding_window_view(points.y, 2 * half)
    y = y - y.mean(1, keepdims=True)
    one = _residual(x, y, 2 * degree + 1)
    two = _residual(x[:, :half], y[:, :half], degree) + _residual(x[:, half:], y[:, half:], degree)
    floor = 2 * half * (1e-13 * np.abs(points.y).max()) ** 2 + 1e-300
    scores[half - 1 : half - 1 + len(x)] = np.log((one + floor) / (two + floor))
    return scores


def _residual(x: Array, y: Array, degree: int) -> Array:
    """Residual sums of squares of polynomials on (windows, rows)."""
    low, high = x[:, :1], x[:, -1:]
    unit = (2 * x - low - high) / (high - low)
    basis, _ = np.linalg.qr(np.polynomial.chebyshev.chebvander(unit, degree))
    fitted = basis @ (np.swapaxes(basis, 1, 2) @ y[..., None])
    residual: Array = ((y - fitted[..., 0]) ** 2).sum(1)
    return residual


# --- noisy rows ---------------------------------------------------------------------------------


def _is_noisy(points: _Points) -> bool:
    """Whether smoothing predicts rows better than interpolation, both by local polynomials.

    Only the better three quarters of the rows count, so that a break is not taken for noise.
    """
    rounding = 1e-12 * float(np.abs(points.y).max())
    exact, smooth = (
        min((_local_error(points, degree, half) for degree, half in pairs), default=np.inf)
        for pairs in (_INTERPOLATING, _SMOOTHING)
    )
    return exact > rounding and smooth < exact


def _local_error(points: _Points, degree: int, half: int) -> float:
    """RMS of the smaller three quarters of the errors at rows that did not take part.

    Each is predicted by the polynomial fitted to `half` rows on either side of it.
    """
    if len(points.x) < 2 * half + 4:
        return np.inf
    x = np.lib.stride_tricks.sliding_window_view(points.x, 2 * half + 1)
    y = np.lib.stride_tricks.sliding_window_view(points.y, 2 * half + 1)
    middle = x[:, half : half + 1]
    unit = np.delete(x - middle, half, axis=1)
    unit = unit / np.abs(unit).max(1, keepdims=True)
    basis, triangle = np.linalg.qr(np.polynomial.chebyshev.chebvander(unit, degree))
    at_middle = np.polynomial.chebyshev.chebvander(np.zeros(len(x)), degree)[..., None]
    share = basis @ np.linalg.solve(np.swapaxes(triangle, 1, 2), at_middle)
    errors = (share[..., 0] * np.delete(y, half, axis=1)).sum(1) - y[:, half]
    smaller = np.sort(np.abs(errors))[: -(-3 * len(errors) // 4)]
    return float(np.sqrt(np.mean(smaller**2)))


def _held_out_by(fit: _Fit, points: _Points, fold: NDArray[np.int64]) -> Array:
    """(rows,) errors of a regression spline at rows that it did not see."""
    errors = np.empty(len(points.x))
    for number in np.unique(fold):
        held = fold == number
        spline = fit(_Regression(points.take(~held)))
        errors[held] = spline(points.x[held]) - points.y[held]
    return errors


@dataclass(frozen=True)
class _Regression:
    """Least-squares splines on noisy rows."""

    points: _Points
    settings: Spline = field(default_factory=Spline)

    def segments(self, fold: NDArray[np.int64]) -> list[_Segment]:
        """The spline that predicts held-out rows best, and lines past its ends."""
        breaks = self._breaks()
        fits: list[_Fit] = [lambda some: some.with_breaks([]), _Regression.penalised]
        if breaks:
            fits.append(lambda some: some.with_breaks(breaks))
        errors = [_held_out_by(fit, self.points, fold) for fit in fits]
        best = int(np.argmin([self.points.weight @ error**2 for error in errors]))
        return self._with_ramps(fits[best](self), breaks if best == 2 else [])

    def with_breaks(self, breaks: Sequence[_Break]) -> BSpline:
        """The regression spline with these breaks."""
        return self.best(breaks, _gcv, _DEGREES)[1]

    def penalised(self) -> BSpline:
        """The cubic smoothing spline; the regression spline where there are too few rows."""
        if len(self.points.x) < 5:
            return self.with_breaks([])
        return make_smoothing_spline(self.points.x, self.points.y, w=self.points.weight)

    def _with_ramps(self, spline: BSpline, breaks: Iterable[_Break]) -> list[_Segment]:
        x = self.points.x
        low, high = float(x[0]), float(x[-1])
        segments = [_Segment(-np.inf, low, _tangent(spline, low))]
        for cut in sorted(int(np.searchsorted(x, one.place)) for one in breaks if one.jump):
            gap = float(x[cut - 1]), float(x[cut])
            ends = [_tangent(spline, end) for end in gap]
            segments += [_Segment(low, gap[0], spline), _ramp(ends[0], ends[1], gap)]
            low = gap[1]
        segments.append(_Segment(low, high, spline))
        return [*segments, _Segment(high, np.inf, _tangent(spline, high))]

    def _breaks(self) -> list[_Break]:
        found: list[_Break] = []
        least, spline = self.best(found, _schwarz, _DEGREES)
        while len(found) < self.settings.most_breaks:
            # with one more break a spline never needs more knots than it did without
            search = _NoisyBreak(self, found, len(spline.c) + 1)
            places = self._places(found)
            if not places:
                break
            # a jump in a wrong gap is worse than a bend: compare them where each is at its best
            best = min((search.settled(places, jump) for jump in (False, True)), key=search.worth)
            value, spline = self.best([*found, best], _schwarz, _DEGREES)
            if not value < least:
                break
            least, found = value, [*found, best]
        return found

    def _places(self, found: Iterable[_Break]) -> list[float]:
        """Middles of gaps, evenly by rank and with room to the ends and to the breaks found."""
        x, room = self.points.x, self.settings.fewest_rows
        cuts = np.linspace(room, len(x) - room, min(_PLACES, max(len(x) - 2 * room + 1, 0)))
        taken = np.array([np.searchsorted(x, other.place) for other in found], dtype=np.int64)
        return [
            float(0.5 * (x[cut - 1] + x[cut]))
            for cut in np.unique(cuts.round().astype(np.int64))
            if np.all(np.abs(taken - cut) >= room)
        ]

    def best(
        self,
        breaks: Sequence[_Break],
        criterion: _Criterion,
        degrees: Sequence[int],
        most: int = _UNLIMITED,
    ) -> tuple[float, BSpline]:
        """The least value of the criterion over degrees and knots, and its spline.

        `most` is the largest number of inner knots and degree together that is tried.
        """
        best = (np.inf, _constant(self.points))
        if not breaks:
            best = (self._value(best[1], criterion, 1), best[1])
        for degree in degrees:
            for inner in self._numbers(degree, most):
                spline = self._spline(degree, inner, breaks)
                if spline is None:
                    continue
                value = self._value(spline, criterion, len(spline.c) + _PLACE_COST * len(breaks))
                if value < best[0]:
                    best = (value, spline)
        return best

    def _numbers(self, degree: int, limit: int) -> list[int]:
        """Numbers of inner knots to try."""
        most = max(len(self.points.x) // 2 - degree, 0)
        steps = np.geomspace(1, most + 1, 16) - 1
        numbers = sorted(set(steps.round().astype(int).tolist()))
        return [number for number in numbers if number + degree <= limit]

    def _value(self, spline: BSpline, criterion: _Criterion, parameters: int) -> float:
        x, y, weight = self.points
        if parameters >= len(x):
            return np.inf
        value = float(criterion(float(weight @ (y - spline(x)) ** 2), len(x), parameters))
        return value if np.isfinite(value) else np.inf

    def _spline(self, degree: int, inner: int, breaks: Sequence[_Break]) -> BSpline | None:
        """None where the rows do not determine it."""
        x, y, weight = self.points
        knots = np.quantile(x, np.linspace(0, 1, inner + 2)[1:-1])
        for one in breaks:  # a knot beside a break is superfluous, and rarely has rows of its own
            apart = np.abs(np.searchsorted(x, knots) - np.searchsorted(x, one.place))
            knots = knots[apart > 0.5 * len(x) / (inner + 1)]
        multiple = [one.place for one in breaks for _ in range(degree + one.jump)]
        ends = [x[:1]] * (degree + 1), [x[-1:]] * (degree + 1)
        full = np.concatenate([*ends[0], np.sort(np.append(knots, multiple)), *ends[1]])
        if len(full) - degree - 1 > len(x):
            return None
        try:
            return make_lsq_spline(x, y, full, k=degree, w=np.sqrt(weight))
        except (ValueError, np.linalg.LinAlgError):
            return None


@dataclass(frozen=True)
class _NoisyBreak:
    """The search for one more break."""

    regression: _Regression
    found: list[_Break]
    most: int  # see `_Regression.best`

    def worth(self, one: _Break) -> float:
        """Schwarz' criterion with this break."""
        return self.regression.best([*self.found, one], _schwarz, (3,), self.most)[0]

    def settled(self, places: Sequence[float], jump: bool) -> _Break:
        """The best jump or bend: first of those at `places`, then near by."""
        one = min((_Break(place, jump) for place in places), key=self.worth)
        x = self.regression.points.x
        cut = int(np.searchsorted(x, one.place))
        reach = -(-len(x) // _PLACES)
        low, high = max(cut - reach, 1), min(cut + reach, len(x) - 1)
        if jump:  # all places in a gap are alike
            near = [_Break(float(0.5 * (x[c - 1] + x[c])), True) for c in range(low, high + 1)]
            return min(near, key=self.worth)
        result = minimize_scalar(
            lambda place: self.worth(_Break(float(place), False)),
            bounds=(x[low - 1], x[high]),
            method="bounded",
        )
        return min((one, _Break(float(result.x), False)), key=self.worth)


_Fit = Callable[[_Regression], BSpline]


def _gcv(rss: float, rows: int, parameters: int) -> float:
    return rows * rss / (rows - parameters) ** 2


def _schwarz(rss: float, rows: int, parameters: int) -> float:
    return float(rows * np.log(max(rss, 1e-300) / rows) + np.log(rows) * parameters)


# --- as arrays ----------------------------------------------------------------------------------


def _packed(outputs: Sequence[Sequence[_Segment]]) -> State:
    """Plain arrays of all segments: one entry each, and their knots and coefficients end to end."""
    rows = [(number, segment) for number, one in enumerate(outputs) for segment in one]
    splines = [segment.spline for _, segment in rows]
    # scipy may keep more coefficients than knots less the order
    used = [spline.c[: len(spline.t) - spline.k - 1] for spline in splines]
    return {
        "outputs": np.array(len(outputs)),
        "output": np.array([number for number, _ in rows]),
        "low": np.array([segment.low for _, segment in rows]),
        "high": np.array([segment.high for _, segment in rows]),
        "degree": np.array([spline.k for spline in splines]),
        "knot_count": np.array([len(spline.t) for spline in splines]),
        "knots": np.concatenate([spline.t for spline in splines]),
        "coefficients": np.concatenate(used),
    }


def _unpacked(state: State) -> list[tuple[int, _Segment]]:
    degree, count = state["degree"], state["knot_count"]
    knots = np.split(state["knots"], np.cumsum(count)[:-1])
    coefficients = np.split(state["coefficients"], np.cumsum(count - degree - 1)[:-1])
    return [
        (
            int(state["output"][i]),
            _Segment(
                float(state["low"][i]),
                float(state["high"][i]),
                BSpline(knots[i], coefficients[i], int(degree[i])),
            ),
        )
        for i in range(len(degree))
    ]


_NEAR = 40  # rows near an end that judge how to continue past it
_TRUSTED_GAPS = 3  # mean gaps past the last row, beyond which a polynomial becomes a line
_WINDOWS = (12, 60)  # rows either side of a break that its test looks at
_SHIFT = 4  # rows by which a promising break may move
_INTERPOLATING = ((1, 1), (3, 2), (5, 3), (7, 4), (9, 5))  # (degree, rows on either side)
_SMOOTHING = ((1, 2), (1, 4), (3, 4), (3, 8), (3, 16), (5, 6), (5, 12), (5, 24))
_SCANS = ((6, 1), (8, 2), (8, 4), (12, 5), (24, 7))  # (rows on either side, degree)
_DEGREES = (1, 3, 5)  # of noisy rows: higher ones follow the noise
_PLACE_COST = 3  # parameters that the choice of a break's place is worth
_PLACES = 60  # where a break of noisy rows is first tried
