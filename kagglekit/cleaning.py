"""Frees disk space: says what may go, and removes it so that no half of anything is left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, Literal

from . import board, files, folders, inventory, leaderboard, locks
from .errors import UserError
from .inventory import State
from .run import typed_name

Kind = Literal["cache", "set aside", "leftover", "unfinished", "download", "run", "submission"]

# What kagglekit puts into its cache; anything else there is not ours.
_CACHES = {
    "unpacked zips": ("unpacked", re.compile(r"[0-9a-f]{16}")),
    "arrays": ("arrays", re.compile(r"[\w-][\w.-]*")),
    "decoded images": ("decoded", re.compile(r"[0-9a-f]{2}")),
    "digests of files": ("digests", re.compile(r"[0-9a-f]{16}\.json")),
    "trials of engines": ("engines", re.compile(r"[\w-][\w.~-]*\.json")),
    "compiled networks": ("compiled", re.compile(r"[\w-][\w.-]*")),
    "caches of --fresh": (".", re.compile(r"fresh-\w+")),
}
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}-\d+-[0-9a-f]{8}\.tmp")
_LEFT_SECONDS = 3600  # a temporary as old as this has nobody who is writing it
_DAY = 24 * 3600
_USERS = 3  # runs that are named as built on another


@dataclass(frozen=True)
class Request:
    """What a user typed after `kagglekit clean`."""

    name: str | None = None  # the competition; None = all of them, and the caches
    runs: tuple[str, ...] = ()  # these runs, finished or not, or the beginnings of their names
    unfinished: bool = False
    days: float = 0.0  # only what has not changed for so long


@dataclass(frozen=True)
class Thing:
    """One line of what may go: some files or folders of one kind."""

    kind: Kind
    name: str
    paths: tuple[Path, ...]
    bytes: int
    changed: str  # ISO time in UTC of the newest file
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """What `kagglekit clean --json` tells of it."""
        return {
            "kind": self.kind, "name": self.name, "paths": [str(path) for path in self.paths],
            "bytes": self.bytes, "changed": self.changed, "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What may go, and a sentence for each thing that would but for a process that uses it."""

    things: tuple[Thing, ...]
    skipped: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all things together."""
        return sum(thing.bytes for thing in self.things)

    def as_json(self) -> dict[str, Any]:
        """What `kagglekit clean --json` prints."""
        return {
            "things": [thing.as_json() for thing in self.things],
            "bytes": self.bytes,
            "skipped": list(self.skipped),
        }


def plan(request: Request) -> Plan:
    """What `request` allows to remove; nothing is changed.

    | | without a name | of a competition | of runs |
    |---|---|---|---|
    | caches | yes | no: all competitions share them | no |
    | set-aside runs, leftovers of killed processes | all | its own | no |
    | unfinished runs | with `unfinished` | with `unfinished` | those named |
    | downloads that broke off | with `unfinished` | with `unfinished` | no |
    | finished runs and their CSVs | no | no | those named |

    Raises UserError for a competition or run that is not there.
    """
    if request.name is not None:
        inventory.check_name(request.name)
    found, skipped = (_by_name if request.runs else _by_kind)(request)
    if request.name is None:
        things, busy = _caches(request)
        found, skipped = things + found, busy + skipped
    if not request.runs:
        found += _leftovers(request)
    return Plan(tuple(found), tuple(skipped))


def remove(plan: Plan) -> Plan:
    """Remove the things of a plan; what was removed, and what was kept after all.

    A run that a process has begun to train since the plan was made, or has finished, is kept, and
    so are caches that a process has begun to read. Raises UserError where something cannot be
    removed; what was removed before is gone.
    """
    gone, skipped = [], list(plan.skipped)
    for thing in plan.things:
        with files.explained():
            fault = _REMOVERS[thing.kind](thing)
        if fault is None:
            gone.append(thing)
        else:
            skipped.append(fault)
    if any(thing.kind in ("unfinished", "run") for thing in gone):
        board.refresh(folders.runs(), folders.submissions())
    return Plan(tuple(gone), tuple(skipped))


# --- runs and their submissions -----------------------------------------------------------------


def _by_kind(request: Request) -> tuple[list[Thing], list[str]]:
    """Set-aside runs, and unfinished ones where they are wanted."""
    found: list[Thing] = []
    skipped: list[str] = []
    for state in inventory.states(folders.runs(), request.name):
        if state.aside:
            thing = _thing("set aside", state)
        elif request.unfinished and not state.finished:
            thing = _thing("unfinished", state)
        else:
            continue
        if not _old_enough(state.folder, request):
            continue
        if state.owner:
            skipped.append(_in_use(state))
        else:
            found.append(thing)
    return [*found, *(_downloads(request) if request.unfinished else [])], skipped


def _downloads(request: Request) -> list[Thing]:
    """What is here of downloads that broke off, and that nobody is going on with."""
    home = folders.data()
    name = re.escape(request.name) if request.name else r".+"
    wanted = re.compile(rf"\.({name})\.download")
    found = [(match[1], path) for path in _inside(home) if (match := wanted.fullmatch(path.name))]
    return [
        _measured("download", f"{name}, broken off", [path])
        for name, path in found
        if path.is_dir() and not locks.owner(home / name) and _old_enough(path, request)
    ]


def _remove_download(thing: Thing) -> str | None:
    """Remove a partial download, unless a process has begun to go on with it."""
    (path,) = thing.paths
    target = path.with_name(path.name.removeprefix(".").removesuffix(".download"))
    lock = locks.Lock(target, "kagglekit clean")
    if not lock.take():
        return f"{target.name} is being downloaded: kept"
    with lock:
        _remove_path(path)
    return None


def _by_name(request: Request) -> tuple[list[Thing], list[str]]:
    """The runs that were named, and the CSVs they wrote."""
    assert request.name is not None
    known = inventory.states(folders.runs(), request.name)
    found: list[Thing] = []
    skipped: list[str] = []
    for wanted in dict.fromkeys(request.runs):
        state = _named(wanted, known, request.name)
        if not _old_enough(state.folder, request):
            continue
        if state.owner:
            skipped.append(_in_use(state))
            continue
        kind: Kind = "set aside" if state.aside else "run" if state.finished else "unfinished"
        thing = replace(_thing(kind, state), note=_needed_by(state, known) or _progress(state))
        found += [thing, *_submissions(state)]
    return list(dict.fromkeys(found)), skipped


def _thing(kind: Kind, state: State) -> Thing:
    name = f"{state.competition} {state.run}"
    note = "" if kind == "set aside" else _progress(state)
    return Thing(kind, name, (state.folder,), state.bytes, state.changed, note)


def _progress(state: State) -> str:
    if state.damage:
        return "damaged"
    if state.finished or state.aside:
        return ""
    return f"{len(set(state.done) & set(state.wanted))} of {len(state.wanted)} members done"


def _named(wanted: str, known: Sequence[State], competition: str) -> State:
    """The run whose name is, or uniquely begins with, `wanted`; set-aside ones only by name."""
    wanted = typed_name(folders.runs() / competition, wanted)
    for state in known:
        if state.run == wanted:
            return state
    matching = [state for state in known if state.run.startswith(wanted) and not state.aside]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(state.run for state in matching[:8])
        raise UserError(f"{wanted!r} fits {len(matching)} runs: {names}; write more of it")
    raise UserError(
        f"no run {wanted!r} of {competition} in {folders.runs()}; "
        f"`kagglekit runs {competition} --all` lists them"
    )


def _needed_by(state: State, known: Iterable[State]) -> str:
    users = [other.run for other in known if state.run in other.needs]
    if len(users) < 2:
        return f"{users[0]} was built on it" if users else ""
    some, more = users[:_USERS], len(users) - _USERS
    return f"{', '.join(some)}{f' and {more} more' if more > 0 else ''} were built on it"


def _submissions(state: State) -> list[Thing]:
    """The CSVs and notebooks of a run; once it was submitted they stay, as what was uploaded."""
    home = folders.submissions() / state.competition
    if state.aside or home.is_symlink() or (home / f"{state.run}.json").exists():
        return []
    found = [home / f"{state.run}.csv"]
    for others in ("@*.csv", ".notebook", ".notebook~*"):
        found += sorted(home.glob(escape(state.run) + others))
    return [_measured("submission", path.name, [path]) for path in found if path.exists()]


def _in_use(state: State) -> str:
    assert state.owner is not None
    return f"{state.competition} {state.run} is being trained by {state.owner.describe()}: kept"


def _remove_run(thing: Thing) -> str | None:
    """Remove a run's folder under its lock, and its row; a sentence where it is kept instead."""
    (folder,) = thing.paths
    lock = locks.Lock(folder, "kagglekit clean")
    if not lock.take():
        return _in_use(inventory.state(folder))
    with lock:
        if not folder.exists():
            return f"{thing.name} is gone already"
        if thing.kind == "unfinished" and inventory.state(folder).finished:
            return f"{thing.name} has been finished meanwhile: kept"
        files.remove(folder)
        competition, run = folder.parts[-2:]
        leaderboard.record(folders.runs(), folders.submissions(), competition, run)
    return None


