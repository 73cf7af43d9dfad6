"""Types `kagglekit` commands into processes of their own, which die of SIGKILL where a test says.

One process imports everything, and forks a fresh one for every command: a real process with real
files, sockets and signals, which starts in milliseconds. `python -m tests.typist` is that process.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# what a process does just before one of these can be the last thing it did
EVENTS = ("os.rename", "socket.connect", "time.sleep", "os.remove")


# what a command may come to import, so that no process has to do it again
IMPORTED = (
    "kagglesdk.competitions.types.competition_api_service", "netrc", "requests", "rich.pager",
    "rich.progress", "rich.table", "sqlite3", "tests.miniatures", "tests.toys",
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
        assert "Traceback" not in self.err, self.err
        line = self.err.splitlines()[-1]
        assert line.startswith("kagglekit: "), self.err
        return line.removeprefix("kagglekit: ")


class Typist:
    """A process that types; use it in a `with`."""

    def __init__(self) -> None:
        self.pid = 0  # of the command that runs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.typist"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def type(
        self,
        *arguments: str,
        at: int | None = None,
        then: Callable[[], None] | None = None,
        **environment: str,
    ) -> Ended:
        """Run a command to its end, or to its death just before event number `at` (from 1).

        `then` is called as soon as it runs.
        """
        order = {"arguments": arguments, "environment": environment, "at": at, "in": os.getcwd()}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.pid = self._hear()["pid"]
        if then is not None:
            then()
        told = self._hear()
        self.pid = 0
        return Ended(told["code"], told["out"], told["err"])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the running command a signal, from any thread."""
        if self.pid:
            os.kill(self.pid, number)

    def _hear(self) -> dict:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Typist:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        said = [Path(order["in"], f".typed-{name}") for name in ("out", "err")]
        child = os.fork()
        if not child:
            _run(order, said)
        print(json.dumps({"pid": child}), flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out, err = (path.read_text() for path in said)
        print(json.dumps({"code": code, "out": out, "err": err}), flush=True)


def _run(order: dict, said: list[Path]) -> None:
    from kagglekit import cli

    os.chdir(order["in"])
    os.environ.update(order["environment"])
    for path, number in zip(said, (1, 2), strict=True):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    handle = os.open(os.devnull, os.O_RDONLY)
    os.dup2(handle, 0)
    if order["at"] is not None:
        _mortal(order["at"])
    code = 70
    try:
        code = cli.main(order["arguments"])
    finally:
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
    serve()
