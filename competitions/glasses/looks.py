"""What is looked at: windows of a portrait, and what a frozen backbone sees in them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kagglekit import BackboneConfig, Data, UserError, backbones

# windows of a portrait (top, bottom, left, right), as shares of its sides
WINDOWS = {
    "whole": (0.0, 1.0, 0.0, 1.0),
    "upper": (0.1, 0.8, 0.0, 1.0),
    "eyes": (0.18, 0.67, 0.04, 0.96),
}


def cut(images: np.ndarray, window: str) -> np.ndarray:
    """A window of images (..., height, width); UserError for an unknown one."""
    if window not in WINDOWS:
        raise UserError(f"there is no window {window!r}; there are: {', '.join(WINDOWS)}")
    height, width = images.shape[-2:]
    top, bottom, left, right = WINDOWS[window]
    rows = slice(round(top * height), round(bottom * height))
    return images[..., rows, round(left * width) : round(right * width)]


def features(
    data: Data, testing: bool, config: BackboneConfig, windows: Iterable[str], layers: Iterable[str]
) -> dict[str, np.ndarray]:
    """Of all pictures and their mirror images: "window/layer" -> float32 (2, rows, features)."""
    backbone = backbones.load(config)
    inputs = data.test_inputs if testing else data.train_inputs
    assert inputs is not None
    names, found = tuple(layers), {}
    for window in windows:
        seen = cut(inputs, window).transpose(0, 2, 3, 1)
        views = [backbone.cached_features(part, names) for part in (seen, seen[:, :, ::-1])]
        for layer in names:
            found[f"{window}/{layer}"] = np.stack([view[layer] for view in views])
    return found
