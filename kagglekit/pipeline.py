"""The story of a run: read, fold, fit, answer, score, write the submission, remember it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import (
    backbones,
    board,
    devices,
    faults,
    files,
    folders,
    leaderboard,
    locks,
    problem,
    scoring,
    stamps,
    viewing,
)
from . import competition as competitions
from . import config as configs
from . import folds as fold_rules
from . import run as runs
from .answering import Fitted
from .asking import Asker
from .backbones import BackboneConfig
from .competition import Competition
from .config import Config
from .data import Data, Split
from .errors import DivergedError, UserError
from .folds import Fold
from .problem import Problem
from .progress import Progress, listening
from .recipe import Member, Predictor, Recipe
from .run import Answers, Key, Run
from .stages import go_on, stage
from .stamps import Stamp
from .views import Mean

_LEARNED_FROM = ("target", "oof", "covered")  # what a decision is fitted on
# knobs that folds depend on, which a recipe passes on to those it needs
_SHARED = ("folds", "folds_file", "seed", "broken")


@dataclass(frozen=True)
class Request:
    """What a user typed after `kagglekit train`."""

    name: str
    recipe: str | None = None  # None = the default one
    assignments: tuple[str, ...] = ()  # "key=value"
    data: Path | None = None
    seeds: int = 1
    folds: tuple[int, ...] | None = None  # None = all
    rows: int | None = None  # None = all
    fresh: bool = False
    force_resume: bool = False  # go on although source or versions differ
    slug: str | None = None
    weights: Path | None = None  # as typed; recipes find them by $KAGGLEKIT_WEIGHTS
    command: str = ""


class Part(Protocol):
    """What a recipe builds on: another recipe's job, or a finished run as it stands."""

    @property
    def run(self) -> Run:
        """Its run."""
        ...

    def oof_on(self, rows: np.ndarray) -> np.ndarray:
        """Its OOF answers on training rows; UserError where one has none."""
        ...

    def predictor(self, key: Key) -> Predictor:
        """What its member of that fold and seed answers."""
        ...


@dataclass(frozen=True)
class Job:
    """One recipe on one problem: all that the stages of its run share."""

    request: Request
    problem: Problem
    recipe_name: str
    config: Config
    folds: list[Fold]
    run: Run
    stamp: Stamp
    needed: Mapping[str, Part]

    @property
    def recipe(self) -> Recipe:
        """The recipe that fits."""
        return self.problem.competition.recipes[self.recipe_name]

    @property
    def data(self) -> Data:
        """The data in memory."""
        return self.problem.data

    @property
    def ask(self) -> Asker:
        """What asks its fitted members."""
        return Asker(self.recipe, self.config, self.run, self.test, _chooses_views(self))

    @property
    def seeds(self) -> list[int]:
        """The seeds asked for now."""
        return [self.config.seed + number for number in range(self.request.seeds)]

    @property
    def fold_keys(self) -> list[Key]:
        """The members that are scored: those asked for now, and those the run has been scored on.

        A run only grows: after all folds, `--folds 0` takes none away.
        """
        asked = range(len(self.folds)) if self.request.folds is None else self.request.folds
        keys = {(seed, fold) for seed in self.seeds for fold in asked}
        keys |= {(key.seed, key.fold) for key in self.run.members() if key.fold is not None}
        return [Key(fold, seed) for seed, fold in sorted(keys)]

    @property
    def keys(self) -> list[Key]:
        """All members; a seed's fit on all rows waits until all of its folds are wanted."""
        keys = self.fold_keys
        if self.config.final != "refit":
            return keys
        folds_of = Counter(key.seed for key in keys)
        # a blend may have nothing to learn from before a fold, or no answers to it
        possible = sum(len(train) > 0 < len(valid) for train, valid in self.folds)
        whole = [seed for seed, folds in folds_of.items() if folds == possible]
        return keys + [Key(None, seed) for seed in whole]

    @property
    def test(self) -> Split:
        """The rows to answer."""
        return self.data.split(np.arange(len(self.data.test)), "test")

    def rows(self, key: Key) -> Fold:
        """(train, valid) rows of a member; a fit on all rows validates none."""
        if key.fold is not None:
            return self.folds[key.fold]
        used = [rows for fold in self.folds for rows in fold]
        return np.unique(np.concatenate(used)), np.zeros(0, np.int64)

    def oof_on(self, rows: np.ndarray) -> np.ndarray:
        """The OOF answers of the finished run on `rows`."""
        members = {key: _answered(self, key) for key in self.fold_keys}
        oof = _out_of_fold(self, viewing.as_kept(self.run, members, _mean(self)))
        missing = int((~oof.covered[rows]).sum())
        if missing:
            raise UserError(
                f"{self.recipe_name} has no OOF answer for {missing} training rows: a recipe that "
                "builds on it needs folds that cover every row"
            )
        return oof.answers[rows]

    def predictor(self, key: Key) -> Predictor:
        """What a member of the finished run answers."""
        return Fitted(self.problem.competition, self.run).predictor(key)

    @property
    def csv(self) -> Path:
        """Where the submission goes."""
        return folders.submissions() / self.problem.name / f"{self.run.name}.csv"


