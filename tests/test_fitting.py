"""The ready-made recipe of a small network fits functions that it was not tuned to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kagglekit import UserError, fitting
from kagglekit.data import Data
from tests.engine import (
    fitted,
    member,
    on_one_thread,  # noqa: F401
)


def drawn(seed: int, rows: int = 400) -> Data:
    """Three waves and a slope, drawn afresh by `seed`."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, (rows, 1))
    waves = rng.uniform(0.5, 2, 3), rng.uniform(0.5, 4, 3), rng.uniform(0, 6, 3)
    y = sum(a * np.sin(b * x + c) for a, b, c in zip(*waves, strict=True)) + rng.normal() * x
    table = pd.DataFrame({"id": np.arange(rows), "x": x[:, 0]})
    return Data(table, table[:10], 1000 * y, pd.DataFrame({"id": []}))


@pytest.mark.parametrize("seed", [11, 12])
def test_the_network_fits_a_function_drawn_afresh(seed: int, tmp_path: Path) -> None:
    data = drawn(seed)
    recipe = fitting.neural(epochs=60, polish=40)
    of = member(data, tmp_path)
    config = recipe.resolve(recipe.config, of.train)
    fitted(recipe, of, config)
    error = recipe.restore(tmp_path, config, {})(of.valid) - data.target[of.valid.rows]
    assert np.sqrt(np.mean(error**2)) < 0.005 * data.target.std()


def test_each_recipe_takes_its_knobs_by_name() -> None:
    assert fitting.neural(sines=5).config.sines == 5
    assert fitting.spline(most_breaks=3).config.most_breaks == 3
    assert fitting.gaussian_process(starts=2).config.starts == 2
    assert fitting.boosting(leaves=7).config.leaves == 7
    with pytest.raises(TypeError, match="sine"):
        fitting.neural(sine=5)


def test_gauss_newton_refuses_a_loss_that_is_no_squared_error(tmp_path: Path) -> None:
    from torch.nn import functional as F

    from kagglekit.objectives import Objective

    plain = Objective(
        loss=lambda model, batch: F.l1_loss(model(batch[0]), batch[1]),
        predict=lambda model, batch: model(batch[0]),
    )
    recipe = replace(fitting.neural(), objective=lambda config: plain)
    of = member(drawn(1), tmp_path)
    with pytest.raises(UserError, match="gauss_newton needs a squared error"):
        recipe.fit([of], recipe.resolve(replace(recipe.config, polish=2), of.train))
