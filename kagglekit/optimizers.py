"""Optimisers, one a part of the model, and the learning rate over time."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from . import scaling
from .config import NetworkConfig
from .muon import Muon

Groups = Callable[[nn.Module, Any], Iterable[dict[str, Any]]]


def decay_matrices(model: nn.Module, config: NetworkConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels; none on biases, norms and other vectors."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in trained if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, steps: int, config: NetworkConfig) -> float:
    """Share of the peak rate in `step` (from 0) of `steps`.

    | schedule | course |
    |---|---|
    | cosine | linear rise over `warmup`, then half a cosine to zero (arXiv:1608.03983) |
    | onecycle | cosine rise from 1/25 over `warmup`, cosine fall to 1/10,000 (arXiv:1708.07120) |
    | constant | linear rise over `warmup`, then 1 |
    """
    rise = config.warmup * steps
    if config.schedule == "onecycle":
        if step < rise:
            return _cosine(1 / 25, 1.0, step / rise)
        return _cosine(1.0, 1e-4, (step - rise) / max(steps - rise, 1))
    if step < rise:
        return (step + 1) / (math.floor(rise) + 1)
    if config.schedule == "constant":
        return 1.0
    return _cosine(1.0, 0.0, (step - rise) / max(steps - rise, 1))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


class Optimizers:
    """The optimisers of each part of the model, stepped in turn.

    A group may hold `lr_scale`, which multiplies the rate (layer-wise learning rates).
    """

    def __init__(
        self, model: nn.Module, parts: tuple[str, ...], groups: Groups, config: NetworkConfig
    ) -> None:
        self.config = config
        self.clip: Callable[[list[nn.Parameter], float], object] = nn.utils.clip_grad_norm_
        modules = {part: model.get_submodule(part) for part in parts}
        self.by_part = {
            part: _optimizers(list(groups(module, config)), config)
            for part, module in modules.items()
        }
        self.trained = {
            part: [weight for weight in module.parameters() if weight.requires_grad]
            for part, module in modules.items()
        }
        device = next(model.parameters()).device.type
        self.scaler = GradScaler(device, enabled=config.precision == "fp16")
        self.scales: scaling.Scales | None = None  # of a stack in fp16

    def stacked(self, stack: Mapping[Tensor, nn.Parameter]) -> None:
        """Step stacks of models instead: `stack` has one (models, ...) for each weight.

        Before the first step. Which weights decay, and which are Muon's, is as it was; every
        model's gradients are clipped by their own norm.
        """
        self.clip = clip_each
        for part, optimizers in self.by_part.items():
            self.trained[part] = [stack[weight] for weight in self.trained[part]]
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["params"] = [stack[weight] for weight in group["params"]]
                    group["stacked"] = True
        if self.scaler.is_enabled():
            ((part, optimizers),) = self.by_part.items()  # of a stack: the whole model
            skipping = [_SKIPPING[type(optimizer)](optimizer.param_groups)
                        for optimizer in optimizers]  # fmt: skip
            self.by_part[part] = [*skipping]
            self.scales = scaling.Scales(self.scaler, skipping)

    @property
    def scale(self) -> Tensor | None:
        """(models,) what the losses of a stack in fp16 are multiplied by; None for all others."""
        return None if self.scales is None else self.scales.scale

    def set_rate(self, share: float) -> None:
        """Set every group's learning rate to `share` of its peak."""
        for optimizers in self.by_part.values():
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = share * group["peak_lr"]

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of each part's loss to that part's parameters."""
        # every gradient first, so that no step disturbs another part's graph
        waiting = len(losses)
        for part, loss in losses.items():
            waiting -= 1
            self.scaler.scale(loss / self.config.accumulate).backward(
                inputs=self.trained[part], retain_graph=waiting > 0
            )

    def step(self, parts: Iterable[str]) -> None:
        """One step of each of `parts` with the gradients gathered so far, which are then gone."""
        if self.scales is not None:
            self.scales.step(self.config.clip_norm)
            return
        for part in parts:
            for optimizer in self.by_part[part]:
                self.scaler.unscale_(optimizer)
            self._skip_together(self.by_part[part])
            if self.config.clip_norm > 0:  # one norm over the whole part
                self.clip(self.trained[part], self.config.clip_norm)
            for optimizer in self.by_part[part]:
                self.scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)

    def _skip_together(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Let no optimiser of a part step where the gradients of another have burst.

        The norm of the part, by which all are clipped, is not finite then either.
        """
        if not self.scaler.is_enabled() or len(optimizers) < 2:
            return
        found = [self.scaler._found_inf_per_device(optimizer) for optimizer in optimizers]
        flags = [flag for by_device in found for flag in by_device.values()]
        burst = torch.stack(flags).amax()
        for flag in flags:
            flag.copy_(burst)

    def finish(self) -> None:
        """End of a step of all parts: the gradient scale follows what was seen."""
        (self.scaler if self.scales is None else self.scales).update()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        states = {
            part: [optimizer.state_dict() for optimizer in optimizers]
            for part, optimizers in self.by_part.items()
        }
        scaler = self.scaler if self.scales is None else self.scales
        return {"scaler": scaler.state_dict(), "parts": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises ValueError for moments of other shapes than their weights have, which torch's kernels
        would read beyond their end.
        """
        (self.scaler if self.scales is None else self.scales).load_state_dict(state["scaler"])
        for part, optimizers in self.by_part.items():
            for optimizer, saved in zip(optimizers, state["parts"][part], strict=True):
                optimizer.load_state_dict(saved)
                _demand_shapes(optimizer)


def _demand_shapes(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, scaling.Skipping):
        optimizer.demand_shapes()
        return
    for weight, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.shape not in (weight.shape, torch.Size()):
                raise ValueError(f"{name} is {tuple(moment.shape)} for {tuple(weight.shape)}")


@torch.no_grad()
def clip_each(stack: Iterable[Tensor], largest: float) -> None:
    """`clip_grad_norm_` for each model of a stack of weights (models, ...) by itself."""
    gradients = [weight.grad for weight in stack if weight.grad is not None]
    if not gradients:
        return
    norms = torch.stack(
        [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]
    ).norm(dim=0)
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)).to(gradient.dtype))


def _optimizers(groups: list[dict[str, Any]], config: NetworkConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of one part: Muon needs AdamW beside it."""
    if config.optimizer == "muon":
        hidden, others = _hidden_apart(groups)
        optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            optimizers.append(Muon(_with_peak(hidden, config.lr), config.lr, config.momentum))
        if others:
            optimizers.append(_adamw(_with_peak(others, config.adamw_lr), betas=(0.9, 0.99)))
        return optimizers
    groups = _with_peak(groups, config.lr)
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return [_SGD(groups, config.lr, momentum=config.momentum, nesterov=nesterov)]
    return [_adamw(groups, betas=(0.9, 0.999))]


def _adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    fused = all(weight.device.type in ("cuda", "cpu") for g in groups for weight in g["params"])
    return _AdamW(groups, betas=betas, fused=fused)


class _AdamW(torch.optim.AdamW):
    """torch's, without what surrounds its step: that imports torch's compiler, which takes seconds.

    The compiler is told there to leave the step alone, and no step of ours is compiled.
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _SGD(torch.optim.SGD):
    """As `_AdamW`."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


# what steps stacks in fp16 instead
_SKIPPING: dict[type, type[scaling.Skipping]] = {
    _AdamW: scaling.AdamW, _SGD: scaling.SGD, Muon: scaling.Muon,
}  # fmt: skip


def _with_peak(groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
    """The groups, each with the rate that a share of 1 means for it."""
    return [{**group, "peak_lr": lr * group.get("lr_scale", 1.0)} for group in groups]


def _hidden_apart(
    groups: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups of hidden matrices, for Muon, and those of everything else, for AdamW.

    Vectors, the first and the last matrix are no maps between features, so a step that treats all
    directions alike does not suit them.
    """
    matrices = [weight for group in groups for weight in group["params"] if weight.ndim > 1]
    ends = {id(weight) for weight in (*matrices[:1], *matrices[-1:])}
    hidden, others = [], []
    for group in groups:
        inner = [w for w in group["params"] if w.ndim > 1 and id(w) not in ends]
        outer = [w for w in group["params"] if w.ndim <= 1 or id(w) in ends]
        hidden.append({**group, "params": inner})
        others.append({**group, "params": outer})
    return [g for g in hidden if g["params"]], [g for g in others if g["params"]]
