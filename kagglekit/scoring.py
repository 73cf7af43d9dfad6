"""From members' answers to OOF answers, decided answers and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import calibration, diagnosis, paired, tables
from . import folds as fold_rules
from .competition import Competition
from .data import Data
from .decisions import Combine, Decide
from .errors import UserError
from .run import Answers, Key
from .views import Mean, average


@dataclass(frozen=True)
class FoldAnswers:
    """What one fold's members, combined over seeds, answered on its validation rows."""

    fold: int
    rows: np.ndarray  # (valid rows,) positions in the training table
    answers: np.ndarray  # (valid rows, outputs)


@dataclass(frozen=True)
class OutOfFold:
    """One entry a training row; `covered` says which rows a fold validated."""

    answers: np.ndarray  # (train rows, outputs), zero where not covered
    covered: np.ndarray  # (train rows,) bool


def by_fold(members: Mapping[Key, Answers], combine: Combine) -> list[FoldAnswers]:
    """Each fold's answers, its seeds combined."""
    numbers = sorted({key.fold for key in members if key.fold is not None})
    return [_one_fold(number, members, combine) for number in numbers]


def _one_fold(number: int, members: Mapping[Key, Answers], combine: Combine) -> FoldAnswers:
    seeds = [members[key] for key in sorted(members, key=lambda k: k.seed) if key.fold == number]
    return FoldAnswers(number, seeds[0].valid_rows, combine(np.stack([m.valid for m in seeds])))


def out_of_fold(folds: Sequence[FoldAnswers], rows: int) -> OutOfFold:
    """OOF answers of `rows` training rows; a row that several folds validated gets their mean."""
    shape = (rows, *folds[0].answers.shape[1:])
    total, times = np.zeros(shape, folds[0].answers.dtype), np.zeros(rows, np.int64)
    for fold in folds:
        total[fold.rows] += fold.answers
        times[fold.rows] += 1
    repeats = np.maximum(times, 1).reshape(-1, *[1] * (len(shape) - 1))
    return OutOfFold(total / repeats.astype(total.dtype), times > 0)


def decide(competition: Competition, data: Data, oof: OutOfFold, rows: np.ndarray) -> Decide:
    """The decision for `rows`, fitted on all other covered rows."""
    known = oof.covered.copy()
    known[rows] = False
    return competition.decision(data.target[known], oof.answers[known])


def cross_decided(
    competition: Competition, data: Data, folds: Sequence[FoldAnswers], oof: OutOfFold
) -> np.ndarray:
    """(train rows, ...) OOF answers, each fold's decided without its rows; zeros if not covered."""
    return _decided(folds, oof, [decide(competition, data, oof, fold.rows) for fold in folds])


def _decided(
    folds: Sequence[FoldAnswers], oof: OutOfFold, decisions: Sequence[Decide]
) -> np.ndarray:
    decided = None
    for fold, decision in zip(folds, decisions, strict=True):
        part = decision(oof.answers[fold.rows])
        if decided is None:
            decided = np.zeros((len(oof.covered), *part.shape[1:]), part.dtype)
        decided[fold.rows] = part
    assert decided is not None
    return decided


def score_seeds(
    competition: Competition, data: Data, members: Mapping[Key, Answers]
) -> dict[str, Any]:
    """Each seed's own CV score, and their mean with standard deviation and 95 % interval.

    A seed counts that has answered all the folds that any has. The interval is Student's t over
    seeds, None for one: what it spans is the luck of training, not that of these rows.
    """
    folds = {key.fold for key in members}
    by_seed = {
        seed: {key: answers for key, answers in members.items() if key.seed == seed}
        for seed in sorted({key.seed for key in members})
    }
    scored = {
        seed: score_folds(competition, data, by_fold(own, competition.combine))["cv"]
        for seed, own in by_seed.items()
        if {key.fold for key in own} == folds
    }
    values = list(scored.values())
    return {
        "scores": [{"seed": seed, "score": score} for seed, score in scored.items()],
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "interval": paired.mean_interval(values),
    }


