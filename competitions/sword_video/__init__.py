"""Sword video: which of two actions does a short clip show? Films in the test set are new."""

from dataclasses import dataclass

import numpy as np

from kagglekit import (
    Blend,
    Competition,
    Data,
    Network,
    Probe,
    ProbeConfig,
    backbones,
    clips,
    folds,
    knob,
    metrics,
    most_probable,
    multiclass,
    submission,
)
from kagglekit.blend import BlendConfig
from kagglekit.probe import ChoiceConfig

from . import looks, networks, practice

VIEWS = ("even moments", "odd moments, mirrored")
CLOSE = ("close-0.07", "close-0.2", "close-0.4")


@dataclass(frozen=True, kw_only=True)
class FlowConfig(clips.ClipsConfig, ChoiceConfig):
    """Motion told in numbers; no backbone."""


@dataclass(frozen=True, kw_only=True)
class LooksConfig(clips.ClipsConfig, ProbeConfig):
    """What a backbone is shown of each clip."""

    image_size: int = knob(128, "pixels a side that the backbone sees; 0 = its own", least=0)
    looks: tuple[str, ...] = knob(CLOSE, "what the backbone is shown: see motion.look")


@dataclass(frozen=True, kw_only=True)
class MixConfig(clips.ClipsConfig, BlendConfig):
    """How the others' answers are mixed."""


def flow(data: Data, testing: bool, config: FlowConfig) -> dict[str, np.ndarray]:
    """One set of features, and one view: a mirrored clip moves just as fast."""
    return {"flow": looks.numbers(data, testing)["flow"][None]}


def each_look(data: Data, testing: bool, config: LooksConfig) -> dict[str, np.ndarray]:
    """Every look through every layer."""
    found = looks.features(data, testing, config, config.looks, config.layers)
    return {name: looks.views(values) for name, values in found.items()}


def all_motion(data: Data, testing: bool, config: LooksConfig) -> dict[str, np.ndarray]:
    """Flow, and all looks side by side."""
    found = looks.features(data, testing, config, config.looks, config.layers)
    seen = looks.views(np.concatenate(list(found.values()), axis=2))
    told = looks.numbers(data, testing)["flow"]
    return {"flow": np.stack([told, told]), "looks": seen}


STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
FRAMES = LooksConfig(looks=("whole", "close"), layers=("block3", "block4"), strengths=STRENGTHS)
MOTION = LooksConfig(layers=("block4", "block4:max"), strengths=STRENGTHS, average=2)
ORDERED = networks.OrderedConfig(
    epochs=40, batch_size=32, lr=1e-3, weight_decay=0.1, label_smoothing=0.1, mixup=0.4, ema=0.98,
    dropout=0.5, precision="fp32", layers=("block3", "block4"),
)  # fmt: skip
SCRATCH = networks.ScratchConfig(
    epochs=20, batch_size=16, lr=2e-3, weight_decay=0.05, label_smoothing=0.1, mixup=0.2, ema=0.98,
    dropout=0.3,
)  # fmt: skip

competition = Competition(
    slug="sword-video-classification",
    load=clips.classification,
    folds=clips.sound(folds.stratified_grouped(clips.FILM)),
    metric=metrics.accuracy,
    decision=most_probable,
    submission=submission.labels(),
    recipes={
        "blend": Blend(
            ("motion", "ordered", "flow"), MixConfig(), metrics.accuracy, most_probable
        ),
        "motion": Probe(all_motion, MOTION, clips.FILM, views=VIEWS),
        "flow": Probe(flow, FlowConfig(strengths=STRENGTHS, average=1), clips.FILM),
        "frames": Probe(each_look, FRAMES, clips.FILM, views=VIEWS),
        "ordered": Network(
            networks.moments, networks.Ordered, multiclass, ORDERED, networks.shifts,
            prepare=networks.fit_scales, complete=backbones.resolve,
        ),
        "scratch": Network(
            networks.stored, networks.Watching, multiclass, SCRATCH, networks.changed,
            networks.seen,
        ),
    },
    practice={"blades": practice.write},
)  # fmt: skip
