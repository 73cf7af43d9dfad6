"""Lanes: jobs side by side in one process, each with cores of its own, or a stream of a GPU."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from . import signals

Job = Callable[[], None]
_LAST_WAIT = 5.0  # seconds for steps to end after a second signal
_GLANCE = 0.1  # seconds: a signal that another thread was given is not seen while one waits


@dataclass(frozen=True)
class Lanes:
    """How many jobs run at a time, and how many threads of a CPU each has."""

    count: int
    threads: int

    @contextlib.contextmanager
    def one(self, place: int, device: torch.device) -> Iterator[None]:
        """The context of the calling thread: its share of the device, or of the devices.

        On GPUs lanes take turns over those that there are; what one has queued is done at its end.
        """
        if device.type == "cuda":
            index = place % torch.cuda.device_count()
            stream = torch.cuda.Stream(index)
            with torch.cuda.device(index), torch.cuda.stream(stream):
                yield
                stream.synchronize()
            return
        with threads(self.threads):
            yield


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """The context in which this thread computes with so many threads of a CPU; 0 = as it does."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(jobs: Sequence[Job], lanes: Lanes, device: torch.device) -> None:
    """Do all jobs, `lanes.count` at a time, in their order.

    The first that fails, or a signal, ends the others after the step in hand, and is raised when
    they have ended; no job is begun any more.
    """
    running = _Running(list(jobs), lanes, device)
    try:
        with signals.halting():
            running.start()
            running.wait()
    except BaseException as error:
        second = isinstance(error, signals.Interrupted) and error.amid
        running.join(_LAST_WAIT if second else math.inf)
        raise
    finally:
        if not running.alive:
            signals.resume()
            running.error = None  # it holds the frames of a lane, and these it: a cycle
        # a thread that sets its own number sets that of the matrix products of all
        torch.set_num_threads(torch.get_num_threads())


class _Running:
    """The threads that do the jobs."""

    def __init__(self, jobs: list[Job], lanes: Lanes, device: torch.device) -> None:
        self.waiting, self.lanes, self.device = jobs, lanes, device
        self.error: BaseException | None = None
        self.lock, self.ended = threading.Lock(), threading.Event()
        count = min(lanes.count, len(jobs))
        self.threads = [
            threading.Thread(target=self._lane, args=(place,), name=f"lane {place}", daemon=True)
            for place in range(count)
        ]
        self.left = count

    def start(self) -> None:
        """Let the lanes begin."""
        for thread in self.threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether a lane is still at work."""
        return any(thread.is_alive() for thread in self.threads)

    def wait(self) -> None:
        """Until all lanes have ended or one has failed; raises what that failed of."""
        while not self.ended.wait(_GLANCE):
            pass
        if self.error is not None:
            raise self.error
        self.join()

    def join(self, seconds: float = math.inf) -> None:
        """Until all lanes that have begun have ended, for so many seconds at most."""
        last = time.monotonic() + seconds
        for thread in self.threads:
            while thread.is_alive() and time.monotonic() < last:
                thread.join(_GLANCE)

    def _lane(self, place: int) -> None:
        try:
            with self.lanes.one(place, self.device):
                while (job := self._next()) is not None:
                    job()
        except signals.Interrupted:
            pass  # the main thread was told the same
        except BaseException as error:
            self.error = self.error or error
            self.ended.set()
        with self.lock:
            self.left -= 1
            if not self.left:
                self.ended.set()

    def _next(self) -> Job | None:
        with self.lock:
            signals.deliver()
            return self.waiting.pop(0) if self.waiting and self.error is None else None
