"""Glasses: does the person in a small picture wear any? People in the test set are new."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kagglekit import (
    Blend,
    Competition,
    Data,
    Network,
    Probe,
    ProbeConfig,
    backbones,
    finetune,
    folds,
    knob,
    metrics,
    most_probable,
    multiclass,
    pictures,
    submission,
)

from . import looks, networks, practice

PERSON = "subject"


@dataclass(frozen=True, kw_only=True)
class FacesConfig(ProbeConfig):
    """Which parts of a portrait the backbone looks at."""

    windows: tuple[str, ...] = knob(tuple(looks.WINDOWS), "parts of a picture to choose among")


def load(folder: Path) -> Data:
    """Grey pictures, uint8 (rows, 1, height, width), and the person of each training row."""
    return pictures.classification(folder, channels=1)


def candidates(data: Data, testing: bool, config: FacesConfig) -> dict[str, np.ndarray]:
    """Every window through every layer, of the picture and its mirror image."""
    return looks.features(data, testing, config, config.windows, config.layers)


SCRATCH = networks.Portraits(
    epochs=60, batch_size=32, lr=3e-3, weight_decay=0.05, label_smoothing=0.1, mixup=0.2, ema=0.98,
    dropout=0.2,
)  # fmt: skip
HEADS = networks.HeadsConfig(
    epochs=60, batch_size=64, lr=1e-3, weight_decay=0.1, label_smoothing=0.05, mixup=0.2, ema=0.98,
    dropout=0.5, precision="fp32", channels_last=False,
)  # fmt: skip
FINETUNE = networks.FinetunedPortraits(
    epochs=6, batch_size=16, lr=1e-3, weight_decay=0.05, label_smoothing=0.1, mixup=0.2, ema=0.95,
    dropout=0.2, layer_decay=0.8, image_size=96, warmup=0.1,
)  # fmt: skip

competition = Competition(
    slug="2024-binary-classification-glasses-no-glasses",
    load=load,
    folds=folds.stratified_grouped(PERSON),
    metric=metrics.accuracy,
    decision=most_probable,
    submission=submission.labels(),
    recipes={
        "probe": Probe(candidates, FacesConfig(), PERSON, views=("original", "mirrored")),
        "heads": Network(
            networks.features, networks.head, multiclass, HEADS, networks.swapped, networks.both,
            prepare=networks.fit_scales, complete=backbones.resolve,
        ),
        "finetune": Network(
            networks.portraits_to_tune, finetune.model, multiclass, FINETUNE,
            networks.changed_by_knobs, networks.seen, finetune.layer_wise, finetune.start,
            complete=backbones.resolve,
        ),
        "scratch": Network(
            networks.portraits, networks.small, multiclass, SCRATCH, networks.changed,
            networks.seen,
        ),
        "blend": Blend(("probe", "heads", "finetune"), metric=metrics.accuracy,
                       decision=most_probable),
    },
    practice={"faces": practice.write},
)  # fmt: skip
