"""Members stacked, and side by side, against the same members one by one, on the CPU.

`python benchmarks/engines.py DIR [dense|neural]`, with fit_1d's data in DIR. Prints, for networks
of several widths, what each engine takes for the same epochs (whole `fit`, the decision included,
in turn in one process, the least of the repeats), and how many times as fast as one by one it is.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from kagglekit import Config, Network, NetworkConfig, competition, folds, regression, tables
from kagglekit.recipe import Member

HOME = Path(__file__).parent.parent / "competitions"


def dense(width: int) -> Any:
    """Three hidden layers."""

    def build(config: Any, task: Any) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs in (task.inputs[0], width, width):
            layers += [nn.Linear(inputs, width), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(width, task.outputs))

    return build


def members(data: Any, seeds: int, run: Path) -> list[Member]:
    splits = folds.split(data, Config(), folds.shuffled)
    made = []
    for seed in range(seeds):
        for fold, (train, valid) in enumerate(splits):
            name = f"fold{fold}-seed{seed}"
            (run / name).mkdir()
            parts = data.split(train, "train"), data.split(valid, "valid")
            made.append(Member(*parts, seed=seed, folder=run / name, name=name))
    return made


def seconds(recipe: Any, data: Any, seeds: int, config: Any) -> float:
    with tempfile.TemporaryDirectory() as run:
        cohort = members(data, seeds, Path(run))
        began = time.perf_counter()
        recipe.fit(cohort, config)
        return time.perf_counter() - began


def compare(name: str, recipe: Any, data: Any, seeds: int, config: Any, repeats: int = 3) -> None:
    times: dict[str, list[float]] = {"solo": [], "stacked": [], "streams": []}
    seconds(recipe, data, 1, replace(config, engine="stacked", epochs=1, polish=0))  # imports
    for _ in range(repeats):
        for engine, found in times.items():
            found.append(seconds(recipe, data, seeds, replace(config, engine=engine)))
    least = {engine: min(found) for engine, found in times.items()}
    told = [f"{engine} {taken:6.2f} s ({least['solo'] / taken:.2f}x)"
            for engine, taken in least.items()]  # fmt: skip
    print(f"{name:20} {5 * seeds:3} members  {'  '.join(told)}", flush=True)


def main(folder: str, *wanted: str) -> None:
    """Compare on the practice data of fit_1d in `folder`."""
    logging.disable(logging.WARNING)
    data = tables.regression(Path(folder))
    rows = lambda split, config: split.tensors()  # noqa: E731
    quick = {"batch_size": 128, "precision": "fp32", "compile": "off", "score_every": 0}
    for width, epochs in ((16, 200), (32, 200), (64, 100), (256, 30)):
        for seeds in (1, 4):
            if wanted and "dense" not in wanted:
                continue
            recipe = Network(rows, dense(width), regression, NetworkConfig())
            config = NetworkConfig(epochs=epochs, **quick)  # type: ignore[arg-type]
            compare(f"dense, 3 × {width}", recipe, data, seeds, config, 3 if seeds == 1 else 2)
    neural: Any = competition.find("fit_1d", HOME).recipes["neural"]
    base = replace(neural.config, precision="fp32", compile="off", epochs=300)
    for polish in (0, 10):
        if wanted and "neural" not in wanted:
            continue
        compare(f"neural, polish={polish}", neural, data, 1, replace(base, polish=polish))
        compare(f"neural, polish={polish}", neural, data, 4, replace(base, polish=polish), 2)


if __name__ == "__main__":
    main(*sys.argv[1:])
