"""How CV and LB scores agree, and which two submissions to tick at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import tables
from .competition import Competition
from .data import Data
from .errors import UserError
from .run import Run

_DRAWS = 100
_MOST_ROWS = 10_000  # of a draw; the error of more follows from its square root


@dataclass(frozen=True)
class Scored:
    """A submission with both scores, and where its answers are.

    `error` is the CV score's standard error over folds, `public_error` that of the public score.
    """

    run: str
    file: Path
    ref: int | None
    cv: float
    public: float
    error: float = 0.0
    public_error: float | None = None


def public_error(
    competition: Competition, data: Data, run: Run, decided: np.ndarray | None = None
) -> float | None:
    """Standard error of a public score: a score on so many rows only, drawn from OOF answers.

    None where the competition does not say which share of the test rows is public. By the
    bootstrap (Efron 1979), at most 10,000 rows a draw, of 100 draws with a fixed seed.
    """
    if competition.public_share is None:
        return None
    from . import files

    covered = files.read_array(run.folder / "covered.npy").astype(bool)
    oof = files.read_array(run.folder / "oof.npy")
    if len(covered) != len(data.train) or len(oof) != len(covered):
        return None  # the data have changed since
    rows = np.flatnonzero(covered)
    if decided is None:
        decided = competition.decision(data.target[rows], oof[rows])(oof[rows])
    public = max(2, round(competition.public_share * len(data.test)))
    drawn = min(public, _MOST_ROWS)
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(_DRAWS):
        at = rng.integers(0, len(rows), drawn)
        table = data.train.iloc[rows[at]].reset_index(drop=True)
        try:
            scores.append(competition.metric(data.target[rows[at]], decided[at], table))
        except UserError:  # a class that no drawn row has, as AUC needs both
            continue
    if len(scores) < _DRAWS // 2:
        return None
    return float(np.std(scores, ddof=1) * math.sqrt(drawn / public))


def compare(scored: Sequence[Scored], greater_is_better: bool) -> dict[str, Any] | None:
    """Correlation of CV and public scores, and their gap; None for fewer than two submissions.

    | key | what |
    |---|---|
    | submissions | how many |
    | pearson, spearman | of CV and public scores; None where either does not vary |
    | gap, gap_error | mean of public - CV, and its standard error over the submissions |
    | public_error | standard error of one public score, as a sample of rows; None if unknown |
    | worse | whether the public scores are worse than CV by more than two of these errors |
    """
    if len(scored) < 2:
        return None
    cv, public = np.array([s.cv for s in scored]), np.array([s.public for s in scored])
    gaps = public - cv
    errors = [s.public_error for s in scored if s.public_error is not None]
    one = max(errors) if errors else None
    gap, spread = float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    loss = -gap if greater_is_better else gap
    # all submissions are scored on the same public rows, so that error does not average out
    total = math.hypot(spread, one or 0.0)
    return {
        "submissions": len(scored),
        "pearson": _correlation(cv, public),
        "spearman": _correlation(_ranks(cv), _ranks(public)),
        "gap": gap,
        "gap_error": spread,
        "public_error": one,
        "worse": None if one is None else bool(loss > 2 * total),
    }


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.clip(np.corrcoef(one, other)[0, 1], -1.0, 1.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.asarray(pd.Series(values).rank())


def recommend(scored: Sequence[Scored], greater_is_better: bool) -> list[dict[str, Any]]:
    """The two submissions to tick: the best CV, and a good one that answers most differently.

    Good is: within two standard errors of the best CV score; where no other is, the next best.
    """
    if not scored:
        return []
    order = sorted(scored, key=lambda s: -s.cv if greater_is_better else s.cv)
    best, rest = order[0], order[1:]
    chosen: list[dict[str, Any]] = [
        {"run": best.run, "ref": best.ref, "why": "the best CV score", "different": None}
    ]
    apart = {other.run: difference(best.file, other.file) for other in rest}
    known = [other for other in rest if apart[other.run]]
    near = [s for s in known if abs(s.cv - best.cv) <= 2 * max(best.error, s.error)] or known[:1]
    if near:
        second = max(near, key=lambda s: apart[s.run] or 0.0)
        why = "good, and the most different"
        chosen.append(
            {"run": second.run, "ref": second.ref, "why": why, "different": apart[second.run]}
        )
    return chosen


def difference(one: Path, other: Path) -> float | None:
    """How differently two files answer, from 0 on; None where they cannot be compared.

    Of numbers: the root of the mean squared difference, in standard deviations of a column. Of
    names, and of at most 20 different whole numbers: the share of rows that differ.
    """
    try:
        tables_ = [tables.words(path) for path in (one, other)]
    except UserError:
        return None
    first, second = (table.set_index(table.columns[0]) for table in tables_)
    if list(first.columns) != list(second.columns) or set(first.index) != set(second.index):
        return None
    second = second.loc[first.index]
    parts = [_apart(first[name], second[name]) for name in first.columns]
    return float(np.mean(parts)) if parts else None


def _apart(one: pd.Series, other: pd.Series) -> float:
    numbers = [pd.to_numeric(column, errors="coerce").to_numpy(float) for column in (one, other)]
    both = np.concatenate(numbers)
    classes = np.isnan(both).any() or (len(np.unique(both)) <= 20 and (both == np.rint(both)).all())
    if classes:
        return float((one.to_numpy(str) != other.to_numpy(str)).mean())
    spread = both.std()
    return float(np.sqrt(np.mean((numbers[0] - numbers[1]) ** 2)) / spread) if spread else 0.0
