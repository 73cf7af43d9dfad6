"""Optimisers, one a part of the model, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from .config import NetworkConfig

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
    """An optimiser for each part of the model, stepped in turn.

    A group may hold `lr_scale`, which multiplies the rate (layer-wise learning rates).
    """

    def __init__(
        self, model: nn.Module, parts: tuple[str, ...], groups: Groups, config: NetworkConfig
    ) -> None:
        self.config = config
        self.parts = {part: model.get_submodule(part) for part in parts}
        self.by_part = {
            part: _optimizer(list(groups(module, config)), config)
            for part, module in self.parts.items()
        }
        device = next(model.parameters()).device.type
        self.scaler = GradScaler(device, enabled=config.precision == "fp16")

    def set_rate(self, share: float) -> None:
        """Set every group's learning rate to `share` of its peak."""
        for optimizer in self.by_part.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * share * group.get("lr_scale", 1.0)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of each part's loss to that part's parameters."""
        # every gradient first, so that no step disturbs another part's graph
        waiting = len(losses)
        for part, loss in losses.items():
            waiting -= 1
            self.scaler.scale(loss / self.config.accumulate).backward(
                inputs=self._trained(part), retain_graph=waiting > 0
            )

    def step(self, parts: Iterable[str]) -> None:
        """One step of each of `parts` with the gradients gathered so far, which are then gone."""
        for part in parts:
            optimizer = self.by_part[part]
            self.scaler.unscale_(optimizer)
            if self.config.clip_norm > 0:
                nn.utils.clip_grad_norm_(self._trained(part), self.config.clip_norm)
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """End of a step of all parts: the gradient scale follows what was seen."""
        self.scaler.update()

    def _trained(self, part: str) -> list[nn.Parameter]:
        return [weight for weight in self.parts[part].parameters() if weight.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        states = {part: optimizer.state_dict() for part, optimizer in self.by_part.items()}
        return {"scaler": self.scaler.state_dict(), "parts": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.scaler.load_state_dict(state["scaler"])
        for part, optimizer in self.by_part.items():
            optimizer.load_state_dict(state["parts"][part])


def _optimizer(groups: list[dict[str, Any]], config: NetworkConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.lr, momentum=config.momentum, nesterov=config.momentum > 0
        )
    if config.optimizer == "muon":
        from timm.optim.muon import Muon

        return Muon(
            _hidden_apart(groups),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=True,
            adjust_lr_fn="original",
            fallback_lr_scale=config.adamw_lr / config.lr if config.lr else 1.0,
            betas=(0.9, 0.99),
        )
    fused = all(weight.device.type in ("cuda", "cpu") for g in groups for weight in g["params"])
    return torch.optim.AdamW(groups, config.lr, fused=fused)


def _hidden_apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Muon's groups (Jordan et al. 2024, kellerjordan.github.io/posts/muon): hidden matrices.

    Vectors, the first and the last matrix go to AdamW: their updates are no rotations of features.
    """
    matrices = [weight for group in groups for weight in group["params"] if weight.ndim > 1]
    ends = {id(weight) for weight in (*matrices[:1], *matrices[-1:])}
    apart = []
    for group in groups:
        hidden = [w for w in group["params"] if w.ndim > 1 and id(w) not in ends]
        others = [w for w in group["params"] if w.ndim <= 1 or id(w) in ends]
        apart.append({**group, "params": hidden, "use_fallback": False})
        apart.append({**group, "params": others, "use_fallback": True})
    return [group for group in apart if group["params"]]
