"""A lock is one process's at a time, says whose, and is nobody's when that process is gone."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kagglekit import locks
from kagglekit.locks import Lock, Owner
from tests.conftest import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from kagglekit import locks
with locks.held(Path(sys.argv[1]), "kagglekit train toy", print):
    print("taken", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(target: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock on `target`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(target)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        try:
            yield process
        finally:
            process.kill()


def test_one_process_at_a_time_has_a_lock_and_the_file_says_which(tmp_path: Path) -> None:
    run = tmp_path / "line-1"
    with another_process(run) as process:
        assert not Lock(run).take()
        owner = locks.owner(run)
        assert owner is not None
        assert (owner.pid, owner.host) == (process.pid, socket.gethostname())
        assert owner.command == "kagglekit train toy"
        assert re.fullmatch(rf"process {process.pid} on \S+ since \d\d:\d\d", owner.describe())


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    run = tmp_path / "line-1"
    with another_process(run) as process:
        process.kill()
        process.wait()
        assert locks.owner(run) is None
        assert locks.stale(tmp_path) == [run]
        with locks.exclusive(run, 0.5):
            assert locks.stale(tmp_path) == []
    assert list((tmp_path / locks.HOME).iterdir()) == []


def test_a_released_lock_leaves_no_file_and_nothing_in_the_folder_it_guards(tmp_path: Path) -> None:
    run = tmp_path / "line-1"
    run.mkdir()
    with locks.held(run, "c", print):
        assert locks.path(run).exists()
        run.rename(tmp_path / "line-1~1")  # as --fresh does under the lock
    assert locks.owner(run) is None
    assert not locks.path(run).exists()
    assert list((tmp_path / "line-1~1").iterdir()) == []


def test_asking_who_has_a_lock_leaves_no_trace(tmp_path: Path) -> None:
    with locks.held(tmp_path / "a", "c", print):
        before = locks.path(tmp_path / "a").read_bytes()
        assert locks.owner(tmp_path / "a") is not None
        assert locks.path(tmp_path / "a").read_bytes() == before
    assert locks.owner(tmp_path / "b") is None
    assert list((tmp_path / locks.HOME).iterdir()) == []


def test_a_lock_given_back_while_somebody_asks_who_has_it_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "run"
    lock, take = locks.exclusive(target), Lock.take

    def late(self: Lock) -> bool:
        lock.release()
        return take(self)

    monkeypatch.setattr(Lock, "take", late)
    assert locks.owner(target) is None
    assert list((tmp_path / ".locks").iterdir()) == []


def test_who_waits_is_told_once_for_whom_and_goes_on_afterwards(tmp_path: Path) -> None:
    run = tmp_path / "line-1"
    told: list[str] = []
    first = locks.held(run, "kagglekit train toy", told.append)
    threading.Timer(1.0, lambda: first.release()).start()
    with locks.held(run, "", told.append):
        (line,) = told
    assert line.startswith(f"run line-1 is being trained by process {os.getpid()} on ")
    assert line.endswith(": waiting for it (Ctrl-C stops waiting)")


def test_ctrl_c_stops_the_waiting(tmp_path: Path) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    with locks.exclusive(tmp_path / "a"):
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                locks.held(tmp_path / "a", "", lambda text: None)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - began < 1
    with locks.exclusive(tmp_path / "a", 0.5):
        pass


def test_waiting_may_have_an_end(tmp_path: Path) -> None:
    with (
        locks.exclusive(tmp_path / "a"),
        pytest.raises(TimeoutError, match=f"process {os.getpid()} on .* uses .*a"),
    ):
        locks.exclusive(tmp_path / "a", 0.1)


def test_a_forked_copy_neither_keeps_nor_gives_back_its_parent_s_lock(tmp_path: Path) -> None:
    lock = locks.exclusive(tmp_path / "a")
    child = os.fork()
    if not child:
        lock.release()
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.2)
        assert not Lock(tmp_path / "a").take()
        assert locks.path(tmp_path / "a").exists()
        lock.release()
        with locks.exclusive(tmp_path / "a", 0.5):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    "content", [b"", b"\n{", b"\n[]", b'\n{"pid": "x"}', b"\n" + b"[" * 60000, bytes(range(256))]
)
def test_a_lock_file_of_any_content_locks_and_has_an_owner_without_a_name(
    tmp_path: Path, content: bytes
) -> None:
    with locks.exclusive(tmp_path / "a"):
        locks.path(tmp_path / "a").write_bytes(content)
        owner = locks.owner(tmp_path / "a")
        assert owner is not None
        assert owner.describe() == "another process"


def test_a_lock_file_is_not_read_or_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("\nprecious")
    (tmp_path / locks.HOME).mkdir()
    locks.path(tmp_path / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        locks.exclusive(tmp_path / "a")
    assert (tmp_path / "outside").read_text() == "\nprecious"


def test_the_day_is_told_where_it_is_not_today() -> None:
    owner = Owner(7, "node", "2024-02-03T12:30:00+00:00")
    assert re.fullmatch(r"process 7 on node since 2024-02-0\d \d\d:\d\d", owner.describe())
    assert Owner(7, "node", "yesterday").describe() == "process 7 on node"


def test_a_file_system_without_locks_is_told_of_and_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    told: list[str] = []
    with locks.held(tmp_path / "a", "", told.append):
        assert told == [
            f"no locks on the file system of {tmp_path}: train no run of it twice at once"
        ]


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_lock(tmp_path: Path) -> None:
    (tmp_path / locks.HOME).write_text("a file")
    with pytest.raises(FileExistsError) as caught:
        locks.exclusive(tmp_path / "a")
    assert locks.HOME in str(caught.value.filename)


def test_visitors_of_a_folder_are_seen_by_who_closes_it_until_they_leave(tmp_path: Path) -> None:
    with locks.visiting(tmp_path, "one"), locks.visiting(tmp_path, "two"):
        with locks.closed(tmp_path) as visitors:
            assert sorted(visitor.command for visitor in visitors) == ["one", "two"]
            came: list[float] = []

            def visit() -> None:
                with locks.visiting(tmp_path, ""):
                    came.append(time.monotonic())

            guest = threading.Thread(target=visit)
            guest.start()
            time.sleep(0.3)
            left = time.monotonic()
        guest.join()
        assert came[0] >= left
    with locks.closed(tmp_path) as visitors:
        assert visitors == []


def test_a_lock_that_is_in_use_is_not_discarded(tmp_path: Path) -> None:
    with locks.exclusive(tmp_path / "a"):
        locks.discard(locks.path(tmp_path / "a"))
        assert locks.path(tmp_path / "a").exists()
    locks.path(tmp_path / "a").write_text("left by a dead process")
    assert locks.stale(tmp_path) == [tmp_path / "a"]
    locks.discard(locks.path(tmp_path / "a"))
    assert not locks.path(tmp_path / "a").exists()
