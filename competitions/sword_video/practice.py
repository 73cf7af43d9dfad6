"""Rendered clips to practise on, a blade drawn and a blade swung: for trying the pipeline, no more.

In every film a figure with a sheath at its side sways, while others pass by; place, size, light,
colours, noise, rate and length are drawn alike for both classes. What differs is how the blade
moves: slowly out of the sheath along itself, or bare from the start and fast about the hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("sword_drawn", "use_sword")
FILMS, TEST_FILMS, CLIPS = 16, 6, 8  # clips of each film
HEIGHT = 96

_FINER = 2  # drawn so many times as large, then shrunk: smooth edges
_LETTERS = list("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789")

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Film:
    """What all clips of one film share; lengths in heights of the picture."""

    name: str
    width: int  # pixels
    rate: int  # frames a second
    suffix: str
    background: Image.Image
    cloth: Colour
    skin: Colour
    steel: Colour
    noise: float  # levels
    contrast: float


@dataclass(frozen=True)
class Scene:
    """What one clip shows, frame by frame."""

    drawing: bool
    frames: int
    feet: Point
    tall: float
    facing: int  # -1 = to the left
    blade: float  # length
    start: float  # share of the clip before the action
    last: float  # share that the action takes
    angles: tuple[float, float]  # of a swung blade as the action begins and ends, in radians
    sheath: float  # angle at which a blade is drawn
    passers: list[tuple[float, float, float, Colour]] = field(default_factory=list)
    light: float = 1.0


def write(folder: Path, answers: Path) -> None:
    """128 clips of 16 films to train, 48 of 6 others to answer, laid out like Kaggle's download."""
    rng = np.random.default_rng(2024)
    rows = []
    for number in range(FILMS + TEST_FILMS):
        film = someone_s(rng, number)
        drawing = rng.permutation(np.arange(CLIPS) % 2 == 0)
        for kind in drawing.tolist():
            name = "".join(rng.choice(_LETTERS, 10)) + film.suffix
            category = CLASSES[0] if kind else CLASSES[1]
            part = "data/videos/" + category if number < FILMS else "test_data/videos"
            (folder / part).mkdir(parents=True, exist_ok=True)
            encode(folder / part / name, render(film, scene(film, kind, rng), rng), film.rate)
            rows.append({"video": name, "category": category, "source": film.name})
    table = pd.DataFrame([rows[row] for row in rng.permutation(len(rows))])
    testing = table["source"] > f"film{FILMS:02}"
    train, test = table[~testing], table[testing]
    train[["video", "source"]].to_csv(folder / "data" / "sources.csv", index=False)
    sample = test[["video"]].assign(category=CLASSES[0])
    name = "video_categories_sample_submission.csv"
    sample.to_csv(folder / "test_data" / name, index=False)
    test[["video", "category"]].to_csv(answers / "solution.csv", index=False)


def someone_s(rng: np.random.Generator, number: int) -> Film:
    """A film: its place, its figure and its camera."""
    width = int(rng.choice([112, 128, 144, 160]))
    return Film(
        name=f"film{number + 1:02}",
        width=width,
        rate=int(rng.choice([10, 12, 15])),
        suffix=str(rng.choice([".avi", ".mkv"])),
        background=_background(width, rng),
        cloth=_colour(rng),
        skin=_colour(rng, 90, 230),
        steel=_colour(rng, 130, 250),
        noise=float(rng.uniform(1, 9)),
        contrast=float(rng.uniform(0.7, 1.1)),
    )


def scene(film: Film, drawing: bool, rng: np.random.Generator) -> Scene:
    """One clip; a swing is faster, all else but `drawing` is drawn alike for both classes."""
    wide = film.width / HEIGHT
    turn = rng.uniform(1.8, 3.0) * rng.choice([-1, 1])
    end = rng.uniform(-0.2, 1.8)  # from the horizontal, upwards
    return Scene(
        drawing=drawing,
        frames=int(rng.integers(18, 31)),
        feet=(rng.uniform(0.3, 0.7) * wide, rng.uniform(0.8, 1.0)),
        tall=rng.uniform(0.5, 0.75),
        facing=int(rng.choice([-1, 1])),
        blade=rng.uniform(0.45, 0.6),
        start=rng.uniform(0.05, 0.35),
        last=rng.uniform(0.3, 0.5) if drawing else rng.uniform(0.15, 0.3),
        angles=(end - turn, end),
        sheath=rng.uniform(0.2, 1.1),
        passers=[
            (rng.uniform(0, wide), rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.45), _colour(rng))
            for _ in range(int(rng.integers(0, 3)))
        ],
        light=float(rng.uniform(0.75, 1.2)),
    )


