"""Which members train together, and how: what was decided, written down in the run's folder.

| engine | members are trained |
|---|---|
| stacked | in lock step: their weights stacked, one forward and backward pass for all |
| streams | side by side: each in a lane of its own, with cores, or a stream of a GPU, to itself |
| solo | one after the other |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import files, folders
from .errors import UserError
from .lanes import Lanes

RECORD = "engine.json"  # in the folder of the run


@dataclass(frozen=True)
class Choice:
    """Members that are trained by one engine: together where it is no `solo`."""

    engine: str
    members: tuple[str, ...]
    why: str
    lanes: int = 1  # members that train at a time, of `streams`
    threads: int = 0  # of a CPU, for each of these; 0 = all
    micro_batches: int = 1  # that a batch is taken in, where memory does not hold it whole

    def checkpoint(self, run: Path) -> Path:
        """Where the states of a stacked cohort are kept."""
        return run / f"cohort-{self.members[0]}.bin"

    @property
    def in_lanes(self) -> Lanes:
        """Its lanes; also what one of its members computes with, by itself."""
        return Lanes(self.lanes, self.threads)

    def in_parts(self, ended: Sequence[str]) -> list[Choice]:
        """The same for the members that are left, with batches taken in half as large parts."""
        left = tuple(name for name in self.members if name not in ended)
        done = tuple(name for name in self.members if name in ended)
        why = "a larger part took more memory than there is"
        smaller = replace(self, members=left, micro_batches=2 * self.micro_batches, why=why)
        return [smaller, *([replace(self, members=done)] if done else [])]

    def halved(self) -> list[Choice]:
        """What takes about half as much memory."""
        count = self.lanes if self.engine == "streams" else len(self.members)
        why = f"{count} together took more memory than there is"
        if self.engine == "streams" and self.lanes == 1:
            return [Choice("solo", self.members, "in a lane it took more memory than there is")]
        if self.engine == "streams":
            return [replace(self, lanes=self.lanes // 2, why=why)]
        half = math.ceil(len(self.members) / 2)
        parts = (self.members[:half], self.members[half:])
        return [Choice("stacked" if len(part) > 1 else "solo", part, why) for part in parts]

    def __str__(self) -> str:
        """Who trains how, and why."""
        count = len(self.members)
        who = f"{count} members train" if count > 1 else f"{self.members[0]} trains"
        together = {"stacked": "stacked", "streams": f"side by side, {self.lanes} at a time"}
        apart = "one by one" if count > 1 else "alone"
        small = f", each batch in {self.micro_batches} parts" if self.micro_batches > 1 else ""
        return f"{who} {together.get(self.engine, apart)}{small}: {self.why}"


_COUNTS = {"lanes": 1, "threads": 0, "micro_batches": 1}  # as of a record that lacks them


def recorded(run: Path) -> list[Choice]:
    """The choices of a run so far.

    Raises UserError for a record that is not as it was written.
    """
    path = run / RECORD
    if not path.exists():
        return []
    try:
        return _parsed(files.read_json(path)["cohorts"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not as kagglekit writes it: restore a copy, or train --fresh"
        ) from error


def write(run: Path, choices: Sequence[Choice]) -> None:
    """Write the choices of a run."""
    files.write_json(run / RECORD, {"cohorts": [asdict(choice) for choice in choices]})


def change(run: Path, choice: Choice, by: Sequence[Choice]) -> None:
    """Write others in the place of one, where there is a record."""
    found = recorded(run)
    if found:
        write(run, [*(other for other in found if other.members != choice.members), *by])


def of(run: Path, member: str) -> Choice | None:
    """The choice that a member is part of."""
    return next((choice for choice in recorded(run) if member in choice.members), None)


def remembered(run: Path, members: Sequence[str]) -> list[Choice] | None:
    """What a trial decided for the same run and members on this machine, if one has.

    Trials are timed: without this, the same command could leave other last bits where it begins
    anew while the machine is busier.
    """
    with suppress(UserError, KeyError, TypeError):  # a cache: what is damaged is made anew
        return _parsed(_memory(run)[" ".join(members)])
    return None


def remember(run: Path, members: Sequence[str], choices: Sequence[Choice]) -> None:
    """Keep what a trial decided, for `remembered`."""
    known: dict[str, Any] = {}
    with suppress(UserError, TypeError, ValueError):
        known = dict(_memory(run))
    with suppress(UserError):
        made = {" ".join(members): [asdict(choice) for choice in choices]}
        files.write_json(_memory_path(run), {**known, **made})


def _memory_path(run: Path) -> Path:
    return folders.cache() / "engines" / f"{run.name}.json"


def _memory(run: Path) -> Any:
    path = _memory_path(run)
    return files.read_json(path) if path.exists() else {}


def _parsed(told: Any) -> list[Choice]:
    """Choices from JSON; KeyError or TypeError for anything else."""
    found = [
        Choice(
            one["engine"], tuple(one["members"]), one["why"],
            *(one.get(name, usual) for name, usual in _COUNTS.items()),
        )
        for one in told
    ]  # fmt: skip
    for one in found:
        if not all(isinstance(text, str) for text in (one.engine, one.why, *one.members)):
            raise TypeError("engines, reasons and members are texts")
        if any(type(getattr(one, name)) is not int for name in _COUNTS):
            raise TypeError("lanes, threads and micro-batches are whole numbers")
        if one.lanes < 1 or not 0 <= one.threads <= 4096 or not one.members:
            raise TypeError("nobody trains in no lane")
        if one.micro_batches < 1:
            raise TypeError("a batch is no parts")
    return found
