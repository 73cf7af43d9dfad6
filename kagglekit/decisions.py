"""From answers to what metric and submission want, and from several answers to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

Decide = Callable[[np.ndarray], np.ndarray]  # answers (rows, ...) -> decided answers (rows, ...)
Combine = Callable[[np.ndarray], np.ndarray]  # (members, rows, ...) -> (rows, ...)


class Decision(Protocol):
    """Learns from OOF answers how to decide; the pipeline cross-fits it.

    The rows that a decision is scored on are never among those it was fitted on. Before any row
    has an OOF answer (the first fold's live score, a run of one fold) there are zero rows to learn
    from: a fitted decision then takes its starting point.
    """

    def __call__(self, target: np.ndarray, answers: np.ndarray) -> Decide:
        """Learn from the targets (rows, ...) and OOF answers (rows, ...) of some rows."""
        ...


def as_is(target: np.ndarray, answers: np.ndarray) -> Decide:
    """The answers themselves: numbers, or probabilities where the metric wants them."""
    return lambda answers: answers


def most_probable(target: np.ndarray, answers: np.ndarray) -> Decide:
    """The position of the most probable class: (rows, classes) -> (rows,)."""
    return lambda answers: answers.argmax(1)


def mean(answers: np.ndarray) -> np.ndarray:
    """The mean over members."""
    return answers.mean(0)
