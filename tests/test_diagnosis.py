"""What is told of a model is what its answers bear: intervals cover, errors are found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kagglekit import diagnosis
from kagglekit.errors import UserError


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = {"wilson": 0, "bootstrap": 0, "groups": 0}
    for _ in range(150):
        right = rng.random(200) < 0.8
        low, high = diagnosis.wilson(int(right.sum()), 200)
        covered["wilson"] += low <= 0.8 <= high
        low, high = diagnosis.bootstrap(lambda at, r=right: r[at].mean(), np.arange(200), None, 200)
        covered["bootstrap"] += low <= 0.8 <= high
        # ten rows of a group are right or wrong together: only whole groups tell
        groups = np.repeat(np.arange(40), 10)
        alike = (rng.random(40) < 0.8)[groups]
        low, high = diagnosis.bootstrap(
            lambda at, r=alike: r[at].mean(), np.arange(400), groups, 200
        )
        covered["groups"] += low <= 0.8 <= high
    assert all(0.87 <= count / 150 <= 0.99 for count in covered.values()), covered


def test_a_score_that_most_draws_lack_or_all_share_has_no_interval():
    def never(at):
        raise UserError("one class only")

    assert diagnosis.bootstrap(never, np.arange(1)) is None
    assert diagnosis.bootstrap(lambda at: 1.0, np.arange(9)) is None
    large = diagnosis.bootstrap(lambda at: float(at.mean()), np.arange(40_000), None, 50)
    assert large[0] < 19999.5 < large[1]
    # as wide as 40,000 rows deserve, though 10,000 are drawn at a time
    assert large[1] - large[0] == pytest.approx(4 * 40_000 / 12**0.5 / 200, rel=0.4)


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


def test_slices_share_values_or_quarters_and_groups_are_what_folds_keep_together():
    table = pd.DataFrame({
        "kind": ["a", "b"] * 40, "size": np.arange(80.0), "name": [f"n{n}" for n in range(80)],
        "writer": np.arange(80) // 4,
    })  # fmt: skip
    right = np.array([True, False] * 40)
    found = diagnosis.slices(table[["kind", "size", "name"]], lambda at: float(right[at].mean()))
    told = {(part.column, part.value): (len(part.rows), part.score) for part in found}
    assert told["kind", "a"] == (40, 1.0)
    assert told["kind", "b"] == (40, 0.0)
    assert sum(column == "size" for column, _ in told) == 4
    assert not any(column == "name" for column, _ in told)
    assert [part.stands_out(0.5) for part in found if part.column == "size"] == [False] * 4
    folds = [(np.arange(40), np.arange(40, 80)), (np.arange(40, 80), np.arange(40))]
    assert diagnosis.group_columns(table, folds) == ["writer"]
    crossed = [(np.arange(0, 80, 3), np.arange(1, 80, 3))]
    assert diagnosis.group_columns(table, crossed) == []
    writers = diagnosis.by_group(
        "writer", table["writer"].to_numpy(), lambda at: float(at.mean()), False, 3
    )
    assert [part.value for part in writers] == ["19", "18", "17"]
