"""Real processes for tests: children of one that has imported everything, so that each is quick."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from kagglekit import cli

SECONDS = 60  # after which a child hangs

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["kagglekit.augment", "albumentations", "kagglekit.display", "kagglekit.pipeline",
     "safetensors.torch", "sklearn.model_selection", "tests.children", "torch._dynamo"]
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last line on stderr, after what was told on the way."""
        return self.err.strip().splitlines()[-1]


def _nothing(*_: object) -> None:
    pass


def kagglekit(
    *typed: str,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] = _nothing,
    meanwhile: Callable[[int], None] = _nothing,
) -> Ended:
    """Run a command in a process of its own, in the current folder.

    `before` runs in the child, `meanwhile` gets its process number and runs here.
    """
    # pipes, because a limit on the size of files must not cut what is told about it
    pipes = [_server.Pipe(duplex=False) for _ in range(2)]
    writers = [writer for _, writer in pipes]
    arguments = (list(typed), os.getcwd(), {**os.environ, **(env or {})}, before, writers)
    child = _server.Process(target=_child, args=arguments)
    child.start()
    for writer in writers:
        writer.close()
    try:
        with ThreadPoolExecutor(2) as pool:
            told = [pool.submit(_all, reader) for reader, _ in pipes]
            assert child.pid is not None
            try:
                meanwhile(child.pid)
                child.join(SECONDS)
            finally:
                hangs = child.exitcode is None
                child.kill()
                child.join()
        assert not hangs, f"{typed} hangs"
        assert child.exitcode is not None
        return Ended(child.exitcode, *(text.result() for text in told))
    finally:
        for reader, _ in pipes:
            reader.close()


def _all(reader: Connection) -> str:
    parts = []
    while part := os.read(reader.fileno(), 1 << 16):
        parts.append(part)
    return b"".join(parts).decode()


def _child(
    typed: list[str],
    folder: str,
    env: dict[str, str],
    before: Callable[[], None],
    writers: list[Connection],
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, writer in enumerate(writers, start=1):
        os.dup2(writer.fileno(), number)
        writer.close()
    multiprocessing.set_start_method("fork", force=True)  # for workers, as outside of tests
    torch.set_num_threads(1)
    before()
    sys.exit(cli.main(typed))


# --- what can be done to a child before it begins -----------------------------------------------


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
