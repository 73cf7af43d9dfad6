"""Reads and writes files so that none is ever half-written, and unpacks zips into the cache."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import math
import os
import platform
import re
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from . import locks
from .errors import UserError

if TYPE_CHECKING:  # numpy takes longer to import than `kagglekit --help` may
    from io import BufferedReader

    import numpy as np
    from typing_extensions import Buffer

_log = logging.getLogger("kagglekit")

_MOVE = "move the folder with $KAGGLEKIT_RUNS, $KAGGLEKIT_SUBMISSIONS or $KAGGLEKIT_CACHE"
_CAUSES = {
    errno.ENOSPC: f"the disk of {{path}} is full: free some space, or {_MOVE}",
    errno.EDQUOT: f"your disk quota for {{path}} is used up: free some space, or {_MOVE}",
    errno.EACCES: f"permission denied for {{path}}: change its permissions, or {_MOVE}",
    errno.EPERM: f"the system does not permit using {{path}}: change its permissions, or {_MOVE}",
    errno.EROFS: f"{{path}} is on a read-only file system: {_MOVE}",
    errno.EFBIG: "{path} grew larger than the system allows: raise the limit (`ulimit -f`)",
    errno.EMFILE: "too many open files at {path}: raise the limit (`ulimit -n`), or lower workers",
    errno.EIO: "{path} cannot be read or written: its disk or network drive fails; check it",
    errno.ESTALE: "{path} is on a network drive that went away: connect it again",
    errno.ENOTDIR: "{path} needs a folder where there is a file: rename that file",
    errno.EEXIST: "{path} should be a folder but is a file: rename that file",
    errno.EISDIR: "{path} should be a file but is a folder: rename that folder",
    errno.ELOOP: "{path} is a symbolic link where there should be none: remove it",
    errno.ENAMETOOLONG: "the name of {path} is too long for the file system: shorten it",
}
_STALE_SECONDS = 24 * 3600  # a temporary as old as this was left by a process that was killed
_RACE_SECONDS = 2  # a file changed this lately may change again without a new time stamp
_NESTED = 3  # a zip in a zip in a zip is opened; deeper ones stay as they are
_BOMB_BYTES = 1 << 30  # real data may compress very well, but not so well and be so large
_BOMB_RATIO = 500
_DEEP = 100  # folders in folders; a path may be longer than Python's stack is deep
_CHUNK = 1 << 20


# --- errors -------------------------------------------------------------------------------------


def explain(error: OSError) -> str | None:
    """One sentence for an error that the user can remedy (disk full, no permission…), else None."""
    sentence = _CAUSES.get(error.errno or 0)
    path = error.filename2 or error.filename or "the folder in use"
    return sentence.format(path=path) if sentence else None


@contextmanager
def explained(path: Path | None = None) -> Iterator[None]:
    """Turn an OSError that has an explanation into a UserError.

    It names `path` where the error names no file, or one of our temporary ones.
    """
    try:
        yield
    except OSError as error:
        if path is not None and str(error.filename or ".tmp").endswith(".tmp"):
            error.filename, error.filename2 = str(path), None
        sentence = explain(error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


# --- one file -----------------------------------------------------------------------------------


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whose old content stays whole until the new one is on the disk.

    Folders are made as needed. A full disk, a missing permission or a file in place of a folder
    raises UserError and leaves nothing behind.
    """
    with _replacing(path) as handle:
        handle.write(content)


def write_unsynced(path: Path, scratch: Path, *parts: Buffer) -> None:
    """Write `parts` to `path`, whole or not at all as long as the machine runs.

    Nobody waits for the disk, so after a power cut `path` may hold anything: only for small things
    by the thousand that carry a checksum and can be made again. What is half-written lies in the
    folder `scratch`, on the same disk. A full disk raises UserError, as in `write_bytes`.
    """
    with explained(path):
        temporary = _beside(scratch / path.name)
        try:
            with _made(temporary).open("xb", buffering=0) as handle:
                for part in parts:
                    _write_whole(handle, memoryview(part).cast("B"))
            os.replace(temporary, _made(path))
        except BaseException:  # also on Ctrl-C
            temporary.unlink(missing_ok=True)
            raise


