"""Reads small pictures of any usual layout into one uint8 array: pixel columns, folders, idx."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from . import files, folders, images, tables
from .data import Data
from .errors import UserError

_LAYOUT = "2"  # raise it when what is cached changes
_HARMLESS = 1 << 24  # bytes of pictures that a machine has memory for, from however few
_IDX = {"train": "train", "test": "t10k"}  # how the two parts of an idx download are named


def classification(folder: Path, channels: images.Channels = 1) -> Data:
    """Pictures and their classes; inputs are uint8 (rows, channels, height, width).

    | layout | train | test |
    |---|---|---|
    | pixel columns | train.csv: id, label, one column a pixel, square, row by row | test.csv |
    | folders | `train/<class>/*` | `test/*`, named by id |
    | idx (.gz) | `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` | `t10k-images-idx3-ubyte` |

    Every layout has a sample submission of two columns, id and label; idx files, which hold no
    ids, are in its order. A train.csv beside folders tells more of their pictures, such as the
    person, as text. Pictures take the size of the first. What was read is cached by the content of
    the files, so that the next time takes a fraction of a second.

    Raises UserError for a layout that is none of these, and for broken files.
    """
    key = f"pictures-{_LAYOUT}-{channels}-{files.fingerprint(folder, folders.cache())}"
    arrays = files.cached_arrays(folders.cache(), key, lambda: _read(folder, channels))
    sample = pd.DataFrame(arrays["sample"], columns=arrays["sample_columns"], dtype=str)
    id = str(sample.columns[0])
    told = pd.DataFrame(arrays["told"], columns=arrays["told_columns"], dtype=str)
    return Data(
        train=pd.DataFrame({id: arrays["train_ids"]}, dtype=str).join(told),
        test=pd.DataFrame({id: arrays["test_ids"]}, dtype=str),
        target=arrays["target"],
        sample=sample,
        classes=tuple(arrays["classes"].tolist()),
        train_inputs=arrays["train"],
        test_inputs=arrays["test"],
    )


def _read(folder: Path, channels: images.Channels) -> dict[str, np.ndarray]:
    if _idx(folder, "test", "images"):
        data = _read_idx(folder)
    elif _picture_folder(folder, "test"):
        data = _read_folders(folder, channels)
    elif any(folder.rglob("test.csv")):
        data = _read_columns(folder)
    else:
        raise UserError(
            f"{folder} holds no pictures: neither test.csv with pixel columns, nor a folder test/ "
            "of image files, nor t10k-images-idx3-ubyte"
        )
    assert data.train_inputs is not None
    assert data.test_inputs is not None
    told = data.train.drop(columns=data.id, errors="ignore")
    return {
        "told": told.to_numpy(str),
        "told_columns": np.array(told.columns, dtype=str),
        "train": data.train_inputs,
        "test": data.test_inputs,
        "target": data.target,
        "classes": np.array(data.classes, dtype=str),
        "train_ids": data.split(np.arange(len(data.target)), "valid").ids,
        "test_ids": data.test[data.id].to_numpy(str),
        "sample": data.sample.to_numpy(str),
        "sample_columns": np.array(data.sample.columns, dtype=str),
    }


# --- pixel columns ------------------------------------------------------------------------------


def _read_columns(folder: Path) -> Data:
    data = tables.classification(folder)
    pixels = [name for name in data.test.columns if name != data.id]
    side = math.isqrt(len(pixels))
    if side * side != len(pixels) or side < 2:
        raise UserError(
            f"{folder / 'test.csv'} has {len(pixels)} pixel columns, which make no square picture"
        )
    parts = {
        "train_inputs": _squares(data.train, pixels, side, "train.csv"),
        "test_inputs": _squares(data.test, pixels, side, "test.csv"),
    }
    known = [data.id] if data.id in data.train.columns else []
    return Data(
        data.train[known], data.test[[data.id]], data.target, data.sample, data.classes, **parts
    )


def _squares(table: pd.DataFrame, pixels: list[str], side: int, name: str) -> np.ndarray:
    values = table[pixels].to_numpy(np.float64)  # a cell of many digits makes a column of objects
    wrong = (values < 0) | (values > 255) | (values != np.round(values))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"{name}, row {row + 1}, column {pixels[column]}: {values[row, column]:g} is no pixel "
            "value, a whole number from 0 to 255"
        )
    return values.astype(np.uint8).reshape(-1, 1, side, side)


# --- folders of files ---------------------------------------------------------------------------


def _picture_folder(folder: Path, part: str) -> Path | None:
    found = sorted(path for path in folder.rglob(part) if path.is_dir())
    return found[0] if found else None


def _read_folders(folder: Path, channels: images.Channels) -> Data:
    sample = tables.sample(folder)
    id, test_folder = str(sample.columns[0]), _picture_folder(folder, "test")
    train_folder = _picture_folder(folder, "train")
    assert test_folder is not None
    test_paths = _by_id(test_folder, sample[id])
    paths, target, classes = (
        images.folder_classes(train_folder) if train_folder else ([], np.zeros(0, np.int64), ())
    )
    size = _common_size([*paths[:1], *test_paths[:1]], channels)
    train = pd.DataFrame({id: [path.stem for path in paths]}, dtype=str)
    about = sorted(folder.rglob("train.csv"), key=lambda path: len(path.parts))
    if paths and about:
        labels = [classes[position] for position in target]
        train = train.join(_told(about[0], sample, paths, labels))
    return Data(
        train=train,
        test=sample[[id]],
        target=target,
        sample=sample,
        classes=tuple(classes),
        train_inputs=_stack(paths, channels, size),
        test_inputs=_stack(test_paths, channels, size),
    )


def _told(path: Path, sample: pd.DataFrame, paths: list[Path], labels: list[str]) -> pd.DataFrame:
    """What a train.csv tells of the training pictures beside id and label, joined by id, as text.

    A picture without a row, or whose row names another class than its folder, raises UserError.
    """
    table = tables.words(path)
    id, label = str(sample.columns[0]), str(sample.columns[1])
    if id not in table.columns:
        raise UserError(f"{path} has no column {id!r}, the id of the sample submission")
    table.index = pd.Index(table[id])
    if table.index.has_duplicates:
        raise UserError(f"{path} has the id {table[id][table[id].duplicated()].iloc[0]!r} twice")
    names = [file.name if file.name in table.index else file.stem for file in paths]
    for name, file, known in zip(names, paths, labels, strict=True):
        if name not in table.index:
            raise UserError(f"{path} has no row for {file}: add it, or remove the picture")
        if label in table.columns and table.at[name, label] != known:
            raise UserError(
                f"{path} says {table.at[name, label]!r} of {id} {name!r}, but its picture lies in "
                f"{file.parent}: mend one of them"
            )
    more = table.loc[names].drop(columns=[id, label], errors="ignore")
    return more.reset_index(drop=True)


def _by_id(folder: Path, ids: pd.Series) -> list[Path]:
    """The picture of each id, which is a file's name with or without its ending."""
    found = {path.name: path for path in sorted(folder.rglob("*")) if path.is_file()}
    found |= {path.stem: path for path in found.values()}
    missing = [id for id in ids if id not in found]
    if missing:
        raise UserError(f"{folder} has no picture for id {missing[0]} of the sample submission")
    return [found[id] for id in ids]


