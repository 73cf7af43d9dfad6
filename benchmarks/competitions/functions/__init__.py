"""A function of five variables, learned by plain multilayer perceptrons: a task to time."""

from dataclasses import dataclass

from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.tasks import MLP
from kagglekit import (
    Competition,
    Network,
    NetworkConfig,
    Split,
    Task,
    folds,
    knob,
    metrics,
    regression,
    submission,
    tables,
)


@dataclass(frozen=True, kw_only=True)
class MLPConfig(NetworkConfig):
    """The width of the three hidden layers."""

    width: int = knob(64, "units of a hidden layer", least=1)


def dataset(split: Split, config: MLPConfig) -> TensorDataset:
    """All rows in memory."""
    return split.tensors()


def model(config: MLPConfig, task: Task) -> nn.Module:
    """Inputs are in -1…1 and targets of size 1: nothing is scaled."""
    return MLP(task.inputs[0], config.width)


competition = Competition(
    slug="functions",
    load=tables.regression,
    folds=folds.shuffled,
    metric=metrics.rmse,
    submission=submission.numbers(),
    recipes={"mlp": Network(dataset, model, regression, MLPConfig())},
)