@faults.explained()
def train(request: Request, progress: Progress) -> dict[str, Any]:
    """Everything from the download to the row on the leaderboard; the summary of the run.

    A finished run is not trained again; a broken one goes on where it stopped.
    """
    with visiting(request.command), _caches(request.fresh), progress, listening(progress):
        job = prepare(request, progress)
        trained = complete(job, progress)
    return {**summary(job), "trained": trained}


def visiting(command: str) -> contextlib.AbstractContextManager[Any]:
    """Keep other processes from removing caches that this one may be reading."""
    try:
        return locks.visiting(folders.cache(), command)
    except OSError:  # a cache that cannot be written to may still be read
        return contextlib.nullcontext()


@contextlib.contextmanager
def _caches(fresh: bool) -> Iterator[None]:
    """The cache folder; with --fresh an empty one that is gone afterwards."""
    if not fresh:
        yield
        return
    usual = os.environ.get("KAGGLEKIT_CACHE")
    folders.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folders.cache(), prefix="fresh-") as empty:
        os.environ["KAGGLEKIT_CACHE"] = empty
        try:
            yield
        finally:
            del os.environ["KAGGLEKIT_CACHE"]
            if usual is not None:
                os.environ["KAGGLEKIT_CACHE"] = usual


def complete(job: Job, progress: Progress) -> bool:
    """Do what is left of a run, and of those it needs; whether anything was."""
    return _finish(job, progress, set())


# --- prepare ------------------------------------------------------------------------------------


def prepare(request: Request, progress: Progress) -> Job:
    """Read the data, choose the recipe, resolve its knobs, fold; nothing is written yet."""
    competition = problem.find(request.name, request.slug)
    name = request.recipe or _default_recipe(competition, request, progress)
    # knobs are read before data: a typing error should not cost a minute
    recipe = competitions.recipe(competition, request.name, name)
    configs.override(recipe.config, request.assignments)
    if request.weights is not None and not competitions.reads_weights(competition, name):
        raise UserError(f"--weights: {name} of {request.name} starts from no pretrained weights")
    with stage("load"):
        read = problem.read(request.name, competition, request.data, progress)
    return _job(read, name, request)


def _default_recipe(competition: Competition, request: Request, progress: Progress) -> str:
    """The recipe where none is typed; says so where it is not the competition's first.

    Practice data are to be tried by anyone, so there a start from pretrained weights gives way
    where none are here. On real data that would be a silent loss: there it is an error.
    """
    first = next(iter(competition.recipes))
    name = competitions.default_recipe(competition, devices.has_gpu())
    if name != first:
        progress.say(f"no GPU here: taking {name} ({first} is the default where there is one)")
    if not competitions.reads_weights(competition, name):
        return name
    source = folders.find_data(request.name, request.data)
    if source is not None and source.kind != "practice":
        return name
    starts = (competition.recipes[n].config for n in competitions.from_weights(competition, name))
    wanted = [config for config in starts if isinstance(config, BackboneConfig)]
    without = [n for n in competition.recipes if not competitions.reads_weights(competition, n)]
    if not without or all(backbones.available(config) for config in wanted):
        return name
    progress.say(
        f"no pretrained weights here: taking {without[0]} ({name} is the default where there are "
        "some: name a file of weights with --weights)"
    )
    return without[0]


