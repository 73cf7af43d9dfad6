"""A known function of one variable to practise on: smooth, oscillating, with a kink."""

from pathlib import Path

import numpy as np
import pandas as pd

from kagglekit import practice


def function(x: np.ndarray) -> np.ndarray:
    """A wave of growing pitch on a parabola, and a kink at x = 1.3."""
    return 3 * np.sin(1.5 * x + 0.1 * x**2) + 0.4 * x**2 - 5 * np.abs(x - 1.3)


def write(folder: Path, answers: Path) -> None:
    """600 training rows and 400 to answer, without noise."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-8, 8, 1000)
    table = pd.DataFrame({"id": np.arange(1000), "x": x, "y": function(x)})
    practice.write(folder, answers, table[:600], table[600:], ["y"])
