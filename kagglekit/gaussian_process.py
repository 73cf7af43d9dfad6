"""Regression by Gaussian processes whose kernels are chosen by their marginal likelihood."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, NDArray[Any]]
T = TypeVar("T")


class _Family(NamedTuple):
    """A kernel but for its numbers.

    Those are `theta`: log lengthscales (inputs), for interactions log weights (inputs), and the log
    of the noise's variance as a share of the signal's.
    """

    smooth: str  # "rbf", "matern72", "matern52", "matern32"
    interactions: bool


_FAMILIES = tuple(
    _Family(smooth, interactions)
    for interactions in (False, True)
    for smooth in ("rbf", "matern72", "matern52", "matern32")
)


@dataclass(frozen=True)
class GaussianProcess:
    """Gaussian process regression, one process for each output.

    Kernels: {RBF, Matérn 7/2, 5/2, 3/2} × {joint, interactions}. Joint ones read one distance with
    a lengthscale for each input. The others are the product over inputs of (1 + w k) / (1 + w), a
    sum over all subsets of inputs (Durrande et al. 2012, doi:10.5802/afst.1342; Duvenaud et
    al. 2011, arXiv:1112.4394): they learn sums and products of few inputs from far fewer rows.

    All kernels start, several times, on few rows; each of `stages` keeps the most likely ones and
    refines them on more rows (successive halving, arXiv:1502.07943). The winner is solved on all
    rows. The noise is learned, from `least_noise` of the signal's variance up.
    """

    starts: int = 5  # for each kernel; fewer find the slow part only and call the rest noise
    # (rows, kernels kept, L-BFGS iterations): the cost grows as rows cubed
    stages: tuple[tuple[int, int, int], ...] = ((120, 8, 8), (300, 3, 12), (800, 1, 10))
    most_rows: int = 6000  # in the solve on all rows, a random subset beyond
    least_noise: float = 1e-13
    workers: int = 0  # outputs fitted at once, 0 = one a processor; no answer depends on it

    def fit(self, x: Array, y: Array, seed: int = 0) -> State:
        """Fit (rows, inputs) to (rows, outputs)."""
        if len(x) > self.most_rows:
            kept = np.random.default_rng(seed).permutation(len(x))[: self.most_rows]
            x, y = x[kept], y[kept]
        x_mean, x_scale = _scale(x)
        y_mean, y_scale = _scale(y)
        scaled, targets = (x - x_mean) / x_scale, (y - y_mean) / y_scale
        one = partial(self._fit_output, scaled, targets, seed)
        fitted = self._each(one, y.shape[1])
        theta = np.zeros((y.shape[1], 2 * x.shape[1] + 1))
        for output, (found, _, _) in enumerate(fitted):
            theta[output, : len(found.theta)] = found.theta
        return {
            "rows": scaled,
            "x_mean": x_mean,
            "x_scale": x_scale,
            "y_mean": y_mean,
            "y_scale": y_scale,
            "family": np.array([_FAMILIES.index(found.family) for found, _, _ in fitted]),
            "theta": theta,
            "dual": np.stack([dual for _, dual, _ in fitted], 1),
            "trend": np.array([trend for _, _, trend in fitted]),
        }

    def predict(self, state: State, x: Array) -> Array:
        """(rows, outputs) for (rows, inputs)."""
        scaled = (x - state["x_mean"]) / state["x_scale"]
        answers = self._each(partial(_posterior_mean, state, scaled), len(state["family"]))
        shifted: Array = np.stack(answers, 1) * state["y_scale"] + state["y_mean"]
        return shifted

    def _each(self, task: Callable[[int], T], outputs: int) -> list[T]:
        """`task` of each output, in parallel; inside it everything runs on one thread.

        A product of matrices has other last bits on two threads than on one.
        """
        with _single_threaded():
            workers = min(self.workers or os.cpu_count() or 1, outputs)
            pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
            with pool:
                return list(pool.map(task, range(outputs)))

    def _fit_output(
        self, x: Array, targets: Array, seed: int, output: int
    ) -> tuple[_Found, Array, float]:
        """The kernel, the dual weights (rows,) and the constant trend of one output."""
        y = targets[:, output].copy()
        if not np.any(y) or len(x) < 3:  # a constant output, already centred
            nothing = _Found(0.0, _FAMILIES[0], np.zeros(x.shape[1] + 1))
            return nothing, np.zeros(len(x)), 0.0
        random = np.random.default_rng((seed, output))
        order = random.permutation(len(x))
        found = list(self._starts(x.shape[1], random))
        for rows, kept, iterations in self.stages:
            subset = order[:rows]
            likelihood = _Likelihood(x[subset], y[subset])
            refined = [self._refined(likelihood, start, iterations) for start in found]
            best: dict[_Family, _Found] = {}
            for candidate in sorted(refined, key=lambda one: one.objective):
                best.setdefault(candidate.family, candidate)
            found = list(best.values())[:kept]
        return found[0], *_solved(x, y, found[0])

    def _starts(self, inputs: int, random: np.random.Generator) -> Iterator[_Found]:
        for family in _FAMILIES:
            if inputs == 1 and family.interactions:
                continue  # the same as the joint one
            for _ in range(self.starts):
                lengths = np.log(10 ** random.uniform(-0.3, 1.3, inputs))
                if inputs == 1:  # one input alone may oscillate many times
                    lengths = np.log(10 ** random.uniform(-1.7, 1.0, 1))
                weights = random.uniform(-2, 3, inputs if family.interactions else 0)
                noise = np.log(10 ** random.uniform(-8, -2, 1))
                yield _Found(_WORST, family, np.concatenate((lengths, weights, noise)))

    def _refined(self, likelihood: _Likelihood, start: _Found, iterations: int) -> _Found:
        from scipy.optimize import minimize

        inputs = likelihood.inputs
        weights = len(start.theta) - inputs - 1
        bounds = [(np.log(0.01), np.log(1e3))] * inputs + [(-9.0, 9.0)] * weights
        bounds.append((np.log(self.least_noise), np.log(10.0)))
        result = minimize(
            likelihood,
            start.theta,
            args=(start.family,),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": iterations, "maxfun": 2 * iterations},
        )
        return _Found(float(result.fun), start.family, np.asarray(result.x, np.float64))


class _Found(NamedTuple):
    """A kernel with numbers, and its negative log marginal likelihood."""

    objective: float
    family: _Family
    theta: Array


def _scale(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column; a constant column keeps scale 1."""
    mean = values.mean(0)
    std = values.std(0)
    # rounding leaves a constant column a spread of about 1e-16 of its size, not exactly 0
    constant = std <= 1e-13 * np.maximum(np.abs(mean), 1e-300)
    return mean, np.where(constant, 1.0, std)


