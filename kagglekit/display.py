"""Results as a person wants to see them in a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from . import (
    cleaning,
    display_decide,
    display_kaggle,
    display_leaks,
    doctor,
    leaderboard,
    locks,
    standings,
)
from .config import typed
from .progress import PLAIN_SECONDS, ago, duration, figure, legible, size, spread

Json = Mapping[str, Any]

_UNBROKEN = 4096  # columns
_NAMES = 34  # columns of a run's name, so that the sizes stand below one another
_ALARMING = {"unfinished": "yellow", "run": "red", "submission": "red"}  # cannot be made for free
_BAR = 24  # columns of the longest bar


def show(kind: str, result: Any) -> None:
    """Print a result of the command line on stdout."""
    out = legible(sys.stdout)
    if kind == "csv":  # for a program to read: as it stands, whatever the width
        out.write(standings.as_csv([leaderboard.Row(**row) for row in result["runs"]]))
        out.flush()
        return
    # no terminal, no edge: a path in a pipe or a file stays in one piece
    console = Console(file=out, highlight=False, width=None if sys.stdout.isatty() else _UNBROKEN)
    with console.capture() as captured:  # rich itself would end the process on a closed pipe
        console.print(_KINDS[kind](result))
    out.write(captured.get())
    out.flush()


def warn(sentences: Iterable[str]) -> None:
    """Print what somebody should know on stderr, a line each."""
    for sentence in sentences:
        print(f"kagglekit: {sentence}", file=legible(sys.stderr))


class Ticker:
    """A line on stderr that each call renews on a terminal; elsewhere lines, now and then."""

    def __init__(self) -> None:
        self._console = Console(file=legible(sys.stderr), highlight=False)
        redraws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._status = self._console.status("") if redraws else None
        self._told = -PLAIN_SECONDS

    def __call__(self, line: str) -> None:
        """Show `line` now."""
        if self._status is not None:
            self._status.update(escape(line))
        elif time.monotonic() - self._told >= PLAIN_SECONDS:
            self._told = time.monotonic()
            self._console.print(line, soft_wrap=True, markup=False)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Leave the terminal to a question."""
        if self._status is None:
            yield
            return
        self._status.stop()
        try:
            yield
        finally:
            self._status.start()

    def __enter__(self) -> Ticker:
        """Itself, on the screen."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it off the screen."""
        if self._status is not None:
            self._status.stop()


def ticker() -> Ticker:
    """A new `Ticker`, for a `with`."""
    return Ticker()


def _summary(result: Json) -> RenderableType:
    """A run: its scores, its views, its file, and what to type next."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
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
    if len(result.get("repeats", {}).get("scores", ())) > 1:
        facts.add_row("seeds", display_decide.repeats(result["repeats"]))
    if result.get("calibration"):
        facts.add_row("calibration", display_decide.calibration(result["calibration"]))
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


def _blended(result: Json) -> RenderableType:
    return Group(display_decide.mix(result), _summary(result))


def _views(result: Json) -> RenderableType:
    """What each view is worth; those are struck out that `views=auto` has dropped."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("view", "alone", "gain", "95 %"):
        table.add_column(header, justify="left" if header == "view" else "right")
    for view in result["views"]:
        low, high = view.get("interval") or (-math.inf, math.inf)
        style = "green" if low > 0 else "red" if high < 0 else ""
        kept = view.get("kept", True)
        table.add_row(
            Text(view["name"], "" if kept else "strike") + ("" if kept else "  dropped"),
            figure(view["alone"]),
            Text(f"{view['gain']:+.2g}", style),
            Text("" if math.isinf(low) else f"{low:+.2g} … {high:+.2g}", "dim"),
        )
    return table


