"""Copies among the rows of a competition, and groups of rows that seem to be of one source."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import pandas as pd
import torch

from . import alignment, backbones, files, folders, neighbours
from .backbones import BackboneConfig
from .data import Data
from .errors import UserError
from .neighbours import Pairs

ALIKE = 0.008  # rows that chance may bring as near as two rows of one source
SAME_ROW = 0.05  # the same for near copies of a table's rows, but for all rows together

_MOMENTS = 2 / 3  # of a clip's moments, which a copy has
_MOST = 0.5  # share of the rows in one group, beyond which sources were not told apart

_FORMAT = "2"  # raise it when what is cached changes
_SIDES = (64, 128)  # pixels that a backbone sees of small pictures, and of all larger ones
_STRIDE = 32  # most backbones halve a picture five times


@dataclass(frozen=True)
class Looks:
    """What rows are compared by: the training rows, then the test rows.

    | field | shape | what |
    |---|---|---|
    | pictures | (rows, channels, height, width) uint8, or None | where rows are pictures |
    | features | (rows, numbers) float64 | a backbone's, or pixels', or a table's columns |
    | basis | | what the features are, in words |
    """

    pictures: np.ndarray | None
    features: np.ndarray
    names: tuple[str, ...]  # of a table's columns; empty for pictures
    basis: str
    train_rows: int
    glimpses: np.ndarray | None = None  # (rows, moments, channels, height, width) uint8 of clips


@dataclass(frozen=True)
class Duplicates:
    """Which rows are one, training rows first, then test rows.

    | field | joins rows that |
    |---|---|
    | exact | are equal in every pixel or column; each with the first of its kind |
    | near | are copies but for compression, tone and crop, or for noise far below the crowd's; of |
    | | clips those of which most moments of one are in the other, as also if it was cut again |
    | alike | seem to be of one source: nearer in `Looks.features` than the crowd explains |
    """

    exact: Pairs
    near: Pairs
    alike: Pairs
    rows: int
    train_rows: int

    @property
    def copies(self) -> Pairs:
        """`exact` and `near` together."""
        return neighbours.together([self.exact, self.near])

    @property
    def groups(self) -> np.ndarray:
        """A number for each row, (rows,), shared by rows that any pair joins."""
        return neighbours.clusters(self.rows, neighbours.together([self.copies, self.alike]))

    def within_train(self, found: Pairs) -> Pairs:
        """Pairs of two training rows."""
        return found.take(found.right < self.train_rows)

    def across(self, found: Pairs) -> Pairs:
        """Pairs of a training row and a test row."""
        return found.take((found.left < self.train_rows) & (found.right >= self.train_rows))


def looks(data: Data, weights: BackboneConfig | None = None) -> Looks:
    """What rows of `data` are compared by; pictures by a backbone where `weights` asks for one.

    Raises UserError where the weights are not there or do not fit.
    """
    stills = data.stills()
    if stills is None:
        return _of_numbers(data)
    train = stills[0]
    pictures = np.concatenate(stills)
    moments = data.glimpses()
    glimpses = None if moments is None else np.concatenate(moments)
    if weights is None:
        pixels = alignment.thumbnails(pictures)
        return Looks(pictures, pixels.astype(np.float64), (), "pixels", len(train), glimpses)
    seen = backbones.load(_at_a_size(weights, pictures.shape))
    found = seen.cached_features(np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)))
    basis = f"features of {seen.pretrained.model}"
    features = found[backbones.POOLED].astype(np.float64)
    return Looks(pictures, features, (), basis, len(train), glimpses)


def find(seen: Looks) -> Duplicates:
    """The copies among rows, and which seem to be of one source.

    Pictures that are copies of each other are found by their pixels, see `alignment.copies`. Of one
    source seem rows whose whitened features are closer than `ALIKE` explains; no label is asked.
    What was found is cached by content.
    """
    digest = blake2b(f"{_FORMAT}{seen.features.shape}".encode(), digest_size=16)
    for array in (seen.pictures, seen.features, seen.glimpses):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)

    def build() -> dict[str, np.ndarray]:
        found = _of_pictures(seen) if seen.pictures is not None else _of_columns(seen)
        return {
            f"{name}_{part}": getattr(pairs, part)
            for name, pairs in found.items()
            for part in ("left", "right", "distance", "expected")
        }

    saved = files.cached_arrays(folders.cache(), f"duplicates-{digest.hexdigest()}", build)
    exact, near, alike = (
        Pairs(*(saved[f"{name}_{part}"] for part in ("left", "right", "distance", "expected")))
        for name in ("exact", "near", "alike")
    )
    return Duplicates(exact, near, alike, len(seen.features), seen.train_rows)


def group_file(data: Data, groups: np.ndarray) -> bytes:
    """CSV `id,group` of the training rows, as `folds.grouped_by_file` reads it.

    `groups` are (train rows,) numbers; a row alone is a group of one.
    """
    ids = data.split(np.arange(len(data.train)), "valid").ids
    text = io.StringIO()
    table = pd.DataFrame({data.id: ids, "group": pd.factorize(groups)[0]})
    table.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue().encode()


# --- what rows look like ------------------------------------------------------------------------


def _of_numbers(data: Data) -> Looks:
    """Rows that are no pictures; UserError where they are no numbers either."""
    train, test = data.train_inputs, data.test_inputs
    if train is not None and test is not None:
        flat = np.concatenate([train, test]).reshape(len(train) + len(test), -1)
        return Looks(None, flat.astype(np.float64), (), "inputs", len(train))
    seen = _of_table(data)
    if not seen.features.shape[1]:
        raise UserError(
            "there is nothing to compare rows by: no columns but the id, and no pictures in "
            "memory; a competition whose rows look like something says so by `Data.stills()`"
        )
    return seen


def _of_table(data: Data) -> Looks:
    """Numeric columns scaled to variance one; text as one column for each of its few values."""
    names = [str(name) for name in data.test.columns if name != data.id]
    both = pd.concat([data.train[names], data.test[names]], ignore_index=True)
    columns, kept = [], []
    for name in names:
        values = both[name]
        numbers = (
            values.astype(np.float64)
            if pd.api.types.is_numeric_dtype(values)
            else pd.Series(pd.factorize(values, sort=True)[0], dtype=np.float64)
        )
        spread = float(numbers.std())
        if spread > 0:
            columns.append(((numbers - numbers.mean()) / spread).fillna(0.0).to_numpy())
            kept.append(name)
    features = np.stack(columns, 1) if columns else np.zeros((len(both), 0))
    return Looks(None, features, tuple(kept), "columns", len(data.train))


def _at_a_size(weights: BackboneConfig, shape: tuple[int, ...]) -> BackboneConfig:
    """Look at small pictures at a small size, which takes a fraction of the time."""
    if weights.image_size:
        return weights
    least, most = _SIDES
    wanted = -(-max(shape[2:]) // _STRIDE) * _STRIDE
    return replace(weights, image_size=min(max(wanted, least), most))


# --- pairs --------------------------------------------------------------------------------------


def _of_pictures(seen: Looks) -> dict[str, Pairs]:
    assert seen.pictures is not None
    exact = _equal(seen.pictures if seen.glimpses is None else seen.glimpses)
    first = _firsts(len(seen.pictures), exact)
    if seen.glimpses is None:
        near = alignment.copies(alignment.luminance(seen.pictures[first]))
    else:
        near = _of_clips(seen.glimpses[first])
    alike = neighbours.close_pairs(neighbours.whitened(seen.features[first]), ALIKE)
    if np.bincount(neighbours.clusters(len(first), alike)).max(initial=0) > _MOST * len(first):
        alike = alike.take(np.zeros(0, np.int64))  # a chain through all rows names no source
    return {"exact": exact, "near": _renumbered(near, first), "alike": _renumbered(alike, first)}


def _of_clips(glimpses: np.ndarray) -> Pairs:
    """Pairs of clips of which most moments of either that show anything are pictures of the other.

    `glimpses` are (clips, moments, channels, height, width). One scene that two clips share is no
    copy; a clip that was cut from another has all that it shows from there.
    """
    clips, moments = glimpses.shape[:2]
    grey = alignment.luminance(glimpses.reshape(-1, *glimpses.shape[2:]))
    owners = np.repeat(np.arange(clips), moments)
    frames = alignment.copies(grey, owners)
    sides = [(frames.left, frames.right), (frames.right, frames.left)]
    # each side of each pair of clips, its frames that are in the other, and the best of each
    seen = pd.DataFrame(
        {
            "clip": np.concatenate([owners[one] for one, _ in sides]),
            "other": np.concatenate([owners[other] for _, other in sides]),
            "frame": np.concatenate([one for one, _ in sides]),
            "distance": np.tile(frames.distance, 2),
            "expected": np.tile(frames.expected, 2),
        }
    )
    best = seen.groupby(["clip", "other", "frame"], as_index=False).min()
    told = best.groupby(["clip", "other"], as_index=False).agg(
        frames=("frame", "size"), distance=("distance", "median"), expected=("expected", "median")
    )
    showing = np.maximum(np.bincount(owners, alignment.shows(grey), clips), 1)
    told = told[told["frames"] >= _MOMENTS * showing[told["clip"]]]
    return neighbours.pairs(*(told[name].to_numpy() for name in ("clip", "other", "distance",
                                                                 "expected")))  # fmt: skip


def _of_columns(seen: Looks) -> dict[str, Pairs]:
    """Of a table nothing is said about sources: rows in one region are what a table is for."""
    exact = _equal(seen.features)
    first = _firsts(len(seen.features), exact)
    points = torch.from_numpy(seen.features[first])
    near = neighbours.close_pairs(points, SAME_ROW / max(1, len(points)))
    nothing = exact.take(np.zeros(0, np.int64))
    return {"exact": exact, "near": _renumbered(near, first), "alike": nothing}


def _equal(rows: np.ndarray) -> Pairs:
    """Each row that equals an earlier one, with the first such."""
    digests = [blake2b(np.ascontiguousarray(row).data, digest_size=16).digest() for row in rows]
    codes = pd.factorize(pd.Series(digests))[0]
    _, first = np.unique(codes, return_index=True)
    right = np.flatnonzero(first[codes] != np.arange(len(codes)))
    zeros = np.zeros(len(right))
    return Pairs(first[codes[right]].astype(np.int64), right.astype(np.int64), zeros, zeros)


def _firsts(rows: int, exact: Pairs) -> np.ndarray:
    """The rows without those that equal an earlier one, which would hide the crowd."""
    return np.setdiff1d(np.arange(rows), exact.right)


def _renumbered(found: Pairs, rows: np.ndarray) -> Pairs:
    return Pairs(rows[found.left], rows[found.right], found.distance, found.expected)
