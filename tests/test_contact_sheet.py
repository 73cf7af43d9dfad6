"""Pairs of pictures of any size and colour fit on one sheet."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from kagglekit import contact_sheet


def pair(shape: tuple[int, int, int], level: int) -> contact_sheet.Pair:
    left, right = np.full(shape, level, np.uint8), np.full(shape, 255 - level, np.uint8)
    return contact_sheet.Pair(left, right, "a title\x1b[31m " * 20, ("train 1 cat", "test 2"))


def test_both_pictures_of_a_pair_stand_side_by_side():
    sheet = Image.open(io.BytesIO(contact_sheet.png([pair((1, 28, 28), 10)]))).convert("L")
    pixels = np.asarray(sheet)
    assert pixels[60, 60] == 10
    assert pixels[60, 10 + 112 + 2 + 60] == 245


def test_wide_tall_and_single_pixel_pictures_fit():
    shapes = [(3, 5, 400), (3, 400, 5), (1, 1, 1), (3, 300, 300)] * 3
    sheet = Image.open(io.BytesIO(contact_sheet.png([pair(shape, 90) for shape in shapes])))
    assert sheet.width < 2000
    assert sheet.height < 2000
