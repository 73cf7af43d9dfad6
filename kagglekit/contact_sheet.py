"""Draws pairs of pictures side by side, with a line or two about each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_HEIGHT = 112  # pixels of a picture on the sheet
_WIDEST = 168
_TEXT = 11  # pixels of a letter
_GAP = 10
_COLUMNS = 4
_LETTERS = 38  # of a line
_PAPER, _INK, _FAINT = "white", "#202020", "#707070"


@dataclass(frozen=True)
class Pair:
    """Two pictures, uint8 (channels, height, width) each, and what is said of them."""

    left: np.ndarray
    right: np.ndarray
    title: str
    lines: tuple[str, ...]


def png(pairs: Sequence[Pair]) -> bytes:
    """The sheet, pairs in reading order."""
    drawn = [(_enlarged(pair.left), _enlarged(pair.right), pair) for pair in pairs]
    width = max((left.width + right.width for left, right, _ in drawn), default=_HEIGHT)
    width = max(width + 2, round(_LETTERS * _TEXT * 0.56)) + _GAP
    lines = max((len(pair.lines) for pair in pairs), default=0)
    height = _HEIGHT + (lines + 1) * (_TEXT + 3) + 2 * _GAP
    columns = min(_COLUMNS, max(1, len(drawn)))
    rows = -(-len(drawn) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, max(1, rows) * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT)
    for number, (left, right, pair) in enumerate(drawn):
        x, y = _GAP + number % columns * width, _GAP + number // columns * height
        sheet.paste(left, (x, y))
        sheet.paste(right, (x + left.width + 2, y))
        for line, text in enumerate((pair.title, *pair.lines)):
            place = (x, y + _HEIGHT + 3 + line * (_TEXT + 3))
            pen.text(place, _fitting(text), _FAINT if line else _INK, font)
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _enlarged(picture: np.ndarray) -> Image.Image:
    """Small pictures keep their pixels to be seen; large ones are made smaller."""
    grey = picture.shape[0] == 1
    image = Image.fromarray(picture[0] if grey else picture.transpose(1, 2, 0)).convert("RGB")
    share = min(_HEIGHT / image.height, _WIDEST / image.width)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.NEAREST if share > 1 else Image.Resampling.BOX)


def _fitting(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= _LETTERS else shown[: _LETTERS - 1] + "…"
