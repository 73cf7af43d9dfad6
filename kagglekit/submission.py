"""From answers to the CSV that Kaggle takes, joined by id and checked, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from . import tables
from .data import Data
from .errors import UserError
from .files import write_text

Kind = Literal["labels", "numbers", "probability", "probabilities"]

_WHOLE = r"[+-]?[0-9]+"
_MEND = "mend the recipe or the decision"
_SLACK = 1e-6  # a mean of float32 probabilities may pass 1 by this much; it is written as 1


@dataclass(frozen=True)
class Submission:
    """What the target columns of the sample submission hold. Make one with a function below.

    | made by | decided answers | target columns |
    |---|---|---|
    | `labels()` | (rows,) positions in `data.classes` | one, of class names |
    | `numbers(least, most)` | (rows, outputs), or (rows,) for one | one an output, in order |
    | `probability(of)` | (rows, 2), or (rows,) of the positive class | one |
    | `probabilities()` | (rows, classes) | one a class, joined by its name |

    Decided answers are in the order of `data.test`, the file is in that of the sample.
    """

    kind: Kind
    least: float | None = None
    most: float | None = None
    whole: bool | None = None
    of: str | None = None
    formulas: bool = False

    def screen(self, data: Data) -> None:
        """Refuse a column, an id or a class that a reader would misread or a spreadsheet execute.

        Kaggle joins by the exact text, so none is altered; `formulas=True` lets formulas through
        where they are known to be harmless. Raises UserError with the first row at fault.
        """
        for what, cells in (
            ("a column", pd.Series(list(map(str, data.sample.columns)))),
            (f"column {data.id!r}", data.sample[data.id].astype(str).reset_index(drop=True)),
            ("a class", pd.Series(list(data.classes), dtype=str)),
        ):
            _refuse_cells(
                cells[cells.str.contains("\r").to_numpy(bool)],
                f"{what}: a carriage return ends a row in the middle of",
                "take it out of the download",
            )
            if not self.formulas:
                _refuse_cells(
                    cells[tables.formulas(cells)],
                    f"{what}: a spreadsheet would execute",
                    "take it out of the download, or where it is harmless say submission."
                    f"{self.kind}(formulas=True) in the competition's code",
                )

    def write(self, data: Data, decided: np.ndarray, path: Path) -> Path:
        """Write the answers to `path` with the sample's columns, ids, order and line ends.

        What `screen` refuses is not written.

        Numbers are written so that reading them gives the same float64. NaN, infinities, numbers
        out of range, fractions in a column that is whole in the sample, positions of no class, or
        a sample whose ids are not those of test raise UserError, and nothing is written.
        """
        self._columns(data)  # first, as what the sample asks for explains the rest
        self.screen(data)
        order = _order(data)
        values = self._checked(data, self._shaped(data, decided), _ids(data), str(path))
        table = data.sample.copy()
        for column, cells in self._cells(data, values).items():
            table[column] = cells[order]
        end = str(data.sample.attrs.get("line_end", "\n"))
        write_text(path, table.to_csv(index=False, lineterminator=end))
        return path

    def read(self, data: Data, path: Path) -> np.ndarray:
        """The decided answers that a submission or a solution holds, in the order of `data.test`.

        | kind | gives |
        |---|---|
        | labels | (rows,) int64 |
        | numbers | (rows, outputs) float64 |
        | probability | (rows,) float64 |
        | probabilities | (rows, classes) float64, in the order of `data.classes` |

        Ids may be in any order, and there may be more of them and more columns. A missing column
        or id, a duplicate id and an illegal value raise UserError.
        """
        table = tables.words(path)
        missing = [name for name in data.sample.columns if name not in table.columns]
        if missing:
            raise UserError(f"{path} lacks the column {tables.some(missing)} of the sample")
        _refuse_twice(table[data.id], str(path))
        ids = _ids(data)
        order = pd.Index(table[data.id]).get_indexer(pd.Index(ids))
        _refuse(ids[order < 0], f"{path} lacks", "give every row of test an answer")
        return self._checked(data, self._parsed(data, table.iloc[order], str(path)), ids, str(path))

    def check(self, data: Data, path: Path) -> None:
        """Hold a finished file against the sample: its columns, ids, their order, its values.

        Raises UserError with the first rows at fault.
        """
        table, wanted = tables.words(path), data.sample
        if list(table.columns) != list(wanted.columns):
            raise UserError(
                f"{path} has the columns {', '.join(table.columns)}, the sample has"
                f" {', '.join(wanted.columns)}: make them the same"
            )
        ids, expected = table[data.id], wanted[data.id]
        _refuse_twice(ids, str(path))
        _refuse(expected[~expected.isin(ids)], f"{path} lacks", "give every row an answer")
        _refuse(ids[~ids.isin(expected)], f"{path} has, and the sample has not,", "remove them")
        moved = (ids.to_numpy(str) != expected.to_numpy(str)).nonzero()[0]
        if len(moved):
            row = int(moved[0])
            raise UserError(
                f"{path}, row {row + 1}, has id {ids.iloc[row]!r} where the sample has"
                f" {expected.iloc[row]!r}: put the rows in the sample's order"
            )
        self.read(data, path)

    # -- answers as numbers: (rows,) positions or (rows, columns) floats, in the order of test

    def _shaped(self, data: Data, decided: np.ndarray) -> np.ndarray:
        """The answers in the one shape that `read` gives, with each probability in its column."""
        decided = np.asarray(decided)
        if decided.dtype.kind not in "fiub":
            raise UserError(
                f"answers should be numbers, and are {decided.dtype}: mend the decision"
            )
        rows, columns = len(data.test), len(_targets(data))
        classes = len(data.classes)
        shapes: dict[Kind, list[tuple[int, ...]]] = {
            "labels": [(rows,)],
            "numbers": [(rows, columns), *([(rows,)] if columns == 1 else [])],
            "probability": [(rows,), (rows, classes or 2)],
            "probabilities": [(rows, classes)],
        }
        if decided.shape not in shapes[self.kind]:
            raise UserError(
                f"answers of shape {decided.shape} do not fit a submission of {self.kind}, which"
                f" takes {' or '.join(map(str, shapes[self.kind]))}: mend the decision"
            )
        if self.kind == "numbers":
            return decided.reshape(rows, columns)
        if self.kind == "probability" and decided.ndim == 2:
            return decided[:, self._positive(data)]
        return decided

    def _positive(self, data: Data) -> int:
        """Position of the class whose probability is asked for; by default the second of two."""
        if self.of is not None:
            if self.of not in data.classes:
                raise UserError(
                    f"probability(of={self.of!r}) names no class; there are"
                    f" {tables.some(data.classes)}"
                )
            return data.classes.index(self.of)
        if len(data.classes) > 2:
            raise UserError("a probability of more than two classes needs probability(of=CLASS)")
        return 1

    def _checked(self, data: Data, values: np.ndarray, ids: np.ndarray, where: str) -> np.ndarray:
        """`values` as int64 positions or float64, or a UserError with the first illegal rows."""
        table = _table(values.astype(np.float64))
        _refuse(
            ids[~np.isfinite(table).all(1)], f"{where}: NaN or infinity is the answer for", _MEND
        )
        if self.kind == "labels":
            legal = (table >= 0) & (table < len(data.classes)) & (table == np.rint(table))
            _refuse(ids[~legal.all(1)], f"{where}: a position of no class is the answer for", _MEND)
            return values.astype(np.int64)
        least, most = self._range()
        slack = _SLACK if self.kind != "numbers" else 0.0
        legal = (table >= least - slack) & (table <= most + slack)
        _refuse(
            ids[~legal.all(1)],
            f"{where}: a number outside {least:g}…{most:g} is the answer for",
            _MEND,
        )
        for position in self._whole_columns(data):
            fractions = table[:, position] != np.rint(table[:, position])
            fault = f"{where}: whole column {_targets(data)[position]!r} has a fraction for"
            _refuse(ids[fractions], fault, "round in the decision, or say numbers(whole=False)")
        clipped: np.ndarray = np.clip(table, least, most)
        return clipped.reshape(values.shape)

    def _range(self) -> tuple[float, float]:
        if self.kind != "numbers":
            return 0.0, 1.0
        least = -np.inf if self.least is None else self.least
        return least, np.inf if self.most is None else self.most

    def _whole_columns(self, data: Data) -> list[int]:
        """Positions of the target columns that take whole numbers only."""
        if self.kind != "numbers" or self.whole is False:
            return []
        targets = _targets(data)
        return [
            position
            for position, name in enumerate(targets)
            if self.whole or _matches(data.sample[name], _WHOLE)
        ]

    # -- answers as text, by column of the sample

    def _cells(self, data: Data, values: np.ndarray) -> dict[str, np.ndarray]:
        """The text of each target column, in the order of test."""
        if self.kind == "labels":
            (column,) = self._columns(data)
            return {column: np.array(_spelled(data, column), object)[values]}
        table = _table(values)
        whole = self._whole_columns(data)
        cells = {}
        for position, column in enumerate(self._columns(data)):
            numbers = table[:, position].tolist()
            text = [str(int(number)) if position in whole else repr(number) for number in numbers]
            cells[column] = np.array(text, object)
        return cells

    def _columns(self, data: Data) -> list[str]:
        """The target columns in the order of the answers' columns."""
        targets = _targets(data)
        if self.kind == "numbers":
            return targets
        if self.kind == "probabilities":
            if set(targets) != set(data.classes):
                raise UserError(
                    f"the sample submission has the columns {tables.some(targets)}, the classes are"
                    f" {tables.some(data.classes)}: both should be the same names"
                )
            return list(data.classes)
        if len(targets) != 1:
            raise UserError(
                f"a submission of {self.kind} has one target column, the sample has {len(targets)}:"
                f" {tables.some(targets)}"
            )
        if self.kind == "labels" and not data.classes:
            raise UserError("a submission of labels needs the names of the classes: data has none")
        return targets

    def _parsed(self, data: Data, table: pd.DataFrame, where: str) -> np.ndarray:
        """The target columns of `table` as numbers: (rows,) or (rows, columns)."""
        columns = self._columns(data)
        if self.kind == "labels":
            return _positions(data, table, columns[0], where)
        numbers = np.empty((len(table), len(columns)))
        for position, column in enumerate(columns):
            for row, cell in enumerate(table[column]):
                number = _float(cell)
                if number is None:
                    raise UserError(
                        f"{where}: id {table[data.id].iloc[row]!r} has {cell!r} in column"
                        f" {column!r}, which is no number: mend it"
                    )
                numbers[row, position] = number
        return numbers[:, 0] if self.kind == "probability" else numbers


