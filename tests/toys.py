"""A project whose one competition trains in milliseconds, and which can be made to fail."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from kagglekit.errors import DivergedError
from tests import miniatures

COMPETITION = '''"""A function of two variables, answered by least squares."""

from dataclasses import dataclass

import numpy as np

from kagglekit import (
    Blend, BlendConfig, Competition, Config, Estimator, folds, knob, metrics, submission, tables,
)
from tests import miniatures, toys


@dataclass(frozen=True, kw_only=True)
class LineConfig(Config):
    ridge: float = knob(1e-6, "penalty on large weights", least=0)


@dataclass(frozen=True)
class Line:
    """Powers of the inputs, on rows drawn with replacement, so that a seed makes a difference."""

    power: int
    ridge: float

    def columns(self, x):
        return np.hstack([np.ones((len(x), 1)), *(x**p for p in range(1, self.power + 1))])

    def fit(self, x, y, seed):
        toys.fitted(f"{self.power}-{seed}")
        drawn = np.random.default_rng(seed).integers(0, len(x), len(x))
        a = self.columns(x[drawn])
        square = a.T @ a + self.ridge * np.eye(a.shape[1])
        return {"weights": np.linalg.solve(square, a.T @ y[drawn])}

    def predict(self, state, x):
        toys.asked()
        return self.columns(x) @ state["weights"]


def practise(folder, answers):
    miniatures.function_fitting(folder, 2, 1, 60)
    made = folder.with_name(f"{folder.name}.answers")
    (made / "solution.csv").rename(answers / "solution.csv")
    made.rmdir()


competition = Competition(
    slug="toy-competition",
    load=tables.regression,
    folds=folds.shuffled,
    metric=metrics.rmse,
    submission=submission.numbers(),
    recipes={
        "line": Estimator(lambda config: Line(1, config.ridge), LineConfig(folds=3)),
        "curve": Estimator(lambda config: Line(3, config.ridge), LineConfig(folds=3)),
        "refitted": Estimator(
            lambda config: Line(1, config.ridge), LineConfig(folds=3, final="refit")
        ),
        "mix": Blend(("line", "curve"), BlendConfig(folds=3, final="members", method="weights")),
    },
    practice={"functions": practise},
)
'''

FITS, TRAP = Path("fits.txt"), Path("trap.txt")


def write(project: Path, more: str = "", data: bool = True) -> None:
    """Make `project` one with the competition `toy`; `more` is code after its definition."""
    home = project / "competitions" / "toy"
    home.mkdir(parents=True, exist_ok=True)
    (home / "__init__.py").write_text(COMPETITION + more)
    sys.modules.pop("competitions.toy", None)
    os.environ["KAGGLEKIT_COMPETITIONS"] = "competitions"
    if data:
        miniatures.function_fitting(project / "data" / "toy", 2, 1, 60)


def trap(kind: str, at: int) -> None:
    """Let the process end by `kind` in its fit number `at` (from 1), once; "ask" counts answers."""
    TRAP.write_text(f"{kind} {at}")


def fits() -> int:
    """How often the competition's learners were fitted in this project."""
    return len(FITS.read_text().splitlines()) if FITS.exists() else 0


def fitted(what: str) -> None:
    """A learner is fitted: note it, or fall into the trap."""
    _spring("fit")
    with FITS.open("a") as handle:
        handle.write(what + "\n")


def asked() -> None:
    """A learner is asked for answers: fall into the trap, if one waits there."""
    _spring("ask")


def _spring(where: str) -> None:
    if not TRAP.exists():
        return
    kind, at = TRAP.read_text().split()
    if kind.partition("-")[0] != where:
        return
    if int(at) > 1:
        TRAP.write_text(f"{kind} {int(at) - 1}")
        return
    TRAP.unlink()
    _end(kind.partition("-")[2])


def _end(kind: str) -> None:
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "diverge":
        raise DivergedError("fold1-seed0: the loss became nan in batch 3 of 4")
    if kind == "bug":
        raise ZeroDivisionError("a bug")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[kind])
