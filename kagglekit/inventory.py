"""What the folders of runs hold: how far each run is, who is at it, what it takes on the disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import files, folders, locks
from .errors import UserError
from .locks import Owner

ASIDE = "~"  # in the names of folders that hold a run's earlier state

_RUN_NAME = re.compile(r".+-[0-9a-f]{8}(~\d+)?")
_MEMBER_NAME = re.compile(r"(all|fold\d+)-seed\d+")
_TAIL = 1 << 16  # bytes at the end of a history, among which the last epoch is


@dataclass(frozen=True)
class State:
    """How far one run is.

    `member` is the one in hand: the last that has an epoch and no answers; `epochs` how many it
    will have, as far as known. `bytes` counts every file, links not followed; `changed` is the
    newest file's time, ISO in UTC. `damage` says what of the folder cannot be read.
    """

    competition: str
    run: str
    folder: Path
    recipe: str = ""
    finished: bool = False
    done: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()  # stopped by a numerical failure
    forced: bool = False  # gone on with although something had changed
    member: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    owner: Owner | None = None  # the process that trains it now
    command: str = ""  # what goes on with it
    needs: tuple[str, ...] = ()  # runs that it was built on
    bytes: int = 0
    changed: str = ""
    damage: str | None = None

    @property
    def aside(self) -> bool:
        """Whether it is the earlier state of a run that was trained again."""
        return ASIDE in self.run

    def as_json(self) -> dict[str, Any]:
        """What `kagglekit runs --json` tells of it."""
        told = asdict(self)
        told["folder"] = str(self.folder)
        told["set_aside"] = self.aside
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in told.items()
        }


def states(runs: Path, competition: str | None = None) -> list[State]:
    """Every run's state, set-aside ones too, by competition and name; damaged ones say so."""
    found = [state(folder) for folder in run_folders(runs, competition)]
    return sorted(found, key=lambda one: (one.competition, one.run))


def run_folders(runs: Path, competition: str | None = None) -> Iterator[Path]:
    """The folders that are runs by their `run.json` or by their name; links are not followed."""
    for home in subfolders(runs):
        if competition in (None, home.name):
            for folder in subfolders(home):
                if (folder / "run.json").is_file() or _RUN_NAME.fullmatch(folder.name):
                    yield folder


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in `folder`, sorted, without links; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def state(folder: Path) -> State:
    """The state of the run in `folder`; nothing in there makes this fail."""
    size, newest = measure(folder)
    basis = State(
        competition=folder.parent.name,
        run=folder.name,
        folder=folder,
        done=tuple(_done(folder)),
        owner=locks.owner(folder),
        bytes=size,
        changed=moment(newest),
    )
    try:
        told = files.read_json(folder / "run.json")
        return _told(basis, told)
    except UserError as error:
        return _with(basis, damage=str(error))
    except Exception as error:  # what a damaged file can hold has no end
        damage = f"{folder / 'run.json'} is not as kagglekit writes it ({type(error).__name__})"
        return _with(basis, damage=damage)


def measure(path: Path) -> tuple[int, float]:
    """(bytes, newest change in seconds since 1970) of a file, or of all in a folder.

    A link counts nothing, and is not followed; nor does what cannot be read.
    """
    size, newest = 0, 0.0
    waiting = [os.fspath(path)]
    while waiting:
        current = waiting.pop()
        try:
            status = os.lstat(current)
            newest = max(newest, status.st_mtime)
            if stat.S_ISREG(status.st_mode):
                size += status.st_size
            elif stat.S_ISDIR(status.st_mode):
                waiting += [os.path.join(current, name) for name in os.listdir(current)]
        except OSError:  # removed meanwhile, or somebody else's
            continue
    return size, newest


