"""Types `kagglekit` commands into processes of their own, which die of SIGKILL where a test says.

One process imports everything, and forks a fresh one for every command: a real process with real
files, sockets and signals, which starts in milliseconds. `python -m tests.typist` is that process.
"""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing.util
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
SECONDS = 90  # after which a command hangs
# what a process does just before one of these can be the last thing it did
EVENTS = ("os.rename", "socket.connect", "time.sleep", "os.remove")


# what a command may come to import, so that no process has to do it again
IMPORTED = (
    "albumentations", "encodings.cp437", "encodings.utf_8_sig", "jinja2.loaders",
    "kagglesdk.competitions.types.competition_api_service", "markupsafe", "netrc",
    "pandas.io.formats.csvs", "requests", "rich._emoji_codes", "rich.pager", "rich.progress",
    "rich.table", "safetensors.torch", "sklearn.model_selection", "sqlite3", "tests.children",
    "tests.miniatures", "tests.toys", "torch._dynamo",
    *(f"kagglekit.{path.stem}" for path in (ROOT / "kagglekit").glob("[!_]*.py")),
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended; `code` is negative for the signal that killed it."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last line on stderr, after what was told on the way: one sentence."""
        assert "Traceback" not in self.err, self.err
        line = self.err.splitlines()[-1]
        assert line.startswith("kagglekit: "), self.err
        return line.removeprefix("kagglekit: ")


@dataclass(frozen=True)
class Order:
    """A command to type: where, in which environment, and what its process does before."""

    arguments: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]
    before: Callable[[], None] | None
    at: int | None


class Typist:
    """A process that types; `close` it in the end."""

    def __init__(self) -> None:
        self.pid = 0  # of the command that runs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.typist"], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._orders, self._reports = self.process.stdin, self.process.stdout

    def type(
        self,
        *arguments: str,
        at: int | None = None,
        before: Callable[[], None] | None = None,
        then: Callable[[int], None] | None = None,
        **environment: str,
    ) -> Ended:
        """Run a command to its end, or to its death just before event number `at` (from 1).

        It has the environment of the test, and more. `before` runs in its process, `then` here, as
        soon as it runs, with the number of that process.
        """
        whole = {**os.environ, **environment}
        pickle.dump(Order(arguments, os.getcwd(), whole, before, at), self._orders)
        self._orders.flush()
        self.pid = pid = pickle.load(self._reports)
        hangs = threading.Event()
        watch = threading.Timer(SECONDS, lambda: (hangs.set(), self.kill()))
        watch.start()
        try:
            if then is not None:
                then(pid)
        except BaseException:
            self.kill()
            raise
        finally:
            ended: Ended = pickle.load(self._reports)
            watch.cancel()
            self.pid = 0
        assert not hangs.is_set(), f"{arguments} hangs"
        return ended

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the running command a signal, from any thread."""
        if self.pid:
            os.kill(self.pid, number)

    def close(self) -> None:
        self._orders.close()
        self.process.wait(SECONDS)
        self._reports.close()


@functools.cache
def shared() -> Typist:
    """The typist of all tests; `conftest` closes it."""
    return Typist()


def kagglekit(*typed: str, **how: Any) -> Ended:
    """Type a command, as `Typist.type` does."""
    return shared().type(*typed, **how)


# --- the process --------------------------------------------------------------------------------


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the first collection of each child writes to, and so copies, all memory
    orders, reports = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            order = pickle.load(orders)
        except EOFError:
            return
        pipes = [os.pipe(), os.pipe()]  # no files: their size may be limited, or the disk full
        child = os.fork()
        if not child:
            _run(order, [writer for _, writer in pipes])
        _report(child, reports)
        for _, writer in pipes:
            os.close(writer)
        over = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            told = [pool.submit(_all, reader, over) for reader, _ in pipes]
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            over.set()
        _report(Ended(code, *(text.result() for text in told)), reports)


def _report(what: object, reports: IO[bytes]) -> None:
    pickle.dump(what, reports)
    reports.flush()


def _all(reader: int, over: threading.Event) -> str:
    """What a process writes; workers that outlive it may keep the pipe open, and say no more."""
    parts = []
    while not over.is_set() or select.select([reader], [], [], 0)[0]:
        if select.select([reader], [], [], 0.02)[0]:
            if not (part := os.read(reader, 1 << 16)):
                break
            parts.append(part)
    os.close(reader)
    return b"".join(parts).decode()


def _run(order: Order, writers: list[int]) -> None:
    import torch

    from kagglekit import cli

    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    for writer, number in zip(writers, (1, 2), strict=True):
        os.dup2(writer, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    multiprocessing.set_start_method("fork", force=True)  # for workers, as outside of tests
    torch.set_num_threads(1)
    code = 70
    try:
        if order.before is not None:
            order.before()
        if order.at is not None:
            _mortal(order.at)
        code = cli.main(order.arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        multiprocessing.util._exit_function()  # ends workers, as at the end of an interpreter
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _mortal(at: int) -> None:
    left = [at]

    def hook(event: str, _: tuple) -> None:
        if event in EVENTS:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    # under the name by which tests pickle its classes
    importlib.import_module("tests.typist").serve()
