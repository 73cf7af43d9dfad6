"""A run as its report sees it: its files, and the data it was trained on if here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from . import calibration, diagnosis, files, folders, leaderboard, paired, problem, scoring
from . import folds as fold_rules
from . import run as runs
from .competition import Competition
from .data import INDEPENDENT, Data, Dependence
from .errors import UserError
from .folds import Fold
from .run import Answers, Key, Run

Kind = Literal["classes", "numbers", "other"]  # of what the answers are

_ARRAYS = ("target", "oof", "covered")
_FIGURES = {
    "folds": ("fold", "score"), "members": ("fold", "seed", "score"),
    "views": ("alone", "without", "gain"),
}  # fmt: skip
# what a line that a killed process tore may raise
_TORN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_NAMED = 4  # missing members
_HUGE = 1e300  # beyond which nothing can be drawn


@dataclass(frozen=True)
class Evidence:
    """What is known of one run; arrays are of the rows that a fold validated.

    `rows` are their positions in the training table, `fold` the number of the fold that validated
    each, `decided` the answers as they were scored: decided without the row's own fold.
    `data` is None where `missing` says why the training data cannot be shown. Of a run that is not
    finished there is what its members have answered so far, and `unfinished` says what is not.
    """

    run: Run
    competition: Competition
    manifest: dict[str, Any]
    scores: dict[str, Any]
    folds: list[Fold]
    rows: np.ndarray
    fold: np.ndarray
    target: np.ndarray
    answers: np.ndarray
    decided: np.ndarray
    data: Data | None
    missing: str
    tested: np.ndarray  # (test rows, ...) answers to the test
    unfinished: str = ""

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty where numbers are answered."""
        return list(self.manifest["classes"])

    @property
    def kind(self) -> Kind:
        """Whether classes are answered, numbers, or what has no figures here (masks, boxes)."""
        width = self.answers.shape[1] if self.answers.ndim == 2 else 0
        if self.classes:
            sound = self.target.ndim == 1 and width == len(self.classes)
            inside = len(self.target) and 0 <= self.target.min() <= self.target.max() < width
            return "classes" if sound and inside else "other"
        sound = self.target.ndim <= 2 and width == diagnosis.columns(self.target).shape[1]
        return "numbers" if sound and self.target.dtype.kind in "fiu" else "other"

    @cached_property
    def probable(self) -> bool:
        """Whether the answers are probabilities of classes."""
        return self.kind == "classes" and diagnosis.are_probabilities(
            self.answers, len(self.classes)
        )

    @property
    def answered(self) -> np.ndarray:
        """(rows,) the class that each row was answered with."""
        sound = self.decided.ndim == 1 and self.decided.dtype.kind in "iu"
        return self.decided.astype(np.int64) if sound else self.answers.argmax(1)

    @cached_property
    def losses(self) -> np.ndarray | None:
        """(rows,) how badly each row was answered; None where that has no meaning."""
        if self.probable:
            return diagnosis.class_losses(self.target, self.answers)
        if self.kind == "numbers":
            return diagnosis.residual_losses(self.target, self.answers)
        return None

    @cached_property
    def table(self) -> pd.DataFrame:
        """What is known of the rows; no columns where the data are not here."""
        if self.data is None:
            return pd.DataFrame(index=self.rows)
        return self.data.train.iloc[self.rows]

    @cached_property
    def ids(self) -> np.ndarray:
        """(rows,) ids as text; row numbers where a table has none, or is not here."""
        if self.data is None:
            return self.rows.astype(str)
        return self.data.split(self.rows, "valid").ids

    @property
    def features(self) -> list[str]:
        """Columns of the table but the id."""
        known = [] if self.data is None else [self.data.id]
        return [str(name) for name in self.table.columns if name not in known]

    @cached_property
    def outputs(self) -> list[str]:
        """A name for each number of an answer."""
        count = self.answers.shape[1] if self.answers.ndim == 2 else 1
        if self.classes:
            return self.classes
        if self.data is not None and len(self.data.sample.columns) == count + 1:
            return [str(name) for name in self.data.sample.columns[1:]]
        return [f"output {number + 1}" for number in range(count)]

    def score(self, at: np.ndarray) -> float:
        """The metric of the rows at these positions; UserError where they have none."""
        table = self.table.iloc[at].reset_index(drop=True)
        try:
            return self.competition.metric(self.target[at], self.decided[at], table)
        except KeyError as error:  # a metric that reads columns, and the data are not here
            raise UserError(f"the metric reads the column {error}, which is not here") from error

    @cached_property
    def groups(self) -> np.ndarray | None:
        """(rows,) what the folds keep together, as text; None where rows stand alone."""
        column, folds = self.group_column, self.competition.folds
        if column is not None:
            return self.table[column].astype(str).to_numpy(str)
        if self.data is None or fold_rules.group_file(folds) is None:
            return None
        groups = fold_rules.groups(self.data, folds)
        return None if groups is None else groups[self.rows].astype(str)

    @cached_property
    def moments(self) -> np.ndarray | None:
        """(rows,) the rows' times as numbers, where folds go forward in time and data are here."""
        if self.data is None:
            return None
        return fold_rules.dependence(self.data, self.competition.folds).of(self.rows).moments

    @property
    def group_column(self) -> str | None:
        """The column whose values the folds keep together, where it is known here."""
        column = fold_rules.group_column(self.competition.folds)
        return column if column is not None and column in self.table.columns else None

    def interval(
        self, at: np.ndarray, draws: int | None = None, by_row: bool = False
    ) -> tuple[float, float] | None:
        """Of the metric of the rows at these positions, at 95 %, as `compare` gives it.

        Groups are drawn whole and times in blocks, but for `by_row`, inside of one group. None
        where the score does not vary, or too few rows have one.
        """
        dependence = INDEPENDENT if by_row else Dependence(self.groups, self.moments).of(at)
        table = self.table.iloc[at]
        metric = self.competition.metric
        try:
            judged = paired.judged(metric, self.target[at], [self.decided[at]], table, dependence)
            drawn = paired.bootstrap(judged) if draws is None else judged.resampled(draws, seed=0)
        except KeyError:  # a metric that reads columns, and the data are not here
            return None
        found = paired.score_interval(drawn[:, 0])
        return None if found is None or found[0] == found[1] else found

    @cached_property
    def cooled(self) -> np.ndarray | None:
        """(rows, classes) probabilities at the temperature that the other folds ask for.

        None where the run's scores tell of no calibration.
        """
        if not self.probable or not self.scores.get("calibration"):
            return None
        cooled = self.answers.copy()
        for number in np.unique(self.fold):
            here = self.fold == number
            found = calibration.temperature(self.target[~here], self.answers[~here])
            cooled[here] = calibration.scaled(self.answers[here], found)
        return cooled

    def history(self) -> list[dict[str, Any]]:
        """Every epoch of every member, in the order in which they were trained."""
        path = self.run.folder / "history.jsonl"
        if not path.is_file():
            return []
        found = {}
        for line in path.read_text("utf-8", errors="replace").splitlines():
            with suppress(*_TORN):
                noted = json.loads(line)
                figures = {key: value for key, value in noted.items() if _is_number(value)}
                member, epoch = str(noted["member"]), int(noted["epoch"])
                found[member, epoch] = {**figures, "member": member, "epoch": epoch}
        return list(found.values())


