"""An SQLite index over run folders; the folders are the truth and make it again at any time."""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cache
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from . import files, folders, locks, strips
from .errors import UserError
from .progress import duration, figure, spread

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

DATABASE = "leaderboard.db"
SCHEMA = 3  # raise it whenever Row changes: an index of another version is made again
BUSY_SECONDS = 30.0
NARROW = 110  # columns of a terminal below which a run takes two lines
_ROOMY = 136  # columns from which a strip of the folds stands beside their scores

_ASIDE = "~"  # in the names of folders that hold a run's earlier state
_FOLDS_WIDTH = 11  # columns: two scores side by side
_MANY_FOLDS = 15  # beyond these the table gives the range alone
_LONGEST_NAME = 255  # bytes of a folder's name

T = TypeVar("T")

_log = logging.getLogger("kagglekit")


@dataclass(frozen=True)
class Row:
    """One run as the leaderboard knows it. Scores are None until there are any.

    `coverage` is the share of train rows that a fold validated, `seconds` the time of the whole
    run, `folds` holds (fold, score), `started` and `finished` are ISO times in UTC.
    """

    competition: str
    run: str
    recipe: str
    slug: str
    started: str
    finished: str | None
    practice: bool  # the data are stand-ins, so that scores do not compare with real ones
    seeds: tuple[int, ...]
    folds_wanted: int
    metric: str | None = None
    greater_is_better: bool | None = None
    cv: float | None = None
    mean: float | None = None
    std: float | None = None
    coverage: float | None = None
    folds: tuple[tuple[int, float], ...] = ()
    seconds: float | None = None
    device: str | None = None
    precision: str | None = None
    practice_lb: float | None = None
    public_lb: float | None = None
    private_lb: float | None = None
    status: str | None = None  # of the submission, as Kaggle last gave it
    failed: int = 0  # members whose numbers burst
    forced: bool = False  # gone on with although source or versions had changed
    seed_scores: tuple[tuple[int, float], ...] = ()  # (seed, CV score of that seed alone)
    seed_mean: float | None = None
    seed_std: float | None = None
    seed_interval: tuple[float, float] | None = None  # of the mean over seeds, at 95 %


_COLUMNS = tuple(item.name for item in fields(Row))
_JSON = ("seeds", "folds", "seed_scores", "seed_interval")
_FLAGS = ("practice", "greater_is_better", "forced")


def record(runs: Path, submissions: Path, competition: str, run: str) -> None:
    """Bring the index up to date with one run's folder, which may also be gone.

    Raises UserError where the run's files are damaged or the index cannot be written.
    """

    def work(database: sqlite3.Connection) -> None:
        # Read inside the transaction: of two processes that record a run, the later read wins.
        row = _read(runs, submissions, competition, run)
        if row is None:
            database.execute("DELETE FROM runs WHERE competition=? AND run=?", (competition, run))
        else:
            _put(database, row)

    with files.explained(runs / DATABASE):
        runs.mkdir(parents=True, exist_ok=True)
    try:
        _transact(runs, submissions, work)
    except (sqlite3.Error, TimeoutError) as error:
        raise UserError(_fault(runs, error)) from error


def rows(runs: Path, competition: str | None = None, submissions: Path | None = None) -> list[Row]:
    """Every run, or those of one competition; competitions by name, in each the best first.

    Runs on practice data follow those on real data, runs without a score come last. An index that
    is missing or damaged is made again (with the scores in `submissions`, by default the
    project's); where it cannot be written the folders themselves are read.
    """
    if not runs.is_dir():
        return []
    submissions = folders.submissions() if submissions is None else submissions
    try:
        found = _transact(runs, submissions, _select)
    except (sqlite3.Error, UserError, TimeoutError):
        found = list(_scan(runs, submissions))
    return _ranked(
        row
        for row in found
        if competition in (None, row.competition) and _alive(runs, row.competition, row.run)
    )


def best(runs: Path, competition: str, submissions: Path | None = None) -> Row | None:
    """The best scored run of a competition; one on practice data only where no other is scored."""
    scored = [row for row in rows(runs, competition, submissions) if row.cv is not None]
    return scored[0] if scored else None


def rebuild(runs: Path, submissions: Path) -> int:
    """Make the index again from the folders and return how many runs it has.

    A folder whose files are damaged is left out, with a warning. Raises UserError where the index
    cannot be written.
    """
    if not runs.is_dir():
        return 0
    try:
        return _transact(runs, submissions, lambda database: _fill(database, runs, submissions))
    except (sqlite3.Error, TimeoutError) as error:
        raise UserError(_fault(runs, error)) from error


