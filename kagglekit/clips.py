"""Competitions of clips: a folder a class, the film each was cut from, and what is seen in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from . import files, folders, tables, video
from .config import Config, knob
from .data import Data
from .errors import UserError
from .folds import Fold, Folds, grouped_alike
from .video import USUAL, Clip, Limits
from .views import View

Seen = TypeVar("Seen")

FILM = "source"  # the column that names the film a clip was cut from

_LAYOUT = "1"  # raise it when what is cached changes
_STILL = 128  # pixels a side of the picture that stands for a clip
_GLIMPSES, _GLIMPSE = 6, 64  # frames that clips are compared by, and pixels a side of them
_GREY = np.full((2, 64, 64, 3), 128, np.uint8)  # what is seen of a clip that cannot be decoded
_log = logging.getLogger(__name__)


def _itself(found: Any) -> Any:
    return found


@dataclass(frozen=True, kw_only=True)
class ClipsConfig(Config):
    """What becomes of clips that cannot be decoded."""

    broken: Literal["fail", "skip"] = knob(
        "fail", "a broken clip: fail and name it, or skip it: name it, learn without it"
    )


@dataclass(frozen=True)
class Clips(Data):
    """A competition whose rows are clips in files.

    | field | what |
    |---|---|
    | train_paths, test_paths | the file of each row |
    | train_digests, test_digests | of the files' content |
    | train_faults, test_faults | why a clip cannot be decoded, in a sentence; "" where it can |
    """

    train_paths: tuple[Path, ...] = ()
    test_paths: tuple[Path, ...] = ()
    train_digests: tuple[str, ...] = ()
    test_digests: tuple[str, ...] = ()
    train_faults: tuple[str, ...] = ()
    test_faults: tuple[str, ...] = ()
    limits: Limits = USUAL

    def each(self, testing: bool, see: Callable[[Clip], Seen]) -> Iterator[Seen]:
        """What `see` finds in the clip of each training row, or test row; broken ones are grey."""
        paths = self.test_paths if testing else self.train_paths
        digests = self.test_digests if testing else self.train_digests
        faults = self.test_faults if testing else self.train_faults
        rows = list(zip(paths, digests, faults, strict=True))
        return video.in_parallel(lambda row: see(self._clip(row)), rows)

    def look(self, row: int) -> np.ndarray:
        """The frames of a training row's clip, uint8 (frames, height, width, 3)."""
        at = self.train_paths[row], self.train_digests[row], self.train_faults[row]
        return self._clip(at).frames

    def stills(self) -> tuple[np.ndarray, np.ndarray]:
        """The middle frame of each clip, uint8 (rows, 3, 128, 128), of training and test rows."""
        train, test = (np.stack(list(self.each(testing, _still))) for testing in (False, True))
        return train, test

    def glimpses(self) -> tuple[np.ndarray, np.ndarray]:
        """Six frames of each clip, evenly spaced: uint8 (rows, 6, 3, 64, 64)."""
        train, test = (np.stack(list(self.each(testing, _glimpses))) for testing in (False, True))
        return train, test

    def _clip(self, row: tuple[Path, str, str]) -> Clip:
        path, digest, fault = row
        if fault:
            return Clip(_GREY, np.arange(2) / 25)
        return video.cached(path, self.limits, digest)


