"""Finished runs mixed into a run of its own: no model is trained, and none is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import config as configs
from . import contenders, devices, faults, files, folders, mixing, pipeline, problem, stamps
from .blend import RECIPE, Blend, BlendConfig
from .contenders import Contender, Contest
from .data import Split
from .decisions import Combine
from .errors import UserError
from .folds import dependence
from .progress import Progress, listening
from .recipe import Predictor
from .run import Key, Run


@dataclass(frozen=True)
class Request:
    """What a user typed after `kagglekit blend`."""

    name: str
    wanted: tuple[str, ...] = ()  # runs; none = all that compare with the best one
    assignments: tuple[str, ...] = ()  # "key=value"
    data: Path | None = None
    command: str = ""


@faults.explained()
def blend(request: Request, progress: Progress) -> dict[str, Any]:
    """The summary of the blend's run, as `train` gives it, and what it was made of.

    `parts` are the runs with their CV scores, the best first, and the weight of each in the test
    answers where the mix has weights; `method` is how they were mixed there. A blend of the same
    answers is not made again. Raises UserError for fewer than two runs, for runs that do not
    compare, and for runs that answered different rows.
    """
    with pipeline.visiting(request.command), progress, listening(progress):
        contest = _contest(request, progress)
        _same_rows(contest)
        _alike(contest)
        scored = _learnable(contest)
        job = _job(request, contest, scored)
        if len(scored) < len(contest.contenders[0].folds):
            progress.say(f"scored on {_named(scored)}: nothing was answered before the others")
        made = pipeline.complete(job, progress)
    return {**pipeline.summary(job), "trained": made, **_told(contest, job.run)}


def _contest(request: Request, progress: Progress) -> Contest:
    """The runs that were named, or all finished ones with the data, folds and rows of the best."""
    if len(request.wanted) == 1:
        raise UserError(f"a blend of {request.wanted[0]} alone is that run: name two runs or more")
    if request.wanted:
        return contenders.gather(request.name, request.wanted, request.data)
    problem.find(request.name)  # a name mistyped is no run that is missing
    found = _answering_alike(contenders.comparable(request.name, progress.say), progress)
    if len(found) > 1:
        contest = contenders.gather(request.name, found, request.data, progress.say)
        if len(contest.contenders) > 1:
            progress.say(f"blending {', '.join(one.name for one in contest.contenders)}")
            return contest
    raise UserError(
        f"there are no two finished runs of {request.name} with the same data and folds: "
        f"train another recipe, as in kagglekit train {request.name} RECIPE"
    )


def _answering_alike(runs: Sequence[Run], progress: Progress) -> list[str]:
    """Those that are no blends and have answered the rows that the first has."""

    def rows(run: Run) -> np.ndarray:
        return files.read_array(run.folder / "covered.npy")

    parts = [run for run in runs if run.manifest()["recipe"] != RECIPE]
    covered = contenders.each(parts, rows, progress.say)
    return [run.name for run in covered
            if np.array_equal(covered[run], next(iter(covered.values())))]  # fmt: skip


def _same_rows(contest: Contest) -> None:
    most = max(contest.contenders, key=lambda one: int(one.oof.covered.sum()))
    for one in contest.contenders:
        if not np.array_equal(one.oof.covered, most.oof.covered):
            raise UserError(
                f"{one.name} has not answered all rows that {most.name} has: train its other folds"
            )


def _alike(contest: Contest) -> None:
    """Refuse runs whose answers to a row differ in shape, as a class and its probabilities do."""
    first, *others = contest.contenders
    for one in others:
        shapes = [list(part.oof.answers.shape[1:]) for part in (first, one)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{first.name} answers a row with numbers of shape {shapes[0]}, {one.name} of "
                f"{shapes[1]}: only answers of one shape mix"
            )


def _learnable(contest: Contest) -> list[int]:
    """The folds whose mix has answers of other rows to learn from.

    All have, or runs that lack folds are refused: only where folds go forward in time has the
    first nothing before it that was answered.
    """
    first = contest.contenders[0]
    split, covered = first.run.folds(), first.oof.covered
    found = [fold.fold for fold in first.folds if covered[split[fold.fold][0]].any()]
    forward = dependence(contest.data, contest.competition.folds).moments is not None
    if len(found) < (1 if forward else len(first.folds)):
        raise UserError(
            "a blend learns from the answers of other folds than it is scored on, and these runs "
            "have too few: train two folds of each at least"
        )
    return found


def _named(folds: Sequence[int]) -> str:
    return f"fold{'' if len(folds) == 1 else 's'} {', '.join(map(str, folds))}"


def _demand_method(contest: Contest, config: BlendConfig) -> None:
    """Refuse a method that the answers do not bear, before a folder is made for it."""
    covered = contest.contenders[0].oof.covered
    answers = np.stack([one.oof.answers[covered] for one in contest.contenders])
    mixing.demand(mixing.Task(answers, contest.data.target[covered]), config.method)


def _job(request: Request, contest: Contest, scored: Sequence[int]) -> pipeline.Job:
    first = contest.contenders[0]
    parts = tuple(sorted(one.name for one in contest.contenders))
    drawn = first.manifest["config"]
    shared = {key: drawn[key] for key in ("folds", "folds_file", "seed") if key in drawn}
    competition = contest.competition
    recipe = Blend(parts, BlendConfig(**shared), competition.metric, competition.decision)
    config: BlendConfig = configs.override(recipe.config, request.assignments)
    if (config.folds, config.folds_file) != (recipe.config.folds, recipe.config.folds_file):
        raise UserError("a blend has the folds of its runs: leave out folds= and folds_file=")
    _demand_method(contest, config)
    recipe.demand_read(config)
    read = replace(
        contest.problem,
        competition=replace(competition, recipes={**competition.recipes, RECIPE: recipe}),
    )
    covered = first.oof.covered
    split = [tuple(rows[covered[rows]] for rows in fold) for fold in first.run.folds()]
    needed = {one.name: _Part(one, competition.combine) for one in contest.contenders}
    stamp = stamps.stamp(
        config,
        contest.problem.fingerprint,
        split,
        stamps.source_digest(folders.competitions() / request.name),
        {
            "device": devices.device().type,
            # a run may have more seeds tomorrow: then it is another blend
            **{f"needs {name}": _digest(needed[name].run) for name in parts},
        },
    )
    typed = pipeline.Request(
        name=request.name,
        recipe=RECIPE,
        assignments=request.assignments,
        data=request.data,
        folds=None if len(scored) == len(split) else tuple(scored),
        rows=first.manifest.get("rows"),
        command=request.command,
    )
    run = Run(folders.runs() / request.name / f"{RECIPE}-{stamp.digest}")
    return pipeline.Job(
        typed, read, RECIPE, config, split, run, stamp, {name: needed[name] for name in parts}
    )


def _digest(run: Run) -> str:
    answers = [files.file_digest(run.folder / f"{part}.npy") for part in ("oof", "test")]
    return " ".join([run.name, *answers])


@dataclass(frozen=True)
class _Part:
    """A finished run that answers from what it has kept."""

    contender: Contender
    combine: Combine

    @property
    def run(self) -> Run:
        """The run."""
        return self.contender.run

    def oof_on(self, rows: np.ndarray) -> np.ndarray:
        """Its OOF answers on `rows`."""
        return self.contender.oof.answers[rows]

    def predictor(self, key: Key) -> Predictor:
        """Answers to the validation rows of a fold, and to the test rows."""

        def answer(split: Split) -> np.ndarray:
            if split.stage == "test":
                return self._test(key)
            (fold,) = (fold for fold in self.contender.folds if fold.fold == key.fold)
            return fold.answers

        return answer

    def _test(self, key: Key) -> np.ndarray:
        """(test rows, ...): the run's answers, or those of one fold's members together."""
        if key.fold is None:
            return files.read_array(self.run.folder / "test.npy")
        members = self.contender.members.items()
        return self.combine(np.stack([part.test for k, part in members if k.fold == key.fold]))


def _told(contest: Contest, run: Run) -> dict[str, Any]:
    """What the test answers were mixed of, and how: the fit on all rows, else the last fold's.

    The parts' scores are of the rows that the blend has answered, the best first.
    """
    keys = run.members()
    learned = files.read_arrays(run.member(keys[-1]) / "weights.npz")
    shares = learned["weights"].mean(axis=1) if "weights" in learned else None
    places = {name: place for place, name in enumerate(sorted(c.name for c in contest.contenders))}
    rows = np.flatnonzero(files.read_array(run.folder / "covered.npy"))
    alike = replace(contest, rows=rows)
    parts: list[dict[str, Any]] = [
        {
            "run": one.name,
            "cv": float(score),
            "weight": None if shares is None else float(shares[places[one.name]]),
        }
        for one, score in zip(contest.contenders, alike.judged.whole(), strict=True)
    ]
    better = contest.competition.metric.greater_is_better
    parts.sort(key=lambda part: part["cv"], reverse=better)
    return {"method": str(learned["method"]), "parts": parts}