# --- the folders --------------------------------------------------------------------------------


def _scan(runs: Path, submissions: Path) -> Iterator[Row]:
    for path in sorted(runs.glob("*/*/run.json")):
        try:
            row = _read(runs, submissions, path.parts[-3], path.parts[-2])
        except UserError as error:
            _warn(f"{path.parent.name} is left out: {error}")
            continue
        if row is not None:
            yield row


@cache
def _warn(told: str) -> None:
    """Say something once, however often a process reads the folders."""
    _log.warning("%s", told)


def _alive(runs: Path, competition: str, run: str) -> bool:
    return _ASIDE not in run and run[0] != "." and (runs / competition / run / "run.json").is_file()


def _read(runs: Path, submissions: Path, competition: str, run: str) -> Row | None:
    """The row of a run's folder; None where there is none, UserError where it is damaged."""
    if not _alive(runs, competition, run):
        return None
    folder = runs / competition / run
    told = _mapping(folder / "run.json")
    scores = _mapping(folder / "scores.json")
    journal = _mapping(submissions / competition / f"{run}.json")
    try:
        row = _row(competition, run, told, scores, journal)
        _check(row)
        return row
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder}: run.json or scores.json is not as kagglekit writes it"
            f" ({type(error).__name__}: {error}); remove the folder, or restore a copy"
        ) from error


