"""How far a private leaderboard may shake these runs up, and what a public score is worth."""

from __future__ import annotations

from typing import Any

import numpy as np

from .contenders import Contest
from .paired import Judged

ASSUMED_SHARE = 0.3  # of the test rows in the public score, where the competition does not say
_DRAWS = 999


def of_contest(contest: Contest) -> dict[str, Any]:
    """`simulate` for the runs of a contest and its test; by name, with what was assumed.

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
) -> dict[str, Any]:
    """Draw CV, public and private rows from the OOF rows, and see which score chooses well.

    `public` and `private` are how many times as many rows they have as the OOF answers. The OOF
    rows stand for all rows there could be: each draw has its own CV score (as many rows drawn with
    replacement), public and private score, independent of one another (the bootstrap, Efron 1979).
    Nothing here knows of a shift between training and test, or of a CV score that was overfitted.

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
    shares = {"cv": 1.0, "public": public, "private": private}
    drawn = {
        part: sign * judged.resampled(draws, seed=number + 10, share=share)
        for number, (part, share) in enumerate(shares.items())
    }
    sound = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in drawn.values()])
    drawn = {part: scores[sound] for part, scores in drawn.items()}
    trust = _trust(drawn["cv"], drawn["public"])
    drawn["both"] = trust * drawn["public"] + (1 - trust) * drawn["cv"]
    ranks = {part: _ranks(scores) for part, scores in drawn.items()}
    low, high = np.quantile(ranks["private"], (0.05, 0.95), axis=0, method="nearest")
    moved = abs(ranks["public"] - ranks["private"])
    chosen = {part: drawn[part].argmax(axis=1) for part in ("cv", "public", "both")}
    best = drawn["private"].max(axis=1)
    got = {part: drawn["private"][np.arange(len(best)), at] for part, at in chosen.items()}
    return {
        "ranks": [(int(a), int(b)) for a, b in zip(low, high, strict=True)],
        "best": [float(share) for share in (ranks["private"] == 1).mean(axis=0)],
        "moves": int(np.quantile(moved, 0.95, method="nearest")),
        "pick": {part: float(np.mean(got[part] == best)) for part in chosen},
        "loss": {part: float(np.mean(best - got[part])) for part in chosen},
        "trust": trust,
    }


def _ranks(scores: np.ndarray) -> np.ndarray:
    """(draws, runs) places from 1; equal scores share the better place."""
    ahead = scores[:, None, :] > scores[:, :, None]
    places: np.ndarray = 1 + ahead.sum(axis=2)
    return places


def _trust(cv: np.ndarray, public: np.ndarray) -> float:
    """The weight of the public score that makes the mean of both most exact.

    Of two independent measurements of a difference each weighs by its inverse variance.
    """
    spreads = [float((part - part.mean(axis=1, keepdims=True)).var(axis=0).sum())
               for part in (cv, public)]  # fmt: skip
    total = sum(spreads)
    return spreads[0] / total if total > 0 else 0.0
