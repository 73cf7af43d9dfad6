"""Tiny data, networks and members for the tests of the engine, on one thread of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from kagglekit import checkpoint, devices
from kagglekit.config import NetworkConfig
from kagglekit.data import Data, Split, Task
from kagglekit.network import Network
from kagglekit.objectives import multiclass, regression
from kagglekit.recipe import Member, unrecorded

CPU = torch.device("cpu")


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(autouse=True)
def on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread of the CPU, also where there is a GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(devices, "device", lambda: CPU)
    yield
    torch.set_num_threads(threads)


def numbers(rows: int = 96, inputs: int = 3, outputs: int = 2) -> Data:
    """A smooth function without noise."""
    x = np.random.default_rng(0).uniform(-1, 1, (rows, inputs))
    y = np.stack([np.sin(2 * x.sum(1) + output) for output in range(outputs)], axis=1)
    table = pd.DataFrame(x, columns=[f"x{i}" for i in range(inputs)])
    table.insert(0, "id", np.arange(rows))
    return Data(table, table[: rows // 4], y, pd.DataFrame({"id": [], "y": []}))


def pictures(rows: int = 96, side: int = 8) -> Data:
    """Pictures with a bright bar whose place is the class, of three."""
    rng = np.random.default_rng(0)
    label = np.arange(rows) % 3
    pixels = rng.integers(0, 120, (rows, 1, side, side), dtype=np.uint8)
    for row, place in enumerate(label):
        pixels[row, 0, 2 * place : 2 * place + 2] += 100
    table = pd.DataFrame({"id": np.arange(rows)})
    sample = pd.DataFrame({"id": [], "label": []})
    quarter = rows // 4
    return Data(
        table, table[:quarter], label, sample, ("a", "b", "c"), pixels, pixels[:quarter].copy()
    )


def dense(config: NetworkConfig, task: Task) -> nn.Module:
    """Three layers with dropout: no statistics of a batch."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(int(np.prod(task.inputs)), 12),
        nn.Tanh(),
        nn.Dropout(config.dropout),
        nn.Linear(12, 12),
        nn.Tanh(),
        nn.Linear(12, task.outputs),
    )


def convolution(config: NetworkConfig, task: Task) -> nn.Module:
    """Two convolutions with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(task.inputs[0], 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Flatten(),
        nn.Linear(6 * (task.inputs[1] // 2) ** 2, task.outputs),
    )


def settings(**knobs: Any) -> NetworkConfig:
    """Four quick epochs, saved at every chance."""
    quick = NetworkConfig(
        epochs=4, batch_size=16, lr=1e-2, adamw_lr=1e-2, precision="fp32", compile="off",
        workers=0, checkpoint_seconds=0, score_every=0,
    )  # fmt: skip
    return replace(quick, **knobs)


def tensors(split: Split, config: NetworkConfig) -> Any:
    """All rows in memory."""
    return split.tensors()


def regressor(**parts: Any) -> Network[NetworkConfig]:
    """A recipe for `numbers`."""
    return Network(**{"dataset": tensors, "model": dense, "objective": regression,
                      "config": settings(), **parts})  # fmt: skip


def classifier(**parts: Any) -> Network[NetworkConfig]:
    """A recipe for `pictures`."""
    return Network(**{"dataset": tensors, "model": convolution, "objective": multiclass,
                      "config": settings(), **parts})  # fmt: skip


def member(data: Data, folder: Path, record: Any = unrecorded, **facts: Any) -> Member:
    """The first three quarters to train on, the rest to validate."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.arange(len(data.train))
    cut = len(rows) * 3 // 4
    train, valid = data.split(rows[:cut], "train"), data.split(rows[cut:], "valid")
    return Member(**{"train": train, "valid": valid, "seed": 0, "folder": folder,
                     "record": record, **facts})  # fmt: skip


def weights(folder: Path) -> bytes:
    """What a member learned, to the byte."""
    return (folder / "weights.safetensors").read_bytes()


def fitted(recipe: Network[Any], of: Member, config: NetworkConfig) -> bytes:
    """Fit one member; what it learned."""
    recipe.fit([of], config)
    return weights(of.folder)


def answers(recipe: Network[Any], of: Member, config: NetworkConfig) -> np.ndarray:
    """The test answers of a fitted member."""
    return recipe.restore(of.folder, config, {})(of.train.data.split(np.arange(16), "test"))


def killed_at_save(monkeypatch: pytest.MonkeyPatch, wanted: int) -> Callable[[], int]:
    """Let the process die right after its `wanted`-th checkpoint; gives the number written."""
    save, written = checkpoint.save, [0]

    def dying(path: Path, state: Any) -> None:
        save(path, state)
        written[0] += 1
        if written[0] == wanted:
            raise KilledError

    monkeypatch.setattr(checkpoint, "save", dying)
    return lambda: written[0]