def _mapping(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file."""
    value = files.read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: remove it, or restore a copy")
    return value


def _row(
    competition: str,
    run: str,
    told: dict[str, Any],
    scores: dict[str, Any],
    journal: dict[str, Any],
) -> Row:
    greater = scores.get("greater_is_better")
    return Row(
        competition=competition,
        run=run,
        recipe=str(told["recipe"]),
        slug=str(told.get("slug") or ""),
        started=str(told["started"]),
        finished=told.get("finished"),
        practice=told.get("data", {}).get("kind") == "practice",
        seeds=tuple(int(seed) for seed in told.get("seeds", ())),
        folds_wanted=int(told.get("folds_wanted", 0)),
        metric=scores.get("metric"),
        greater_is_better=None if greater is None else bool(greater),
        cv=_score(scores.get("cv")),
        mean=_score(scores.get("mean")),
        std=_score(scores.get("std")),
        coverage=_score(scores.get("coverage")),
        folds=tuple(
            (int(item["fold"]), float(item["score"]))
            for item in scores.get("folds", ())
            if _score(item["score"]) is not None
        ),
        seconds=_score(scores.get("seconds")),
        device=told.get("device"),
        precision=told.get("precision"),
        practice_lb=_score(scores.get("practice_lb")),
        public_lb=_score(_last(journal, "public")),
        private_lb=_score(_last(journal, "private")),
        status=journal.get("status"),
        failed=len(told.get("failed", {})),
        forced=bool(told.get("forced")),
        **_repeats(scores.get("repeats") or {}),
    )


def _repeats(told: dict[str, Any]) -> dict[str, Any]:
    """What scores.json says of seeds; nothing where an earlier version wrote it."""
    low, high = (_score(end) for end in told.get("interval") or (None, None))
    return {
        "seed_scores": tuple(
            (int(item["seed"]), float(item["score"])) for item in told.get("scores", ())
        ),
        "seed_mean": _score(told.get("mean")),
        "seed_std": _score(told.get("std")),
        "seed_interval": None if low is None or high is None else (low, high),
    }


def _check(row: Row) -> None:
    """TypeError for a row with a value of another type than its field's, or that no table can show.

    What a file says is of any type; an index, a table and a sort take no other than these.
    """
    for name, kind in get_type_hints(Row).items():
        if not _fits(getattr(row, name), kind):
            raise TypeError(f"{name} is {getattr(row, name)!r:.80}")
    for name in (row.competition, row.run):
        if Path(name).name != name or len(os.fsencode(name)) > _LONGEST_NAME:
            raise TypeError(f"{name!r:.80} is no name of a folder")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the annotation of a field of Row; numbers are of 64 bits and finite."""
    parts = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if type(value) is not kind and not (kind is float and type(value) is int):
        return False
    return not isinstance(value, int | float) or abs(value) < (2**63 if kind is int else math.inf)


def _last(journal: dict[str, Any], key: str) -> Any:
    """What the last submission has that has any: one sent again may still be without a score."""
    attempts = [journal, *journal.get("earlier", [])]
    return next((a[key] for a in attempts if a.get(key) is not None), None)


def _score(value: Any) -> float | None:
    """A finite number, or None: what is no number ranks nowhere."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)


# --- the index ----------------------------------------------------------------------------------


def _transact(runs: Path, submissions: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    """`work` in one transaction on an index of this schema; a damaged file is replaced first.

    SQLite's own locks guard rows, not files: who finds the index damaged would remove it from
    under a process that has just made it anew. So one process at a time has it open.
    """
    path = runs / DATABASE
    with files.explained(path):
        lock = locks.exclusive(path, BUSY_SECONDS)
    with lock:
        try:
            return _attempt(path, runs, submissions, work)
        except sqlite3.OperationalError:  # busy, read-only, disk full: the file itself is sound
            raise
        except sqlite3.DatabaseError:
            _discard(path)
            return _attempt(path, runs, submissions, work)


def _attempt(
    path: Path, runs: Path, submissions: Path, work: Callable[[sqlite3.Connection], T]
) -> T:
    with closing(_connect(path)) as database:
        database.execute("BEGIN IMMEDIATE")
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA or not _has_columns(database):
                _create(database)
                _fill(database, runs, submissions)
            result = work(database)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
    return result


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode, or with a rollback journal where the file system has no WAL."""
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        _use_wal(database)
    except sqlite3.OperationalError:
        try:
            # Exclusive locking reads a WAL file without the shared memory that is missing here.
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            database.execute("PRAGMA journal_mode=DELETE").fetchone()
            database.execute("PRAGMA locking_mode=NORMAL")
        except BaseException:
            database.close()
            raise
    except BaseException:
        database.close()
        raise
    return database


def _use_wal(database: sqlite3.Connection) -> None:
    (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    if mode.lower() == "wal":
        return
    try:
        database.execute("PRAGMA journal_mode=WAL").fetchone()
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):  # else another process is using it, which any mode allows
            raise


def _discard(path: Path) -> None:
    """Remove a damaged index: first what belongs to it, so that a new one never meets it."""
    with files.explained(path):
        for suffix in ("-wal", "-shm", "-journal", ""):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def _create(database: sqlite3.Connection) -> None:
    named = "SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'"
    for (name,) in database.execute(named).fetchall():
        database.execute('DROP TABLE "{}"'.format(name.replace('"', '""')))
    columns = ", ".join(_COLUMNS)
    database.execute(f"CREATE TABLE runs ({columns}, PRIMARY KEY (competition, run))")
    database.execute(f"PRAGMA user_version={SCHEMA}")


def _has_columns(database: sqlite3.Connection) -> bool:
    found = database.execute("PRAGMA table_info(runs)").fetchall()
    return tuple(column[1] for column in found) == _COLUMNS


def _fill(database: sqlite3.Connection, runs: Path, submissions: Path) -> int:
    database.execute("DELETE FROM runs")
    count = 0
    for row in _scan(runs, submissions):
        _put(database, row)
        count += 1
    return count


def _put(database: sqlite3.Connection, row: Row) -> None:
    values = [getattr(row, name) for name in _COLUMNS]
    values = [json.dumps(v) if n in _JSON else v for n, v in zip(_COLUMNS, values, strict=True)]
    marks = ", ".join("?" * len(_COLUMNS))
    database.execute(f"INSERT OR REPLACE INTO runs VALUES ({marks})", values)


def _select(database: sqlite3.Connection) -> list[Row]:
    found = database.execute(f"SELECT {', '.join(_COLUMNS)} FROM runs").fetchall()
    return [_from_index(dict(zip(_COLUMNS, values, strict=True))) for values in found]


def _from_index(values: dict[str, Any]) -> Row:
    """The row that `_put` put there; another value than it puts means that the index is damaged."""
    try:
        values["seeds"] = tuple(json.loads(values["seeds"]))
        for name in ("folds", "seed_scores"):
            values[name] = tuple((number, score) for number, score in json.loads(values[name]))
        interval = json.loads(values["seed_interval"])
        values["seed_interval"] = None if interval is None else tuple(interval)
        for name in _FLAGS:
            values[name] = None if values[name] is None else bool(values[name])
        row = Row(**values)
        _check(row)
    except (TypeError, ValueError, RecursionError) as error:
        raise sqlite3.DatabaseError(f"a row is not as kagglekit writes it: {error}") from error
    return row


def _fault(runs: Path, error: Exception) -> str:
    return (
        f"{runs / DATABASE} cannot be used ({error}): free its disk and its permissions, or move"
        " the folder with $KAGGLEKIT_RUNS"
    )


# --- the order ----------------------------------------------------------------------------------


def _ranked(found: Any) -> list[Row]:
    ordered = sorted(found, key=lambda row: (row.competition, row.started, row.run))
    result: list[Row] = []
    for _, group in groupby(ordered, key=lambda row: row.competition):
        competing = list(group)
        metrics = [row.metric for row in competing if row.cv is not None]
        latest = metrics[-1] if metrics else None
        result += sorted(competing, key=lambda row: _rank(row, latest))  # ties: the earlier first
    return result


def _rank(row: Row, latest_metric: str | None) -> tuple[bool, bool, bool, float]:
    """Real data before practice data, and the metric in use before one that it replaced."""
    if row.cv is None:
        return (True, row.practice, False, 0.0)
    return (
        False,
        row.practice,
        row.metric != latest_metric,
        -row.cv if row.greater_is_better else row.cv,
    )


# --- the table ----------------------------------------------------------------------------------


def table(rows: Sequence[Row], width: int | None = None) -> Table:
    """The rows for a terminal of `width` columns (default: this one), two lines a run if narrow."""
    if width is None:
        from rich.console import Console

        width = Console().width
    roomy = width >= _ROOMY
    lines = _strips(rows, strips.WIDTH if roomy else _FOLDS_WIDTH)
    return _narrow(rows, lines) if width < NARROW else _wide(rows, lines, roomy)


def _narrow(rows: Sequence[Row], lines: Sequence[str]) -> Table:
    from rich.text import Text

    grid = _empty()
    grid.add_column("run", no_wrap=True, min_width=16)
    grid.add_column("CV · mean ± std", no_wrap=True)
    grid.add_column("folds", min_width=_FOLDS_WIDTH)
    leaders = any(lb_scores(row) for row in rows)
    if leaders:
        grid.add_column("LB", no_wrap=True)
    grid.add_column("time", no_wrap=True, justify="right")
    for row, strip in zip(rows, lines, strict=True):
        name = [_name(row), Text(row.competition, style="dim"), *_marks(row)]
        shown = [f"{kind} {figure(score)}" for kind, score in lb_scores(row)]
        if len(shown) == 1:  # upright, for a narrow terminal
            shown = shown[0].split()[::-1]
        cells = [
            Text("\n").join(name),
            Text("\n").join([_cv(row), Text(_spread(row), style="dim")]),
            _beneath(row, strip),
            *([Text("\n".join(shown))] if leaders else []),
            Text("\n").join([Text(_time(row)), Text(_seeds(row), style="dim")]),
        ]
        grid.add_row(*cells)
    return grid


def _wide(rows: Sequence[Row], lines: Sequence[str], roomy: bool) -> Table:
    from rich.text import Text

    kinds = [kind for kind in ("practice", "public", "private") if _any_leader(rows, kind)]
    grid = _empty()
    grid.add_column("competition", no_wrap=True)
    grid.add_column("run", no_wrap=True)
    grid.add_column("CV", no_wrap=True, justify="right")
    grid.add_column("mean ± std", no_wrap=True)
    grid.add_column("folds", min_width=_FOLDS_WIDTH)
    if roomy:
        grid.add_column("spread", no_wrap=True)
    grid.add_column("time", no_wrap=True, justify="right")
    grid.add_column("seeds", no_wrap=True)
    for kind in kinds:
        grid.add_column(f"{kind}\nLB", no_wrap=True, justify="right")
    for row, strip in zip(rows, lines, strict=True):
        leaders = dict(lb_scores(row))
        grid.add_row(
            Text(row.competition),
            Text("\n").join([_name(row), *_marks(row)]),
            _cv(row),
            Text(_spread(row)),
            *([Text(_folds(row), style="dim"), Text(strip)] if roomy else [_beneath(row, strip)]),
            Text(_time(row)),
            Text(_seeds(row), style="dim"),
            *(Text(figure(leaders[kind]) if kind in leaders else "") for kind in kinds),
        )
    return grid


def _empty() -> Table:
    from rich.table import Table

    return Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))


