"""A probe chooses inside its training rows, and answers as the same classifier would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from kagglekit import probe
from kagglekit.data import Data
from kagglekit.errors import UserError
from kagglekit.probe import Probe, ProbeConfig
from kagglekit.recipe import Member

FEW = ProbeConfig(strengths=(0.1, 1.0), inner_folds=3, average=1)


def features(rows: int, wide: int = 6, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Two noisy views of each row, and its class."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, rows)
    middles = rng.normal(0, 2, (classes, wide))
    return (middles[target] + rng.normal(0, 1, (2, rows, wide))).astype(np.float32), target


def told(rows: int = 60, **more: Any) -> Data:
    _, target = features(rows)
    table = pd.DataFrame({"person": np.arange(rows) // 3})
    test = pd.DataFrame({"id": [str(n) for n in range(10)]})
    sample = test.assign(label="a")
    return Data(table, test, target, sample, ("a", "b", "c"), **more)


def recipe(sets: dict[str, np.ndarray], group: str | None = None) -> Probe[ProbeConfig]:
    return Probe(lambda data, testing, config: sets, FEW, group)


def member(data: Data, folder: Path, rows: int = 45) -> Member:
    folder.mkdir()
    train, valid = np.arange(rows), np.arange(rows, len(data.train))
    return Member(data.split(train, "train"), data.split(valid, "valid"), 0, folder)


def test_views_that_have_names_are_told_apart(tmp_path):
    good, _ = features(60)
    data, made = told(), replace(recipe({"good": good}), views=("original", "mirrored"))
    one = member(data, tmp_path / "m")
    made.fit([one], FEW)
    asked: Any = made.restore(one.folder, FEW, {})
    assert [view.name for view in asked.views] == ["original", "mirrored"]
    (answers,) = asked.batches(one.valid)
    assert not list(asked.batches(one.valid, 1))
    assert answers.shape == (2, 15, 3)
    np.testing.assert_array_equal(asked(one.valid), answers.mean(0))
    nameless = replace(made, views=()).restore(one.folder, FEW, {})
    np.testing.assert_array_equal(nameless(one.valid), answers.mean(0))
    first: Any = made.restore(one.folder, replace(FEW, tta=False), {})
    assert [view.name for view in first.views] == ["original"]
    np.testing.assert_array_equal(first(one.valid), answers[0])
    with pytest.raises(UserError, match=r"names 1 views \(original\), but its features have 2"):
        replace(made, views=("original",)).restore(one.folder, FEW, {})(one.valid)


def test_it_finds_the_features_that_tell_and_says_which(tmp_path):
    good, _ = features(60)
    noise = np.random.default_rng(1).normal(0, 1, good.shape).astype(np.float32)
    data, made = told(), recipe({"noise": noise, "good": good})
    one = member(data, tmp_path / "m")
    made.fit([one], FEW)
    answers = made.restore(one.folder, FEW, {})(one.valid)
    assert answers.shape == (15, 3)
    assert np.allclose(answers.sum(1), 1)
    assert (answers.argmax(1) == data.target[45:]).mean() > 0.9
    assert '"features": "good"' in (one.folder / "chosen.json").read_text()


@pytest.mark.parametrize(("wide", "classes"), [(6, 3), (6, 2), (300, 2)])
def test_what_it_learns_is_scikit_learn_s_regression_of_scaled_features(wide, classes):
    x, target = features(40, wide, classes)
    x[..., 0] = 7.0  # a feature that never changes
    learned = probe._fitted(x, target, [0.5], FEW, classes)[0]
    rows = x.reshape(80, -1).astype(float)
    scale = np.where(rows.std(0) > 1e-6, rows.std(0), 1)
    scaled = (rows - rows.mean(0)) / scale
    reference = LogisticRegression(C=0.25, max_iter=2000, tol=1e-8)
    reference.fit(scaled, np.tile(target, 2))
    expected = reference.predict_proba(scaled).reshape(2, 40, classes).mean(0)
    assert np.allclose(probe._answers(learned, x, True).mean(0), expected, atol=5e-3)


def test_people_stay_together_where_it_chooses(tmp_path):
    good, _ = features(60)
    data, made = told(), recipe({"good": good}, "person")
    one = member(data, tmp_path / "m")
    for train, valid in made._inner_folds(one, FEW):
        people = data.train["person"]
        assert not set(people.iloc[train]) & set(people.iloc[valid])
        assert max(train.max(), valid.max()) < 45  # positions among the training rows


def test_balanced_weights_make_scarce_classes_likelier():
    x, target = features(60, classes=2)
    keep = np.flatnonzero((target == 0) | (np.arange(60) % 6 == 0))
    x, target = 0.2 * x[:, keep], target[keep]
    plain, balanced = (
        probe._fitted(x, target, [1.0], ProbeConfig(class_weights=how), 2)[0]
        for how in ("none", "balanced")
    )
    assert (
        probe._answers(balanced, x, True)[..., 1].mean()
        > probe._answers(plain, x, True)[..., 1].mean()
    )


def test_a_file_that_is_no_probe_s_is_one_sentence(tmp_path):
    data, made = told(), recipe({"good": features(60)[0]})
    one = member(data, tmp_path / "m")
    made.fit([one], FEW)
    other = recipe({"renamed": features(60)[0]})
    with pytest.raises(UserError, match="is not what this recipe learns"):
        other.restore(one.folder, FEW, {})(one.valid)