def labels(formulas: bool = False) -> Submission:
    """One column of class names, written as train has them, or as numbers like the sample's.

    `formulas`, here and below, lets ids and names through that a spreadsheet would execute.
    """
    return Submission("labels", formulas=formulas)


def numbers(
    least: float | None = None,
    most: float | None = None,
    whole: bool | None = None,
    formulas: bool = False,
) -> Submission:
    """A number a target column, from `least` to `most`.

    `whole` asks for whole numbers; None asks for them in the columns that are whole in the sample.
    """
    return Submission("numbers", least, most, whole, formulas=formulas)


def probability(of: str | None = None, formulas: bool = False) -> Submission:
    """One column with the probability of class `of`, by default the second of two."""
    return Submission("probability", of=of, formulas=formulas)


def probabilities(formulas: bool = False) -> Submission:
    """A column of probabilities a class; the columns are named as the classes."""
    return Submission("probabilities", formulas=formulas)


def _targets(data: Data) -> list[str]:
    return [str(name) for name in data.sample.columns[1:]]


def _ids(data: Data) -> np.ndarray:
    """(test rows,) ids as text."""
    if data.id not in data.test.columns:
        raise UserError(
            f"the test table has no column {data.id!r}, the id of the sample submission"
        )
    return data.test[data.id].to_numpy(str)


