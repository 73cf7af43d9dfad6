"""What `kagglekit leaks` found, as a person wants to see it in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .progress import duration

_MARKS = {"fine": ("✓", "green"), "note": ("·", "yellow"), "leak": ("!", "bold red")}


def findings(result: Mapping[str, Any]) -> RenderableType:
    """A sentence a finding, and below it what to do; then where the files are."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for finding in result["findings"]:
        mark, style = _MARKS[finding["level"]]
        told = Text(finding["sentence"])
        if finding["advice"]:
            told += Text(f"\n→ {finding['advice']}", "cyan")
        table.add_row(Text(mark, style), finding["topic"], told)
    return Group(_verdict(result), table, _files(result))


def _verdict(result: Mapping[str, Any]) -> Text:
    leaks = sum(finding["level"] == "leak" for finding in result["findings"])
    rows = result["rows"]
    size = f"{result['competition']}: {rows['train']:,} + {rows['test']:,} rows, {result['basis']}"
    if not leaks:
        return Text(f"{size}: nothing to worry about", "bold green")
    return Text(f"{size}: {leaks} thing{'s' * (leaks > 1)} to see to", "bold red")


def _files(result: Mapping[str, Any]) -> Text:
    names = ", ".join(result["files"])
    return Text(f"{result['folder']}: {names}   {duration(result['seconds'])}", "dim")
