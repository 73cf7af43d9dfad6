"""Steps of stacks in fp16: a gradient scale for each model, and steps that one skips by itself.

The weights of a group are one matrix here, (models, columns), so that a step takes a few operations
however many weights there are; none of them waits for the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from .muon import longer, orthogonalised


class Skipping(torch.optim.Optimizer, ABC):
    """An optimiser of stacks (models, ...), of which each model may skip a step by itself.

    A model that skips keeps weights, moments and the number of its steps. A weight without a
    gradient stays where it is.
    """

    moments: tuple[str, ...] = ()  # (models, columns) each

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def move(self, gradients: Tensor, sound: Tensor) -> None:
        """Step those that are `sound`, (models,), by gradients (models, columns), all finite."""
        widths = [sum(map(_width, group["params"])) for group in self.param_groups]
        share = sound[:, None].to(gradients.dtype)
        for group, own in zip(self.param_groups, gradients.split(widths, dim=1), strict=True):
            weights = group["params"]
            decayed = torch.cat(list(map(_rows, weights)), 1) if group["weight_decay"] else None
            step = self._step(group, own, share, decayed).split(list(map(_width, weights)), dim=1)
            moved = [(w, part) for w, part in zip(weights, step, strict=True) if w.grad is not None]
            if moved:
                stacks, parts = zip(*((w, part.view_as(w)) for w, part in moved), strict=True)
                torch._foreach_sub_(stacks, parts)

    @abstractmethod
    def _step(
        self, group: dict[str, Any], gradients: Tensor, share: Tensor, weights: Tensor | None
    ) -> Tensor:
        """(models, columns) to subtract; `share` is 0 for those that skip, `weights` decay."""

    def _remembered(self, group: dict[str, Any], gradients: Tensor) -> dict[str, Tensor]:
        """What the optimiser keeps of a group: moments, and each model's number of steps."""
        state: dict[str, Tensor] = self.state[group["params"][0]]
        if not state:
            state.update({name: torch.zeros_like(gradients) for name in self.moments})
            state["steps"] = gradients.new_zeros(len(gradients))
        return state

    def demand_shapes(self) -> None:
        """Raise ValueError for moments of another shape than their group has."""
        for group in self.param_groups:
            weights = group["params"]
            models, state = len(weights[0]), self.state.get(weights[0], {})
            wide = torch.Size((models, sum(map(_width, weights))))
            for name, kept in state.items():
                expected = wide if name in self.moments else torch.Size((models,))
                if kept.shape != expected:
                    raise ValueError(f"{name} is {tuple(kept.shape)} for {tuple(expected)}")


class AdamW(Skipping):
    """Decoupled weight decay (arXiv:1711.05101), each model's bias corrected by its own steps."""

    moments = ("mean", "square")

    def _step(
        self, group: dict[str, Any], gradients: Tensor, share: Tensor, weights: Tensor | None
    ) -> Tensor:
        state, (first, second) = self._remembered(group, gradients), group["betas"]
        mean = state["mean"].lerp_(gradients, (1 - first) * share)
        square = state["square"].lerp_(gradients.square(), (1 - second) * share)
        steps = state["steps"].add_(share[:, 0]).clamp(min=1).double()[:, None]
        of_mean, of_square = ((1 - beta**steps).to(share.dtype) for beta in (first, second))
        step = mean / square.div(of_square).sqrt_().add_(group["eps"]).mul_(of_mean)
        if weights is not None:
            step.add_(weights, alpha=group["weight_decay"])
        return step.mul_(group["lr"] * share)


class SGD(Skipping):
    """Momentum as Nesterov's; weight decay is a part of the gradient."""

    moments = ("momentum",)

    def _step(
        self, group: dict[str, Any], gradients: Tensor, share: Tensor, weights: Tensor | None
    ) -> Tensor:
        if weights is not None:
            gradients = gradients.add(weights, alpha=group["weight_decay"])
        if group["momentum"]:
            # of zeros at first: the momentum of a first step is its gradient
            momentum = self._remembered(group, gradients)["momentum"]
            moved = gradients.add(momentum, alpha=group["momentum"])
            momentum.copy_(torch.where(share > 0, moved, momentum))
            gradients = gradients.add(momentum, alpha=group["momentum"])
        return gradients * (group["lr"] * share)


