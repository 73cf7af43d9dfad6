"""The networks that look for glasses: a small one from nothing, small heads, a whole backbone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from kagglekit import Split, Task, View, images, knob, views
from kagglekit.augment import (
    Augment,
    affine,
    brightness,
    compose,
    contrast,
    erase,
    flip,
    nothing,
    training_view,
)
from kagglekit.backbones import BackboneConfig
from kagglekit.config import NetworkConfig
from kagglekit.finetune import FinetuneConfig

from . import looks


@dataclass(frozen=True, kw_only=True)
class Portraits(NetworkConfig):
    """How a network's pictures are cut and changed as it learns."""

    window: str = knob("upper", "the part of a picture that the network sees")
    degrees: float = knob(10.0, "degrees a picture may turn", least=0)
    shift: float = knob(0.06, "share of its sides that it may move", least=0, most=1)
    zoom: float = knob(0.1, "share by which it may grow or shrink", least=0, most=0.9)
    light: float = knob(0.3, "share by which brightness and contrast may change", least=0, most=1)
    erase: float = knob(0.2, "probability that a rectangle is erased", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class FinetunedPortraits(FinetuneConfig, Portraits):
    """Portraits seen by a whole backbone."""

    changes: Literal["device", "albumentations"] = knob(
        "device", "how training changes pictures: as the knobs say, or albumentations' usual ways"
    )


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(BackboneConfig, NetworkConfig):
    """Small heads on frozen features of all windows side by side."""

    layers: tuple[str, ...] = knob(("block3", "block4"), "layers of the backbone, side by side")
    windows: tuple[str, ...] = knob(("whole", "upper", "eyes"), "parts of a picture")
    hidden: int = knob(64, "units between features and classes; 0 = none", least=0)


def portraits(split: Split, config: Portraits) -> TensorDataset:
    """The window of all pictures, in memory as uint8 (1, h, w)."""
    return split.tensors(looks.cut(split.inputs, config.window))


def portraits_to_tune(split: Split, config: FinetunedPortraits) -> TensorDataset | images.Images:
    """`portraits`, or pictures that worker processes change by albumentations."""
    if config.changes == "device":
        return portraits(split, config)
    seen = looks.cut(split.inputs, config.window).transpose(0, 2, 3, 1)
    side = config.image_size
    if split.stage != "train":
        return images.Images(seen, None, size=(side, side))
    return images.Images(seen, split.target, training_view(side))


def changed_by_knobs(config: FinetunedPortraits) -> Augment:
    """`changed`, unless albumentations have done it."""
    return changed(config) if config.changes == "device" else nothing


def changed(config: Portraits) -> Augment:
    """Moved, turned and mirrored, lit otherwise, in part erased; each picture in its own way."""
    moved = affine(
        degrees=config.degrees,
        translate=config.shift,
        scale=(1 - config.zoom, 1 + config.zoom),
        padding_mode="reflect",
    )
    lit = brightness(config.light), contrast(config.light)
    return compose(moved, flip(), *lit, erase(config.erase))


def seen(config: Portraits) -> tuple[View, ...]:
    """The picture, its mirror image, and both a little aside."""
    aside = [views.shifted(dx, 0, fill="edge") for dx in (-3, 3)]
    return (views.original, views.mirrored, *aside)


def small(config: Portraits, task: Task) -> nn.Module:
    """A network of 0.1 M parameters: four times a convolution of stride 2, then a mean."""
    widths = (task.inputs[0], 16, 32, 64, 128)
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        conv = nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(wide), nn.ReLU()]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout)
    return nn.Sequential(*layers, *ends, nn.Linear(widths[-1], task.outputs))


# --- heads --------------------------------------------------------------------------------------


def features(split: Split, config: HeadsConfig) -> TensorDataset:
    """float32 (1, 2, features) of each row: those of the picture, then of its mirror image."""
    found = looks.features(split.data, split.stage == "test", config, config.windows, config.layers)
    both = np.concatenate(list(found.values()), axis=2)[:, split.rows]
    return split.tensors(both.transpose(1, 0, 2)[:, None])


class Head(nn.Module):
    """Scales features (n, 1, 2, features), and classifies those of the first view."""

    def __init__(self, config: HeadsConfig, task: Task) -> None:
        super().__init__()
        self.config = config
        wide = task.inputs[-1]
        self.register_buffer("mean", torch.zeros(wide))
        self.register_buffer("scale", torch.ones(wide))
        self.mean: Tensor
        self.scale: Tensor
        hidden = [nn.Linear(wide, config.hidden), nn.ReLU()] if config.hidden else []
        last = nn.Linear(config.hidden or wide, task.outputs)
        self.layers = nn.Sequential(nn.Dropout(config.dropout), *hidden, last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.layers((inputs[:, 0, 0] - self.mean) / self.scale)
        return logits


def head(config: HeadsConfig, task: Task) -> nn.Module:
    """A head from a random start."""
    return Head(config, task)


def fit_scales(model: nn.Module, train: Split) -> None:
    """`Network.prepare` of a Head: the mean and deviation of training rows."""
    assert isinstance(model, Head)
    seen = features(train, model.config).tensors[0].flatten(0, 2)
    model.mean.copy_(seen.mean(0))
    model.scale.copy_(seen.std(0).clamp(min=1e-6))


def swap(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """The mirror image's features in the place of the picture's, with probability one half."""
    coin = torch.rand(len(inputs), 1, 1, 1, device=generator.device, generator=generator) < 0.5
    return torch.where(coin, inputs.flip(-2), inputs)


def swapped(config: HeadsConfig) -> Augment:
    """Learn from the picture or from its mirror image."""
    return swap


def both(config: HeadsConfig) -> tuple[View, ...]:
    """Answer for the picture and for its mirror image, whose features stand second."""
    return (views.original, views.flipped)
