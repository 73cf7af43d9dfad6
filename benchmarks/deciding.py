"""Do intervals cover, and verdicts hold? `python benchmarks/deciding.py [REPEATS [WORD]]`.

Draws tasks whose true difference of two models is known, and prints for each metric how often the
95 % interval of `paired.difference` holds it, and how often two equally good models are told apart.
A word, as RMSE, picks the cases that have it in their name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import signal

from kagglekit import metrics, paired
from kagglekit.data import INDEPENDENT, Dependence
from kagglekit.metrics import Metric

Rng = np.random.Generator
Task = tuple[np.ndarray, np.ndarray, np.ndarray, Dependence]  # target, two answers, rows' ties
_TRUTH = 1_000_000  # rows from which the true difference is computed


@dataclass(frozen=True)
class Case:
    """A kind of task: so many rows drawn from it, and how far the second model is behind."""

    name: str
    metric: Metric
    rows: int
    draw: Callable[[Rng, int, float], Task]
    behind: float
    share: float = 1.0  # of the repeats, for cases that take long
    by_row: bool = False  # resampled as if rows stood alone

    def truth(self) -> float:
        """The difference that ever more rows would show."""
        target, one, other, _ = self.draw(np.random.default_rng(99), _TRUTH, self.behind)
        table = pd.DataFrame(index=np.arange(len(target)))
        apart = self.metric.score(target, one, table) - self.metric.score(target, other, table)
        return apart if self.metric.greater_is_better else -apart


def classes(rng: Rng, rows: int, behind: float) -> Task:
    """Five classes of unequal size; rows differ in how hard they are, for both models alike."""
    target = rng.choice(5, rows, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    hard = rng.beta(0.5, 3.0, rows)
    answers = [
        np.where(rng.random(rows) < np.clip(hard + extra, 0, 1), rng.integers(0, 5, rows), target)
        for extra in (0.0, behind)
    ]
    return target, answers[0], answers[1], INDEPENDENT


def numbers(rng: Rng, rows: int, behind: float) -> Task:
    """Normal errors, of which half is common to both models."""
    target, common, one, other = rng.standard_normal((4, rows))
    return target, target + common + one, target + common + (1 + behind) * other, INDEPENDENT


def heavy(rng: Rng, rows: int, behind: float) -> Task:
    """The same with t-distributed errors of 6 degrees of freedom."""
    target = rng.standard_normal(rows)
    common, one, other = rng.standard_t(6, (3, rows))
    return target, target + common + one, target + common + (1 + behind) * other, INDEPENDENT


def grouped(rng: Rng, rows: int, behind: float) -> Task:
    """Groups of ten rows whose errors are alike."""
    groups = np.arange(rows) // 10
    target = rng.standard_normal(rows)
    own = [
        rng.standard_normal(groups[-1] + 1)[groups] + 0.5 * rng.standard_normal(rows)
        for _ in range(2)
    ]
    return target, target + own[0], target + (1 + behind) * own[1], Dependence(groups)


def ranked(rng: Rng, rows: int, behind: float) -> Task:
    """Scores of two classes."""
    target = (rng.random(rows) < 0.3).astype(np.int64)
    common = rng.standard_normal(rows)
    own = [2 * target + common + (1 + extra) * rng.standard_normal(rows) for extra in (0, behind)]
    return target, own[0], own[1], INDEPENDENT


def in_time(carried: float, hours: int = 1) -> Callable[[Rng, int, float], Task]:
    """Errors that time carries on: of each, a share `carried` of the one before (AR(1)).

    A time has `hours` rows, whose errors are alike but for half of their variance.
    """

    def draw(rng: Rng, rows: int, behind: float) -> Task:
        times, moments = rows // hours, np.arange(rows) // hours
        target = rng.standard_normal(rows)
        own = [_carried_on(rng, times, carried)[moments] for _ in range(2)]
        if hours > 1:
            own = [part + rng.standard_normal(rows) for part in own]
        return target, target + own[0], target + (1 + behind) * own[1], Dependence(moments=moments)

    return draw


def _carried_on(rng: Rng, times: int, carried: float) -> np.ndarray:
    """(times,) of a standard normal AR(1) process."""
    fresh = rng.standard_normal(times) * np.sqrt(1 - carried**2)
    fresh[0] /= np.sqrt(1 - carried**2)
    return signal.lfilter([1], [1, -carried], fresh)


def rising(rng: Rng, rows: int, behind: float) -> Task:
    """Scores of two classes, whose errors time carries on."""
    target = (rng.random(rows) < 0.3).astype(np.int64)
    own = [2 * target + (1 + extra) * _carried_on(rng, rows, 0.7) for extra in (0, behind)]
    return target, own[0], own[1], Dependence(moments=np.arange(rows))


CASES = (
    Case("accuracy, 500 rows", metrics.accuracy, 500, classes, 0.03),
    Case("accuracy, 8,000 rows", metrics.accuracy, 8000, classes, 0.01, share=0.5),
    Case("macro F1, 1,000 rows", metrics.macro_f1, 1000, classes, 0.03),
    Case("kappa, 1,000 rows", metrics.quadratic_kappa, 1000, classes, 0.03),
    Case("RMSE, 300 rows", metrics.rmse, 300, numbers, 0.1),
    Case("RMSE, 300 rows, heavy tails", metrics.rmse, 300, heavy, 0.1),
    Case("RMSE, 8,000 rows", metrics.rmse, 8000, numbers, 0.03, share=0.2),
    Case("RMSE, 100 groups of 10", metrics.rmse, 1000, grouped, 0.1),
    Case("AUC, 400 rows", metrics.roc_auc, 400, ranked, 0.3, share=0.1),
    Case("time: RMSE, 500, AR 0", metrics.rmse, 500, in_time(0.0), 0.1),
    Case("time: RMSE, 500, AR 0.6", metrics.rmse, 500, in_time(0.6), 0.1),
    Case("time: … by row", metrics.rmse, 500, in_time(0.6), 0.1, by_row=True),
    Case("time: RMSE, 500, AR 0.9", metrics.rmse, 500, in_time(0.9), 0.1),
    Case("time: … by row", metrics.rmse, 500, in_time(0.9), 0.1, by_row=True),
    Case("time: RMSE, 4,000, AR 0.9", metrics.rmse, 4000, in_time(0.9), 0.1, share=0.5),
    Case("time: RMSE, 300 × 8, AR 0.6", metrics.rmse, 2400, in_time(0.6, 8), 0.1),
    Case("time: … by row", metrics.rmse, 2400, in_time(0.6, 8), 0.1, by_row=True),
    Case("time: AUC, 400, AR 0.7", metrics.roc_auc, 400, rising, 0.3, share=0.1),
    Case("time: … by row", metrics.roc_auc, 400, rising, 0.3, share=0.1, by_row=True),
)


def simulate(case: Case, repeats: int, seed: int = 0) -> tuple[float, float]:
    """Share of intervals that hold the truth, and of equal models that are told apart."""
    truth, covered, apart = case.truth(), 0, 0
    for number in range(repeats):
        low, high = _found(case, np.random.default_rng([seed, number]), case.behind).interval
        covered += low <= truth <= high
        # both ways together: the claim that one of two equal models is better
        apart += _found(case, np.random.default_rng([seed + 1, number]), 0.0).p <= 0.05
    return covered / repeats, apart / repeats


def _found(case: Case, rng: Rng, behind: float) -> paired.Difference:
    target, one, other, dependence = case.draw(rng, case.rows, behind)
    table = pd.DataFrame(index=np.arange(len(target)))
    drawn = INDEPENDENT if case.by_row else dependence
    scores = paired.judged(case.metric, target, [one, other], table, drawn)
    return paired.difference(scores, 0, 1, case.metric.greater_is_better)


def simulate_repeats(repeats: int, seeds: int, seed: int = 0) -> tuple[float, float]:
    """The same of the corrected t-test: ridge regressions on new data, in 5 folds and by seeds.

    The two models see different random features of the same kind, so neither is better; the
    first number is how often the interval holds zero, the second how often it does not decide so.
    """
    decided = 0
    for number in range(repeats):
        rng = np.random.default_rng([seed, number])
        x = rng.standard_normal((200, 10))
        y = x @ rng.standard_normal(10) + rng.standard_normal(200)
        differences = []
        for start in range(seeds):
            for fold in range(5):
                valid = np.arange(200) % 5 == fold
                errors = []
                for model in range(2):
                    draw = np.random.default_rng([number, start, fold, model])
                    z = np.tanh(x @ draw.standard_normal((10, 40)) / 3)
                    a = z[~valid].T @ z[~valid] + np.eye(40)
                    weights = np.linalg.solve(a, z[~valid].T @ y[~valid])
                    errors.append(np.mean((z[valid] @ weights - y[valid]) ** 2))
                differences.append(errors[1] - errors[0])
        test = paired.repeated(np.array(differences), 0.25)
        assert test is not None
        decided += test.p <= 0.05
    return 1 - decided / repeats, decided / repeats


def main(repeats: int = 1000, word: str = "") -> None:
    """Print coverage and false claims of every case, with what chance may do to them; and times."""
    print(
        f"{'':29}{'repeats':>8}{'95 % interval holds':>22}{'equal told apart':>20}{'seconds':>10}"
    )
    for case in (case for case in CASES if word in case.name):
        began, times = time.monotonic(), max(1, round(case.share * repeats))
        _show(case.name, times, simulate(case, times), time.monotonic() - began)
    for seeds in (1, 3) if word in "t-test" else ():
        began = time.monotonic()
        found = simulate_repeats(repeats, seeds)
        _show(f"t-test, 5 folds × {seeds}", repeats, found, time.monotonic() - began)

    print("\nseconds of one comparison of two models")
    for metric, rows in ((metrics.accuracy, 60_000), (metrics.macro_f1, 60_000),
                         (metrics.rmse, 60_000), (metrics.roc_auc, 60_000)):  # fmt: skip
        draw = {"rmse": numbers, "roc_auc": ranked}.get(metric.name, classes)
        case = Case("", metric, rows, draw, 0.01)
        began = time.monotonic()
        _found(case, np.random.default_rng(0), case.behind)
        print(f"{metric.name:12}{rows:>8,} rows{time.monotonic() - began:>8.1f}", flush=True)


def _show(name: str, repeats: int, found: tuple[float, float], seconds: float) -> None:
    chance = 1.96 * np.sqrt(0.05 * 0.95 / repeats)
    held, apart = (f"{share:.1%} ± {chance:.1%}" for share in found)
    print(f"{name:29}{repeats:>8}{held:>22}{apart:>20}{seconds:>10.0f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
