"""A Kaggle pipeline: data → folds → training → OOF → submission → leaderboard."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded when first asked for, so that `import kagglekit` and `kagglekit --help` stay instant.
_HOMES = {
    "answering": ("Fitted",),
    "backbones": ("BackboneConfig",),
    "blend": ("Blend", "BlendConfig"),
    "competition": ("Competition",),
    "config": ("Config", "NetworkConfig", "knob"),
    "data": ("Data", "Split", "Task"),
    "decisions": (
        "as_is", "calibrated", "class_weights", "cutpoints", "mean", "most_probable", "thresholds",
    ),
    "errors": ("KagglekitError", "NetworkError", "UserError"),
    "estimator": ("Estimator", "Learner"),
    "finetune": ("FinetuneConfig",),
    "metrics": ("Metric",),
    "network": ("Network", "NetworkPredictor"),
    "objectives": ("Objective", "binary", "multiclass", "regression"),
    "probe": ("Probe", "ProbeConfig"),
    "recipe": ("Member", "Predictor", "Recipe"),
    "submission": ("Submission",),
    "views": ("View", "original"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kagglekit' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if TYPE_CHECKING:
    from .answering import Fitted as Fitted
    from .backbones import BackboneConfig as BackboneConfig
    from .blend import Blend as Blend
    from .blend import BlendConfig as BlendConfig
    from .competition import Competition as Competition
    from .config import Config as Config
    from .config import NetworkConfig as NetworkConfig
    from .config import knob as knob
    from .data import Data as Data
    from .data import Split as Split
    from .data import Task as Task
    from .decisions import as_is as as_is
    from .decisions import calibrated as calibrated
    from .decisions import class_weights as class_weights
    from .decisions import cutpoints as cutpoints
    from .decisions import mean as mean
    from .decisions import most_probable as most_probable
    from .decisions import thresholds as thresholds
    from .errors import KagglekitError as KagglekitError
    from .errors import NetworkError as NetworkError
    from .errors import UserError as UserError
    from .estimator import Estimator as Estimator
    from .estimator import Learner as Learner
    from .finetune import FinetuneConfig as FinetuneConfig
    from .metrics import Metric as Metric
    from .network import Network as Network
    from .network import NetworkPredictor as NetworkPredictor
    from .objectives import Objective as Objective
    from .objectives import binary as binary
    from .objectives import multiclass as multiclass
    from .objectives import regression as regression
    from .probe import Probe as Probe
    from .probe import ProbeConfig as ProbeConfig
    from .recipe import Member as Member
    from .recipe import Predictor as Predictor
    from .recipe import Recipe as Recipe
    from .submission import Submission as Submission
    from .views import View as View
    from .views import original as original
