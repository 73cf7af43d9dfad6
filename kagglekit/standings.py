"""Which rows of the leaderboard, in which order; and as CSV that no spreadsheet executes."""

from __future__ import annotations

import csv
import io
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from .errors import UserError
from .leaderboard import Row

COLUMNS = tuple(item.name for item in fields(Row))
_SHORT = {"time": "seconds", "lb": "public_lb", "public": "public_lb", "private": "private_lb",
          "score": "cv"}  # fmt: skip
_BY_SCORE = {"cv", "mean", "practice_lb", "public_lb", "private_lb", "seed_mean"}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)(.*)", re.DOTALL)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip
_EXECUTED = ("=", "+", "-", "@", "\t", "\r")  # at the start of a cell a spreadsheet computes it


@dataclass(frozen=True)
class Condition:
    """One `--filter`: a column, how it is compared, and with what."""

    column: str
    sign: str
    value: str

    @classmethod
    def parse(cls, typed: str) -> Condition:
        """`recipe=cnn*`, `cv>0.99`, `practice=no`; UserError for anything else."""
        match = _CONDITION.fullmatch(typed)
        if match is None:
            raise UserError(
                f"--filter {typed!r} is no condition: write COLUMN=VALUE, as recipe=cnn or cv>0.99"
            )
        column = column_of(match[1], "--filter")
        condition = cls(column, match[2], match[3].strip())
        if condition.sign in _ORDERS and _number(condition.value) is None:
            raise UserError(f"--filter {typed!r}: {condition.value!r} is no number to compare with")
        return condition

    def holds(self, row: Row) -> bool:
        """Whether the row fulfils it; a row without the value does so for `!=` alone."""
        value = getattr(row, self.column)
        if self.sign in _ORDERS:
            value = len(value) if isinstance(value, tuple) else value
            known = isinstance(value, int | float)
            return known and _ORDERS[self.sign](value, _number(self.value))
        return self._equals(value) == (self.sign == "=")

    def _equals(self, value: Any) -> bool:
        """Texts by a pattern with `*` and `?`, numbers as numbers, seeds and folds by how many."""
        if value is None:
            return self.value in ("", "none")
        if isinstance(value, bool):
            return self.value.lower() in (("yes", "true", "1") if value else ("no", "false", "0"))
        if isinstance(value, tuple):
            value = len(value)
        if isinstance(value, str):
            return fnmatchcase(value, self.value)
        return _number(self.value) == value


def column_of(typed: str, option: str) -> str:
    """The column that is meant; UserError with the nearest one where there is none."""
    name = _SHORT.get(typed, typed)
    if name in COLUMNS:
        return name
    near = get_close_matches(typed, [*COLUMNS, *_SHORT], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COLUMNS)}"
    raise UserError(f"{option}: the leaderboard has no column {typed!r}; {hint}")


def select(rows: Sequence[Row], sort: str | None, filters: Sequence[str]) -> list[Row]:
    """The rows that fulfil every condition, in the order they had, or by a column.

    Scores are sorted best first, by their own metric's direction, everything else upwards; rows
    without the value come last. Raises UserError for a column that there is not.
    """
    conditions = [Condition.parse(typed) for typed in filters]
    kept = [row for row in rows if all(condition.holds(row) for condition in conditions)]
    if sort is None:
        return kept
    column = column_of(sort, "--sort")
    return sorted(kept, key=lambda row: _key(row, column))


def _key(row: Row, column: str) -> tuple[bool, Any]:
    value = getattr(row, column)
    if value is None:
        return True, 0
    if isinstance(value, tuple):
        value = len(value)
    if column in _BY_SCORE and row.greater_is_better:
        value = -value
    return False, value


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header; several values in one cell are set apart by blanks.

    A text that a spreadsheet would compute is led by an apostrophe; its control characters become
    blanks, so that a row is a line.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(
            f"{item[0]}:{item[1]!r}" if isinstance(item, tuple) else repr(item) for item in value
        )
    if isinstance(value, str):
        line = "".join(c if c.isprintable() else " " for c in value)
        return f"'{line}" if value.startswith(_EXECUTED) else line
    return repr(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
