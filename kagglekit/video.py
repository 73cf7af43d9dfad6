"""Decodes clips: frames as uint8 with the moments they are shown at, once, within fixed bounds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import files, folders
from .errors import UserError
from .files import explained

Item = TypeVar("Item")
Made = TypeVar("Made")

SUFFIXES = {".avi", ".mkv", ".mp4", ".webm", ".m4v", ".mov"}

_LAYOUT = "1"  # raise it when what is cached changes
_LONGEST_SIDE = 4  # times the height: a wider picture is squeezed
_USUAL_RATE = 25.0  # frames a second, where a file does not say, or says nonsense
_RATES = (0.1, 1000.0)
_SQUEEZED = (0.25, 4.0)  # shapes of pixels that occur; others are a damaged header's


@dataclass(frozen=True)
class Limits:
    """How much of a clip is kept, and how much work it may make before it is refused."""

    height: int = 128  # pixels of the shorter side that is kept; smaller clips stay as they are
    frames: int = 96  # kept at most, evenly spread over the whole clip
    pixels: int = 1 << 25  # of one frame in the file; 8K has as many
    seconds: float = 60.0  # that decoding may take


USUAL = Limits()


@dataclass(frozen=True, eq=False)
class Clip:
    """What was decoded of a file.

    `frames` is (frames, height, width, 3) uint8 RGB, `times` (frames,) float64 the seconds at which
    each appears, rising from 0.
    """

    frames: np.ndarray
    times: np.ndarray

    @property
    def rate(self) -> float:
        """Frames a second: by the median step, so that one gap does not count."""
        return _rate(self.times)

    @property
    def duration(self) -> float:
        """Seconds until the last frame goes."""
        return float(self.times[-1]) + 1 / self.rate

    def at(self, moments: np.ndarray) -> np.ndarray:
        """The frames shown at `moments`, in seconds: (moments, height, width, 3)."""
        return self.frames[shown(self.times, moments)]


def read(path: Path, limits: Limits = USUAL) -> Clip:
    """The frames of a clip, upright, with square pixels, shrunk to `limits.height`.

    What the header says of length and rate is not believed: every frame is decoded, and of more
    than `limits.frames` every second is dropped, again and again. Times are those of the frames;
    where they are missing or do not rise, the frames are spread evenly. Only AVI, Matroska, WebM
    and MP4 are opened, by content, so that no playlist leads to other files or to the network.

    Raises UserError for a file that is missing, empty, no video, without a video stream or a
    single frame, with frames of more than `limits.pixels`, or that takes longer to decode than
    `limits.seconds`. A file that breaks off after some frames gives those.
    """
    kept = _Kept(limits.frames)
    with explained(), _opened(path) as handle:
        guarded = _Guarded(handle, time.monotonic() + limits.seconds)
        try:
            for moment, frame in _frames(path, guarded, limits):
                kept.add(moment, frame)
        except UserError:
            raise
        except (OSError, ValueError, EOFError, ArithmeticError, LookupError) as error:
            # FFmpeg's errors are of these; what came before the damage is as good as ever
            if guarded.late:
                raise _slow(path, limits) from error
            if not kept.frames:
                raise _broken(path, error) from error
    if not kept.frames:
        raise UserError(
            f"{path} has no frame that can be decoded, or frames of more than {limits.pixels:,}"
            " pixels: download it again or remove it"
        )
    return Clip(np.stack(kept.frames), _rising(kept.moments))


def cached(path: Path, limits: Limits = USUAL, digest: str = "") -> Clip:
    """As `read`, but decoded once: the frames are kept in the cache by the file's content.

    `digest` is the content's, where it is known already.
    """
    import av

    digest = digest or files.file_digest(path)
    version = av.__version__.replace("+", "-")
    key = f"clip-{_LAYOUT}-{digest}-{limits.height}-{limits.frames}-{version}"

    def build() -> dict[str, np.ndarray]:
        clip = read(path, limits)
        return {"frames": clip.frames, "times": clip.times}

    arrays = files.cached_arrays(folders.cache(), key, build)
    return Clip(arrays["frames"], arrays["times"])


def shown(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Positions of the frames that are on the screen at `moments`, however uneven `times` are."""
    return np.clip(np.searchsorted(times, moments, side="right") - 1, 0, len(times) - 1)


def spread(duration: float, count: int, offset: float | np.ndarray = 0.5) -> np.ndarray:
    """(count,) moments, one in each of `count` equal parts of `duration`.

    `offset` says where in its part a moment lies, 0…1: one number for all, so that 0.25 and 0.75
    look at other frames of the same clip, or one a part, drawn at random in training (TSN, Wang et
    al., arXiv:1608.00859).
    """
    return (np.arange(count) + offset) * (duration / count)


