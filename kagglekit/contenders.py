"""Finished runs side by side: of the same data, folds and rows, or a refusal that says why not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import files, folders, paired, problem, scoring, viewing
from . import folds as fold_rules
from . import run as runs
from .competition import Competition
from .data import Data
from .errors import UserError
from .paired import Judged
from .problem import Problem
from .run import Answers, Key, Run
from .scoring import FoldAnswers, OutOfFold

T = TypeVar("T")
LeftOut = Callable[[str], None]  # is told which run is left out, and why

_DRAWN_BY = ("folds", "folds_file", "seed")  # knobs that folds depend on


@dataclass(frozen=True)
class Contender:
    """One run's answers to the training rows; `decided` (train rows, ...) as they were scored."""

    run: Run
    manifest: dict[str, Any]
    members: Mapping[Key, Answers]  # fits on all rows are not among them
    folds: list[FoldAnswers]
    oof: OutOfFold
    decided: np.ndarray

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def seeds(self) -> list[int]:
        """The seeds of its members."""
        return sorted({key.seed for key in self.members})


@dataclass(frozen=True)
class Contest:
    """Runs that may be compared, the best CV score first.

    `rows` are the positions of the training rows that all of them answered.
    """

    problem: Problem
    contenders: list[Contender]
    rows: np.ndarray

    @property
    def competition(self) -> Competition:
        """The competition."""
        return self.problem.competition

    @property
    def data(self) -> Data:
        """The data in memory."""
        return self.problem.data

    @cached_property
    def judged(self) -> Judged:
        """Scores of all contenders on any resampling of the rows."""
        return self.judge([contender.decided for contender in self.contenders])

    @cached_property
    def drawn(self) -> np.ndarray:
        """(draws, runs) scores of rows drawn with replacement, in the contenders' order."""
        return paired.bootstrap(self.judged)

    def drawn_alone(self, place: int) -> np.ndarray:
        """(draws,) scores of one contender: what its own interval is made of.

        In time its errors may be carried on for longer than its differences from others, and
        then it is drawn in blocks of its own.
        """
        if self.judged.blocks is None:
            return self.drawn[:, place]
        return paired.bootstrap(self.judge([self.contenders[place].decided]))[:, 0]

    def judge(self, decided: Sequence[np.ndarray]) -> Judged:
        """The same of other decided answers (train rows, ...)."""
        answers = [part[self.rows] for part in decided]
        return scoring.judge(self.competition, self.data, self.rows, answers)


def gather(
    name: str, wanted: Sequence[str], data: Path | None = None, left_out: LeftOut | None = None
) -> Contest:
    """The runs `wanted`, or the beginnings of their names, read and checked to be comparable.

    Raises UserError for a run twice, unfinished or damaged, for runs of different data or folds,
    and where their data are no longer to be found. Where nobody named the runs `left_out` is told
    of those that cannot be read, and the others compete.
    """
    competition = problem.find(name)  # first: a name mistyped is no run that is missing
    found = [runs.find(folders.runs(), name, typed) for typed in wanted]
    twice = [run.name for number, run in enumerate(found) if run in found[:number]]
    if twice:
        raise UserError(f"{twice[0]} is named twice: name different runs")
    manifests = each(found, lambda run: _finished(name, run), left_out)
    _same_data(manifests)
    read = _problem(name, competition, manifests, data)
    everyone = each(manifests, lambda run: contender(read, run, manifests[run]), left_out)
    _same_folds(list(everyone.values()))
    return contest(read, list(everyone.values()))


def contest(problem: Problem, contenders: Sequence[Contender]) -> Contest:
    """Contenders that are known to be comparable, in their order by CV on common rows."""
    covered = np.logical_and.reduce([one.oof.covered for one in contenders])
    if not covered.any():
        names = " and ".join(one.name for one in contenders[:2])
        raise UserError(f"{names} have no validated row in common: train the same folds of each")
    unsorted = Contest(problem, list(contenders), np.flatnonzero(covered))
    scores = unsorted.judged.whole()
    order = np.argsort(-scores if problem.competition.metric.greater_is_better else scores)
    return Contest(problem, [contenders[place] for place in order], unsorted.rows)


def contender(problem: Problem, run: Run, manifest: dict[str, Any]) -> Contender:
    """What a finished run answered, decided as it was scored."""
    members = {key: run.answers(key) for key in run.members() if key.fold is not None}
    rows = len(problem.data.train)
    if not members or any(part.valid_rows.max(initial=-1) >= rows for part in members.values()):
        raise UserError(f"{run.folder} answers other rows than the data have: train it again")
    mean = manifest["config"].get("tta_mean", "probabilities")
    members = viewing.as_kept(run, members, mean)
    folds = scoring.by_fold(members, problem.competition.combine)
    oof = scoring.out_of_fold(folds, rows)
    decided = scoring.cross_decided(problem.competition, problem.data, folds, oof)
    return Contender(run, manifest, members, folds, oof, decided)


