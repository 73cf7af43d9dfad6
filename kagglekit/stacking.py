"""Models stacked: the weights of several as one, and one forward and backward pass for all.

The pass is torch.func's `vmap` of one model's loss, recorded once as a plain list of operations and
then run without vmap, modules and autograd, whose cost is what small networks spend their time on.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import capture, devices, recording
from .config import NetworkConfig
from .dropout import Draw, Dropout, draw_for, noise_of
from .objectives import Batch, Function, Losses, Objective, leaves, rebuilt
from .randomness import generator, seed_all

_FEW_ROWS = 32  # of a batch, on which models are compared in double precision
# Largest difference of losses and of whole gradients, relative, between a model stacked and alone.
TOLERANCE = {"fp64": 1e-6, "fp32": 1e-2, "bf16": 0.3, "fp16": 0.3}
_SCALE = 2.0**16  # of the first loss in fp16, as torch.amp.GradScaler has it
Generators = Sequence[torch.Generator]  # of what each model draws in a pass: dropout


@dataclass(frozen=True)
class Pass:
    """A recorded forward and backward pass: stacked weights, noise and batch to gradients."""

    run: Callable[..., list[Tensor]]
    draws: list[Draw]
    reached: list[bool]  # which of the weights have a gradient


Passes = dict[Any, Pass]  # by what they were recorded of


class Unstackable(Exception):
    """Why models cannot be trained as one stack."""


class Stack:
    """Models of one kind, whose weights and buffers become slices of stacked ones.

    What changes in the stack has changed in each model, and the other way round. Raises
    Unstackable for models that cannot be stacked, as far as one can see before a pass.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        objective: Objective,
        config: NetworkConfig,
        passes: Passes | None = None,
        records: bool = True,  # passes, or goes through vmap and autograd each time
    ) -> None:
        self.passes: Passes = {} if passes is None else passes
        self.records = records
        self.models, self.objective, self.config = list(models), objective, config
        self.device = next(models[0].parameters()).device
        demand_stackable(models[0], objective, config, self.device)
        self.module = copy.deepcopy(models[0])
        attach(self.module, models)
        self._captured: dict[int, capture.Run] = {}  # by the id of the pass
        self._noise: list[Tensor] = []  # of the pass in hand, what is drawn last first
        _supply_noise(self.module, self._noise)
        self.module.train()
        self._function = Function(self.module, objective.loss)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The stacked weights (models, ...) that are trained."""
        return [weight for weight in self.module.parameters() if weight.requires_grad]

    @property
    def by_weight(self) -> dict[Tensor, nn.Parameter]:
        """The stack that each weight of the first model is a slice of."""
        return dict(zip(self.models[0].parameters(), self.module.parameters(), strict=True))

    def backward(self, batch: Batch, generators: Generators, scale: Tensor | None = None) -> Tensor:
        """Add each model's gradient on its own batch to its own; the losses, (models,).

        Every part of `batch` leads with an axis of models. In fp16, and there alone, gradients are
        those of each loss times its `scale`, (models,).
        """
        made = self._pass(batch)
        noise = [torch.stack([draw(source) for source in generators]) for draw in made.draws]
        scales = [] if scale is None else [scale]
        losses, *gradients = self._run(made, [*scales, *noise, *leaves(batch)])
        if self.config.accumulate > 1 and capture.possible(self.device):
            gradients = [gradient.clone() for gradient in gradients]  # a replay overwrites them
        found = iter(gradients)
        for weight, reaches in zip(self.weights, made.reached, strict=True):
            if reaches:
                gradient = next(found)
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return losses

    @property
    def _scaled(self) -> bool:
        """Whether a pass takes the models' scales."""
        return self.config.precision == "fp16"

    @property
    def _own(self) -> list[Tensor]:
        """What a pass takes of the stack itself: weights, and what is not trained."""
        return [*map(_data, self.weights), *map(_data, _kept(self.module).values())]

    def _run(self, made: Pass, given: list[Tensor]) -> list[Tensor]:
        """Losses and gradients of the pass on this stack, which on a GPU is captured first."""
        own = self._own
        run: capture.Run = self._captured.get(id(made)) or partial(_on, made, own)
        replayed = capture.possible(self.device) and self.records
        if replayed and id(made) not in self._captured:
            changed = own[len(self.weights) :]
            run = self._captured[id(made)] = capture.captured(run, given, changed)
        losses, *gradients = run(given)
        return [losses.clone() if replayed else losses, *gradients]

    def _pass(self, batch: Batch) -> Pass:
        """The recorded pass for batches of this shape."""
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        key = (
            len(self.models),
            tuple((part.shape, part.dtype) for part in leaves(batch)),
            tuple((name, part.shape, part.dtype, part.requires_grad) for name, part in tensors),
        )
        if key not in self.passes:
            with torch.enable_grad():
                example = model_at(batch, 0, self.config)
                draws = draws_of(self.models[0], self.objective, self.config, example)
                self.passes[key] = self._recorded(batch, draws)
        return self.passes[key]

    def _recorded(self, batch: Batch, draws: list[Draw]) -> Pass:
        reached: list[bool] = []

        def one_pass(*inputs: Tensor) -> list[Tensor]:
            losses, gradients = self._gradients(list(inputs), batch)
            reached[:] = [gradient is not None for gradient in gradients]
            return [losses, *_apart([g for g in gradients if g is not None], inputs)]

        def with_weights(*inputs: Tensor) -> list[Tensor]:
            count = len(self.weights)
            weights = [weight.detach().requires_grad_() for weight in inputs[:count]]
            with torch.enable_grad():
                return one_pass(*weights, *inputs[count:])

        if not self.records:
            return Pass(_refusing(with_weights), draws, reached)
        generators = [torch.Generator(self.device) for _ in self.models]
        noise = [torch.stack([draw(source) for source in generators]) for draw in draws]
        scales = [torch.ones(len(self.models), device=self.device)] if self._scaled else []
        inputs = [part.clone() for part in (*self._own, *scales, *noise, *leaves(batch))]
        forward = recorded(with_weights, inputs)
        if self.config.compile == "on":
            forward = devices.compiled(forward, dynamic=False)
        return Pass(torch.no_grad()(forward), draws, reached)

    def _gradients(
        self, inputs: list[Tensor], batch: Batch
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """(models,) losses, and the gradient of each stacked weight where it has one."""
        kept_names = list(_kept(self.module))
        names = [name for name, weight in self.module.named_parameters() if weight.requires_grad]
        weights, rest = inputs[: len(names)], inputs[len(names) :]
        kept, rest = rest[: len(kept_names)], rest[len(kept_names) :]
        parts = len(leaves(batch))
        scales, rest = (rest[:1], rest[1:]) if self._scaled else ([], rest)
        noise, given = rest[: len(rest) - parts], rest[len(rest) - parts :]

        lowered = _Lowered() if self._scaled else nullcontext()

        def loss(named: dict[str, Tensor], noise: list[Tensor], given: list[Tensor]) -> Tensor:
            self._noise[:] = reversed(noise)
            inside = {f"model.{name}": tensor for name, tensor in named.items()}
            with devices.autocast(self.config.precision, self.device), lowered:
                return total(functional_call(self._function, inside, (rebuilt(batch, given),)))

        named = dict(zip([*names, *kept_names], [*weights, *kept], strict=True))
        losses = vmap(loss)(named, noise, given)
        share = (losses * scales[0]).sum() if scales else losses.sum()
        if self.config.accumulate > 1:
            share = share / self.config.accumulate
        return losses.detach().float(), torch.autograd.grad(share, weights, allow_unused=True)

    def demand_right(self, batch: Batch, seeds: Sequence[int]) -> None:
        """Raise Unstackable unless every model has the loss, gradient and buffers it has alone.

        `seeds` are those of each model's dropout. Compared on a few rows in double precision,
        where nothing but a mistake differs, and on the batch as it will be trained on, which
        leaves its traces in gradients and buffers: for a stack of copies.
        """
        config, few = self.config, [part[:, :_FEW_ROWS] for part in leaves(batch)]
        doubled = [copy.deepcopy(model).double() for model in self.models]
        exact = Stack(doubled, self.objective, in_single(config), records=False)
        try:
            exact._compare(rebuilt(batch, [in_double(part) for part in few]), seeds, "fp64")
        except (RuntimeError, TypeError):  # single precision in the model's code; Apple's GPUs
            single = list(map(copy.deepcopy, self.models))
            exact = Stack(single, self.objective, in_single(config), records=False)
            exact._compare(rebuilt(batch, few), seeds, "fp32")
        self._compare(batch, seeds, config.precision)

    def _compare(self, batch: Batch, seeds: Sequence[int], precision: str) -> None:
        scale, alone = self._each_alone(batch, seeds)
        generators = [generator(self.device, seed) for seed in seeds]
        losses = _refusing(self.backward)(batch, generators, scale)
        most = TOLERANCE[precision]
        for place, (loss, twin) in enumerate(alone):
            pairs = list(zip(self.weights, _trained(twin), strict=True))
            if any((stack.grad is None) != (weight.grad is None) for stack, weight in pairs):
                raise Unstackable("stacked, its loss reaches other weights")
            got = [stack.grad[place] for stack, _ in pairs if stack.grad is not None]
            wanted = [weight.grad for _, weight in pairs if weight.grad is not None]
            checks = {
                "loss": ([losses[place]], [loss]),
                "gradient": (got, wanted),
                "buffers": ([b[place] for b in self.module.buffers()], list(twin.buffers())),
            }
            for what, (found, expected) in checks.items():
                error = distance(found, expected)
                if not error <= most:
                    raise Unstackable(
                        f"stacked, its {what} would be another ({error:.1g} of it, {precision})"
                    )

    def _each_alone(
        self, batch: Batch, seeds: Sequence[int]
    ) -> tuple[Tensor | None, list[tuple[Tensor, nn.Module]]]:
        """The loss of each model, and a copy with its gradients; in fp16 also their scale.

        It is half of the largest that bursts no gradient: rounding bursts none in a stack either.
        """
        if not self._scaled:
            return None, self._alone_at(1.0, batch, seeds)
        scale = _SCALE
        while scale > 1 and not _finite(self._alone_at(scale, batch, seeds)):
            scale /= 2
        scales = torch.full((len(self.models),), scale / 2, device=self.device)
        return scales, self._alone_at(scale / 2, batch, seeds)

    def _alone_at(
        self, scale: float, batch: Batch, seeds: Sequence[int]
    ) -> list[tuple[Tensor, nn.Module]]:
        alone = []
        for place, (model, seed) in enumerate(zip(self.models, seeds, strict=True)):
            twin = _twin(model, self.config)
            _seed(twin, seed)
            with devices.autocast(self.config.precision, self.device):
                loss = total(self.objective.loss(twin, model_at(batch, place, self.config)))
            # a tensor: a number would leave the product of a loss in fp16 there, beyond its range
            (loss / self.config.accumulate * torch.tensor(scale, device=self.device)).backward()
            alone.append((loss.detach(), twin))
        return alone


def demand_stackable(
    model: nn.Module, objective: Objective, config: NetworkConfig, device: torch.device
) -> None:
    """Raise Unstackable for what is known not to work before any pass."""
    if objective.parts != ("",):
        raise Unstackable("its objective trains several parts in turn")
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if any(hooks) or module._backward_pre_hooks:
            raise Unstackable(f"its {type(module).__name__} has hooks")
        if _drops(module):
            if device.type != "cpu" and not isinstance(module, Dropout):
                raise Unstackable("dropout draws otherwise for a stack on a GPU")
            if module.p >= 1:
                raise Unstackable("it drops everything")


def attach(stacked: nn.Module, models: Sequence[nn.Module]) -> None:
    """Make `stacked`, a copy of one of them, hold the weights and buffers of all `models`.

    Those of each model become views of its slice.
    """
    tensors: dict[Tensor, Tensor] = {}
    for names in (nn.Module.named_parameters, nn.Module.named_buffers):
        of_each = [dict(names(model)) for model in models]
        for name, tensor in names(stacked):
            # contiguous, as gradients will be: channels-last weights would be stacked as they are
            stack: Tensor = torch.stack([named[name].detach().contiguous() for named in of_each])
            stack = stack.contiguous()
            for place, named in enumerate(of_each):
                named[name].data = stack[place]
            if isinstance(tensor, nn.Parameter):
                stack = nn.Parameter(stack, requires_grad=tensor.requires_grad)
            tensors[tensor] = stack
    for module in stacked.modules():
        for owned in (module._parameters, module._buffers):
            for name, held in owned.items():
                if held is not None:
                    owned[name] = tensors[held]  # type: ignore[assignment]


def detach(model: nn.Module) -> None:
    """Give a model back weights and buffers that are no slices."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def draws_of(
    model: nn.Module, objective: Objective, config: NetworkConfig, batch: Batch
) -> list[Draw]:
    """What the dropout layers of a model draw in a pass over `batch`, in order.

    Raises Unstackable for a model that draws elsewhere, or remembers anything outside its buffers:
    a stack would not do that once for every model.
    """
    twin, found = _twin(model, config), list[Draw]()

    def record(module: nn.Dropout, inputs: tuple[Tensor, ...]) -> None:
        found.append(draw_for(module.p, inputs[0]))

    for module in twin.modules():
        if _drops(module):
            module.register_forward_pre_hook(record)
    before = _remembered(twin)
    demand_own_draws(twin, objective, config, batch)
    if _remembered(twin) != before:
        raise Unstackable("it remembers something outside its buffers")
    return found


def demand_own_draws(
    twin: nn.Module, objective: Objective, config: NetworkConfig, batch: Batch
) -> None:
    """Raise Unstackable for a model, a copy to spare, that draws elsewhere than in `nn.Dropout`.

    The generators that it would draw from are all members'.
    """
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.eval()  # so that whatever draws now is something else
    device = leaves(batch)[0].device
    before = _random_states(device)
    with devices.autocast(config.precision, device):
        total(objective.loss(twin, batch))
    if _random_states(device) != before:
        raise Unstackable("it draws random numbers outside nn.Dropout")


def _twin(model: nn.Module, config: NetworkConfig) -> nn.Module:
    """A copy to train, laid out as a model is that is trained alone."""
    twin = copy.deepcopy(model).train()
    return twin.to(memory_format=torch.channels_last) if config.channels_last else twin


def total(losses: Losses) -> Tensor:
    """The loss of an objective whose one part is the whole model."""
    if isinstance(losses, Tensor):
        return losses
    if list(losses) != [""] or not isinstance(losses[""], Tensor):
        raise Unstackable("its loss names parts")
    return losses[""]


# --- batches as lists of tensors ----------------------------------------------------------------


def together(batches: Sequence[Batch]) -> Batch:
    """One batch of all: every part leads with an axis of models."""
    parts = zip(*map(leaves, batches), strict=True)
    return rebuilt(batches[0], [torch.stack(list(part)) for part in parts])


def model_at(batch: Batch, place: int, config: NetworkConfig) -> Batch:
    """The batch of one of the models, laid out as the loader gives it to that model alone."""
    inputs, *rest = (part[place] for part in leaves(batch))
    if config.channels_last and inputs.ndim == 4:  # dropout draws in the order of memory
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return rebuilt(batch, [inputs, *rest])


# --- what passes are made of --------------------------------------------------------------------


class _Lowered(TorchFunctionMode):
    """Layers computed in fp16, with their biases, before vmap takes them apart.

    Autocast sees what vmap has left of them, a product and a sum: the sum, and the gradient of the
    bias with it, would be in fp32, and not burst where it does alone. What follows a layer is in
    fp32: vmap's batch norm refuses inputs in fp16, and a loss there could not be scaled.
    """

    layers = (F.linear, F.conv1d, F.conv2d, F.conv3d,
              F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)  # fmt: skip

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func not in self.layers:
            return func(*args, **named)
        halves = {name: _in_half(value) for name, value in named.items()}
        return func(*map(_in_half, args), **halves).float()


def _in_half(value: Any) -> Any:
    single = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.half() if single else value


class _Drawn(nn.Module):
    """Dropout whose noise comes from outside."""

    def __init__(self, noise: list[Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.noise.pop()


def _supply_noise(module: nn.Module, noise: list[Tensor]) -> None:
    for name, child in module._modules.items():
        if child is not None and _drops(child):
            module._modules[name] = _Drawn(noise)
        elif child is not None:
            _supply_noise(child, noise)


def _drops(module: nn.Module) -> TypeGuard[nn.Dropout]:
    """Whether a layer is dropout whose draws are known; subclasses may draw otherwise."""
    known = type(module) in (nn.Dropout, Dropout)
    return known and isinstance(module, nn.Dropout) and module.p > 0


def _seed(model: nn.Module, seed: int) -> None:
    """Let a model draw, in its dropout and elsewhere, what it draws in an epoch of that seed."""
    seed_all(seed)
    noise = noise_of(model)
    if noise is not None:
        noise.generator.manual_seed(seed)


def _kept(module: nn.Module) -> Mapping[str, Tensor]:
    """Weights that are not trained, and buffers, by name."""
    frozen = {name: w for name, w in module.named_parameters() if not w.requires_grad}
    return {**frozen, **dict(module.named_buffers())}


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.requires_grad]


def _finite(alone: Sequence[tuple[Tensor, nn.Module]]) -> bool:
    """Whether the gradients of all models are finite."""
    gradients = [weight.grad for _, twin in alone for weight in twin.parameters()]
    return all(bool(part.isfinite().all()) for part in gradients if part is not None)


def _apart(gradients: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Each in memory of its own, since gradients are scaled and added to in place.

    Those of two weights that are summed come as one tensor. They are laid out as their weights are:
    fused optimisers take that for granted.
    """
    taken, apart = {part.data_ptr() for part in inputs}, []
    for gradient in gradients:
        gradient = gradient.contiguous()
        apart.append(gradient.clone() if gradient.data_ptr() in taken else gradient)
        taken.add(gradient.data_ptr())
    return apart


def _on(made: Pass, own: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The pass on a stack's own tensors."""
    return made.run(*own, *given)


def _data(tensor: Tensor) -> Tensor:
    return tensor.detach()


def in_double(tensor: Tensor) -> Tensor:
    """A tensor in double precision; numbers that are whole as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


def in_single(config: NetworkConfig) -> NetworkConfig:
    """The knobs of a pass without autocast or compiling."""
    return replace(config, precision="fp32", compile="off")


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far tensors are from those expected, as a share of these."""
    apart = [float((a.double() - b.double()).norm()) for a, b in zip(found, expected, strict=True)]
    size = float(np.linalg.norm([float(tensor.double().norm()) for tensor in expected]))
    return float(np.linalg.norm(apart)) / max(size, 1e-12)


def _random_states(device: torch.device) -> list[Any]:
    numpy: Any = np.random.get_state(legacy=True)
    states = [torch.default_generator.get_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [
        random.getstate(),
        (numpy[1].tobytes(), numpy[2:]),
        [state.numpy().tobytes() for state in states],
    ]


def _remembered(model: nn.Module) -> list[Any]:
    """What the modules hold besides tensors and other modules, where it can be compared."""
    plain = (bool, int, float, str, bytes, type(None), list, tuple, dict, set)
    internal = vars(nn.Module())
    return [
        {
            name: repr(value) if isinstance(value, plain) else id(value)
            for name, value in vars(module).items()
            if name not in internal
        }
        for module in model.modules()
    ]


def recorded(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A function of tensors as a plain list of operations, for tensors of these shapes.

    Raises Unstackable for one that cannot be recorded.
    """
    forward: Callable[..., Any] = _refusing(recording.recorded)(function, inputs)
    return forward


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Raise Unstackable for whatever a model does that vmap cannot."""

    def refusing(*given: Any) -> Any:
        try:
            return function(*given)
        except Unstackable:
            raise
        except Exception as error:  # vmap, autograd and a model's own code fail in many ways
            if isinstance(error, RuntimeError) and devices.is_out_of_memory(error):
                raise
            raise Unstackable(_first_line(error)) from error

    return refusing


def _first_line(error: Exception) -> str:
    sentence = str(error).strip().split("\n")[0] or type(error).__name__
    return sentence if len(sentence) <= 160 else f"{sentence[:159]}…"
