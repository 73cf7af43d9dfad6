"""One way to answer a competition: fit all members of a run, then answer any split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .data import Split
from .stamps import Stamp

Predictor = Callable[[Split], np.ndarray]  # answers: (rows, outputs)


class Record(Protocol):
    """Notes one epoch of a member: for the history and the screen, never for training."""

    def __call__(
        self, epoch: int, answers: np.ndarray | None = None, **figures: float
    ) -> float | None:
        """Note `epoch` (from 1), the answers on the valid rows if any, and figures; the score."""
        ...


def unrecorded(epoch: int, answers: np.ndarray | None = None, **figures: float) -> float | None:
    """A Record that notes nothing."""
    return None


@dataclass(frozen=True)
class Member:
    """One fold and one seed of a run."""

    train: Split  # rows with targets
    valid: Split  # rows without: their targets are out of reach; empty in a fit on all rows
    seed: int
    folder: Path  # everything learned goes here
    name: str = "fold0-seed0"
    before: Mapping[str, Predictor] = field(default_factory=dict)  # for `needs`
    oof: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Answers of each needed recipe on the rows of `train`, by models that did not see the row."""
    record: Record = unrecorded
    stamp: Stamp = field(default_factory=Stamp)  # what checkpoints are begun with


class Recipe(Protocol):
    """Anything that fits: a network, an SVM, a spline.

    `fit` gets members that are not finished yet, one or several, so that it may train together
    what it is given; it leaves in `member.folder` all that `restore` needs, as safetensors, npz or
    JSON. `before` of `restore` are the predictors of `needs` for the same member.
    """

    @property
    def config(self) -> Any:
        """The knobs, at the values this recipe takes by default."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Recipes whose OOF answers and predictors of the same fold and seed this one uses."""

    def fit(self, members: Sequence[Member], config: Any) -> None:
        """Fit the members; everything learned goes to their folders."""

    def restore(self, folder: Path, config: Any, before: Mapping[str, Predictor]) -> Predictor:
        """The predictor of a fitted member."""
