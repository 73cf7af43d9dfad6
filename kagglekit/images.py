"""Reads image files into arrays, and serves them to worker processes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from .errors import UserError
from .files import explained
from .tables import natural

Channels = Literal[1, 3]
Transform = Callable[[np.ndarray, int], np.ndarray]  # uint8 (h, w, channels), seed -> the same
Item = tuple[torch.Tensor] | tuple[torch.Tensor, torch.Tensor]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# decided by content, whatever a file's name; of others Pillow would run Ghostscript for EPS
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
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


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset[Item]):
    """Image files as uint8 tensors (channels, height, width), each with its target if known.

    Everything in it can be sent to a worker process that was started afresh, as long as
    `transform` can: a function of a module, or an object of a class of one. Its seed comes from
    NumPy's global generator, which the engine seeds anew for each row and epoch. `size` is
    (height, width); without it images keep their own.
    """

    paths: Sequence[Path]
    targets: np.ndarray | None  # (rows, ...)
    channels: Channels = 3
    size: tuple[int, int] | None = None
    transform: Transform | None = None

    def __post_init__(self) -> None:
        """Refuse targets that are not one a path."""
        if self.targets is not None and len(self.targets) != len(self.paths):
            raise ValueError(f"{len(self.targets)} targets for {len(self.paths)} images")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> Item:
        """The image of one row, and its target."""
        image = read(self.paths[row], self.channels, self.size)
        if self.transform is not None:
            image = self.transform(image, int(np.random.randint(2**31)))
        inputs = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.targets is None:
            return (inputs,)
        return inputs, torch.as_tensor(self.targets[row])


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
