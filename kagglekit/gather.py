"""Answers gathered batch by batch, and kept on disk: a killed prediction goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from . import files, signals
from .errors import UserError
from .pace import Pace

Batches = Callable[[int], Iterator[np.ndarray]]  # first batch -> (views, batch rows, ...) each


def gather(batches: Batches, rows: int, path: Path, seconds: float) -> np.ndarray:
    """(views, rows, ...) of all batches; those that `path` holds already are not computed again.

    `path` is written every so many seconds, before a signal is obeyed, and at the end.
    """
    done = _read(path, rows)
    pace = Pace(seconds)
    whole = sum(batch.shape[1] for batch in done) == rows and bool(done)
    if whole:
        return np.concatenate(done, axis=1)
    try:
        for batch in batches(len(done)):
            done.append(batch)
            signals.deliver()  # in a thread beside the main one, which alone is interrupted
            if pace.due:
                with pace.saving():
                    _write(path, done)
    except signals.Interrupted:
        _write(path, done)
        raise
    _write(path, done)
    return np.concatenate(done, axis=1)


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
