"""Drawn faces to practise on, with and without glasses: for trying the pipeline, no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from kagglekit import practice

SIDES = (92, 112)  # width and height of a picture
_FINER = 3  # drawn so many times as large, then shrunk: smooth edges
_PEOPLE, _TEST_PEOPLE, _PICTURES = 30, 10, 8  # pictures of each person
_LETTERS = list("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789")
_CLASSES = ("no_glasses", "glasses")

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Person:
    """What all pictures of one person share; lengths in half widths of the face."""

    skin: Colour
    hair: Colour
    fringe: float  # how far hair comes down over the forehead; 0 = bald
    long: bool  # hair beside the cheeks
    tall: float  # half height of the face
    eyes: float  # from the middle to an eye
    brow: float  # thickness of eyebrows
    beard: float  # darkness, 0…1
    hat: Colour | None
    frame: Colour
    rim: float  # thickness of the frame
    lens: tuple[float, float]  # half width and half height
    square: float  # 2 = round lenses; higher = squarer
    tint: float  # darkness of the glass
    often: float  # share of the pictures with glasses


@dataclass
class Canvas:
    """A picture in the making; points are of the face: (0, 0) its middle, x to its left ear."""

    image: Image.Image
    centre: tuple[float, float]
    scale: float  # pixels of half the face's width
    tilt: float  # radians
    turn: float  # how far the head looks aside

    def place(self, points: Points) -> list[tuple[float, float]]:
        """Where points of the face are on the picture."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        turned = [(x + self.turn * max(0.0, 1 - x * x), y) for x, y in points]
        return [
            (
                self.centre[0] + self.scale * (cos * x - sin * y),
                self.centre[1] + self.scale * (sin * x + cos * y),
            )
            for x, y in turned
        ]

    def fill(self, points: Points, colour: Colour, share: float = 1.0) -> None:
        """Fill a polygon, laid over what is there by `share`."""
        if share == 1:
            ImageDraw.Draw(self.image).polygon(self.place(points), fill=colour)
            return
        layer = Image.new("L", self.image.size)
        ImageDraw.Draw(layer).polygon(self.place(points), fill=round(255 * share))
        self.image.paste(colour, mask=layer)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        """Draw along points; `width` in half widths of the face."""
        pen = ImageDraw.Draw(self.image)
        pen.line(self.place(points), colour, max(1, round(width * self.scale)), joint="curve")


def write(folder: Path, answers: Path) -> None:
    """240 pictures of 30 people to train, 80 of 10 others to answer, laid out like Kaggle's."""
    rng = np.random.default_rng(2024)
    rows = []
    for number in range(_PEOPLE + _TEST_PEOPLE):
        person = someone(rng, number)
        for _ in range(_PICTURES):
            wearing = bool(rng.random() < person.often)
            id = "".join(rng.choice(_LETTERS, 10)) + ".png"
            row = {"id": id, "label": _CLASSES[wearing], "subject": f"p{number + 1:02}"}
            part = "test" if number >= _PEOPLE else f"train/{row['label']}"
            (folder / part).mkdir(parents=True, exist_ok=True)
            portrait(person, wearing, rng).save(folder / part / id)
            rows.append(row)
    order = rng.permutation(len(rows))
    table = pd.DataFrame([rows[i] for i in order])
    testing = table["subject"] > f"p{_PEOPLE:02}"
    test = table[testing][["id", "label"]]
    practice.write(folder, answers, table[~testing], test, ["label"])
    (folder / "test.csv").unlink()  # the pictures are all that is known of them
    sample = test.assign(label=_CLASSES[0])
    sample.to_csv(folder / "sample_submission.csv", index=False)


