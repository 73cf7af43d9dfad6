"""Glasses: does the person in a small picture wear any? People in the test set are new."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kagglekit import (
    Competition,
    Data,
    Probe,
    ProbeConfig,
    backbones,
    folds,
    knob,
    metrics,
    most_probable,
    pictures,
    submission,
)

PERSON = "subject"
# windows of a portrait (top, bottom, left, right), as shares of its sides
WINDOWS = {
    "whole": (0.0, 1.0, 0.0, 1.0),
    "upper": (0.1, 0.8, 0.0, 1.0),
    "eyes": (0.18, 0.67, 0.04, 0.96),
}


@dataclass(frozen=True, kw_only=True)
class FacesConfig(ProbeConfig):
    """Which parts of a portrait the backbone looks at."""

    windows: tuple[str, ...] = knob(tuple(WINDOWS), "parts of a picture to choose among")


def load(folder: Path) -> Data:
    """Grey pictures, uint8 (rows, 1, height, width), and the person of each training row."""
    return pictures.classification(folder, channels=1)


def faces(data: Data, testing: bool, config: FacesConfig) -> dict[str, np.ndarray]:
    """Features of all pictures and their mirror images: "window/layer" -> (2, rows, features)."""
    backbone = backbones.load(config)
    inputs = data.test_inputs if testing else data.train_inputs
    assert inputs is not None
    images = inputs.transpose(0, 2, 3, 1)
    found: dict[str, np.ndarray] = {}
    for name in config.windows:
        seen = cut(images, name)
        views = [backbone.cached_features(part, config.layers) for part in (seen, seen[:, :, ::-1])]
        for layer in config.layers:
            found[f"{name}/{layer}"] = np.stack([view[layer] for view in views])
    return found


def cut(images: np.ndarray, window: str) -> np.ndarray:
    """A window of images (rows, height, width, channels)."""
    height, width = images.shape[1:3]
    top, bottom, left, right = WINDOWS[window]
    rows = slice(round(top * height), round(bottom * height))
    return images[:, rows, round(left * width) : round(right * width)]


competition = Competition(
    slug="2024-binary-classification-glasses-no-glasses",
    load=load,
    folds=folds.stratified_grouped(PERSON),
    metric=metrics.accuracy,
    decision=most_probable,
    submission=submission.labels(),
    recipes={"probe": Probe(faces, FacesConfig(), PERSON)},
)
