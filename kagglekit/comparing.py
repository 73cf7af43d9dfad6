"""Which of several runs is better, by how much, and whether the numbers bear it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from . import contenders, faults, paired, problem, scoring, shakeup
from .contenders import Contender, Contest
from .errors import UserError
from .folds import group_column, group_file, time_column
from .paired import Difference

LEVEL = 0.05  # of p, adjusted for all that is compared
_MOST_SEEDS = 100  # beyond these "more seeds" is no advice


@dataclass(frozen=True)
class Pair:
    """Two runs, the first of which has the better CV score.

    `rows` is the difference of their OOF scores, as a sample of rows; `members` that of the mean
    over folds and seeds, None where they cannot be paired so. `repeats` says that several seeds,
    or repeated folds, were paired: then both have to agree. `p` is adjusted by Holm's method.
    """

    one: str
    other: str
    rows: Difference
    members: Difference | None
    repeats: bool
    p: float
    more_seeds: int | None  # that would about decide it; None where none would, or it is decided
    more_rows: float | None  # times as many rows as now that would

    @property
    def decided(self) -> bool:
        """Whether the first is better by more than chance."""
        return self.p <= LEVEL

    @property
    def probability(self) -> float:
        """That the first beats the second: where there are two answers, the more cautious one."""
        known = [self.rows.probability]
        if self.repeats and self.members is not None:
            known.append(self.members.probability)
        return min(known, key=lambda share: abs(share - 0.5))


@faults.explained()
def compare(name: str, wanted: Sequence[str], data: Path | None = None) -> dict[str, Any]:
    """What `kagglekit compare --json` prints: runs, pairs, a verdict, and the shake-up.

    Raises UserError for fewer than two runs, and where `contenders.gather` does.
    """
    problem.find(name)
    if len(wanted) < 2:
        raise UserError(f"compare wants two runs or more: kagglekit compare {name} RUN_A RUN_B")
    contest = contenders.gather(name, wanted, data)
    found = pairs(contest)
    scores = contest.judged.whole()
    folds, blocks = contest.competition.folds, contest.judged.blocks
    column, path = group_column(folds), group_file(folds)
    return {
        "competition": name,
        "metric": contest.competition.metric.name,
        "greater_is_better": contest.competition.metric.greater_is_better,
        "rows": len(contest.rows),
        "units": contest.judged.units,
        "groups": column if path is None else path.name,
        "times": time_column(folds),
        "block": None if blocks is None else blocks.span,
        "runs": [
            _told(one, float(scores[place]), contest.drawn_alone(place))
            for place, one in enumerate(contest.contenders)
        ],
        "pairs": [_pair(pair) for pair in found],
        "verdict": verdict(contest, found),
        "notes": notes(contest),
        "shakeup": shakeup.of_contest(contest),
    }


def pairs(contest: Contest) -> list[Pair]:
    """Every two runs of a contest, p adjusted for all of them together (Holm 1979)."""
    better = contest.competition.metric.greater_is_better
    found = []
    for one, other in combinations(range(len(contest.contenders)), 2):
        rows = paired.difference(contest.judged, one, other, better, contest.drawn)
        found.append((rows, _Members.of(contest, one, other)))
    raw = [
        max(rows.p, members.test.p) if members and members.repeats and members.test else rows.p
        for rows, members in found
    ]
    named = combinations([one.name for one in contest.contenders], 2)
    return [
        _judge(names, rows, members, p)
        for names, (rows, members), p in zip(named, found, paired.holm(raw), strict=True)
    ]


def _judge(names: tuple[str, str], rows: Difference, members: _Members | None, p: float) -> Pair:
    decided = p <= LEVEL
    return Pair(
        *names,
        rows=rows,
        members=members.test if members else None,
        repeats=bool(members and members.repeats),
        p=p,
        more_seeds=None if decided or members is None else members.more_seeds(rows),
        more_rows=None if decided else _more_rows(rows, members),
    )


def _more_rows(rows: Difference, members: _Members | None) -> float | None:
    """How many times as many rows would put zero outside of the intervals of like effects."""
    asked = [rows]
    if members is not None and members.repeats and members.test is not None:
        asked.append(members.test)
    factors = []
    for found in asked:
        if found.effect == 0:
            return None
        factors.append(((found.interval[1] - found.interval[0]) / 2 / found.effect) ** 2)
    return max(factors) if max(factors) > 1 else None


# --- folds and seeds ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Members:
    """Differences of the same fold and seed, (seeds, folds) in that order, positive is better."""

    differences: np.ndarray  # (seeds · folds,)
    seeds: int
    folds: int
    ratio: float  # validation rows over training rows
    repeats: bool
    error: float  # standard error of the OOF scores' difference, as a sample of rows
    error_of_one: float  # the same of one seed alone, on average

    @classmethod
    def of(cls, contest: Contest, one: int, other: int) -> _Members | None:
        """The members of two runs, paired; None where they share a single fold and seed."""
        first, second = contest.contenders[one], contest.contenders[other]
        shared = [fold.fold for fold in first.folds if fold.fold in _numbers(second)]
        whole = all({key.fold for key in run.members if key.seed == seed} >= set(shared)
                    for run in (first, second) for seed in run.seeds)  # fmt: skip
        # runs of different seeds, as a blend and its parts, are paired by fold alone
        by_seed = first.seeds == second.seeds and whole
        scores = [_scores(contest, run, shared, by_seed) for run in (first, second)]
        sign = 1.0 if contest.competition.metric.greater_is_better else -1.0
        differences = sign * (scores[0] - scores[1])
        if len(differences) < 2:
            return None
        seeds = len(first.seeds) if by_seed else 1
        validated = sum(len(fold.rows) for fold in first.folds if fold.fold in shared)
        repeats = seeds > 1 or validated > len(contest.rows)
        errors = _errors(contest, (one, other), seeds)
        return cls(differences, seeds, len(shared), _ratio(first, shared), repeats, *errors)

    @property
    def test(self) -> Difference | None:
        return paired.repeated(self.differences, self.ratio)

    def more_seeds(self, rows: Difference) -> int | None:
        """Seeds to add that would about decide a difference like this one; None where none do.

        The variance of the OOF difference has a part that seeds average out, N / seeds, and one
        that only rows do: both follow from that of one seed and that of all.
        """
        most = self.folds * _MOST_SEEDS
        needed = paired.members_needed(self.differences, self.ratio, LEVEL, most)
        if needed is None:
            return None
        wanted = max(math.ceil(needed / self.folds), self.seeds + 1)
        if self.seeds > 1:
            noise = (self.error_of_one**2 - self.error**2) * self.seeds / (self.seeds - 1)
            noise = max(noise, 0.0)
            fixed = max(self.error**2 - noise / self.seeds, 0.0)
            room = (rows.effect / 1.96) ** 2 - fixed
            if room <= 0:
                return None
            wanted = max(wanted, math.ceil(noise / room))
        return wanted - self.seeds if wanted <= _MOST_SEEDS else None


def _numbers(run: Contender) -> set[int]:
    return {fold.fold for fold in run.folds}


def _scores(contest: Contest, run: Contender, folds: Sequence[int], by_seed: bool) -> np.ndarray:
    """(members,) scores on their validation rows, seed by seed; of folds where seeds differ."""
    competition, data = contest.competition, contest.data
    decisions = {number: scoring.decide(competition, data, run.oof, fold.rows)
                 for fold in run.folds if (number := fold.fold) in folds}  # fmt: skip
    if by_seed:
        answered = [
            (key.fold, part.valid_rows, part.valid)
            for key, part in sorted(run.members.items(), key=lambda item: _order(item[0]))
            if key.fold in folds
        ]
    else:
        answered = [(part.fold, part.rows, part.answers)
                    for part in run.folds if part.fold in folds]  # fmt: skip
    return np.array(
        [
            competition.metric(data.target[rows], decisions[fold](answers), data.train.iloc[rows])
            for fold, rows, answers in answered
            if fold is not None
        ]
    )


def _order(key: Any) -> tuple[int, int]:
    return key.seed, key.fold


def _ratio(run: Contender, folds: Sequence[int]) -> float:
    """Validation rows over training rows, on average over folds."""
    split = run.run.folds()
    return float(np.mean([len(split[fold][1]) / len(split[fold][0]) for fold in folds]))


def _errors(contest: Contest, places: tuple[int, int], seeds: int) -> tuple[float, float]:
    """Standard error of the difference of two runs, and of single seeds of theirs on average."""
    error = paired.standard_error(contest.judged, *places)
    if seeds < 2:
        return error, error
    runs = [contest.contenders[place] for place in places]
    variances = []
    for seed in runs[0].seeds:
        alone = contest.judge([_decided_alone(contest, run, seed) for run in runs])
        variances.append(paired.standard_error(alone, 0, 1) ** 2)
    return error, math.sqrt(float(np.mean(variances)))


def _decided_alone(contest: Contest, run: Contender, seed: int) -> np.ndarray:
    """(train rows, ...) what one seed of a run answered, decided."""
    competition, data = contest.competition, contest.data
    members = {key: part for key, part in run.members.items() if key.seed == seed}
    folds = scoring.by_fold(members, competition.combine)
    oof = scoring.out_of_fold(folds, len(data.train))
    return scoring.cross_decided(competition, data, folds, oof)


# --- words --------------------------------------------------------------------------------------


def _told(run: Contender, score: float, drawn: np.ndarray) -> dict[str, Any]:
    interval = paired.score_interval(drawn)
    return {
        "run": run.name,
        "recipe": run.manifest["recipe"],
        "cv": score,
        "interval": None if interval is None else list(interval),
        "seeds": run.seeds,
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        **asdict(pair),
        "decided": pair.decided,
        "probability": pair.probability,
        "verdict": sentence(pair),
    }


def sentence(pair: Pair) -> str:
    """What may be said of two runs."""
    if pair.decided:
        return f"{pair.one} is better than {pair.other}"
    if pair.rows.effect == 0 and pair.rows.interval == (0.0, 0.0):
        return f"{pair.one} and {pair.other} answer every row alike"
    if pair.more_seeds:
        more = f"about {pair.more_seeds} more seed{'' if pair.more_seeds == 1 else 's'} would do"
    elif pair.more_rows is not None:
        more = f"more seeds would not do, about {_times(pair.more_rows)} times as many rows would"
    else:
        more = "more seeds of both would have to confirm it"
    return f"{pair.one} or {pair.other}: not decided, {more}"


def _times(factor: float) -> str:
    return (
        f"{factor:.1f}" if factor < 9.95 else f"{factor:,.0f}" if factor < 1e4 else "10,000 or more"
    )


def verdict(contest: Contest, found: Sequence[Pair]) -> str:
    """The outcome in a sentence."""
    best, count = contest.contenders[0].name, len(contest.contenders)
    level = [pair.other for pair in found if pair.one == best and not pair.decided]
    if not level:
        others = "the other" if count == 2 else "all others"
        return f"{best} is better than {others} by more than noise."
    if len(level) < count - 1:
        return f"{best} has the best CV score; {_listed(level)} cannot be told from it."
    if count > 2:
        return f"{best} has the best CV score, but none of the others is shown to be worse."
    return f"{best} and {level[0]} differ by less than the noise: neither is shown to be better."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def notes(contest: Contest) -> list[str]:
    """What a reader of the comparison should know."""
    said = []
    seeds = [run.seeds for run in contest.contenders]
    if all(len(own) == 1 for own in seeds):
        said.append("One seed each: how much is luck of training stays unknown; --seeds 3 tells.")
    elif any(own != seeds[0] for own in seeds):
        counts = ", ".join(f"{run.name} has {len(run.seeds)}" for run in contest.contenders)
        said.append(f"Different seeds ({counts}): part of a difference may be their averaging.")
    rows = len(contest.data.train)
    if len(contest.rows) < rows:
        said.append(f"Compared on the {len(contest.rows):,} rows of {rows:,} that all answered.")
    return said
