"""The networks that watch clips: a small one from nothing, and heads that know the order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from kagglekit import NetworkConfig, Split, Task, View, clips, knob, views
from kagglekit.augment import Augment, affine, brightness, compose, contrast, flip
from kagglekit.backbones import BackboneConfig

from . import looks

STORED = 2  # frames of each part, of which training draws one


@dataclass(frozen=True, kw_only=True)
class ScratchConfig(clips.ClipsConfig, NetworkConfig):
    """A small network from a random start."""

    frames: int = knob(8, "frames of a clip that the network sees", least=3, most=48)
    height: int = knob(48, "pixels; clips are squeezed to 3 by 2", least=32, most=256)
    shift: float = knob(0.08, "share of its sides that a clip may move", least=0, most=1)
    zoom: float = knob(0.15, "share by which it may grow or shrink", least=0, most=0.9)
    light: float = knob(0.3, "share by which brightness and contrast may change", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class OrderedConfig(clips.ClipsConfig, BackboneConfig, NetworkConfig):
    """A head on the features of moments in their order."""

    image_size: int = knob(128, "pixels a side that the backbone sees; 0 = its own", least=0)
    looks: tuple[str, ...] = knob(
        ("close-0.07", "close-0.2", "close-0.4"), "what the backbone is shown: see motion.look"
    )
    layers: tuple[str, ...] = knob(("block3", "block4"), "layers of the backbone, side by side")
    width: int = knob(48, "units of each moment", least=1)


# --- from a random start ------------------------------------------------------------------------


def stored(split: Split, config: ScratchConfig) -> TensorDataset:
    """Twice as many grey frames as the network sees, as channels: uint8 (2 · frames, h, w)."""
    size = (config.height, config.height * 3 // 2)
    found = looks.frames(split.data, split.stage == "test", STORED * config.frames, size)
    return split.tensors(found[split.rows])


def changed(config: ScratchConfig) -> Augment:
    """Moved, mirrored and lit otherwise, each clip as a whole; other frames of each part."""
    moved = affine(
        degrees=5,
        translate=config.shift,
        scale=(1 - config.zoom, 1 + config.zoom),
        padding_mode="reflect",
    )
    lit = brightness(config.light), contrast(config.light)
    return compose(clips.jittered(config.frames), moved, flip(), *lit)


def seen(config: ScratchConfig) -> tuple[View, ...]:
    """Two temporal offsets, each as it is and mirrored; never backwards: see the README."""
    early, late = (clips.offset(config.frames, place) for place in (0.0, 0.5))
    both = [views.then(view, views.mirrored) for view in (early, late)]
    return (early, late, *both)


class Watching(nn.Module):
    """Convolutions over each change from frame to frame, then over time; any number of frames."""

    def __init__(self, config: ScratchConfig, task: Task) -> None:
        super().__init__()
        self.frames = config.frames
        self.spatial = nn.Sequential(
            *(layer for sides in ((3, 16), (16, 32), (32, 64)) for layer in _halving(*sides))
        )
        self.temporal = nn.Sequential(
            nn.Conv1d(64, 64, 3, padding=1), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Dropout(config.dropout),
        )  # fmt: skip
        self.classify = nn.Linear(128, task.outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, frames, h, w) to logits (batch, classes)."""
        if inputs.shape[1] == STORED * self.frames:  # all that are stored, as no view chose
            inputs = inputs[:, ::STORED]
        change = inputs[:, 1:] - inputs[:, :-1]
        steps = torch.stack([inputs[:, 1:] - 0.5, 4 * change, 4 * change.abs()], dim=2)
        found = self.spatial(steps.flatten(0, 1)).amax(dim=(2, 3)).unflatten(0, steps.shape[:2])
        course = self.temporal(found.transpose(1, 2))
        answer: Tensor = self.classify(torch.cat([course.mean(2), course.amax(2)], dim=1))
        return answer


def _halving(narrow: int, wide: int) -> list[nn.Module]:
    conv = nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(wide), nn.ReLU()]


# --- in order -----------------------------------------------------------------------------------


def moments(split: Split, config: OrderedConfig) -> TensorDataset:
    """float32 (MOMENTS, features): flow, and what the backbone sees of each moment."""
    testing = split.stage == "test"
    found = looks.features(split.data, testing, config, config.looks, config.layers)
    course = looks.numbers(split.data, testing)["course"]
    return split.tensors(np.concatenate([course, *found.values()], axis=2)[split.rows])


class Ordered(nn.Module):
    """Scales each moment's features, looks at neighbours in time, and attends to some moments."""

    def __init__(self, config: OrderedConfig, task: Task) -> None:
        super().__init__()
        self.config = config
        count, wide = task.inputs
        self.register_buffer("mean", torch.zeros(wide))
        self.register_buffer("scale", torch.ones(wide))
        self.mean: Tensor
        self.scale: Tensor
        self.narrow = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(wide, config.width))
        self.place = nn.Parameter(torch.zeros(count, config.width))
        self.near = nn.Conv1d(config.width, config.width, 3, padding=1)
        self.weigh = nn.Linear(config.width, 1)
        self.classify = nn.Sequential(
            nn.Dropout(config.dropout / 2), nn.Linear(config.width, task.outputs)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, moments, features) to logits (batch, classes)."""
        course = self.narrow((inputs - self.mean) / self.scale) + self.place
        course = course + self.near(course.relu().transpose(1, 2)).transpose(1, 2)
        share = self.weigh(course.tanh()).softmax(dim=1)
        answer: Tensor = self.classify((share * course.relu()).sum(dim=1))
        return answer


def fit_scales(model: nn.Module, train: Split) -> None:
    """`Network.prepare` of an Ordered: the mean and deviation over rows and moments."""
    assert isinstance(model, Ordered)
    found = moments(train, model.config).tensors[0].flatten(0, 1)
    model.mean.copy_(found.mean(0))
    model.scale.copy_(found.std(0).clamp(min=1e-6))


class shifted:
    """Each clip begins a moment sooner, on time or later; the last moment at an end stays."""

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """(batch, moments, features) to the same shape."""
        steps = torch.randint(-1, 2, (len(inputs), 1), device=generator.device, generator=generator)
        count = inputs.shape[1]
        positions = (torch.arange(count, device=inputs.device) + steps).clamp(0, count - 1)
        return inputs[torch.arange(len(inputs), device=inputs.device)[:, None], positions]


def shifts(config: OrderedConfig) -> Augment:
    """Training begins a moment sooner or later."""
    return shifted()
