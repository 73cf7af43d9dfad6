"""Reads image files into arrays, and serves them to worker processes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from . import files, folders
from .errors import UserError
from .files import explained
from .tables import natural

Channels = Literal[1, 3]
Transform = Callable[[np.ndarray, int], np.ndarray]  # uint8 (h, w, channels), seed -> the same
Keep = Literal["memory", "disk"]
Item = tuple[torch.Tensor] | tuple[torch.Tensor, torch.Tensor]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# decided by content, whatever a file's name; of others Pillow would run Ghostscript for EPS
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_SHARD = 256  # decoded images that are cached together
_LAYOUT = "1"  # raise it when what is cached changes
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # more than eight bits a sample


def read(path: Path, channels: Channels = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image as uint8 (height, width, channels), resized to `size` = (height, width) if given.

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
    image = _opened(path, "L" if channels == 1 else "RGB")
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(image, np.uint8).reshape(image.height, image.width, channels)


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
    """Image files as `Pixels`, decoded anew each time."""

    paths: Sequence[Path]
    channels: Channels = 3
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        """The image of one row; UserError that names a broken file."""
        return read(self.paths[row], self.channels, self.size)


@dataclass(frozen=True)
class Decoded:
    """Image files as `Pixels`, decoded once into the cache, by the content of the files.

    `keep="memory"` holds all of them; "disk" leaves them to be read as they are looked at, in any
    number of worker processes. What is sent to one that was started afresh is where they lie.
    """

    paths: Sequence[Path]
    channels: Channels = 3
    keep: Keep = "memory"
    size: tuple[int, int] | None = None  # images keep their own where it is not given

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        """The image of one row; UserError that names a broken file."""
        shard, place = self._shards[row // _SHARD], row % _SHARD
        start, end = shard["ends"][place : place + 2]
        pixels: np.ndarray = np.array(shard["pixels"][start:end])  # a copy: the cache stays
        return pixels.reshape(*shard["sizes"][place], self.channels)

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels."""
        return {name: part for name, part in self.__dict__.items() if name != "_shards"}

    @cached_property
    def _shards(self) -> list[dict[str, np.ndarray]]:
        return [
            self._shard(self.paths[first : first + _SHARD])
            for first in range(0, len(self.paths), _SHARD)
        ]

    def _shard(self, paths: Sequence[Path]) -> dict[str, np.ndarray]:
        """`pixels` of some images, one after the other; where each `ends`; their `sizes`."""
        digest = blake2b(f"{_LAYOUT} {self.channels} {self.size}".encode(), digest_size=16)
        for path in paths:
            digest.update(_digest(path).encode())

        def build() -> dict[str, np.ndarray]:
            decoded = [read(path, self.channels, self.size) for path in paths]
            ends = np.cumsum([0, *(image.size for image in decoded)])
            sizes = np.array([image.shape[:2] for image in decoded])
            pixels = np.concatenate([image.reshape(-1) for image in decoded])
            return {"pixels": pixels, "ends": ends, "sizes": sizes}

        key = f"decoded-{digest.hexdigest()}"
        return files.cached_arrays(folders.cache(), key, build, mapped=self.keep == "disk")


def _digest(path: Path) -> str:
    if not path.exists():
        raise UserError(f"{path} does not exist: download the data again")
    return files.file_digest(path)


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
        inputs = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.targets is None:
            return (inputs,)
        return inputs, torch.as_tensor(self.targets[row])


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset[Item]):
    """`Images` of files; `size` is (height, width), without it images keep their own.

    `keep` says where what was decoded stays: "none" decodes each file each time it is looked at,
    "memory" and "disk" once for all, see `Decoded`.
    """

    paths: Sequence[Path]
    targets: np.ndarray | None  # (rows, ...)
    channels: Channels = 3
    size: tuple[int, int] | None = None
    transform: Transform | None = None
    keep: Literal["none", "memory", "disk"] = "none"

    def __post_init__(self) -> None:
        """Refuse targets that are not one a path."""
        assert len(self._images) == len(self.paths)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> Item:
        """The image of one row, and its target."""
        return self._images[row]

    @cached_property
    def _images(self) -> Images:
        pixels: Pixels = Files(self.paths, self.channels, self.size)
        if self.keep != "none":
            pixels = Decoded(self.paths, self.channels, self.keep, self.size)
        return Images(pixels, self.targets, self.transform)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (height, width, channels) uint8 at another (height, width), free of aliasing."""
    if image.shape[:2] == size:
        return image
    mode = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    smaller = mode.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(smaller, np.uint8).reshape(*size, image.shape[2])


def _opened(path: Path, mode: str) -> Image.Image:
    """The first frame, upright, in `mode`."""
    try:
        with explained(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to talk
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with path.open("rb") as handle, Image.open(handle, formats=_FORMATS) as image:
                image.seek(0)
                image.load()
                return _eight_bit(_upright(image), mode)
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
