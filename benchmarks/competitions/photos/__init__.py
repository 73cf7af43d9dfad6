"""What is on a photograph, told by a ResNet-18 at 224 pixels: a task to time."""

from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from kagglekit import (
    Competition,
    Data,
    Network,
    NetworkConfig,
    Split,
    Task,
    folds,
    metrics,
    most_probable,
    multiclass,
    submission,
)
from kagglekit.augment import ImageAugment, albumentations
from kagglekit.images import ImageFiles, folder_classes, folder_images

SHORTER, SIDE = 256, 224  # pixels of what is kept, and of what the network sees


def load(folder: Path) -> Data:
    """`train/<class>/*.jpg`, `test/*.jpg`, and a sample submission of `id,label`."""
    paths, target, classes = folder_classes(folder / "train")
    tests = {path.name: str(path) for path in folder_images(folder / "test")}
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    train = pd.DataFrame({"id": [path.name for path in paths], "file": list(map(str, paths))})
    test = pd.DataFrame({"id": sample["id"], "file": sample["id"].map(tests)})
    return Data(train, test, target, sample, classes)


def cropped(side: int) -> ImageAugment:
    """What training sees: a random part of 0.35…1 of the area, perhaps mirrored."""
    import albumentations as library

    return albumentations(
        library.RandomResizedCrop((side, side), scale=(0.35, 1.0)), library.HorizontalFlip(p=0.5)
    )


def centre(image: np.ndarray, seed: int) -> np.ndarray:
    """What prediction sees: the middle square."""
    top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    return image[max(top, 0) : max(top, 0) + SIDE, max(left, 0) : max(left, 0) + SIDE]


def dataset(split: Split, config: NetworkConfig) -> ImageFiles:
    """Photographs from their files, decoded once."""
    table = split.data.test if split.stage == "test" else split.data.train
    paths = [Path(text) for text in table["file"].iloc[split.rows]]
    seen = cropped(SIDE) if split.stage == "train" else centre
    return ImageFiles(paths, split.target, 3, (SIDE, SIDE), seen, shorter=SHORTER)


def model(config: NetworkConfig, task: Task) -> nn.Module:
    """A ResNet-18 that has learned nothing yet."""
    import timm

    return timm.create_model("resnet18", num_classes=task.outputs)


competition = Competition(
    slug="photos",
    load=load,
    folds=folds.stratified,
    metric=metrics.accuracy,
    decision=most_probable,
    submission=submission.labels(),
    recipes={"resnet": Network(dataset, model, multiclass, NetworkConfig())},
)
