"""Reads image files into arrays, and serves them to worker processes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from . import folders, keeping
from .errors import UserError
from .files import explained
from .tables import natural

_log = logging.getLogger("kagglekit")

Channels = Literal[1, 3]
Transform = Callable[[np.ndarray, int], np.ndarray]  # uint8 (h, w, channels), seed -> the same
Keep = Literal["auto", "memory", "disk"]
Item = tuple[torch.Tensor] | tuple[torch.Tensor, torch.Tensor]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# decided by content, whatever a file's name; of others Pillow would run Ghostscript for EPS
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_LAYOUT = "2"  # raise it when what `read` makes of a file changes
_SAMPLE = 64  # files that are looked at to tell how much memory all of them take
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # more than eight bits a sample


def read(
    path: Path,
    channels: Channels = 3,
    size: tuple[int, int] | None = None,
    shorter: int | None = None,
) -> np.ndarray:
    """An image as uint8 (height, width, channels), resized to `size` = (height, width) if given.

    `shorter` shrinks one whose shorter side has more pixels to so many, its shape kept; smaller
    ones are left alone. Both are bilinear over all pixels, free of aliasing; a JPEG more than
    twice as large in both directions is decoded at a half, a quarter or an eighth first.

    | in the file | becomes |
    |---|---|
    | EXIF orientation | applied |
    | palette, CMYK, other colour spaces | RGB, or its luminance for one channel |
    | transparency | laid over white |
    | 16 bits a sample, whole numbers | 0…65535 scaled to 0…255 |
    | floats | 0…1 scaled to 0…255 |
    | several frames | the first |

    A file that is missing, empty, cut short, no image, or larger than Pillow's
    `Image.MAX_IMAGE_PIXELS` allows raises UserError.
    """
    wanted = max(size) if size else shorter
    least = None if wanted is None else 2 * wanted
    image = _opened(path, "L" if channels == 1 else "RGB", least)
    if shorter is not None:
        image = _resized(image, _shrunk(image.height, image.width, shorter))
    if size is not None:
        image = _resized(image, size)
    return np.array(image, np.uint8).reshape(image.height, image.width, channels)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size[::-1]:
        return image
    return image.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0)


def _shrunk(height: int, width: int, shorter: int | None) -> tuple[int, int]:
    """(height, width) with a shorter side of at most so many pixels."""
    least = min(height, width)
    if shorter is None or least <= shorter:
        return height, width
    return round(height * shorter / least), round(width * shorter / least)


def _extent(path: Path, shorter: int | None) -> tuple[int, int]:
    """The sides of what `read` gives, in either order: EXIF may turn it. UserError as there."""
    with _image(path) as image:
        return _shrunk(image.height, image.width, shorter)


def folder_classes(folder: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """The images of `folder/<class>/…`: their paths, class positions (rows,) int64, class names.

    Classes and files are in natural order; hidden files, and files that are no images by their
    name, do not count. A missing folder, no class, or a class without images raises UserError.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: it should hold one folder of images a class")
    with explained():
        names = [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    classes = tuple(sorted(names, key=natural))
    if not classes:
        raise UserError(f"{folder} has no folders: it should hold one folder of images a class")
    paths: list[Path] = []
    positions: list[int] = []
    for position, name in enumerate(classes):
        found = folder_images(folder / name)
        if not found:
            raise UserError(f"{folder / name} has no images: remove it, or download the data again")
        paths += found
        positions += [position] * len(found)
    return paths, np.array(positions, np.int64), classes


def folder_images(folder: Path) -> list[Path]:
    """The visible image files of a folder and of those in it, in natural order."""
    found = []
    with explained():
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if name[0] != "."]
            visible = (name for name in names if name[0] != ".")
            found += [
                Path(parent, name) for name in visible if Path(name).suffix.lower() in _SUFFIXES
            ]
    return sorted(found, key=lambda path: natural(path.relative_to(folder).as_posix()))


class Pixels(Protocol):
    """Images one by one: uint8 (height, width, channels) each, of any size."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, row: int, /) -> np.ndarray:
        """The image of one row."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files as `Pixels`, decoded anew each time; `size` and `shorter` as in `read`."""

    paths: Sequence[Path]
    channels: Channels = 3
    size: tuple[int, int] | None = None
    shorter: int | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        """The image of one row; UserError that names a broken file."""
        return read(self.paths[row], self.channels, self.size, self.shorter)


