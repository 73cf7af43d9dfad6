"""What tells the target or the test set apart is found, and noise is not accused."""

from __future__ import annotations

import numpy as np
import pytest

from kagglekit import shortcuts
from kagglekit.shortcuts import Known

ROWS = 300
TARGET = np.random.default_rng(0).integers(0, 2, ROWS)


def names(prefixes: tuple[str, str] = ("", "")) -> list[str]:
    rng = np.random.default_rng(99)
    return [f"{prefixes[t]}{rng.integers(0, 2**32):08x}.png" for t in TARGET]


PLANTED = {
    "prefix of the name": shortcuts.of_names(names(("a", "b"))),
    "number in the name": shortcuts.of_names(
        [f"img{400 * t + n}.png" for n, t in enumerate(TARGET)]
    ),
    "size": (np.random.default_rng(2).normal(5000, 400, ROWS) + 700 * TARGET)[:, None],
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_shortcut_is_found(kind):
    score = shortcuts.predicts(Known(PLANTED[kind], TARGET, 2))
    assert score is not None
    assert score.tells
    assert score.interval[0] > 0.6


@pytest.mark.parametrize("target", [np.arange(ROWS) // 40 % 2, np.arange(ROWS) % 3])
def test_an_order_in_stretches_or_in_turns_is_found(target):
    score = shortcuts.predicts(Known(shortcuts.of_order(np.arange(ROWS)), target, 3))
    assert score is not None
    assert score.tells
    assert score.value > 0.85


def test_numbers_that_follow_the_order_are_found():
    drift = np.linspace(0, 4, ROWS) + np.random.default_rng(3).normal(size=ROWS)
    both = np.stack([np.random.default_rng(4).normal(size=ROWS), drift], 1)
    score = shortcuts.predicts(Known(shortcuts.of_order(np.arange(ROWS)), both, 0))
    assert score is not None
    assert score.tells


def test_noise_is_not_accused():
    for draw in range(4):
        rng = np.random.default_rng(draw)
        target = rng.integers(0, 2, ROWS)
        looks = (
            Known(shortcuts.of_order(np.arange(ROWS)), target, 2),
            Known(shortcuts.of_names(names()), target, 2),
            Known(rng.normal(size=(ROWS, 2)), rng.normal(size=(ROWS, 1)), 0),
        )
        scores = [shortcuts.predicts(known, draw) for known in looks]
        assert not any(score is not None and score.tells for score in scores)


def test_what_only_names_a_group_is_no_shortcut_where_groups_are_kept_apart():
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(30), 10)
    target, size = rng.integers(0, 2, 30)[groups], rng.normal(size=30)[groups][:, None]
    free = shortcuts.predicts(Known(size, target, 2))
    held = shortcuts.predicts(Known(size, target, 2, groups))
    assert free is not None
    assert held is not None
    assert free.tells
    assert not held.tells


def test_rows_of_one_kind_are_not_told_apart_and_shifted_ones_are():
    rng = np.random.default_rng(6)
    train, test = rng.normal(size=(300, 4)), rng.normal(size=(150, 4))
    alike, shifted = shortcuts.told_apart(train, test), shortcuts.told_apart(train, test + 1)
    assert alike is not None
    assert shifted is not None
    assert not alike.tells
    assert abs(alike.value - 0.5) < 0.1
    assert shifted.tells
    assert shifted.value > 0.85
    test[:, 2] += 1
    assert [number for number, _ in shortcuts.most_shifted(train, test)] == [2]


def test_the_area_and_its_error_are_those_of_the_definition():
    scores, positive = np.array([1, 2, 3, 4, 3]), np.array([False, False, True, True, False])
    area, error = shortcuts.area(scores, positive)
    assert area == pytest.approx((2 + 0.5 + 3) / 6)
    assert 0 < error < 1


@pytest.mark.parametrize("classes", [2, 0])
def test_shuffled_folds_flatter_where_groups_share_their_look_and_target(classes):
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(40), 6)
    target = rng.integers(0, 2, 40)[groups] if classes else rng.normal(size=40)[groups]
    looks = rng.normal(size=(40, 60))[groups] + 0.1 * rng.normal(size=(240, 60))
    flattered = shortcuts.gap(Known(looks, target, classes, groups))
    honest = shortcuts.gap(
        Known(rng.normal(size=(240, 60)), target, classes, rng.permutation(groups))
    )
    assert flattered is not None
    assert honest is not None
    assert flattered.matters
    assert flattered.shuffled.value > flattered.grouped.value + 0.2
    assert not honest.matters


def test_too_little_to_look_at_gives_no_score():
    assert shortcuts.predicts(Known(np.ones((300, 2)), TARGET, 2)) is None
    assert shortcuts.predicts(Known(np.zeros((0, 2)), TARGET[:0], 2)) is None
    assert shortcuts.predicts(Known(np.ones((9, 1)), TARGET[:9], 2)) is None
    assert shortcuts.predicts(Known(np.arange(300.0)[:, None], np.zeros(300, np.int64), 2)) is None
    assert shortcuts.told_apart(np.ones((5, 1)), np.ones((5, 1))) is None
    assert shortcuts.gap(Known(np.ones((9, 1)), TARGET[:9], 2, np.arange(9))) is None


def test_stretches_keep_the_order_of_many_rows():
    rows = shortcuts.stretches(100_000)
    assert len(rows) == shortcuts.MOST_ROWS
    assert (np.diff(rows) > 0).all()
    assert (np.diff(rows) == 1).mean() > 0.99
    assert shortcuts.stretches(10).tolist() == list(range(10))
