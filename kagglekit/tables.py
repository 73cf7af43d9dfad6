"""Reads the CSV files of a download; every name in them comes from the files, never from code."""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .data import Data
from .errors import UserError
from .files import explained, visible_files

_SAMPLES = ("sample_submission.csv", "samplesubmission.csv")
_MISSING = [
    "",
    "NA",
    "N/A",
    "NaN",
    "nan",
    "NULL",
    "null",
    "None",
]  # as an empty cell may be written
# since 3.1 numbers are always read to the last bit, and asking for it is a warning
_RECENT = tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1)
_EXACT: dict[str, Any] = {} if _RECENT else {"float_precision": "round_trip"}
_CHUNK = 1 << 24
_LONGEST_CELL = 2**31 - 1
_LONGEST_NAME = 256  # characters of an id or a class; an array of text is as wide as its longest
# what Excel, LibreOffice and Google Sheets take for a formula; plain numbers are none
_FORMULA = r"(?![+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z)[=+\-@\t\r]"
_SHOWN = 3  # ids that an error names


# --- one file -----------------------------------------------------------------------------------


def read(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """A comma-separated UTF-8 file with a header; other columns get the dtype that fits them.

    Columns in `text` are text exactly as written: leading zeros stay, "NA" is a word. In the others
    an empty cell is NaN, and numbers are read to the last bit. A file that is missing, empty, in
    another encoding, separated by something else, ragged, or has two columns of one name raises
    UserError.
    """
    with _explained(path):
        header = _header(path)
        _check_width(path, header)
        texts = set(text) & set(header)
        table: pd.DataFrame = pd.read_csv(
            path,
            header=None,
            names=header,
            skiprows=1,
            index_col=False,
            dtype=dict.fromkeys(texts, str),
            keep_default_na=False,
            na_values={name: _MISSING for name in header if name not in texts},
            encoding="utf-8-sig",
            low_memory=False,  # one dtype a column, and faster
            **_EXACT,
        )
    return table


def words(path: Path) -> pd.DataFrame:
    """`read` with every cell as its text."""
    return read(path, text=_columns(path))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        with explained(), warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows cut to fit
            yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: download the data again") from None
    except UnicodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): save it again as UTF-8") from error
    except (csv.Error, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise UserError(f"{path} is no readable CSV ({error}): mend it") from error


def _header(path: Path) -> list[str]:
    """The column names; a nameless one gets pandas' name for it."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        names = next(csv.reader(handle), [])
    if not any(names):
        raise UserError(f"{path} is empty: download it again")
    for delimiter, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if len(names) == 1 and delimiter in names[0]:
            raise UserError(f"{path} is separated by {word}: save it again with commas")
    names = [name or f"Unnamed: {position}" for position, name in enumerate(names)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} has two columns {name!r}: rename one of them")
    return names


def _check_width(path: Path, header: Sequence[str]) -> None:
    """Refuse a row with too few or too many cells, which pandas would fill or cut."""
    commas = lines = 0
    quoted = False
    end = b"\n"
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            if b"\0" in chunk:  # numpy ends a text there, so that two ids would be one
                raise UserError(f"{path} has NUL bytes, as no text has: download it again")
            commas += chunk.count(b",")
            lines += chunk.count(b"\n")
            quoted = quoted or b'"' in chunk
            end = chunk[-1:]
    lines += end != b"\n"
    if quoted or commas != lines * (len(header) - 1):  # quotes, blank lines or a ragged row
        _check_rows(path, header)


def _check_rows(path: Path, header: Sequence[str]) -> None:
    csv.field_size_limit(_LONGEST_CELL)  # a mask in run lengths may be long
    with path.open(encoding="utf-8-sig", newline="") as handle:
        rows = csv.reader(handle)
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}, line {rows.line_num}, has {len(row)} cells where the header has"
                    f" {len(header)}: mend that line"
                )


# --- a folder of them ---------------------------------------------------------------------------


def sample(folder: Path) -> pd.DataFrame:
    """The sample submission, every cell as its text; column 0 is the id.

    It is `sample_submission.csv`, `sampleSubmission.csv` or `*sample*submission*.csv`, and of
    several the one that is least deep. None, two as deep, fewer than two columns, no rows or a
    duplicate id raise UserError. `attrs["line_end"]` is what its lines end in.
    """
    path = _sample_path(folder)
    table = words(path)
    if len(table.columns) < 2:
        raise UserError(f"{path} has one column: it needs an id column and at least one to answer")
    _check_ids(table, str(table.columns[0]), path)
    with path.open("rb") as handle:
        table.attrs["line_end"] = "\r\n" if handle.readline().endswith(b"\r\n") else "\n"
    return table


def regression(folder: Path) -> Data:
    """`train.csv`, `test.csv` and the sample submission, with numbers as targets.

    The id is the sample's first column, the targets are its others; features are the other columns
    of the test file, all of them finite numbers. `target` is (rows, outputs) float64. Without a
    `train.csv` there are zero train rows. Whatever does not fit raises UserError with file, row
    and column.
    """
    test = _test(folder)
    found = _find(folder, "train.csv")
    if found is None:
        nothing = np.zeros((0, len(test.targets)))
        return Data(test.table.iloc[:0], test.table, nothing, test.sample)
    train = _train(found, test, test.targets, text=())
    _check_numbers(train, test.targets, found, test.id)
    target = train[test.targets].to_numpy(np.float64)
    return Data(train.drop(columns=test.targets), test.table, target, test.sample)


def classification(folder: Path) -> Data:
    """As `regression`, with a class for a target: `target` is (rows,) int64 positions in `classes`.

    The label column is the sample's one target column, or where train has none of that name (a
    sample with a column a class) the one column of train that test lacks. Class names are the
    labels' text in natural order; without a `train.csv` there are none.
    """
    test = _test(folder)
    found = _find(folder, "train.csv")
    if found is None:
        return Data(test.table.iloc[:0], test.table, np.zeros(0, np.int64), test.sample)
    label = _label(found, test)
    train = _train(found, test, [label], text=[label])
    _check_filled(train, label, found)
    classes, target = positions(train[label].to_numpy(str))
    return Data(train.drop(columns=label), test.table, target, test.sample, classes)


def positions(labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names in natural order, and the position among them of each of the (rows,) labels."""
    names, codes = np.unique(labels, return_inverse=True)
    order = sorted(range(len(names)), key=lambda position: natural(str(names[position])))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return tuple(str(names[position]) for position in order), rank[codes]


