"""Small pictures of rows for a page: images, and clips as film strips, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

SIDE = 112  # pixels of the longer side of a picture, beyond which it is made smaller
FRAMES = 8  # of a clip, evenly spaced
_STEP = 2048  # rows that are looked at together
_LOSSLESS_SIDE = 48  # pixels up to which nothing may blur


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI; of a clip its frames side by side."""

    uri: str
    frames: int
    width: int  # of one frame
    height: int


def drawable(row: Any) -> bool:
    """Whether what is seen of a row is a picture or a clip that `of` can draw."""
    return isinstance(row, np.ndarray) and row.dtype.kind in "uif" and _frames(row) is not None


def of(row: np.ndarray) -> Thumbnail:
    """The picture of one row's input.

    | shape | is |
    |---|---|
    | (height, width), (1 or 3, height, width), (height, width, 1 or 3) | a picture |
    | (frames, height, width), (frames, 1 or 3, height, width), (frames, height, width, 1 or 3) |
    a clip |

    Numbers that are not bytes are spread over black to white. ValueError for any other shape.
    """
    clip = _frames(np.asarray(row))
    if clip is None:
        raise ValueError(f"an input of shape {np.shape(row)} is no picture")
    chosen = np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)
    pictures = [_small(frame) for frame in _bytes(clip[chosen])]
    width, height = pictures[0].size
    strip = Image.new(pictures[0].mode, (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * width, 0))
    return Thumbnail(_uri(strip, max(width, height)), len(pictures), width, height)


def _frames(row: np.ndarray) -> np.ndarray | None:
    """(frames, height, width, 1 or 3) of a row's input; None where it is no picture."""
    shape = row.shape
    if row.ndim == 2:
        return row[None, :, :, None]
    if row.ndim == 3:
        if shape[0] in (1, 3):
            return row.transpose(1, 2, 0)[None]
        return row[None] if shape[2] in (1, 3) else row[..., None]
    if row.ndim == 4:
        if shape[1] in (1, 3):
            return row.transpose(0, 2, 3, 1)
        return row if shape[3] in (1, 3) else None
    return None


def _bytes(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    spread = (numbers - low) / (high - low) if high > low else np.zeros_like(numbers)
    return np.rint(255 * spread).astype(np.uint8)


def _small(frame: np.ndarray) -> Image.Image:
    gray = frame.shape[2] == 1
    picture = Image.fromarray(np.ascontiguousarray(frame[..., 0] if gray else frame))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _uri(picture: Image.Image, side: int) -> str:
    content = io.BytesIO()
    if side <= _LOSSLESS_SIDE:
        kind = "png"
        picture.save(content, "PNG", compress_level=6)
    else:
        kind = "webp"
        picture.save(content, "WEBP", quality=78, method=2)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def light(
    look: Callable[[int], np.ndarray | None], rows: np.ndarray, inputs: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) mean and standard deviation of each row's pixels; from `inputs` where all are in it.

    Rows without any have NaN.
    """
    if inputs is not None:
        starts = range(0, len(rows), _STEP)
        parts = [inputs[rows[start : start + _STEP]] for start in starts]
        flat = [part.reshape(len(part), -1) for part in parts]
        means, spreads = ([f(part, axis=1) for part in flat] for f in (np.mean, np.std))
        return np.concatenate(means), np.concatenate(spreads)
    found = [(np.nan, np.nan) if (seen := look(int(row))) is None else (seen.mean(), seen.std())
             for row in rows]  # fmt: skip
    told = np.array(found, float).reshape(-1, 2)
    return told[:, 0], told[:, 1]
