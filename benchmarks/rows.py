"""What the rows of a run's members take in memory, and what a round of a stack takes to see them.

`python -m benchmarks.rows`, 60,000 pictures like MNIST's. Prints how much memory the members take
beside the data, by one copy for all and by a copy each, and the time of a round's batches with the
augmentation of mics_mnist, of all members at once and one by one (in turn, the least of repeats).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from kagglekit import competition
from kagglekit.data import Data
from kagglekit.loading import InStep, Loader
from kagglekit.objectives import multiclass
from kagglekit.stacking import together
from kagglekit.train import Plan, seen

from .engines import HOME

CPU = torch.device("cpu")
ROWS, FOLDS, ROUNDS, REPEATS = 60_000, 5, 2, 8


def digits() -> Data:
    """Noise in the shape of MNIST: what it shows does not matter here."""
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 1, 28, 28), dtype=np.uint8)
    table, sample = pd.DataFrame({"id": np.arange(ROWS)}), pd.DataFrame({"id": [], "label": []})
    return Data(table, table[:9], np.arange(ROWS) % 10, sample, tuple("0123456789"), pixels)


def loaders(data: Data, members: int, config: Any, copied: bool = False) -> list[Loader]:
    """The training rows of each member, by one copy of all or in a copy of its own."""
    made = []
    for member in range(members):
        rows = np.flatnonzero(np.arange(ROWS) % FOLDS != member % FOLDS)
        split = data.split(rows, "train")
        dataset = split.tensors(split.inputs) if copied else split.tensors()
        made.append(Loader(dataset, config, CPU, member, True))
    return made


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


def memory(copied: bool) -> None:
    """Print what 20 members take beside the data, in a process of its own."""
    config = competition.find("mics_mnist", HOME).recipes["cnn_small"].config
    data = digits()
    next(loaders(data, 1, config)[0].batches(0))  # what the first batch ever loads
    before = resident()
    kept = loaders(data, 20, config, copied)
    for loader in kept:
        next(loader.batches(0))
    assert data.train_inputs is not None
    how = "a copy each" if copied else "one copy for all"
    more, own = (size / 2**20 for size in (resident() - before, data.train_inputs.nbytes))
    print(f"20 members, {how}: {more:.0f} MiB beside the {own:.0f} MiB of the data", flush=True)


def rounds(plans: list[Plan], once: bool) -> Iterator[Any]:
    """The batches of all members as they see them, without end but for their epoch's."""
    draws = [torch.Generator().manual_seed(plan.seed) for plan in plans]
    if once:
        for batch in InStep([plan.loader for plan in plans]).batches(0):
            yield [part.unflatten(0, (len(plans), -1)) for part in seen(plans[0], batch, draws)]
        return
    for batches in zip(*(plan.loader.batches(0) for plan in plans), strict=True):
        each = zip(plans, batches, draws, strict=True)
        yield together([seen(plan, batch, source) for plan, batch, source in each])


def speed(members: int, batch: int) -> None:
    """Print what a round takes, and that it is the same either way."""
    recipe: Any = competition.find("mics_mnist", HOME).recipes["cnn_small"]
    config = recipe.config.__class__(batch_size=batch)
    model, objective = torch.nn.Linear(1, 1), multiclass(config)
    plans = [
        Plan(model, objective, loader, recipe.augment(config), config, "", seed, HOME)
        for seed, loader in enumerate(loaders(digits(), members, config))
    ]
    made = {once: rounds(plans, once) for once in (True, False)}
    for one, other in zip(*map(next, made.values()), strict=True):
        assert torch.equal(one, other)
    least = dict.fromkeys(made, float("inf"))
    for _ in range(REPEATS):
        for once, batches in made.items():
            began = time.perf_counter()
            for _ in range(ROUNDS):
                next(batches)
            least[once] = min(least[once], (time.perf_counter() - began) / ROUNDS)
    joint, apart = (1000 * least[once] for once in (True, False))
    print(f"{members:3} members, batch {batch:3}: {joint:6.2f} ms at once, {apart:6.2f} ms "
          f"one by one ({apart / joint:.2f}x)", flush=True)  # fmt: skip


def main() -> None:
    """Memory, then time on one thread."""
    alone: Callable[..., Any] = get_context("spawn").Process
    for copied in (False, True):
        process = alone(target=memory, args=(copied,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(1)
    torch.set_num_threads(1)
    for members in (5, 20):
        for batch in (16, 64, 256):
            speed(members, batch)


if __name__ == "__main__":
    main()