def _common_size(paths: list[Path], channels: images.Channels) -> tuple[int, int]:
    if not paths:
        raise UserError("the download holds no pictures")
    height, width, _ = images.read(paths[0], channels).shape
    return height, width


def _stack(paths: list[Path], channels: images.Channels, size: tuple[int, int]) -> np.ndarray:
    _refuse_too_many(len(paths), channels, size)
    stacked = np.zeros((len(paths), channels, *size), np.uint8)
    for number, path in enumerate(paths):
        stacked[number] = images.read(path, channels, size).transpose(2, 0, 1)
    return stacked


def _refuse_too_many(rows: int, channels: int, size: tuple[int, int]) -> None:
    """Refuse pictures that memory has no room for, before it is full."""
    import psutil

    needed, free = rows * channels * size[0] * size[1], psutil.virtual_memory().available
    if needed > max(free // 2, _HARMLESS):
        raise UserError(
            f"{rows:,} pictures of {size[1]:,} x {size[0]:,} pixels, the size of the first, take "
            f"{needed / 2**30:,.0f} GiB, and {free / 2**30:,.0f} are free: make them smaller"
        )


# --- idx files (yann.lecun.com/exdb/mnist) ------------------------------------------------------


def _idx(folder: Path, part: str, what: str) -> Path | None:
    found = sorted(folder.rglob(f"{_IDX[part]}-{what}-idx*-ubyte*"))
    return found[0] if found else None


def _read_idx(folder: Path) -> Data:
    sample = tables.sample(folder)
    test_path, train_path = _idx(folder, "test", "images"), _idx(folder, "train", "images")
    assert test_path is not None
    test = _idx_array(test_path, 3)[:, None]
    if len(test) != len(sample):
        raise UserError(
            f"{test_path} holds {len(test)} pictures, but the sample submission has "
            f"{len(sample)} rows: they must be the same rows in the same order"
        )
    labels_path = _idx(folder, "train", "labels")
    train, labels = test[:0], np.zeros(0, np.uint8)
    if train_path is not None and labels_path is not None:
        train, labels = _idx_array(train_path, 3)[:, None], _idx_array(labels_path, 1)
        if train.shape[1:] != test.shape[1:]:
            raise UserError(
                f"{train_path} holds pictures of {train.shape[2:]} pixels, {test_path.name} of"
                f" {test.shape[2:]}: download both again"
            )
        if len(train) != len(labels):
            raise UserError(
                f"{train_path} holds {len(train)} pictures, but {labels_path.name} {len(labels)} "
                "labels: download both again"
            )
    classes, target = tables.positions(labels.astype(str))
    return Data(
        train=pd.DataFrame(index=range(len(train))),
        test=sample[[str(sample.columns[0])]],
        target=target,
        sample=sample,
        classes=classes,
        train_inputs=train,
        test_inputs=test,
    )


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file: a magic number with the dimensions' count, sizes, data."""
    head = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            start = handle.read(head)
            shape = [int(side) for side in np.frombuffer(start, ">u4", dimensions, offset=4)]
            size = math.prod(shape)
            if start[:4] != bytes([0, 0, 8, dimensions]) or not size:
                raise ValueError
            if files.is_bomb(path.stat().st_size, size, _HARMLESS):
                raise UserError(f"{path} claims {size:,} pixels, too many for its size: remove it")
            content = handle.read(size + 1)  # no more, however much a gzip would unpack to
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error):
        raise UserError(f"{path} is no sound idx file of bytes: download it again") from None