class Muon(Skipping):
    """As `muon.Muon`: each model's momentum of a matrix, orthogonalised."""

    moments = ("momentum",)

    def _step(
        self, group: dict[str, Any], gradients: Tensor, share: Tensor, weights: Tensor | None
    ) -> Tensor:
        mean = self._remembered(group, gradients)["momentum"]
        mean.lerp_(gradients, (1 - group["momentum"]) * share)
        stacks, nesterov = group["params"], gradients.lerp(mean, group["momentum"])
        parts = []
        for stack, part in zip(stacks, nesterov.split(list(map(_width, stacks)), 1), strict=True):
            matrix = part.reshape(stack.shape).flatten(2)
            parts.append(_rows(orthogonalised(matrix) * longer(matrix)).to(part.dtype))
        step = torch.cat(parts, 1)
        if weights is not None:
            step.add_(weights, alpha=group["weight_decay"])
        return step.mul_(group["lr"] * share)


class Scales:
    """`torch.amp.GradScaler` for each model of a stack: a scale, and a count, of its own.

    `scaler` gives the first scale, the factors by which it changes and after how many sound steps.
    """

    def __init__(self, scaler: GradScaler, optimizers: Sequence[Skipping]) -> None:
        self.scaler, self.optimizers = scaler, optimizers
        self.weights = [w for one in optimizers for g in one.param_groups for w in g["params"]]
        first = self.weights[0]
        self.scale = torch.full((len(first),), scaler.get_scale(), device=first.device)
        self.streak = torch.zeros_like(self.scale)  # sound steps since the scale changed
        self.sound = torch.ones_like(self.scale, dtype=torch.bool)  # in the last step

    @torch.no_grad()
    def step(self, clip_norm: float) -> None:
        """A step of each model whose gradients are finite; they are gone then.

        Unscaled first, and cut to a norm of at most `clip_norm`, each model's by itself; 0 = none.
        """
        gradients = torch.cat(list(map(_gradient, self.weights)), 1)
        gradients.mul_(self.scale.double().reciprocal().float()[:, None])
        self.sound = torch.linalg.vector_norm(gradients, math.inf, dim=1).isfinite()
        if clip_norm > 0:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients.mul_((clip_norm / (norms + 1e-6)).clamp(max=1.0))
        gradients.masked_fill_(~self.sound[:, None], 0.0)
        widths = [sum(_width(w) for g in one.param_groups for w in g["params"])
                  for one in self.optimizers]  # fmt: skip
        for one, own in zip(self.optimizers, gradients.split(widths, dim=1), strict=True):
            one.move(own, self.sound)
            one.zero_grad(set_to_none=True)

    def update(self) -> None:
        """End of a step: halved where it was skipped, doubled after many that were not.

        As `torch._amp_update_scale_`, which knows one scale.
        """
        streak = torch.where(self.sound, self.streak + 1, 0.0)
        due = streak == self.scaler.get_growth_interval()
        grown = self.scale * self.scaler.get_growth_factor()
        kept = torch.where(due & grown.isfinite(), grown, self.scale)
        less = self.scale * self.scaler.get_backoff_factor()
        self.scale.copy_(torch.where(self.sound, kept, less))
        self.streak.copy_(torch.where(due, 0.0, streak))

    def state_dict(self) -> dict[str, Tensor]:
        """(models,) scales and counts."""
        return {"scale": self.scale.clone(), "streak": self.streak.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        self.scale.copy_(state["scale"])
        self.streak.copy_(state["streak"])


def _rows(stack: Tensor) -> Tensor:
    """A stack (models, ...) as (models, columns)."""
    return stack.reshape(len(stack), -1)


def _width(stack: Tensor) -> int:
    return stack[0].numel()


def _gradient(stack: Tensor) -> Tensor:
    return _rows(torch.zeros_like(stack) if stack.grad is None else stack.grad)
