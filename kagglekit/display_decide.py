"""Comparisons of runs as a person wants to see them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .progress import figure, spread

Json = Mapping[str, Any]


def comparison(result: Json) -> RenderableType:
    """The verdict in a sentence, the runs, every two of them, and the shake-up."""
    parts: list[RenderableType] = [Text(result["verdict"], "bold"), Text(), _runs(result), Text()]
    if len(result["pairs"]) > 1:
        parts += [_pairs(result), Text(_how(result), "dim"), Text()]
        undecided = [pair for pair in result["pairs"] if not pair["decided"]]
        parts += [Text(f"{pair['verdict']}.") for pair in undecided]
    else:
        parts += [_one_pair(result), Text()]
    parts += [Text(note, "yellow") for note in result["notes"]]
    if result["shakeup"] is not None:
        told = shake_up(result["shakeup"], result["metric"])
        parts += [Text(), Text("Shake-up", "bold"), *told]
    return Group(*parts)


def _runs(result: Json) -> Table:
    table = _table("run", "CV", "95 %", "seeds")
    for run in result["runs"]:
        table.add_row(
            Text(run["run"]),
            Text(figure(run["cv"]), "bold"),
            Text(_interval(run["interval"]), "dim"),
            Text(str(len(run["seeds"]))),
        )
    return table


def _pairs(result: Json) -> Table:
    table = _table("better by CV", "than", "ahead by", "95 %", "P(better)", "by Holm", "")
    for pair in result["pairs"]:
        rows = pair["rows"]
        word = Text("better", "green") if pair["decided"] else Text("not decided", "yellow")
        table.add_row(
            Text(pair["one"]), Text(pair["other"]), figure(rows["effect"]),
            Text(_interval(rows["interval"]), "dim"), chance(pair["probability"]),
            small(pair["p"]), word,
        )  # fmt: skip
    return table


def _one_pair(result: Json) -> Table:
    (pair,) = result["pairs"]
    facts = _facts()
    rows, members = pair["rows"], pair["members"]
    what = _units(result)
    facts.add_row(
        "ahead by", Text(f"{figure(rows['effect'])} {_interval(rows['interval'])}", "bold")
    )
    facts.add_row("", Text(f"{small(rows['p'])} over {what}: {rows['method']}", "dim"))
    if members is not None:
        weighs = "" if pair["repeats"] else "; of one seed, so it does not decide"
        facts.add_row(
            "folds" if not pair["repeats"] else "repeats",
            f"{figure(members['effect'])} {_interval(members['interval'])}",
        )
        facts.add_row("", Text(f"{small(members['p'])}: {members['method']}{weighs}", "dim"))
    facts.add_row("P(better)", f"{chance(pair['probability'])} that {pair['one']} beats the other")
    style = "green" if pair["decided"] else "yellow"
    facts.add_row("verdict", Text(pair["verdict"], style))
    return facts


def _how(result: Json) -> str:
    methods = {pair["rows"]["method"] for pair in result["pairs"]}
    what = _units(result)
    agreed = "; with several seeds p is no less than the corrected t-test's" if any(
        pair["repeats"] for pair in result["pairs"]
    ) else ""  # fmt: skip
    return f"over {what}: {', '.join(sorted(methods))}{agreed}; 'better' wants p of 0.05 or less"


def _units(result: Json) -> str:
    """What was resampled, and how many of it there are."""
    count = f"{result['units']:,}"
    if result["times"]:
        return f"{count} times of {result['times']!r}"
    return f"{count} groups of {result['groups']!r}" if result["groups"] else f"{count} rows"


def shake_up(told: Json, metric: str) -> list[RenderableType]:
    """How far the private ranks may move, and how much the public score is worth."""
    rows, pick = told["rows"], told["pick"]
    guess = ", a guess: the competition names no public_share" if told["assumed"] else ""
    table = _table("run", "private rank, 90 %", "P(best)")
    for run in told["runs"]:
        low, high = run["ranks"]
        span = str(low) if low == high else f"{low} to {high}"
        table.add_row(run["run"], span, chance(run["best"]))
    moves = told["moves"]
    far = (
        "no run moves"
        if moves == 0
        else f"a run moves by {moves} place{'s' if moves > 1 else ''} or fewer"
    )
    lines = [
        f"With {rows['public']:,} public and {rows['private']:,} private rows "
        f"({told['public_share']:.0%} public{guess}), {far} between the two in 95 % of draws.",
        f"The best private run is the best by CV in {pick['cv']:.0%}, by the public score in "
        f"{pick['public']:.0%}, by both in {pick['both']:.0%} of draws: against the CV score of "
        f"{rows['oof']:,} rows the public score deserves a weight of {told['trust']:.0%}.",
    ]
    return [table, *(Text(line) for line in lines)]


def repeats(told: Json) -> str:
    """Mean and standard deviation over seeds, and the mean's interval."""
    count = len(told["scores"])
    return (
        f"{spread(told['mean'], told['std'])} over {count}, mean in {_interval(told['interval'])}"
    )


def calibration(told: Json) -> str:
    """Calibration error and log loss, as they come and at a temperature fitted on other folds."""
    before, after = told["before"], told["after"]
    return (
        f"error {before['ece']:.3f}, log loss {figure(before['log_loss'])}; at temperature "
        f"{told['temperature']:.2f}: {after['ece']:.3f}, {figure(after['log_loss'])}"
    )


def mix(result: Json) -> RenderableType:
    """What a blend is made of, and how its cross-fitted score stands beside that of its parts."""
    table = _table("part", "CV", "weight")
    for part in result["parts"]:
        weight = "" if part["weight"] is None else f"{part['weight']:.2f}"
        table.add_row(part["run"], figure(part["cv"]), weight)
    best = result["parts"][0]["cv"]
    sign = 1 if result["greater_is_better"] else -1
    gain = sign * (result["cv"] - best)
    word = f"{figure(abs(gain))} {'better' if gain > 0 else 'worse'} by CV than the best part"
    if abs(gain) <= 1e-9 * abs(best):
        word = "as good by CV as the best part"
    line = f"mixed by {result['method']}: {word}"
    hint = f"kagglekit compare {result['competition']} {result['run']} {result['parts'][0]['run']}"
    return Group(table, Text(line), Text(f"{hint}   says whether that is more than noise", "dim"))


def chance(share: float) -> str:
    """A probability as a percentage that is never rounded to certainty."""
    if share > 0.999:
        return "> 99.9 %"
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def small(p: float) -> str:
    """A p-value to two digits."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"[{figure(ends[0])}, {figure(ends[1])}]"


def _table(*headers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def _facts() -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    return facts
