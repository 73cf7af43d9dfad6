"""Muon: momentum whose every update is turned into a matrix without preferred directions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# a·s + b·s³ + c·s⁵, applied five times, brings singular values s in 0…1 near 1 (Jordan et al. 2024)
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    For matrices and kernels alone; a kernel counts as a matrix (out, in × height × width). Weight
    decay is decoupled, and tall matrices take a step longer by sqrt(out / in). The weights of a
    group with `stacked` lead with an axis of models, and each model's is a matrix by itself.

    Steps as timm.optim.muon.Muon does with adjust_lr_fn="original", ns_coefficients="original"; not
    timm's own, since importing timm takes seconds that every run would wait for at its start.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(mean, group["momentum"]).flatten(2 if group.get("stacked") else 1)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        direction = orthogonalised(matrix).reshape(weight.shape).to(weight.dtype)
        weight.add_(direction, alpha=-group["lr"] * longer(matrix))


def longer(matrix: Tensor) -> float:
    """By how much the step of a tall matrix (..., rows, columns) is longer than 1."""
    return float(max(1.0, matrix.shape[-2] / matrix.shape[-1]) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """(..., rows, columns) with the same singular vectors and every singular value about 1.

    By Newton-Schulz iterations, which need products alone: in bf16 on a GPU, else in float32.
    """
    wide = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    tall = matrix.shape[-2] > matrix.shape[-1]
    if tall:
        wide = wide.mT
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = _POLYNOMIAL
    for _ in range(_STEPS):
        squares = wide @ wide.mT
        wide = a * wide + (b * squares + c * (squares @ squares)) @ wide
    return wide.mT if tall else wide
