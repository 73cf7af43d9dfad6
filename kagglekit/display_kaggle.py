"""What is sent to Kaggle and what comes back, as a person wants to see it in a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .progress import ago, duration, figure, size, spread

if TYPE_CHECKING:
    from .submitting import Plan

Json = Mapping[str, Any]

_STYLES = {
    "scored": "green", "complete": "green", "created": "yellow", "pending": "yellow",
    "unknown": "bold yellow", "failed": "red", "error": "red",
}  # fmt: skip
_SCORES = {"cv": "CV", "public": "public", "private": "private"}
_WORDS = {"created": "being scored", "pending": "being scored", "complete": "scored",
          "error": "failed"}  # fmt: skip


def plan(result: Plan) -> RenderableType:
    """What is about to be spent, and what speaks against it."""
    target = result.target
    facts = _facts()
    facts.add_row("file", f"{target.file}")
    checked = f"{target.rows:,} rows, checked against the sample, {size(len(target.content))}"
    facts.add_row("", Text(checked, "dim"))
    if target.cv is not None:
        facts.add_row(
            "CV", Text(figure(target.cv), "bold") + Text(f"  {target.metric}", "not bold")
        )
    left = result.quota
    facts.add_row("quota", f"{left.left} left today, resets in {duration(left.resets_in())}")
    if result.again:
        facts.add_row("again", Text("also if Kaggle has it already", "yellow"))
    for note in result.notes:
        facts.add_row("note", Text(note, "yellow"))
    return Group(_title(target.slug, target.run), facts)


def outcome(result: Json) -> RenderableType:
    """What came of a submission."""
    if result["state"] is None:
        return Text("nothing was sent")
    facts = _facts()
    if result["state"] == "scored":
        facts.add_row("public", Text(figure(result["public"]), "bold green") + _error(result))
        if result["private"] is not None:
            facts.add_row("private", Text(figure(result["private"]), "bold green"))
    else:
        later = f"`kagglekit submissions {result['competition']}` brings the score"
        facts.add_row("state", Text(f"Kaggle has it, number {result['ref']}; {later}"))
    if result["cv"] is not None:
        facts.add_row("CV", f"{figure(result['cv'])}  {result['metric']}")
    if result["rank"]:
        facts.add_row("rank", _rank(result["rank"]))
    if result["quota"]:
        facts.add_row("quota", _quota(result["quota"]))
    return Group(_title(result["slug"], result["run"]), facts)


def notebook(result: Json) -> RenderableType:
    """Where the notebook is, and the three steps from it to a score."""
    folder, page = result["folder"], f"kaggle.com/code/{result['notebook']}"
    lines = [
        Text(f"{folder}  ({size(result['bytes'])})"),
        Text(f"  kaggle datasets create -p {shlex.quote(folder + '/dataset')}", "bold"),
        Text(f"  kaggle kernels push -p {shlex.quote(folder + '/notebook')}", "bold"),
        Text(f"then, when it has run: {page} → Submit to competition ({result['slug']})"),
    ]
    if result["kept"]:
        lines.append(Text(f"the notebook that was there differs and is kept as {result['kept']}"))
    if result["practice"]:
        lines.append(
            Text("it was trained on practice data: good for trying, not for Kaggle", "yellow")
        )
    return Group(*lines)


def submissions(result: Json) -> RenderableType:
    """All submissions, the newest first; then the quota and our rank."""
    parts: list[RenderableType] = []
    if result["submissions"]:
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))
        table.add_column("file", overflow="fold", min_width=18)
        scores = [key for key in _SCORES if key == "cv" or _any(result["submissions"], key)]
        for key in scores:
            table.add_column(_SCORES[key], justify="right", no_wrap=True)
        table.add_column("status", no_wrap=True)
        table.add_column("when", no_wrap=True, min_width=10)
        for entry in result["submissions"]:
            table.add_row(*_cells(entry, scores))
        parts += [table, Text()]
    else:
        parts.append(Text(f"nothing submitted yet: `kagglekit submit {result['competition']}`"))
    facts = _facts()
    facts.add_row("quota", _quota(result["quota"]))
    if result["rank"]:
        facts.add_row("rank", _rank(result["rank"]))
    facts.add_row("page", Text(result["url"], "dim"))
    return Group(*parts, facts)


def _any(entries: Sequence[Json], key: str) -> bool:
    return any(entry[key] is not None for entry in entries)


def _cells(entry: Json, keys: Sequence[str]) -> list[RenderableType]:
    state = entry["state"]
    name = Text(entry["file"] or "", style="" if entry["run"] else "dim")
    if entry["error"]:
        name += Text(f"\n{entry['error']}", "red")
    if state == "unknown":
        name += Text("\nsent, but not in Kaggle's list so far", "yellow")
    scores = [Text("" if entry[key] is None else figure(entry[key])) for key in keys]
    word = Text(str(_WORDS.get(state, state)), _STYLES.get(state, ""))
    return [name, *scores, word, Text(ago(entry["when"]) if entry["when"] else "", "dim")]


def verdict(result: Json) -> RenderableType:
    """Our rank, how CV and LB agree, and which two submissions to tick."""
    facts = _facts()
    if result["rank"]:
        facts.add_row("rank", _rank(result["rank"]))
    agreement = result["agreement"]
    if agreement:
        facts.add_row("CV, LB", _agreement(agreement))
    for number, choice in enumerate(result["select"]):
        different = "" if choice["different"] is None else f", by {choice['different']:.2g}"
        text = Text.assemble((choice["run"], "bold"), (f"  {choice['why']}{different}", "dim"))
        facts.add_row("tick" if not number else "and", text)
    if result["select"]:
        facts.add_row("at", Text(result["url"], "dim"))
    return facts


def _agreement(told: Json) -> Text:
    text = Text(f"{told['submissions']} submissions, ")
    if told["pearson"] is None:
        text += Text("no correlation: scores do not vary")
    else:
        text += Text(f"correlation {told['pearson']:.2f} (of ranks {told['spearman']:.2f})")
    if told["submissions"] == 2:
        text += Text(", which of two is always 1 or -1" if told["pearson"] else "", "dim")
    text += Text(f"\nLB − CV = {spread(told['gap'], told['gap_error'])}")
    if told["public_error"] is None:
        text += Text("\na public score's own error is unknown without `public_share`", "dim")
    else:
        text += Text(f"\none public score is good to ± {told['public_error']:.1g}", "dim")
    if told["worse"]:
        text += Text("\nLB is worse than CV by more than chance: look for a leak", "yellow")
    return text


def downloaded(result: Json) -> RenderableType:
    """What was downloaded, and where the earlier data are."""
    count = f"{result['files']:,} file{'' if result['files'] == 1 else 's'}"
    what = f"{count}, {size(result['bytes'])}, in {result['data']}"
    lines = [Text(what if result["fresh"] else f"up to date: {what}")]
    if result["kept"]:
        lines.append(Text(f"what was there is kept as {result['kept']}", "yellow"))
    if result["lacking"]:
        names = ", ".join(result["lacking"][:5]) + (" …" if len(result["lacking"]) > 5 else "")
        lines.append(Text(f"Kaggle lists, but did not send: {names}", "yellow"))
    lines.append(Text(f"kagglekit train {result['competition']}", "cyan"))
    return Group(*lines)


def _facts() -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    return facts


def _title(slug: str, run: str) -> Text:
    return Text.assemble((slug, ""), " · ", (Path(run).name, "bold"))


def _error(result: Json) -> Text:
    if result["public_error"] is None:
        return Text()
    return Text(f" ± {result['public_error']:.1g}, as a sample of rows", "dim")


def _rank(rank: Json) -> Text:
    teams = f" of {rank['teams']:,}" if rank["teams"] else ""
    text = Text(f"{rank['rank']:,}{teams}", "bold")
    return text + Text(f"  on the public leaderboard, {ago(rank['when'])}", "not bold dim")


def _quota(quota: Json) -> str:
    if quota["by_total"]:
        return f"{quota['left']} left in all"
    return f"{quota['left']} left today, resets in {duration(quota['resets_in'])}"
