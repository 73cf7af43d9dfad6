"""From a name to a problem: the competition, and its data as they lie here."""

from __future__ import annotations

import contextlib
import filecmp
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from . import competition as competitions
from . import files, folders
from .competition import Competition
from .data import Data
from .errors import UserError
from .folders import Source
from .progress import Progress


@dataclass(frozen=True)
class Problem:
    """A competition with its data in memory."""

    name: str
    competition: Competition
    source: Source
    fingerprint: str  # of the files in `source`
    data: Data


def find(name: str, slug: str | None = None) -> Competition:
    """The competition of that name in `competitions/`, under another slug if one is given."""
    if slug and not re.fullmatch(r"[\w-]+", slug):
        raise UserError(
            f"--slug {slug} is no competition's name on Kaggle: it is what follows "
            "kaggle.com/competitions/, letters, digits and hyphens"
        )
    competition = competitions.find(name, folders.competitions())
    return replace(competition, slug=slug) if slug else competition


def read(name: str, competition: Competition, given: Path | None, progress: Progress) -> Problem:
    """Find the data, say where they are, and read them."""
    source = _source(name, competition, given, progress)
    fingerprint = files.fingerprint(source.folder, folders.cache())
    return Problem(name, competition, source, fingerprint, load(competition, source.folder))


def load(competition: Competition, folder: Path) -> Data:
    """The data in `folder`, zips unpacked into the cache, checked to be of one piece."""
    data = competition.load(files.unpacked(folder, folders.cache()))
    if len(data.train) != len(data.target):
        raise UserError(f"{folder}: {len(data.train)} training rows but {len(data.target)} targets")
    if not len(data.test):
        raise UserError(f"{folder}: the test set is empty: download it again")
    competition.submission.screen(data)  # before hours of training, not after them
    return data


def _source(name: str, competition: Competition, given: Path | None, progress: Progress) -> Source:
    source = folders.find_data(name, given)
    if source is None:
        folder, _ = practise(name, competition, replace_data=False)
        source = folders.find_data(name)
        assert source is not None, f"practice data were written to {folder}"
    progress.say(source.describe())
    return source


def practise(
    name: str, competition: Competition, kind: str | None = None, replace_data: bool = True
) -> tuple[Path, Path]:
    """Write practice data and their answers; (data folder, answers folder).

    Each folder appears whole or not at all. `replace_data=False` keeps data that somebody else has
    put there meanwhile. Raises UserError for a competition without practice data, or an unknown
    kind of them.
    """
    kinds = competition.practice
    if not kinds:
        raise UserError(
            f"no data of {name}: put Kaggle's download of {competition.slug} in "
            f"{folders.practice_folder(name).with_name(name)}, or name its folder with --data"
        )
    kind = kind or next(iter(kinds))
    if kind not in kinds:
        raise UserError(f"{name} has no practice data {kind!r}; there are: {', '.join(kinds)}")
    targets = folders.practice_folder(name), folders.practice_answers(name)
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=targets[0].parent, prefix=".practice-") as scratch:
        made = Path(scratch) / "data", Path(scratch) / "answers"
        for folder in made:
            folder.mkdir()
        kinds[kind](*made)
        # the answers first: data without answers would train but not score
        _place(made[1], targets[1])
        _place(made[0], targets[0], replace_data)
    return targets


def _place(fresh: Path, target: Path, replace: bool = True) -> None:
    """Let `fresh` stand where `target` is; of two processes at once, either's stays.

    What is the same already is not moved: another process may be reading it.
    """
    with contextlib.suppress(OSError):
        target.rmdir()  # an empty folder is in nobody's use
    if replace and not _same(fresh, target):
        with contextlib.suppress(FileNotFoundError):  # none there, or another process was first
            target.rename(fresh.with_name(f"old-{fresh.name}"))
    try:
        fresh.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same content."""
    try:
        names = list(files.visible_files(one))
        return names == list(files.visible_files(other)) and all(
            filecmp.cmp(one / name, other / name, shallow=False) for name in names
        )
    except (OSError, UserError):  # not there, or going away
        return False
