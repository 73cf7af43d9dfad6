"""A project whose pictures are streamed from files by worker processes, and augmented there."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

COMPETITION = '''"""Small colour pictures of two species, read from their files in every epoch."""

from pathlib import Path

import pandas as pd
from torch import nn

from kagglekit import Competition, Data, Network, NetworkConfig, folds, metrics
from kagglekit import most_probable, multiclass, submission, views
from kagglekit.augment import training_view
from kagglekit.images import ImageFiles, folder_classes
from tests import leaves


def load(folder):
    paths, target, classes = folder_classes(folder / "train")
    tests = sorted((folder / "test").iterdir())
    train, test = (
        pd.DataFrame({"id": [path.stem for path in some], "file": [str(path) for path in some]})
        for some in (paths, tests)
    )
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    return Data(train, test, target, sample, classes)


def dataset(split, config):
    table = split.data.test if split.stage == "test" else split.data.train
    paths = [Path(text) for text in table["file"].iloc[split.rows]]
    transform = leaves.Hungry(training_view(12)) if split.stage == "train" else None
    return ImageFiles(paths, split.target, 3, (12, 12), transform)


def model(config, task):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout),
        nn.Linear(8, task.outputs),
    )


competition = Competition(
    slug="leaves",
    load=load,
    folds=folds.stratified,
    metric=metrics.accuracy,
    decision=most_probable,
    submission=submission.labels(),
    recipes={
        "cnn": Network(
            dataset, model, multiclass,
            NetworkConfig(
                folds=2, epochs=3, batch_size=8, lr=1e-2, dropout=0.2, mixup=0.2, ema=0.9,
                precision="fp32", compile="off", workers=0, checkpoint_seconds=0,
            ),
            views=lambda config: (views.original, views.mirrored),
        )
    },
)
'''


class Hungry:
    """A transform that needs more memory than there is, while a file `hungry` is there."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: np.ndarray, seed: int) -> Any:
        if Path("hungry").exists():
            bytearray(1 << 60)
        return self.transform(image, seed)


def content(project: Path) -> dict[str, bytes]:
    """All that must be equal, of the only run there is."""
    (run,) = (path.parent for path in (project / "runs").glob("leaves/*/run.json"))
    (csv,) = (project / "submissions").glob("leaves/*.csv")
    kept = {name: run / name for name in ("oof.npy", "covered.npy", "test.npy")}
    kept |= {path.parent.name: path for path in run.glob("*/weights.safetensors")}
    return {name: path.read_bytes() for name, path in {**kept, "csv": csv}.items()}


def write(project: Path, packed: bool = False) -> None:
    """Make `project` one with the competition `leaves`, its pictures in a zip where `packed`."""
    home = project / "competitions" / "leaves"
    home.mkdir(parents=True, exist_ok=True)
    (home / "__init__.py").write_text(COMPETITION)
    data = project / "data" / "leaves"
    pictures(data)
    if packed:
        _pack(data)


def pictures(folder: Path, rows: int = 40) -> None:
    """Colour pictures of two species, told apart by their colour: folders, sample submission."""
    rng = np.random.default_rng(0)
    for part, count in (("train", rows), ("test", 8)):
        for number in range(count):
            species = ("ash", "oak")[number % 2]
            home = folder / part / (species if part == "train" else "")
            home.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 90, (16, 16, 3))
            pixels[..., number % 2] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(home / f"{part}{number}.png")
    ids = [f"test{number}" for number in range(8)]
    sample = pd.DataFrame({"id": ids, "species": "ash"})
    sample.to_csv(folder / "sample_submission.csv", index=False)


def _pack(folder: Path) -> None:
    """Let a zip take the place of the files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(folder / "leaves.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.relative_to(folder))
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
