"""Brings an answer file to Kaggle at most once, waits for its score, and remembers both."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from . import (
    agreement,
    board,
    files,
    folders,
    journal,
    kaggle,
    leaderboard,
    locks,
    problem,
    signals,
)
from . import run as runs
from .competition import Competition
from .data import Data
from .errors import KagglekitError, NetworkError, UnclearError, UserError
from .folders import Source
from .journal import Attempt
from .kaggle import Kaggle, Quota, Submitted
from .progress import duration, figure
from .run import Run

Tell = Callable[[str], None]

LOOK = 2  # times the patience: how long an unclear outcome is looked up
WAIT = 30  # times the patience: how long a score is waited for
REST = 10  # times the patience: after that `--again` may send what was never found
STANDING = ".standing.json"


@dataclass(frozen=True)
class Request:
    """What a user typed after `kagglekit submit`."""

    name: str
    which: str | None = None  # a run, the beginning of its name, or a file; None = the best run
    data: Path | None = None
    slug: str | None = None
    again: bool = False  # also what was sent before
    wait: bool = True  # for the score
    command: str = ""


@dataclass(frozen=True)
class Target:
    """The file that is to be sent, found sound, and what is known of it."""

    name: str
    run: str  # or the file's stem
    slug: str
    file: Path
    content: bytes
    modified: float
    answers: str
    rows: int
    cv: float | None
    metric: str
    greater_is_better: bool
    public_error: float | None

    @property
    def digest(self) -> str:
        """Of the file's bytes."""
        return hashlib.blake2b(self.content, digest_size=16).hexdigest()

    @property
    def home(self) -> Path:
        """The competition's folder of submissions."""
        return folders.submissions() / self.name

    @property
    def place(self) -> Path:
        """The journal."""
        return journal.path(self.home, self.run)


@dataclass(frozen=True)
class Plan:
    """What is shown before a submission is spent."""

    target: Target
    quota: Quota
    notes: tuple[str, ...]
    again: bool


def submit(request: Request, agreed: Callable[[Plan], bool], tell: Tell) -> dict[str, Any]:
    """Send a file once, or finish what an earlier command began; what came of it.

    `agreed` is asked before a submission is spent. Raises UserError for a file that must not be
    sent, NetworkError where nothing was sent, UnclearError where Kaggle has not said whether it
    took the file or what it scored.
    """
    target = _target(request)
    with kaggle.connected(target.slug) as service:
        tell("asking Kaggle")
        found = service.submissions()
        seen, before = _markers(target.place), _last(target)
        _settle(target.home, target.slug, found)
        attempt = _finished(target, before) or _begun(target, request.again)
        quota = None
        if attempt is None or attempt.unsent:
            seen -= {attempt.marker} if attempt else set()  # that one is meant, whoever sends it
            quota = service.quota()
            plan = _plan(target, quota, request.again)
            if not agreed(plan):
                return _report(target, None, quota, None)
            with _locked(target.home, request.command, tell):
                attempt = _send(service, target, request, seen, tell)
        if attempt.unclear:
            attempt = _look_up(service, target.place, attempt, tell)
        if request.wait and attempt.waiting:
            attempt = _wait(service, target.place, attempt, tell)
        rank = _standing(service, target.home, found) if attempt.state == "scored" else None
    if not attempt.waiting:
        with _known(target.place, attempt) as known:
            _keep(target.place, replace(known, reported=True))
    if attempt.state == "failed":
        reason = attempt.error or "it gave no reason"
        raise NetworkError(
            f"Kaggle could not score {target.file}: {reason}; see "
            f"{kaggle.page(target.slug, 'submissions')}"
        )
    return _report(target, attempt, quota, rank)


def _report(
    target: Target, attempt: Attempt | None, quota: Quota | None, rank: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "competition": target.name,
        "run": target.run,
        "slug": target.slug,
        "file": str(target.file),
        "metric": target.metric,
        "cv": target.cv,
        "state": attempt.state if attempt else None,
        "ref": attempt.ref if attempt else None,
        "public": attempt.public if attempt else None,
        "private": attempt.private if attempt else None,
        "public_error": attempt.public_error if attempt else None,
        "marker": attempt.marker if attempt else None,
        "journal": str(target.place) if attempt else None,
        "quota": _quota(quota, int(attempt is not None)),
        "rank": rank,
        "url": kaggle.page(target.slug, "submissions"),
    }


