"""The recipe that answers with a mix of other recipes' or runs' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from . import files, mixing
from .config import Config, knob
from .data import Split
from .decisions import Decision, as_is
from .errors import UserError
from .metrics import Metric
from .recipe import Member, Predictor, one_by_one

RECIPE = "blended"  # of runs that `kagglekit blend` mixes; their manifests name the parts
_OF_GREEDY = ("bags", "rounds")  # knobs that greedy selection alone reads


@dataclass(frozen=True, kw_only=True)
class BlendConfig(Config):
    """How answers are mixed."""

    final: Literal["members", "refit"] = knob(
        "refit", "test answers: mean over the folds' models, or one more fit on all rows"
    )
    method: Literal[
        "auto", "single", "mean", "geometric", "ranks", "greedy", "weights", "stack"
    ] = knob(
        "auto",
        "how answers are mixed; auto = the mean, or what surely does better on rows held out",
    )
    bags: int = knob(10, "greedy only: bags of rows (of 8 parts on, also of parts)", least=1)
    rounds: int = knob(25, "greedy only: selections in a bag", least=1)


@dataclass(frozen=True)
class Blend:
    """A mix of several recipes' answers, chosen and fitted on their OOF answers: see `mixing`.

    The mix of a fold comes from OOF answers on that fold's training rows alone, so its own score
    is cross-fitted; what remains is the usual second-order leak of a stack: those answers came
    from models that saw the fold. `metric` and `decision` are what mixes are judged by; without
    them it is squared error, or log loss for classes.
    """

    needs: tuple[str, ...]
    config: BlendConfig = field(default_factory=BlendConfig)
    metric: Metric | None = None
    decision: Decision = as_is

    def __post_init__(self) -> None:
        """TypeError for the knobs of another kind of recipe."""
        if not isinstance(self.config, BlendConfig):
            raise TypeError(f"Blend takes a BlendConfig, not a {type(self.config).__name__}")

    def resolve(self, config: BlendConfig, train: Split) -> BlendConfig:
        """`config` as it is; UserError for a method that such a target never bears.

        And for a knob turned that its method does not read.
        """
        assert train.target is not None
        mixing.demand_of(train.target, config.method)
        self.demand_read(config)
        return config

    def demand_read(self, config: BlendConfig) -> None:
        """Raise UserError for a knob that is turned and that the method does not read.

        It would name another run of the same answers.
        """
        for name in _OF_GREEDY if config.method not in ("auto", "greedy") else ():
            if getattr(config, name) != getattr(self.config, name):
                raise UserError(
                    f"{name}={getattr(config, name)} is read by method=greedy alone (which auto "
                    f"tries), and not by method={config.method}: leave out {name}=, or change the "
                    "method"
                )

    def fit(self, members: Sequence[Member], config: BlendConfig) -> None:
        """Fit each member's mix; what it learned goes to `weights.npz`."""
        one_by_one(members, lambda member: self._fit(member, config))

    def _fit(self, member: Member, config: BlendConfig) -> None:
        target = member.train.target
        assert target is not None
        task = mixing.Task(
            answers=np.stack([member.oof[name] for name in self.needs]),
            target=target,
            judge=mixing.Judge(self.metric, self.decision),
            dependence=member.dependence,
            seed=member.seed,
            bags=config.bags,
            rounds=config.rounds,
        )
        files.write_arrays(member.folder / "weights.npz", **mixing.fit(task, config.method))

    def restore(
        self, folder: Path, config: BlendConfig, before: Mapping[str, Predictor]
    ) -> Predictor:
        """The mix of the parts' predictors of the same member."""
        path = folder / "weights.npz"
        learned = files.read_arrays(path)

        def predict(split: Split) -> np.ndarray:
            answers = np.stack([before[name](split) for name in self.needs])
            if not mixing.fits(learned, len(self.needs), answers.shape[2:]):
                raise UserError(
                    f"{path} holds no mix of {len(self.needs)} such answers: restore a copy, or "
                    "train again"
                )
            return mixing.apply(learned, answers)

        return predict
