"""Arrays made of files, kept so that each is made once: on disk, or in memory workers share."""

from __future__ import annotations

import errno
import logging
import mmap
import multiprocessing
import os
import shutil
import struct
import time
import zlib
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Protocol

import numpy as np

from . import files
from .errors import UserError

_log = logging.getLogger("kagglekit")

_LAYOUT = "1"  # raise it when what is kept changes
_HEADER = struct.Struct("<8s4I")  # magic, height, width, channels, CRC-32 of what follows
_MAGIC = b"kagglkit"
_ENTRY = np.dtype(
    [("key", "<u8", (2,)), ("start", "<i8"), ("shape", "<u4", (3,)), ("checksum", "<u4")]
)
_PLACES = 1 << 20  # of a table in memory
_ABSENT, _CLAIMED = 0, -1  # `start` of an entry; else 1 + where its bytes begin
_PATIENCE_SECONDS = 5  # for a lock that is held for microseconds, unless its owner was killed


def key(path: Path, made_by: str) -> bytes | None:
    """What the array that `made_by` makes of a file is kept under: 16 bytes, new with each change.

    A file is known by its absolute path, size and times of change. None for one that was changed
    so lately that it may change again without showing it: nothing of it can be kept. A missing
    file raises UserError.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: download the data again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): check its folder") from error
    if not files.settled(status, time.time_ns()):
        return None
    # the last change of the inode too: copying tools put old modification times back
    times = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    identity = f"{_LAYOUT}\0{made_by}\0{times}\0".encode() + os.fsencode(os.path.abspath(path))
    return blake2b(identity, digest_size=16).digest()


class Shelf(Protocol):
    """Where arrays are kept: uint8 (height, width, channels), by key."""

    def has(self, key: bytes) -> bool:
        """Whether there is an array of this key."""
        ...

    def find(self, key: bytes, check: bool) -> np.ndarray | None:
        """The caller's own copy of an array; None where there is none. `check` looks for damage."""
        ...

    def keep(self, key: bytes, array: np.ndarray) -> None:
        """Keep an array; for good or for a while, or not at all where there is no room."""
        ...

    def free(self) -> int:
        """Bytes that it may still take."""
        ...


class Disk:
    """A file for each array in a folder, which any number of processes share.

    What was looked at lately the system keeps in memory, once for all of them.
    """

    def __init__(self, folder: Path, strict: bool) -> None:
        self.folder = folder
        self.strict = strict  # a disk that is full raises UserError; else it is said, and is all
        self._usable = True

    def has(self, key: bytes) -> bool:
        """Whether there is a file of this key."""
        return self._path(key).is_file()

    def find(self, key: bytes, check: bool) -> np.ndarray | None:
        """The array of a key; None where there is none, or where it is damaged."""
        try:
            with open(self._path(key), "rb", buffering=0) as handle:
                array = _parsed(handle, check)
        except OSError:
            return None
        if array is None:
            _log.warning("%s is damaged; its image is decoded again", self._path(key))
        return array

    def keep(self, key: bytes, array: np.ndarray) -> None:
        """Write a file; raises UserError where that fails and the shelf is strict."""
        if not self._usable:
            return
        pixels = np.ascontiguousarray(array)
        header = _HEADER.pack(_MAGIC, *array.shape, zlib.crc32(pixels.data))
        try:
            files.write_unsynced(self._path(key), self.folder, header, pixels.data)
        except UserError as error:
            if self.strict:
                raise
            self._usable = False
            _log.warning("%s; from here on images are decoded each time", error)

    def free(self) -> int:
        """Bytes free on its disk; 0 where nothing can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return 0
        return shutil.disk_usage(self.folder).free if os.access(self.folder, os.W_OK) else 0

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / name[2:]


def _parsed(handle: FileIO, check: bool) -> np.ndarray | None:
    """The array in an open file; None where it is not whole."""
    header = handle.read(_HEADER.size)
    if len(header) != _HEADER.size:
        return None
    magic, height, width, channels, checksum = _HEADER.unpack(header)
    size = height * width * channels
    if magic != _MAGIC or os.fstat(handle.fileno()).st_size != _HEADER.size + size:
        return None
    array = np.empty((height, width, channels), np.uint8)
    if handle.readinto(array.reshape(-1).data) != size:
        return None
    return array if not check or zlib.crc32(array.data) == checksum else None


class Memory:
    """Arrays in memory that is shared with all processes forked from this one, and ends with them.

    A table with open addressing, filled under a lock and read without one, and an arena of pixels.
    Pages are taken from the system as they are filled.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._arena = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        self._table = np.frombuffer(mmap.mmap(-1, _PLACES * _ENTRY.itemsize), _ENTRY)
        self._filled = np.frombuffer(mmap.mmap(-1, 16), np.int64)  # bytes, entries
        self._lock = multiprocessing.get_context("fork").Lock()

    def has(self, key: bytes) -> bool:
        """Whether there is an array of this key."""
        return bool(self._table["start"][self._place(key)] > 0)

    def find(self, key: bytes, check: bool) -> np.ndarray | None:
        """The array of a key; None where there is none, or where it is damaged."""
        entry = self._table[self._place(key)]
        start, shape = int(entry["start"]) - 1, entry["shape"]
        if start < 0:
            return None
        array = self._arena[start : start + int(shape.prod())].reshape(shape).copy()
        return array if not check or zlib.crc32(array.data) == entry["checksum"] else None

    def keep(self, key: bytes, array: np.ndarray) -> None:
        """Copy an array into the arena, unless that is full or another process is about to."""
        place = self._claimed(key, array)
        if place is None:
            return
        entry, start = place
        self._arena[start : start + array.size] = array.reshape(-1)
        self._table["start"][entry] = start + 1  # last: from here on it is found

    def free(self) -> int:
        """Bytes that are left of the arena."""
        return self.size - int(self._filled[0])

    def _claimed(self, key: bytes, array: np.ndarray) -> tuple[int, int] | None:
        """An entry of its own for a key, and where its bytes go."""
        if not self._lock.acquire(timeout=_PATIENCE_SECONDS):
            return None
        try:
            start, entries = map(int, self._filled)
            place = self._place(key)
            if start + array.size > self.size or 2 * entries > _PLACES:
                return None
            if self._table["start"][place] != _ABSENT:
                return None
            self._table["key"][place] = _halves(key)
            self._table["shape"][place] = array.shape
            self._table["checksum"][place] = zlib.crc32(np.ascontiguousarray(array).data)
            self._table["start"][place] = _CLAIMED
            self._filled[:] = start + array.size, entries + 1
            return place, start
        finally:
            self._lock.release()

    def _place(self, key: bytes) -> int:
        """The entry of a key, or the empty one that it would get."""
        first, second = _halves(key)
        place = first % _PLACES
        while self._table["start"][place] != _ABSENT:
            found = self._table["key"][place]
            if found[0] == first and found[1] == second:
                break
            place = (place + 1) % _PLACES
        return place


def _halves(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")


_memory: list[Memory] = []  # at most one a process: all data sets share it


def memory() -> Memory | None:
    """The shelf in memory of this process; None where processes are not forked, or it has none."""
    import psutil

    usual = multiprocessing.get_all_start_methods()[0]  # asking for the default would fix it
    if (multiprocessing.get_start_method(allow_none=True) or usual) != "fork":
        return None
    if not _memory:
        try:
            _memory.append(Memory(psutil.virtual_memory().available // 2))
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return None
    return _memory[0]
