"""The folder of one run: what identifies it, what its members left, and its scores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from . import files, folds
from .errors import UserError
from .folds import Fold

_VIEWS = "views.json"
ASIDE = "~"  # in the name of a folder that holds an earlier state of a run
ASKED = {"test": "asked-test.npz", "valid": "asked-valid.npz"}  # a member's answers so far
ALONE = "asked-alone.json"  # why a member is not asked together with others
_Kind = tuple[type | UnionType, type | UnionType]  # of a JSON value, and of what is in it
_MANIFEST: dict[str, _Kind] = {
    "recipe": (str, str),
    "competition": (str, str),
    "started": (str, str),
    "finished": (str | None, str),
    "config": (dict, object),
    "seeds": (list, int),
    "members": (list, str),
    "needs": (dict, str),
    "data": (dict, str),
    "classes": (list, str),
    "columns": (list, str),
    "inputs": (list | None, int),
    "device": (str, str),
    "precision": (str, str),
    "versions": (dict, str),
    "stamp": (dict, str),
    "seconds": (int | float, str),
}
_LATER: dict[str, _Kind] = {
    "wanted": (list, str),
    "failed": (dict, str),
    "forced": (list, dict),
    "views": (str | None, str),
}
_SCORES: dict[str, _Kind] = {
    "metric": (str, str),
    "greater_is_better": (bool, str),
    "cv": (int | float, str),
    "mean": (int | float, str),
    "std": (int | float, str),
    "coverage": (int | float, str),
    "folds": (list, dict),
    "members": (list, dict),
    "views": (list, dict),
    "practice_lb": (int | float | None, str),
    "seconds": (int | float, str),
}
_LATER_SCORES: dict[str, _Kind] = {
    "repeats": (dict, object),
    "calibration": (dict | None, object),
}
# the arrays of a member's answers, and the kinds of their types
_ANSWERS = {
    "valid_rows": "iu", "valid": "fiu", "test": "fiu", "valid_views": "fiu", "views": "U",
    "valid_ids": "U", "test_ids": "U",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One member: a fold, or all rows, and a seed."""

    fold: int | None  # None = fitted on all rows
    seed: int

    @property
    def name(self) -> str:
        """As its folder is called: `fold0-seed0`, `all-seed0`."""
        return f"{'all' if self.fold is None else f'fold{self.fold}'}-seed{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Key:
        """The member whose folder is called `name`; UserError for the name of no member."""
        if not re.fullmatch(r"(fold[0-9]{1,9}|all)-seed[0-9]{1,19}", name, re.ASCII):
            raise UserError(f"{name!r:.80} is the name of no member, as in fold0-seed0")
        fold, _, seed = name.partition("-seed")
        return cls(None if fold == "all" else int(fold.removeprefix("fold")), int(seed))


@dataclass(frozen=True)
class Answers:
    """What one member answered, with the ids of the rows."""

    valid_rows: np.ndarray  # (valid rows,) positions in the training table
    valid: np.ndarray  # (valid rows, outputs)
    test: np.ndarray  # (test rows, outputs)
    valid_views: np.ndarray  # (views, valid rows, outputs); no views for recipes without any
    views: np.ndarray  # (views,) their names