def natural(name: str) -> tuple[int, float, list[str | int]]:
    """Sort key: numbers by value and before words; in words, runs of digits by value."""
    pieces: list[str | int] = list(re.split(r"([0-9]+)", name))
    pieces[1::2] = [int(digits) for digits in pieces[1::2]]
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    return (0, value, pieces) if math.isfinite(value) else (1, 0.0, pieces)


def _columns(path: Path) -> list[str]:
    with _explained(path):
        return _header(path)


def _sample_path(folder: Path) -> Path:
    files = {name: path for name, path in visible_files(folder).items() if _is_csv(name)}
    named = [name for name in files if fnmatch(_base(name), "*sample*submission*.csv")]
    if not named:
        raise UserError(f"{folder} has no sample_submission.csv: download the data again")
    exact = [name for name in named if _base(name) in _SAMPLES]
    shallow = _shallowest(exact or named)
    if len(shallow) > 1:
        raise UserError(f"{folder} has {' and '.join(shallow)}: keep one sample submission")
    return files[shallow[0]]


def _find(folder: Path, name: str) -> Path | None:
    """The least deep file of that name, in any case."""
    files = visible_files(folder)
    found = _shallowest([path for path in files if _base(path) == name])
    if len(found) > 1:
        raise UserError(f"{folder} has {' and '.join(found)}: keep one of them")
    return files[found[0]] if found else None


def _is_csv(name: str) -> bool:
    return name.lower().endswith(".csv")


def _base(name: str) -> str:
    return name.split("/")[-1].lower()


def _shallowest(names: Sequence[str]) -> list[str]:
    least = min((name.count("/") for name in names), default=0)
    return [name for name in names if name.count("/") == least]


@dataclass(frozen=True)
class _Test:
    """What the test file and the sample submission fix."""

    path: Path
    sample: pd.DataFrame
    table: pd.DataFrame  # id and features
    features: list[str]

    @property
    def id(self) -> str:
        return str(self.sample.columns[0])

    @property
    def targets(self) -> list[str]:
        return [str(name) for name in self.sample.columns[1:]]


