"""The folder of one run: what identifies it, what its members left, and its scores."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from . import config as configs
from . import files, folds
from .config import Config
from .errors import UserError
from .folds import Fold

_SHOWS_ONLY = {"__main__", "cli", "display", "doctor", "leaderboard", "overview", "progress"}
_LIBRARIES = ("kagglekit", "torch", "timm", "numpy", "pandas", "scikit-learn", "scipy")


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
        """The member whose folder is called `name`."""
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
    | fold0-seed0/ | a member: what it learned, `answers.npz` when it is finished |
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

    def answers(self, key: Key) -> Answers:
        """What a finished member answered."""
        saved = files.read_arrays(self.member(key) / "answers.npz")
        return Answers(**{item.name: saved[item.name] for item in fields(Answers)})

    def note(self, key: Key, epoch: int, figures: Mapping[str, float]) -> None:
        """Append an epoch to the history."""
        line = json.dumps({"member": key.name, "epoch": epoch, **figures})
        files.append_line(self.folder / "history.jsonl", line)

    def manifest(self) -> dict[str, Any]:
        """The content of run.json."""
        return _mapping(self.folder / "run.json", ("recipe", "members", "finished", "seconds"))

    def scores(self) -> dict[str, Any] | None:
        """The content of scores.json; None before the run was scored."""
        path = self.folder / "scores.json"
        return _mapping(path, ("metric", "cv", "folds")) if path.exists() else None

    def members(self) -> list[Key]:
        """The members whose answers the run's scores and submission are made of, in order."""
        if not (self.folder / "run.json").exists():
            return []
        return [Key.parse(name) for name in self.manifest()["members"]]

    def folds(self) -> list[Fold]:
        """The folds as they were saved."""
        return folds.load(self.folder / "folds.csv")


def identity(
    config: Config, data: str, split: Sequence[Fold], source: str, extra: Mapping[str, Any]
) -> str:
    """Eight hex digits of everything that answers depend on."""
    parts = {
        "config": configs.hashed(config),
        "data": data,
        "folds": folds.fingerprint(split),
        "source": source,
        **extra,
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=4).hexdigest()


def source_digest(competition: Path) -> str:
    """Digest of the code that answers depend on: the core's and the competition's."""
    home = Path(__file__).parent
    core = {path.name: path for path in home.glob("*.py") if path.stem not in _SHOWS_ONLY}
    own = competition.rglob("*.py") if competition.is_dir() else [competition.with_suffix(".py")]
    beside = competition.parent.glob("_*.py")  # what several competitions share
    theirs = {
        f"competitions/{path.relative_to(competition.parent).as_posix()}": path
        for path in [*own, *beside]
    }
    digest = blake2b(digest_size=8)
    for name, path in sorted({**core, **theirs}.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time as ISO text in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find(runs: Path, competition: str, wanted: str) -> Run:
    """The run whose name is, or uniquely begins with, `wanted`.

    Raises UserError when there is none, or more than one.
    """
    folder = runs / competition
    known = sorted(path.name for path in folder.glob("*/run.json") for path in [path.parent])
    if wanted in known:
        return Run(folder / wanted)
    matching = [name for name in known if name.startswith(wanted)]
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


def set_aside(run: Run) -> Path | None:
    """Rename an earlier run's folder to `<name>~<n>`, so that a new one can begin."""
    if not run.folder.exists():
        return None
    taken = (run.folder.with_name(f"{run.name}~{number}") for number in range(1, 10_000))
    free = next(path for path in taken if not path.exists())
    run.folder.rename(free)
    return free


def _mapping(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object in `path`, which has these keys."""
    value = files.read_json(path)
    if not isinstance(value, dict) or any(key not in value for key in keys):
        raise UserError(f"{path} is not as kagglekit writes it: restore a copy, or train --fresh")
    return value


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:8]) + (" …" if len(shown) > 8 else "")
