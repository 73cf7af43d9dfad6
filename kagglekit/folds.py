"""Folds: which rows are held out from which, checked, saved and named by a fingerprint."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd

from . import files, tables
from .config import Config
from .data import Data, Dependence, Rows
from .errors import UserError

Fold = tuple[Rows, Rows]  # (train_rows, valid_rows)
Folds = Callable[[Data, Config], Iterable[Fold]]

_GROUP = "group of the file"  # no header of a download is called so


@dataclass(frozen=True)
class Grouped:
    """Folds as `draw` makes them, and what they keep together: groups of a column or a file.

    Of folds that go forward in time, `time_column` is the one that tells it.
    """

    draw: Folds
    group_column: str | None = None
    group_file: Path | None = None
    time_column: str | None = None

    def __call__(self, data: Data, config: Config) -> Iterable[Fold]:
        """The folds of these training rows."""
        return self.draw(data, config)


def shuffled(data: Data, config: Config) -> Iterable[Fold]:
    """`config.folds` parts of equal size, drawn by `config.seed`; each is validated once.

    Raises UserError for fewer rows than folds. (The folds of scikit-learn's KFold, whose import
    takes longer than many a training.)
    """
    _enough(len(data.train), "training rows", config.folds)
    rows = np.arange(len(data.train))
    np.random.RandomState(config.seed).shuffle(rows)
    for part in np.array_split(rows, config.folds):
        valid = np.zeros(len(rows), bool)
        valid[part] = True
        yield np.flatnonzero(~valid), np.flatnonzero(valid)


def stratified(data: Data, config: Config) -> Iterable[Fold]:
    """As `shuffled`, with the shares of the classes alike in every fold.

    Raises UserError for a target of numbers and for a class with fewer rows than folds.
    (scikit-learn's StratifiedKFold)
    """
    from sklearn.model_selection import StratifiedKFold

    classes = _classes(data, "stratified")
    _enough(len(classes), "training rows", config.folds)
    _enough_of_each_class(data, config.folds)
    splitter = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    yield from splitter.split(np.zeros(len(classes)), classes)


def grouped(column: str) -> Folds:
    """Rows that share a value of `column` are never apart; folds have equally many groups.

    Raises UserError for a column that is missing or has gaps, and for fewer groups than folds.
    (scikit-learn's GroupKFold, groups shuffled by `config.seed`)
    """

    def folds(data: Data, config: Config) -> Iterable[Fold]:
        from sklearn.model_selection import GroupKFold

        groups = _groups(data, column, config.folds)
        splitter = GroupKFold(config.folds, shuffle=True, random_state=config.seed)
        yield from splitter.split(np.zeros(len(groups)), groups=groups)

    return Grouped(folds, group_column=column)


def stratified_grouped(column: str) -> Folds:
    """As `grouped`, with the shares of the classes as alike as whole groups allow.

    Raises UserError where `stratified` or `grouped` does. (scikit-learn's StratifiedGroupKFold)
    """

    def folds(data: Data, config: Config) -> Iterable[Fold]:
        from sklearn.model_selection import StratifiedGroupKFold

        classes = _classes(data, "stratified_grouped")
        groups = _groups(data, column, config.folds)
        _enough_of_each_class(data, config.folds)
        splitter = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
        yield from splitter.split(np.zeros(len(classes)), classes, groups)

    return Grouped(folds, group_column=column)


def grouped_by_file(path: Path, stratify: bool = False) -> Folds:
    """Rows of one group in the CSV `path`, with columns `id` and `group`, are never apart.

    `id` may have the data's own name for it. `kagglekit leaks` writes such files; copy one beside
    the competition and name it by `Path(__file__).with_name("groups.csv")`. `stratify` keeps the
    shares of the classes as alike as whole groups allow. Raises UserError for a file that does not
    give every training row one group, and where `grouped` or `stratified_grouped` does.
    """

    def folds(data: Data, config: Config) -> Iterable[Fold]:
        labels = _labels(path, "group", data)
        with_groups = replace(data, train=data.train.assign(**{_GROUP: labels.to_numpy()}))
        rule = stratified_grouped(_GROUP) if stratify else grouped(_GROUP)
        return rule(with_groups, config)

    return Grouped(folds, group_file=path)


def hold_out(fraction: float, stratify: bool = False) -> Folds:
    """One fold that validates `fraction` of the rows, whatever `config.folds` says.

    `stratify` keeps the shares of the classes. Raises UserError for a fraction outside 0…1 and
    where a part would be empty or, stratified, smaller than the number of classes.
    (scikit-learn's ShuffleSplit and StratifiedShuffleSplit)
    """
    if not 0 < fraction < 1:
        raise UserError(f"hold_out({fraction:g}) wants a share between 0 and 1, as in 0.2")

    def folds(data: Data, config: Config) -> Iterable[Fold]:
        from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

        rows = np.zeros(len(data.train))
        splitter = StratifiedShuffleSplit if stratify else ShuffleSplit
        target = _classes(data, "hold_out(..., stratify=True)") if stratify else None
        if stratify:
            _enough_of_each_class(data, 2)
        valid = int(np.ceil(fraction * len(rows)))
        least = max(1, len(np.unique(target))) if target is not None else 1
        if min(valid, len(rows) - valid) < least:
            raise UserError(
                f"hold_out({fraction:g}) parts {len(rows)} training rows into {len(rows) - valid} "
                f"and {valid}, but each part needs {least}: change the fraction"
            )
        yield from splitter(1, test_size=valid, random_state=config.seed).split(rows, target)

    return folds


def time_ordered(column: str) -> Folds:
    """Forward chaining: fold k trains on all that came before the block of times it validates.

    The distinct times are parted into `config.folds` + 1 blocks of equally many; the first block
    is only trained on. Rows of one time stay together, so training is always strictly earlier.
    `column` holds numbers, dates, or dates as ISO 8601 text. Raises UserError for a column that is
    missing, has gaps or cannot be ordered, and for too few times. (scikit-learn's TimeSeriesSplit)
    """

    def folds(data: Data, config: Config) -> Iterable[Fold]:
        from sklearn.model_selection import TimeSeriesSplit

        moments = _moments(data, column)
        times = int(moments.max(initial=-1)) + 1
        _enough(times - 1, f"distinct times after the first in column {column!r}", config.folds)
        for train, valid in TimeSeriesSplit(config.folds).split(np.zeros(times)):
            yield np.flatnonzero(moments <= train[-1]), np.flatnonzero(np.isin(moments, valid))

    return Grouped(folds, time_column=column)


def repeated(folds: Folds, times: int) -> Folds:
    """`folds` drawn `times` times, the i-th time with seed `config.seed` + i.

    Raises UserError where `folds` comes out the same for every seed.
    """
    if times < 1:
        raise UserError(f"repeated(..., times={times}) wants at least 1")

    def again(data: Data, config: Config) -> Iterable[Fold]:
        rounds = [list(folds(data, replace(config, seed=config.seed + i))) for i in range(times)]
        if times > 1 and len({fingerprint(drawn) for drawn in rounds}) == 1:
            raise UserError(
                f"repeated(..., times={times}) gets the same folds for every seed: "
                "repeat folds that are shuffled"
            )
        return [fold for drawn in rounds for fold in drawn]

    return grouped_alike(again, folds)


def from_column(column: str = "fold") -> Folds:
    """Folds that the training table names: rows with the k-th value of `column` are validated by
    fold k, in the order of the values; `config.folds` is not asked.

    Raises UserError for a column that is missing, has gaps or has a single value.
    """

    def folds(data: Data, config: Config) -> Iterable[Fold]:
        return _by_label(_column(data, column), f"column {column!r} of the training table")

    return folds


def from_file(data: Data, config: Config) -> Iterable[Fold]:
    """Folds of the CSV `config.folds_file`, whose columns are `id` (or the data's name for it) and
    `fold`; each training row stands in it once, joined by id.

    Folds go by the order of the values of `fold`; `config.folds` is not asked. Raises UserError
    for a file that cannot be read, a missing column, an empty fold, and ids that are unknown,
    missing or given twice.
    """
    path = Path(config.folds_file).expanduser()
    return _by_label(_labels(path, "fold", data), str(path))


def training_only(folds: Folds, keep: Callable[[Data], np.ndarray]) -> Folds:
    """`folds` whose training parts have only rows where `keep(data)`, bool (train rows,), is True.

    Validation is untouched. Classes may go missing from these training parts: an anomaly detector
    learns from normal rows alone.
    """

    def narrowed(data: Data, config: Config) -> Iterable[Fold]:
        mask = np.asarray(keep(data))
        if mask.dtype != bool or mask.shape != (len(data.train),):
            raise UserError(
                f"training_only's `keep` gave {mask.dtype} of shape {mask.shape}: give a truth "
                f"value for each of the {len(data.train)} training rows"
            )
        drawn = [(np.asarray(train), valid) for train, valid in folds(data, config)]
        return [_Narrowed((train[mask[train]], valid)) for train, valid in drawn]

    return grouped_alike(narrowed, folds)


def group_column(folds: Folds) -> str | None:
    """The column whose values these folds keep together; None where rows stand alone."""
    column: str | None = getattr(folds, "group_column", None)
    return column


def groups(data: Data, folds: Folds) -> np.ndarray | None:
    """(train rows,) number of each row's group; None where these folds keep none together.

    Folds of one's own say so by an attribute `group_column`, or `group_file` for a file as
    `grouped_by_file` reads it. Raises UserError for a column or a file that is missing or has gaps.
    """
    column, path = group_column(folds), group_file(folds)
    if column is not None:
        return _groups(data, column, 1)
    return None if path is None else pd.factorize(_labels(path, "group", data))[0]


def dependence(data: Data, folds: Folds, drawn: Sequence[Fold] = ()) -> Dependence:
    """How the training rows depend on one another, by what these folds keep together or in order.

    `drawn` are the folds themselves, where it matters which validates a row (of several the first).
    Raises UserError where `groups` does, and for a column of times that is missing or has gaps.
    """
    column = time_column(folds)
    moments = None if column is None else _moments(data, column)
    validates = np.full(len(data.train), len(drawn))  # those that none does are alike
    for number, (_, valid) in reversed(list(enumerate(drawn))):
        validates[valid] = number
    return Dependence(groups(data, folds), moments, validates if len(drawn) else None)


def time_column(folds: Folds) -> str | None:
    """The column whose order these folds go forward in; None where they do not."""
    column: str | None = getattr(folds, "time_column", None)
    return column


def group_file(folds: Folds) -> Path | None:
    """The file whose groups these folds keep together; None where they read none."""
    path: Path | None = getattr(folds, "group_file", None)
    return path


def grouped_alike(made: Folds, like: Folds) -> Folds:
    """`made`, which says that it keeps together, and in order, what `like` does."""
    return Grouped(made, group_column(like), group_file(like), time_column(like))


class _Narrowed(tuple[Rows, Rows]):
    """A fold whose training part lacks rows, and maybe classes, on purpose."""

    __slots__ = ()


def split(data: Data, config: Config, folds: Folds) -> list[Fold]:
    """The folds of a run, checked; each part is int64 positions in rising order.

    `config.folds_file` replaces `folds` where it is set. Raises UserError for folds with a part
    that is empty, has positions out of range or twice, or shares a row with the other part, and for
    a class that a training part lacks (unless `training_only` took it out).
    """
    if len(data.train) == 0:
        raise UserError("there are no training rows to make folds of: look into the data folder")
    drawn = list((from_file if config.folds_file else folds)(data, config))
    if not drawn:
        raise UserError("the competition's `folds` gave no fold: give at least one")
    return [_checked(data, fold, number) for number, fold in enumerate(drawn)]


def subset(data: Data, folds: Sequence[Fold], count: int, seed: int) -> list[Fold]:
    """`folds` of only `count` rows, for a quick look: drawn by class where there are classes.

    Each class keeps its share, and at least two rows while `count` allows. Raises UserError where
    `count` leaves a part of a fold empty or takes a class out of a training part.
    """
    chosen = _drawn(data, count, seed)
    smaller = []
    for number, (train, valid) in enumerate(folds):
        fold = train[chosen[train]], valid[chosen[valid]]
        for name, part in zip(("training", "validation"), fold, strict=True):
            if len(part) == 0:
                raise UserError(f"{count} rows leave fold {number} no {name} rows: take more rows")
        if data.classes:
            lost = np.setdiff1d(data.target[train], data.target[fold[0]])
            if len(lost):
                raise UserError(
                    f"{count} rows leave fold {number} without class {data.classes[lost[0]]!r} "
                    "to train on: take more rows"
                )
        smaller.append(fold)
    return smaller


def fingerprint(folds: Iterable[Fold]) -> str:
    """16 hex digits (BLAKE2b) that two lists of folds share only if all positions are the same."""
    digest = blake2b(digest_size=8)
    for fold in folds:
        for part in fold:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    return digest.hexdigest()


def save(folds: Sequence[Fold], ids: Sequence[str] | np.ndarray, path: Path) -> None:
    """Write `folds` as CSV `id,row,fold0,…`: for each of `ids`, (train rows,), in order, what each
    fold does with the row: train, valid, or nothing where it is left out.

    Folds go by `row`; an id that a spreadsheet would execute is written after an apostrophe.
    """
    names = pd.Series(ids, dtype=str)
    names = names.where(~tables.formulas(names), "'" + names)
    columns = []
    for train, valid in folds:
        role = np.full(len(ids), "", dtype=object)
        role[train], role[valid] = "train", "valid"
        columns.append(role.tolist())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "row", *(f"fold{number}" for number in range(len(folds)))])
    writer.writerows(zip(names, range(len(ids)), *columns, strict=True))
    files.write_bytes(path, text.getvalue().encode())


def load(path: Path) -> list[Fold]:
    """The folds that `save` wrote. Raises UserError for a file that it cannot have written."""
    table = _read(path)
    names = list(table.columns[2:])
    expected = ["id", "row", *(f"fold{number}" for number in range(len(names)))]
    whole = list(table.columns) == expected and np.array_equal(
        table["row"], np.arange(len(table)).astype(str)
    )
    if not whole or not table[names].isin(["train", "valid", ""]).to_numpy().all():
        raise UserError(f"{path} is damaged: delete it, and the next run writes it again")
    return [
        (np.flatnonzero(table[name] == "train"), np.flatnonzero(table[name] == "valid"))
        for name in names
    ]


def _read(path: Path) -> pd.DataFrame:
    """The CSV at `path`, every cell as its text."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: correct its path") from None
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as CSV ({reason}): correct or replace it") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the surplus cells for row labels
        raise UserError(f"{path} cannot be read as CSV: its rows have more cells than its header")
    return table


def _labels(path: Path, column: str, data: Data) -> pd.Series:
    """What a CSV with the columns `id` and `column` says of each training row, (train rows,)."""
    table = _read(path)
    id_column = data.id if data.id in table.columns else "id"
    for name in (id_column, column):
        if name not in table.columns:
            raise UserError(
                f"{path} has no column {name!r} but {', '.join(map(repr, table.columns))}: "
                f"write a CSV with the header id,{column}"
            )
    ids = pd.Index(data.split(np.arange(len(data.train)), "valid").ids)
    labels = table.set_index(id_column)[column]
    _refuse(path, labels.index[labels.index.duplicated()], "stands in it twice: keep one line")
    _refuse(path, labels.index.difference(ids), "is no id of a training row: take out the line")
    _refuse(path, ids.difference(labels.index), f"is missing: give every training row a {column}")
    _refuse(path, labels.index[labels.str.strip() == ""], f"has no {column}: fill it in")
    return labels.loc[ids].reset_index(drop=True)


def _refuse(path: Path, ids: pd.Index, fault: str) -> None:
    if len(ids):
        more = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
        raise UserError(f"{path}: id {ids[0]!r}{more} {fault}")


def _column(data: Data, column: str) -> pd.Series:
    """`column` of the training table, without gaps."""
    if column not in data.train.columns:
        known = [str(name) for name in data.train.columns]
        near = get_close_matches(column, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known[:20])}"
        raise UserError(f"the training table has no column {column!r} for the folds; {hint}")
    values = data.train[column].reset_index(drop=True)
    gaps = np.flatnonzero(values.isna())
    if len(gaps):
        raise UserError(
            f"column {column!r} of the training table is empty in row {gaps[0]}, but the folds "
            "need it: fill it or leave the row out in `load`"
        )
    return values


def _groups(data: Data, column: str, folds: int) -> np.ndarray:
    """A number for each row's group, (train rows,)."""
    groups = pd.factorize(_column(data, column))[0]
    _enough(int(groups.max(initial=-1)) + 1, f"groups in column {column!r}", folds)
    return groups


def _moments(data: Data, column: str) -> np.ndarray:
    """(train rows,) the place of each row's time among the distinct times, from 0."""
    return pd.factorize(_times(data, column), sort=True)[0]


def _times(data: Data, column: str) -> pd.Series:
    """(train rows,) values that sort as time."""
    values = _column(data, column)
    if values.dtype.kind in "biufmM":
        return values
    moments = pd.to_datetime(values, format="ISO8601", utc=True, errors="coerce")
    if moments.isna().any():
        row = int(np.flatnonzero(moments.isna())[0])
        raise UserError(
            f"column {column!r} of the training table says {values[row]!r} in row {row}, which is "
            "neither a number nor a date as in 2024-01-31: convert the column in `load`"
        )
    return moments


def _by_label(labels: pd.Series, source: str) -> list[Fold]:
    """One fold for each distinct label, (train rows,): it validates the rows that carry it."""
    numbers = pd.to_numeric(labels, errors="coerce")
    values = labels.astype(str) if numbers.isna().any() else numbers  # so that 10 comes after 9
    fold_of_row, distinct = pd.factorize(values, sort=True)
    if len(distinct) < 2:
        raise UserError(f"{source} puts every row in fold {distinct[0]}: name at least two folds")
    return [
        (np.flatnonzero(fold_of_row != fold), np.flatnonzero(fold_of_row == fold))
        for fold in range(len(distinct))
    ]


def _classes(data: Data, folds: str) -> np.ndarray:
    """Class positions, int64 (train rows,)."""
    if not data.classes:
        raise UserError(
            f"{folds} folds need classes, but the target holds numbers: use `shuffled` (or "
            "`grouped`) folds instead"
        )
    outside = np.flatnonzero(~((data.target >= 0) & (data.target < len(data.classes))))
    if len(outside):
        raise UserError(
            f"the target of row {outside[0]} is {data.target[outside[0]]}, which is no position "
            f"in the {len(data.classes)} `classes`: correct `load`"
        )
    return data.target.astype(np.int64)


def _enough(count: int, what: str, folds: int) -> None:
    if count < folds:
        raise UserError(f"there are {count} {what}, fewer than folds={folds}: {_fewer(count)}")


def _enough_of_each_class(data: Data, folds: int) -> None:
    """Every class that occurs has a row for each fold; one that never does is `split`'s to name."""
    sizes = np.bincount(_classes(data, "stratified"), minlength=len(data.classes))
    scarce = np.where(sizes > 0, sizes, len(data.target) + 1).argmin()
    if 0 < sizes[scarce] < folds:
        raise UserError(
            f"class {data.classes[scarce]!r} has {sizes[scarce]} training rows, fewer than the "
            f"{folds} that stratified folds need: {_fewer(int(sizes[scarce]))}"
        )


def _fewer(count: int) -> str:
    return f"set folds={count}" if count >= 2 else "add rows, or choose other folds"


def _every_class(data: Data, train: Rows, number: int) -> None:
    target = _classes(data, "classification")
    absent = np.setdiff1d(np.arange(len(data.classes)), target[train])
    if len(absent) == 0:
        return
    name = data.classes[absent[0]]
    if not (target == absent[0]).any():
        raise UserError(
            f"class {name!r} has no training row at all: take it out of `classes`, or find its rows"
        )
    raise UserError(
        f"fold {number} has no training row of class {name!r}: use stratified folds, "
        "or a different number of them, as in folds=3"
    )


def _checked(data: Data, fold: Fold, number: int) -> Fold:
    if len(fold) != 2:
        raise UserError(
            f"fold {number} has {len(fold)} parts: give the pair (train_rows, valid_rows)"
        )
    train = _part(fold[0], f"the training rows of fold {number}", len(data.train))
    valid = _part(fold[1], f"the validation rows of fold {number}", len(data.train))
    shared = np.intersect1d(train, valid, assume_unique=True)
    if len(shared):
        raise UserError(
            f"row {shared[0]} is both trained on and validated in fold {number}: "
            "leave it out of one part"
        )
    if data.classes and not isinstance(fold, _Narrowed):
        _every_class(data, train, number)
    return train, valid


def _part(positions: Rows, what: str, rows: int) -> Rows:
    """`positions` as int64 in rising order, each in 0…rows - 1 and given once."""
    positions = np.asarray(positions)
    if positions.ndim != 1 or (len(positions) and positions.dtype.kind not in "iu"):
        raise UserError(
            f"{what} have type {positions.dtype} and shape {positions.shape}: give positions of "
            "rows, as np.flatnonzero(mask) does"
        )
    if len(positions) == 0:
        raise UserError(f"{what} are none: change the folds, as in folds=3, so that none is empty")
    positions = np.sort(positions.astype(np.int64))
    if positions[0] < 0 or positions[-1] >= rows:
        wrong = positions[0] if positions[0] < 0 else positions[-1]
        raise UserError(f"{what} name row {wrong}, but rows go from 0 to {rows - 1}: correct them")
    twice = positions[1:][np.diff(positions) == 0]
    if len(twice):
        raise UserError(f"{what} name row {twice[0]} twice: name it once")
    return positions


def _drawn(data: Data, count: int, seed: int) -> np.ndarray:
    """Which rows are drawn, bool (train rows,)."""
    rows = len(data.train)
    if count < 1:
        raise UserError(f"{count} rows are too few for a look: take at least 1")
    target = _classes(data, "stratified") if data.classes else np.zeros(rows, np.int64)
    order = np.random.default_rng(seed).permutation(rows)
    rank = pd.Series(order).groupby(target[order]).cumcount().to_numpy()
    # The n-th row of a class of size s comes at n / s, so that every prefix has all classes'
    # shares; the first two of each come before all else.
    turn = np.maximum(rank - 1, 0) / np.bincount(target)[target[order]]
    drawn = np.zeros(rows, dtype=bool)
    drawn[order[np.argsort(turn, kind="stable")[:count]]] = True
    return drawn
