"""What is told of a model is what its answers bear: errors are found, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kagglekit import diagnosis
from kagglekit.errors import UserError


def test_the_interval_of_a_share_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for share in (0.5, 0.8, 0.98):
        found = [diagnosis.wilson(int(n), 200) for n in rng.binomial(200, share, 1000)]
        assert 0.93 <= np.mean([low <= share <= high for low, high in found]) <= 0.98
    assert diagnosis.wilson(0, 0) == (0.0, 1.0)


def test_calibration_error_is_zero_of_honest_and_large_of_boastful_confidence():
    rng = np.random.default_rng(1)
    sure = rng.uniform(0.5, 1, 20_000)
    target = (rng.random(20_000) > sure).astype(int)
    honest = np.stack([sure, 1 - sure], 1)
    boastful = np.stack([np.full(20_000, 0.99), np.full(20_000, 0.01)], 1)
    assert diagnosis.calibration_error(diagnosis.reliability(target, honest)) < 0.02
    bins = diagnosis.reliability(target, boastful)
    assert diagnosis.calibration_error(bins) == pytest.approx(0.24, abs=0.02)
    assert sum(part.rows for part in bins) == 20_000


def test_flipped_labels_are_found_and_little_else():
    rng = np.random.default_rng(2)
    target = rng.integers(0, 4, 1500)
    answers = rng.dirichlet(np.full(4, 0.3), 1500) * 0.4
    answers[np.arange(1500), target] += 0.6
    flipped = rng.choice(1500, 45, replace=False)
    target[flipped] = (target[flipped] + 1) % 4
    found = diagnosis.label_issues(target, answers)
    assert len(set(found) & set(flipped)) >= 38
    assert len(set(found) - set(flipped)) <= 5
    # a class that no row has, and one class alone, are no trouble
    assert len(diagnosis.label_issues(target, np.hstack([answers, np.zeros((1500, 1))]))) >= 38
    assert len(diagnosis.label_issues(np.zeros(9, int), np.full((9, 2), 0.5))) == 0


def test_slices_share_values_or_quarters_and_the_worst_groups_come_first():
    table = pd.DataFrame({
        "kind": ["a", "b"] * 40, "size": np.arange(80.0), "name": [f"n{n}" for n in range(80)],
        "writer": np.arange(80) // 4,
    })  # fmt: skip
    right = np.array([True, False] * 40)

    def score(at):
        if table["size"].iloc[at[0]] >= 60:
            raise UserError("no score for the last quarter")
        return float(right[at].mean())

    found = diagnosis.slices(table[["kind", "size", "name"]], score)
    told = {(part.column, part.value): (len(part.rows), part.score) for part in found}
    assert told["kind", "a"] == (40, 1.0)
    assert told["kind", "b"] == (40, 0.0)
    assert sum(column == "size" for column, _ in told) == 3
    assert not any(column == "name" for column, _ in told)
    one = replace(found[0], interval=(0.4, 0.6))
    assert [one.stands_out(whole) for whole in (0.3, 0.5, 0.7)] == [True, False, True]
    assert not found[0].stands_out(0.5)  # nobody knows
    writers = diagnosis.by_group(
        "writer", table["writer"].to_numpy(), lambda at: float(at.mean()), False, 3
    )
    assert [part.value for part in writers] == ["19", "18", "17"]


def test_the_labels_of_a_scarce_class_are_doubted_without_a_warning():
    unsure = np.full((6, 3), 1 / 3)
    assert len(diagnosis.label_issues(np.array([0, 0, 0, 0, 0, 1]), unsure)) <= 1
