"""Tiny stand-ins for each competition's download, in Kaggle's own file layout."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
from PIL import Image

from kagglekit import practice


def function_fitting(folder: Path, inputs: int, outputs: int, rows: int = 120) -> None:
    """A smooth function of `inputs` variables with `outputs` values; the test rows are shuffled."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-2, 2, (rows + 30, inputs))
    waves = [np.sin(x.sum(1) + i) * 10.0**i + x[:, i % inputs] for i in range(outputs)]
    names = {"x": ["x"] if inputs == 1 else [f"x{i + 1}" for i in range(inputs)]}
    names["y"] = ["y"] if outputs == 1 else [f"y{i + 1}" for i in range(outputs)]
    table = pd.DataFrame({"id": np.arange(len(x))})
    table[names["x"]] = x
    table[names["y"]] = np.stack(waves, axis=1)
    test = table[rows:].sample(frac=1, random_state=0)
    _write(folder, table[:rows], test, names["y"])
    sample = pd.read_csv(folder / "sample_submission.csv").sort_values("id")
    sample.to_csv(folder / "sample_submission.csv", index=False)


def fit_1d(folder: Path) -> None:
    function_fitting(folder, 1, 1)


def fit_5d(folder: Path) -> None:
    function_fitting(folder, 5, 2)


def mics_mnist(folder: Path, rows: int = 160) -> None:
    """Pictures of 12 × 12 with one bright bar, whose place is the class; three classes."""
    rng = np.random.default_rng(4)
    label = np.arange(rows + 24) % 3
    pixels = rng.integers(0, 60, (len(label), 12, 12))
    for row, position in enumerate(label):
        pixels[row, 4 * position : 4 * position + 3] += 150
    table = pd.DataFrame({"id": np.arange(len(label)), "label": label})
    columns = pd.DataFrame(pixels.reshape(len(label), -1)).add_prefix("pixel")
    table = pd.concat([table, columns], axis=1)
    _write(folder, table[:rows], table[rows:], ["label"])


def glasses(folder: Path) -> None:
    """Grey pictures of 24 × 28 of ten people, every other of whom has a bright bar."""
    rng = np.random.default_rng(5)
    rows = []
    for number in range(50):
        person, label = number // 5, ("plain", "barred")[number // 5 % 2]
        pixels = rng.integers(0, 120, (28, 24)).astype(np.uint8)
        pixels[10:14, 4:20] += np.uint8(120 * (label == "barred"))
        home = folder / ("test" if person >= 8 else f"train/{label}")
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(home / f"f{number:02}.png")
        rows.append({"id": f"f{number:02}.png", "label": label, "subject": f"s{person}"})
    table = pd.DataFrame(rows)
    table[:40].sample(frac=1, random_state=0).to_csv(folder / "train.csv", index=False)
    sample = table[40:][["id", "label"]].assign(label="plain")
    sample.to_csv(folder / "sample_submission.csv", index=False)


def sword_video(folder: Path) -> None:
    """Clips of 24 × 32 from eight films: a bright square that stays, or one that jumps about."""
    rng = np.random.default_rng(6)
    rows = []
    for number in range(16):
        film, label = number // 2, ("jumps", "stays")[number % 2]
        frames = rng.integers(0, 60, (8, 24, 32, 3)).astype(np.uint8)
        for frame in frames:
            left = rng.integers(0, 24) if label == "jumps" else 12
            frame[8:16, left : left + 8] += np.uint8(150)
        home = folder / ("test_data/videos" if film >= 6 else f"data/videos/{label}")
        clip(home / f"c{number:02}.mkv", frames)
        rows.append({"video": f"c{number:02}.mkv", "category": label, "source": f"film{film}"})
    table = pd.DataFrame(rows)
    table[:12][["video", "source"]].to_csv(folder / "data" / "sources.csv", index=False)
    sample = table[12:][["video", "category"]].assign(category="stays")
    sample.to_csv(folder / "test_data/video_categories_sample_submission.csv", index=False)


def clip(
    path: Path,
    frames: np.ndarray,
    moments: Sequence[int] | None = None,
    rate: int = 10,
    codec: str = "ffv1",
) -> Path:
    """A clip of uint8 (frames, h, w, 3), each shown at its moment, in `1 / rate` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        container.start_encoding()
        for number, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = number if moments is None else moments[number]
            picture.time_base = Fraction(1, rate)
            container.mux(stream.encode(picture))
        if len(frames):
            container.mux(stream.encode())
    return path


def weights(path: Path, name: str = "test_resnet", **metadata: str) -> Path:
    """A file of random weights of a small model of timm, classifier and all."""
    import timm
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model(name, pretrained=False).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path, metadata or None)
    else:
        torch.save({"state_dict": {f"module.{key}": part for key, part in state.items()}}, path)
    return path


def _write(folder: Path, train: pd.DataFrame, test: pd.DataFrame, targets: list[str]) -> None:
    answers = folder.with_name(f"{folder.name}.answers")
    for made in (folder, answers):
        made.mkdir(parents=True, exist_ok=True)
    practice.write(folder, answers, train, test, targets)