def _still(clip: Clip) -> np.ndarray:
    """The middle frame, squeezed into a square: uint8 (3, 128, 128)."""
    return _squares(clip.frames[len(clip.frames) // 2][None], _STILL)[0]


def _glimpses(clip: Clip) -> np.ndarray:
    """The middle frames of six parts alike, squeezed into squares: uint8 (6, 3, 64, 64)."""
    places = (2 * np.arange(_GLIMPSES) + 1) * len(clip.frames) // (2 * _GLIMPSES)
    return _squares(clip.frames[places], _GLIMPSE)


def _squares(frames: np.ndarray, side: int) -> np.ndarray:
    """uint8 (frames, height, width, 3) as (frames, 3, side, side)."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    return functional.interpolate(pixels, (side, side), mode="area").round().to(torch.uint8).numpy()


def classification(folder: Path, limits: Limits = USUAL) -> Clips:
    """Clips in `data/videos/<class>/`, test clips anywhere below `test_data`, by their names.

    The class of a clip is the folder that it lies in. The column `source` of `sources.csv`, joined
    by file name, is the film that it was cut from; without that file each clip counts as a film of
    its own, and a warning says so. The test rows are those of the sample submission, whose ids are
    file names with or without their endings.

    Every clip is decoded once and kept in the cache; of those that cannot be, `train_faults` and
    `test_faults` tell why, and `sound` decides what becomes of them.
    """
    sample = tables.sample(folder)
    id = str(sample.columns[0])
    found = {
        name: path
        for name, path in files.visible_files(folder).items()
        if path.suffix.lower() in video.SUFFIXES
    }
    testing = {name: path for name, path in found.items() if _is_test(name)}
    test_paths = _by_id(folder, testing, sample[id])
    train_paths = sorted(
        (path for name, path in found.items() if name not in testing),
        key=lambda path: (tables.natural(path.parent.name), tables.natural(path.name)),
    )
    classes, target = tables.positions(np.array([path.parent.name for path in train_paths], str))
    if train_paths and len(classes) < 2:
        raise UserError(f"{folder} has clips of one class only, {classes[0]!r}: download it again")
    train = pd.DataFrame({id: [path.name for path in train_paths]}, dtype=str)
    train[FILM] = _films(folder, id, train[id])
    parts = [_Part.of(paths, limits) for paths in (train_paths, test_paths)]
    return Clips(
        train, sample[[id]], target.astype(np.int64), sample, classes,
        train_paths=tuple(train_paths), test_paths=tuple(test_paths),
        train_digests=parts[0].digests, test_digests=parts[1].digests,
        train_faults=parts[0].faults, test_faults=parts[1].faults,
        limits=limits,
    )  # fmt: skip


def sound(folds: Folds) -> Folds:
    """`folds` whose training parts lack broken clips where `broken=skip`; they are still answered.

    With `broken=fail` a broken clip, also one of the test rows, raises UserError.
    """

    def checked(data: Data, config: Config) -> Iterable[Fold]:
        assert isinstance(data, Clips)
        faults = [fault for fault in (*data.train_faults, *data.test_faults) if fault]
        if faults and getattr(config, "broken", "fail") == "fail":
            more = f" ({len(faults) - 1} more are broken)" if len(faults) > 1 else ""
            raise UserError(f"{faults[0]}, or go on without it: broken=skip{more}")
        for fault in faults:
            _log.warning("%s; it is skipped", fault)
        keep = np.array([not fault for fault in data.train_faults], bool)
        for train, valid in folds(data, config):
            yield np.asarray(train)[keep[train]], valid

    # what is resampled, and shown group by group, is what these folds keep together
    return grouped_alike(checked, folds)


def kept(
    data: Clips,
    testing: bool,
    name: str,
    see: Callable[[Clip], Seen],
    then: Callable[[Seen], dict[str, np.ndarray]] = _itself,
) -> dict[str, np.ndarray]:
    """What `see` finds in every clip of a part, stacked: each array is (rows, ...).

    It is kept in the cache by the content of the clips and by `name`, which has to name all else
    that it depends on. `see` runs in several threads; `then` goes on with what it found in this
    one, as a model does that has threads of its own.
    """
    digests = data.test_digests if testing else data.train_digests
    faults = data.test_faults if testing else data.train_faults
    parts = [_LAYOUT, name, str(data.limits), *digests, *(str(bool(fault)) for fault in faults)]
    key = blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def build() -> dict[str, np.ndarray]:
        rows = [then(found) for found in data.each(testing, see)]
        return {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}

    return files.cached_arrays(folders.cache(), f"seen-{key}", build)


@dataclass(frozen=True)
class _Part:
    digests: tuple[str, ...]
    faults: tuple[str, ...]

    @classmethod
    def of(cls, paths: Sequence[Path], limits: Limits) -> _Part:
        """Decode what the cache does not have yet."""
        digests = tuple(files.file_digest(path) for path in paths)
        key = blake2b("\n".join([_LAYOUT, str(limits), *digests]).encode(), digest_size=16)

        def build() -> dict[str, np.ndarray]:
            pairs = list(zip(paths, digests, strict=True))
            faults = list(video.in_parallel(lambda pair: _fault(pair[0], limits, pair[1]), pairs))
            return {"broken": np.array([bool(fault) for fault in faults], bool)}

        broken = files.cached_arrays(folders.cache(), f"clips-{key.hexdigest()}", build)["broken"]
        # told anew, since the same content may lie under another name by now
        faults = (
            _fault(path, limits, digest) if wrong else ""
            for path, digest, wrong in zip(paths, digests, broken.tolist(), strict=True)
        )
        return cls(digests, tuple(faults))


def _fault(path: Path, limits: Limits, digest: str) -> str:
    """Why a clip cannot be decoded, or nothing; what can be is then in the cache."""
    try:
        video.cached(path, limits, digest)
    except UserError as error:
        return str(error)
    return ""


def _is_test(name: str) -> bool:
    return any(part.lower().startswith("test") for part in name.split("/")[:-1])


def _by_id(folder: Path, found: dict[str, Path], ids: pd.Series) -> list[Path]:
    by_name = {path.stem: path for path in found.values()}
    by_name |= {path.name: path for path in found.values()}
    missing = [id for id in ids if id not in by_name]
    if missing:
        raise UserError(
            f"{folder} has no test clip {missing[0]!r}, which the sample submission asks for:"
            " download it again"
        )
    return [by_name[id] for id in ids]


def _films(folder: Path, id: str, names: pd.Series) -> pd.Series:
    """The film of each training clip."""
    found = [p for n, p in files.visible_files(folder).items() if n.endswith("sources.csv")]
    if not found:
        if len(names):
            _log.warning("%s has no sources.csv: each clip counts as a film of its own", folder)
        return names
    table = tables.words(found[0])
    if list(table.columns[:1]) != [id] or FILM not in table.columns:
        raise UserError(f"{found[0]} wants the columns {id!r} and {FILM!r}")
    films = dict(zip(table[id], table[FILM], strict=True))
    films |= {Path(name).stem: film for name, film in list(films.items())}
    told = [films.get(name, films.get(Path(name).stem, "")) for name in names]
    if "" in told:
        name = names.iloc[told.index("")]
        raise UserError(f"{found[0]} names no film of {name}: add a row for it")
    return pd.Series(told, dtype=str)


# --- clips as pictures with a channel a frame, so that all frames move alike --------------------


@dataclass(frozen=True)
class jittered:
    """One frame, drawn anew each time, of each of `parts` equal parts of a clip (batch, frames, …).

    To the engine a clip of grey frames is a picture whose channels are the frames. So what
    `augment` moves, crops or mirrors it does alike to all frames of a clip.
    """

    parts: int

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """(batch, parts, h, w), in order."""
        each = inputs.shape[1] // self.parts
        drawn = torch.randint(
            each, (len(inputs), self.parts), device=generator.device, generator=generator
        )
        positions = drawn + each * torch.arange(self.parts, device=inputs.device)
        return inputs[torch.arange(len(inputs), device=inputs.device)[:, None], positions]


def offset(parts: int, place: float) -> View:
    """The view of the frames at `place`, 0…1, of each of `parts` equal parts of a clip."""
    return View(f"offset({place:g})", partial(_at, parts=parts, place=place))


def _at(inputs: Tensor, parts: int, place: float) -> Tensor:
    each = inputs.shape[1] // parts
    return inputs[:, min(int(place * each), each - 1) :: each]
