"""One way to answer a competition: fit all members of a run, then answer any split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .data import INDEPENDENT, Dependence, Split
from .errors import DivergedError
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


class Done(Protocol):
    """Is told that a member is done."""

    def __call__(self, *others: Member) -> None:
        """All that was learned is in the member's folder, and that of `others` in theirs.

        They are answered at once, together where the recipe can do that.
        """


def _unnoticed(*others: Member) -> None:
    """Nobody waits for the end of a member."""


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
    dependence: Dependence = INDEPENDENT  # of the rows of `train`
    record: Record = unrecorded
    stamp: Stamp = field(default_factory=Stamp)  # what checkpoints are begun with
    done: Done = _unnoticed
    """To be called once all that was learned is in `folder`: the member is then answered at once,
    and safe before the next one begins."""


class Recipe(Protocol):
    """Anything that fits: a network, an SVM, a spline.

    `fit` gets all members of a run that are not finished yet, which share the folder that theirs
    are in, so that it may train together what it is given; it leaves in `member.folder` all that
    `restore` needs, as safetensors, npz or JSON. A member whose numbers burst stops alone: see
    `one_by_one`. `before` of `restore` are the predictors of `needs` for the same member.
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


@runtime_checkable
class Joint(Recipe, Protocol):
    """A recipe whose members may answer at once where they were done at once, as `Network`'s do."""

    def together(self, predictors: Sequence[Any]) -> Any:
        """What asks all of `predictors`: see `network.NetworkPredictors`."""


def one_by_one(members: Iterable[Member], fit: Callable[[Member], None]) -> None:
    """Fit each member with `fit`, and say so as soon as it is done.

    Raises DivergedError once all were tried, which names each whose numbers burst.
    """
    failed: dict[str, str] = {}
    for member in members:
        try:
            fit(member)
        except DivergedError as error:
            failed |= error.members or {member.name: str(error)}
        else:
            member.done()
    demand_none(failed)


def demand_none(failed: Mapping[str, str]) -> None:
    """Raise DivergedError if members failed: name -> why."""
    if failed:
        raise DivergedError(next(iter(failed.values())), failed)