def someone(rng: np.random.Generator, number: int) -> Person:
    """A person; of three in a row one never wears glasses, one always, one now and then."""
    dark = rng.uniform(0.35, 1.0)
    return Person(
        skin=_shade((235, 190, 160), dark, rng),
        hair=_shade((110, 80, 50), rng.uniform(0.15, 1.9), rng),
        fringe=float(rng.choice([0.0, 0.25, 0.45, 0.6])),
        long=bool(rng.random() < 0.4),
        tall=rng.uniform(1.2, 1.45),
        eyes=rng.uniform(0.36, 0.46),
        brow=rng.uniform(0.03, 0.12),
        beard=float(rng.choice([0.0, 0.0, 0.3, 0.7])),
        hat=_shade((120, 120, 120), rng.uniform(0.3, 2), rng) if rng.random() < 0.25 else None,
        frame=_shade((90, 80, 75), rng.uniform(0.2, 2.2), rng),
        rim=rng.uniform(0.035, 0.08),
        lens=(rng.uniform(0.26, 0.34), rng.uniform(0.18, 0.3)),
        square=float(rng.choice([2.0, 2.6, 4.0])),
        tint=float(rng.choice([0.0, 0.0, 0.15, 0.3])),
        often=(0.0, 1.0, 0.5)[number % 3],
    )


def portrait(person: Person, wearing: bool, rng: np.random.Generator) -> Image.Image:
    """One picture of a person: pose, light, background and noise are new each time."""
    width, height = (side * _FINER for side in SIDES)
    image = _background(width, height, rng)
    canvas = Canvas(
        image,
        (width * rng.uniform(0.4, 0.6), height * rng.uniform(0.45, 0.62)),
        width * rng.uniform(0.26, 0.38),
        float(rng.normal(0, 0.12)),
        float(np.clip(rng.normal(0, 0.12), -0.3, 0.3)),
    )
    _head(canvas, person)
    _features(canvas, person, rng)
    if wearing:
        _glasses(canvas, person, rng)
    _covering(canvas, person, rng)
    return _developed(image, rng)


def _head(canvas: Canvas, person: Person) -> None:
    if person.long and person.fringe:
        canvas.fill(_oval((0, 0.25), (1.25, person.tall * 1.15)), person.hair)
    shirt = person.hat or person.frame  # a colour of clothes that says nothing of glasses
    canvas.fill([(-2.2, 3.5), (-1.3, 1.7), (1.3, 1.7), (2.2, 3.5)], shirt)
    canvas.fill([(-0.45, 0.8), (0.45, 0.8), (0.55, 2.0), (-0.55, 2.0)], _darker(person.skin, 0.8))
    for side in (-1, 1):
        canvas.fill(_oval((side, 0), (0.14, 0.25)), _darker(person.skin, 0.9))
    canvas.fill(_oval((0, 0), (1.0, person.tall)), person.skin)
    if person.beard:
        jaw = [(x, y) for x, y in _oval((0, 0.05), (0.97, person.tall * 0.95)) if y > 0.35]
        canvas.fill(jaw, person.hair, person.beard)