def _job(problem: Problem, recipe_name: str, request: Request) -> Job:
    recipe = competitions.recipe(problem.competition, problem.name, recipe_name)
    config: Config = configs.override(recipe.config, request.assignments)
    split = _split(problem, config, request)
    config = _resolved(recipe, config, problem.data)
    # their folds must be this recipe's, or their OOF answers would have seen what it is scored on
    passed_on = tuple(f"{k}={getattr(config, k)}" for k in _SHARED if hasattr(config, k))
    needed = {
        name: _job(problem, name, replace(request, recipe=name, assignments=passed_on, folds=None))
        for name in recipe.needs
    }
    stamp = stamps.stamp(
        config,
        problem.fingerprint,
        split,
        stamps.source_digest(folders.competitions() / problem.name),
        {
            "device": devices.device().type,
            "processor": devices.kernels(devices.device()),
            **{f"needs {name}": other.run.name for name, other in needed.items()},
        },
    )
    run = Run(folders.runs() / problem.name / f"{recipe_name}-{stamp.digest}")
    if request.force_resume:
        stamp = replace(stamp, forced=True)
        run = _begun_elsewise(run, recipe_name, stamp) or run
    return Job(request, problem, recipe_name, config, split, run, stamp, needed)


def _begun_elsewise(run: Run, recipe_name: str, stamp: Stamp) -> Run | None:
    """The last unfinished run that differs from `run` in source or versions alone."""
    if run.folder.exists():
        return None
    begun = {}
    for path in run.folder.parent.glob("*/run.json"):
        other = Run(path.parent)
        if runs.ASIDE in other.name:
            continue
        with contextlib.suppress(UserError):  # a damaged folder is none to go on with
            told = other.manifest()
            unfinished = told["recipe"] == recipe_name and told["finished"] is None
            if unfinished and stamp.forceable(told.get("stamp", {})):
                begun[told.get("started", "")] = other
    return begun[max(begun)] if begun else None


def _resolved(recipe: Recipe, config: Config, data: Data) -> Config:
    """The knobs with every "auto" decided, so that the run's name says what was done."""
    resolve = getattr(recipe, "resolve", None)
    if resolve is None:
        return config
    resolved: Config = resolve(config, data.split(np.arange(len(data.train)), "train"))
    return resolved


def _split(problem: Problem, config: Config, request: Request) -> list[Fold]:
    data = problem.data
    if not len(data.train):
        raise UserError(f"{problem.source.folder} has no training rows, and train needs them")
    split = fold_rules.split(data, config, problem.competition.folds)
    if request.rows is not None:
        split = fold_rules.subset(data, split, request.rows, config.seed)
    unknown = [fold for fold in request.folds or () if not 0 <= fold < len(split)]
    if unknown:
        raise UserError(f"--folds {unknown[0]}: there are folds 0 to {len(split) - 1}")
    return split


# --- fit and answer -----------------------------------------------------------------------------


def _finish(job: Job, progress: Progress, done: set[str]) -> bool:
    """Do what is left of a run, and of the runs it needs; whether anything was left.

    `done` are the runs that this command has been through, which several recipes may need.
    """
    for name, other in job.needed.items():
        if isinstance(other, Job) and other.run.name not in done:
            progress.say(f"{job.recipe_name} needs {name}")
            _finish(other, progress, done)
    done.add(job.run.name)
    with files.explained(job.run.folder):
        lock = locks.held(job.run.folder, job.request.command, progress.say)
    with lock:
        return _train(job, progress)


def _train(job: Job, progress: Progress) -> bool:
    """What is left of one run, which is this process's alone; whether anything was."""
    _open(job, progress)
    waiting = [key for key in job.keys if not job.run.finished(key)]
    if waiting:
        _fit(job, waiting, progress)
    left = bool(waiting) or not _concluded(job)
    if left:
        with stage("write"):
            _conclude(job)
    else:
        progress.say(f"{job.run.name} is trained already; --fresh trains it again")
    _record(job)
    if left:
        board.refresh(folders.runs(), folders.submissions())
    return left