def _quota(quota: Quota | None, spent: int = 0) -> dict[str, Any] | None:
    if quota is None:
        return None
    return {
        "left": max(0, quota.left - spent),
        "today": quota.today + spent,
        "by_total": quota.by_total,
        "resets_in": round(quota.resets_in()),
    }


# --- what is to be sent -------------------------------------------------------------------------


def _target(request: Request) -> Target:
    """The file that is meant, read and held against the sample."""
    competition = problem.find(request.name, request.slug)
    home = folders.submissions() / request.name
    which = request.which
    run: Run | None = None
    if which is None:
        run = best(request.name)
    elif _is_file(which):
        file = Path(which).expanduser()
        if file.resolve().parent == home.resolve() and _run_folder(request.name, file.stem):
            run = Run(folders.runs() / request.name / file.stem)
    else:
        run = runs.find(folders.runs(), request.name, which)
    if run is not None:
        file = home / f"{run.name}.csv"
    content = _content(file, run)
    source = _source(request, run)
    data = problem.load(competition, source.folder)
    competition.submission.check(data, file)
    answers = competition.submission.read(data, file)
    if _content(file, run) != content:
        raise UserError(f"{file} was written while it was read: wait for it, and try again")
    scores = run.scores() if run else None
    name = run.name if run else _stem(file, home, content)
    return Target(
        name=request.name,
        run=name,
        slug=request.slug or _slug(run) or competition.slug,
        file=file,
        content=content,
        modified=file.stat().st_mtime,
        answers=_answers_digest(answers),
        rows=len(data.sample),
        cv=scores["cv"] if scores else None,
        metric=competition.metric.name,
        greater_is_better=competition.metric.greater_is_better,
        public_error=_public_error(competition, data, run),
    )


def _is_file(which: str) -> bool:
    return which.lower().endswith((".csv", ".gz", ".zip")) or Path(which).expanduser().is_file()


def _run_folder(name: str, run: str) -> bool:
    return (folders.runs() / name / run / "run.json").is_file()


def best(name: str) -> Run:
    """The best finished run with a submission; before all, one with an OOF answer for each row."""
    rows = leaderboard.rows(folders.runs(), name)
    home = folders.submissions() / name
    able = [
        row
        for row in rows
        if row.cv is not None and row.finished and (home / f"{row.run}.csv").is_file()
    ]
    if not able:
        raise UserError(f"no finished run of {name} to submit: `kagglekit train {name}` makes one")
    whole = [row for row in able if row.coverage is None or row.coverage >= 1]
    return Run(folders.runs() / name / (whole or able)[0].run)


def _slug(run: Run | None) -> str | None:
    slug = run.manifest().get("slug") if run else None
    return slug if isinstance(slug, str) and slug else None


def _content(file: Path, run: Run | None) -> bytes:
    if run is not None and run.manifest()["finished"] is None:
        raise UserError(f"{run.name} is not finished: train it to its end first")
    with files.explained(file):
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            hint = "train the run again" if run else "give a run, or a file that is there"
            raise UserError(f"{file} does not exist: {hint}") from None
    if not content:
        raise UserError(f"{file} is empty: write it again")
    return content


def _source(request: Request, run: Run | None) -> Source:
    """The data whose sample the file has to fit: the run's own, where they are still there."""
    kind = run.manifest().get("data", {}).get("kind") if run else None
    source = folders.find_data(request.name, request.data)
    if source is None:
        raise UserError(
            f"no data of {request.name} to hold the file against: "
            f"`kagglekit download {request.name}` brings them"
        )
    if kind == "practice" and request.data is None:
        source = Source(folders.practice_folder(request.name), "practice")
    if source.kind == "practice" and (kaggle.is_real() or kind not in (None, "practice")):
        what = f"{run.name} answers" if run and kind == "practice" else "here are only"
        raise UserError(
            f"{what} practice data, not Kaggle's: `kagglekit download {request.name}` brings those"
        )
    return source


def _stem(file: Path, home: Path, content: bytes) -> str:
    """The name of the journal of a file that is of no run."""
    stem = re.sub(r"[^\w.@-]", "_", file.stem).lstrip(".") or "file"
    if file.resolve().parent == home.resolve():
        return stem
    return f"{stem}-{hashlib.blake2b(content, digest_size=4).hexdigest()}"


