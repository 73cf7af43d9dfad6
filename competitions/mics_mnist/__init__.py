"""MICS MNIST: which of ten digits is in a small grey picture; scored by accuracy."""

from dataclasses import dataclass

from torch import nn
from torch.utils.data import TensorDataset

from kagglekit import (
    Competition,
    Network,
    NetworkConfig,
    Split,
    Task,
    View,
    folds,
    knob,
    metrics,
    most_probable,
    multiclass,
    pictures,
    submission,
    views,
)
from kagglekit.augment import Augment, affine, compose, erase

from . import models, practice


@dataclass(frozen=True, kw_only=True)
class DigitsConfig(NetworkConfig):
    """Muon on hidden layers; every picture is moved, turned, scaled and slanted a little."""

    shift: float = knob(2.0, "pixels of a picture 28 wide that it may move", least=0)
    rotate: float = knob(10.0, "degrees it may turn", least=0)
    scale: float = knob(0.1, "share by which it may grow or shrink", least=0, most=0.9)
    shear: float = knob(8.0, "degrees it may slant", least=0)
    erase: float = knob(0.0, "probability that a rectangle is erased", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class TimmConfig(DigitsConfig):
    """Any of timm's models, from a random start."""

    model: str = knob("resnet18", "name of the model in timm")


def dataset(split: Split, config: DigitsConfig) -> TensorDataset:
    """All pictures in memory, as uint8."""
    return split.tensors()


def augment(config: DigitsConfig) -> Augment:
    """One resampling for all movements, drawn for each picture; no mirrors: a 2 would be no 2."""
    moved = affine(
        degrees=config.rotate,
        translate=config.shift / 28,
        scale=(1 - config.scale, 1 + config.scale),
        shear=config.shear,
    )
    return compose(moved, erase(config.erase)) if config.erase else moved


def shifts(config: DigitsConfig) -> tuple[View, ...]:
    """The picture, and the picture one pixel aside in four directions."""
    aside = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    return (views.original, *(views.shifted(dx, dy) for dx, dy in aside))


def small(config: DigitsConfig, task: Task) -> nn.Module:
    """A strided network of 0.14 M parameters."""
    return models.build(models.CNN_SMALL, task)


def wide(config: DigitsConfig, task: Task) -> nn.Module:
    """A residual network of 1.9 M parameters."""
    return models.build(models.CNN, task)


def from_timm(config: TimmConfig, task: Task) -> nn.Module:
    """The model that `model` names."""
    return models.from_timm(config.model, task)


MUON = DigitsConfig(
    epochs=5, min_steps=100, batch_size=512, min_batches=8, optimizer="muon", lr=0.03,
    adamw_lr=0.004, weight_decay=1e-3, momentum=0.9, warmup=0.15, label_smoothing=0.1,
)  # fmt: skip
WIDE = DigitsConfig(
    epochs=25, min_steps=100, batch_size=512, min_batches=8, optimizer="muon", lr=0.03,
    adamw_lr=0.004, weight_decay=1e-3, momentum=0.9, warmup=0.15, label_smoothing=0.1, ema=0.995,
    rotate=12.0,
)  # fmt: skip
# Not channels-last: with feature maps of 1 × 1, as the last stage of a ResNet has them for small
# pictures, oneDNN's bf16 kernels on a CPU then read memory that nobody wrote.
TIMM = TimmConfig(
    epochs=15, min_steps=100, batch_size=512, min_batches=8, lr=3e-3, weight_decay=0.05,
    label_smoothing=0.1, ema=0.995, channels_last=False,
)  # fmt: skip

competition = Competition(
    slug="2025-decimal-classification-mics-mnist",
    load=pictures.classification,
    folds=folds.stratified,
    metric=metrics.accuracy,
    decision=most_probable,
    submission=submission.labels(),
    recipes={
        "cnn": Network(dataset, wide, multiclass, WIDE, augment, shifts, wants_gpu=True),
        "cnn_small": Network(dataset, small, multiclass, MUON, augment, shifts),
        "timm": Network(dataset, from_timm, multiclass, TIMM, augment, shifts, wants_gpu=True),
    },
    practice={"digits": practice.digits, "mnist": practice.mnist},
)
