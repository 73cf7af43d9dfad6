from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from kagglekit.boosted_trees import BoostedTrees

few = BoostedTrees(learning_rate=0.2, most_trees=40)


def drawn(seed: int, rows: int = 400):
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (rows, 3))
    a, b = random.normal(size=2)
    waves = np.sin(3 * x[:, 0] + a) + b * x[:, 1] * x[:, 2]
    return x, np.stack([waves, 1000 * np.abs(x[:, 1] - 0.2)], axis=1)


def test_its_trees_answer_as_scikit_learn_s_do():
    x, y = drawn(0)
    at, _ = drawn(1)
    at[::7, 1] = np.nan
    found = few.predict(few.fit(x, y, 3), at)
    for output in range(2):
        model = few._model(len(x), 3).fit(x, y[:, output])
        expected = model.predict(at)
        assert np.abs(found[:, output] - expected).max() <= 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("seed", [2, 3])
def test_functions_drawn_afresh_are_learned(seed):
    x, y = drawn(seed, rows=700)
    learned = BoostedTrees().fit(x[:500], y[:500], 0)
    error = np.sqrt(np.mean((BoostedTrees().predict(learned, x[500:]) - y[500:]) ** 2, axis=0))
    assert (error < 0.25 * y.std(0)).all()


def test_growing_stops_where_more_trees_bring_nothing():
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(200, 2)), random.normal(size=(200, 1))
    assert replace(BoostedTrees(), patience=5).fit(x, y, 0)["trees"][0] < 60


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads():
    x, y = drawn(4)
    learned = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            learned.append(few.fit(x, y, 5))
    assert all(np.array_equal(learned[0][name], learned[1][name]) for name in learned[0])
    assert torch.get_num_threads() > 0


def test_npz_keeps_what_was_learned():
    x, y = drawn(5)
    learned = few.fit(x, y, 0)
    file = io.BytesIO()
    np.savez(file, **learned)
    file.seek(0)
    loaded = dict(np.load(file, allow_pickle=False))
    assert np.array_equal(few.predict(loaded, x), few.predict(learned, x))


@pytest.mark.parametrize("rows", [2, 3, 10, 49, 51])
def test_few_rows_and_constant_columns_are_answered(rows):
    x, y = drawn(6, rows)
    x[:, 1], y[:, 1] = 2.0, 7.0
    found = few.predict(few.fit(x, y, 0), x)
    assert np.isfinite(found).all()
    assert np.allclose(found[:, 1], 7.0)


def test_an_unknown_form_of_trees_is_refused(monkeypatch):
    from sklearn.ensemble import HistGradientBoostingRegressor

    x, y = drawn(7, 60)
    monkeypatch.setattr(
        HistGradientBoostingRegressor, "predict", lambda self, at: np.full(len(at), 1e3)
    )
    with pytest.raises(RuntimeError, match="cannot read"):
        few.fit(x, y, 0)


def test_trees_that_lead_back_are_refused_and_not_followed_for_ever():
    x = np.linspace(-1, 1, 60)[:, None]
    learner = BoostedTrees(most_trees=3)
    state = learner.fit(x, np.sin(3 * x))
    state["left"][-3:] = state["right"][-3:] = 0
    with pytest.raises(ValueError, match="does not lead to a later one"):
        learner.predict(state, x)