def _name(row: Row) -> Text:
    """The run's name with its recipe set off, put before it where the name lacks it."""
    from rich.text import Text

    if row.run.startswith(row.recipe):
        return Text.assemble((row.recipe, "bold"), (row.run[len(row.recipe) :], "dim"))
    return Text.assemble((row.recipe, "bold"), (f" {row.run}", "dim"))


def marks(row: Row) -> list[str]:
    """What keeps the run from being compared with others, one phrase each."""
    found = ["practice data"] if row.practice else []
    if row.coverage is not None and row.coverage < 1:
        found.append(f"{math.floor(row.coverage * 1000) / 10:g} % of rows")
    if row.finished is None:
        found.append("not finished")
    if row.failed:
        found.append(f"{row.failed} failed")
    if row.forced:
        found.append("resumed by force")
    return found


def _marks(row: Row) -> list[Text]:
    from rich.text import Text

    return [Text(mark, style="yellow") for mark in marks(row)]


def _cv(row: Row) -> Text:
    from rich.text import Text

    return Text(figure(row.cv), style="bold" if row.cv is not None else "dim")


def _spread(row: Row) -> str:
    if row.mean is None or len(row.folds) < 2:
        return ""  # one fold has no spread
    return figure(row.mean) if row.std is None else spread(row.mean, row.std)