def each(runs: Iterable[Run], read: Callable[[Run], T], left_out: LeftOut | None) -> dict[Run, T]:
    """What `read` makes of each run; those that it cannot read `left_out` is told of, if given.

    Raises UserError where `left_out` is not given, or where none can be read.
    """
    found, faults = {}, []
    for run in runs:
        try:
            found[run] = read(run)
        except UserError as error:
            if left_out is None:
                raise
            left_out(f"{run.name} is left out: {error}")
            faults.append(error)
    if faults and not found:
        raise faults[0]
    return found


def comparable(name: str, left_out: LeftOut) -> list[Run]:
    """The finished runs of a competition with the data and folds of the best, which comes first.

    `left_out` is told of those that are damaged.
    """
    from . import leaderboard

    ranked = leaderboard.rows(folders.runs(), name, folders.submissions())
    finished = [row.run for row in ranked if row.cv is not None and row.finished]
    known = each((Run(folders.runs() / name / run) for run in finished), _identity, left_out)
    return [run for run in known if known[run] == next(iter(known.values()))]


def _identity(run: Run) -> tuple[str, str]:
    """What comparable runs share: data, and the rows that each fold validates."""
    kept = [valid for _, valid in run.folds()]
    return str(run.manifest()["data"].get("fingerprint")), fold_rules.fingerprint(
        [(v, v) for v in kept]
    )


def _finished(name: str, run: Run) -> dict[str, Any]:
    manifest = run.manifest()
    if manifest["finished"] is None or run.scores() is None:
        command = manifest.get("command") or f"kagglekit train {name}"
        raise UserError(f"{run.name} is not finished: `{command}` goes on with it")
    return manifest


def _same_data(manifests: Mapping[Run, dict[str, Any]]) -> None:
    (first, told), *others = manifests.items()
    for run, other in others:
        if other["data"].get("fingerprint") != told["data"].get("fingerprint"):
            raise UserError(
                f"{first.name} and {run.name} were trained on different data "
                f"({_where(told)}, {_where(other)}), so their scores do not compare: train one of "
                "them on the other's data"
            )
        if other["classes"] != told["classes"]:
            raise UserError(f"{first.name} and {run.name} know different classes: train one again")


def _where(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['data'].get('kind', '')} {manifest['data'].get('folder', '?')}".strip()


def _problem(
    name: str,
    competition: Competition,
    manifests: Mapping[Run, dict[str, Any]],
    given: Path | None,
) -> Problem:
    """The data that the runs were trained on, read again."""
    run, told = next(iter(manifests.items()))
    trained_on = Path(str(told["data"].get("folder", "")))
    source = folders.find_data(name, given or (trained_on if trained_on.is_dir() else None))
    if source is None:
        raise UserError(f"the data of {run.name} are no longer in {trained_on}: give --data DIR")
    fingerprint = files.fingerprint(source.folder, folders.cache())
    if fingerprint != told["data"].get("fingerprint"):
        raise UserError(
            f"{source.folder} holds other data than {run.name} was trained on: name the folder "
            "that it was trained on with --data, or train it again"
        )
    return Problem(name, competition, source, fingerprint, problem.load(competition, source.folder))


def _same_folds(contenders: Sequence[Contender]) -> None:
    """Refuse runs whose folds of one number validate different rows, or that share no fold."""
    first = contenders[0]
    own = {fold.fold: fold.rows for fold in first.folds}
    for other in contenders[1:]:
        shared = [fold for fold in other.folds if fold.fold in own]
        if not shared:
            raise UserError(
                f"{first.name} and {other.name} have no fold in common: "
                "train the folds of one for the other too"
            )
        for fold in shared:
            if not np.array_equal(fold.rows, own[fold.fold]):
                raise UserError(
                    f"{first.name} and {other.name} have different folds: fold {fold.fold} "
                    f"validates {len(own[fold.fold])} rows of one and {len(fold.rows)} of the "
                    f"other, {_difference(first, other)}; train one of them on the other's folds"
                )


def _difference(one: Contender, other: Contender) -> str:
    """Which knobs make the folds differ, as far as the runs tell."""
    told = []
    for knob in _DRAWN_BY:
        values = [part.manifest["config"].get(knob) for part in (one, other)]
        if values[0] != values[1]:
            told.append(f"{knob}={values[0]} and {knob}={values[1]}")
    rows = [part.manifest.get("rows") for part in (one, other)]
    if rows[0] != rows[1]:
        told.append(" and ".join(f"--rows {count}" if count else "all rows" for count in rows))
    return ", ".join(told) or "drawn otherwise by the competition's code"
