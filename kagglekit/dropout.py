"""Dropout that draws from the member's own generator, so that members may train side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Noise:
    """The random numbers of one model's dropout; a copy of the model gets a copy of them."""

    def __init__(self, device: torch.device) -> None:
        self.generator = torch.Generator(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Noise:
        """Another generator that stands where this one does."""
        copied = Noise(self.generator.device)
        copied.generator.set_state(self.generator.get_state())
        return copied


@dataclass(frozen=True)
class Draw:
    """What a dropout layer multiplies the input by that one model gives it: drawn in each pass."""

    probability: float
    shape: torch.Size
    stride: tuple[int, ...]  # the layout decides which element gets which number
    dtype: torch.dtype

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Zeros and 1 / (1 - probability), as `torch.nn.functional.dropout` draws them on a CPU."""
        kept = 1 - self.probability
        device = generator.device
        noise = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        return noise.bernoulli_(kept, generator=generator).div_(kept)


class Dropout(nn.Dropout):
    """torch's, drawing from `noise`."""

    def __init__(self, probability: float, noise: Noise) -> None:
        super().__init__(probability)
        self.noise = noise

    def forward(self, inputs: Tensor) -> Tensor:
        """Some of the inputs zero, the others larger; all as they are in evaluation."""
        if not self.training or self.p == 0:
            return inputs
        if self.p >= 1:
            return inputs * 0.0
        return inputs * draw_for(self.p, inputs)(self.noise.generator)


def draw_for(probability: float, inputs: Tensor) -> Draw:
    """What dropout draws for such inputs."""
    like = torch.empty_like(inputs)
    return Draw(probability, like.shape, like.stride(), like.dtype)


def own_noise(model: nn.Module, device: torch.device) -> Noise:
    """Let every `nn.Dropout` of a model draw from the generator that is returned."""
    noise = Noise(device)
    _replace(model, noise)
    return noise


def noise_of(model: nn.Module) -> Noise | None:
    """What the dropout of a model draws from; None where it has none."""
    return next((part.noise for part in model.modules() if isinstance(part, Dropout)), None)


def _replace(module: nn.Module, noise: Noise) -> None:
    for name, child in module._modules.items():
        if type(child) is nn.Dropout:
            module._modules[name] = Dropout(child.p, noise).train(child.training)
        elif child is not None:
            _replace(child, noise)