def threads() -> int:
    """Clips that are decoded at once: one a core, as far as OMP_NUM_THREADS allows."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(int(allowed) if allowed.isdigit() else 8, cores or 1, 8))


def in_parallel(function: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[Made]:
    """What `function` gives for each item, in their order; FFmpeg and OpenCV release the GIL."""
    count = threads()
    if count == 1 or len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(count) as pool:
        for first in range(0, len(items), 4 * count):  # not all at once: results take memory
            yield from pool.map(function, items[first : first + 4 * count])


# --- decoding -----------------------------------------------------------------------------------


class _Guarded:
    """A file that refuses to be read past a deadline, so that no demuxer loops for ever."""

    def __init__(self, handle: Any, deadline: float) -> None:
        self.handle, self.deadline, self.late = handle, deadline, False

    def check(self) -> None:
        if time.monotonic() > self.deadline:
            self.late = True
            raise OSError("the time is up")

    def read(self, size: int = -1) -> bytes:
        self.check()
        content: bytes = self.handle.read(size)
        return content

    def seek(self, place: int, whence: int = 0) -> int:
        self.check()
        return int(self.handle.seek(place, whence))

    def tell(self) -> int:
        return int(self.handle.tell())


class _Kept:
    """Frames evenly spread over a clip of unknown length, never more than twice `most`."""

    def __init__(self, most: int) -> None:
        self.most, self.stride, self.seen = most, 1, 0
        self.frames: list[np.ndarray] = []
        self.moments: list[float] = []

    def add(self, moment: float, frame: Callable[[], np.ndarray]) -> None:
        """Keep the frame if it is its turn; `frame` gives its pixels when called."""
        if self.seen % self.stride == 0:
            if len(self.frames) == self.most:
                self.frames, self.moments = self.frames[::2], self.moments[::2]
                self.stride *= 2
            if self.seen % self.stride == 0:
                picture = frame()
                if self.frames and picture.shape != self.frames[0].shape:  # size changed midway
                    picture = _resized(picture, self.frames[0].shape)
                self.frames.append(picture)
                self.moments.append(moment)
        self.seen += 1


def _frames(
    path: Path, handle: _Guarded, limits: Limits
) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """Each frame's moment, and a function that gives its pixels."""
    import av

    kind = _container(path, handle)
    # a frame larger than that is refused by the decoder itself, before it takes memory
    options = {"max_pixels": str(limits.pixels), "threads": "1"}
    with av.open(handle, format=kind, options=options, metadata_errors="replace") as container:
        if not container.streams.video:
            raise UserError(f"{path} has no video stream: remove it, or download it again")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise UserError(f"{path} is in a codec that FFmpeg does not know: convert it")
        if context.width * context.height > limits.pixels:
            raise UserError(
                f"{path} claims frames of {context.width} × {context.height} pixels, more than"
                f" {limits.pixels:,}: remove it"
            )
        stream.thread_type = "NONE"
        context.options = options
        for frame in _decoded(container, stream):
            handle.check()
            moment = math.nan if frame.time is None else float(frame.time)
            yield moment, partial(_picture, frame, limits.height)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames as far as packets decode; damaged ones between sound ones are passed over."""
    import av

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _picture(frame: Any, height: int) -> np.ndarray:
    """The pixels of a frame as (h, w, 3) uint8: square, upright, and no larger than wanted."""
    high, wide = frame.height, frame.width
    shape = frame.sample_aspect_ratio if hasattr(frame, "sample_aspect_ratio") else None
    if shape and _SQUEEZED[0] <= shape <= _SQUEEZED[1]:
        wide = max(1, round(wide * float(shape)))
    scale = min(1.0, height / min(high, wide))
    high, wide = (max(1, min(round(side * scale), _LONGEST_SIDE * height)) for side in (high, wide))
    pixels = frame.to_ndarray(format="rgb24", width=wide, height=high, interpolation="AREA")
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _resized(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    resized = Image.fromarray(picture).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _container(path: Path, handle: _Guarded) -> str:
    """FFmpeg's name of the container, by the first bytes; UserError for any other file."""
    head = handle.read(12)
    handle.seek(0)
    if not head:
        raise UserError(f"{path} is empty: download it again or remove it")
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mov"
    raise UserError(f"{path} is no AVI, Matroska, WebM or MP4 file: convert it or remove it")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: download the data again") from None


def _rising(moments: Iterable[float]) -> np.ndarray:
    """Seconds from 0, rising: as told where they are sound, else evenly spread."""
    told = np.array(list(moments), np.float64)
    steps = np.diff(told)
    rising = len(told) > 1 and bool(np.isfinite(told).all() and (steps > 0).all())
    if rising and _RATES[0] <= 1 / float(np.median(steps)) <= _RATES[1]:
        return told - told[0]
    usable = steps[np.isfinite(steps) & (steps > 1 / _RATES[1]) & (steps < 1 / _RATES[0])]
    step = float(np.median(usable)) if len(usable) else 1 / _USUAL_RATE
    return np.arange(len(told)) * step


def _rate(times: np.ndarray) -> float:
    return 1 / float(np.median(np.diff(times))) if len(times) > 1 else _USUAL_RATE


def _slow(path: Path, limits: Limits) -> UserError:
    return UserError(
        f"{path} takes longer than {limits.seconds:g} s to decode: cut or convert it, or remove it"
    )


def _broken(path: Path, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{path} is no whole clip ({reason}): download it again or remove it")
