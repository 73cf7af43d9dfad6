"""What a machine does to a process: limits, permissions, a small disk; for tests of real faults."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest


def limit(name: str, amount: int) -> None:
    """Set a limit of the system, as `ulimit` does; `name` as in RLIMIT_FSIZE."""
    resource.setrlimit(getattr(resource, name), (amount, amount))


def enter(holder: int, folder: str) -> None:
    """Go into the user and mount namespaces of the process `holder`, and to `folder` there."""
    spaces = [os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt")]
    system = ctypes.CDLL(None, use_errno=True)
    for space in spaces:
        if system.setns(space, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(space)
    os.chdir(folder)


def obey_permissions() -> None:
    """Let the permissions of files count for root too: give up the capabilities to ignore them."""
    if os.geteuid():
        return

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Sets(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "passed"))

    system, header, sets = ctypes.CDLL(None), Header(0x20080522, 0), (Sets * 2)()
    assert system.capget(ctypes.byref(header), sets) == 0
    sets[0].effective &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert system.capset(ctypes.byref(header), sets) == 0


class Disk:
    """A small file system in memory, which only processes that `enter` it see by its own path.

    Others reach its files under `inside`.
    """

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir()
        self.folder, self.size = folder, size
        script = 'while read -r command; do eval "$command" 2>&1; echo done; done'
        self._holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            self.command(f"mount -t tmpfs -o size={size} none '{folder}'")
        except (OSError, AssertionError):
            self.close()
            raise

    def command(self, text: str) -> None:
        """Run a command of the shell where the disk is seen."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(text + "\n")
        self._holder.stdin.flush()
        said = self._holder.stdout.readline()
        assert said == "done\n", said

    @property
    def inside(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{self.folder}")

    @property
    def enter(self) -> Callable[[], None]:
        return partial(enter, self._holder.pid, os.getcwd())

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


def small_disk(size: int) -> Disk:
    """A disk at `./disk` of so many bytes; the test is skipped where none can be mounted."""
    try:
        return Disk(Path("disk").absolute(), size)
    except (OSError, AssertionError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
