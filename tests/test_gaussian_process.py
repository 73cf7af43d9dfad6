from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from kagglekit import gaussian_process
from kagglekit.gaussian_process import GaussianProcess

quick = GaussianProcess(starts=1, stages=((60, 2, 8), (150, 1, 12)))


def drawn(seed: int, rows: int = 200, noise: float = 0.0):
    """A sum of a wave and a product, and a product alone, of four variables."""
    random = np.random.default_rng(seed)
    x = random.uniform(-2, 2, (rows, 4))
    a, b, pitch = *random.normal(size=2), random.uniform(1, 2)
    wave = np.sin(pitch * x[:, 0] + a) + b * x[:, 1] * np.exp(-(x[:, 2] ** 2) / 4)
    y = np.stack([wave, 1e4 * np.cos(x[:, 3]) * x[:, 0]], axis=1)
    return x, y + noise * y.std(0) * random.normal(size=y.shape), y


def share(learner: GaussianProcess, seed: int, noise: float = 0.0, rows: int = 200) -> np.ndarray:
    """RMS error of each output at rows not seen, as a share of its standard deviation."""
    x, y, clean = drawn(seed, rows + 300, noise)
    found = learner.predict(learner.fit(x[:rows], y[:rows], 0), x[rows:])
    return np.sqrt(np.mean((found - clean[rows:]) ** 2, axis=0)) / clean.std(0)


def test_exact_rows_are_interpolated():
    x, y, _ = drawn(0)
    found = quick.predict(quick.fit(x, y, 0), x)
    assert np.abs((found - y) / y.std(0)).max() < 1e-4


def test_noise_is_smoothed_and_not_interpolated():
    assert (share(quick, 1, noise=0.1) < 0.1).all()


@pytest.mark.parametrize("seed", [2, 3])
def test_functions_drawn_afresh_are_answered_better_than_by_a_stock_process(seed):
    x, y, _ = drawn(seed, 500)
    stock = GaussianProcessRegressor(ConstantKernel() * RBF(np.ones(4)), normalize_y=True)
    for output, own in enumerate(share(quick, seed)):
        answers = stock.set_params(optimizer=None).fit(x[:200], y[:200, output]).predict(x[200:])
        assert own < 0.2 * np.sqrt(np.mean((answers - y[200:, output]) ** 2)) / y[:, output].std()


def test_a_function_of_one_variable_is_learned():
    x = np.random.default_rng(4).uniform(-3, 3, (150, 1))
    y = np.sin(6 * x) + x**2
    found = quick.predict(quick.fit(x[:100], y[:100], 0), x[100:])
    inside = np.abs(x[100:]) < 2.8  # past the last row nothing is known
    assert np.abs(found - y[100:])[inside].max() < 0.01


@pytest.mark.parametrize("family", gaussian_process._FAMILIES)
def test_the_gradient_of_the_likelihood_is_that_of_its_value(family):
    x, y, _ = drawn(5, 30)
    likelihood = gaussian_process._Likelihood(x, y[:, 0] / y[:, 0].std())
    random = np.random.default_rng(6)
    theta = np.concatenate(
        [random.uniform(0, 1, 4), random.uniform(-1, 1, 4 * family.interactions), [-4.0]]
    )
    value = check_grad(
        lambda at: likelihood(at, family)[0], lambda at: likelihood(at, family)[1], theta
    )
    assert value < 1e-3 * np.linalg.norm(likelihood(theta, family)[1])


def test_the_likelihood_of_the_joint_kernel_is_scikit_learn_s():
    x, y, _ = drawn(7, 40)
    target, theta = y[:, 0] / y[:, 0].std(), np.array([0.3, 0.1, 0.5, 0.2, -5.0])
    family = gaussian_process._FAMILIES[0]
    values = []
    for scale in (1.0, 1.5):
        lengths = np.exp(theta[:4]) * scale
        covariance = RBF(lengths)(x) + np.exp(theta[4]) * np.eye(40)
        ones, inverse = np.ones(40), np.linalg.inv(covariance)
        centred = target - ones @ inverse @ target / (ones @ inverse @ ones)
        variance = centred @ inverse @ centred / 40
        values.append(20 * np.log(variance) + 0.5 * np.linalg.slogdet(covariance)[1])
        own = gaussian_process._Likelihood(x, target)(np.append(np.log(lengths), theta[4]), family)
        assert np.isclose(own[0], values[-1])
    assert not np.isclose(*values)


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads():
    x, y, _ = drawn(8, 120)
    threads = torch.get_num_threads()
    learned = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            one = replace(quick, workers=count)
            learned.append(one.fit(x, y, 3) | {"answers": one.predict(one.fit(x, y, 3), x)})
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(learned[0][name], learned[1][name]) for name in learned[0])


def test_npz_keeps_what_was_learned():
    x, y, _ = drawn(9, 100)
    learned = quick.fit(x, y, 0)
    file = io.BytesIO()
    np.savez(file, **learned)
    file.seek(0)
    loaded = dict(np.load(file, allow_pickle=False))
    assert np.array_equal(quick.predict(loaded, x), quick.predict(learned, x))


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_few_rows_and_constant_columns_are_answered(rows):
    x, y, _ = drawn(10, rows)
    x[:, 1], y[:, 1] = 5.0, 7.0
    found = quick.predict(quick.fit(x, y, 0), x)
    assert np.isfinite(found).all()
    assert np.allclose(found[:, 1], 7.0)


def test_repeated_rows_and_too_many_rows_are_answered():
    x, y, _ = drawn(11, 80)
    learner = replace(quick, most_rows=100)
    learned = learner.fit(np.repeat(x, 2, 0), np.repeat(y, 2, 0), 0)
    assert len(learned["rows"]) == 100
    assert np.isfinite(learner.predict(learned, x)).all()
