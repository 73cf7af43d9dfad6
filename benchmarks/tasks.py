"""The tasks on which trainers are compared: the same rows, folds, model, epochs and batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks import photos
from benchmarks.competitions import photos as photographed
from kagglekit import Config, NetworkConfig, Task, files, folds, pictures, tables

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """What is trained: `seeds` networks on each of `folds` folds, or `single` on the first."""

    name: str
    kind: str  # "digits", "functions" or "photos"
    rows: int
    epochs: int
    batch: int
    lr: float
    folds: int = 5
    seeds: int = 1
    single: bool = False
    width: int = 0  # of a hidden layer, of functions
    precision: str = "fp32"

    @property
    def members(self) -> int:
        """Networks that are trained."""
        return self.seeds * (1 if self.single else self.folds)

    def batches(self, rows: int) -> int:
        """Steps of an epoch over so many rows: the last incomplete batch is left out."""
        return rows // self.batch

    @property
    def knobs(self) -> list[str]:
        """The same as kagglekit's `key=value`."""
        return [
            f"epochs={self.epochs}", "min_steps=0", f"batch_size={self.batch}", "min_batches=1",
            "optimizer=adamw", f"lr={self.lr}", "weight_decay=0.01", "warmup=0.1", "ema=0",
            "label_smoothing=0", "polish=0", "tta=off", "score_every=0",
            f"precision={self.precision}", f"folds={self.folds}",
            *{"functions": [f"width={self.width}"], "digits": ["erase=0"]}.get(self.kind, []),
        ]  # fmt: skip

    @property
    def config(self) -> NetworkConfig:
        """What a learning rate over time depends on."""
        return NetworkConfig(epochs=self.epochs, lr=self.lr, warmup=0.1, weight_decay=0.01)


@dataclass(frozen=True)
class Member:
    """One network: the rows that it learns from and those that it answers."""

    seed: int
    train: np.ndarray
    valid: np.ndarray


class MLP(nn.Sequential):
    """Three hidden layers of one width: (rows, inputs) to (rows, 1)."""

    def __init__(self, inputs: int, width: int) -> None:
        sizes = [inputs, width, width, width]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        super().__init__(*layers, nn.Linear(width, 1))


class Prepared:
    """A case whose data were written to `folder`, as Kaggle's download and as arrays.

    The inputs of photographs are where their files lie.
    """

    def __init__(self, folder: Path) -> None:
        self.case = Case(**json.loads((folder / "case.json").read_text()))
        arrays = np.load(folder / "arrays.npz")
        self.download = folder / "download"
        self.inputs, self.targets = arrays["inputs"], arrays["targets"]
        self.test, self.fold = arrays["test"], arrays["fold"]

    def members(self) -> Iterator[Member]:
        """Every network of the case."""
        for seed in range(self.case.seeds):
            for fold in range(1 if self.case.single else self.case.folds):
                held = self.fold == fold
                yield Member(seed, np.flatnonzero(~held), np.flatnonzero(held))

    def model(self, seed: int) -> nn.Module:
        """A network with its first weights."""
        torch.manual_seed(seed)
        if self.case.kind == "photos":
            import timm

            return timm.create_model("resnet18", num_classes=int(self.targets.max()) + 1)
        if self.case.kind == "functions":
            return MLP(self.inputs.shape[1], self.case.width)
        from competitions.mics_mnist import models

        return models.build(models.CNN_SMALL, Task(self.inputs.shape[1:], 10))

    def score(self, answers: np.ndarray, member: Member) -> float:
        """Accuracy of classes, root mean squared error of functions."""
        target = self.targets[member.valid]
        if self.case.kind != "functions":
            return float((answers.argmax(1) == target).mean())
        return float(np.sqrt(((answers - target) ** 2).mean()))

    def batch(self) -> torch.Tensor:
        """The inputs of a step, of photographs noise of their size."""
        if self.case.kind == "photos":
            return torch.randint(256, (self.case.batch, 3, 224, 224), dtype=torch.uint8)
        return torch.as_tensor(self.inputs[: self.case.batch])


@dataclass(frozen=True)
class Real:
    """Where real data are, which take the place of practice data and drawings."""

    digits: Path | None = None  # a download of mics_mnist
    photos: Path | None = None  # a folder of photographs a class


def prepare(case: Case, folder: Path, real: Real) -> None:
    """Write the case to `folder`."""
    (folder / "download").mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps(asdict(case)))
    if case.kind == "digits":
        _write_digits(case, folder / "download", real.digits)
        data = pictures.classification(folder / "download")
        inputs, test = data.train_inputs, data.test_inputs
    elif case.kind == "photos":
        photos.write(folder / "download", case.rows, real.photos)
        data = photographed.load(folder / "download")
        inputs, test = (part["file"].to_numpy(str) for part in (data.train, data.test))
    else:
        _write_functions(case, folder / "download")
        data = tables.regression(folder / "download")
        features = [name for name in data.test.columns if name != data.id]
        inputs, test = (part[features].to_numpy(np.float32) for part in (data.train, data.test))
    targets = data.target if data.classes else data.target.astype(np.float32)
    split = folds.stratified if data.classes else folds.shuffled
    fold = np.zeros(len(targets), np.int64)
    for number, (_, valid) in enumerate(split(data, Config(folds=case.folds))):
        fold[valid] = number
    np.savez(folder / "arrays.npz", inputs=inputs, test=test, targets=targets, fold=fold)


def _write_digits(case: Case, folder: Path, digits: Path | None) -> None:
    if digits is None:
        from competitions.mics_mnist import practice

        digits = folder.with_name("practice")
        answers = folder.with_name("answers")
        for made in (digits, answers):
            made.mkdir()
        practice.digits(digits, answers)
    data = pictures.classification(files.unpacked(digits, folder.with_name("cache")))
    assert data.train_inputs is not None
    assert data.test_inputs is not None
    drawn = np.random.default_rng(0).permutation(len(data.target))[: case.rows]
    _write_idx(folder / "train-images-idx3-ubyte", data.train_inputs[drawn][:, 0])
    _write_idx(folder / "train-labels-idx1-ubyte", data.target[drawn].astype(np.uint8))
    count = min(len(data.test_inputs), case.rows // 5)
    _write_idx(folder / "t10k-images-idx3-ubyte", data.test_inputs[:count][:, 0])
    sample = pd.DataFrame({"id": np.arange(count), "label": 0})
    sample.to_csv(folder / "sample_submission.csv", index=False)


def _write_idx(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + np.ascontiguousarray(array).tobytes())


def _write_functions(case: Case, folder: Path) -> None:
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (case.rows + case.rows // 5, 5)).round(6)
    y = np.sin(3 * x[:, 0]) * x[:, 1] + np.abs(x[:, 2]) + np.exp(x[:, 3] * x[:, 4])
    table = pd.DataFrame(x, columns=[f"x{number}" for number in range(5)])
    table.insert(0, "id", np.arange(len(table)))
    train, test = table[: case.rows], table[case.rows :]
    train.assign(y=y[: case.rows].round(6)).to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    test[["id"]].assign(y=0.0).to_csv(folder / "sample_submission.csv", index=False)
