"""The recipe of learners that are no networks: arrays in, arrays of parameters out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

import numpy as np

from . import files
from .config import C
from .data import Split
from .errors import UserError
from .randomness import derive
from .recipe import Member, Predictor, one_by_one

# what this process has fitted: where that does not answer, it is the learner's fault, no file's
_learned_here: set[Path] = set()


class Learner(Protocol):
    """Learns from (rows, inputs) and (rows, outputs) float64; what it learns is plain arrays."""

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """What was learned, as named arrays."""
        ...

    def predict(self, state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        """(rows, outputs) answers."""
        ...


@dataclass(frozen=True)
class Estimator(Generic[C]):
    """A recipe around a learner that the knobs describe."""

    learner: Callable[[C], Learner]
    config: C
    needs: tuple[str, ...] = ()

    def fit(self, members: Sequence[Member], config: C) -> None:
        """Fit each member; its arrays go to its folder."""
        one_by_one(members, lambda member: self._fit(member, config))

    def _fit(self, member: Member, config: C) -> None:
        if (member.folder / "learned.npz").exists():
            return
        target = member.train.target
        assert target is not None
        if target.dtype.kind == "f":
            target = target.reshape(len(target), -1)
        seed = derive(member.seed, member.name) % 2**32
        learned = self.learner(config).fit(member.train.inputs, target, seed)
        files.write_arrays(member.folder / "learned.npz", **learned)
        _learned_here.add((member.folder / "learned.npz").resolve())

    def restore(self, folder: Path, config: C, before: Mapping[str, Predictor]) -> Predictor:
        """The predictor of a fitted member; UserError where its arrays are not the learner's."""
        path = folder / "learned.npz"
        learned = files.read_arrays(path)
        learner = self.learner(config)

        def predict(split: Split) -> np.ndarray:
            try:
                return learner.predict(learned, split.inputs)
            except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
                if path.resolve() in _learned_here:
                    raise
                raise UserError(
                    f"{path} is not what this recipe learns ({type(error).__name__}: {error}):"
                    " restore a copy, or train it again"
                ) from error

        return predict
