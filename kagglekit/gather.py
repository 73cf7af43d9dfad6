"""Answers gathered batch by batch, and kept on disk: a killed prediction goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import files, signals
from .errors import UserError
from .pace import Pace

Batches = Callable[[int], Iterator[np.ndarray]]  # first batch -> (views, batch rows, ...) each
# first batch -> those of several members each, of which some may have no rows any more
Abreast = Callable[[int], Iterator[Sequence[np.ndarray]]]


def gather(batches: Batches, rows: int, path: Path, seconds: float) -> np.ndarray:
    """(views, rows, ...) of all batches; those that `path` holds already are not computed again.

    `path` is written every so many seconds, before a signal is obeyed, and at the end.
    """

    def alone(first: int) -> Iterator[Sequence[np.ndarray]]:
        for batch in batches(first):
            yield [batch]

    (done,) = _gathered(alone, {path: rows}, seconds)
    return np.concatenate(done, axis=1)


def gather_abreast(batches: Abreast, rows: Mapping[Path, int], seconds: float) -> None:
    """`gather` of several members, for each where its answers are kept and to how many rows.

    What not all of them have kept is computed again, for all.
    """
    _gathered(batches, rows, seconds)


def _gathered(batches: Abreast, rows: Mapping[Path, int], seconds: float) -> list[list[np.ndarray]]:
    """The batches of each member, which are then on the disk too."""
    done = [_read(path, wanted) for path, wanted in rows.items()]
    pairs = zip(done, rows.values(), strict=True)
    if all(some and sum(batch.shape[1] for batch in some) == wanted for some, wanted in pairs):
        return done
    least = min(map(len, done))
    done = [some[:least] for some in done]
    pace = Pace(seconds)

    def write() -> None:
        for path, some in zip(rows, done, strict=True):
            _write(path, some)

    try:
        for each in batches(least):
            for some, batch in zip(done, each, strict=True):
                some.append(batch)
            signals.deliver()  # in a thread beside the main one, which alone is interrupted
            if pace.due:
                with pace.saving():
                    write()
    except signals.Interrupted:
        write()
        raise
    write()
    return done


def _write(path: Path, done: list[np.ndarray]) -> None:
    if done:
        sizes = np.array([batch.shape[1] for batch in done])
        files.write_arrays(path, answers=np.concatenate(done, axis=1), sizes=sizes)


def _read(path: Path, rows: int) -> list[np.ndarray]:
    """The batches gathered before; none where they are damaged or are not of these rows."""
    if not path.exists():
        return []
    try:
        saved = files.read_arrays(path)
        answers, sizes = saved["answers"], saved["sizes"]
        sound = sizes.ndim == 1 and sizes.dtype.kind == "i" and bool((sizes >= 0).all())
        sound = sound and answers.ndim >= 2 and sizes.sum() == answers.shape[1] <= rows
    except (UserError, KeyError):
        sound = False
    if not sound:
        logging.getLogger("kagglekit").warning("%s is damaged and is ignored", path)
        return []
    return np.split(answers, np.cumsum(sizes)[:-1], axis=1)
