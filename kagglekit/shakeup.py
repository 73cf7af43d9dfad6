"""How far a private leaderboard may shake these runs up, and what a public score is worth."""

from __future__ import annotations

from typing import Any

import numpy as np

from .contenders import Contest
from .paired import Judged

ASSUMED_SHARE = 0.3  # of the test rows in the public score, where the competition does not say
_DRAWS = 999


def of_contest(contest: Contest) -> dict[str, Any] | None:
    """`simulate` for the runs of a contest and its test; by name, with what was assumed.

    None where `simulate` gives none.

    | key | what |
    |---|---|
    | public_share, assumed | share of test rows in the public score; whether that is a guess |
    | rows | how many rows the OOF, public and private scores have |
    | runs | name, `ranks`: 5th and 95th percentile of the private rank, `best`: its probability |
    | … | the other keys of `simulate` |
    """
    share = contest.competition.public_share
    used = ASSUMED_SHARE if share is None else share
    rows, test = len(contest.rows), len(contest.data.test)
    public = max(1, round(used * test))
    private = max(1, test - public)
    told = simulate(
        contest.judged,
        public / rows,
        private / rows,
        contest.competition.metric.greater_is_better,
    )
    if told is None:
        return None
    ranks, best = told.pop("ranks"), told.pop("best")
    return {
        "public_share": used,
        "assumed": share is None,
        "rows": {"oof": rows, "public": public, "private": private},
        "runs": [
            {"run": one.name, "ranks": list(found), "best": chance}
            for one, found, chance in zip(contest.contenders, ranks, best, strict=True)
        ],
        **told,
    }


def simulate(
    judged: Judged, public: float, private: float, greater_is_better: bool, draws: int = _DRAWS
) -> dict[str, Any] | None:
    """Draw what public and private rows may say of these runs, and which score chooses well.

    `public` and `private` are how many times as many rows they have as the OOF answers. The CV
    score is as it is; what the runs are truly worth is drawn about it (the bootstrap, Efron 1979),
    and public and private scores are drawn about that, each from as many rows as it has. Nothing
    here knows of a shift between training and test, or of a CV score that was overfitted. None
    where no draw has a score, as AUC of so few rows or groups that all are of one class.

    | key | what |
    |---|---|
    | ranks | (low, high) a run: 5th and 95th percentile of its private rank, 1 = best |
    | best | a run's probability of the best private score |
    | moves | places that a run moves from public to private, 95th percentile |
    | pick | probability that the best by `cv`, `public`, or `both` is the best privately |
    | loss | what that choice costs on average against the best private score |
    | trust | weight of the public score in `both`: the rest is the CV score's |
    """
    sign = 1.0 if greater_is_better else -1.0
    cv = sign * judged.whole()
    truth, *samples = (
        sign * judged.resampled(draws, seed=number + 10, share=share)
        for number, share in enumerate((1.0, public, private))
    )
    sound = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in (truth, *samples)])
    if not sound.any():
        return None
    truth = truth[sound]
    seen, hidden = (truth + part[sound] - cv for part in samples)
    trust = _trust(truth - cv, samples[0][sound] - cv)
    ranks = _ranks(hidden)
    low, high = np.quantile(ranks, (0.05, 0.95), axis=0, method="nearest")
    moved = abs(_ranks(seen) - ranks)
    scores = {"cv": np.broadcast_to(cv, seen.shape), "public": seen}
    scores["both"] = trust * seen + (1 - trust) * cv
    best = hidden.max(axis=1)
    every = np.arange(len(hidden))
    got = {part: hidden[every, score.argmax(axis=1)] for part, score in scores.items()}
    return {
        "ranks": [(int(a), int(b)) for a, b in zip(low, high, strict=True)],
        "best": [float(share) for share in (ranks == 1).mean(axis=0)],
        "moves": int(np.quantile(moved, 0.95, method="nearest")),
        "pick": {part: float(np.mean(score == best)) for part, score in got.items()},
        "loss": {part: float(np.mean(best - score)) for part, score in got.items()},
        "trust": trust,
    }


def _ranks(scores: np.ndarray) -> np.ndarray:
    """(draws, runs) places from 1; equal scores share the better place."""
    ahead = scores[:, None, :] > scores[:, :, None]
    places: np.ndarray = 1 + ahead.sum(axis=2)
    return places


def _trust(cv: np.ndarray, public: np.ndarray) -> float:
    """The weight of the public score that makes the mean of both most exact, from their errors.

    Of two independent measurements of a difference each weighs by its inverse variance.
    """
    spreads = [
        float((part - part.mean(axis=1, keepdims=True)).var(axis=0).sum()) for part in (cv, public)
    ]
    total = sum(spreads)
    return spreads[0] / total if total > 0 else 0.0