def _made(path: Path) -> Path:
    """`path`, whose folder exists."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_whole(handle: IO[bytes], content: memoryview) -> None:
    while content:  # a disk that is nearly full takes a part, and then refuses
        content = content[handle.write(content) :]


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8, with line ends as they are in `content`."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of indented JSON, keys in their own order.

    NaN and infinities, which JSON has no words for, raise ValueError.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, whole or not at all; a full disk raises UserError."""
    content = f"{line}\n".encode()
    with explained(path), path.open("ab", buffering=0) as handle:
        size, written = handle.tell(), 0
        try:
            while written < len(content):  # a disk that is nearly full takes a part
                written += handle.write(content[written:])
        except OSError:
            handle.truncate(size)
            raise


def read_json(path: Path) -> Any:
    """What `write_json` wrote; a missing or damaged file raises UserError.

    Nor does it take what that never writes: NaN, infinities, halves of surrogate pairs, and lists
    in lists deeper than Python's stack.
    """
    content = _read(path)
    try:
        value = json.loads(content, parse_float=_finite, parse_constant=_finite)
        if b"\\u" in content:  # half a pair fits neither a file, nor a terminal, nor a database
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{path} is nested too deep: delete it, or restore a copy") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, or restore a copy") from error
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(f"{text} is no finite number")
    return value


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as npy, atomically; an array of objects raises UserError."""
    (plain,) = _plain({path.stem: array}).values()
    with _replacing(path) as handle:
        _write_npy(handle, plain)


def write_arrays(path: Path, /, **arrays: np.ndarray) -> None:
    """Write an uncompressed npz; equal arrays give equal bytes.

    Arrays of objects, which only pickles can hold, raise TypeError.
    """
    plain = _plain(arrays)
    with _replacing(path) as handle, zipfile.ZipFile(handle, "w") as archive:
        for name, array in plain.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: no clock in the bytes
            with archive.open(entry, "w", force_zip64=True) as part:
                _write_npy(part, array)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz by name; a missing, truncated or corrupt file raises UserError.

    Pickles are never loaded, and the arrays take no more memory than the file has bytes: one that
    is compressed, which `write_arrays` does not write, is refused where it would.
    """
    arrays = {}
    try:
        with _opened(path) as handle, zipfile.ZipFile(handle) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")
            for name in archive.namelist():
                # all of it is read, so that the CRC is checked
                arrays[name.removesuffix(".npy")] = _parsed_npy(archive.read(name))
    except UserError:
        raise
    except Exception as error:  # flipped bytes make zipfile and numpy fail in a dozen ways
        raise UserError(f"{path} is damaged ({error}): delete it, or restore a copy") from error
    return arrays


def read_array(path: Path) -> np.ndarray:
    """The array of an npy; a missing or damaged file raises UserError. Pickles are never loaded."""
    content = _read(path)
    try:
        return _parsed_npy(content)
    except Exception as error:  # headers are Python literals, which fail in a dozen ways
        raise UserError(f"{path} is damaged ({error}): delete it, or restore a copy") from error


def file_digest(path: Path) -> str:
    """Digest of a file's content: blake2b of 16 bytes, as 32 hex digits."""
    with _opened(path) as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _parsed_npy(content: bytes) -> np.ndarray:
    """The array of an npy's bytes, which are as many as its header says."""
    from io import BytesIO

    import numpy as np

    stream = BytesIO(content)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, by_column, kind = headers[np.lib.format.read_magic(stream)](stream)
    if kind.hasobject:
        raise ValueError("it holds objects, as pickles do")
    data = memoryview(content)[stream.tell() :]
    size = math.prod(shape) * kind.itemsize
    if len(data) != size or not kind.itemsize or min(shape, default=0) < 0:
        raise ValueError("its header does not fit its size")
    order: Literal["F", "C"] = "F" if by_column else "C"
    return np.ndarray(shape, kind, bytearray(data), order=order)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A handle beside `path` whose file takes the place of `path` once all is on the disk."""
    with explained():
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    with explained(path):
        try:
            with temporary.open("xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:  # also on Ctrl-C
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def _beside(path: Path) -> Path:
    """A new hidden name in the folder of `path`, short enough wherever `path` itself is.

    It says which process is writing, so that `sweep` knows those of the dead.
    """
    return path.with_name(f".{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, to build in what takes its place; it goes in the end."""
    with explained(path):
        folder = _beside(path)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            _remove(folder)


def sweep(folder: Path) -> None:
    """Remove the temporaries anywhere below `folder` that killed processes left.

    Those of this machine's running processes, and of other machines, stay for a day.
    """
    with suppress(OSError):  # folders may go while we look
        for path in list(folder.rglob(".*.tmp")):
            if _is_left(path):
                _remove(path)


