"""The training loop: one member, from its first step or its last checkpoint to its answer."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import checkpoint, devices
from .augment import Augment, mixup
from .config import NetworkConfig
from .errors import UserError
from .loading import Batch, Loader
from .objectives import Losses, Objective
from .optimizers import Groups, Optimizers, decay_matrices, learning_rate
from .polish import polish
from .randomness import derive, generator, seed_all

AfterEpoch = Callable[[nn.Module, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Plan:
    """All that the training of one member depends on."""

    model: nn.Module  # on its device, with its first weights
    objective: Objective
    loader: Loader  # of the rows trained on
    augment: Augment
    config: NetworkConfig
    name: str  # of the member: its random streams are its own
    seed: int
    checkpoint: Path
    watched: Loader | None = None  # rows held out of training, for `patience` and `polish`
    groups: Groups = decay_matrices
    compiled: bool = False
    after_epoch: AfterEpoch = lambda model, epoch, figures: None

    @property
    def epochs(self) -> int:
        """Epochs to train: `epochs`, or more where `min_steps` asks for them."""
        return max(self.config.epochs, math.ceil(self.config.min_steps / self.steps_per_epoch))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return math.ceil(len(self.loader) / self.config.accumulate)


@dataclass
class State:
    """Where a training stands: what a checkpoint holds."""

    model: nn.Module
    optimizers: Optimizers
    ema: AveragedModel | None
    epoch: int = 0  # epochs done
    seconds: float = 0.0  # spent so far, earlier sessions included
    polished: dict[str, Any] = field(default_factory=dict)  # state of the second-order phase
    best_loss: float = math.inf  # on the watched rows
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of that epoch
    saved: float = field(default_factory=time.monotonic)  # when the last checkpoint was written

    @property
    def answering(self) -> nn.Module:
        """The model whose answers count: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    def save(self, path: Path) -> None:
        """Write everything that the rest of the training depends on."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "ema": {} if self.ema is None else self.ema.state_dict(),
            "progress": {name: getattr(self, name) for name in self._plain},
        }
        checkpoint.save(path, state)

    def restore(self, path: Path) -> None:
        """Go on from the checkpoint in `path`, if there is a sound one."""
        state = checkpoint.load(path)
        if state is None:
            return
        if state["progress"]["polished"]:
            self.answering.double()  # as the second-order phase had made it
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        for name in self._plain:
            setattr(self, name, state["progress"][name])

    _plain = ("epoch", "seconds", "polished", "best_loss", "best_epoch", "best")


def train(plan: Plan) -> nn.Module:
    """Train to the end, going on from the checkpoint if there is one; return the model to ask.

    Fixed epochs, unless `patience` watches rows that were held out inside the training rows; then
    the weights of the best epoch on those rows answer.

    Raises UserError when the loss is not finite.
    """
    state = _start(plan)
    forward = torch.compile(plan.model) if plan.compiled else plan.model
    while state.epoch < plan.epochs and not _out_of_patience(plan, state):
        _epoch(plan, state, forward, plan.loader.batches(state.epoch))
        _save_when_due(plan, state)
    if state.best:
        state.answering.load_state_dict(state.best)
    if plan.config.polish:
        assert plan.watched is not None
        polish(
            state.answering,
            plan.objective,
            (plan.loader, plan.watched),
            plan.config,
            state.polished,
            lambda: _save_when_due(plan, state),
        )
    return state.answering


def _save_when_due(plan: Plan, state: State) -> None:
    if time.monotonic() - state.saved >= plan.config.checkpoint_seconds:
        state.save(plan.checkpoint)
        state.saved = time.monotonic()


def _start(plan: Plan) -> State:
    ema = None
    if plan.config.ema:
        ema = AveragedModel(plan.model, multi_avg_fn=_ramped(plan.config.ema), use_buffers=True)
    optimizers = Optimizers(plan.model, plan.objective.parts, plan.groups, plan.config)
    state = State(plan.model, optimizers, ema)
    state.restore(plan.checkpoint)
    return state


def _ramped(decay: float) -> Callable[[Any, Any, Any], None]:
    """Averaging whose memory grows with the steps done, so that the first weights are forgotten."""

    def update(averaged: Any, current: Any, steps: Any) -> None:
        ramp = (1 + float(steps)) / (10 + float(steps))
        get_ema_multi_avg_fn(min(decay, ramp))(averaged, current, steps)

    return update


def _epoch(plan: Plan, state: State, forward: Any, batches: Iterator[Batch]) -> None:
    """One pass over the training rows, and what follows it."""
    began = time.monotonic()
    # all randomness of an epoch comes from (seed, member, epoch): nothing older is needed
    seed_all(derive(plan.seed, plan.name, "epoch", state.epoch))
    draws = generator(plan.loader.device, derive(plan.seed, plan.name, "augment", state.epoch))
    plan.model.train()
    loss = _steps(plan, state, forward, batches, draws)
    state.epoch += 1
    if not math.isfinite(loss):
        raise UserError(
            f"the loss of {plan.name} became {loss} in epoch {state.epoch}: lower lr "
            f"(now {plan.config.lr:g}), set clip_norm=1, or take precision=fp32"
        )
    seconds = time.monotonic() - began
    state.seconds += seconds
    _watch(plan, state)
    rows = len(plan.loader) * plan.loader.batch_size
    figures = {"loss": loss, "rows_per_second": rows / max(seconds, 1e-9)}
    peak = devices.peak_gib(plan.loader.device)
    if peak is not None:
        figures["gpu_gib"] = peak
    plan.after_epoch(state.answering, state.epoch, figures)


def _steps(
    plan: Plan, state: State, forward: Any, batches: Iterator[Batch], draws: torch.Generator
) -> float:
    """The optimiser steps of an epoch; the mean loss over its batches."""
    total = torch.zeros((), device=plan.loader.device)
    done = state.epoch * plan.steps_per_epoch
    count = len(plan.loader)
    for number, batch in enumerate(batches, start=1):
        batch = _seen(plan, batch, draws)
        with devices.autocast(plan.config.precision, plan.loader.device):
            losses = plan.objective.loss(forward, batch)
        stepping = number % plan.config.accumulate == 0 or number == count
        if stepping:
            share = learning_rate(done, plan.epochs * plan.steps_per_epoch, plan.config)
            state.optimizers.set_rate(share)
        total += _learn(state.optimizers, losses, stepping)
        if stepping:
            done += 1
            if state.ema is not None:
                state.ema.update_parameters(plan.model)
    return float(total) / count  # the one wait for the device in an epoch


def _seen(plan: Plan, batch: Batch, draws: torch.Generator) -> Any:
    """The batch as training sees it: augmented, and mixed where `mixup` says so."""
    inputs, *rest = batch
    inputs = plan.augment(inputs, draws)
    if plan.config.mixup:
        inputs, mixed = mixup(inputs, rest[0], plan.config.mixup, draws)
        return [inputs, mixed, *rest[1:]]
    return [inputs, *rest]


def _learn(optimizers: Optimizers, losses: Losses, stepping: bool) -> Tensor:
    """Add the gradients and, where `stepping`, take the step; the summed loss, detached."""
    by_part = {"": losses} if isinstance(losses, Tensor) else dict(losses)
    ready = {part: loss for part, loss in by_part.items() if isinstance(loss, Tensor)}
    optimizers.backward(ready)
    if stepping:
        optimizers.step(ready)
    for part, later in by_part.items():
        if part not in ready:
            assert callable(later)
            ready[part] = later()
            optimizers.backward({part: ready[part]})
            optimizers.step([part])
    if stepping:
        optimizers.finish()
    return torch.stack([loss.detach().float() for loss in ready.values()]).sum()


def _watch(plan: Plan, state: State) -> None:
    """Note the loss on the rows held out of training, and the weights where it is the best yet."""
    if plan.watched is None or not plan.config.patience:
        return
    loss = _mean_loss(state.answering, plan.objective, plan.watched, plan.config)
    if loss < state.best_loss:
        state.best_loss, state.best_epoch = loss, state.epoch
        state.best = copy.deepcopy(state.answering.state_dict())


def _out_of_patience(plan: Plan, state: State) -> bool:
    patience = plan.config.patience
    return patience > 0 and state.epoch - state.best_epoch >= patience


@torch.no_grad()
def _mean_loss(
    model: nn.Module, objective: Objective, loader: Loader, config: NetworkConfig
) -> float:
    model.eval()
    total, rows = 0.0, 0
    for batch in loader.batches(0):
        with devices.autocast(config.precision, loader.device):
            losses = objective.loss(model, batch)
        parts = [losses] if isinstance(losses, Tensor) else list(losses.values())
        total += sum(float(part) for part in parts if isinstance(part, Tensor)) * len(batch[0])
        rows += len(batch[0])
    return total / max(rows, 1)