def _order(data: Data) -> np.ndarray:
    """Position in test of each row of the sample."""
    ids, wanted = pd.Series(_ids(data)), data.sample[data.id].astype(str)
    _refuse_twice(ids, "the test table")
    _refuse_twice(wanted, "the sample submission")
    _refuse(ids[~ids.isin(wanted)], "the sample submission lacks", "download the data again")
    _refuse(wanted[~wanted.isin(ids)], "the test table lacks", "download the data again")
    return np.asarray(pd.Index(ids).get_indexer(pd.Index(wanted)))


def _refuse_twice(ids: pd.Series, where: str) -> None:
    _refuse(ids[ids.duplicated()].unique(), f"{where} has twice or more", "keep one of each")


def _refuse(ids: Sequence[str] | np.ndarray | pd.Series, fault: str, remedy: str) -> None:
    names = list(map(str, ids))
    if names:
        count = "1 id" if len(names) == 1 else f"{len(names)} ids"
        raise UserError(f"{fault} {count}: {tables.some(names)}; {remedy}")


def _refuse_cells(cells: pd.Series, fault: str, remedy: str) -> None:
    if len(cells):
        row = f"row {cells.index[0] + 1}, " if cells.name else ""  # columns and classes have none
        raise UserError(f"the sample submission, {row}{fault} {cells.iloc[0]!r}: {remedy}")


