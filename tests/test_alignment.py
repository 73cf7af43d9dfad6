"""Altered copies of pictures are found; pictures that are only alike are not taken for copies."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from kagglekit import alignment
from tests import planted


def digits(rows: int) -> np.ndarray:
    """Handwritten digits, 20 × 20 in the middle of 28 × 28, (rows, 1, 28, 28) uint8."""
    small = torch.from_numpy(load_digits().images[:rows]).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=20, mode="bilinear")
    return torch.nn.functional.pad(large, (4, 4, 4, 4)).round().numpy().astype(np.uint8)


def drawn(rows: int) -> np.ndarray:
    """Pictures of blobs on a slope of light, larger than they are compared at, RGB."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:60, :48] / 60
    pictures = np.zeros((rows, 60, 48))
    for picture in pictures:
        picture += rng.uniform(-80, 80) * x + rng.uniform(-80, 80) * y + 100
        for _ in range(8):
            cy, cx, size = rng.uniform(0, 1), rng.uniform(0, 0.8), rng.uniform(0.02, 0.2)
            blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / size**2)
            picture += rng.uniform(-90, 90) * blob
    return np.clip(pictures, 0, 255).astype(np.uint8)[:, None]


def test_planted_copies_of_digits_are_found_and_other_digits_are_not_flagged():
    originals = digits(600)
    copies, sources, kinds = planted.copies(originals, 40, seed=0)
    found = alignment.copies(alignment.luminance(np.concatenate([originals, copies])))
    hit = planted.found(found.left, found.right, len(originals), sources)
    assert min(hit[kinds == kind].mean() for kind in range(3)) >= 0.95
    assert (found.right < len(originals)).sum() <= 1


def test_planted_copies_of_larger_colour_pictures_are_found():
    grey = drawn(150)
    copies, sources, _ = planted.copies(grey, 30, seed=1)
    colour = np.concatenate([grey, copies]).repeat(3, axis=1)
    found = alignment.copies(alignment.luminance(colour))
    assert planted.found(found.left, found.right, len(grey), sources).mean() >= 0.95
    assert len(found) <= len(copies)


def test_empty_pictures_and_negatives_are_no_copies():
    pictures = drawn(60)
    blank = np.full((40, 1, 60, 48), 7, np.uint8)
    found = alignment.copies(alignment.luminance(np.concatenate([pictures, blank, 255 - pictures])))
    assert len(found) == 0
    assert len(alignment.copies(alignment.luminance(blank))) == 0