def gather(name: str, wanted: str | None) -> Evidence:
    """The evidence of run `wanted` of a competition, or of its best finished one.

    Raises UserError where there is none, or none of its folds has answered, or it is damaged.
    """
    competition = problem.find(name)
    run = _chosen(name, wanted)
    manifest, scores = run.manifest(), run.scores()
    if manifest["finished"] is None or scores is None:
        return _so_far(competition, run, manifest)
    folds = run.folds()
    target, oof, covered = _arrays(run, folds)
    scored = _scored(run, scores)
    if not _agree(scored, folds, covered):
        raise UserError(
            f"{run.folder}: scores.json, folds.csv, covered.npy are not of the same rows: restore"
            " copies, or train it again"
        )
    decided, fold = _decided(competition, target, oof, covered, [(n, folds[n]) for n in scored])
    rows = np.flatnonzero(covered)
    data, missing = _data(competition, manifest, len(target))
    return Evidence(
        run, competition, manifest, scores, folds, rows, fold[rows], target[rows], oof[rows],
        decided[rows], data, missing, files.read_array(run.folder / "test.npy"),
    )  # fmt: skip


def _so_far(competition: Competition, run: Run, manifest: dict[str, Any]) -> Evidence:
    """What the finished members of an unfinished run tell, scored as the whole would be."""
    command = manifest.get("command") or f"kagglekit train {manifest['competition']}"
    done = [Key.parse(path.parent.name) for path in run.folder.glob("*/answers.npz")]
    done = sorted((key for key in done if key.fold is not None), key=lambda k: (k.seed, k.fold))
    if not done:
        raise UserError(
            f"{run.name} is not finished, and none of its folds has answered yet: `{command}` goes "
            "on with it, and a report can follow"
        )
    folds, members = run.folds(), {key: run.answers(key) for key in done}
    data, missing = _data(competition, manifest, None)
    if data is None:
        raise UserError(f"{run.name} is not finished, and cannot be scored so far: {missing}")
    _demand_folds(run, members, folds, data)
    mean = manifest["config"].get("tta_mean", "probabilities")
    scores = scoring.score_run(competition, data, members, mean, None)
    scores = {**scores, "practice_lb": None, "seconds": manifest["seconds"]}
    answers = scoring.by_fold(members, competition.combine)
    oof = scoring.out_of_fold(answers, len(data.train))
    scored = [(part.fold, folds[part.fold]) for part in answers]
    decided, fold = _decided(competition, data.target, oof.answers, oof.covered, scored)
    rows = np.flatnonzero(oof.covered)
    names = [key.name for key in done]
    told = {**manifest, "members": names, "seeds": sorted({key.seed for key in done})}
    return Evidence(
        run, competition, told, scores, folds, rows, fold[rows], data.target[rows],
        oof.answers[rows], decided[rows], data, missing,
        competition.combine(np.stack([part.test for part in members.values()])),
        _left(manifest, run, command),
    )  # fmt: skip