def _answers_digest(answers: np.ndarray) -> str:
    values = np.ascontiguousarray(answers) + 0  # no -0.0
    kind = f"{values.dtype.str}{values.shape}".encode()
    return hashlib.blake2b(kind + values.tobytes(), digest_size=16).hexdigest()


def _public_error(competition: Competition, data: Data, run: Run | None) -> float | None:
    if run is None:
        return None
    with suppress(KagglekitError):  # a figure beside the score; the file is what counts
        return agreement.public_error(competition, data, run)
    return None


# --- whether it is to be sent -------------------------------------------------------------------


def _last(target: Target) -> Attempt | None:
    """The last attempt at this very file."""
    last = next(iter(journal.read(target.place)), None)
    is_this = last is not None and (last.digest, last.slug) == (target.digest, target.slug)
    return last if is_this else None


def _finished(target: Target, before: Attempt | None) -> Attempt | None:
    """What became of a submission that an earlier command had sent, and had not told the end of."""
    if before is None or before.unsent or before.reported:
        return None
    now = _last(target)
    over = now is not None and now.marker == before.marker and now.state in ("scored", "failed")
    return now if over else None


def _begun(target: Target, again: bool) -> Attempt | None:
    """The attempt at this very file that an earlier command has not finished, if there is one.

    Raises UserError where it must not be sent once more.
    """
    last = _last(target)
    if last is not None:
        if last.waiting or last.unsent:
            return last
        if last.unclear and not (again and _is_given_up(last)):
            return last
    _refuse_twice(target, again)
    return None


def _is_given_up(attempt: Attempt) -> bool:
    """Whether so much time has gone that what was never found may be sent by a person's word."""
    if attempt.state != "unknown" or attempt.sent is None:
        return False
    return _age(attempt.sent) > REST * kaggle.patience()


def _refuse_twice(target: Target, again: bool) -> None:
    """Refuse what Kaggle has already: the same bytes, or the same answers written otherwise."""
    if again:
        return
    known = [attempt for every in journal.all_of(target.home).values() for attempt in every]
    for attempt in known:
        if attempt.slug != target.slug or not attempt.counts:
            continue
        same = "file" if attempt.digest == target.digest else "answers"
        if attempt.digest == target.digest or attempt.answers == target.answers:
            raise UserError(
                f"{target.file}: the same {same} {'was' if same == 'file' else 'were'} submitted as"
                f" {attempt.run} ({_outcome(attempt)}); --again spends another submission on "
                f"{'it' if same == 'file' else 'them'}"
            )


def _outcome(attempt: Attempt) -> str:
    if attempt.public is not None:
        private = "" if attempt.private is None else f", private {figure(attempt.private)}"
        return f"public {figure(attempt.public)}{private}"
    return "outcome unknown" if attempt.unclear else "being scored"


def _plan(target: Target, quota: Quota, again: bool) -> Plan:
    """What is shown before it is sent; NetworkError where the day's limit is reached."""
    if quota.left < 1:
        raise NetworkError(_used_up(target, quota))
    return Plan(target, quota, tuple(_notes(target)), again)


def _used_up(target: Target, quota: Quota) -> str:
    if quota.by_total:
        return f"{target.slug} takes no more submissions from this team: all {quota.total} are used"
    return (
        f"the daily limit of {target.slug} is reached ({quota.today} today): it resets in "
        f"{duration(quota.resets_in())}, at 0:00 UTC"
    )


def _notes(target: Target) -> Iterator[str]:
    known = [attempts[0] for attempts in journal.all_of(target.home).values()]
    ours = [a for a in known if a.counts and a.cv is not None and a.slug == target.slug]
    sign = 1 if target.greater_is_better else -1
    if target.cv is not None and ours:
        best = max(ours, key=lambda a: sign * (a.cv or 0.0))
        if best.cv is not None and sign * best.cv > sign * target.cv:
            public = "" if best.public is None else f", public {figure(best.public)}"
            yield (
                f"its CV {figure(target.cv)} is worse than {figure(best.cv)} of {best.run}, "
                f"submitted already{public}"
            )
    if any(a.state == "failed" and a.digest == target.digest for a in known):
        yield "Kaggle could not score this very file before"


# --- sending ------------------------------------------------------------------------------------


