"""Ctrl-C and SIGTERM: obeyed at once, or at the end of the step in hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The process was told to end, by a person (SIGINT) or by a system (SIGTERM)."""

    def __init__(self, number: int, amid: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.amid = amid  # a step, which is only half done


class _Waiting:
    """How many steps are in hand (they may be nested), and the signal that came meanwhile."""

    steps = 0  # of the main thread, which alone gets signals
    number: int | None = None
    halted = False  # other threads are to end after the step in hand


@contextmanager
def handled() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Interrupted`; elsewhere than in the main thread, do nothing."""
    if not _is_main():
        yield
        return
    before = {number: signal.signal(number, _arrive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _Waiting.number = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """A step that is finished first; the end of the outermost one raises what came meanwhile.

    A second signal does not wait.
    """
    if not _is_main():
        yield
        deliver()
        return
    _Waiting.steps += 1
    try:
        yield
    finally:
        _Waiting.steps -= 1
    deliver()


@contextmanager
def halting() -> Iterator[None]:
    """Wait here for other threads: what ends this wait early ends them after the step in hand."""
    try:
        with deferred():
            yield
    except BaseException:
        _Waiting.halted = True
        raise


def resume() -> None:
    """The threads that were halted have ended."""
    _Waiting.halted = False


def pending() -> bool:
    """Whether a signal waits for the end of the step."""
    return _Waiting.number is not None or (_Waiting.halted and not _is_main())


def deliver() -> None:
    """Raise the signal that waits, if there is one and no step is in hand."""
    if not _is_main():
        if pending():
            raise Interrupted(_Waiting.number or signal.SIGTERM)
        return
    if _Waiting.number is not None and not _Waiting.steps:
        number, _Waiting.number = _Waiting.number, None
        raise Interrupted(number)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _arrive(number: int, frame: Any) -> None:
    if _Waiting.steps and _Waiting.number is None:
        _Waiting.number = number
        return
    _Waiting.number = None
    raise Interrupted(number, amid=_Waiting.steps > 0)