@dataclass(frozen=True)
class Run:
    """`runs/<competition>/<recipe>-<hash>/` and what is in it.

    | file | what |
    |---|---|
    | run.json | what was run, on what, where, when, with which versions |
    | config.json | every knob, resolved |
    | folds.csv | which rows each fold trains and validates on |
    | engine.json | which members were trained together, and why |
    | views.json | with `views=auto`: which views are kept, for the test and for each fold |
    | fold0-seed0/ | a member: what it learned, `answers.npz` when it is finished |
    | fold0-seed0/test-views.npy | with `views=auto`: its test answers view by view, for the |
    | | choice that folds or seeds added later make anew, and for who compares or blends the run |
    | oof.npy, covered.npy | one answer a training row, and which rows have one |
    | target.npy | the targets of the training rows, for decisions that learn from OOF answers |
    | test.npy | one answer a test row |
    | scores.json | scores of folds, of the whole, of views, and the time |
    | history.jsonl | loss and score of every epoch |
    | run.log | what the screen showed |
    """

    folder: Path

    @property
    def name(self) -> str:
        """`<recipe>-<hash>`."""
        return self.folder.name

    def member(self, key: Key) -> Path:
        """The folder of a member."""
        return self.folder / key.name

    def finished(self, key: Key) -> bool:
        """Whether the member has answered."""
        return (self.member(key) / "answers.npz").exists()

    def keep(self, key: Key, answers: Answers, ids: tuple[np.ndarray, np.ndarray]) -> None:
        """Write a member's answers beside the ids of its valid and test rows; it is finished."""
        files.write_arrays(
            self.member(key) / "answers.npz",
            valid_rows=answers.valid_rows,
            valid=answers.valid,
            test=answers.test,
            valid_views=answers.valid_views,
            views=answers.views,
            valid_ids=ids[0],
            test_ids=ids[1],
        )
        self._forget_asked(self.member(key))

    def keep_views(self, key: Key, test: np.ndarray) -> None:
        """Write a member's test answers view by view, (views, test rows, ...), of `views=auto`."""
        files.write_array(self.member(key) / "test-views.npy", test)

    def test_views(self, key: Key) -> np.ndarray:
        """What `keep_views` wrote; UserError where it is missing or damaged."""
        return files.read_array(self.member(key) / "test-views.npy")

    def kept_views(self, fold: int | None) -> tuple[str, ...] | None:
        """The views that answer the rows of a fold, or (None) the test; None where all do.

        Raises UserError for a views.json that no run writes, and where a run that has chosen its
        views has lost or changed it: with other views its answers would be others.
        """
        path = self.folder / _VIEWS
        self._demand_scored_views()
        if not path.exists():
            if self._chose_views():
                raise UserError(
                    f"{path} is gone, which says which views answer: type the command that "
                    "trained the run again, and it is written anew"
                )
            return None
        told = files.read_json(path)
        try:
            names = told["kept"] if fold is None else told["folds"][str(fold)]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not as kagglekit writes it: train it again") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path} is not as kagglekit writes it: train it again")
        return tuple(names)

    def views_digest(self) -> str | None:
        """Digest of the views that are kept, for run.json to say what was scored; None for all."""
        path = self.folder / _VIEWS
        return files.file_digest(path) if path.exists() else None

    def _demand_scored_views(self) -> None:
        """Raise UserError for other views than the finished run was scored with."""
        digest = self.views_digest()
        if digest is None or not (self.folder / "run.json").exists():
            return
        told = self.manifest()
        if told["finished"] is not None and told.get("views", digest) != digest:
            raise UserError(
                f"{self.folder / _VIEWS} was changed after the run was scored: delete it and type "
                "the command that trained the run again, and it is written anew"
            )

    def _chose_views(self) -> bool:
        if not (self.folder / "run.json").exists():
            return False
        told = self.manifest()
        return told["finished"] is not None and told["config"].get("views") == "auto"

    def answers(self, key: Key) -> Answers:
        """What a finished member answered; UserError for a file that `keep` cannot have written."""
        path = self.member(key) / "answers.npz"
        saved = files.read_arrays(path)
        kinds = {name: array.dtype.kind for name, array in saved.items()}
        if kinds.keys() != _ANSWERS.keys() or not all(kinds[n] in _ANSWERS[n] for n in kinds):
            raise UserError(f"{path} is not as kagglekit writes it: delete it, and train again")
        answers = Answers(**{item.name: saved[item.name] for item in fields(Answers)})
        ids = saved["valid_ids"].shape, saved["test_ids"].shape
        rows, outputs = answers.valid_rows.shape, answers.valid.shape[1:]
        views = (*answers.views.shape, *answers.valid.shape)
        if (
            ids != (rows, answers.test.shape[:1])
            or (len(rows), len(answers.views.shape)) != (1, 1)
            or (answers.valid.shape[:1], answers.test.shape[1:]) != (rows, outputs)
            or answers.valid_views.shape != views
        ):
            raise UserError(f"{path} has arrays that do not fit: delete it, and train again")
        return answers

    def tidy(self) -> None:
        """Remove what killed processes left; only for whoever has the run to itself."""
        for leftover in self.folder.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for answers in self.folder.glob("*/answers.npz"):
            self._forget_asked(answers.parent)

    def _forget_asked(self, member: Path) -> None:
        """Remove what a member that has answered had gathered of its answers."""
        for name in (*ASKED.values(), ALONE):
            (member / name).unlink(missing_ok=True)

    def forget(self, key: Key, epoch: int) -> None:
        """Remove a member's epochs from `epoch` on, which are trained again, from the history."""
        path = self.folder / "history.jsonl"
        if not path.exists():
            return
        lines = path.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not _is_of(line, key, epoch)]
        if kept != lines:
            files.write_text(path, "".join(kept))

    def note(self, key: Key, epoch: int, figures: Mapping[str, float]) -> None:
        """Append an epoch to the history."""
        line = json.dumps({"member": key.name, "epoch": epoch, **figures})
        files.append_line(self.folder / "history.jsonl", line)

    def manifest(self) -> dict[str, Any]:
        """The content of run.json."""
        return _mapping(self.folder / "run.json", _MANIFEST, _LATER)

    def scores(self) -> dict[str, Any] | None:
        """The content of scores.json; None before the run was scored."""
        path = self.folder / "scores.json"
        return _mapping(path, _SCORES, _LATER_SCORES) if path.exists() else None

    def members(self) -> list[Key]:
        """The members whose answers the run's scores and submission are made of, in order."""
        if not (self.folder / "run.json").exists():
            return []
        names = self.manifest()["members"]
        try:
            return [Key.parse(name) for name in names]
        except UserError as error:
            raise UserError(
                f"{self.folder / 'run.json'}: {error}: restore a copy, or train --fresh"
            ) from error

    def folds(self) -> list[Fold]:
        """The folds as they were saved."""
        return folds.load(self.folder / "folds.csv")


