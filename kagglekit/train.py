"""The training loop: one member, from its first step or its last checkpoint to its answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
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
from .polish import demand_polishable, polish
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
    multiplications: float = math.inf  # of the model on a batch, about
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

    Raises UserError for knobs that the objective cannot follow, before the first step, and for a
    loss or weights that are not finite; the checkpoint then keeps the last sound epoch.
    """
    _demand_possible(plan)
    with devices.reproducible():
        state = _start(plan)
        with devices.threads_for(plan.multiplications, plan.loader.device):
            _epochs(plan, state)
        if state.best:
            state.answering.load_state_dict(state.best)
        if plan.config.polish:
            _polish(plan, state)
    return state.answering


def _demand_possible(plan: Plan) -> None:
    if plan.config.mixup and not plan.objective.mixes:
        raise UserError("mixup needs an objective whose loss takes blended targets: set mixup=0")
    if plan.config.polish:
        demand_polishable(plan.objective, plan.config)


def _epochs(plan: Plan, state: State) -> None:
    forward = torch.compile(plan.model) if plan.compiled else plan.model
    while state.epoch < plan.epochs and not _out_of_patience(plan, state):
        _epoch(plan, state, forward, plan.loader.batches(state.epoch))
        _save_when_due(plan, state)


def _polish(plan: Plan, state: State) -> None:
    assert plan.watched is not None
    polish(
        state.answering,
        plan.objective,
        (plan.loader, plan.watched),
        plan.config,
        state.polished,
        lambda: _save_when_due(plan, state),
    )


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
    _demand_finite(plan, state, loss)
    seconds = time.monotonic() - began
    state.seconds += seconds
    _watch(plan, state)
    rows = len(plan.loader) * plan.loader.batch_size
    figures = {
        "loss": loss, "rows_per_second": rows / max(seconds, 1e-9), "epochs": float(plan.epochs),
    }  # fmt: skip
    peak = devices.peak_gib(plan.loader.device)
    if peak is not None:
        figures["gpu_gib"] = peak
    plan.after_epoch(state.answering, state.epoch, figures)


@torch.no_grad()
def _demand_finite(plan: Plan, state: State, loss: float) -> None:
    """Refuse to go on, to save or to answer once numbers have burst."""
    # the weights too: the last step of an epoch may have burst them, after its loss was taken
    total = torch.stack([weight.sum().float() for weight in state.answering.parameters()]).sum()
    if math.isfinite(loss) and math.isfinite(float(total)):
        return
    what = "the weights" if math.isfinite(loss) else f"the loss ({loss})"
    raise UserError(
        f"{what} of {plan.name} became infinite or no number in epoch {state.epoch}: lower lr "
        f"(now {plan.config.lr:g}), set clip_norm=1, or take precision=fp32"
    )


def _steps(
    plan: Plan, state: State, forward: Any, batches: Iterator[Batch], draws: torch.Generator
) -> float:
    """The optimiser steps of an epoch; the mean loss over its batches."""
    total = torch.zeros((), device=plan.loader.device)
    done = state.epoch * plan.steps_per_epoch
    count = len(plan.loader)
    for number, batch in enumerate(batches, start=1):
        stepping = number % plan.config.accumulate == 0 or number == count
        if stepping:
            share = learning_rate(done, plan.epochs * plan.steps_per_epoch, plan.config)
            state.optimizers.set_rate(share)
        losses = _learn(plan, state.optimizers, forward, _seen(plan, batch, draws), stepping)
        total += torch.stack([loss.detach().float() for loss in losses]).sum()
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


def _learn(
    plan: Plan, optimizers: Optimizers, forward: Any, batch: Any, stepping: bool
) -> list[Tensor]:
    """Add the gradients of a batch and, where `stepping`, take the step; the losses."""

    def autocast() -> AbstractContextManager[object]:
        return devices.autocast(plan.config.precision, plan.loader.device)

    with autocast():
        by_part = _by_part(plan.objective, plan.objective.loss(forward, batch))
    ready = {part: loss for part, loss in by_part.items() if isinstance(loss, Tensor)}
    optimizers.backward(ready)
    if stepping:
        optimizers.step(ready)
    for part, compute in by_part.items():
        if isinstance(compute, Tensor):
            continue
        with autocast():
            ready[part] = compute()
        optimizers.backward({part: ready[part]})
        if stepping:
            optimizers.step([part])
    if stepping:
        optimizers.finish()
    return list(ready.values())


def _by_part(objective: Objective, losses: Losses) -> Mapping[str, Tensor | Callable[[], Tensor]]:
    by_part = {"": losses} if isinstance(losses, Tensor) else losses
    unknown = [part for part in by_part if part not in objective.parts]
    if unknown:
        known = ", ".join(map(repr, objective.parts))
        raise UserError(f"the loss names the part {unknown[0]!r}, but the objective has {known}")
    return by_part


def _watch(plan: Plan, state: State) -> None:
    """Note the loss on the rows held out of training, and the weights where it is the best yet."""
    if plan.watched is None or not plan.config.patience:
        return
    loss = _mean_loss(state.answering, plan.objective, plan.watched, plan.config)
    if loss < state.best_loss:
        state.best_loss, state.best_epoch = loss, state.epoch
        weights = state.answering.state_dict()
        state.best = {name: weight.detach().clone() for name, weight in weights.items()}


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