def _test(folder: Path) -> _Test:
    wanted = sample(folder)
    id = str(wanted.columns[0])
    path = _find(folder, "test.csv")
    if path is None:
        raise UserError(f"{folder} has no test.csv: download the data again")
    _check_columns(path, [id])
    table = read(path, text=[id])
    _check_ids(table, id, path)
    _check_same(table[id], wanted[id], path)
    features = [str(name) for name in table.columns if name not in wanted.columns]
    if not any(pd.api.types.is_numeric_dtype(table[name]) for name in features):
        raise UserError(f"{path} has no column of numbers beside {id!r}: there is nothing to fit")
    _check_numbers(table, features, path, id)
    return _Test(path, wanted, table[[id, *features]], features)


def _train(path: Path, test: _Test, targets: Sequence[str], text: Sequence[str]) -> pd.DataFrame:
    """The table of train with all that test has, its targets, and what else it knows of a row."""
    _check_columns(path, [*test.features, *targets], f", which {test.path} or its sample asks for")
    table = read(path, text=[test.id, *text])
    if not len(table):
        raise UserError(f"{path} has no rows: download it again, or remove it to predict only")
    if test.id in table.columns:
        _check_ids(table, test.id, path)
    _check_numbers(table, test.features, path, test.id)
    return table


def _label(path: Path, test: _Test) -> str:
    columns = _columns(path)
    if len(test.targets) == 1 and test.targets[0] in columns:
        return test.targets[0]
    others = [name for name in columns if name not in test.features and name != test.id]
    if len(others) != 1:
        raise UserError(
            f"{path} needs one label column, {test.targets[0]!r} or the only one that test lacks;"
            f" it has {', '.join(map(repr, others)) or 'none'}"
        )
    return others[0]


def formulas(cells: pd.Series) -> np.ndarray:
    """Which text cells a spreadsheet would execute, bool (rows,).

    They begin with =, +, -, @, tab or carriage return and are no plain number (OWASP, "CSV
    injection"): -1 and +1e3 are none, -Xy and @home are.
    """
    return cells.astype(str).str.match(_FORMULA).to_numpy(bool)


# --- checks -------------------------------------------------------------------------------------


def some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    shown = ", ".join(repr(str(name)) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _check_columns(path: Path, wanted: Sequence[str], remark: str = "") -> None:
    columns = _columns(path)
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise UserError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {some(missing)}{remark};"
            f" it has {some(columns)}"
        )


def _check_ids(table: pd.DataFrame, id: str, path: Path) -> None:
    if not len(table):
        raise UserError(f"{path} has no rows: download it again")
    _check_filled(table, id, path)
    again = table[id].duplicated()
    if again.any():
        raise UserError(
            f"{path} has the id {some(table[id][again].unique().tolist())} more than once"
        )


def _check_filled(table: pd.DataFrame, column: str, path: Path) -> None:
    empty = (table[column] == "").to_numpy()
    if empty.any():
        raise UserError(f"{path}, row {empty.argmax() + 1}, column {column!r} is empty: fill it in")
    long = (table[column].str.len() > _LONGEST_NAME).to_numpy()
    if long.any():
        raise UserError(
            f"{path}, row {long.argmax() + 1}, column {column!r} has more than {_LONGEST_NAME}"
            " characters, too many for an id or a class: shorten it"
        )


def _check_same(test: pd.Series, wanted: pd.Series, path: Path) -> None:
    lacking, unknown = test[~test.isin(wanted)], wanted[~wanted.isin(test)]
    if len(lacking):
        raise UserError(
            f"the sample submission beside {path} lacks {len(lacking)} of its ids:"
            f" {some(lacking.tolist())}; download both again"
        )
    if len(unknown):
        raise UserError(
            f"{path} lacks {len(unknown)} ids of the sample submission: {some(unknown.tolist())};"
            " download both again"
        )


def _check_numbers(table: pd.DataFrame, columns: Sequence[str], path: Path, id: str) -> None:
    """Name the first cell of `columns` that is no finite number."""
    for name in columns:
        column = table[name]
        if column.dtype.kind in "iub":
            continue
        finite = np.isfinite(pd.to_numeric(column, errors="coerce").to_numpy(np.float64))
        if not finite.all():
            row = int(finite.argmin())
            cell = column.iloc[row]
            known = f" (id {table[id].iloc[row]!r})" if id in table.columns else ""
            fault = "is empty or NaN" if pd.isna(cell) else f"holds {str(cell)!r}, no finite number"
            raise UserError(
                f"{path}, row {row + 1}{known}, column {name!r} {fault}: mend that cell"
            )