def _is_left(path: Path) -> bool:
    """Whether nobody can be writing a temporary any more."""
    import psutil

    machine, _, rest = path.name.removeprefix(".").partition("-")
    owner = rest.partition("-")[0]
    if machine == _machine() and owner.isdecimal() and not psutil.pid_exists(int(owner)):
        return True
    try:
        return time.time() - path.lstat().st_mtime > _STALE_SECONDS
    except OSError:
        return False  # somebody removed or renamed it meanwhile


@functools.cache
def _machine() -> str:
    """Eight hex digits of the machine's name: folders may be shared over a network."""
    return hashlib.blake2b(os.fsencode(platform.node()), digest_size=4).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    if os.name == "nt":  # Windows opens no folders
        return
    with suppress(OSError):  # some network file systems have no fsync of folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(path: Path) -> bytes:
    with _opened(path) as handle:
        return handle.read()


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    with explained():
        try:
            handle = path.open("rb")
        except FileNotFoundError:
            raise UserError(f"{path} is missing: restore it, or start afresh") from None
        with handle:
            yield handle


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import numpy as np

    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds objects; store numbers or fixed-width text")
    return plain


def _write_npy(handle: IO[bytes], array: np.ndarray) -> None:
    import numpy as np

    np.lib.format.write_array(handle, array, allow_pickle=False)


# --- a folder's content -------------------------------------------------------------------------


def fingerprint(folder: Path, cache: Path) -> str:
    """16 hex digits that change when a file of `folder` is added, removed, renamed or edited.

    Hidden files and `__MACOSX` do not count. The digest of each file is remembered in `cache` by
    path, size and times of change, so that gigabytes are read once.
    """
    digests = _digests(folder, visible_files(folder), cache)
    return _key(item for pair in sorted(digests.items()) for item in pair)


def visible_files(folder: Path) -> dict[str, Path]:
    """Every regular file under `folder` by its relative path with `/`, links followed, sorted.

    Hidden files and folders and `__MACOSX` are left out.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the one that holds the download")
    found: dict[str, Path] = {}
    with explained():
        _walk(folder, "", found, frozenset())
    return dict(sorted(found.items()))


def _walk(folder: Path, prefix: str, found: dict[str, Path], above: frozenset[str]) -> None:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that we are in
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if _visible(entry.name)]
    for entry in visible:
        if entry.is_dir():
            _walk(Path(entry.path), f"{prefix}{entry.name}/", found, above | {real})
        elif entry.is_file():
            found[prefix + entry.name] = Path(entry.path)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _digests(folder: Path, files: dict[str, Path], cache: Path) -> dict[str, str]:
    """Digest of each file by its relative path, read only where the memory has none."""
    memory = cache / "digests" / f"{_key([os.path.realpath(folder)])}.json"
    known = _recall(memory)
    now = time.time_ns()
    digests, lasting = {}, dict(known)
    for name, path in files.items():
        status = path.stat()
        # the last change of the inode too: copying tools put old modification times back
        identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if known.get(name, [None])[:-1] == identity:
            digests[name] = known[name][-1]
            continue
        digests[name] = file_digest(path)
        lasting.pop(name, None)
        if settled(status, now):
            lasting[name] = [*identity, digests[name]]
    if lasting != known:
        write_json(memory, lasting)
    return digests


def settled(status: os.stat_result, now: int) -> bool:
    """Whether the next change of a file, after `now` in ns, will show in its size and times."""
    # a time in the future, where a clock was set back, may come again as well
    return now - max(status.st_mtime_ns, status.st_ctime_ns) > _RACE_SECONDS * 1e9


def _recall(memory: Path) -> dict[str, list[Any]]:
    """The remembered [size, mtime_ns, ctime_ns, digest] by name; nothing where it is damaged."""
    if not memory.exists():
        return {}
    try:
        saved = read_json(memory)
        sound = all(len(item) == 4 and isinstance(item[3], str) for item in saved.values())
    except (UserError, AttributeError, TypeError):
        sound = False
    if sound:
        return dict(saved)
    _log.warning("%s cannot be read; the digests are computed again", memory)
    return {}


def _key(parts: Any) -> str:
    """16 hex digits of a sequence of strings; each is delimited, so none can pose as two."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = os.fsencode(part)
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


# --- zips ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Archive:
    """A zip, how an error names it, and the folder it unpacks in."""

    path: Path
    label: str
    place: Path


