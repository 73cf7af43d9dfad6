"""What is known of each submission, in a file beside the CSV, before every step is taken."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args

from . import files
from .errors import UserError

if TYPE_CHECKING:
    from .kaggle import Submitted

State = Literal["planned", "uploaded", "created", "scored", "failed", "unknown"]

_Kind = type | UnionType


@dataclass(frozen=True)
class Attempt:
    """One submission that somebody meant to make. Times are ISO texts in UTC.

    | state | what it says |
    |---|---|
    | planned | it is decided; the file may be on its way |
    | uploaded | the file is at Kaggle; with `sent`, the submission may be too |
    | created | Kaggle has the submission and gave it the number `ref` |
    | scored | Kaggle scored it |
    | failed | Kaggle could not score it, and `error` says why if Kaggle did |
    | unknown | sent, no clear answer, and not in Kaggle's list for as long as was looked |
    """

    competition: str
    run: str  # the file's stem where it is of no run
    slug: str
    file: str
    digest: str  # of the file's bytes
    answers: str  # digest of the answers, whatever way they are written in
    bytes: int
    marker: str  # in the description, so that the submission is known again
    description: str
    planned: str
    state: State = "planned"
    cv: float | None = None
    public_error: float | None = None  # standard error of the public score, from OOF answers
    uploaded: str | None = None
    sent: str | None = None  # from here on it is never sent again
    created: str | None = None
    settled: str | None = None
    ref: int | None = None
    status: str | None = None  # as Kaggle last gave it
    public: float | None = None
    private: float | None = None
    error: str | None = None
    reported: bool = False  # a command has ended with this score

    @property
    def unclear(self) -> bool:
        """Whether Kaggle may have it, and has not said so."""
        return self.sent is not None and self.ref is None and self.state != "failed"

    @property
    def unsent(self) -> bool:
        """Whether it is certain that Kaggle has no submission of it yet."""
        return self.sent is None and self.state in ("planned", "uploaded")

    @property
    def waiting(self) -> bool:
        """Whether Kaggle has it and has not scored it."""
        return self.state == "created"

    @property
    def counts(self) -> bool:
        """Whether Kaggle has it, or may have it."""
        return not self.unsent and self.state != "failed"


_REQUIRED = ("competition", "run", "slug", "file", "digest", "answers", "marker", "planned")
_NUMBERS = ("cv", "public_error", "public", "private")
_TEXTS = ("uploaded", "sent", "created", "settled", "status", "error")


def new_marker() -> str:
    """What no other submission has in its description."""
    return f"kagglekit-{secrets.token_hex(8)}"


def now() -> str:
    """The time as ISO text in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def path(home: Path, run: str) -> Path:
    """The journal of a run in `home`, the competition's folder of submissions."""
    return home / f"{run}.json"


def read(place: Path) -> list[Attempt]:
    """The attempts of one journal, the last one first; none where there is no such file.

    Raises UserError where the file is not as it was written: what it forgot might be sent twice.
    """
    if not place.is_file():
        return []
    told = files.read_json(place)
    earlier = told.get("earlier", []) if isinstance(told, dict) else None
    if not isinstance(earlier, list):
        raise _damaged(place)
    return [_attempt(item, place) for item in [told, *earlier]]


def write(place: Path, attempts: Sequence[Attempt]) -> None:
    """Put the attempts on the disk, the last one first; they are there when this returns."""
    last, *earlier = [asdict(attempt) for attempt in attempts]
    files.write_json(place, {**last, "earlier": earlier})


def all_of(home: Path) -> dict[Path, list[Attempt]]:
    """Every journal of a competition, by its file."""
    found = {place: read(place) for place in sorted(home.glob("[!.]*.json"))}
    return {place: attempts for place, attempts in found.items() if attempts}


def _attempt(told: object, place: Path) -> Attempt:
    if not isinstance(told, dict):
        raise _damaged(place)
    known = {item.name for item in fields(Attempt)}
    kept = {key: value for key, value in told.items() if key in known}
    if not _is_sound(kept):
        raise _damaged(place)
    return Attempt(**kept)


def _is_sound(told: Mapping[str, Any]) -> bool:
    return (
        all(isinstance(told.get(key), str) for key in (*_REQUIRED, "description"))
        and told.get("state") in get_args(State)
        and isinstance(told.get("bytes"), int)
        and bool(told["marker"])
        and all(_is(told.get(key), str | None) for key in _TEXTS)
        and all(_is_number(told.get(key)) for key in _NUMBERS)
        and _is(told.get("ref"), int | None)
        and isinstance(told.get("reported", False), bool)
    )


def _is(value: object, kind: _Kind) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float):
        return value is None
    return not isinstance(value, bool) and math.isfinite(value)


def _damaged(place: Path) -> UserError:
    return UserError(
        f"{place} is not as kagglekit writes it: restore a copy, because it keeps a submission "
        "from being sent twice"
    )


# --- what Kaggle says ---------------------------------------------------------------------------


def listed(attempt: Attempt, found: Iterable[Submitted]) -> Submitted | None:
    """The attempt's own submission in Kaggle's list: by its number, else by its marker."""
    everything = list(found)
    by_ref = [item for item in everything if attempt.ref and item.ref == attempt.ref]
    marker = re.compile(rf"(?<!\w){re.escape(attempt.marker)}(?!\w)")
    by_marker = [item for item in everything if marker.search(item.description)]
    return next(iter(by_ref or by_marker), None)


def told(attempt: Attempt, found: Submitted | None) -> Attempt:
    """The attempt after Kaggle has, or has not, told of it; what it had before is never lost."""
    if found is None or (found.status == "pending" and attempt.state in ("scored", "failed")):
        return attempt  # a list may lag behind
    known = replace(
        attempt,
        sent=attempt.sent or found.when or now(),
        created=attempt.created or found.when or now(),
        ref=attempt.ref or found.ref,
        status=found.status,
        public=attempt.public if found.public is None else found.public,
        private=attempt.private if found.private is None else found.private,
        state="created",
    )
    if found.status == "error":
        return replace(known, state="failed", error=found.error, settled=_when(attempt))
    if found.status == "complete" and known.public is not None:
        return replace(known, state="scored", error=None, settled=_when(attempt))
    return known


def _when(attempt: Attempt) -> str:
    return attempt.settled or now()
