"""The network for fitting functions precisely: small, scaled inside, one for each output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .config import NetworkConfig, knob
from .data import Split, Task
from .objectives import Batch, Objective

_ACTIVATIONS = {"sin": torch.sin, "tanh": torch.tanh, "abs": torch.abs}
Units = dict[str, int]  # of one hidden layer, by activation: {"sin": 16, "tanh": 8}


@dataclass(frozen=True, kw_only=True)
class FunctionConfig(NetworkConfig):
    """The knobs of a `FunctionNetwork`; every output has `copies` networks of its own."""

    sines: int = knob(16, "sine units of the first layer: oscillations", least=0)
    tanhs: int = knob(8, "tanh units of the first layer: smooth steps", least=1)
    kinks: int = knob(0, "absolute-value units of the first layer: kinks", least=0)
    second_sines: int = knob(8, "sine units of the second layer", least=0)
    second_tanhs: int = knob(8, "tanh units of the second layer", least=1)
    copies: int = knob(1, "networks an output, weighed by their held-out error", least=1)
    frequency_share: float = knob(
        0.1, "highest first frequency, as a share of what the rows can resolve", least=0
    )

    @property
    def layers(self) -> list[Units]:
        """Units of both hidden layers."""
        first = {"sin": self.sines, "tanh": self.tanhs, "abs": self.kinks}
        return [first, {"sin": self.second_sines, "tanh": self.second_tanhs}]


class FunctionNetwork(nn.Module):
    """`copies` independent networks for each output, evaluated together as batched products.

    Every parameter leads with the networks axis (outputs × copies, copies of an output adjacent),
    so the Jacobian is block-diagonal and a Gauss-Newton step costs the square of one network's
    size, not of all. The readout sees the inputs and every hidden layer: additive parts need no
    depth. In double precision: what is left to gain is below single precision's rounding.

    Sine units of the first layer hold their weights in units of a highest frequency, spread evenly
    below it: Fourier features (arXiv:2006.10739) with the multiplier outside the weight
    (arXiv:2006.09661), learned like every other weight.
    """

    share: Tensor
    gain: Tensor
    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    def __init__(self, config: FunctionConfig, task: Task) -> None:
        super().__init__()
        (inputs,) = task.inputs
        self.layers = config.layers
        self.copies, self.frequency_share = config.copies, config.frequency_share
        widths = [sum(units.values()) for units in self.layers]
        networks = task.outputs * self.copies
        self._add_buffers(inputs, task.outputs, widths[0])
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, width in zip([inputs, *widths], widths, strict=False):
            weight = torch.randn(networks, width, fan_in, dtype=torch.float64) / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(weight))
            bias = torch.rand(networks, width, dtype=torch.float64) * 2 - 1
            self.biases.append(nn.Parameter(bias))
        seen = inputs + sum(widths)
        readout = torch.randn(networks, seen, dtype=torch.float64) * 0.1 / math.sqrt(seen)
        self.readout = nn.Parameter(readout)
        self.offset = nn.Parameter(torch.zeros(networks, dtype=torch.float64))

    def _add_buffers(self, inputs: int, outputs: int, width: int) -> None:
        share = torch.full((outputs, self.copies), 1 / self.copies, dtype=torch.float64)
        self.register_buffer("share", share)
        self.register_buffer("gain", torch.ones(width, dtype=torch.float64))
        for name, size in (("input", inputs), ("output", outputs)):
            self.register_buffer(f"{name}_mean", torch.zeros(size, dtype=torch.float64))
            self.register_buffer(f"{name}_scale", torch.ones(size, dtype=torch.float64))

    @torch.no_grad()
    def fit_scales(self, inputs: Tensor, targets: Tensor) -> None:
        """Standardise by these training rows, (rows, inputs) and (rows, outputs), and draw the
        first frequencies from what so many rows can resolve."""
        for name, values in (("input", inputs), ("output", targets)):
            deviation = values.std(0)
            self.get_buffer(f"{name}_mean").copy_(values.mean(0))
            # a constant column stays as it is: divided by its deviation it would be nan
            usable = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
            self.get_buffer(f"{name}_scale").copy_(usable)
        frequency = highest_frequency(len(inputs), inputs.shape[1], self.frequency_share)
        sines = self.layers[0]["sin"]
        self.gain[:sines] = frequency
        low = 0.5 / frequency
        networks = len(self.readout)
        spread = torch.rand(networks, sines, 1, dtype=torch.float64) * (1 - low) + low
        self.weights[0][:, :sines] *= spread
        self.biases[0][:, :sines] *= math.pi / frequency

    def weigh(self, errors: Tensor) -> None:
        """Weigh the copies of each output by inverse held-out mean square error: (networks,)."""
        inverse = 1 / errors.reshape(self.share.shape).clamp_min(1e-30)
        self.share.copy_(inverse / inverse.sum(1, keepdim=True))

    def residual(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each network's error in units of its output's deviation: (rows, outputs × copies)."""
        scaled = (targets - self.output_mean) / self.output_scale
        return self._standardised(inputs) - scaled.repeat_interleave(self.copies, dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs in their own units: (rows, inputs) -> (rows, outputs)."""
        each = self._standardised(inputs).unflatten(1, self.share.shape)
        return (each * self.share).sum(2) * self.output_scale + self.output_mean

    def _standardised(self, inputs: Tensor) -> Tensor:
        scaled = (inputs - self.input_mean) / self.input_scale
        hidden = scaled.expand(len(self.readout), *scaled.shape)  # (networks, rows, inputs)
        seen = [hidden]
        for number, units in enumerate(self.layers):
            weight, bias = self.weights[number], self.biases[number]
            hidden = torch.baddbmm(bias[:, None], hidden, weight.mT)
            hidden = _activate(hidden * self.gain if number == 0 else hidden, units)
            seen.append(hidden)
        value = torch.bmm(torch.cat(seen, -1), self.readout[..., None])[..., 0]
        return (value + self.offset[:, None]).mT


def _activate(hidden: Tensor, units: Units) -> Tensor:
    """Each activation on its own slice of the last axis."""
    parts = hidden.split(list(units.values()), dim=-1)
    activated = [_ACTIVATIONS[name](part) for name, part in zip(units, parts, strict=True)]
    return torch.cat(activated, dim=-1)


def highest_frequency(rows: int, inputs: int, share: float) -> float:
    """`share` of the Nyquist frequency of a grid of as many rows, in standardised units; >= 1.

    N rows in D dimensions have N^(1/D) along an edge; a uniform edge is √12 deviations long.
    """
    return max(1.0, share * math.pi * rows ** (1 / inputs) / math.sqrt(12))


def fit_scales(model: nn.Module, train: Split) -> None:
    """`Network.prepare` of a FunctionNetwork."""
    cast(FunctionNetwork, model).fit_scales(*train.tensors().tensors)


def function_fitting(config: FunctionConfig) -> Objective:
    """Squared error of every network by itself, summed: none waits for another's gradient."""

    def residual(model: nn.Module, batch: Batch) -> Tensor:
        return cast(FunctionNetwork, model).residual(batch[0], batch[1])

    def weigh(model: nn.Module, errors: Tensor) -> None:
        cast(FunctionNetwork, model).weigh(errors)

    return Objective(
        loss=lambda model, batch: residual(model, batch).square().mean(0).sum(),
        predict=lambda model, batch: model(batch[0]),
        residual=residual,
        independent=True,
        settle=weigh,
    )