@dataclass
class _Budget:
    """What the zips of a download weigh, and what they and the zips in them have unpacked to."""

    packed: int
    unpacked: int = 0


def is_bomb(packed: int, unpacked: int, harmless: int | None = None) -> bool:
    """Whether so many bytes out of so few are more than honest data are, and than is `harmless`."""
    least = _BOMB_BYTES if harmless is None else harmless
    return unpacked > least and unpacked > _BOMB_RATIO * packed


def unpacked(folder: Path, cache: Path) -> Path:
    """`folder` itself, or where it holds zips a folder in `cache` with their content.

    | zip | unpacks |
    |---|---|
    | alone in its folder | in that folder |
    | of one file or one top folder | in that folder |
    | any other | in a folder of its stem |

    Zips in zips are opened too, three deep; other files are linked beside (copied where links are
    not possible). A file that is there twice with different content raises UserError, and so does
    a zip that is truncated, corrupt, encrypted, a bomb, too large for the disk, or has an entry
    that is a link or would leave the folder. `folder` is never written.
    """
    files = visible_files(folder)
    zips = {name: path for name, path in files.items() if _is_zip(path)}
    if not zips:
        return folder
    loose = {name: path for name, path in files.items() if name not in zips}
    home = cache / "unpacked"
    with explained(home):
        home.mkdir(parents=True, exist_ok=True)
        linked = bool(loose) and _can_link(home)
        final = home / _unpacked_key(folder, zips, loose, linked, cache)
        if _whole(final):
            return final
        with locks.exclusive(_building(final)):
            if _whole(final):  # another process has unpacked it meanwhile
                return final
            if final.exists():
                _log.warning("%s is damaged; the zips are unpacked again", final)
            return _built(final, lambda target: _unpack(folder, files, target, linked))


def _unpacked_key(
    folder: Path, zips: dict[str, Path], loose: dict[str, Path], linked: bool, cache: Path
) -> str:
    """Links follow an edited file by themselves; copies need a new key."""
    parts = [item for pair in _digests(folder, zips, cache).items() for item in pair]
    if loose:
        parts += [os.path.realpath(folder), *loose]
    if loose and not linked:
        parts += [item for pair in _digests(folder, loose, cache).items() for item in pair]
    return _key(parts)


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _can_link(home: Path) -> bool:
    """Whether symbolic links work there (Windows permits them only to some)."""
    probe = _beside(home / "probe")
    try:
        probe.symlink_to(home)
    except (OSError, NotImplementedError):
        return False
    probe.unlink()
    return True


def _whole(final: Path) -> bool:
    """Whether a finished folder still has every file that was unpacked into it."""
    try:
        sizes = read_json(final / ".unpacked.json")
        return all((final / name).stat().st_size == size for name, size in sizes.items())
    except (UserError, OSError, AttributeError, TypeError):
        return False


def _building(final: Path) -> Path:
    """What is locked while `final` is built: one process does the work, the others wait for it."""
    return final.parent.parent / f"{final.parent.name}.{final.name}"


def _built(final: Path, build: Callable[[Path], None]) -> Path:
    """`final` made by `build` in a temporary sibling and renamed; what is there gives way.

    The caller has the lock on it: else what another process has just built could be thrown away.
    """
    _sweep(final.parent)
    temporary = _beside(final)
    temporary.mkdir(parents=True)
    try:
        build(temporary)
        if final.exists():
            remove(final)
        os.rename(temporary, final)
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(final.parent)
    return final


