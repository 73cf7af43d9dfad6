"""Valid inputs made hostile, and the law that holds whoever reads them: a value or a UserError.

A strategy below takes what is valid and mutates it, knowing its structure (cells, JSON values, zip
entries, headers) or not (bytes). `judged` runs a parser under watch: no other exception, no hang,
no file outside the project, no pickle, process or connection, no memory out of proportion.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import resource
import signal
import stat
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kagglekit.errors import UserError

LONG = int(os.environ.get("KAGGLEKIT_FUZZ", "0"))  # inputs a parser; 0 = the short version
SECONDS = 20.0  # one input's time; it takes milliseconds, on a machine that is not asleep
ROOM = 96 << 20  # bytes that a parser may take for any input, beside `SHARE` of its size
SHARE = 64
ADDRESSES = 1 << 30  # bytes of address space beyond what the process has: claimed, even if unused

counts: Counter[str] = Counter()  # inputs by parser


def examples(short: int) -> settings:
    """The same inputs every time: `short` of them, or $KAGGLEKIT_FUZZ in the long version."""
    return settings(
        max_examples=LONG or short,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# --- the law ------------------------------------------------------------------------------------


class Hang(Exception):
    """An input took longer than SECONDS."""


_FORBIDDEN = (
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen",
    "socket.connect", "socket.bind", "urllib.Request", "webbrowser.open", "os.fork", "os.forkpty",
)  # fmt: skip
_CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod",
    "os.chown", "os.truncate", "shutil.rmtree", "shutil.move",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watched: dict[str, Any] = {}  # the project's folder and the offences, while a parser runs
_hooked: list[bool] = []


def judged(parser: str, parse: Callable[[], Any], project: Path, size: int) -> Any:
    """What `parse()` returns, or the UserError it raises; AssertionError where it breaks the law.

    `project` is the one folder below which files may change; everything beside it, in its parent,
    is compared before and after. `size` is that of the input in bytes.
    """
    counts[parser] += 1
    before = _surroundings(project)
    offences: list[str] = []
    with _in_memory(size), _watch(project, offences), _in_time():
        try:
            value = parse()
        except UserError as error:
            value = error
            _check_sentence(error)
    assert not offences, f"{parser}: {offences[:5]}"
    assert _surroundings(project) == before, f"{parser}: a file beside the project changed"
    return value


def _check_sentence(error: UserError) -> None:
    assert str(error).strip(), "an empty sentence"
    cause: BaseException | None = error
    while cause is not None:  # a parser may not answer for memory that it should not have asked for
        assert not isinstance(cause, MemoryError | Hang), repr(cause)
        cause = cause.__cause__ or cause.__context__
    assert "out of memory" not in str(error), error


def _surroundings(project: Path) -> dict[str, tuple[int, int]]:
    """Every file beside `project`, with its size and time."""
    found = {}
    for folder, folders, names in os.walk(project.parent):
        if Path(folder) == project.parent:
            folders[:] = [name for name in folders if name != project.name]
        for name in [*folders, *names]:
            status = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (status.st_size, status.st_mtime_ns)
    return found


@contextmanager
def _watch(project: Path, offences: list[str]) -> Iterator[None]:
    """Note what the interpreter reports of forbidden deeds (an audit hook cannot be taken out)."""
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    _watched.update(home=os.path.realpath(project), offences=offences)
    try:
        yield
    finally:
        _watched.clear()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event.startswith(_FORBIDDEN):
        _watched["offences"].append(f"{event} {arguments[:3]}")
    elif event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and flags & _WRITING:
            _note_outside(event, path)
    elif event in _CHANGES:
        for path in arguments[: 2 if event in ("os.rename", "os.link", "shutil.move") else 1]:
            # the target of a symbolic link is its first argument, the link its second
            _note_outside(event, arguments[1] if event == "os.symlink" else path)


def _note_outside(event: str, path: Any) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return
    real = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
    home = _watched["home"]
    known = (home, os.devnull)  # making the project's own folder again is no offence
    if not (real + os.sep).startswith(home + os.sep) and os.path.abspath(path) not in known:
        _watched["offences"].append(f"{event} {os.fsdecode(path)}")


@contextmanager
def _in_time() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise Hang(f"longer than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _in_memory(size: int) -> Iterator[None]:
    """Hold what is claimed (address space) and what is used (peak resident) to the input's size."""
    status = Path("/proc/self/statm")
    if not status.exists():  # only Linux counts so exactly
        yield
        return
    page = resource.getpagesize()
    claimed, used = (int(pages) * page for pages in status.read_text().split()[:2])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (claimed + ADDRESSES, hard))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    grown = peak - used
    assert grown <= ROOM + SHARE * size, f"{grown:,} bytes of memory for {size:,} of input"


