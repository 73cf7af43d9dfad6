"""What a model is trained to do: the loss, and the answer that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import NetworkConfig

Batch = Any  # (inputs, target) in training, (inputs,) otherwise; only the objective looks inside
Losses = Tensor | Mapping[str, Tensor | Callable[[], Tensor]]


class Mixed(NamedTuple):
    """The targets of rows blended two by two: `share` of the first, the rest of the second."""

    first: Tensor
    second: Tensor
    share: Tensor  # (batch,) in 0…1


def leaves(batch: Batch) -> list[Tensor]:
    """The tensors of a batch; a `Mixed` target has three."""
    found: list[Tensor] = []
    for part in batch:
        found += list(part) if isinstance(part, Mixed) else [part]
    return found


def rebuilt(pattern: Batch, tensors: Sequence[Tensor]) -> Batch:
    """A batch laid out as `pattern`, of other tensors."""
    left: Iterator[Tensor] = iter(tensors)
    return [
        Mixed(next(left), next(left), next(left)) if isinstance(part, Mixed) else next(left)
        for part in pattern
    ]


@dataclass(frozen=True)
class Objective:
    """A loss and the answer that goes with it.

    `loss` returns one scalar, or one per name in `parts`: a part is a submodule with an optimiser
    of its own ("" is the whole model), and its loss reaches that submodule's parameters and no
    others. A part whose value is a callable is computed and stepped in its turn, after the parts
    before it have stepped (the two halves of a GAN).
    """

    loss: Callable[[nn.Module, Batch], Losses]
    predict: Callable[[nn.Module, Batch], Tensor]
    parts: tuple[str, ...] = ("",)
    mixes: bool = False  # whether `loss` understands a target that is `Mixed`
    residual: Callable[[nn.Module, Batch], Tensor] | None = None
    """(batch, columns) whose mean square is the loss, where there is one: for Gauss-Newton."""
    independent: bool = False
    """Every parameter leads with an axis of the residual's columns, and its slice k moves column k
    only: then each column is polished as a problem of its own."""
    settle: Callable[[nn.Module, Tensor], None] | None = None
    """Called after `polish` with the held-out mean square of each column, or of all: (columns,)."""


class Function(nn.Module):
    """Lets `functional_call` reach a function of the model that is no method of it."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Batch], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Batch) -> Any:
        """What the function gives for the model and the batch."""
        return self.function(self.model, batch)


def multiclass(config: NetworkConfig) -> Objective:
    """Cross-entropy of class positions (batch,) int64; answers are probabilities (rows, classes).

    `label_smoothing` spreads that share of each target over all classes (arXiv:1512.00567).
    """

    def criterion(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            logits, target, reduction="none", label_smoothing=config.label_smoothing
        )

    return _supervised(criterion, activation=lambda logits: logits.float().softmax(1))


def binary(config: NetworkConfig) -> Objective:
    """Logistic loss of a model with one output, target 0/1 (batch,); answers (rows, 1) in 0…1."""

    def criterion(logits: Tensor, target: Tensor) -> Tensor:
        smoothed = target.to(logits.dtype) * (1 - config.label_smoothing)
        smoothed = smoothed + config.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits[:, 0], smoothed, reduction="none")

    return _supervised(criterion, activation=lambda logits: logits.float().sigmoid())


def regression(config: NetworkConfig) -> Objective:
    """Squared error in units of the model's `output_scale` (outputs,), if it has one.

    Without that, an output a thousand times as large would count a million times as much.
    Targets and answers are (rows, outputs) in the target's own units.
    """

    def scaled(model: nn.Module, batch: Batch) -> Tensor:
        scale = getattr(model, "output_scale", torch.ones((), device=batch[0].device))
        outputs = model(batch[0])
        # (rows,) beside (rows, 1) would silently become (rows, rows)
        return (outputs - batch[1].reshape(outputs.shape)) / scale

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, target = batch
        if isinstance(target, Mixed):
            share = target.share.reshape(-1, *[1] * (target.first.ndim - 1))
            target = share * target.first + (1 - share) * target.second
        return scaled(model, (inputs, target)).square().mean()

    return Objective(
        loss=loss, predict=lambda model, batch: model(batch[0]), mixes=True, residual=scaled
    )


def _supervised(
    criterion: Callable[[Tensor, Tensor], Tensor], activation: Callable[[Tensor], Tensor]
) -> Objective:
    """The objective of `criterion(outputs, target) -> (batch,)`, mixed targets included."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        outputs, target = model(batch[0]), batch[1]
        if not isinstance(target, Mixed):
            return criterion(outputs, target).mean()
        first, second = criterion(outputs, target.first), criterion(outputs, target.second)
        return (target.share * first + (1 - target.share) * second).mean()

    return Objective(loss, lambda model, batch: activation(model(batch[0])), mixes=True)