def _sweep(home: Path) -> None:
    """Remove what killed processes left in `home` itself."""
    for path in home.glob(".*.tmp"):
        if _is_left(path):
            _remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, but nothing that a link leads to.

    It is renamed to a hidden temporary name first, so that a process killed here leaves no half of
    it under its own name. Raises OSError where something cannot be removed.
    """
    doomed = path.rename(_beside(path))
    _sync_folder(path.parent)
    if not doomed.is_dir() or doomed.is_symlink():
        doomed.unlink()
        return
    try:
        shutil.rmtree(doomed)
    except OSError as error:  # it walks by handles, and may name no more than the last part
        if error.filename and os.sep not in str(error.filename):
            error.filename = f"{error.filename} in {doomed}"
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _unpack(folder: Path, files: dict[str, Path], target: Path, linked: bool) -> None:
    """Fill `target`: zips before loose files, so that nothing is unpacked through a link."""
    zips = {name: path for name, path in files.items() if _is_zip(path)}
    budget = _Budget(sum(path.stat().st_size for path in zips.values()))
    for name, path in zips.items():
        inside = target.joinpath(*name.split("/")[:-1])
        _extract(_planned(path, str(path), inside), target, budget)
    for _ in range(_NESTED - 1):
        _unpack_nested(folder, target, budget)
    sizes = {name: path.stat().st_size for name, path in visible_files(target).items()}
    for name, path in files.items():
        if not _is_zip(path):
            _place(path, target.joinpath(*name.split("/")), linked)
    write_json(target / ".unpacked.json", sizes)
    if hasattr(os, "sync"):
        os.sync()  # one for all: an fsync for each of 70,000 images takes minutes


def _unpack_nested(folder: Path, target: Path, budget: _Budget) -> None:
    """Open the zips that are in `target` now, and remove them."""
    inner = [pair for pair in visible_files(target).items() if _is_zip(pair[1])]
    plans = [_planned(path, f"{name} (in a zip of {folder})", path.parent) for name, path in inner]
    for (_, path), plan in zip(inner, plans, strict=True):
        packed = path.rename(_beside(path))  # a zip may hold a file of its own name
        _extract(_Archive(packed, plan.label, plan.place), target, budget)
        packed.unlink()


def _planned(path: Path, label: str, inside: Path) -> _Archive:
    """Decide whether a zip unpacks `inside` its folder or in a folder of its stem."""
    with _archive(path, label) as archive:
        tops = {_parts(info)[0] for info in _wanted(archive)}
    alone = [name for name in os.listdir(path.parent) if _visible(name)] == [path.name]
    return _Archive(path, label, inside if alone or len(tops) == 1 else inside / path.stem)


def _wanted(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries that are files of the user: no folders, nothing hidden."""
    return [
        info
        for info in archive.infolist()
        if not _is_folder(info) and all(map(_visible, _parts(info)))
    ]


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith("/")  # `ZipInfo.is_dir` fails on no name at all


def _parts(info: zipfile.ZipInfo) -> list[str]:
    return [part for part in info.filename.split("/") if part not in ("", ".")]


