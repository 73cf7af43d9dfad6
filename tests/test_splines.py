from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import make_interp_spline, make_smoothing_spline

from kagglekit.splines import Spline

law = settings(max_examples=3, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 1000)
quick = Spline(degrees=(1, 3, 7, 11))  # as good here, in half the time


def drawn(seed: int, rows: int = 80, bend: float = 0.0, step: float = 0.0, noise: float = 0.0):
    """Places, values, a function drawn afresh, and where it bends or steps."""
    random = np.random.default_rng(seed)
    a, b, c = random.normal(size=3)
    pitch, place = random.uniform(2, 6), random.uniform(-1, 1)

    def function(x: np.ndarray) -> np.ndarray:
        smooth = np.sin(pitch * x + a) + b * np.exp(-((x - c) ** 2))
        return smooth + bend * np.abs(x - place) + step * (x > place)

    x = random.uniform(-2, 2, (rows, 1))
    return x, function(x) + noise * random.normal(size=x.shape), function, place


def answers(x: np.ndarray, y: np.ndarray, at: np.ndarray, seed: int = 0) -> np.ndarray:
    return quick.predict(quick.fit(x, y, seed), at)


def error(x: np.ndarray, y: np.ndarray, function) -> float:
    """RMS error between the first row and the last."""
    at = np.linspace(x.min(), x.max(), 1500)[:, None]
    return float(np.sqrt(np.mean((answers(x, y, at) - function(at)) ** 2)))


@law
@given(seed=seeds)
def test_exact_rows_are_interpolated(seed):
    x, y, function, _ = drawn(seed)
    assert np.allclose(answers(x, y, x), y, rtol=0, atol=1e-9)
    assert error(x, y, function) < 1e-6


@law
@given(seed=seeds, bend=st.sampled_from([-2.0, 1.0, 3.0]))
def test_a_planted_kink_is_found_to_a_thousandth(seed, bend):
    x, y, function, place = drawn(seed, bend=bend)
    learned = quick.fit(x, y, 0)
    assert np.abs(learned["low"] - place).min() < 1e-3
    at = np.linspace(x.min(), x.max(), 1500)[:, None]
    assert np.abs(quick.predict(learned, at) - function(at)).max() < 1e-3


def test_a_kink_between_straight_lines_is_found():
    x = np.random.default_rng(3).uniform(-1, 1, (60, 1))
    assert error(x, np.abs(x - 0.2), lambda at: np.abs(at - 0.2)) < 1e-9


def test_a_smooth_function_is_not_cut():
    for seed in range(5):
        x, y, _, _ = drawn(seed, rows=150)
        assert len(quick.fit(x, y, 0)["low"]) == 5  # two lines, two continuations, one spline


@law
@given(seed=seeds)
def test_a_jump_stays_in_its_gap(seed):
    x, y, function, place = drawn(seed, step=2.0)
    gap = x[x < place].max(), x[x > place].min()
    at = np.linspace(x.min(), x.max(), 2000)[:, None]
    outside = (at < gap[0]) | (at > gap[1])
    assert np.abs(answers(x, y, at) - function(at))[outside].max() < 1e-4


@law
@given(seed=seeds)
def test_noise_is_smoothed_and_not_interpolated(seed):
    x, y, function, _ = drawn(seed, rows=150, noise=0.1)
    found = answers(x, y, x)
    assert np.sqrt(np.mean((found - function(x)) ** 2)) < 0.05
    assert 0.08 < (found - y).std() < 0.12


def test_a_jump_under_noise_is_found():
    x, y, function, place = drawn(8, rows=200, step=3.0, noise=0.1)
    far = np.abs(x - place) > 0.1
    assert np.abs(answers(x, y, x) - function(x))[far].max() < 0.25


@pytest.mark.parametrize("seed", [11, 12])
def test_functions_drawn_afresh_are_answered_better_than_by_stock_splines(seed):
    x, y, function, _ = drawn(seed, rows=150, bend=2.0)
    own = error(x, y, function)
    order = np.argsort(x[:, 0])
    at = np.linspace(x.min(), x.max(), 1500)
    for degree in (3, 7):
        stock = make_interp_spline(x[order, 0], y[order, 0], k=degree)(at)
        assert own < 0.01 * np.sqrt(np.mean((stock - function(at)) ** 2))
    x, y, function, place = drawn(seed, rows=200, step=2.0, noise=0.05)
    order = np.argsort(x[:, 0])
    at = at[np.abs(at - place) > 0.03]  # where in its gap the jump is, no row tells
    stock = make_smoothing_spline(x[order, 0], y[order, 0])(at) - function(at)
    own = answers(x, y, at[:, None])[:, 0] - function(at)
    assert np.sqrt(np.mean(own**2)) < 0.7 * np.sqrt(np.mean(stock**2))


def test_the_order_of_rows_changes_nothing():
    x, y, _, _ = drawn(2, bend=1.0)
    order = np.random.default_rng(0).permutation(len(x))
    assert np.array_equal(answers(x, y, x), answers(x[order], y[order], x))


def test_rows_of_one_place_count_as_their_mean():
    x, y, _, _ = drawn(4)
    twice = answers(np.repeat(x, 2, 0), np.repeat(y, 2, 0) + np.tile([[0.0], [2.0]], (80, 1)), x)
    assert np.allclose(twice, answers(x, y + 1, x), atol=1e-9)


@pytest.mark.parametrize("rows", range(1, 16))
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_few_rows_are_answered_finitely(rows, noise):
    x, y, _, _ = drawn(5, rows=rows, noise=noise)
    found = answers(x, y, np.linspace(-3, 3, 50)[:, None])
    assert found.shape == (50, 1)
    assert np.isfinite(found).all()


def test_constants_stay_constant_and_outputs_stay_apart():
    x, y, _, _ = drawn(6, rows=60, noise=0.1)
    both = np.hstack([y, np.full_like(y, 3.0), 1e6 * y])
    found = answers(x, both, x)
    assert np.allclose(found[:, 1], 3.0, atol=1e-12)
    assert np.array_equal(found[:, :1], answers(x, y, x))
    assert np.allclose(found[:, 2], 1e6 * found[:, 0], rtol=1e-6)
    assert np.isfinite(answers(np.ones((9, 1)), both[:9], x)).all()


def test_far_outside_a_straight_line_goes_on():
    x, y, _, _ = drawn(7)
    ahead = answers(x, y, np.array([[10.0], [11.0], [12.0]]))[:, 0]
    assert np.isclose(ahead[2] - ahead[1], ahead[1] - ahead[0])


def test_the_same_seed_gives_the_same_bytes_and_npz_keeps_them():
    x, y, _, _ = drawn(9, bend=1.0)
    first, second = (quick.fit(x, y, 4) for _ in range(2))
    assert {name: one.tobytes() for name, one in first.items()} == {
        name: one.tobytes() for name, one in second.items()
    }
    file = io.BytesIO()
    np.savez(file, **first)
    file.seek(0)
    loaded = dict(np.load(file, allow_pickle=False))
    assert np.array_equal(quick.predict(loaded, x), quick.predict(first, x))


def test_more_than_one_input_is_refused():
    with pytest.raises(ValueError, match="takes"):
        quick.fit(np.zeros((5, 2)), np.zeros((5, 1)), 0)
