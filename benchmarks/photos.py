"""JPEG photographs to train on: drawn ones, or a folder of real ones, one folder a class."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from kagglekit.images import folder_classes

SHAPES = ("circle", "cross", "square", "triangle")


def write(folder: Path, rows: int, real: Path | None = None) -> None:
    """A download of `rows` photographs in `train/<class>/`, and a fifth as many in `test/`."""
    found = _copied(folder, rows, real) if real else _drawn(folder, rows)
    sample = pd.DataFrame({"id": [path.name for path in found], "label": ""})
    sample["label"] = min(path.name for path in (folder / "train").iterdir())
    sample.to_csv(folder / "sample_submission.csv", index=False)


def _homes(folder: Path, rows: int, classes: np.ndarray) -> list[Path]:
    """Where each photograph goes: the first `rows` to their class, the others to the test set."""
    homes = [folder / "train" / name for name in classes[:rows]]
    homes += [folder / "test"] * (len(classes) - rows)
    for home in set(homes):
        home.mkdir(parents=True, exist_ok=True)
    return homes


def _drawn(folder: Path, rows: int) -> list[Path]:
    """One shape on each, 667 × 500 pixels, amid blotches of colour; the shape is the class."""
    random = np.random.default_rng(0)
    classes = random.choice(SHAPES, rows + rows // 5)
    tests = []
    for number, home in enumerate(_homes(folder, rows, classes)):
        path = home / f"{number:06}.jpg"
        drawing(classes[number], random).save(path, quality=90)
        tests += [path] if number >= rows else []
    return tests


def drawing(shape: str, random: np.random.Generator) -> Image.Image:
    """A shape of any colour, place and size, on coarse and fine noise."""
    blotches = random.integers(40, 216, (12, 16, 3)).astype(np.uint8)
    image = Image.fromarray(blotches).resize((667, 500), Image.Resampling.BICUBIC)
    x, y, radius = random.uniform(150, 517), random.uniform(150, 350), random.uniform(60, 140)
    colour = tuple(map(int, random.integers(0, 256, 3)))
    pen = ImageDraw.Draw(image)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.regular_polygon((x, y, radius), 3, fill=colour)
    else:
        arm = radius / 3
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)
    grain = random.normal(0, 8, (500, 667, 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def _copied(folder: Path, rows: int, real: Path) -> list[Path]:
    """Some of the photographs of `real/<class>/`, in random order."""
    paths, positions, names = folder_classes(real)
    count = min(rows + rows // 5, len(paths))
    drawn = np.random.default_rng(0).permutation(len(paths))[:count]
    train = min(rows, count - count // 6)
    tests = []
    for number, home in enumerate(_homes(folder, train, np.array(names)[positions[drawn]])):
        path = home / f"{number:06}{paths[drawn[number]].suffix}"
        shutil.copyfile(paths[drawn[number]], path)
        tests += [path] if number >= train else []
    return tests
