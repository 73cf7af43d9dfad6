"""The training loop: one member, from its first step or its last checkpoint to its answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import capture, checkpoint, devices, randomness, signals
from .augment import Augment, Draws, changed, mixup
from .checkpoint import Checkpoint
from .config import NetworkConfig
from .dropout import Noise, noise_of
from .errors import DivergedError, UserError
from .loading import Batch, Loader
from .objectives import Losses, Objective, leaves, rebuilt
from .optimizers import Groups, Optimizers, decay_matrices, learning_rate
from .pace import Pace
from .polish import Case, demand_polishable, polish
from .predict import answers_by_view, concatenated
from .randomness import derive, generator, seed_all
from .stamps import Stamp
from .views import original

Learn = Callable[[Batch, bool], list[Tensor]]  # (batch, whether to step) -> its losses
# (epoch, its answers to `Plan.scored` if they were asked, figures)
AfterEpoch = Callable[[int, np.ndarray | None, Mapping[str, float]], None]


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
    scored: Loader | None = None  # rows of the held-out fold: for the screen and the history only
    groups: Groups = decay_matrices
    stamp: Stamp = field(default_factory=Stamp)  # what a checkpoint must have been begun with
    compiled: bool = False
    multiplications: float = math.inf  # of the model on a batch, about
    beside: bool = False  # others that train in this process: the global generators are not its
    micro_batches: int = 1  # that a batch is taken in, where memory does not hold it whole
    after_epoch: AfterEpoch = lambda epoch, answers, figures: None

    @property
    def epochs(self) -> int:
        """Epochs to train: `epochs`, or more where `min_steps` asks for them."""
        return max(self.config.epochs, math.ceil(self.config.min_steps / self.steps_per_epoch))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return math.ceil(len(self.loader) / self.config.accumulate)

    @property
    def divisible(self) -> bool:
        """Whether batches may be taken in half as large parts, of two rows at least: of one,
        BatchNorm has no statistics."""
        return self.objective.parts == ("",) and 4 * self.micro_batches <= self.loader.batch_size

    def steps_after(self, batch: int) -> bool:
        """Whether the optimisers step after batch number `batch` (from 1) of an epoch."""
        return batch % self.config.accumulate == 0 or batch == len(self.loader)

    @property
    def watches(self) -> bool:
        """Whether the loss on the watched rows is asked for after every epoch."""
        return self.watched is not None and self.config.patience > 0

    def scores(self, epoch: int) -> bool:
        """Whether the held-out fold is answered after so many epochs."""
        every = self.config.score_every
        return self.scored is not None and every > 0 and epoch % every == 0

    def rate(self, epoch: int, batch: int) -> float:
        """Share of the peak learning rate in the step that batch number `batch` ends."""
        done = epoch * self.steps_per_epoch + (batch - 1) // self.config.accumulate
        return learning_rate(done, self.epochs * self.steps_per_epoch, self.config)


@dataclass
class State:
    """Where the training of one member stands: what a checkpoint holds of it."""

    model: nn.Module
    optimizers: Optimizers
    ema: AveragedModel | None
    draws: torch.Generator  # of augmentation and mixup
    noise: Noise | None = None  # of its dropout, where it has any
    beside: bool = False  # others
    epoch: int = 0  # epochs done
    batch: int = 0  # batches done of the epoch in hand
    losses: list[Tensor] = field(default_factory=list)  # of the epoch in hand, a batch each
    history: list[float] = field(default_factory=list)  # mean loss of each epoch done
    polished: dict[str, Any] = field(default_factory=dict)  # state of the second-order phase
    best_loss: float = math.inf  # on the watched rows
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of that epoch

    @property
    def answering(self) -> nn.Module:
        """The model whose answers count: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    def close(self, loss: float) -> None:
        """The epoch in hand is done, with that mean loss."""
        self.epoch, self.batch, self.losses = self.epoch + 1, 0, []
        self.history.append(loss)

    @property
    def progress(self) -> dict[str, Any]:
        """What is no tensor of the model: for a checkpoint."""
        return {name: getattr(self, name) for name in self._plain}

    @progress.setter
    def progress(self, told: Mapping[str, Any]) -> None:
        for name in self._plain:
            setattr(self, name, told[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "ema": {} if self.ema is None else self.ema.state_dict(),
            "generators": self._generators(),
            "draws": self.draws.get_state(),
            "losses": torch.stack(self.losses) if self.losses else torch.zeros(0),
            "progress": self.progress,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        # before the weights change their precision, which the optimisers' states would follow
        self.optimizers.load_state_dict(state["optimizers"])
        if state["progress"]["polished"]:
            self.answering.double()  # as the second-order phase had made it
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.draws.set_state(state["draws"])
        self.losses = list(state["losses"].to(self.draws.device))
        self.progress = state["progress"]
        generators = dict(state["generators"])
        noise = generators.pop("noise", None)
        if self.noise is not None and noise is not None:
            self.noise.generator.set_state(noise)
        if generators and not self.beside:
            randomness.restore_generators(generators, self.draws.device)

    def _generators(self) -> dict[str, Any]:
        """Where the random numbers stand that a model draws: its dropout's and, alone, all."""
        own = {} if self.noise is None else {"noise": self.noise.generator.get_state()}
        if self.beside:
            return own
        return {**own, **randomness.generator_states(self.draws.device)}

    _plain = ("epoch", "batch", "history", "polished", "best_loss", "best_epoch", "best")


class BatchTooLargeError(torch.OutOfMemoryError):
    """Memory does not hold what a step needs, but may hold that of smaller parts of the batch."""


Members = Mapping[str, Mapping[str, Any]]  # their states, by name


class Saver:
    """Writes the checkpoint when it is due, and before a signal is obeyed."""

    def __init__(self, path: Path, stamp: Stamp, config: NetworkConfig) -> None:
        self.path, self.stamp = path, stamp
        self.pace = Pace(config.checkpoint_seconds)
        self.changed = False  # since the last one

    def stepped(self, states: Callable[[], Members | None]) -> None:
        """Note that a step was taken, and save where that is due."""
        self.changed = True
        if self.pace.due or signals.pending():
            self.save(states)

    def save(self, states: Callable[[], Members | None]) -> None:
        """Save what has changed: all `states`, or nothing where there are none that are sound."""
        if not self.changed:
            return
        with self.pace.saving():
            members = states()
            if members is not None:
                checkpoint.save(self.path, Checkpoint(self.stamp.parts, members))
        self.changed = False

    def load(self) -> Members | None:
        """The states in the last checkpoint, if there is one.

        Raises UserError for one that was begun with something else.
        """
        found = checkpoint.load(self.path)
        if found is None:
            return None
        self.stamp.admit(found.stamp, str(self.path))
        return found.members

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """The context in which states are put back: UserError for those that do not fit."""
        try:
            yield
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{self.path} does not fit the model that is trained: delete it to begin the "
                "member again"
            ) from error


@dataclass(frozen=True)
class Trained:
    """A model at the end of its training, and a digest of all that it went through."""

    model: nn.Module
    state: str  # digest of weights, averages, optimisers, generators and losses
    history: list[float]  # mean loss of each epoch


def train(plan: Plan) -> Trained:
    """Train to the end, going on from the checkpoint if there is one.

    Fixed epochs, unless `patience` watches rows that were held out inside the training rows; then
    the weights of the best epoch on those rows answer. A signal that comes in a step is obeyed at
    its end, when the checkpoint has been written.

    Raises UserError for knobs that the objective cannot follow, before the first step, and for a
    checkpoint that was begun with something else; DivergedError for a loss or weights that are not
    finite: the checkpoint then keeps the last sound state.
    """
    demand_possible(plan)
    with devices.reproducible():
        state = start(plan)
        saver = Saver(plan.checkpoint, plan.stamp.of(plan.name), plan.config)
        found = saver.load()
        if found is not None:
            with saver.fitting():
                state.load_state_dict(found[plan.name])
        loop = _Alone(plan, state, saver)
        try:
            _phases(loop)
        except signals.Interrupted as interruption:
            if not interruption.amid:  # but between two steps, in scoring say
                saver.save(loop.states)
            raise
    return Trained(state.answering, checkpoint.digest(state.state_dict()), state.history)


@dataclass(frozen=True)
class _Alone:
    """A member in training, and what saves it."""

    plan: Plan
    state: State
    saver: Saver

    def states(self) -> Members:
        """What a checkpoint holds; raises DivergedError for numbers that are not sound."""
        demand_finite(self.plan, self.state)
        return {self.plan.name: self.state.state_dict()}

    def stepped(self) -> None:
        """A step was taken."""
        self.saver.stepped(self.states)


def _phases(loop: _Alone) -> None:
    plan, state = loop.plan, loop.state
    with devices.threads_for(plan.multiplications, plan.loader.device):
        step = learner(plan, state.optimizers)
        while state.epoch < plan.epochs and not out_of_patience(plan, state):
            _epoch(loop, step)
    if state.best and not state.polished:
        state.answering.load_state_dict(state.best)
    if plan.config.polish:
        polish_answering([(plan, state)], loop.stepped)


def demand_possible(plan: Plan) -> None:
    """Raise UserError for knobs that the objective cannot follow."""
    if plan.config.mixup and not plan.objective.mixes:
        raise UserError("mixup needs an objective whose loss takes blended targets: set mixup=0")
    if plan.config.polish:
        demand_polishable(plan.objective, plan.config)


def polish_answering(some: Sequence[tuple[Plan, State]], stepped: Callable[[], None]) -> None:
    """The second-order phase of members of one kind, or what is left of it."""
    cases = []
    for plan, state in some:
        assert plan.watched is not None
        cases.append(Case(state.answering, (plan.loader, plan.watched), state.polished))
    plan = some[0][0]
    polish(cases, plan.objective, plan.config, stepped)


def start(plan: Plan) -> State:
    """The state before the first step."""
    optimizers = Optimizers(plan.model, plan.objective.parts, plan.groups, plan.config)
    ema = averaged(plan.model, plan.config)
    draws = generator(plan.loader.device, 0)
    return State(plan.model, optimizers, ema, draws, noise_of(plan.model), plan.beside)


def averaged(model: nn.Module, config: NetworkConfig) -> AveragedModel | None:
    """The averaged weights and buffers of a model, where `ema` asks for them."""
    if not config.ema:
        return None
    return AveragedModel(model, multi_avg_fn=_ramped(config.ema), use_buffers=True)


def _ramped(decay: float) -> Callable[[Any, Any, Any], None]:
    """Averaging whose memory grows with the steps done, so that the first weights are forgotten."""

    def update(averaged: Any, current: Any, steps: Any) -> None:
        ramp = (1 + float(steps)) / (10 + float(steps))
        get_ema_multi_avg_fn(min(decay, ramp))(averaged, current, steps)

    return update


def _epoch(loop: _Alone, step: Learn) -> None:
    """What is left of a pass over the training rows, and what follows it."""
    plan, state = loop.plan, loop.state
    began, batches_before = time.monotonic(), state.batch
    if not state.batch:
        # all randomness of an epoch comes from (seed, member, epoch): nothing older is needed
        if not plan.beside:
            seed_all(epoch_seed(plan, state.epoch))
        seed_draws(plan, state)
    plan.model.train()
    with signals.deferred():
        _steps(loop, step)
    demand_finite(plan, state)
    loss = float(torch.stack(state.losses).mean())  # the one wait for the device in an epoch
    seconds = time.monotonic() - began
    rows = (state.batch - batches_before) * plan.loader.batch_size
    watch(plan, state)
    # noted before it counts as done: killed in between, it is noted again, not left out
    figured = figures(plan, loss, rows / max(seconds, 1e-9))
    plan.after_epoch(state.epoch + 1, scored_answers(plan, state), figured)
    with signals.deferred():
        state.close(loss)
        loop.stepped()


def scored_answers(plan: Plan, state: State) -> np.ndarray | None:
    """(rows, outputs) answers to the held-out fold, after an epoch that asks for them."""
    if plan.scored is None or not plan.scores(state.epoch + 1):
        return None
    answers: np.ndarray = concatenated(
        answers_by_view(state.answering, plan.objective, plan.scored, (original,))
    )[0]
    return answers


def epoch_seed(plan: Plan, epoch: int) -> int:
    """The seed of whatever a model draws in an epoch, dropout say."""
    return derive(plan.seed, plan.name, "epoch", epoch)


def seed_draws(plan: Plan, state: State) -> None:
    """Begin the draws of augmentation, mixup and dropout anew, as every epoch does."""
    if state.noise is not None:
        state.noise.generator.manual_seed(epoch_seed(plan, state.epoch))
    state.draws.manual_seed(derive(plan.seed, plan.name, "augment", state.epoch))


def figures(plan: Plan, loss: float, rows_per_second: float) -> dict[str, float]:
    """What the history notes of an epoch."""
    told = {"loss": loss, "rows_per_second": rows_per_second, "epochs": float(plan.epochs)}
    peak = devices.peak_gib(plan.loader.device)
    return told if peak is None else {**told, "gpu_gib": peak}


@torch.no_grad()
def demand_finite(plan: Plan, state: State) -> None:
    """Refuse to go on, to save or to answer once numbers have burst."""
    # the weights too: the last step may have burst them, after its loss was taken
    total = torch.stack([weight.sum().float() for weight in state.answering.parameters()]).sum()
    losses = torch.stack(state.losses) if state.losses else torch.zeros(1)
    if not (bool(losses.isfinite().all()) and math.isfinite(float(total))):
        raise diverged(plan, state, losses)


def diverged(plan: Plan, state: State, losses: Tensor) -> DivergedError:
    """The error of a member whose `losses` of the epoch in hand, or whose weights, have burst."""
    burst = (~losses.isfinite()).nonzero()
    batch = int(burst[0]) + 1 if len(burst) else state.batch
    what = f"the loss became {float(losses[batch - 1])}" if len(burst) else "the weights burst"
    config = plan.config
    causes = [f"a learning rate that is too high (lr={config.lr:g})"]
    causes += ["no limit to gradients (set clip_norm=1)"] if not config.clip_norm else []
    causes += [f"precision={config.precision} (take fp32)"] if config.precision != "fp32" else []
    return DivergedError(
        f"{plan.name}: {what} in batch {batch} of {len(plan.loader)} of epoch {state.epoch + 1} "
        f"of {plan.epochs}; {_last_sound(plan)}; likely causes: {', '.join(causes)}, or infinite "
        "or missing numbers in the data"
    )


def _last_sound(plan: Plan) -> str:
    saved = checkpoint.load(plan.checkpoint)
    progress = saved.members.get(plan.name, {}).get("progress") if saved else None
    if progress is None:  # a cohort's may hold other members alone
        return "no checkpoint was written before"
    return (
        f"the last sound state, after batch {progress['batch']} of epoch {progress['epoch'] + 1}, "
        f"is in {plan.checkpoint}"
    )


def _steps(loop: _Alone, step: Learn) -> None:
    """The optimiser steps that are left of an epoch."""
    plan, state = loop.plan, loop.state
    for number, batch in enumerate(
        plan.loader.batches(state.epoch, state.batch), start=state.batch + 1
    ):
        stepping = plan.steps_after(number)
        if stepping:
            state.optimizers.set_rate(plan.rate(state.epoch, number))
        losses = _within_memory(plan, step, seen(plan, batch, state.draws), stepping)
        state.losses.append(torch.stack([loss.detach().float() for loss in losses]).sum())
        if not stepping:
            continue
        state.batch = number  # between two steps gradients are half gathered: no place to save
        if state.ema is not None:
            state.ema.update_parameters(plan.model)
        loop.stepped()
        if signals.pending():
            return


def _within_memory(plan: Plan, step: Learn, batch: Any, stepping: bool) -> list[Tensor]:
    """The losses of a step; BatchTooLargeError where it may be taken with less memory."""
    try:
        return step(batch, stepping)
    except RuntimeError as error:
        if not devices.is_out_of_memory(error) or not plan.divisible:
            raise
        raise BatchTooLargeError(str(error)) from error


def seen(plan: Plan, batch: Batch, draws: Draws) -> Any:
    """The batch as training sees it: augmented, and mixed where `mixup` says so.

    Several generators are those of equal parts of it, for an augmentation that takes them.
    """
    inputs, *rest = batch
    inputs = changed(plan.augment, inputs, draws)
    if plan.config.mixup:
        inputs, mixed = mixup(inputs, rest[0], plan.config.mixup, draws)
        return [inputs, mixed, *rest[1:]]
    return [inputs, *rest]


def learner(plan: Plan, optimizers: Optimizers) -> Learn:
    """The training step of a member: its passes captured, where it shares a GPU with others."""
    forward = devices.compiled(plan.model) if plan.compiled else plan.model
    config, device = plan.config, plan.loader.device
    alike = config.accumulate == 1 and plan.objective.parts == ("",)  # all steps
    if plan.beside and alike and capture.possible(device):
        return _Captured(plan, optimizers, forward)
    if plan.micro_batches > 1:
        return _InParts(plan, optimizers, forward)
    return lambda batch, stepping: learn(plan, optimizers, forward, batch, stepping)


class _Captured:
    """A training step whose forward and backward pass are one graph of the GPU.

    The next step overwrites the loss that it returns.
    """

    def __init__(self, plan: Plan, optimizers: Optimizers, forward: Any) -> None:
        self.plan, self.optimizers, self.forward = plan, optimizers, forward
        self.run: capture.Run | None = None
        self.reached: list[nn.Parameter] = []  # weights that have a gradient

    def __call__(self, batch: Batch, stepping: bool) -> list[Tensor]:
        given = leaves(batch)
        if self.run is None:
            self.pattern, model = batch, self.plan.model
            noise = noise_of(model)
            draws = [] if noise is None else [noise.generator]
            self.run = capture.captured(self._pass, given, list(model.buffers()), draws)
        loss, *gradients = self.run(given)
        for weight, gradient in zip(self.reached, gradients, strict=True):
            weight.grad = gradient
        self.optimizers.step([""])
        self.optimizers.finish()
        return [loss]

    def _pass(self, given: Sequence[Tensor]) -> list[Tensor]:
        objective, weights = self.plan.objective, self.optimizers.trained[""]
        for weight in weights:
            weight.grad = None
        with devices.autocast(self.plan.config.precision, self.plan.loader.device):
            losses = objective.loss(self.forward, rebuilt(self.pattern, given))
        loss = _by_part(objective, losses)[""]
        assert isinstance(loss, Tensor)
        self.optimizers.backward({"": loss})
        self.reached = [weight for weight in weights if weight.grad is not None]
        return [loss.detach(), *(weight.grad for weight in self.reached if weight.grad is not None)]


def learn(
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


class _InParts:
    """A training step that takes a batch in micro-batches, whose losses count by their rows."""

    def __init__(self, plan: Plan, optimizers: Optimizers, forward: Any) -> None:
        self.plan, self.optimizers, self.forward = plan, optimizers, forward
        self.known = False  # that the loss is a mean over rows

    def __call__(self, batch: Batch, stepping: bool) -> list[Tensor]:
        if not self.known:
            self._demand_mean(batch)
        found: list[Tensor] = []
        for given in _parts(batch, self.plan.micro_batches):
            loss = self._loss(self.forward, given) * (len(given[0]) / len(batch[0]))
            self.optimizers.backward({"": loss})
            found.append(loss.detach())
        if stepping:
            self.optimizers.step([""])
            self.optimizers.finish()
        return [torch.stack(found).sum()]

    def _loss(self, forward: Any, batch: Batch) -> Tensor:
        with devices.autocast(self.plan.config.precision, self.plan.loader.device):
            losses = self.plan.objective.loss(forward, batch)
        loss = _by_part(self.plan.objective, losses)[""]
        assert isinstance(loss, Tensor)
        return loss

    @torch.no_grad()
    def _demand_mean(self, batch: Batch) -> None:
        """Raise UserError for a loss that is another where few rows are taken in two parts."""
        model = self.plan.model.eval()  # rows then know nothing of each other in it
        few = rebuilt(batch, [part[:4] for part in leaves(batch)])
        whole = float(self._loss(model, few))
        apart = [float(self._loss(model, half)) for half in _parts(few, 2)]
        model.train()
        if not math.isclose(whole, sum(apart) / len(apart), rel_tol=0.2, abs_tol=1e-6):
            raise UserError(
                "memory does not hold a batch, which cannot be taken in parts, since its loss is "
                "no mean over rows: lower batch_size"
            )
        self.known = True


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in so many parts, or as many as have two rows at least."""
    count = max(1, min(count, len(batch[0]) // 2))
    for given in zip(*(part.tensor_split(count) for part in leaves(batch)), strict=True):
        yield rebuilt(batch, given)


def _by_part(objective: Objective, losses: Losses) -> Mapping[str, Tensor | Callable[[], Tensor]]:
    by_part = {"": losses} if isinstance(losses, Tensor) else losses
    unknown = [part for part in by_part if part not in objective.parts]
    if unknown:
        known = ", ".join(map(repr, objective.parts))
        raise UserError(f"the loss names the part {unknown[0]!r}, but the objective has {known}")
    return by_part


def watch(plan: Plan, state: State) -> None:
    """Note the loss on the rows held out of training, and the weights where it is the best yet."""
    if plan.watches and plan.watched is not None:
        loss = _mean_loss(state.answering, plan.objective, plan.watched, plan.config)
        note_watched(state, loss)


def note_watched(state: State, loss: float) -> None:
    """Note that loss on the watched rows, and the weights where it is the best yet."""
    if loss < state.best_loss:
        weights = state.answering.state_dict()
        with signals.deferred():
            state.best = {name: weight.detach().clone() for name, weight in weights.items()}
            state.best_loss, state.best_epoch = loss, state.epoch + 1


def out_of_patience(plan: Plan, state: State) -> bool:
    """Whether `patience` ends the training: the watched rows have gained nothing for so long."""
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