def _open(job: Job, progress: Progress) -> None:
    """Make the run's folder and write down what it is, before the first batch."""
    if job.request.fresh and (aside := runs.set_aside(job.run)):
        progress.say(f"the earlier run is kept as {aside.name}")
    folder = job.run.folder
    other = None if job.stamp.forced else _begun_elsewise(job.run, job.recipe_name, job.stamp)
    if other is not None:
        progress.say(f"{other.name} is unfinished, but its source or its libraries were others: "
                     "this begins anew; --force-resume would go on with it")  # fmt: skip
    _admit(job, progress)
    for needed in (job.csv.parent, folder):  # before the training, not after it
        _make(needed)
        files.sweep(needed)
    job.run.tidy()
    progress.attach_log(folder / "run.log")
    _say_knobs(job, progress)
    files.write_json(folder / "config.json", asdict(job.config))
    if not (folder / "folds.csv").exists():
        everything = job.data.split(np.arange(len(job.data.train)), "valid")
        fold_rules.save(job.folds, everything.ids, folder / "folds.csv")
    if not (folder / "run.json").exists():
        files.write_json(folder / "run.json", _manifest(job))
    wanted = [key.name for key in job.keys]
    if job.run.manifest().get("wanted") != wanted:
        _note(job, wanted=wanted, command=job.request.command)
    _record(job)


def _admit(job: Job, progress: Progress) -> None:
    """Refuse to go on with a run that was begun with something else, unless that is forced."""
    if not (job.run.folder / "run.json").exists() or all(map(job.run.finished, job.keys)):
        return
    manifest = job.run.manifest()
    passed = job.stamp.admit(manifest.get("stamp", {}), f"run {job.run.name}")
    if passed:
        progress.say(f"{job.run.name} was begun with other {', '.join(passed)}: forced to go on")
        forced = [*manifest.get("forced", []), {"when": runs.now(), "differs": passed}]
        _note(job, forced=forced, stamp=dict(job.stamp.parts))


def _make(folder: Path) -> None:
    """A folder that can be written to."""
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def _say_knobs(job: Job, progress: Progress) -> None:
    """The knobs that are not as the recipe has them; the log has them all."""
    usual = asdict(job.recipe.config)
    knobs = {key: configs.typed(value) for key, value in asdict(job.config).items()}
    turned = [f"{key}={text}" for key, text in knobs.items() if text != configs.typed(usual[key])]
    progress.say(f"run {job.run.name}" + (": " if turned else "") + " ".join(turned))
    progress.note("all knobs: " + " ".join(f"{key}={text}" for key, text in knobs.items()))


def _record(job: Job) -> None:
    leaderboard.record(folders.runs(), folders.submissions(), job.problem.name, job.run.name)


def _manifest(job: Job) -> dict[str, Any]:
    source = job.problem.source
    return {
        "run": job.run.name,
        "competition": job.problem.name,
        "recipe": job.recipe_name,
        "slug": job.problem.competition.slug,
        "started": runs.now(),
        "finished": None,
        "config": asdict(job.config),
        "seeds": [],
        "members": [],
        "failed": {},
        "rows": job.request.rows,
        "folds_wanted": len(job.folds),
        "needs": {name: other.run.name for name, other in job.needed.items()},
        "data": {
            "folder": str(source.folder.resolve()),
            "kind": source.kind,
            "fingerprint": job.problem.fingerprint,
        },
        "classes": list(job.data.classes),
        "columns": [str(name) for name in job.data.test.columns],
        "inputs": _input_shape(job.data),
        "device": devices.describe(devices.device()),
        "precision": getattr(job.config, "precision", "fp64"),
        "versions": stamps.versions(),
        "stamp": dict(job.stamp.parts),
        "command": job.request.command,
        "seconds": 0.0,
    }


def _input_shape(data: Data) -> list[int] | None:
    """The shape of what models read of one row; None where that is columns of the table."""
    return None if data.test_inputs is None else [int(n) for n in data.test_inputs.shape[1:]]


def _fit(job: Job, waiting: Sequence[Key], progress: Progress) -> None:
    """Let the recipe fit the members that are not finished, and answer each as it is done.

    A member whose numbers burst stops alone: DivergedError is raised when the others are finished.
    """
    progress.start([key.name for key in waiting], getattr(job.config, "epochs", 0))
    fitting = _Fitting(job, progress, len(waiting))
    members = {key: fitting.member(key) for key in waiting}
    try:
        with stage("train"):
            failed = _failed(job, list(members.values()))
            for key in waiting:  # of a recipe that did not say when they were done
                if key.name not in failed and key not in fitting.answered:
                    fitting.answer(members[key])
    except BaseException:  # also of a session that is interrupted
        with contextlib.suppress(UserError):  # what went wrong first says more
            fitting.clock()
        raise
    fitting.clock()
    _note(job, failed=failed)
    if failed:
        for sentence in failed.values():
            progress.say(sentence)
        _record(job)
        first = next(iter(failed.values()))
        raise DivergedError(
            f"{job.run.name} is incomplete: {len(failed)} of {len(job.keys)} members stopped "
            f"({first}); the others are finished and are kept"
        )


