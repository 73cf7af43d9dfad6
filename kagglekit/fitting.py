"""Recipes that fit functions of numbers: spline, Gaussian process, boosted trees, network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import TensorDataset

from .boosted_trees import BoostedTrees
from .config import Config, knob
from .data import Split
from .estimator import Estimator
from .function_network import FunctionConfig, FunctionNetwork, fit_scales, function_fitting
from .gaussian_process import GaussianProcess
from .network import Network

if TYPE_CHECKING:
    from .splines import Spline


@dataclass(frozen=True, kw_only=True)
class SplineConfig(Config):
    """The knobs of `spline`."""

    degrees: tuple[int, ...] = knob((1, 3, 5, 7, 9, 11, 13), "degrees that rows without noise try")
    gain: float = knob(7.0, "standard errors that a break must gain; more = fewer breaks", least=0)
    fewest_rows: int = knob(12, "rows between two breaks, at least", least=4)
    most_breaks: int = knob(30, "breaks, at most", least=0)


@dataclass(frozen=True, kw_only=True)
class ProcessConfig(Config):
    """The knobs of `gaussian_process`."""

    starts: int = knob(5, "starts of each kernel", least=1)
    most_rows: int = knob(6000, "rows that the process is solved on, at most", least=10)


@dataclass(frozen=True, kw_only=True)
class BoostingConfig(Config):
    """The knobs of `boosting`."""

    learning_rate: float = knob(0.05, "share of each tree that is added", least=1e-4, most=1)
    trees: int = knob(600, "trees of each output, at most", least=1)
    leaves: int = knob(31, "leaves of a tree, at most", least=2)
    patience: int = knob(30, "trees without gain before it stops", least=1)


def spline(**knobs: Any) -> Estimator[SplineConfig]:
    """Piecewise spline of one variable; a fit on all rows answers the test."""

    def learner(config: SplineConfig) -> Spline:
        from .splines import Spline  # SciPy takes a while to import

        return Spline(
            degrees=config.degrees,
            gain=config.gain,
            fewest_rows=config.fewest_rows,
            most_breaks=config.most_breaks,
        )

    return Estimator(learner, SplineConfig(**{"final": "refit", **knobs}))


def gaussian_process(**knobs: Any) -> Estimator[ProcessConfig]:
    """Gaussian process for each output; a fit on all rows answers the test."""

    def learner(config: ProcessConfig) -> GaussianProcess:
        return GaussianProcess(starts=config.starts, most_rows=config.most_rows)

    return Estimator(learner, ProcessConfig(**{"final": "refit", **knobs}))


def boosting(**knobs: Any) -> Estimator[BoostingConfig]:
    """Gradient-boosted trees for each output; a fit on all rows answers the test."""

    def learner(config: BoostingConfig) -> BoostedTrees:
        return BoostedTrees(
            config.learning_rate, config.trees, config.leaves, patience=config.patience
        )

    return Estimator(learner, BoostingConfig(**{"final": "refit", **knobs}))


def neural(**knobs: Any) -> Network[FunctionConfig]:
    """Small networks for each output, AdamW and then Gauss-Newton; the folds' mean answers."""
    usual = {
        "batch_size": 512,
        "lr": 5e-3,
        "weight_decay": 0.0,
        "warmup": 0.0,
        "polish_method": "gauss_newton",
        "score_every": 50,
    }

    def rows(split: Split, config: FunctionConfig) -> TensorDataset:
        return split.tensors()

    config = FunctionConfig(**{**usual, **knobs})
    return Network(rows, FunctionNetwork, function_fitting, config, prepare=fit_scales)
