"""Where things are: data, runs, submissions, cache and competitions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import UserError
from .files import explained

Kind = Literal["given", "environment", "download", "practice"]

_DOWNLOADS = Path("data")  # beside the competitions; practice data live here whatever is set


@dataclass(frozen=True)
class Source:
    """The folder that a competition's data are read from, and why that one.

    | kind | found in |
    |---|---|
    | given | `--data DIR` |
    | environment | `$KAGGLEKIT_DATA/<name>` |
    | download | `data/<name>` |
    | practice | `data/<name>.practice`, a stand-in, also where `--data` names it |
    """

    folder: Path
    kind: Kind

    def describe(self) -> str:
        """One line that says which data these are."""
        if self.kind == "practice":
            name = self.folder.name.removesuffix(".practice")
            real = _DOWNLOADS / name
            return f"practice data: {self.folder} (stand-in; real files: {real})"
        reason = {"given": " (--data)", "environment": " ($KAGGLEKIT_DATA)", "download": ""}
        return f"data: {self.folder}{reason[self.kind]}"


def data() -> Path:
    """Where downloads are: `$KAGGLEKIT_DATA`, else `data`."""
    return _chosen("KAGGLEKIT_DATA") or _DOWNLOADS


def runs() -> Path:
    """What runs leave behind: `$KAGGLEKIT_RUNS`, else `runs`."""
    return _chosen("KAGGLEKIT_RUNS") or Path("runs")


def submissions() -> Path:
    """The home of the CSVs: `$KAGGLEKIT_SUBMISSIONS`, else `submissions`."""
    return _chosen("KAGGLEKIT_SUBMISSIONS") or Path("submissions")


def competitions() -> Path:
    """The competitions' own code: `$KAGGLEKIT_COMPETITIONS`, else `competitions`."""
    return _chosen("KAGGLEKIT_COMPETITIONS") or Path("competitions")


def weights() -> Path | None:
    """Pretrained weights, a file or a folder of them: `$KAGGLEKIT_WEIGHTS`; None where not set."""
    return _chosen("KAGGLEKIT_WEIGHTS")


def cache() -> Path:
    """What can be made again: `$KAGGLEKIT_CACHE`, else `kagglekit` in the user's cache folder.

    That is `$XDG_CACHE_HOME` or `~/.cache`, on macOS `~/Library/Caches`, on Windows
    `%LOCALAPPDATA%`.
    """
    return _chosen("KAGGLEKIT_CACHE") or _user_cache() / "kagglekit"


def practice_folder(name: str) -> Path:
    """Offline stand-in for the download of competition `name`."""
    return _DOWNLOADS / f"{name}.practice"


def practice_answers(name: str) -> Path:
    """The withheld answers to the practice test set, as `solution.csv` in this folder."""
    return _DOWNLOADS / f"{name}.practice-answers"


def partial_download(target: Path) -> Path:
    """What a download that broke off has left, until the same command goes on with it."""
    return target.with_name(f".{target.name}.download")


def find_data(name: str, given: Path | None = None) -> Source | None:
    """The data of competition `name`: given, else the first folder of `Source` with files in it.

    None where there are none. A `given` folder that is missing or empty raises UserError, and so
    does `$KAGGLEKIT_DATA` where it names no folder.
    """
    if given is not None:
        folder = _checked(given)
        if folder.resolve() == practice_folder(name).resolve():
            return Source(folder, "practice")  # however it is typed, it is a stand-in
        return Source(folder, "given")
    for source in _candidates(name):
        if _has_files(source.folder):
            return source
    return None


def _candidates(name: str) -> Iterator[Source]:
    chosen = _chosen("KAGGLEKIT_DATA")
    if chosen is not None:
        if not chosen.is_dir():
            raise UserError(f"$KAGGLEKIT_DATA is {chosen}, which is no folder: mend or unset it")
        yield Source(chosen / name, "environment")
    yield Source(_DOWNLOADS / name, "download")
    yield Source(practice_folder(name), "practice")


def _checked(given: Path) -> Path:
    folder = given.expanduser()
    if folder.is_file():
        raise UserError(f"--data {given} is a file: give the folder that holds it")
    if not folder.is_dir():
        raise UserError(f"--data {given} does not exist: give the folder that holds the download")
    if not _has_files(folder):
        raise UserError(f"--data {given} is empty: give the folder that holds the download")
    return folder


def _has_files(folder: Path) -> bool:
    """Whether there is anything but hidden files (`.gitkeep`, `.DS_Store`)."""
    with explained():
        return folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir())


def _chosen(variable: str) -> Path | None:
    """The folder that an environment variable names; unset and empty are the same."""
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None


def _user_cache() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else _home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches"
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else _home() / ".cache"  # the standard says so


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise UserError("there is no home folder for the cache: set $KAGGLEKIT_CACHE") from error
