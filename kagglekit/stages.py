"""Which stage of its work a process is in, told to a process that watches it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["load", "train", "save", "predict", "write"]

_current: list[str] = ["start"]


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Be in the stage `name`, and afterwards again in the one before.

    Each change appends a line to the file, or pipe, that `$KAGGLEKIT_STAGES` names. Without that
    variable nothing is told, and nothing is ever read back: no answer depends on it.
    """
    _current.append(name)
    _tell()
    try:
        yield
    finally:
        _current.pop()
        _tell()


def _tell() -> None:
    path = os.environ.get("KAGGLEKIT_STAGES")
    if path:
        with open(path, "ab", buffering=0) as watched:  # one write: lines are never mixed
            watched.write(f"{_current[-1]}\n".encode())