@contextmanager
def _locked(home: Path, command: str, tell: Tell) -> Iterator[None]:
    """One process at a time reads what is to be sent, and sends it."""
    home.mkdir(parents=True, exist_ok=True)
    lock = locks.Lock(home / "submit", command)
    with files.explained(home):
        lock.wait(lambda owner: tell(f"{owner.describe()} is submitting: waiting for it"))
    with lock:
        yield


def _send(service: Kaggle, target: Target, request: Request, seen: set[str], tell: Tell) -> Attempt:
    """Upload the file and make a submission of it, each step on the disk before it is taken.

    `seen` are the markers of attempts that were there before: any other is the one meant.
    """
    last = next(iter(journal.read(target.place)), None)
    is_newer = last is not None and last.marker not in seen and last.digest == target.digest
    if last is not None and is_newer and not last.unsent:
        return last  # another process was faster
    attempt = _begun(target, request.again) or _planned(target)
    if not attempt.unsent:
        return attempt
    _keep(target.place, attempt)
    for pause in kaggle.pauses():
        tell("uploading")
        token = service.upload(target.file.name, target.content, target.modified)
        attempt = replace(attempt, state="uploaded", uploaded=journal.now())
        _keep(target.place, attempt)
        quota = service.quota()  # and a connection that is open: none is made between the steps
        if quota.left < 1:
            raise NetworkError(_used_up(target, quota))
        tell("submitting")
        try:
            return _create(service, target.place, attempt, token)
        except kaggle.BusyError as error:
            if error.seconds > kaggle.patience():
                raise
            tell(str(error))
            time.sleep(max(pause, error.seconds))
    raise AssertionError  # pauses never end


def _markers(place: Path) -> set[str]:
    return {attempt.marker for attempt in journal.read(place)}


def _planned(target: Target) -> Attempt:
    marker = journal.new_marker()
    score = "" if target.cv is None else f" CV {figure(target.cv)}"
    return Attempt(
        competition=target.name,
        run=target.run,
        slug=target.slug,
        file=str(target.file),
        digest=target.digest,
        answers=target.answers,
        bytes=len(target.content),
        marker=marker,
        description=f"{target.run}{score} {marker}",
        planned=journal.now(),
        cv=target.cv,
        public_error=target.public_error,
    )


def _create(service: Kaggle, place: Path, attempt: Attempt, token: str) -> Attempt:
    """The one step that spends a submission. Ctrl-C waits for its end."""
    with signals.deferred():
        unsent, attempt = attempt, replace(attempt, sent=journal.now())
        _write(place, attempt)  # whoever reads this must never send it again
        try:
            ref = service.create(token, attempt.description)
        except UnclearError:
            return attempt
        except KagglekitError:
            _keep(place, unsent)  # Kaggle did not take it
            raise
        attempt = replace(attempt, state="created", created=journal.now(), ref=ref)
        _keep(place, replace(attempt, status="pending"))
    return replace(attempt, status="pending")


def _keep(place: Path, attempt: Attempt) -> Attempt:
    """Put an attempt on the disk, in the place of what was known of it."""
    _write(place, attempt)
    if attempt.ref is not None:  # before that there is nothing that the index shows
        _mirror(attempt)
    return attempt


def _write(place: Path, attempt: Attempt) -> None:
    known = journal.read(place)
    if any(other.marker == attempt.marker for other in known):
        known = [attempt if other.marker == attempt.marker else other for other in known]
    else:
        known = [attempt, *known]
    journal.write(place, known)


def _mirror(attempt: Attempt) -> None:
    """Bring the index up to date; it can be made again, so its faults stop nothing."""
    if _run_folder(attempt.competition, attempt.run):
        with suppress(KagglekitError):
            leaderboard.record(
                folders.runs(), folders.submissions(), attempt.competition, attempt.run
            )
            board.refresh(folders.runs(), folders.submissions())


# --- afterwards ---------------------------------------------------------------------------------


