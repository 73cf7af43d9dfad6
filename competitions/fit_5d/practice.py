"""Known functions of five variables to practise on, of very different scales."""

from pathlib import Path

import numpy as np
import pandas as pd

from kagglekit import practice


def functions(x: np.ndarray) -> np.ndarray:
    """(rows, 5) -> (rows, 3): a sum of waves, a product, and a bent ridge."""
    waves = np.sin(2 * x[:, 0]) + np.cos(1.5 * x[:, 1] + x[:, 2])
    product = 1000 * x[:, 2] * x[:, 3] * np.exp(-(x[:, 4] ** 2) / 4)
    ridge = 0.01 * np.tanh(x.sum(1)) * (1 + x[:, 0] ** 2)
    return np.stack([waves, product, ridge], axis=1)


def write(folder: Path, answers: Path) -> None:
    """1,500 training rows and 500 to answer, without noise."""
    x = np.random.default_rng(5).uniform(-2, 2, (2000, 5))
    y = functions(x)
    table = pd.DataFrame({"id": np.arange(2000)})
    table = table.assign(**{f"x{i + 1}": x[:, i] for i in range(5)})
    table = table.assign(**{f"y{i + 1}": y[:, i] for i in range(3)})
    practice.write(folder, answers, table[:1500], table[1500:], ["y1", "y2", "y3"])