def now() -> str:
    """The time as ISO text in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find(runs: Path, competition: str, wanted: str) -> Run:
    """The run whose name is, or uniquely begins with, `wanted`; earlier states by full name only.

    The path of its folder will do too. Raises UserError when there is none, or more than one.
    """
    folder = runs / competition
    wanted = typed_name(folder, wanted)
    known = sorted(path.name for path in folder.glob("[!.]*/run.json") for path in [path.parent])
    if wanted in known:
        return Run(folder / wanted)
    matching = [name for name in known if name.startswith(wanted) and ASIDE not in name]
    if len(matching) == 1:
        return Run(folder / matching[0])
    if matching:
        raise UserError(
            f"{wanted!r} fits {len(matching)} runs: {_some(matching)}; write more of it"
        )
    raise UserError(
        f"no run {wanted!r} of {competition} in {runs}; "
        + (f"there are: {_some(known)}" if known else f"kagglekit train {competition} makes one")
    )


def typed_name(folder: Path, typed: str) -> str:
    """The name of a run in `folder` where its path was typed, as shells complete it."""
    path = Path(typed)
    beside = path.name != typed and path.parent.resolve() == folder.resolve()
    return path.name if beside else typed


def set_aside(run: Run) -> Path | None:
    """Rename an earlier run's folder to `<name>~<n>`, so that a new one can begin."""
    if not run.folder.exists():
        return None
    taken = (run.folder.with_name(f"{run.name}{ASIDE}{number}") for number in range(1, 10_000))
    free = next(path for path in taken if not path.exists())
    run.folder.rename(free)
    return free


def _is_of(line: str, key: Key, epoch: int) -> bool:
    """Whether a line of the history is of this member and epoch, or a later one, or torn."""
    try:
        noted = json.loads(line)
        return noted["member"] == key.name and noted["epoch"] >= epoch
    except (ValueError, KeyError, TypeError):
        return True


def _mapping(
    path: Path, kinds: Mapping[str, _Kind], later: Mapping[str, _Kind] | None = None
) -> dict[str, Any]:
    """The JSON object in `path`, with values of these kinds at these keys; `later` may be missing.

    Raises UserError for anything else.
    """
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: restore a copy, or train --fresh")
    present = {key: kind for key, kind in (later or {}).items() if key in value}
    for key, kind in {**kinds, **present}.items():
        if key not in value or not _is(value[key], kind):
            raise UserError(
                f"{path}: {key!r} is not as kagglekit writes it: restore a copy, or train --fresh"
            )
    return value


def _is(value: Any, kind: _Kind) -> bool:
    """Whether a JSON value is of a kind; in a list or a mapping every item has to be."""
    whole, item = kind
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, whole) and all(isinstance(part, item) for part in items)


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:8]) + (" …" if len(shown) > 8 else "")