def _look_up(service: Kaggle, place: Path, attempt: Attempt, tell: Tell) -> Attempt:
    """Find out whether Kaggle took what was sent; UnclearError where that cannot be found out."""
    began, limit = time.monotonic(), LOOK * kaggle.patience()
    trouble = ""
    for pause in kaggle.pauses(1 / 60, 1 / 6):
        tell(f"the outcome is unclear: looking for it on Kaggle, {_clock(began, limit)}")
        try:
            found = journal.listed(attempt, service.submissions())
        except KagglekitError as error:
            found, trouble = None, f" ({error})"
        if found is not None:
            return _told(place, attempt, found)
        if time.monotonic() - began > limit:
            break
        time.sleep(pause)
    attempt = _give_up(place, attempt)
    if not attempt.unclear:
        return attempt
    rest = REST * kaggle.patience() - _age(attempt.sent or journal.now())
    wait = f"in {duration(rest)}" if rest > 0 else "now"
    raise UnclearError(
        f"Kaggle has not said whether it took {attempt.run}, and does not list it{trouble}: "
        f"`kagglekit submissions {attempt.competition}` looks again; if it is not on "
        f"{kaggle.page(attempt.slug, 'submissions')} {wait}, --again sends it anew"
    )


def _told(place: Path, attempt: Attempt, found: Submitted) -> Attempt:
    """Write down what Kaggle says; another process may have heard more of it meanwhile."""
    with _known(place, attempt) as before:
        after = journal.told(before, found)
        return after if after == before else _keep(place, after)


@contextmanager
def _known(place: Path, attempt: Attempt) -> Iterator[Attempt]:
    """An attempt as it is on the disk now, which no other process changes meanwhile."""
    with _locked(place.parent, "", lambda line: None):
        same = [other for other in journal.read(place) if other.marker == attempt.marker]
        yield same[0] if same else attempt


def _give_up(place: Path, attempt: Attempt) -> Attempt:
    """Note that it was not found, unless another process has found it meanwhile."""
    with _known(place, attempt) as before:
        return _keep(place, replace(before, state="unknown")) if before.unclear else before


def _wait(service: Kaggle, place: Path, attempt: Attempt, tell: Tell) -> Attempt:
    """Wait for the score; UnclearError where it does not come in time."""
    began, limit = time.monotonic(), WAIT * kaggle.patience()
    for pause in kaggle.pauses(1 / 60, 1 / 2):
        found = _ask(service, attempt)
        if found is not None and journal.told(attempt, found) != attempt:
            attempt = _told(place, attempt, found)
        if not attempt.waiting:
            return attempt
        if time.monotonic() - began > limit:
            break
        tell(f"being scored, {_clock(began, limit)} (Ctrl-C stops waiting, nothing is lost)")
        time.sleep(pause)
    raise UnclearError(
        f"Kaggle has {attempt.run} but has not scored it in {duration(limit)}: "
        f"`kagglekit submissions {attempt.competition}` brings the score later"
    )


def _ask(service: Kaggle, attempt: Attempt) -> Submitted | None:
    """What Kaggle says of a submission; None where it cannot say just now."""
    assert attempt.ref is not None
    try:
        return service.submission(attempt.ref)
    except KagglekitError:  # it may be in the list all the same
        try:
            return journal.listed(attempt, service.submissions())
        except NetworkError:
            return None


def _clock(began: float, limit: float) -> str:
    return f"{duration(time.monotonic() - began)} of {duration(limit)} at most"