@dataclass(eq=False)
class Decoded:
    """Image files as `Pixels`, each decoded when it is first looked at, and then kept.

    | keep | where |
    |---|---|
    | disk | in the cache, until it is cleaned; UserError where that has no room |
    | memory | in memory, until this process ends; UserError where that has no room |
    | auto | on disk where half of what is free is enough, else in memory likewise, else nowhere |

    Whatever is looked at is the same. Worker processes, members, folds, and data sets of other
    rows all share what is kept; what lies on disk the system has in memory too, as long as there
    is room. Workers that decode fill it side by side, and a killed run leaves what it has decoded.
    Memory is shared with workers that are forked (Linux), and others decode each time.
    """

    paths: Sequence[Path]
    channels: Channels = 3
    keep: Keep = "auto"
    size: tuple[int, int] | None = None  # images keep their own where it is not given
    shorter: int | None = None

    def __post_init__(self) -> None:
        """Decide where images are kept, in the process that workers come from."""
        self._files = Files(self.paths, self.channels, self.size, self.shorter)
        self._made_by = f"{_LAYOUT} {self.channels} {self.size} {self.shorter}"
        self._shelf = self._chosen()
        self._checked = _flags(len(self))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        """The image of one row; UserError that names a broken file."""
        shelf, path = self._shelf, self.paths[row]
        key = None if shelf is None else keeping.key(path, self._made_by)
        if shelf is None or key is None:
            return self._files[row]
        found = shelf.find(key, check=not self._checked[row])
        self._checked[row] = 1  # once for all processes that share these flags
        if found is None:
            found = self._files[row]
            shelf.keep(key, found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without memory, which a process that was started afresh has no part in."""
        state = {name: part for name, part in self.__dict__.items() if name != "_checked"}
        return {**state, "_shelf": None} if isinstance(self._shelf, keeping.Memory) else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With flags of its own."""
        self.__dict__.update(state, _checked=_flags(len(state["paths"])))

    def _chosen(self) -> keeping.Shelf | None:
        home = folders.cache() / "decoded"
        disk = keeping.Disk(home, strict=self.keep == "disk")
        if self.keep == "disk":
            return self._demanded(disk, f"on the disk of {home}")
        if self.keep == "memory":
            shared = keeping.memory()
            return self._demanded(shared, "in memory") if shared else None
        needed = self._needed(disk)
        if needed <= disk.free() // 2:
            _say(f"decoded images are kept in {home}")
            return disk
        shared = keeping.memory()
        if shared is not None and self._needed(shared) <= shared.free():
            _say(f"decoded images are kept in memory: {home} has no room for them")
            return shared
        _say(
            f"{len(self)} decoded images would take {needed / 2**30:.1f} GiB, more than half of"
            f" what is free, in {home} and in memory: each is decoded each time"
        )
        return None

    def _demanded(self, shelf: keeping.Shelf, place: str) -> keeping.Shelf:
        """The shelf; UserError where these images do not fit."""
        needed, free = self._needed(shelf), shelf.free()
        if needed > free:
            raise UserError(
                f"keep={self.keep} needs {needed / 2**30:.2f} GiB {place}, where {free / 2**30:.2f}"
                ' are free: take keep="auto", or give `shorter` to keep smaller images'
            )
        return shelf

    def _needed(self, shelf: keeping.Shelf) -> int:
        """Bytes that a shelf still has to take, by a look at some of the files."""
        count = len(self)
        rows = sorted({step * (count - 1) // (_SAMPLE - 1) for step in range(_SAMPLE)})
        sizes = [self._missing_bytes(self.paths[row], shelf) for row in rows if count]
        return round(count * sum(sizes) / max(len(sizes), 1))

    def _missing_bytes(self, path: Path, shelf: keeping.Shelf) -> int:
        try:
            key = keeping.key(path, self._made_by)
            if key is not None and shelf.has(key):
                return 0
            height, width = self.size or _extent(path, self.shorter)
        except UserError:  # said when it is its turn
            return 0
        return height * width * self.channels


def _flags(count: int) -> mmap:
    """A byte for each of so many rows, shared with processes that are forked later."""
    return mmap(-1, max(count, 1))


_said: set[str] = set()


def _say(sentence: str) -> None:
    """Say what was decided, once a process."""
    if sentence not in _said:
        _said.add(sentence)
        _log.warning(sentence)


@dataclass(frozen=True, eq=False)
class Images(Dataset[Item]):
    """Images as uint8 tensors (channels, height, width), each with its target if known.

    `pixels` may be `Files`, `Decoded`, or an array (rows, height, width, channels). Everything in
    it can be sent to a worker process that was started afresh, as long as `transform` can: a
    function of a module, or an object of a class of one. Its seed comes from NumPy's global
    generator, which the engine seeds anew for each row and epoch.
    """

    pixels: Pixels
    targets: np.ndarray | None  # (rows, ...)
    transform: Transform | None = None
    size: tuple[int, int] | None = None  # (height, width) of what comes out

    def __post_init__(self) -> None:
        """Refuse targets that are not one an image."""
        if self.targets is not None and len(self.targets) != len(self.pixels):
            raise ValueError(f"{len(self.targets)} targets for {len(self.pixels)} images")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pixels)

    def __getitem__(self, row: int) -> Item:
        """The image of one row, and its target."""
        image = self.pixels[row]
        if self.transform is not None:
            image = self.transform(image, int(np.random.randint(2**31)))
        if self.size is not None:
            image = resized(image, self.size)
        # a copy, since it may be a part of somebody's array; channels stay last in memory, where
        # images become a batch, and what models take, without their pixels being sorted anew
        inputs = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)
        if self.targets is None:
            return (inputs,)
        return inputs, torch.as_tensor(self.targets[row])


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset[Item]):
    """`Images` of files; `size` is (height, width), without it images keep their own.

    `keep` says where what was decoded stays, see `Decoded`; "none" decodes each file each time it
    is looked at. Large photographs want `shorter`: what is kept, and what `transform` sees, has a
    shorter side of at most so many pixels (256 for crops of 224), and `size` is given to what
    comes out. Without `shorter` images have their `size` before `transform` sees them.
    """

    paths: Sequence[Path]
    targets: np.ndarray | None  # (rows, ...)
    channels: Channels = 3
    size: tuple[int, int] | None = None
    transform: Transform | None = None
    keep: Keep | Literal["none"] = "auto"
    shorter: int | None = None

    def __post_init__(self) -> None:
        """Refuse targets that are not one a path; decide where images are kept."""
        assert len(self._images) == len(self.paths)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> Item:
        """The image of one row, and its target."""
        return self._images[row]

    @cached_property
    def _images(self) -> Images:
        first, last = (self.size, None) if self.shorter is None else (None, self.size)
        pixels: Pixels = Files(self.paths, self.channels, first, self.shorter)
        if self.keep != "none":
            pixels = Decoded(self.paths, self.channels, self.keep, first, self.shorter)
        return Images(pixels, self.targets, self.transform, last)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (height, width, channels) uint8 at another (height, width), free of aliasing."""
    if image.shape[:2] == size:
        return image
    mode = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    smaller = mode.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(smaller, np.uint8).reshape(*size, image.shape[2])


def _opened(path: Path, mode: str, least: int | None = None) -> Image.Image:
    """The first frame, upright, in `mode`; a JPEG may come smaller, but no side below `least`."""
    with _image(path) as image:
        image.seek(0)
        if least is not None:
            image.draft(None, (least, least))
        image.load()
        return _eight_bit(_upright(image), mode)


@contextmanager
def _image(path: Path) -> Iterator[Image.Image]:
    """An image file, opened; whatever is wrong with it raises UserError."""
    try:
        with explained(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to talk
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with path.open("rb") as handle, Image.open(handle, formats=_FORMATS) as image:
                yield image
    except (UserError, MemoryError):  # the image is not to blame for want of memory
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: download the data again") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{path} is too large to be an honest image ({error}): remove it"
        ) from error
    except Exception as error:  # each of Pillow's decoders fails in its own ways
        raise _broken(path, error) from error


def _broken(path: Path, error: BaseException) -> UserError:
    if path.stat().st_size == 0:
        return UserError(f"{path} is empty: download it again, or remove its row")
    return UserError(
        f"{path} is no whole image ({error or type(error).__name__}): download it again, or remove"
        " its row"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata leave the image as good as it is
        return image


def _eight_bit(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _WIDE:
        samples = np.asarray(image, np.float64)
        scale = 255.0 if image.mode == "F" else 255 / 65535
        image = Image.fromarray(np.rint(np.clip(samples * scale, 0, 255)).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if image.mode not in ("L", "RGB", mode):
        image = image.convert("RGB")
    return image.convert(mode)