def _failed(job: Job, members: Sequence[Member]) -> dict[str, str]:
    """Fit the members; the names of those whose numbers burst, and why."""
    try:
        job.recipe.fit(members, job.config)
    except DivergedError as error:
        if error.members or len(members) == 1:
            return error.members or {members[0].name: str(error)}
        # which one is not said, and those after it were not tried
        return {name: why for member in members for name, why in _failed(job, [member]).items()}
    return {}


class _Fitting:
    """The members of a run as they are fitted: each is answered once it is done.

    Members may be fitted side by side, by several threads.
    """

    def __init__(self, job: Job, progress: Progress, count: int) -> None:
        self.job, self.progress, self.count = job, progress, count
        self.answered: set[Key] = set()
        self.writing = threading.RLock()  # what all members share: run.json, the history
        self.started = self.last = time.monotonic()
        # by thread, when the last member of its lane was done
        self.ended: dict[threading.Thread, float] = {}

    def member(self, key: Key) -> Member:
        """The member as the recipe gets it."""
        member = _member(self.job, key, self.progress, self.writing)
        return replace(member, done=lambda *others: self.answer(member, *others))

    def answer(self, *members: Member) -> None:
        """Let fitted members answer, those that have not done so."""
        waiting = [one for one in members if Key.parse(one.name) not in self.answered]
        if not waiting:
            return
        began = self._began()
        go_on("predict")
        self.job.ask.together(waiting)
        for member in waiting:
            self._answer(member, began)
        self.ended[threading.current_thread()] = time.monotonic()

    def _began(self) -> float:
        """When what is done now began: after the last of this lane, or of lanes that are over."""
        here = threading.current_thread(), threading.main_thread()
        over = [end for lane, end in self.ended.items() if lane in here or not lane.is_alive()]
        return max([self.started, *over])

    def _answer(self, member: Member, began: float) -> None:
        key = Key.parse(member.name)
        score = _answer(self.job, key, member)
        with self.writing:
            self.answered.add(key)
            self.clock()
            self.progress.finish(key.name, score, time.monotonic() - began)
        if len(self.answered) < self.count:
            go_on("train")

    def clock(self) -> None:
        """Add the seconds since the last call to the run's."""
        passed = time.monotonic() - self.last
        self.last += passed
        _note(self.job, seconds=self.job.run.manifest()["seconds"] + passed)


def _member(job: Job, key: Key, progress: Progress, writing: threading.RLock) -> Member:
    train_rows, valid_rows = job.rows(key)
    folder = job.run.member(key)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = job.run.manifest()
    return Member(
        train=job.data.split(train_rows, "train"),
        valid=job.data.split(valid_rows, "valid"),
        seed=key.seed,
        folder=folder,
        name=key.name,
        before={name: other.predictor(key) for name, other in job.needed.items()},
        oof={name: other.oof_on(train_rows) for name, other in job.needed.items()},
        dependence=fold_rules.dependence(
            job.data, job.problem.competition.folds, job.folds if job.needed else ()
        ).of(train_rows),
        record=_Recorder(job, key, valid_rows, progress, writing),
        stamp=replace(job.stamp, forced=job.stamp.forced or bool(manifest.get("forced"))),
    )


class _Recorder:
    """Notes an epoch in the history and on the screen; its score steers nothing."""

    def __init__(
        self, job: Job, key: Key, rows: np.ndarray, progress: Progress, writing: threading.RLock
    ) -> None:
        self.job, self.key, self.rows, self.progress = job, key, rows, progress
        self.writing = writing
        self.noted: int | None = None  # the last epoch of this session

    def __call__(
        self, epoch: int, answers: np.ndarray | None = None, **figures: float
    ) -> float | None:
        score = None
        if answers is not None and len(self.rows):
            problem = self.job.problem
            score = scoring.score_member(problem.competition, problem.data, self.rows, answers)
            figures["score"] = score
        with self.writing:
            # what an earlier session noted beyond its last checkpoint, or a cohort begun again
            if self.noted is None or epoch <= self.noted:
                self.job.run.forget(self.key, epoch)
            self.noted = epoch
            self.job.run.note(self.key, epoch, figures)
            self.progress.epoch(self.key.name, epoch, figures)
        return score


