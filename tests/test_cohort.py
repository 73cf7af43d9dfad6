"""Law 1: a member of a cohort answers as the same member alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kagglekit import engine
from kagglekit.network import Network
from kagglekit.recipe import Member
from tests.engine import (
    member,
    numbers,
    on_one_thread,  # noqa: F401
    regressor,
    settings,
)

NAMES = ("fold0-seed0", "fold1-seed0", "fold2-seed0")


def members(data: Any, run: Path, names: Any = NAMES, unequal: bool = False) -> list[Member]:
    """Members of one run, of folds of one size or of unequal ones."""
    made = []
    for place, name in enumerate(names):
        rows = np.arange(len(data.train))
        valid = (rows % len(names)) == place
        if unequal and place == len(names) - 1:
            valid |= rows < 40
        of = member(data, run / name, name=name, seed=place)
        made.append(replace(of, train=data.split(rows[~valid], "train"),
                            valid=data.split(rows[valid], "valid")))  # fmt: skip
    return made


def learned(recipe: Network[Any], cohort: list[Member], config: Any) -> dict[str, Any]:
    recipe.fit(cohort, config)
    return {of.name: load_file(of.folder / "weights.safetensors") for of in cohort}


def engines(run: Path) -> dict[str, str]:
    return {name: one.engine for one in engine.recorded(run) for name in one.members}


def demand_alike(recipe: Network[Any], data: Any, path: Path, most: float, **knobs: Any) -> None:
    unequal = knobs.pop("unequal", False)
    apart = learned(recipe, members(data, path / "solo", unequal=unequal),
                    settings(engine="solo", **knobs))  # fmt: skip
    joint = learned(recipe, members(data, path / "stacked", unequal=unequal),
                    settings(engine="stacked", **knobs))  # fmt: skip
    assert set(engines(path / "solo").values()) == {"solo"}
    found = engines(path / "stacked")
    assert list(found.values()).count("stacked") == (2 if unequal else 3), engine.recorded(
        path / "stacked"
    )
    assert not list((path / "stacked").glob("*.bin"))
    for name, weights in apart.items():
        for key, weight in weights.items():
            other = joint[name][key]
            assert weight.dtype == other.dtype
            size = weight.double().norm().clamp_min(1e-3)
            error = float((weight.double() - other.double()).norm() / size)
            assert error <= most, f"{key} of {name} is {error:.2g} apart"
    first, second, *_ = joint.values()
    assert any(not torch.equal(first[key], second[key]) for key in first)


KNOBS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd"},
    "muon": {"optimizer": "muon"},
    "ema": {"ema": 0.8},
    "dropout": {"dropout": 0.3},
    "mixup": {"mixup": 0.4},
    "clip": {"clip_norm": 0.01},
    "accumulate": {"accumulate": 3},
    "patience": {"patience": 1, "holdout": 0.2, "epochs": 8, "lr": 0.3},
    "lbfgs": {"epochs": 2, "polish": 4, "holdout": 0.2},
    "gauss_newton": {"epochs": 2, "polish": 4, "holdout": 0.2, "polish_method": "gauss_newton"},
    "all": {"ema": 0.8, "dropout": 0.2, "mixup": 0.2, "clip_norm": 0.1, "accumulate": 2},
    "bf16": {"precision": "bf16"},
    "unequal": {"unequal": True, "batch_size": 16},
}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_dense_members_learn_in_a_cohort_what_they_learn_alone(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    # bf16 rounds each product otherwise; L-BFGS carries the last digit of its start far
    most = 0.05 if "precision" in knobs else 0.02 if "polish" in knobs else 1e-4
    demand_alike(regressor(), numbers(), tmp_path, most, **knobs)