@contextmanager
def _archive(path: Path, label: str) -> Iterator[zipfile.ZipFile]:
    """A zip whose entries all have harmless names and kinds, or UserError."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{label} is no whole zip ({error}): download it again, or remove it"
        ) from error
    with archive:
        for info in archive.infolist():
            _refuse_unsafe(info, label)
        yield archive


def _extract(source: _Archive, target: Path, budget: _Budget) -> None:
    """Unpack one zip; nothing is written before all of its entries are found harmless."""
    with _archive(source.path, source.label) as archive:
        _refuse_huge(archive, source, target, budget)
        for info in _wanted(archive):
            _extract_entry(archive, info, source)


def _refuse_unsafe(info: zipfile.ZipInfo, label: str) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    names = (info.orig_filename, info.filename)  # as in the file; as mended or given beside it
    fault = None
    if any(map(_escapes, names)):
        fault = "leads out of the folder"
    elif any("\\" in name or "\0" in name for name in names) or not (
        _is_folder(info) or _parts(info)
    ):
        fault = "has a name that is no path"
    elif info.filename.count("/") > _DEEP:
        fault = f"lies more than {_DEEP} folders deep"
    elif kind == stat.S_IFLNK:
        fault = "is a symbolic link"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "is a device or a pipe"
    elif info.flag_bits & 0x1:
        fault = "is encrypted"
    if fault:
        raise UserError(
            f"{label}: entry {info.orig_filename!r} {fault}; remove the zip, or unpack it yourself"
            " if you trust it"
        )


def _escapes(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or bool(re.match("[A-Za-z]:", name)) or ".." in parts


def _refuse_huge(archive: zipfile.ZipFile, source: _Archive, target: Path, budget: _Budget) -> None:
    """Refuse a bomb, also one of many small zips, and what the disk has no room for."""
    infos = archive.infolist()
    if not infos:
        return
    total, packed = sum(info.file_size for info in infos), source.path.stat().st_size
    largest = max(infos, key=lambda info: info.file_size).filename
    overlapping = sum(info.compress_size for info in infos) > packed
    budget.unpacked += total
    if overlapping or is_bomb(packed, total) or is_bomb(budget.packed, budget.unpacked):
        raise UserError(
            f"{source.label}: entry {largest!r} is part of a zip bomb ({packed:,} bytes that unpack"
            f" to {total:,}); remove the zip, or unpack it yourself if you trust it"
        )
    free = shutil.disk_usage(target).free
    if total > free:
        raise UserError(
            f"{source.label} unpacks to {total:,} bytes (the largest entry is {largest!r}) but the"
            f" cache has {free:,} free: free some space, or move it with $KAGGLEKIT_CACHE"
        )


def _extract_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: _Archive) -> None:
    path = source.place.joinpath(*_parts(info))
    if path.is_file():
        if path.stat().st_size != info.file_size or _crc(path) != info.CRC:
            raise UserError(
                f"{source.label}: entry {info.filename!r} is there twice with different content;"
                " remove one of the zips, or mend it"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as content, path.open("xb") as handle:
            shutil.copyfileobj(content, handle, _CHUNK)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"{source.label}: entry {info.filename!r} needs a folder where another entry is a file;"
            " unpack the zip yourself, and remove it"
        ) from error
    except Exception as error:  # bad data shows as an error of zipfile, zlib, bz2, lzma or struct
        if isinstance(error, OSError) and explain(error):  # the disk's fault, not the zip's
            raise
        raise UserError(
            f"{source.label}: entry {info.filename!r} cannot be unpacked ({error});"
            " download the zip again"
        ) from error


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _place(path: Path, copy: Path, linked: bool) -> None:
    """Put a loose file beside what was unpacked."""
    if copy.exists():
        if copy.stat().st_size != path.stat().st_size or _crc(copy) != _crc(path):
            raise UserError(
                f"{path} differs from the file of that name in a zip beside it: remove one of them"
            )
        return
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{path} lies in a folder, where a zip beside it has a file: remove one of them"
        ) from error
    if linked:
        copy.symlink_to(path.resolve())
    else:
        shutil.copyfile(path, copy)


# --- arrays that take long to make --------------------------------------------------------------


def cached_arrays(
    cache: Path, key: str, build: Callable[[], dict[str, np.ndarray]], mapped: bool = False
) -> dict[str, np.ndarray]:
    """The arrays that `build` gave when it was last called for `key`, else those it gives now.

    `key` names everything they depend on. Their digests are checked; what is damaged is built
    again, with a warning. `mapped` leaves them on the disk, from which the system reads what is
    looked at. A full disk or a cache that cannot be written raises UserError.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", key):
        raise ValueError(f"{key!r} cannot name a folder")
    home = cache / "arrays" / key
    saved = _saved_arrays(home, mapped)
    if saved is not None:
        return saved
    with explained(home):
        lock = locks.exclusive(_building(home))
    with lock:
        saved = _saved_arrays(home, mapped, warn=True)
        if saved is not None:  # another process has built them meanwhile
            return saved
        arrays = _plain(build())
        for name in arrays:
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"{name!r} cannot name an array: use letters, digits and _")
        with explained(home):
            _built(home, lambda folder: _save_arrays(folder, arrays))
    return _load_arrays(home, mapped) if mapped else arrays


def _saved_arrays(
    home: Path, mapped: bool = False, warn: bool = False
) -> dict[str, np.ndarray] | None:
    if not home.exists():
        return None
    try:
        return _load_arrays(home, mapped)
    except Exception as error:  # a cache in any state is only worth a rebuild
        if warn:
            _log.warning("the cache %s cannot be read (%s); it is built again", home, error)
        return None


def _save_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        with _replacing(folder / f"{name}.npy") as handle:
            _write_npy(handle, array)
    write_json(
        folder / "digests.json", {name: _array_digest(array) for name, array in arrays.items()}
    )


def _load_arrays(folder: Path, mapped: bool = False) -> dict[str, np.ndarray]:
    import numpy as np

    arrays, digests = {}, read_json(folder / "digests.json")
    if set(digests) != {path.stem for path in folder.glob("*.npy")}:
        raise UserError("digests.json was altered")
    for name, digest in digests.items():
        where: Literal["r"] | None = "r" if mapped else None
        arrays[name] = np.load(folder / f"{name}.npy", mmap_mode=where, allow_pickle=False)
        if _array_digest(arrays[name]) != digest:
            raise UserError(f"{name}.npy was altered")
    return arrays


def _array_digest(array: np.ndarray) -> str:
    import numpy as np

    flat = array.reshape(-1)
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    if flat.size:
        digest.update(flat.view(np.uint8).data)
    return digest.hexdigest()