def _demand_folds(
    run: Run, members: Mapping[Key, Answers], folds: Sequence[Fold], data: Data
) -> None:
    """Refuse answers to other rows than the folds and the data have."""
    if _rows_of(folds) > len(data.train):
        raise UserError(f"{run.folder}: folds.csv has more rows than the data: train it again")
    for key, part in members.items():
        assert key.fold is not None
        if key.fold >= len(folds) or not np.array_equal(part.valid_rows, folds[key.fold][1]):
            raise UserError(
                f"{run.member(key) / 'answers.npz'} answers other rows than folds.csv says: delete "
                "it, and train again"
            )


def _left(manifest: Mapping[str, Any], run: Run, command: str) -> str:
    """What an unfinished run lacks, in a sentence."""
    wanted = [str(name) for name in manifest.get("wanted", ())]
    lacking = [name for name in wanted if not (run.folder / name / "answers.npz").exists()]
    views = ", all views together" if manifest["config"].get("views") == "auto" else ""
    if not lacking:
        return (
            f"Not finished: all members have answered{views}, and are not put together yet; "
            f"`{command}` goes on with it"
        )
    named = ", ".join(lacking[:_NAMED]) + (" …" if len(lacking) > _NAMED else "")
    return (
        f"Not finished: {len(wanted) - len(lacking)} of {len(wanted)} members have answered{views},"
        f" {named} {'is' if len(lacking) == 1 else 'are'} missing; `{command}` goes on with it"
    )


def _chosen(name: str, wanted: str | None) -> Run:
    if wanted is not None:
        return runs.find(folders.runs(), name, wanted)
    best = leaderboard.best(folders.runs(), name, folders.submissions())
    if best is None:
        raise UserError(f"no finished run of {name} yet: kagglekit train {name} makes one")
    return Run(folders.runs() / name / best.run)