def _certificate(result: Json) -> RenderableType:
    """Verdict, where the kills hit, and what was compared; the files that differ, if any."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    done, runs = result["kills"]["done"], _count(result["finished"], "broken run")
    compared = f"{_count(done, 'kill')}, {runs} finished, {result['files']} files compared each"
    if result["equal"]:
        facts.add_row("verdict", Text("equal to the byte: ", "bold green") + Text(compared, ""))
    else:
        facts.add_row("verdict", Text("not the same bytes: ", "bold red") + Text(compared, ""))
        for item in result["differences"]:
            facts.add_row("", Text(f"{item['file']}  {item['what']}", "red"))
    facts.add_row("kills in", _histogram(result["hits"]))
    facts.add_row("command", result["command"])
    facts.add_row("time", f"{duration(result['seconds'])} on {result['device']}")
    facts.add_row("kept in", result["folder"])
    title = f"{result['competition']} · {result['run']}"
    return Panel(facts, title=title, title_align="left", expand=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _histogram(hits: Mapping[str, int]) -> RenderableType:
    bars = Table.grid(padding=(0, 1))
    bars.add_column()
    bars.add_column(justify="right")
    bars.add_column(style="cyan")
    most = max(hits.values(), default=0)
    for stage, count in hits.items():
        # as long as the count where that fits, else in proportion
        length = round(count * min(1.0, _BAR / max(most, 1)))
        bars.add_row(stage, str(count), "▇" * max(length, int(count > 0)))
    return bars


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
    practice = entry["data"]["kind"] == "practice"
    return Text("practice data" if practice else entry["data"]["folder"])


def _best(entry: Json) -> RenderableType:
    if entry["best"] is None or entry["best"]["cv"] is None:
        return Text("none yet", "dim")
    mark = " (practice)" if entry["best"]["practice"] else ""
    return Text(f"{figure(entry['best']['cv'])} {entry['metric']}, {entry['best']['recipe']}{mark}")


def _recipes(result: Json) -> RenderableType:
    """Knobs under the recipes that have them: first the values of the foremost such recipe."""
    name = Text(result["name"], "bold")
    parts: list[RenderableType] = [name + f"  kaggle.com/competitions/{result['slug']}"]
    for recipe in result["recipes"]:
        if recipe["needs"]:
            parts.append(Text(f"{recipe['recipe']} needs {', '.join(recipe['needs'])}"))
    knobs: dict[tuple[str, str], dict[str, Json]] = {}  # (key, help) -> recipe -> knob
    for recipe in result["recipes"]:
        for knob in recipe["knobs"]:
            knobs.setdefault((knob["key"], knob["help"]), {})[recipe["recipe"]] = knob
    groups: dict[tuple[str, ...], list[dict[str, Json]]] = {}
    for by_recipe in knobs.values():
        groups.setdefault(tuple(by_recipe), []).append(by_recipe)
    for recipes in sorted(groups, key=len, reverse=True):
        parts.append(Text(f"\n{', '.join(recipes)}", "bold"))
        parts.append(Padding(_knobs(groups[recipes]), (0, 0, 0, 2), expand=False))
    return Group(*parts)


def _knobs(knobs: list[dict[str, Json]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(style="dim")
    for by_recipe in knobs:
        usual = next(iter(by_recipe.values()))
        value = typed(usual["value"])
        other_values = [
            f"{recipe}: {typed(knob['value'])}"
            for recipe, knob in by_recipe.items()
            if knob["value"] != usual["value"]
        ]
        text = Text(usual["help"])
        if other_values:
            text += Text(f" ({', '.join(other_values)})", "not dim")
        table.add_row(f"{usual['key']}={value}", text)
    return table


def _runs(result: Json) -> RenderableType:
    """A block for each run: its name, how far it is, and the command that goes on with it."""
    parts: list[RenderableType] = []
    for run in result["runs"]:
        parts.append(_run(run))
    others = result["others"]
    if not result["runs"]:
        parts.append(Text("no unfinished runs" if others else "no runs"))
    if others:
        more = f"{others} more, finished or set aside; `kagglekit runs --all` shows them too"
        parts.append(Text(more, "dim"))
    if result["bytes"]:
        parts.append(Text(f"{size(result['bytes'])} in {result['folder']}", "dim"))
    return Group(*parts)


def _run(run: Json) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=False)
    grid.add_column(overflow="fold", min_width=_NAMES)
    grid.add_column(justify="right", no_wrap=True, min_width=8)
    grid.add_column(no_wrap=True)
    recipe = run["recipe"] if run["run"].startswith(run["recipe"]) else ""
    name = Text.assemble(
        f"{run['competition']} · ", (recipe, "bold"), (run["run"][len(recipe) :], "dim")
    )
    grid.add_row(name, size(run["bytes"]), Text(ago(run["changed"]), "dim"))
    lines: list[RenderableType] = [grid]
    lines += [Padding(line, (0, 0, 0, 2), expand=False) for line in _run_lines(run)]
    return Padding(Group(*lines), (0, 0, 1, 0), expand=False)


def _run_lines(run: Json) -> list[Text]:
    if run["damage"]:
        return [Text(run["damage"], "red")]
    done = len(set(run["done"]) & set(run["wanted"]))
    text = f"{done} of {len(run['wanted'])} members"
    if run["member"]:
        text += f", {run['member']} at epoch {run['epoch']}"
        text += f" of {run['epochs']}" if run["epochs"] else ""
    lines = [Text(text)]
    if run["failed"]:
        lines.append(Text(f"{len(run['failed'])} failed: {', '.join(run['failed'])}", "red"))
    if run["forced"]:
        lines.append(Text("gone on with by force, although something had changed", "yellow"))
    if run["owner"]:
        lines.append(Text(f"running: {locks.Owner(**run['owner']).describe()}", "green"))
    elif run["set_aside"]:
        lines.append(Text("set aside by --fresh; `kagglekit clean` removes it", "dim"))
    elif run["finished"]:
        lines.append(Text("finished", "dim"))
    elif run["command"]:
        lines.append(Text(run["command"], "cyan"))
    return lines


def _plan(plan: cleaning.Plan) -> RenderableType:
    """What may go, by kind, with what it takes on the disk."""
    if not plan.things:
        return Group(Text("nothing to clean"), *_kept(plan.skipped))
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("kind", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("changed", no_wrap=True)
    for thing in plan.things:
        what = Text(thing.name)
        if thing.note:
            what += Text(f"\n{thing.note}", "dim")
        when = Text(ago(thing.changed), "dim")
        table.add_row(
            Text(thing.kind, _ALARMING.get(thing.kind, "")), what, size(thing.bytes), when
        )
    return Group(table, *_kept(plan.skipped))


def _kept(sentences: tuple[str, ...]) -> list[Text]:
    return [Text(sentence, "yellow") for sentence in sentences]


def question(plan: cleaning.Plan) -> str:
    """What is asked before anything is removed."""
    return f"Remove {_things(len(plan.things))}, {size(plan.bytes)}?"


def _things(count: int) -> str:
    return f"{count} thing{'' if count == 1 else 's'}"


def _cleaned(plans: tuple[cleaning.Plan, cleaning.Plan]) -> RenderableType:
    planned, gone = plans
    line = Text("nothing was removed")
    if gone.things:
        line = Text(f"removed {_things(len(gone.things))}, {size(gone.bytes)}", "green")
    return Group(line, *_kept(gone.skipped[len(planned.skipped) :]))


def _leaderboard(result: Json) -> RenderableType:
    if not result["runs"]:
        if result["all"]:
            return Text(f"no run of {_count(result['all'], 'run')} passes --filter")
        return Text("no runs yet: `kagglekit train NAME` makes one")
    table = leaderboard.table([leaderboard.Row(**row) for row in result["runs"]])
    told = result["kaggle"]
    if told is None or not (told["rank"] or told["select"]):
        return table
    return Group(table, Text(), display_kaggle.verdict(told))


def _report(result: Json) -> RenderableType:
    told = f"{result['report']}   {size(result['bytes'])}; open it in a browser"
    lacking = [Text(f"{result['unfinished']}.", "yellow")] if result["unfinished"] else []
    return Group(*lacking, Text(result["summary"]), Text(told, "dim"))


def _board(result: Json) -> RenderableType:
    count = _count(result["runs"], "run")
    return Text(f"{result['board']}   {count}, {_count(result['reports'], 'report')}")


def _served(result: Json) -> RenderableType:
    return Text(f"{_count(len(result['submissions']), 'submission')} kept", "dim")


_KINDS: dict[str, Callable[[Any], RenderableType]] = {
    "summary": _summary,
    "certificate": _certificate,
    "prediction": _prediction,
    "practice": _practice,
    "leaks": display_leaks.findings,
    "served": _served,
    "competitions": _competitions,
    "recipes": _recipes,
    "leaderboard": _leaderboard,
    "comparison": display_decide.comparison,
    "blended": _blended,
    "report": _report,
    "board": _board,
    "runs": _runs,
    "plan": _plan,
    "cleaned": _cleaned,
    "doctor": doctor.table,
    "spending": display_kaggle.plan,
    "submitted": display_kaggle.outcome,
    "submissions": display_kaggle.submissions,
    "notebook": display_kaggle.notebook,
    "downloaded": display_kaggle.downloaded,
}
