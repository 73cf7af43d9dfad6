"""What recipes read of clips: motion told in numbers, and what a frozen backbone sees in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np

from kagglekit import Data, backbones, clips
from kagglekit.backbones import BackboneConfig
from kagglekit.video import Clip, spread

from . import motion

Features = dict[str, np.ndarray]

# what the recipes ask for is embedded in one pass, whichever of them comes first
TOGETHER = ("block3", "block4", "block4:max")


def numbers(data: Data, testing: bool) -> Features:
    """Of all rows: `flow` (rows, features) and `course` (rows, MOMENTS, features)."""
    assert isinstance(data, clips.Clips)
    name = f"motion-{motion.FLOW}-{cv2.__version__}"
    return clips.kept(data, testing, name, motion.describe)


def features(
    data: Data, testing: bool, config: BackboneConfig, looks: Sequence[str], layers: Sequence[str]
) -> Features:
    """Of all rows: "look/layer" -> float32 (rows, MOMENTS, features), every second one mirrored."""
    assert isinstance(data, clips.Clips)
    backbone = backbones.load(config)
    usual = [layer for layer in TOGETHER if layer.partition(":")[0] in backbone.blocks]
    embedded = tuple(sorted({*usual, *layers}))
    names = {f"{look}/{layer}": (look, layer) for look in looks for layer in embedded}
    keys = {name: f"part{number}" for number, name in enumerate(names)}

    def embed(pictures: np.ndarray) -> Features:
        found = backbone.features(pictures, embedded)
        parts = {layer: np.split(values, len(looks)) for layer, values in found.items()}
        return {keys[n]: parts[layer][looks.index(look)] for n, (look, layer) in names.items()}

    told = f"looks-{motion.LOOKS}-{cv2.__version__}-{backbone.fingerprint}-{list(names)}"
    saved = clips.kept(data, testing, told, partial(motion.look, names=looks), embed)
    wanted = [f"{look}/{layer}" for look in looks for layer in layers]
    return {name: saved[keys[name]] for name in wanted} if saved else {}


def views(moments: np.ndarray) -> np.ndarray:
    """(rows, MOMENTS, features) as (2, rows, features): even moments, and odd ones in the mirror.

    So the two views differ in their temporal offset, and by the mirror.
    """
    return np.stack([moments[:, 0::2].mean(axis=1), moments[:, 1::2].mean(axis=1)])


def frames(data: Data, testing: bool, count: int, size: tuple[int, int]) -> np.ndarray:
    """Of all rows: grey frames, evenly spread and squeezed to `size`: uint8 (rows, count, h, w)."""
    assert isinstance(data, clips.Clips)
    name = f"frames-{motion.LOOKS}-{cv2.__version__}-{count}-{size}"
    return clips.kept(data, testing, name, partial(_frames, count=count, size=size))["frames"]


def _frames(clip: Clip, count: int, size: tuple[int, int]) -> Features:
    chosen = clip.at(spread(clip.duration, count))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in chosen]
    shrunk = [cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in grey]
    return {"frames": np.stack(shrunk)}