# --- caches -------------------------------------------------------------------------------------


def _caches(request: Request) -> tuple[list[Thing], list[str]]:
    cache = folders.cache()
    found = []
    for what, (place, named) in _CACHES.items():
        home = cache / place
        paths = [] if home.is_symlink() else [p for p in _inside(home) if named.fullmatch(p.name)]
        paths = [path for path in paths if _old_enough(path, request)]
        if paths:
            found.append(_measured("cache", _counted(what, paths), paths, f"in {cache}"))
    if found:
        with files.explained(cache), locks.closed(cache) as visitors:
            if visitors:
                return [], [f"the caches may be read by {visitors[0].describe()}: kept"]
    return found, []


def _remove_cache(thing: Thing) -> str | None:
    """Remove caches while no process that might read them can start."""
    with locks.closed(folders.cache()) as visitors:
        if visitors:
            return f"{thing.name} may be read by {visitors[0].describe()}: kept"
        for path in thing.paths:
            _remove_path(path)
    return None


# --- leftovers ----------------------------------------------------------------------------------


def _leftovers(request: Request) -> list[Thing]:
    """Temporaries that nobody writes any more, and locks whose owners died."""
    cache, homes = folders.cache(), [folders.runs(), folders.submissions()]
    if request.name is None:
        temporary = [path for home in homes for path in _temporaries(home)]
        flat = (folders.data(), cache, *inventory.subfolders(cache))
        temporary += [path for home in flat for path in _hidden(home)]
        locked = [folders.runs(), *inventory.subfolders(folders.runs()), cache]
    else:
        own = [home / request.name for home in homes]
        locked = [home for home in own if not home.is_symlink()]
        temporary = [path for home in locked for path in _temporaries(home)]
    temporary = [path for path in temporary if _old_enough(path, request, _LEFT_SECONDS)]
    stale = [locks.path(target) for home in locked for target in locks.stale(home)]
    stale = [path for path in stale if _old_enough(path, request)]
    named = {"temporary files": temporary, "locks": stale}
    return [
        _measured("leftover", _counted(f"{what} of killed processes", paths), paths)
        for what, paths in named.items()
        if paths
    ]


