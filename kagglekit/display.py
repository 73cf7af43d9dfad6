"""Results as a person wants to see them in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from . import doctor, leaderboard
from .progress import duration, figure, legible, spread

Json = Mapping[str, Any]


def show(kind: str, result: Any) -> None:
    """Print a result of the command line on stdout."""
    out = legible(sys.stdout)
    console = Console(file=out, highlight=False, soft_wrap=not sys.stdout.isatty())
    with console.capture() as captured:  # rich itself would end the process on a closed pipe
        console.print(_KINDS[kind](result))
    out.write(captured.get())
    out.flush()


def _summary(result: Json) -> RenderableType:
    """A run: its scores, its views, its file, and what to type next."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row(
        "CV",
        Text(f"{figure(result['cv'])}", "bold green")
        + f"  {result['metric']}, all OOF answers together",
    )
    folds = [fold["score"] for fold in result["folds"]]
    facts.add_row(
        "folds", f"{spread(result['mean'], result['std'])}   " + "  ".join(map(figure, folds))
    )
    if result["coverage"] < 1:
        facts.add_row("coverage", f"{result['coverage']:.1%} of the training rows were validated")
    if result["practice_lb"] is not None:
        facts.add_row(
            "practice LB", f"{figure(result['practice_lb'])}  on the withheld practice answers"
        )
    if result["views"]:
        facts.add_row("views", _views(result))
    time = duration(result["seconds"])
    facts.add_row("time", f"{time} on {result['device']}, {result['precision']}")
    facts.add_row("submission", result["submission"])
    title = f"{result['competition']} · {result['run']}"
    again = Text(
        f"kagglekit leaderboard {result['competition']}   shows it beside the other runs", "dim"
    )
    return Group(Panel(facts, title=title, title_align="left", expand=False), again)


def _views(result: Json) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("view", "alone", "gain"):
        table.add_column(header, justify="left" if header == "view" else "right")
    for view in result["views"]:
        style = "green" if view["gain"] > 0 else "red" if view["gain"] < 0 else ""
        table.add_row(view["name"], figure(view["alone"]), Text(f"{view['gain']:+.2g}", style))
    return table


def _prediction(result: Json) -> RenderableType:
    return Text(f"{result['rows']} answers of {result['run']}: {result['submission']}")


def _practice(result: Json) -> RenderableType:
    return Text(f"practice data: {result['data']}\nanswers, for scoring: {result['answers']}")


def _competitions(result: Json) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("competition", "recipes", "data", "best CV"):
        table.add_column(header, overflow="fold")
    for entry in result["competitions"]:
        if "error" in entry:
            table.add_row(entry["name"], Text(entry["error"], "red"))
            continue
        table.add_row(
            Text(entry["name"], "bold"), ", ".join(entry["recipes"]), _data(entry), _best(entry)
        )
    if not result["competitions"]:
        return Text(f"no competitions in {result['folder']}; CONTRIBUTING.md says how to add one")
    return table


def _data(entry: Json) -> RenderableType:
    if entry["data"] is None:
        return Text("none yet: train makes practice data" if entry["practice"] else "none", "dim")
    kind = "practice: " if entry["data"]["kind"] == "practice" else ""
    return Text(f"{kind}{entry['data']['folder']}")


def _best(entry: Json) -> RenderableType:
    if entry["best"] is None or entry["best"]["cv"] is None:
        return Text("none yet", "dim")
    mark = " (practice)" if entry["best"]["practice"] else ""
    return Text(f"{figure(entry['best']['cv'])} {entry['metric']}, {entry['best']['recipe']}{mark}")


def _recipes(result: Json) -> RenderableType:
    parts: list[RenderableType] = [
        Text(f"{result['name']} (kaggle.com/competitions/{result['slug']})")
    ]
    for recipe in result["recipes"]:
        needs = f"  needs {', '.join(recipe['needs'])}" if recipe["needs"] else ""
        parts.append(Text(f"\n{recipe['recipe']}{needs}", "bold"))
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column()
        table.add_column(style="dim", overflow="fold")
        for knob in recipe["knobs"]:
            table.add_row(f"{knob['key']}={knob['value']}", knob["help"])
        parts.append(Padding(table, (0, 0, 0, 2)))
    return Group(*parts)


def _leaderboard(result: Json) -> RenderableType:
    return leaderboard.table([leaderboard.Row(**row) for row in result["runs"]])


_KINDS: dict[str, Callable[[Any], RenderableType]] = {
    "summary": _summary,
    "prediction": _prediction,
    "practice": _practice,
    "competitions": _competitions,
    "recipes": _recipes,
    "leaderboard": _leaderboard,
    "doctor": doctor.table,
}