def _table(values: np.ndarray) -> np.ndarray:
    """(rows,) as (rows, 1)."""
    return values[:, None] if values.ndim == 1 else values


def _matches(column: pd.Series, pattern: str) -> bool:
    return bool(column.astype(str).str.fullmatch(pattern).all())


def _number(text: str) -> float | None:
    """The finite number that a cell holds, as Kaggle reads it: without "_" and in ASCII digits."""
    value = _float(text)
    return value if value is not None and np.isfinite(value) else None


def _float(text: str) -> float | None:
    if "_" in text or not text.isascii():  # Python alone takes 1_0 for ten
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _spelled(data: Data, column: str) -> list[str]:
    """The class names; where the sample knows none of them, numbers are spelled in its way."""
    names, sample = list(data.classes), data.sample[column]
    values = [_number(name) for name in names]
    if None in values or sample.isin(names).any():
        return names
    exact = [value for value in values if value is not None]
    if _matches(sample, _WHOLE) and all(value == int(value) for value in exact):
        spelled = [str(int(value)) for value in exact]
    elif _matches(sample, rf"{_WHOLE}\.[0-9]*"):
        spelled = [repr(value) for value in exact]
    else:
        return names
    return spelled if len(set(spelled)) == len(names) else names


def _positions(data: Data, table: pd.DataFrame, column: str, where: str) -> np.ndarray:
    """(rows,) positions of the labels; a number is found by value, so that "2.0" is class "2"."""
    known: dict[str | float, int] = {}
    for position, name in enumerate(data.classes):
        value = _number(name)
        known[name] = position
        if value is not None:
            known.setdefault(value, position)
    found = np.empty(len(table), np.int64)
    for row, cell in enumerate(table[column]):
        key = cell if cell in known else _number(cell)
        if key not in known:
            raise UserError(
                f"{where}: id {table[data.id].iloc[row]!r} has {cell!r} in column {column!r}, which"
                f" is none of the classes {tables.some(data.classes)}: mend it"
            )
        found[row] = known[key]
    return found