def render(film: Film, scene: Scene, rng: np.random.Generator) -> list[np.ndarray]:
    """The frames of a clip, uint8 (HEIGHT, width, 3)."""
    sway, phase = rng.uniform(0.005, 0.03), rng.uniform(0, 6)
    shake = np.cumsum(rng.normal(0, 0.15, (scene.frames, 2)), axis=0).clip(-2, 2)
    frames = []
    for number in range(scene.frames):
        moment = number / (scene.frames - 1)
        image = film.background.copy()
        pen = ImageDraw.Draw(image)
        for place, speed, tall, colour in scene.passers:
            _passer(pen, (place + speed * moment, 0.95), tall, colour)
        lean = sway * np.sin(phase + 9 * moment)
        _figure(pen, film, scene, moment, float(lean))
        left, top = 2 + shake[number]  # a hand-held camera
        box = (left, top, image.width - 4 + left, image.height - 4 + top)
        image = image.resize((film.width, HEIGHT), Image.Resampling.BOX, box)
        pixels = np.asarray(image, np.float32)
        pixels = 128 + film.contrast * (pixels * scene.light - 128)
        noise = rng.standard_normal(pixels.shape, np.float32)
        pixels = pixels + film.noise * rng.uniform(0.8, 1.2) * noise
        frames.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return frames


def encode(path: Path, frames: list[np.ndarray], rate: int) -> None:
    """Write frames as MPEG-4, in the container that the ending names."""
    import av

    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 1_500_000
        stream.thread_count = 1  # the same bytes on any machine
        for number, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _figure(pen: ImageDraw.ImageDraw, film: Film, scene: Scene, moment: float, lean: float) -> None:
    done = float(np.clip((moment - scene.start) / scene.last, 0, 1))
    done = done * done * (3 - 2 * done)  # slow at both ends
    x, y = scene.feet[0] + lean, scene.feet[1]
    hip, neck = y - 0.45 * scene.tall, y - 0.82 * scene.tall
    thick = 0.09 * scene.tall
    for side in (-1, 1):
        _line(pen, [(x, hip), (x + side * 0.1 * scene.tall, y)], film.cloth, thick)
    _line(pen, [(x, hip), (x + lean, neck)], film.cloth, 2.2 * thick)
    _disc(pen, (x + lean, y - 0.91 * scene.tall), 0.09 * scene.tall, film.skin)
    shoulder = np.array([x + lean, neck + 0.08 * scene.tall])
    mouth = np.array([x + lean - scene.facing * 0.06 * scene.tall, hip])
    forwards = np.array([scene.facing * np.cos(scene.sheath), -np.sin(scene.sheath)])
    dark: Colour = (film.cloth[0] // 2, film.cloth[1] // 2, film.cloth[2] // 2)
    _line(pen, [mouth, mouth - forwards * scene.blade], dark, 0.03)  # the sheath, worn by all
    if scene.drawing:  # the hand leaves the sheath's mouth, and pulls the blade after it
        hand = mouth + forwards * scene.blade * done
        tip = mouth
    else:  # the blade is bare from the start, and turns about the hand
        angle = scene.angles[0] + done * (scene.angles[1] - scene.angles[0])
        hand = shoulder + np.array([scene.facing * 0.25, 0.1]) * scene.tall
        tip = hand + scene.blade * np.array([scene.facing * np.cos(angle), -np.sin(angle)])
    _line(pen, [hand, tip], film.steel, 0.035)
    _line(pen, [shoulder, hand], film.cloth, thick)
    _disc(pen, hand, 0.05 * scene.tall, film.skin)


def _passer(pen: ImageDraw.ImageDraw, feet: Point, tall: float, colour: Colour) -> None:
    x, y = feet
    _line(pen, [(x, y), (x, y - 0.8 * tall)], colour, 0.2 * tall)
    _disc(pen, (x, y - 0.9 * tall), 0.1 * tall, colour)


def _line(pen: ImageDraw.ImageDraw, points: Any, colour: Colour, width: float) -> None:
    scale = HEIGHT * _FINER
    places = [(float(x) * scale, float(y) * scale) for x, y in points]
    pen.line(places, colour, max(2, round(width * scale)))


def _disc(pen: ImageDraw.ImageDraw, centre: Any, radius: float, colour: Colour) -> None:
    x, y, r = (float(part) * HEIGHT * _FINER for part in (*centre, radius))
    pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _background(width: int, rng: np.random.Generator) -> Image.Image:
    """A slope of two colours, with shapes before it, some of them like blades."""
    height, width = HEIGHT * _FINER, width * _FINER
    ends = rng.uniform(30, 220, (2, 3))
    slope = np.linspace(0, 1, height)[:, None, None]
    pixels = np.broadcast_to(ends[0] * (1 - slope) + ends[1] * slope, (height, width, 3))
    image = Image.fromarray(np.ascontiguousarray(pixels).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 8))):
        left, top = rng.uniform(0, width), rng.uniform(0, height)
        far = left + rng.uniform(-width / 3, width / 3), top + rng.uniform(-height / 3, height / 3)
        if rng.random() < 0.5:
            pen.line([(left, top), far], _colour(rng), int(rng.integers(3, 8)))
        else:
            box = (min(left, far[0]), min(top, far[1]), max(left, far[0]), max(top, far[1]))
            pen.rectangle(box, fill=_colour(rng))
    return image.filter(ImageFilter.GaussianBlur(1))


def _colour(rng: np.random.Generator, least: int = 15, most: int = 240) -> Colour:
    red, green, blue = (int(part) for part in rng.integers(least, most, 3))
    return red, green, blue
