"""The board: every competition's runs on one static page, made anew by each run that finishes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from . import files, leaderboard, locks, pages
from .leaderboard import Row
from .progress import figure
from .strips import Scale

FILE = "board.html"
REPORT = "report.html"  # in the folder of a run
_BUSY_SECONDS = 5.0


def write(runs: Path, submissions: Path) -> dict[str, Any]:
    """Write `board.html` in the folder of runs; where it is, and what is on it.

    Raises UserError where it cannot be written.
    """
    with files.explained(runs / FILE):
        runs.mkdir(parents=True, exist_ok=True)
        lock = locks.exclusive(runs / FILE, _BUSY_SECONDS)
    with lock:  # of two processes, the later to write has read the later rows
        rows = leaderboard.rows(runs, None, submissions)
        competitions = [
            _competition(runs, name, list(group))
            for name, group in groupby(rows, key=lambda row: row.competition)
        ]
        page = pages.render("board.html", competitions=competitions, total=len(rows))
        files.write_text(runs / FILE, page)
    return {
        "board": str(runs / FILE),
        "competitions": len(competitions),
        "runs": len(rows),
        "reports": sum(run["report"] is not None for c in competitions for run in c["runs"]),
    }


def refresh(runs: Path, submissions: Path) -> bool:
    """`write`, for those to whom a board that is not written does not matter; whether it was."""
    try:
        write(runs, submissions)
    except Exception:  # a page to look at must never be what ends a training
        return False
    return True


def _competition(runs: Path, name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """One competition: its best run, and all runs with their folds on a scale they share."""
    scored = [row for row in rows if row.cv is not None]
    scales = {
        key: Scale.over(score for row in rows if leaderboard.scale(row) == key
                        for score in leaderboard.scores(row))
        for key in map(leaderboard.scale, rows)
    }  # fmt: skip
    kinds = [kind for kind in ("practice", "public", "private")
             if any(kind in dict(leaderboard.lb_scores(row)) for row in rows)]  # fmt: skip
    return {
        "name": name,
        "metric": scored[0].metric if scored else None,
        "best": scored[0] if scored else None,
        "kinds": kinds,
        "headers": [f"{kind} LB" for kind in kinds],
        "runs": [_run(runs, row, scales[leaderboard.scale(row)]) for row in rows],
    }


def _run(runs: Path, row: Row, scale: Scale) -> dict[str, Any]:
    return {
        "row": row,
        "leaders": dict(leaderboard.lb_scores(row)),
        "report": _report(runs, row),
        "dots": [round(100 * scale.place(score), 2) for _, score in row.folds],
        "at": None if row.cv is None else round(100 * scale.place(row.cv), 2),
        "told": ", ".join(f"fold {fold}: {figure(score)}" for fold, score in row.folds),
        "marks": leaderboard.marks(row),
    }


def _report(runs: Path, row: Row) -> str | None:
    """The link to the run's report, as the board sees it; None where there is none."""
    from urllib.parse import quote

    parts = (row.competition, row.run, REPORT)
    return "/".join(map(quote, parts)) if runs.joinpath(*parts).is_file() else None
