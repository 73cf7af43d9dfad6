"""Brings a competition's files here: resumed, verified, unpacked, and only then in place."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files, folders, kaggle, locks, problem
from .errors import KagglekitError, NetworkError, UserError
from .kaggle import Kaggle
from .progress import duration

if TYPE_CHECKING:
    import requests

Tell = Callable[[str], None]

NOTE = ".download.json"  # in the data: which download they are

_CHUNK = 1 << 18  # bytes
_TRIES = 6  # in a row without a new byte
_NAMES = 5  # files named in a sentence


@dataclass(frozen=True)
class _Body:
    """What the server says it sends. `tag` is empty where two bodies cannot be told apart."""

    tag: str
    size: int | None
    name: str

    def as_json(self) -> dict[str, Any]:
        return {"tag": self.tag, "size": self.size, "name": self.name}


def download(name: str, slug: str | None, command: str, tell: Tell) -> dict[str, Any]:
    """The competition's files in `data/<name>`, unpacked; what was there before is kept beside.

    A broken download goes on where it stopped. Nothing is in place before everything is here and
    sound. Raises NetworkError where the connection fails, UserError where the user has to act.
    """
    competition = problem.find(name, slug)
    target = folders.data() / name
    with files.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = locks.Lock(target, command)
        lock.wait(lambda owner: tell(f"{owner.describe()} is downloading {name}: waiting for it"))
    with lock:
        work = folders.partial_download(target)
        _mend(target, work)
        with kaggle.connected(competition.slug) as service:
            tell("asking Kaggle")
            listed = service.files()
            got = _fetched(service, target, work, tell)
        if got is None:
            files.remove(work)
            return _report(name, competition.slug, target, None, False)
        tell("unpacking")
        fresh, kept = _placed(got, target, work)
        lacking = _lacking(target, [file.name for file in listed])
        return {**_report(name, competition.slug, target, kept, fresh), "lacking": lacking}


def _report(name: str, slug: str, target: Path, kept: Path | None, fresh: bool) -> dict[str, Any]:
    found = files.visible_files(target)
    return {
        "competition": name,
        "slug": slug,
        "data": str(target),
        "files": len(found),
        "bytes": sum(path.stat().st_size for path in found.values()),
        "fresh": fresh,
        "kept": str(kept) if kept else None,
        "lacking": [],
    }


def _lacking(target: Path, names: list[str]) -> list[str]:
    """What Kaggle lists and the download has not, whatever folder or zip it came in."""
    here = {Path(name).name for name in files.visible_files(target)}
    wanted = [name for name in names if Path(name).name.removesuffix(".zip") not in here]
    return [name for name in wanted if not name.endswith(".zip") and Path(name).name not in here]


# --- the bytes ----------------------------------------------------------------------------------


def _fetched(service: Kaggle, target: Path, work: Path, tell: Tell) -> Path | None:
    """The whole body in `work`; None where `target` is of that very body."""
    response = service.open_download()
    body = _body(response, service.slug)
    if _is_here(target, body, service.slug):
        response.close()
        return None
    part, note = work / "part", work / "part.json"
    if not _is_of(note, part, body):
        _clear(work)
        files.write_json(note, body.as_json())
    _stream(service, response, body, part, tell)
    size = part.stat().st_size
    if body.size is not None and size != body.size:
        raise NetworkError(
            f"the download of {service.slug} has {size:,} of {body.size:,} bytes: the same command "
            "goes on"
        )
    files.write_json(work / "whole.json", {**body.as_json(), "slug": service.slug, "size": size})
    return part


def _body(response: requests.Response, slug: str) -> _Body:
    headers = response.headers
    if "text/html" in headers.get("Content-Type", "") and "Content-Disposition" not in headers:
        response.close()
        raise NetworkError(f"Kaggle sent a web page in place of the files of {slug}: try later")
    length = headers.get("Content-Length", "")
    encoded = headers.get("Content-Encoding", "identity") not in ("", "identity")
    size = int(length) if length.isdecimal() and not encoded else None
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    if tag.startswith("W/"):  # a weak tag does not promise the same bytes
        tag = ""
    return _Body(tag, size, _file_name(response, slug))


def _file_name(response: requests.Response, slug: str) -> str:
    """What the body is called: of no consequence for a zip, the file's own name for another."""
    said = re.search(r'filename="?([^";]+)', response.headers.get("Content-Disposition", ""))
    name = said[1] if said else response.url.split("?")[0].rsplit("/", 1)[-1]
    name = re.sub(r"[^\w. -]", "_", name).strip(". ")
    return name or f"{slug}.zip"


def _is_of(note: Path, part: Path, body: _Body) -> bool:
    """Whether what is here of an earlier try is the beginning of this very body."""
    if not body.tag or not part.is_file():
        return False
    return _kept(note) == body.as_json() and part.stat().st_size <= (body.size or 0)


def _is_here(target: Path, body: _Body, slug: str) -> bool:
    kept = _kept(target / NOTE)
    same = {**body.as_json(), "slug": slug}
    if not body.tag or {key: kept.get(key) for key in same} != same:
        return False
    sizes = kept.get("files", {})
    found = files.visible_files(target)
    return all(name in found and found[name].stat().st_size == sizes[name] for name in sizes)


def _kept(path: Path) -> Mapping[str, Any]:
    try:
        told = files.read_json(path)
    except UserError:
        return {}
    return told if isinstance(told, dict) else {}