def _folds(row: Row) -> str:
    """Every fold's score in four digits, an exponent that they share written once."""
    scores = [score for _, score in row.folds]
    if not scores:
        return ""
    size = max(abs(score) for score in scores)
    exponent = math.floor(math.log10(size)) if 0 < size < 1e-3 else 0
    short = [_short(score / 10**exponent, size / 10**exponent) for score in scores]
    if len(short) > _MANY_FOLDS:
        low, high = scores.index(min(scores)), scores.index(max(scores))
        text = f"{len(short)} folds, {short[low]} to {short[high]}"
    else:
        text = " ".join(short)
    return f"({text})e{exponent}" if exponent else text


def _strips(rows: Sequence[Row], width: int) -> list[str]:
    """Each run's folds as a strip plot; those of one competition and metric share a scale."""
    scales = {
        key: strips.Scale.over(score for row in rows if scale(row) == key for score in scores(row))
        for key in map(scale, rows)
    }
    return [
        strips.text([score for _, score in row.folds], row.cv, scales[scale(row)], width)
        if len(row.folds) > 1
        else ""
        for row in rows
    ]


def scale(row: Row) -> tuple[str, str | None, bool]:
    """What rows must share for their scores to stand on one scale."""
    return row.competition, row.metric, row.practice


def scores(row: Row) -> list[float]:
    """Its folds' scores, and that of all rows."""
    return [*(score for _, score in row.folds), *([] if row.cv is None else [row.cv])]


def _beneath(row: Row, strip: str) -> Text:
    """The folds' scores with the strip below them, where that has no column of its own."""
    from rich.text import Text

    shown = Text(_folds(row), style="dim")
    return shown.append(f"\n{strip}", "not dim") if strip else shown


def _short(score: float, size: float) -> str:
    """Four digits of a score whose fellows are at most `size`: .9962, 33.12."""
    digits = 0 if size < 1 else math.floor(math.log10(size)) + 1
    text = f"{score:.{max(0, 4 - digits)}f}"
    return text.replace("0.", ".", 1) if digits == 0 else text


def _time(row: Row) -> str:
    return "" if row.seconds is None else duration(row.seconds)


def _seeds(row: Row) -> str:
    """How many seeds, and of several the mean of their own scores with its 95 % interval."""
    if len(row.seeds) < 2:
        return "1 seed" if row.seeds else ""
    lines = [f"{len(row.seeds)} seeds"]
    if row.seed_mean is not None and row.seed_std is not None:
        lines.append(spread(row.seed_mean, row.seed_std))
    if row.seed_interval is not None:
        lines.append("[{}, {}]".format(*(figure(end) for end in row.seed_interval)))
    return "\n".join(lines)


def lb_scores(row: Row) -> list[tuple[str, float]]:
    """(kind, score) of every leaderboard that has scored the run."""
    scores = (("practice", row.practice_lb), ("public", row.public_lb), ("private", row.private_lb))
    return [(kind, score) for kind, score in scores if score is not None]


def _any_leader(rows: Sequence[Row], kind: str) -> bool:
    return any(kind in dict(lb_scores(row)) for row in rows)
