"""Copies of pictures as they come about: saved again as JPEG, brightened, cropped."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

KINDS = ("recompressed", "brightened", "cropped")


def copies(pictures: np.ndarray, each: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`each` copies of each kind of uint8 (n, 1, h, w): (copies, whose they are, KINDS' numbers).

    JPEG quality is 40…90; brightness grows by 10…50 % and 0…30 grey levels, with clipping; a crop
    has 80…95 % of either side, anywhere, resized to the whole.
    """
    rng = np.random.default_rng(seed)
    sources = rng.choice(len(pictures), each * len(KINDS), replace=False)
    kinds = np.repeat(np.arange(len(KINDS)), each)
    change = (_recompressed, _brightened, _cropped)
    made = [change[kind](pictures[row, 0], rng) for row, kind in zip(sources, kinds, strict=True)]
    return np.stack(made)[:, None], sources, kinds


def found(left: np.ndarray, right: np.ndarray, originals: int, sources: np.ndarray) -> np.ndarray:
    """Which copies, put behind their `originals`, a list of pairs joins with their source."""
    told = set(zip(left.tolist(), right.tolist(), strict=True))
    return np.array([(int(s), originals + n) in told for n, s in enumerate(sources)])


def _recompressed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=int(rng.integers(40, 91)))
    return np.array(Image.open(content).convert("L"))


def _brightened(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changed = pixels * rng.uniform(1.1, 1.5) + rng.uniform(0, 30)
    return np.clip(changed, 0, 255).astype(np.uint8)


def _cropped(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape
    share = rng.uniform(0.8, 0.95)
    rows, columns = round(height * share), round(width * share)
    y, x = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    part = Image.fromarray(pixels[y : y + rows, x : x + columns])
    return np.array(part.resize((width, height), Image.Resampling.BILINEAR))