def moment(seconds: float) -> str:
    """ISO time in UTC of seconds since 1970."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):  # a clock far off
        return datetime.fromtimestamp(0, UTC).isoformat(timespec="seconds")


def report(name: str | None, everything: bool) -> dict[str, Any]:
    """What `kagglekit runs --json` prints: unfinished runs, or all of them.

    Raises UserError for a competition that is neither known nor has runs.
    """
    home = folders.runs()
    if name is not None:
        check_name(name)
    found = states(home, name)
    shown = [one for one in found if everything or not (one.finished or one.aside)]
    return {
        "folder": str(home),
        "runs": [one.as_json() for one in shown],
        "others": len(found) - len(shown),
        "bytes": sum(one.bytes for one in found),
    }


def check_name(competition: str) -> None:
    """Raise UserError for a competition that is neither known nor has runs."""
    plain = Path(competition).name == competition and competition[:1] != "."  # no way out of runs/
    if plain and (folders.runs() / competition).is_dir():
        return
    from .competition import find  # which loads torch: a list of runs should come at once

    find(competition, folders.competitions())


# --- reading ------------------------------------------------------------------------------------


def _told(basis: State, told: Mapping[str, Any]) -> State:
    """`basis` with what run.json and the history say."""
    scored = _names(told["members"])
    wanted = _names(told["wanted"]) if "wanted" in told else _guessed(told, scored)
    done = set(basis.done)
    finished = told["finished"] is not None and set(wanted) <= set(scored) <= done
    failed = told.get("failed") or {}
    member, epoch, epochs = (None, None, None) if finished else _in_hand(basis.folder, done)
    needs = told.get("needs") or {}
    return _with(
        basis,
        recipe=str(told["recipe"]),
        finished=finished and not failed,
        wanted=tuple(wanted),
        failed=tuple(_names(list(failed))),
        forced=bool(told.get("forced")),
        member=member,
        epoch=epoch,
        epochs=epochs,
        command=_again(str(told.get("command") or "")),
        needs=tuple(_names(list(needs.values()))),
    )


def _with(basis: State, **changes: Any) -> State:
    return State(**{**basis.__dict__, **changes})


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"no list of names: {value!r:.60}")
    return value


def _guessed(told: Mapping[str, Any], scored: list[str]) -> list[str]:
    """The members of a run that does not say which it wants: one a fold, and those it has."""
    folds = [f"fold{number}-seed0" for number in range(min(int(told.get("folds_wanted", 0)), 1000))]
    return scored or folds


def _done(folder: Path) -> list[str]:
    """The members that have answered."""
    found = [path for path in subfolders(folder) if _MEMBER_NAME.fullmatch(path.name)]
    return [path.name for path in found if (path / "answers.npz").is_file()]


def _in_hand(folder: Path, done: set[str]) -> tuple[str | None, int | None, int | None]:
    """(member, epochs behind it, epochs it will have) of the last epoch in the history."""
    last = _last_epoch(folder / "history.jsonl")
    if last is None or last[0] in done:
        return None, None, None
    member, epoch, epochs = last
    return member, epoch, epochs or _whole(_object(folder / "config.json").get("epochs"))


def _last_epoch(history: Path) -> tuple[str, int, int | None] | None:
    """(member, epoch, epochs) of the last whole line; a killed process may have left half a one."""
    try:
        with history.open("rb") as handle:
            handle.seek(max(0, history.stat().st_size - _TAIL))
            lines = handle.read(_TAIL).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            told = json.loads(line)
            member, epoch = told["member"], _whole(told["epoch"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if epoch and isinstance(member, str) and _MEMBER_NAME.fullmatch(member):
            return member, epoch, _whole(told.get("epochs"))
    return None


def _whole(value: Any) -> int | None:
    """A whole number above zero, as JSON may also write it (`20.0`)."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    return int(value) if sound and value == int(value) else None


def _object(path: Path) -> dict[str, Any]:
    try:
        value = files.read_json(path)
    except (UserError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _again(command: str) -> str:
    """The command without `--fresh`, which would begin anew."""
    try:
        return shlex.join(text for text in shlex.split(command) if text != "--fresh")
    except ValueError:
        return command
