"""When to save: every so many seconds, and never for more than a fiftieth of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_COST = 0.02  # at most this share of the time goes into saving


class Pace:
    """Says when the next save is due; `seconds=0` is at every chance, whatever it costs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the pause since the last save has been long enough."""
        return time.monotonic() - self.last >= self.seconds

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A save: what it costs makes the next pause longer where saving is slow."""
        began = time.monotonic()
        yield
        self.last = time.monotonic()
        if self.seconds:
            self.seconds = max(self.seconds, (self.last - began) / _COST)