def _features(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    shade = _darker(person.skin, 0.72)
    open_eyes = rng.uniform(0.01, 0.09)
    for side in (-1, 1):
        eye = side * person.eyes
        canvas.fill(_oval((eye, -0.12), (0.17, open_eyes)), (240, 240, 235))
        canvas.fill(_oval((eye, -0.12), (0.07, min(0.07, open_eyes))), (40, 35, 30))
        lid = _arc((eye, -0.12), (0.2, 0.1), np.pi, 2 * np.pi)
        canvas.line(lid, _darker(shade, 0.7), 0.03)
        brow = _arc((eye, -0.3 - rng.uniform(0, 0.06)), (0.24, 0.1), 1.1 * np.pi, 1.9 * np.pi)
        canvas.line(brow, person.hair, person.brow)
        if rng.random() < 0.4:  # rings under the eyes, which are no rims
            canvas.line(_arc((eye, -0.1), (0.22, 0.2), 0.1 * np.pi, 0.9 * np.pi), shade, 0.04)
    canvas.line([(0.02, -0.1), (0.1, 0.3), (-0.08, 0.33)], shade, 0.05)
    smile = rng.uniform(-0.1, 0.2)
    mouth = [(x, 0.68 + smile * (1 - (x / 0.35) ** 2)) for x in np.linspace(-0.35, 0.35, 9)]
    canvas.line(mouth, _darker((190, 90, 90), rng.uniform(0.6, 1.1)), rng.uniform(0.05, 0.12))


def _glasses(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    drop = -0.1 + rng.uniform(-0.03, 0.08)
    across, down = person.lens
    for side in (-1, 1):
        middle = (side * max(person.eyes, across + 0.05), drop)
        lens = _oval(middle, (across, down), person.square)
        if person.tint:
            canvas.fill(lens, (30, 30, 40), person.tint)
        if rng.random() < 0.4:  # a reflection
            canvas.line([(middle[0] - 0.1, drop + 0.1), (middle[0] + 0.1, drop - 0.1)],
                        (250, 250, 250), 0.04)  # fmt: skip
        canvas.line([*lens, lens[0]], person.frame, person.rim)
        outer = middle[0] + side * across
        canvas.line([(outer, drop - 0.05), (side * 1.02, drop - 0.08)], person.frame, person.rim)
    inner = max(person.eyes, across + 0.05) - across
    canvas.line(_arc((0, drop), (inner, 0.08), np.pi, 2 * np.pi), person.frame, person.rim)


def _covering(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    """Hair, hat and headband: lines and edges near the eyes of those who wear no glasses too."""
    top = -person.tall
    if person.fringe:
        edge = top + person.fringe
        ragged = [(x, edge + rng.uniform(-0.05, 0.08)) for x in np.linspace(0.95, -0.95, 9)]
        crown = _arc((0, 0), (1.06, person.tall * 1.08), np.pi * 1.08, np.pi * 1.92)
        canvas.fill([*crown, *ragged], person.hair)
    if person.hat:
        brim = top + 0.5
        canvas.fill([(-1.0, brim), (-0.8, top - 0.5), (0.8, top - 0.5), (1.0, brim)], person.hat)
        canvas.line([(-1.4, brim), (1.4, brim)], _darker(person.hat, 0.7), 0.12)
    elif rng.random() < 0.25:
        band = _shade((150, 150, 150), rng.uniform(0.3, 1.6), rng)
        canvas.line([(-1.0, -0.62), (1.0, -0.62)], band, rng.uniform(0.05, 0.15))


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A slope of two colours, and some shapes in front of it."""
    ends = rng.uniform(20, 235, (2, 3))
    slope = np.linspace(0, 1, height)[:, None, None]
    pixels = np.broadcast_to(ends[0] * (1 - slope) + ends[1] * slope, (height, width, 3))
    image = Image.fromarray(np.ascontiguousarray(pixels).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        left, top = rng.uniform(0, width), rng.uniform(0, height)
        box = (left, top, left + rng.uniform(10, width / 2), top + rng.uniform(10, height / 2))
        colour = tuple(int(part) for part in rng.integers(10, 245, 3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, outline=colour, width=5)
    return image


def _developed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shrunk, lit from a side, with contrast, blur and noise; colours or greys."""
    small = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.0)))
    pixels = np.asarray(small.resize(SIDES, Image.Resampling.BOX), np.float64)
    height, width = pixels.shape[:2]
    x, y = np.linspace(-1, 1, width)[None, :, None], np.linspace(-1, 1, height)[:, None, None]
    direction = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.45) * (np.cos(direction) * x + np.sin(direction) * y)
    pixels = 128 + rng.uniform(0.6, 1.15) * (pixels * light * rng.uniform(0.6, 1.25) - 128)
    pixels = pixels + rng.normal(0, rng.uniform(1, 9), pixels.shape)
    if rng.random() < 0.5:
        pixels = np.broadcast_to(pixels.mean(2, keepdims=True), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _oval(centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0) -> Points:
    """A superellipse: a power of 2 is an ellipse, higher ones come near a rectangle."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = (np.sign(w) * np.abs(w) ** (2 / power) for w in (np.cos(angles), np.sin(angles)))
    return [(centre[0] + radii[0] * a, centre[1] + radii[1] * b) for a, b in zip(x, y, strict=True)]


def _arc(
    centre: tuple[float, float], radii: tuple[float, float], start: float, end: float
) -> Points:
    angles = np.linspace(start, end, 12)
    return [(centre[0] + radii[0] * np.cos(a), centre[1] + radii[1] * np.sin(a)) for a in angles]


def _shade(colour: Colour, factor: float, rng: np.random.Generator) -> Colour:
    red, green, blue = (int(np.clip(p * factor + rng.normal(0, 12), 5, 250)) for p in colour)
    return red, green, blue


def _darker(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(int(part * factor), 255) for part in colour)
    return red, green, blue
