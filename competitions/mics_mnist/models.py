"""Convolutional networks for small images: a strided one for a laptop, a wide one for a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor, nn

from kagglekit import Task, UserError


@dataclass(frozen=True)
class Plan:
    """Widths and depths of one network.

    stem: (width, kernel, stride) of the first convolution.
    stages: (width, units) each; the first keeps the stem's side, each later one halves it.
    pool: halve by max-pooling after a convolution (dearer, GPU) or by a stride of 2 (laptop).
    residual: add each stage's input to its plain units' output.
    flat: classify the whole last map, or its mean over positions.
    """

    stem: tuple[int, int, int]
    stages: tuple[tuple[int, int], ...]
    pool: bool = False
    residual: bool = False
    flat: bool = True


# Widths are multiples of 16, so that oneDNN's bf16 blocks are full; the first map is the dearest.
CNN_SMALL = Plan(stem=(16, 5, 2), stages=((16, 1), (64, 2), (128, 1)))
CNN = Plan((64, 3, 1), ((64, 2), (128, 3), (256, 3)), pool=True, residual=True, flat=False)


def unit(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU: (N, cin, H, W) to (N, cout, ceil(H / stride), ...)."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU())


class Residual(nn.Module):
    """x + f(x) at one width (He et al., arXiv 1512.03385)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(unit(width, width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same shape."""
        out: Tensor = x + self.body(x)
        return out


def halve(cin: int, cout: int, pool: bool) -> list[nn.Module]:
    """(N, cin, H, W) to (N, cout, H / 2, W / 2); an odd side rounds up, or down with pool."""
    return [unit(cin, cout), nn.MaxPool2d(2)] if pool else [unit(cin, cout, stride=2)]


def halved(side: int, pool: bool) -> int:
    """The side that `halve` leaves."""
    return side // 2 if pool else -(-side // 2)


def same(width: int, units: int, residual: bool) -> list[nn.Module]:
    """Units that keep width and side."""
    if residual and units:
        return [Residual(width, units)]
    return [unit(width, width) for _ in range(units)]


def build(plan: Plan, task: Task) -> nn.Sequential:
    """The network of a plan: (N, channels, side, side) to (N, classes) logits."""
    channels, side, _ = task.inputs
    width, kernel, stride = plan.stem
    layers: list[nn.Module] = [unit(channels, width, kernel, stride)]
    side = -(-side // stride)
    for place, (wide, units) in enumerate(plan.stages):
        if place:
            layers += halve(width, wide, plan.pool)
            side, units = halved(side, plan.pool), units - 1
        layers += same(wide, units, plan.residual)
        width = wide
    if not plan.flat:
        layers.append(nn.AdaptiveAvgPool2d(1))
    layers += [nn.Flatten(), nn.Linear(width * (side * side if plan.flat else 1), task.outputs)]
    return nn.Sequential(*layers)


def from_timm(name: str, task: Task) -> nn.Module:
    """timm's model `name` with a random start: (N, channels, side, side) to (N, classes) logits."""
    import timm

    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise UserError(f"timm has no model {name!r}{hint}")
    model: nn.Module = timm.create_model(
        name, pretrained=False, in_chans=task.inputs[0], num_classes=task.outputs
    )
    return model