# --- any bytes ----------------------------------------------------------------------------------

_JUNK = (
    b"\0",
    b"\xff" * 4,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"-1",
    b"\x7f" * 8,
)


@st.composite
def of_bytes(draw: st.DrawFn, content: bytes, most: int = 4) -> bytes:
    """`content` with up to `most` bytes or stretches flipped, put in, taken out or doubled."""
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        to = min(at + draw(st.integers(1, 64)), len(content))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "double", "cut", "tail"])):
            case "flip":
                bit = 1 << draw(st.integers(0, 7))
                content = (
                    content[:at] + bytes(b ^ bit for b in content[at : at + 1]) + content[at + 1 :]
                )
            case "set":
                content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
            case "insert":
                content = content[:at] + draw(st.sampled_from(_JUNK)) + content[at:]
            case "delete":
                content = content[:at] + content[to:]
            case "double":
                content = content[:to] + content[at:]
            case "cut":
                content = content[:at]
            case _:
                content += draw(st.binary(max_size=32))
    return content


def rarely(draw: st.DrawFn, times: int = 4) -> bool:
    """True once in so many."""
    return draw(st.integers(1, times)) == 1


def or_bytes(strategy: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Of four inputs one with bytes damaged on top."""
    return st.one_of(strategy, strategy, strategy, strategy.flatmap(of_bytes))


# --- CSV ----------------------------------------------------------------------------------------

CELLS = (
    "", " ", "=1+1", "=cmd|' /C calc'!A0", "+SUM(A1)", "-Xy12", "@home", "\tx", "-1", "+1",
    "-1.5e3",
    "1e999", "-1e999", "1e308", "9" * 30, "9" * 5000, "0x10", "1_000", "NaN", "nan", "inf", "-inf",
    "NA", "None", "null", "true", "٣", "１２", "²", "½", "é", "e\u0301", "\u202e1", "\ufeff1",
    "\u200b", "💥",
    "a\0b", "\x1b[2J", "a,b", 'say "x"', "a\nb", "a\r\nb", "'", "../../x", "C:\\x", "x" * 3000, "0",
    "00", "0.0", "1.0", "01", "1", "2", "2024-01-31", "1,5", "1;2", "\\N", "#", "id", "__proto__",
)  # fmt: skip


@st.composite
def of_csv(draw: st.DrawFn, content: str) -> bytes:
    """A CSV with cells, rows or columns swapped, lost, doubled or hostile, maybe encoded oddly."""
    rows = [line.split(",") for line in content.splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        if not rows:
            break
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, max(len(rows[row]) - 1, 0)))
        _mutate_rows(draw, rows, row, column)
    return _csv_bytes(draw, rows)


def _mutate_rows(draw: st.DrawFn, rows: list[list[str]], row: int, column: int) -> None:
    kinds = ["cell"] * 6 + ["header"] * 2
    kinds += ["less", "more", "drop", "double", "again", "empty", "swap", "lose", "text"]
    cell = draw(st.sampled_from(CELLS))
    match draw(st.sampled_from(kinds)):
        case "cell" if rows[row]:
            rows[row][column] = cell
        case "header" if rows[0]:
            rows[0][min(column, len(rows[0]) - 1)] = cell
        case "less":
            del rows[row][column:]
        case "more":
            rows[row].append(cell)
        case "drop":
            for line in rows:
                del line[column : column + 1]
        case "double":
            for line in rows:
                line += line[column : column + 1]
        case "again":
            rows.insert(row, list(rows[row]))
        case "empty":
            rows.insert(row, [])
        case "swap":
            other = draw(st.integers(0, len(rows) - 1))
            rows[row], rows[other] = rows[other], rows[row]
        case "lose":
            del rows[row:]
        case "text":
            for line in rows[1:]:
                line[column : column + 1] = [cell]


def _csv_bytes(draw: st.DrawFn, rows: Sequence[Sequence[str]]) -> bytes:
    quoted = not rarely(draw)

    def shown(cell: str) -> str:
        needs = quoted and any(mark in cell for mark in ',"\n\r')
        return '"' + cell.replace('"', '""') + '"' if needs else cell

    comma = draw(st.sampled_from([","] * 12 + [";", "\t", "|", ",,"]))
    end = draw(st.sampled_from(["\n"] * 8 + ["\r\n", "\r", "\n\n", "\n\r", "\u2028"]))
    text = end.join(comma.join(map(shown, row)) for row in rows) + draw(st.sampled_from([end, ""]))
    encoding = draw(st.sampled_from(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "latin-1", "utf-32"]))
    return text.encode(encoding, "replace")


# --- JSON ---------------------------------------------------------------------------------------

_DEEP = "DEEP"  # stands for lists nested deeper than Python's stack
_HUGE = "HUGE"  # stands for a number of 400 digits
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, _HUGE, 0.5, 1e308, 5e-324, float("nan"),
    float("inf"),
    "", "x", "0", "1e999", "../..", "/etc/passwd", "a/b", "..", "\ud800", "a\0b", "\x1b[2J",
    "é" * 300,
    "x" * 5000, [], {}, [[]], [None], [1], ["fold0-seed0"], ["x"], [{"fold": 0}], {"x": 1}, _DEEP,
    "fold-1-seed0", "fold0-seed-1", "all-seed", "fold٣-seed0", "2024-01-31T00:00:00+00:00",
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value of which parts have another type, are gone, doubled, huge or deep."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        holder = _holder(draw, value)
        if not holder:
            value = hostile_value(draw)
            continue
        keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        key: Any = draw(st.sampled_from(list(keys)))
        match draw(st.sampled_from(["set"] * 6 + ["lose", "rename", "add"])):
            case "set":
                holder[key] = hostile_value(draw)
            case "lose":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["", "x", f"{key}s", "\ud800"]))] = holder.pop(key)
            case _ if isinstance(holder, dict):
                holder["more"] = hostile_value(draw)
            case _:
                holder.append(hostile_value(draw))
    return value


@st.composite
def of_json(draw: st.DrawFn, value: Any) -> bytes:
    """A document of such a value, which says by itself that it is large or deep."""
    text = json.dumps(draw(mutated(value)), indent=draw(st.sampled_from([2, None])))
    text = text.replace(f'"{_HUGE}"', "9" * 400).replace(f'"{_DEEP}"', "[" * 9999 + "]" * 9999)
    return text.encode(draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "utf-8-sig"])))


def hostile_value(draw: st.DrawFn) -> Any:
    """A JSON value that nobody expects; its own copy, as it may be mutated in turn."""
    return copy.deepcopy(draw(st.sampled_from(VALUES)))


def _holder(draw: st.DrawFn, value: Any) -> Any:
    """A list or mapping somewhere in `value`, or None."""
    holders: list[Any] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict | list):
            if part:
                holders.append(part)
            for item in part.values() if isinstance(part, dict) else part:
                walk(item)

    walk(value)
    return draw(st.sampled_from(holders)) if holders else None


# --- zips ---------------------------------------------------------------------------------------

_NAMES = (
    "../x", "a/../../x", "/x", "//x", "C:\\x", "C:x", "..\\x", "\\x", "a\\..\\..\\x", "~/x", "",
    ".",
    "..", "./x", "a//b", "a/", "a/./b", ".hidden", "__MACOSX/x", "train.csv", "train.csv/x", "a",
    "a/b",
    "a/b/c", "TRAIN.CSV", "x" * 300, "a/" * 60 + "x", "a/" * 1500 + "x", "x\0y", "x\ny", "é",
    "e\u0301",
    "\u202egpj.exe", "con", "x.zip", "x.zip/y", "\ud800", "x ", "🗜",
)  # fmt: skip
_KINDS = (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR, stat.S_IFREG)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_CLAIMS = (0, 1, 1 << 20, (1 << 31) - 1, 0xFFFFFFFE, 0xFFFFFFFF)
_CENTRAL = {
    "version": 6,
    "flags": 8,
    "method": 10,
    "crc": 16,
    "packed": 20,
    "size": 24,
    "offset": 42,
}


@st.composite
def of_zip(draw: st.DrawFn, entries: Mapping[str, bytes], nested: int = 2) -> bytes:
    """A zip whose entries have hostile names, kinds, sizes and content, some of them zips."""
    made: list[tuple[zipfile.ZipInfo, bytes]] = []
    for name, content in entries.items():
        made.append((zipfile.ZipInfo(name), content))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(made) - 1))
        info, content = made[at]
        match draw(
            st.sampled_from(["name", "name", "kind", "add", "zeros", "zip", "again", "bytes"])
        ):
            case "name":
                made[at] = (_renamed(info, draw(st.sampled_from(_NAMES))), content)
            case "kind":
                info.external_attr = draw(st.sampled_from(_KINDS)) << 16
                made[at] = (info, draw(st.sampled_from([b"../../x", b"/etc/passwd", content])))
            case "add":
                made.append(
                    (_renamed(zipfile.ZipInfo("x"), draw(st.sampled_from(_NAMES))), b"more")
                )
            case "zeros":
                made.append((zipfile.ZipInfo("zeros.csv"), bytes(2 << 20)))
            case "zip" if nested:
                inner = draw(of_zip(entries, nested - 1))
                made.append((zipfile.ZipInfo(draw(st.sampled_from(["x.zip", "a/x.ZIP"]))), inner))
            case "again":
                made.append((_renamed(zipfile.ZipInfo("x"), info.filename), content + b"\n"))
            case _:
                made[at] = (info, draw(of_bytes(content)))
    content = _zipped(made, draw(st.sampled_from(_METHODS)))
    return _lied(draw, content) if rarely(draw, 3) else content


def _renamed(info: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    """A copy whose name is kept as given, which the constructor would mend."""
    made = zipfile.ZipInfo("x")
    made.external_attr = info.external_attr
    made.filename = made.orig_filename = name.encode("utf-8", "replace").decode()
    return made


def _zipped(entries: Sequence[tuple[zipfile.ZipInfo, bytes]], method: int) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive._filePassed = 1
        for info, content in entries:
            info.compress_type = method
            info.date_time = (1980, 1, 1, 0, 0, 0)
            archive.NameToInfo.pop(info.filename, None)  # twice in one zip is no error here
            with archive.open(info, "w", force_zip64=False) as part:
                part.write(content)
    return target.getvalue()


def _lied(draw: st.DrawFn, content: bytes) -> bytes:
    """One field of one entry of the central directory says something else."""
    starts = [at for at in range(len(content)) if content.startswith(b"PK\x01\x02", at)]
    if not starts:
        return content
    at = draw(st.sampled_from(starts))
    field = draw(st.sampled_from(sorted(_CENTRAL)))
    wide = field in ("crc", "packed", "size", "offset")
    value = draw(st.sampled_from(_CLAIMS)) & (0xFFFFFFFF if wide else 0xFFFF)
    patch = struct.pack("<I" if wide else "<H", value)
    at += _CENTRAL[field]
    return content[:at] + patch + content[at + len(patch) :]


# --- arrays and tensors -------------------------------------------------------------------------

_DESCRIPTIONS = (
    "'<f8'", "'|O'", "'<U999999999'", "'|S0'", "'<i9'", "'|V8'", "'<M8[s]'", "'>c16'", "'|b1'",
    "'<f2'",
    "[('x', '<f8'), ('y', '|O')]", "('<f8', (1000000000,))", "None", "1", "__import__('os')",
    "'<U1'",
)  # fmt: skip
_SHAPES = (
    "()", "(0,)", "(3,)", "(-1,)", "(2, 2)", "(10**9,)", "(1000000000,)", "(9" + "9" * 30 + ",)",
    "(1000000, 1000000)", "(True,)", "(1.5,)", "None", "3", "(" * 300 + ")" * 300,
    "(0, 1000000000000)",
)  # fmt: skip


class Bomb:
    """A pickle of it runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


@st.composite
def of_npy(draw: st.DrawFn, array: np.ndarray) -> bytes:
    """An npy whose header says another type, order or shape than its data have, or a pickle's."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    match draw(st.sampled_from(["bytes", "header", "pickle", "other"])):
        case "bytes":
            return draw(of_bytes(content))
        case "pickle":
            return _npy("'|O'", "(1,)", pickle.dumps([Bomb()]))
        case "other":
            other = np.asarray(
                draw(st.sampled_from([0.0, [], [1, 2], [["a"]], [True], [np.nan] * 3, -1]))
            )
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, other, allow_pickle=False)
            return buffer.getvalue()
    data = content[10 + struct.unpack("<H", content[8:10])[0] :]
    kind = draw(st.sampled_from([repr(array.dtype.str), *_DESCRIPTIONS]))
    return _npy(kind, draw(st.sampled_from([str(array.shape), *_SHAPES])), data)


def _npy(description: str, shape: str, data: bytes) -> bytes:
    header = f"{{'descr': {description}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@st.composite
def of_npz(draw: st.DrawFn, arrays: Mapping[str, np.ndarray]) -> bytes:
    """An npz of which one array is hostile, missing, renamed or compressed; or its zip is."""
    entries = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, allow_pickle=False)
        entries[f"{name}.npy"] = buffer.getvalue()
    name = draw(st.sampled_from(sorted(entries)))
    match draw(st.sampled_from(["array", "array", "array", "lose", "rename", "zeros", "zip"])):
        case "array":
            entries[name] = draw(of_npy(arrays[name.removesuffix(".npy")]))
        case "lose":
            del entries[name]
        case "rename":
            entries["more.npy"] = entries.pop(name)
        case "zeros":
            return npz_bomb(name)
        case _:
            return draw(of_zip(entries, nested=0))
    method = draw(st.sampled_from(_METHODS[:2]))
    return _zipped([(zipfile.ZipInfo(n), c) for n, c in entries.items()], method)


@cache
def npz_bomb(name: str) -> bytes:
    """128 MiB of zeros in 128 KiB."""
    zeros = _npy("'<f8'", f"({16 << 20},)", bytes(128 << 20))
    return _zipped([(zipfile.ZipInfo(name), zeros)], zipfile.ZIP_DEFLATED)


@st.composite
def of_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Weights whose header lies about sizes, types and places, or is no JSON."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    if rarely(draw):
        header = draw(of_bytes(header))
    else:
        value = json.loads(header)
        header = draw(of_json(value))
    claimed = len(header)
    if rarely(draw):
        claimed = draw(st.sampled_from([0, 1, 2**32, 2**62, 2**64 - 1, len(header) + 1]))
    return struct.pack("<Q", claimed) + header + data


# --- pictures -----------------------------------------------------------------------------------

_SIDES = (0, 1, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"


def pictures() -> dict[str, bytes]:
    """Small valid image files of every format and mode, by name."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    frames = [Image.fromarray(np.roll(pixels[..., :3], n, axis=0)) for n in (1, 2)]
    moving: dict[str, Any] = {"save_all": True, "append_images": frames}
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    palette = rgb.quantize(8)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "rgb.png": (rgb, {}), "rgba.png": (Image.fromarray(pixels), {}),
        "grey.png": (rgb.convert("L"), {}),
        "wide.png": (wide, {}), "palette.png": (palette, {"transparency": 3}),
        "bit.png": (rgb.convert("1"), {}),
        "moving.png": (rgb, moving), "rgb.jpg": (rgb, {"exif": exif}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "progressive.jpg": (rgb, {"progressive": True}), "moving.gif": (palette, moving),
        "rgb.bmp": (rgb, {}), "palette.bmp": (palette, {}), "rgb.webp": (rgb, {"lossless": True}),
        "moving.webp": (rgb, moving), "rgb.tif": (rgb, {}), "packed.tif": (rgb,
        {"compression": "tiff_lzw"}),
        "wide.tif": (wide, {}), "float.tif": (rgb.convert("F"), {}), "moving.tif": (rgb, moving),
        "cmyk.tif": (rgb.convert("CMYK"), {"compression": "tiff_adobe_deflate"}), "rgb.ppm": (rgb,
        {}),
        "grey.pgm": (rgb.convert("L"), {}),
    }  # fmt: skip
    found = {}
    for name, (image, options) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
        found[name] = buffer.getvalue()
    return {**found, "script.png": _EPS}


@st.composite
def of_picture(draw: st.DrawFn, found: Mapping[str, bytes]) -> tuple[str, bytes]:
    """(name, content) of an image file with damaged bytes, absurd sizes, or another's name."""
    name = draw(st.sampled_from(sorted(found)))
    content = found[name]
    match draw(st.sampled_from(["bytes", "bytes", "size", "size", "cut", "none"])):
        case "bytes":
            content = draw(of_bytes(content))
        case "size":
            content = _resized(draw, name, content)
        case "cut":
            content = content[: draw(st.integers(0, len(content)))]
    return draw(st.sampled_from([name] * 6 + ["x.png", "x.jpg", "x"])), content


def _resized(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """The declared width or height is absurd, checksums put right."""
    side = draw(st.sampled_from(_SIDES))
    second = draw(st.booleans())
    if name.endswith(".png") and content.startswith(b"\x89PNG"):
        at = 20 if second else 16
        header = content[12:at] + struct.pack(">I", side) + content[at + 4 : 29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    places = {".gif": (6, "<H"), ".bmp": (18, "<i"), ".jpg": (-1, ">H"), ".webp": (26, "<H")}
    at, form = places.get(Path(name).suffix, (-1, ">H"))
    if at < 0:  # the frame header of a JPEG, or somewhere
        mark = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        at = mark + 5 if mark > 0 else draw(st.integers(0, max(len(content) - 8, 0)))
    width = struct.calcsize(form)
    at += width * second
    patch = struct.pack(form.upper() if form[1] == "i" else form, side & (2 ** (8 * width) - 1))
    return content[:at] + patch + content[at + width :]


@st.composite
def of_idx(draw: st.DrawFn, content: bytes) -> bytes:
    """An idx file with another magic number or absurd sizes, perhaps gzipped well or badly."""
    if rarely(draw):
        content = draw(of_bytes(content))
    else:
        at = draw(st.sampled_from([0, 2, 3, 4, 8, 12]))
        value = draw(st.sampled_from([0, 1, 2, 3, 8, 255, 0x7FFFFFFF, 0xFFFFFFFF]))
        patch = bytes([value & 255]) if at < 4 else struct.pack(">I", value)
        content = content[:at] + patch + content[at + len(patch) :]
    match draw(st.sampled_from(["plain", "gzip", "torn", "bomb"])):
        case "gzip":
            return gzip.compress(content, mtime=0)
        case "torn":
            return draw(of_bytes(gzip.compress(content, mtime=0)))
        case "bomb":
            head = b"\0\0\x08\x03" + struct.pack(">III", 1 << 27, 1, 1)
            return gzip.compress(head, mtime=0) + _gzipped_zeros()
    return content


@cache
def _gzipped_zeros() -> bytes:
    """128 MiB in 128 KiB, as a second member of a gzip file."""
    return gzip.compress(bytes(128 << 20), 9, mtime=0)
