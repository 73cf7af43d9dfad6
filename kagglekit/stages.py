"""Which stage of its work a process is in, told to a process that watches it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["load", "train", "save", "predict", "write"]


class _Entered(threading.local):
    """The stages that a thread is in, the inmost last."""

    def __init__(self) -> None:
        self.stages = ["start"]


_entered = _Entered()


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Be in the stage `name`, and afterwards again in the one before; each thread in its own.
    Each change appends a line to the file, or pipe, that `$KAGGLEKIT_STAGES` names. Without that
    variable nothing is told, and nothing is ever read back: no answer depends on it.
    """
    _entered.stages.append(name)
    _tell()
    try:
        yield
    finally:
        _entered.stages.pop()
        _tell()


def go_on(name: Stage) -> None:
    """Be in the stage `name` instead of the one that this thread is in."""
    _entered.stages[-1] = name
    _tell()


def _tell() -> None:
    path = os.environ.get("KAGGLEKIT_STAGES")
    if path:
        with open(path, "ab", buffering=0) as watched:  # one write: lines are never mixed
            watched.write(f"{_entered.stages[-1]}\n".encode())