def _arrays(run: Run, folds: Sequence[Fold]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    target, oof, covered = (files.read_array(run.folder / f"{part}.npy") for part in _ARRAYS)
    last = _rows_of(folds) - 1
    if (
        not covered.dtype == bool
        or covered.ndim != 1
        or min(oof.ndim, target.ndim) < 1
        or not len(target) == len(oof) == len(covered) > last
        or not covered.any()
    ):
        raise UserError(
            f"{', '.join(_ARRAYS)} in {run.folder} are not of the same rows: restore copies,"
            " or train it again"
        )
    return target, oof, covered


def _rows_of(folds: Sequence[Fold]) -> int:
    """How many training rows there are at least, by the folds."""
    return 1 + max((int(rows.max(initial=-1)) for fold in folds for rows in fold), default=-1)


def _scored(run: Run, scores: dict[str, Any]) -> list[int]:
    """The folds that were scored; UserError where what is said of them is not sound."""
    numbers = [[item.get(name) for name in names] for part, names in _FIGURES.items()
               for item in scores.get(part) or ()]  # fmt: skip
    folds = [item.get("fold") for item in scores["folds"]]
    members = [item.get("seed") for item in scores["members"]]
    whole = all(isinstance(number, int) for number in [*folds, *members])
    if not (
        whole
        and all(map(_is_number, chain.from_iterable(numbers)))
        and all(_is_number(scores[name]) for name in ("cv", "mean", "std", "coverage", "seconds"))
        and _later_are_sound(scores)
    ):
        raise UserError(
            f"{run.folder / 'scores.json'} is not as kagglekit writes it: restore a copy, or train"
            " the run again"
        )
    return [int(fold) for fold in folds]


def _later_are_sound(scores: dict[str, Any]) -> bool:
    """Whether what earlier versions did not write is whole where it is there."""
    told, repeats = scores.get("calibration"), scores.get("repeats")
    try:
        numbers = [
            *(told[when][name] for when in ("before", "after") for name in ("ece", "log_loss")),
            told["temperature"],
        ] if told is not None else []  # fmt: skip
        if repeats is not None and repeats["std"] is not None:
            numbers += [repeats["mean"], repeats["std"], *_pair(repeats["interval"])]
            numbers += [item["score"] for item in repeats["scores"]]
        for view in scores["views"]:
            numbers += [*_pair(view.get("interval")), view.get("probability", 0)]
        return all(map(_is_number, numbers))
    except (KeyError, TypeError, ValueError):
        return False


def _pair(interval: Any) -> tuple[Any, ...]:
    """Both ends, or none."""
    if interval is None:
        return ()
    low, high = interval
    return low, high


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) < _HUGE


def _agree(scored: Sequence[int], folds: Sequence[Fold], covered: np.ndarray) -> bool:
    """Whether the folds that were scored validated the covered rows."""
    if not scored or not 0 <= min(scored) <= max(scored) < len(folds):
        return False
    validated = np.zeros_like(covered)
    for number in scored:
        validated[folds[number][1]] = True
    return bool((validated == covered).all())


def _decided(
    competition: Competition,
    target: np.ndarray,
    oof: np.ndarray,
    covered: np.ndarray,
    scored: Sequence[tuple[int, Fold]],
) -> tuple[np.ndarray, np.ndarray]:
    """The OOF answers as `scoring` decided them, and the fold that validated each row."""
    decided: np.ndarray | None = None
    number_of = np.full(len(covered), -1, np.int64)
    for number, (_, valid) in scored:
        known = covered.copy()
        known[valid] = False
        part = competition.decision(target[known], oof[known])(oof[valid])
        if decided is None:
            decided = np.zeros((len(covered), *part.shape[1:]), part.dtype)
        decided[valid] = part
        number_of[valid] = number
    assert decided is not None
    return decided, number_of


def _data(
    competition: Competition, manifest: dict[str, Any], rows: int | None
) -> tuple[Data | None, str]:
    """The data that the run was trained on, or why they cannot be shown."""
    folder = Path(str(manifest["data"].get("folder", "")))
    try:
        if not folder.is_dir():
            return None, "the training data are no longer where the run found them"
        if files.fingerprint(folder, folders.cache()) != manifest["data"].get("fingerprint"):
            return None, "the training data have changed since"
        data = problem.load(competition, folder)
    except UserError as error:
        return None, f"the training data cannot be read: {error}"
    if rows is not None and len(data.train) != rows:
        return None, "the training data have other rows than the run"
    return data, ""
