"""What there is: competitions, recipes and their knobs, runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from . import competition as contract
from . import config as configs
from . import folders, standings
from . import leaderboard as index
from .errors import KagglekitError


def competitions() -> dict[str, Any]:
    """What `kagglekit list --json` prints; a competition that does not load says why."""
    folder = folders.competitions()
    return {"folder": str(folder), "competitions": [_one(name) for name in contract.names(folder)]}


def _one(name: str) -> dict[str, Any]:
    try:
        found = contract.find(name, folders.competitions())
        source = folders.find_data(name)
    except KagglekitError as error:
        return _faulty(name, str(error))
    except Exception as error:  # a bug in one folder must not hide the other competitions
        return _faulty(name, f"{type(error).__name__}: {error}")
    best = index.best(folders.runs(), name, folders.submissions())
    return {
        "name": name,
        "slug": found.slug,
        "metric": found.metric.name,
        "recipes": list(found.recipes),
        "practice": list(found.practice),
        "data": None if source is None else {"folder": str(source.folder), "kind": source.kind},
        "best": None
        if best is None
        else {"run": best.run, "recipe": best.recipe, "cv": best.cv, "practice": best.practice},
    }


def _faulty(name: str, error: str) -> dict[str, Any]:
    return {
        "name": name, "slug": None, "metric": None, "recipes": [], "practice": [], "data": None,
        "best": None, "error": error,
    }  # fmt: skip


def recipes(name: str) -> dict[str, Any]:
    """The recipes of one competition, each with its knobs."""
    found = contract.find(name, folders.competitions())
    return {
        "name": name,
        "slug": found.slug,
        "recipes": [
            {
                "recipe": recipe_name,
                "needs": list(recipe.needs),
                "knobs": [
                    {"key": key, "value": value, "help": text}
                    for key, value, text in configs.describe(recipe.config)
                ],
            }
            for recipe_name, recipe in found.recipes.items()
        ],
    }


def leaderboard(
    name: str | None, rebuild: bool, sort: str | None = None, filters: Sequence[str] = ()
) -> dict[str, Any]:
    """The runs of one competition, or of all, best first; of one also what Kaggle says of it.

    `sort` and `filters` are as typed; UserError where they make no sense.
    """
    standings.select([], sort, filters)  # a typing error is told at once
    if name is not None and not (folders.runs() / name).is_dir():
        # an unknown name is an error, not an empty table
        contract.find(name, folders.competitions())
    if rebuild:
        index.rebuild(folders.runs(), folders.submissions())
    rows = index.rows(folders.runs(), name, folders.submissions())
    told = None if name is None else _told(name, rows)
    chosen = standings.select(rows, sort, filters)
    return {"runs": [asdict(row) for row in chosen], "all": len(rows), "kaggle": told}


def _told(name: str, rows: Sequence[index.Row]) -> dict[str, Any] | None:
    """Our rank, how CV and LB agree, and what to select; None where nothing was submitted."""
    if not any((folders.submissions() / name).glob("[!.]*.json")):
        return None
    from . import submitting

    return {"rank": submitting.standing(name), **submitting.verdict(name, rows)}