def score_calibration(
    competition: Competition, data: Data, folds: Sequence[FoldAnswers]
) -> dict[str, Any] | None:
    """How honest OOF probabilities are, as they come and at a temperature; None for other answers.

    The temperature of a fold is fitted on the other folds. `before` and `after` are log loss and
    expected calibration error; `temperature` is fitted on all, above 1 where they are too sure.
    """
    oof = out_of_fold(folds, len(data.train))
    covered = np.flatnonzero(oof.covered)
    target, answers = data.target, oof.answers
    if len(folds) < 2 or not data.classes or target.ndim != 1:
        return None
    if not diagnosis.are_probabilities(answers[covered], len(data.classes)):
        return None
    cooled = answers.copy()
    for fold in folds:
        known = oof.covered.copy()
        known[fold.rows] = False
        found = calibration.temperature(target[known], answers[known])
        cooled[fold.rows] = calibration.scaled(answers[fold.rows], found)
    return {
        "temperature": calibration.temperature(target[covered], answers[covered]),
        "before": _honesty(target[covered], answers[covered]),
        "after": _honesty(target[covered], cooled[covered]),
    }


def _honesty(target: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    bins = diagnosis.reliability(target, probabilities)
    return {
        "log_loss": calibration.log_loss(target, probabilities),
        "ece": diagnosis.calibration_error(bins),
    }


def score_folds(
    competition: Competition, data: Data, folds: Sequence[FoldAnswers]
) -> dict[str, Any]:
    """Scores of each fold and of all OOF answers together, with mean and standard deviation."""
    oof = out_of_fold(folds, len(data.train))
    decisions = [decide(competition, data, oof, fold.rows) for fold in folds]
    scores = [
        _score(competition, data, fold.rows, decision(fold.answers))
        for fold, decision in zip(folds, decisions, strict=True)
    ]
    decided = _decided(folds, oof, decisions)
    covered = np.flatnonzero(oof.covered)
    return {
        "cv": _score(competition, data, covered, decided[covered]),
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        "coverage": float(oof.covered.mean()),
        "folds": [
            {"fold": fold.fold, "score": score} for fold, score in zip(folds, scores, strict=True)
        ],
    }


def score_run(
    competition: Competition,
    data: Data,
    members: Mapping[Key, Answers],
    mean: Mean,
    kept: Sequence[str] | None,
) -> dict[str, Any]:
    """All scores of a run's members; `kept` are the views that answer, None where all do."""
    scored = {key: answers for key, answers in members.items() if key.fold is not None}
    folds = by_fold(scored, competition.combine)
    views = score_views(competition, data, scored, mean)
    return {
        "metric": competition.metric.name,
        "greater_is_better": competition.metric.greater_is_better,
        **score_folds(competition, data, folds),
        "members": [
            {
                "fold": key.fold,
                "seed": key.seed,
                "score": score_member(competition, data, answers.valid_rows, answers.valid),
            }
            for key, answers in scored.items()
        ],
        "repeats": score_seeds(competition, data, scored),
        "calibration": score_calibration(competition, data, folds),
        "views": [{**view, "kept": kept is None or view["name"] in kept} for view in views],
    }


def score_member(
    competition: Competition, data: Data, rows: np.ndarray, answers: np.ndarray
) -> float:
    """Score of answers on training rows, decided without any fitting to these rows' own targets."""
    nobody = np.zeros(0, np.int64)
    decision = competition.decision(data.target[nobody], answers[nobody])
    return _score(competition, data, rows, decision(answers))


def score_views(
    competition: Competition, data: Data, members: Mapping[Key, Answers], mean: Mean
) -> list[dict[str, Any]]:
    """What each view is worth on OOF: its score alone, the score without it, and the gain.

    `gain` is positive where the view helps: the score of all views less that without it, in the
    metric's good direction, with its 95 % interval as a sample of rows (or groups) and the
    probability that it helps. No entries where there is but one view.
    """
    folded = {key: answers for key, answers in members.items() if key.fold is not None}
    names = [str(name) for name in next(iter(folded.values())).views]
    if len(names) < 2:
        return []
    count = len(names)
    sets = [list(range(count))]
    sets += [[other for other in range(count) if other != number] for number in range(count)]
    sets += [[number] for number in range(count)]
    found = [decided_by_views(competition, data, folded, chosen, mean) for chosen in sets]
    covered = np.flatnonzero(found[0][1])
    decided = [part[covered] for part, _ in found]
    judged = judge(competition, data, covered, decided[: 1 + count])
    drawn = paired.bootstrap(judged)
    better = competition.metric.greater_is_better
    worth = []
    for number, name in enumerate(names):
        gain, interval, chance = paired.gain(judged, 0, 1 + number, better, drawn)
        worth.append(
            {
                "name": name,
                "alone": _score(competition, data, covered, decided[1 + count + number]),
                "without": _score(competition, data, covered, decided[1 + number]),
                "gain": gain,
                "interval": list(interval),
                "probability": chance,
            }
        )
    return worth


def judge(
    competition: Competition, data: Data, rows: np.ndarray, decided: Sequence[np.ndarray]
) -> paired.Judged:
    """Several decided answers to training rows, as scores of any resampling of these rows.

    `decided` are (rows, ...) each. Rows of a group that folds keep together are drawn together;
    where folds go forward in time, neighbours are.
    """
    own = fold_rules.dependence(data, competition.folds).of(rows)
    return paired.judged(competition.metric, data.target[rows], decided, data.train.iloc[rows], own)


def decided_by_views(
    competition: Competition,
    data: Data,
    members: Mapping[Key, Answers],
    chosen: Sequence[int],
    mean: Mean,
) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, ...) decided answers of some views alone, and which rows are covered.

    `chosen` are positions among the views; none of the members is a fit on all rows.
    """
    seen = {key: _of_views(answers, chosen, mean) for key, answers in members.items()}
    folds = by_fold(seen, competition.combine)
    oof = out_of_fold(folds, len(data.train))
    return cross_decided(competition, data, folds, oof), oof.covered


def _of_views(answers: Answers, chosen: Sequence[int], mean: Mean) -> Answers:
    views = torch.from_numpy(answers.valid_views[list(chosen)])
    return replace(answers, valid=average(views, mean).numpy())


def _score(competition: Competition, data: Data, rows: np.ndarray, decided: np.ndarray) -> float:
    return competition.metric(data.target[rows], decided, data.train.iloc[rows])


def solution(data: Data, path: Path) -> np.ndarray:
    """The target of the test rows, in their order, from a CSV with the columns of the sample.

    Class names become class positions. Raises UserError for a column, an id or a class that is
    missing or unknown.
    """
    table = tables.words(path)
    lacking = [name for name in data.sample.columns if name not in table.columns]
    if lacking:
        raise UserError(f"{path} lacks the column {tables.some(lacking)} of the sample submission")
    table = table[data.sample.columns].set_index(data.id)
    if table.index.has_duplicates:
        raise UserError(f"{path} has {data.id} {table.index[table.index.duplicated()][0]!r} twice")
    missing = ~data.test[data.id].isin(table.index)
    if missing.any():
        raise UserError(f"{path} has no answer for {data.id} {data.test[data.id][missing].iloc[0]}")
    answers = table.loc[data.test[data.id]]
    if not data.classes:
        numbers = answers.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        if not np.isfinite(numbers).all():
            row, column = np.argwhere(~np.isfinite(numbers))[0]
            raise UserError(
                f"{path} has {answers.iloc[row, column]!r} for {data.id} {answers.index[row]!r},"
                " which is no finite number: mend it"
            )
        return numbers
    positions = pd.Index(data.classes).get_indexer(pd.Index(answers.iloc[:, 0]))
    if (positions < 0).any():
        raise UserError(
            f"{path} has the unknown class {answers.iloc[int(positions.argmin()), 0]!r}"
        )
    return positions.astype(np.int64)