def _answer(job: Job, key: Key, member: Member) -> float | None:
    """Let a fitted member answer its validation rows and the test; its score."""
    go_on("predict")
    answers = job.ask(member)
    go_on("write")
    job.run.keep(key, answers, (member.valid.ids, job.test.ids))
    if key.fold is None:
        return None
    rows, valid = answers.valid_rows, answers.valid
    return scoring.score_member(job.problem.competition, job.data, rows, valid)


# --- score and submit ---------------------------------------------------------------------------


def _conclude(job: Job) -> None:
    """Score what the members answered, write the submission, and note the run as finished."""
    competition, data, folder = job.problem.competition, job.data, job.run.folder
    _note(job, finished=None)  # until all files are of the same members again
    (folder / board.REPORT).unlink(missing_ok=True)  # of what there was before
    members = {key: _answered(job, key) for key in job.keys}
    if _chooses_views(job):
        _choose_views(job, members)
    members = viewing.as_kept(job.run, members, _mean(job))
    oof = _out_of_fold(job, members)
    test = _test_answers(job, members)
    files.write_array(folder / "oof.npy", oof.answers)
    files.write_array(folder / "covered.npy", oof.covered)
    files.write_array(folder / "target.npy", data.target)
    files.write_array(folder / "test.npy", test)
    decided = competition.decision(data.target[oof.covered], oof.answers[oof.covered])(test)
    competition.submission.write(data, decided, job.csv)
    seconds = job.run.manifest()["seconds"]
    scores = {
        **_scores(job, members),
        "practice_lb": _practice_score(job, decided),
        "seconds": seconds,
    }
    files.write_json(folder / "scores.json", scores)
    _note(
        job,
        finished=runs.now(),
        failed={},  # also where a process was killed before it could say so
        seeds=sorted({key.seed for key in members}),
        members=[key.name for key in members],
        views=job.run.views_digest(),
        submission=str(job.csv.resolve()),
    )


def _answered(job: Job, key: Key) -> Answers:
    """What a member answered to the rows of this job, and to no others."""
    answers = job.run.answers(key)
    same = np.array_equal(answers.valid_rows, job.rows(key)[1])
    if not same or len(answers.test) != len(job.data.test) or answers.test.ndim != 2:
        raise UserError(
            f"{job.run.member(key) / 'answers.npz'} answers other rows than this run has: delete"
            " it, and train again"
        )
    return answers


def _chooses_views(job: Job) -> bool:
    """Whether the run keeps those views alone that help."""
    return getattr(job.config, "views", "all") == "auto"


def _choose_views(job: Job, members: Mapping[Key, Answers]) -> None:
    """Write down which views help, for the test and for the rows of each fold.

    The members' answers stay as they are on the disk, all views together: what helps may change
    when folds or seeds are added.
    """
    choice = viewing.choose(job.problem.competition, job.data, members, _mean(job))
    folds = {str(fold): list(names) for fold, names in choice.by_fold.items()}
    told = {"kept": list(choice.kept), "folds": folds}
    files.write_json(job.run.folder / "views.json", told)


def _mean(job: Job) -> Mean:
    mean: Mean = getattr(job.config, "tta_mean", "probabilities")
    return mean


def _concluded(job: Job) -> bool:
    """Whether scores and submission are of exactly the members wanted."""
    names = ["oof.npy", "covered.npy", "test.npy", "scores.json"]
    left = [job.run.folder / name for name in names + ["views.json"] * _chooses_views(job)]
    whole = all(path.exists() for path in [*left, job.csv])
    finished = job.run.manifest()["finished"] is not None
    return whole and finished and job.run.members() == job.keys


def _out_of_fold(job: Job, members: Mapping[Key, Answers]) -> scoring.OutOfFold:
    folded = {key: answers for key, answers in members.items() if key.fold is not None}
    by_fold = scoring.by_fold(folded, job.problem.competition.combine)
    return scoring.out_of_fold(by_fold, len(job.data.train))


def _test_answers(job: Job, members: Mapping[Key, Answers]) -> np.ndarray:
    """The fits on all rows answer where there are any, else all members together."""
    refits = [answers.test for key, answers in members.items() if key.fold is None]
    everyone = [answers.test for answers in members.values()]
    return job.problem.competition.combine(np.stack(refits or everyone))


