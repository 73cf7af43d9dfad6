"""The recipe that answers with a weighted mean of other recipes' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import files
from .config import Config
from .data import Split
from .errors import UserError
from .recipe import Member, Predictor, one_by_one


@dataclass(frozen=True)
class Blend:
    """Weights that are not negative and sum to one, for each output, fitted on OOF answers.

    Stacked regression (Breiman 1996, doi:10.1007/BF00117832). The weights of a fold come from OOF
    answers on that fold's training rows alone, so its own score is cross-fitted; what remains is
    the usual second-order leak of a stack: those answers came from models that saw the fold.
    """

    needs: tuple[str, ...]
    config: Config = field(default_factory=lambda: Config(final="refit"))

    def fit(self, members: Sequence[Member], config: Config) -> None:
        """Fit each member's weights, (recipes, outputs)."""
        one_by_one(members, self._fit)

    def _fit(self, member: Member) -> None:
        target = member.train.target
        assert target is not None
        if target.dtype.kind != "f":
            raise UserError("Blend weights numbers, but this competition's target is classes")
        answers = np.stack([member.oof[name] for name in self.needs])
        target = target.reshape(len(target), -1)
        files.write_arrays(member.folder / "weights.npz", weights=weights(answers, target))

    def restore(self, folder: Path, config: Config, before: Mapping[str, Predictor]) -> Predictor:
        """The weighted mean of the needed recipes' predictors of the same member."""
        path = folder / "weights.npz"
        learned = files.read_arrays(path).get("weights", np.zeros(0))

        def predict(split: Split) -> np.ndarray:
            answers = [before[name](split) for name in self.needs]
            shape = (len(self.needs), *answers[0].shape[1:])
            if learned.shape != shape or learned.dtype.kind != "f":
                raise UserError(f"{path} holds no {shape} weights: restore a copy, or train again")
            return sum(weight * part for weight, part in zip(learned, answers, strict=True))

        return predict


def weights(answers: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(recipes, outputs) weights that minimise the squared error of the weighted mean.

    `answers` is (recipes, rows, outputs), `target` (rows, outputs). For each output: non-negative
    least squares of the errors against zero with one more row that asks for a sum of one; the
    direction of that solution is the constrained optimum, its scale is then set.
    """
    from scipy.optimize import nnls

    columns = []
    for output in range(target.shape[1]):
        errors = (answers[:, :, output] - target[:, output]).T
        scale = np.sqrt(np.mean(errors**2, axis=0)).min()
        if scale == 0:  # a perfect recipe takes it all
            solution = (np.abs(errors).max(0) == 0).astype(float)
        else:
            rows = errors / (scale * np.sqrt(len(errors)))
            system = np.vstack([rows, np.ones(len(answers))])
            solution, _ = nnls(system, np.append(np.zeros(len(rows)), 1.0))
        columns.append(solution / solution.sum())
    return np.stack(columns, axis=1)