@contextmanager
def _single_threaded() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


# --- kernels ------------------------------------------------------------------------------------


def _correlation(smooth: str, squared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlation at scaled squared distances, and its derivative by them.

    Matérn of half-integer order: Rasmussen and Williams 2006, equation 4.16.
    """
    if smooth == "rbf":
        value = torch.exp(-0.5 * squared)
        return value, -0.5 * value
    order = {"matern32": 3, "matern52": 5, "matern72": 7}[smooth]
    r = torch.sqrt(order * squared)
    decay = torch.exp(-r)
    if order == 3:
        return (1 + r) * decay, -1.5 * decay
    if order == 5:
        return (1 + r + r * r / 3) * decay, (-5 / 6) * (1 + r) * decay
    value = (1 + r + 0.4 * r * r + r**3 / 15) * decay
    return value, (-7 / 30) * (3 + 3 * r + r * r) * decay


def _block(family: _Family, theta: Array, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(rows, others): prior correlation between rows a and b, both divided by the lengthscales."""
    inputs = a.shape[1]
    squared = [(a[:, j, None] - b[None, :, j]).square_() for j in range(inputs)]
    if not family.interactions:
        return _correlation(family.smooth, torch.stack(squared).sum(0))[0]
    answer = torch.ones_like(squared[0])
    for j, weight in enumerate(np.exp(theta[inputs : 2 * inputs]).tolist()):
        answer *= (1 + weight * _correlation(family.smooth, squared[j])[0]) / (1 + weight)
    return answer


def _posterior_mean(state: State, x: Array, output: int) -> Array:
    """(rows,) answers of one output, on the scale that it was fitted on."""
    theta, family = state["theta"][output], _FAMILIES[int(state["family"][output])]
    inverse = np.exp(-theta[: x.shape[1]])
    known, wanted = (torch.from_numpy(rows * inverse) for rows in (state["rows"], x))
    dual = torch.from_numpy(np.ascontiguousarray(state["dual"][:, output]))
    starts = range(0, len(x), _ROWS)
    parts = [_block(family, theta, wanted[s : s + _ROWS], known) @ dual for s in starts]
    answers: Array = torch.cat(parts).numpy() + state["trend"][output]
    return answers


def _solved(x: Array, y: Array, found: _Found) -> tuple[Array, float]:
    """Dual weights (rows,) and constant trend, with as little noise as the factorisation takes."""
    scaled = torch.from_numpy(x * np.exp(-found.theta[: x.shape[1]]))
    covariance = torch.zeros(len(x), len(x), dtype=torch.float64)
    for start in range(0, len(x), _ROWS):  # the lower triangle is all that is read
        rows = slice(start, start + _ROWS)
        others = scaled[: start + _ROWS]
        covariance[rows, : len(others)] = _block(found.family, found.theta, scaled[rows], others)
    noise = float(np.exp(found.theta[-1]))
    while True:
        covariance.diagonal().fill_(1.0 + noise)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not failed:
            break
        noise *= 4  # all rows are worse conditioned than the subset that the noise is from
    right = torch.stack((torch.from_numpy(y), torch.ones(len(y), dtype=torch.float64)), 1)
    both = torch.cholesky_solve(right, factor)
    trend = float(both[:, 0].sum() / both[:, 1].sum())
    return (both[:, 0] - trend * both[:, 1]).numpy(), trend


# --- likelihood ---------------------------------------------------------------------------------


class _Likelihood:
    """Negative log marginal likelihood of one output and its gradient, over one set of rows.

    Mean and variance are at their optimum for the given theta (concentrated out). Rasmussen and
    Williams 2006, equations 5.8 and 5.9.
    """

    def __init__(self, x: Array, y: Array) -> None:
        self.rows, self.inputs = x.shape
        self.y = torch.from_numpy(y)
        # only the lower triangle: it halves the elementwise work, which takes most of the time
        i, j = np.tril_indices(self.rows, -1)
        self.place = torch.from_numpy(i * self.rows + j)
        self.squared = torch.from_numpy(np.ascontiguousarray(((x[i] - x[j]) ** 2).T))

    def __call__(self, theta: Array, family: _Family) -> tuple[float, Array]:
        """The objective and its gradient by theta; `_WORST` where rounding makes it undefined."""
        return (self._interactions if family.interactions else self._joint)(theta, family.smooth)

    def _joint(self, theta: Array, smooth: str) -> tuple[float, Array]:
        inverse = np.exp(-2 * theta[:-1])
        packed, slope = _correlation(smooth, torch.from_numpy(inverse) @ self.squared)
        solved = self._solve(packed, float(np.exp(theta[-1])))
        if solved is None:
            return _WORST, np.zeros_like(theta)
        objective, sensitivity, by_noise = solved
        by_length = (self.squared @ (sensitivity * slope)).numpy() * (-2 * inverse)
        return objective, np.append(by_length, by_noise)

    def _interactions(self, theta: Array, smooth: str) -> tuple[float, Array]:
        d = self.inputs
        inverse, weights = np.exp(-2 * theta[:d]).tolist(), np.exp(theta[d : 2 * d]).tolist()
        pairs = [_correlation(smooth, self.squared[j] * inverse[j]) for j in range(d)]
        packed = torch.ones_like(self.squared[0])
        for weight, (value, _) in zip(weights, pairs, strict=True):
            packed *= (1 + weight * value).div_(1 + weight)
        solved = self._solve(packed, float(np.exp(theta[-1])))
        if solved is None:
            return _WORST, np.zeros_like(theta)
        objective, sensitivity, by_noise = solved
        sensitivity *= packed
        whole = float(sensitivity.sum())
        by_length, by_weight = [], []
        for j, (weight, (value, slope)) in enumerate(zip(weights, pairs, strict=True)):
            share = sensitivity / (1 + weight * value)
            by_length.append(-2 * inverse[j] * weight * float((share * slope) @ self.squared[j]))
            by_weight.append(weight * float(share @ value) - whole * weight / (1 + weight))
        return objective, np.array([*by_length, *by_weight, by_noise])

    def _solve(
        self, packed: torch.Tensor, noise: float
    ) -> tuple[float, torch.Tensor, float] | None:
        """Objective, its derivative by each packed correlation, and by the log of the noise."""
        n = self.rows
        flat = torch.zeros(n * n, dtype=torch.float64)
        flat[self.place] = packed
        full = flat.view(n, n)
        full.diagonal().fill_(1.0 + noise)
        factor, failed = torch.linalg.cholesky_ex(full)
        if failed:
            return None
        ones = torch.ones(n, dtype=torch.float64)
        both = torch.cholesky_solve(torch.stack((self.y, ones), 1), factor)
        mean = both[:, 0].sum() / both[:, 1].sum()
        dual = both[:, 0] - mean * both[:, 1]
        variance = float((self.y - mean) @ dual) / n
        if not variance > 0:  # rounding has eaten the signal
            return None
        objective = 0.5 * n * float(np.log(variance)) + float(factor.diagonal().log().sum())
        sensitivity = torch.cholesky_inverse(factor)
        sensitivity.addr_(dual, dual, alpha=-1 / variance)
        # a packed entry stands for two symmetric ones, which cancels the one half
        by_noise = 0.5 * float(sensitivity.trace()) * noise
        return objective, sensitivity.T.reshape(-1)[self.place], by_noise


_WORST = 1e10  # what the optimiser sees where the covariance is not positive definite
_ROWS = 256  # of a covariance at once: the block stays in the processor's cache
