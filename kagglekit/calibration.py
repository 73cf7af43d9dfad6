"""Temperature scaling: one number that makes probabilities as sure as they should be."""

from __future__ import annotations

import math

import numpy as np

_LEAST, _MOST = 0.02, 50.0  # beyond these probabilities are as good as certain, or as equal ones
_TINY = 1e-12


def temperature(target: np.ndarray, probabilities: np.ndarray) -> float:
    """The T at which softmax(log p / T) has the least log loss.

    Guo et al. 2017, arXiv:1706.04599. `target` (rows,) holds class positions, `probabilities` is
    (rows, classes). Above 1 they were too sure; 1 where there are no rows.
    """
    if not len(target):
        return 1.0
    from scipy.optimize import minimize_scalar

    logs = _logs(probabilities)

    def loss(logarithm: float) -> float:
        return log_loss(target, _softmax(logs / math.exp(logarithm)))

    bounds = math.log(_LEAST), math.log(_MOST)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    # where all answers are right, and sure, no temperature is better than none
    return math.exp(found.x) if found.fun < loss(0.0) else 1.0


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at a temperature, (rows, classes): above 1 less sure, the order unchanged."""
    if temperature == 1:
        return probabilities
    return _softmax(_logs(probabilities) / temperature).astype(probabilities.dtype)


def log_loss(target: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of -ln(probability of the row's class)."""
    given = probabilities[np.arange(len(target)), target]
    return float(-np.log(np.maximum(given, _TINY)).mean())


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities.astype(np.float64), _TINY))


def _softmax(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)