def _stream(
    service: Kaggle, response: requests.Response, body: _Body, part: Path, tell: Tell
) -> None:
    """Append what is missing, from the first byte or from where an earlier try stopped."""
    fruitless = 0
    meter = _Meter(body.size, tell)
    while True:
        start = part.stat().st_size if part.is_file() else 0
        if start and start == body.size:
            response.close()
            return
        if start:
            response.close()
            response = service.reopen_download(response, start, body.tag) if body.tag else (
                service.open_download()
            )  # fmt: skip
        try:
            _append(response, body, part, meter)
            return
        except KagglekitError:
            raise
        except Exception as error:
            sentence = service.broken(error)
            response.close()
            size = part.stat().st_size if part.is_file() else 0
            fruitless = fruitless + 1 if size <= start else 0
            if fruitless >= _TRIES:
                raise NetworkError(f"{sentence}; the same command goes on at {size:,} bytes") from (
                    error
                )
            time.sleep(next(kaggle.pauses(1 / 60)))
            if not size:
                response = service.open_download()


def _append(response: requests.Response, body: _Body, part: Path, meter: _Meter) -> None:
    """Write a body to `part`: behind what is there where it is the rest, else anew."""
    rest = response.status_code == 206
    start = part.stat().st_size if rest else 0
    if not (_is_rest(response, start) if rest else _is_same(_body(response, body.name), body)):
        raise NetworkError("the files were changed on Kaggle in the middle: type it again")
    _refuse_full(part.parent, (body.size or 0) - start)
    with files.explained(part), part.open("ab" if rest else "wb") as handle:
        meter.begin(start)
        for chunk in response.iter_content(_CHUNK):
            if body.size is not None and handle.tell() + len(chunk) > body.size:
                raise NetworkError("Kaggle sends more bytes than it said: try again later")
            handle.write(chunk)
            meter.show(handle.tell())
        handle.flush()
        os.fsync(handle.fileno())
    if body.size is not None and part.stat().st_size < body.size:
        raise ConnectionError("the body ended early")


def _is_rest(response: requests.Response, start: int) -> bool:
    """Whether a part of a body is the part that was asked for."""
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _is_same(one: _Body, other: _Body) -> bool:
    return (one.tag, one.size) == (other.tag, other.size)


def _refuse_full(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"the download needs {wanted:,} bytes but {folder.parent} has {free:,} free: free some "
            "disk space, or set $KAGGLEKIT_DATA to a folder elsewhere"
        )


class _Meter:
    """How far a download is, how fast, and how long it will take."""

    def __init__(self, size: int | None, tell: Tell) -> None:
        self.size, self.tell = size, tell
        self.began, self.start, self.told = time.monotonic(), 0, 0.0

    def begin(self, start: int) -> None:
        self.began, self.start = time.monotonic(), start

    def show(self, here: int) -> None:
        now = time.monotonic()
        if now - self.told < 0.1:
            return
        self.told = now
        pace = (here - self.start) / max(now - self.began, 1e-3)
        text = f"{here / 1e6:,.1f} MB"
        if self.size:
            text += f" of {self.size / 1e6:,.1f} MB, {here / self.size:.0%}"
        text += f", {pace / 1e6:,.1f} MB/s"
        if self.size and pace:
            text += f", {duration((self.size - here) / pace)} left"
        self.tell(text)


# --- in place -----------------------------------------------------------------------------------


def _placed(part: Path, target: Path, work: Path) -> tuple[bool, Path | None]:
    """Unpack beside `target` and let that take its place; whether it did, and where the old is."""
    whole = dict(_kept(work / "whole.json"))
    box = work / "box"
    _fresh(box)
    name = str(whole["name"])
    if _is_zip(part):
        name = name if name.lower().endswith(".zip") else f"{name}.zip"
    try:
        os.link(part, box / name)
    except OSError:  # a file system without them
        shutil.copyfile(part, box / name)
    try:
        made = files.unpacked(box, work)
        if made == box:
            made = work / "loose"
            _fresh(made)
            shutil.copyfile(part, made / name)
    except UserError:
        _clear(work)  # else the same bytes would fail again
        raise
    sizes = {key: path.stat().st_size for key, path in files.visible_files(made).items()}
    files.write_json(made / NOTE, {**whole, "files": sizes})
    (made / ".unpacked.json").unlink(missing_ok=True)
    fresh = not _is_same_data(made, target)
    if fresh:
        kept = _swap(made, target, work)
    else:
        kept = None
        files.write_bytes(target / NOTE, (made / NOTE).read_bytes())
    files.remove(work)
    return fresh, kept


def _is_same_data(made: Path, target: Path) -> bool:
    """Whether `target` has these very files; others may lie beside them."""
    if not target.is_dir():
        return False
    new, old = files.visible_files(made), files.visible_files(target)
    return all(n in old and filecmp.cmp(path, old[n], shallow=False) for n, path in new.items())


def _is_zip(path: Path) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)


def _swap(made: Path, target: Path, work: Path) -> Path | None:
    """Two renames: a process killed between them is mended by the next, in `_mend`."""
    with files.explained(target):
        if not target.exists():
            made.rename(target)
            return None
        if not files.visible_files(target):
            target.rename(work / "empty")
            made.rename(target)
            return None
        taken = (target.with_name(f"{target.name}~{number}") for number in range(1, 10_000))
        aside = next(path for path in taken if not path.exists())
        files.write_json(work / "swap.json", {"aside": aside.name})
        target.rename(aside)
        made.rename(target)
        return aside


def _mend(target: Path, work: Path) -> None:
    """Put earlier data back that a process killed in `_swap` had just moved aside."""
    work.mkdir(exist_ok=True)
    aside = _kept(work / "swap.json").get("aside")
    if isinstance(aside, str) and not target.exists():
        with files.explained(target):
            target.with_name(aside).rename(target)
    (work / "swap.json").unlink(missing_ok=True)


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _clear(work: Path) -> None:
    _fresh(work)