def _age(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


# --- what there is ------------------------------------------------------------------------------


def _settle(home: Path, slug: str, found: Sequence[Submitted], reported: bool = False) -> None:
    """Write down what Kaggle's list says of our attempts, unless somebody is just sending."""
    if not home.is_dir():
        return
    lock = locks.Lock(home / "submit")
    with files.explained(home):
        if not lock.take():
            return
    with lock:
        files.sweep(home)
        for place, attempts in journal.all_of(home).items():
            after = [
                journal.told(a, journal.listed(a, found)) if a.slug == slug else a for a in attempts
            ]
            if reported:
                after = [replace(a, reported=a.state in ("scored", "failed")) for a in after]
            if after != attempts:
                journal.write(place, after)
            if reported or after != attempts or not after[0].reported:
                _mirror(after[0])  # also what a process killed here had written


def submissions(name: str, slug: str | None, tell: Tell) -> dict[str, Any]:
    """Our journals and Kaggle's list, reconciled, newest first; the quota; our rank."""
    competition = problem.find(name, slug)
    home = folders.submissions() / name
    slug = slug or _last_slug(home) or competition.slug
    with kaggle.connected(slug) as service:
        tell("asking Kaggle")
        found = service.submissions()
        _settle(home, slug, found, reported=True)
        quota = service.quota()
        rank = _standing(service, home, found) if found else None
    return {
        "competition": name,
        "slug": slug,
        "url": kaggle.page(slug, "submissions"),
        "quota": _quota(quota),
        "rank": rank,
        "submissions": _reconciled(home, slug, found),
    }


def _last_slug(home: Path) -> str | None:
    every = [a for attempts in journal.all_of(home).values() for a in attempts]
    return max(every, key=lambda a: a.planned).slug if every else None


def _reconciled(home: Path, slug: str, found: Sequence[Submitted]) -> list[dict[str, Any]]:
    ours = [a for attempts in journal.all_of(home).values() for a in attempts if a.slug == slug]
    entries, known = [], set()
    for attempt in ours:
        item = journal.listed(attempt, found)
        if item is not None:
            known.add(item.ref)
        entries.append(_entry(attempt, item))
    entries += [_entry(None, item) for item in found if item.ref not in known]
    return sorted(entries, key=lambda entry: entry["when"] or "", reverse=True)


def _entry(attempt: Attempt | None, item: Submitted | None) -> dict[str, Any]:
    if attempt is None:
        assert item is not None
        return {
            "file": item.file, "run": None, "state": item.status, "ref": item.ref, "cv": None,
            "public": item.public, "private": item.private, "when": item.when,
            "error": item.error or None, "description": item.description, "at_kaggle": True,
        }  # fmt: skip
    state = "unknown" if attempt.unclear else attempt.state
    return {
        "file": Path(attempt.file).name, "run": attempt.run, "state": state, "ref": attempt.ref,
        "cv": attempt.cv, "public": attempt.public, "private": attempt.private,
        "when": attempt.created or attempt.sent or attempt.planned, "error": attempt.error,
        "description": attempt.description, "at_kaggle": item is not None,
    }  # fmt: skip


def _standing(service: Kaggle, home: Path, found: Sequence[Submitted]) -> dict[str, Any] | None:
    """Our rank, asked for and remembered; None where Kaggle does not tell."""
    team = next((item.team for item in found if item.team), None)
    try:
        standing = service.standing(team)
    except KagglekitError:  # an ornament: the scores are what counts
        return None
    if standing is None:
        return None
    told = {"rank": standing.rank, "teams": standing.teams, "when": journal.now()}
    files.write_json(home / STANDING, told)
    return told


def standing(name: str) -> dict[str, Any] | None:
    """Our rank now, or as it was last heard of; None where nothing was submitted."""
    home = folders.submissions() / name
    slug = _last_slug(home) if home.is_dir() else None
    if slug is None:
        return None
    with suppress(KagglekitError), kaggle.connected(slug, hasty=True) as service:
        fresh = _standing(service, home, service.submissions())
        if fresh is not None:
            return fresh
    with suppress(UserError):
        kept = files.read_json(home / STANDING)
        return kept if isinstance(kept, dict) and {"rank", "teams", "when"} <= set(kept) else None
    return None


def verdict(name: str, rows: Sequence[leaderboard.Row]) -> dict[str, Any]:
    """CV against LB over the scored submissions of a competition, and which two to tick."""
    home = folders.submissions() / name
    by_run = {row.run: row for row in rows if row.cv is not None}
    scored = [
        scored
        for attempts in (journal.all_of(home).values() if home.is_dir() else ())
        for scored in _scored(attempts, by_run, home)
    ]
    greater = next((bool(row.greater_is_better) for row in by_run.values()), True)
    slug = _last_slug(home) if home.is_dir() else None
    return {
        "agreement": agreement.compare(scored, greater),
        "select": agreement.recommend(scored, greater),
        "url": kaggle.page(slug, "submissions") if slug else None,
    }


def _scored(
    attempts: Sequence[Attempt], by_run: Mapping[str, leaderboard.Row], home: Path
) -> Iterator[agreement.Scored]:
    for attempt in attempts:
        row = by_run.get(attempt.run)
        if attempt.public is None or attempt.cv is None or row is None:
            continue
        file = home / f"{attempt.run}.csv"
        folds = len(row.folds)
        error = (row.std or 0.0) / np.sqrt(folds) if folds else 0.0
        yield agreement.Scored(
            attempt.run, file, attempt.ref, attempt.cv, attempt.public, float(error),
            attempt.public_error,
        )  # fmt: skip
        return