def _temporaries(home: Path) -> Iterator[Path]:
    """Temporaries in a folder and those below it, but in no run that is being trained."""
    waiting = [home]
    while waiting:
        folder = waiting.pop()
        yield from _hidden(folder)
        waiting += [path for path in inventory.subfolders(folder) if locks.owner(path) is None]


def _hidden(folder: Path) -> list[Path]:
    return [path for path in _inside(folder) if _TEMPORARY.fullmatch(path.name)]


def _remove_leftover(thing: Thing) -> str | None:
    for path in thing.paths:
        if path.parent.name == locks.HOME:
            locks.discard(path)
        else:
            _remove_path(path)
    return None


# --- files --------------------------------------------------------------------------------------


def _inside(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _measured(kind: Kind, name: str, paths: Sequence[Path], note: str = "") -> Thing:
    sizes = [inventory.measure(path) for path in paths]
    changed = inventory.moment(max(newest for _, newest in sizes))
    return Thing(kind, name, tuple(paths), sum(size for size, _ in sizes), changed, note)


def _counted(what: str, paths: Sequence[Path]) -> str:
    return f"{what} ({len(paths)})" if len(paths) > 1 else what


def _old_enough(path: Path, request: Request, least: float = 0.0) -> bool:
    """Whether nothing in `path` has changed for as long as was asked, and `least` seconds."""
    seconds = max(request.days * _DAY, least)
    return not seconds or time.time() - inventory.measure(path)[1] > seconds


def _remove_path(path: Path) -> None:
    with suppress(FileNotFoundError):  # gone already
        files.remove(path)


def _remove_submission(thing: Thing) -> str | None:
    for path in thing.paths:
        _remove_path(path)
    return None


_REMOVERS: dict[Kind, Callable[[Thing], str | None]] = {
    "cache": _remove_cache,
    "set aside": _remove_run,
    "leftover": _remove_leftover,
    "unfinished": _remove_run,
    "download": _remove_download,
    "run": _remove_run,
    "submission": _remove_submission,
}
