"""Stock tools on the folds that kagglekit uses: `python benchmarks/function_fitting.py fit_1d DIR`.

Prints the OOF error of each tool, as RMSE for one output and as MSE and share of each output's
standard deviation for several; the same folds as `kagglekit train NAME` with seed 0.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.interpolate import make_interp_spline
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kagglekit import Config, folds, tables

Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def spline(order: int) -> Fit:
    """Interpolation of one variable."""

    def fit(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        order_of = np.argsort(x[:, 0])
        fitted = make_interp_spline(x[order_of, 0], y[order_of], k=order)
        return lambda new: fitted(new[:, 0])

    return fit


def scaled(regressor: object) -> Fit:
    """A scikit-learn regressor between standardised inputs and outputs, one for each output."""

    def fit(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        one = TransformedTargetRegressor(regressor, transformer=StandardScaler())
        model = make_pipeline(StandardScaler(), MultiOutputRegressor(one)).fit(x, y)
        return lambda new: model.predict(new)

    return fit


def tools(inputs: int) -> dict[str, Fit]:
    """Stock tools for so many inputs."""
    kernel = ConstantKernel() * Matern(np.ones(inputs), nu=2.5) + WhiteKernel(1e-6, (1e-12, 1))
    found = {
        "boosted trees": scaled(HistGradientBoostingRegressor(random_state=0)),
        "MLP": scaled(MLPRegressor(hidden_layer_sizes=(100, 100), max_iter=500, random_state=0)),
    }
    if inputs > 1:  # a stock Gaussian process takes hours on thousands of rows
        return found
    process = scaled(GaussianProcessRegressor(kernel, random_state=0))
    splines = {"cubic spline": spline(3), "order-7 spline": spline(7)}
    return {**splines, **found, "Gaussian process": process}


def main(name: str, folder: str) -> None:
    """Fit every tool in every fold and print its errors."""
    data = tables.regression(Path(folder) / name)
    everything = data.split(np.arange(len(data.train)), "train")
    x, y = everything.inputs, data.target
    splits = folds.split(data, Config(), folds.shuffled)
    for tool, fit in tools(x.shape[1]).items():
        began, oof = time.monotonic(), np.zeros_like(y)
        for train, valid in splits:
            oof[valid] = fit(x[train], y[train])(x[valid]).reshape(len(valid), -1)
        squared = (oof - y) ** 2
        share = 100 * np.sqrt(squared.mean(0)) / y.std(0)
        print(
            f"{tool:18} RMSE {np.sqrt(squared.mean()):.3g}  MSE {squared.mean():.3g}  % of std "
            f"{' '.join(f'{value:.2g}' for value in share)}  {time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
