"""Rows of every usual layout become pictures that decode to what they were."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from kagglekit import thumbnails


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.parametrize(
    ("shape", "frames", "size"),
    [
        ((20, 30), 1, (30, 20)),
        ((1, 20, 30), 1, (30, 20)),
        ((3, 20, 30), 1, (30, 20)),
        ((20, 30, 3), 1, (30, 20)),
        ((5, 20, 30), 5, (30, 20)),
        ((16, 3, 20, 30), 8, (30, 20)),
        ((4, 20, 30, 1), 4, (30, 20)),
        ((3, 400, 200), 1, (56, 112)),
    ],
)
def test_pictures_and_clips_of_every_layout(shape, frames, size):
    row = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    made = thumbnails.of(row)
    assert (made.frames, (made.width, made.height)) == (frames, size)
    assert decoded(made.uri).shape[:2] == (size[1], frames * size[0])
    assert thumbnails.drawable(row)


def test_small_pictures_keep_every_pixel_and_numbers_are_spread_over_black_to_white():
    row = np.random.default_rng(1).integers(0, 256, (1, 28, 28), dtype=np.uint8)
    assert np.array_equal(decoded(thumbnails.of(row).uri), row[0])
    floats = decoded(thumbnails.of(np.array([[-1.0, np.nan], [0.0, 1.0]])).uri)
    assert floats.tolist() == [[0, 128], [128, 255]]


def test_what_is_no_picture_is_not_drawn():
    assert not thumbnails.drawable(None)
    assert not thumbnails.drawable(np.zeros(7))
    assert not thumbnails.drawable(np.zeros((2, 2, 2, 2, 2)))
    assert not thumbnails.drawable(np.array([["a.png"]]))
    with pytest.raises(ValueError, match="no picture"):
        thumbnails.of(np.zeros(7))


def test_the_light_of_rows_is_the_same_however_they_are_kept():
    inputs = np.random.default_rng(2).integers(0, 256, (5000, 1, 3, 3), dtype=np.uint8)
    rows = np.arange(0, 5000, 2)
    together = thumbnails.light(lambda row: None, rows, inputs)
    alone = thumbnails.light(lambda row: inputs[row], rows)
    assert np.allclose(together, alone)
    assert np.isnan(thumbnails.light(lambda row: None, rows[:2])).all()
