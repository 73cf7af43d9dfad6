"""Locks between processes: one trains a run, builds a cache or uses the leaderboard at a time.

A lock belongs to a process, not to a file: the system takes it back when its owner dies, however
that happens. Processes that the owner forked (workers that decode images) do not keep it alive.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

HOME = ".locks"  # beside what is locked: a folder may be renamed or removed under its lock

_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 0.5  # what takes no longer is not worth a line on the screen
_SIZE = 1 << 16  # bytes read of a lock file, whatever somebody put there
# Some network file systems have no locks. There the user alone keeps two processes apart.
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class Owner:
    """The process that has a lock; every field is empty where it could not be read."""

    pid: int = 0
    host: str = ""
    since: str = ""  # ISO time in UTC
    command: str = ""

    def describe(self) -> str:
        """`process 123 on HOST since 12:01`, in local time, with the day where it is not today."""
        if not self.pid:
            return "another process"
        text = f"process {self.pid} on {self.host}"
        with suppress(ValueError):
            since = datetime.fromisoformat(self.since).astimezone()
            today = since.date() == datetime.now().astimezone().date()
            text += f" since {since:%H:%M}" if today else f" since {since:%Y-%m-%d %H:%M}"
        return text


@dataclass
class Lock:
    """The lock on `target`, in a file that says who has it; use it in a `with` once it is taken."""

    target: Path
    command: str = ""
    supported: bool = True  # False where the file system has no locks
    signed: bool = True  # False for a look at who has it, which leaves no trace
    _pid: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.path = path(self.target)
        self._lock = FileLock(self.path, fallback_to_soft=False, on_acquired=self._sign)

    def take(self) -> bool:
        """Whether it is this process's now; False where another one has it. Does not wait.

        Raises OSError where the lock file cannot be made.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self.supported = False
        self._pid = os.getpid()
        return True

    def wait(self, say: Callable[[Owner], None], seconds: float | None = None) -> None:
        """Take it; `say` once who has it, if that lasts. Raises TimeoutError after `seconds`."""
        began, told = time.monotonic(), False
        while not self.take():
            waited = time.monotonic() - began
            if seconds is not None and waited > seconds:
                raise TimeoutError(f"{_read(self.path).describe()} uses {self.target}")
            if not told and waited > _PATIENCE_SECONDS:
                told = True
                say(_read(self.path))
            time.sleep(_POLL_SECONDS)  # short, so that Ctrl-C is obeyed at once

    def release(self, keep: bool = False) -> None:
        """Give it back, its file removed; a forked copy of this process has nothing to give."""
        if self._pid != os.getpid():
            return
        self._pid = 0
        if not keep:
            # Removed while it is held: whoever opened it meanwhile sees that its name is gone, and
            # takes the next one. Windows removes no open file; filelock does so afterwards.
            with suppress(OSError):
                self.path.unlink()
        self._lock.release()

    def _sign(self, handle: int) -> None:
        """Write down who has the lock, from byte 1 on: Windows hides byte 0 while it is held."""
        if not self.signed:
            return
        owner = Owner(os.getpid(), socket.gethostname(), _now(), self.command)
        with suppress(OSError):  # a full disk keeps nobody from locking
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, b"\n" + json.dumps(asdict(owner)).encode())

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def path(target: Path) -> Path:
    """The lock file of `target`: `.locks/<name>.lock` beside it."""
    return target.parent / HOME / f"{target.name}.lock"


def held(run: Path, command: str, say: Callable[[str], None]) -> Lock:
    """The lock on a run's folder, for a `with`; while another process has it, say so and wait.

    Raises OSError where the lock file cannot be made.
    """

    def tell(owner: Owner) -> None:
        say(
            f"run {run.name} is being trained by {owner.describe()}: waiting for it "
            "(Ctrl-C stops waiting)"
        )

    lock = Lock(run, command)
    lock.wait(tell)
    if not lock.supported:
        say(f"no locks on the file system of {run.parent}: train no run of it twice at once")
    return lock


def exclusive(target: Path, seconds: float | None = None) -> Lock:
    """The lock on anything that is used for moments, waited for without a word.

    Raises TimeoutError after `seconds`, OSError where the lock file cannot be made.
    """
    lock = Lock(target)
    lock.wait(lambda owner: None, seconds)
    return lock


def owner(target: Path) -> Owner | None:
    """Who has the lock on `target` at this moment; None where nobody has."""
    if not path(target).is_file():
        return None
    lock = Lock(target, signed=False)
    try:
        if lock.take():
            # empty: its owner removed it since, and this look has made it again
            lock.release(keep=lock.path.stat().st_size > 0)
            return None
    except OSError:  # somebody else's folder: a file that its owner did not remove is in use
        pass
    return _read(lock.path)


def visiting(folder: Path, command: str) -> Lock:
    """A lock that any number of processes have on `folder` at once, so that none removes it."""
    with exclusive(folder / HOME / "door"):
        lock = Lock(folder / f"visitor-{os.getpid()}-{secrets.token_hex(4)}", command)
        lock.take()
    return lock


@contextmanager
def closed(folder: Path) -> Iterator[list[Owner]]:
    """Whoever is visiting `folder`; no other process comes in before this ends."""
    with exclusive(folder / HOME / "door"):
        names = [file.name.removesuffix(".lock") for file in (folder / HOME).glob("visitor-*.lock")]
        visitors = [owner(folder / name) for name in names]
        yield [visitor for visitor in visitors if visitor is not None]


def stale(folder: Path) -> list[Path]:
    """What is locked in `folder` by lock files whose owners died."""
    found = sorted((folder / HOME).glob("*.lock"))
    targets = [folder / file.name.removesuffix(".lock") for file in found]
    return [target for target in targets if path(target).is_file() and owner(target) is None]


def discard(file: Path) -> None:
    """Remove a lock file, unless a process has it."""
    lock = Lock(file.parent.parent / file.name.removesuffix(".lock"))
    if lock.take():
        lock.release()


def _read(file: Path) -> Owner:
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        try:
            os.lseek(handle, 1, os.SEEK_SET)
            told = json.loads(os.read(handle, _SIZE))
        finally:
            os.close(handle)
        return Owner(int(told["pid"]), *(str(told[name]) for name in ("host", "since", "command")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Owner()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