def _scores(job: Job, members: Mapping[Key, Answers]) -> dict[str, Any]:
    competition, kept = job.problem.competition, job.run.kept_views(None)
    return scoring.score_run(competition, job.data, members, _mean(job), kept)


def _practice_score(job: Job, decided: np.ndarray) -> float | None:
    """The score on the withheld answers of practice data; None for real data."""
    solution = folders.practice_answers(job.problem.name) / "solution.csv"
    if job.problem.source.kind != "practice" or not solution.exists():
        return None
    target = scoring.solution(job.data, solution)
    return job.problem.competition.metric(target, decided, job.data.test)


def _note(job: Job, **facts: Any) -> None:
    """Change facts in run.json."""
    files.write_json(job.run.folder / "run.json", {**job.run.manifest(), **facts})


def summary(job: Job) -> dict[str, Any]:
    """What `train --json` prints."""
    scores, manifest = job.run.scores(), job.run.manifest()
    assert scores is not None
    return {
        "run": job.run.name,
        "competition": job.problem.name,
        "recipe": job.recipe_name,
        **scores,
        "submission": str(job.csv),
        "device": manifest["device"],
        "precision": manifest["precision"],
        "data": manifest["data"],
        "config": manifest["config"],
        "seeds": manifest["seeds"],
        "folder": str(job.run.folder),
    }


# --- predict ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What a user typed after `kagglekit predict`."""

    name: str
    run: str  # or the beginning of its name
    data: Path
    out: Path | None = None
    weights: Path | None = None  # as typed; predictors find them by $KAGGLEKIT_WEIGHTS


@faults.explained()
def predict(question: Question, progress: Progress) -> dict[str, Any]:
    """Let a finished run answer the test set in `data`; where its submission was written.

    Raises UserError where the data there are not of the kind that the run was trained on, and for
    weights that the run does not read.
    """
    name, folder = question.name, question.data
    competition = problem.find(name)
    fitted = Fitted(competition, runs.find(folders.runs(), name, question.run))
    run = fitted.run
    if question.weights is not None and not any(one.backbone for one in fitted.everyone()):
        raise UserError(f"--weights: {run.name} has all that it needs to answer: leave it out")
    predictor = fitted.whole()
    source = folders.find_data(name, folder)
    assert source is not None
    progress.say(source.describe())
    data = _as_trained(problem.load(competition, source.folder), fitted, source.folder)
    answers = predictor(data.split(np.arange(len(data.test)), "test"))
    decision = competition.decision(*_decided_on(run))
    path = question.out or _answers_path(name, run, source.folder)
    competition.submission.write(data, decision(answers), path)
    return {
        "run": run.name,
        "competition": name,
        "data": str(source.folder),
        "rows": len(data.test),
        "submission": str(path),
    }


def _answers_path(name: str, run: Run, data: Path) -> Path:
    fingerprint = files.fingerprint(data, folders.cache())
    return folders.submissions() / name / f"{run.name}@{fingerprint[:8]}.csv"


def _decided_on(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Targets and OOF answers of the rows that the run's decision is fitted on."""
    target, oof, covered = (files.read_array(run.folder / f"{part}.npy") for part in _LEARNED_FROM)
    sound = covered.dtype == bool and covered.ndim == 1 and oof.ndim >= 1 and target.ndim >= 1
    if not sound or not len(target) == len(oof) == len(covered):
        raise UserError(
            f"{', '.join(_LEARNED_FROM)} in {run.folder} are not of the same rows: restore copies,"
            " or train it again"
        )
    return target[covered], oof[covered]


def _as_trained(data: Data, fitted: Fitted, folder: Path) -> Data:
    """`data` with the classes and the order of columns that the run was trained with."""
    manifest, run = fitted.manifest, fitted.run.name
    classes = tuple(manifest["classes"])
    if data.classes and data.classes != classes:
        raise UserError(
            f"{folder} has the classes {', '.join(data.classes)}, but {run} was trained on "
            f"{', '.join(classes)}"
        )
    columns, shape = manifest["columns"], _input_shape(data)
    lacking = [column for column in columns if column not in data.test.columns]
    if lacking:
        raise UserError(f"{folder}: the test set lacks the column {lacking[0]!r} that {run} reads")
    if shape != manifest["inputs"]:
        raise UserError(
            f"{folder}: one row's input has shape {shape}, but {run} reads {manifest['inputs']}"
        )
    return replace(data, classes=classes, test=data.test[columns])
