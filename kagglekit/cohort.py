"""The training loop of a cohort: members in lock step, each as it would be trained alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import checkpoint, devices, signals
from .augment import nothing, takes_parts
from .ensemble import Ensemble, named_tensors
from .loading import InStep, Loader, abreast
from .objectives import Batch, Objective, leaves, rebuilt
from .optimizers import Optimizers
from .predict import concatenated
from .stacking import Passes, Stack, Unstackable, attach, detach, together, total
from .train import (
    Members,
    Plan,
    Saver,
    State,
    Trained,
    averaged,
    demand_possible,
    diverged,
    figures,
    note_watched,
    out_of_patience,
    polish_answering,
    scored_answers,
    seed_draws,
    seen,
    start,
    watch,
)
from .views import original

T = TypeVar("T")
Finish = Callable[[Sequence[tuple[Plan, Trained]]], None]

_log = logging.getLogger("kagglekit")
_AT_ONCE = 2**28  # bytes of a whole epoch's batches that are gathered at once


@dataclass(eq=False)
class Seat:
    """A member that is trained in a stack, and its own random numbers."""

    plan: Plan
    state: State  # its model and averages are slices of the stack
    noise: torch.Generator  # of its dropout
    slot: dict[str, Any]  # state of its optimisers when it joined; none at the start


def pace(plan: Plan) -> tuple[int, int, int]:
    """Members of one pace can be in lock step: rows a batch, batches an epoch, epochs."""
    return plan.loader.batch_size, len(plan.loader), plan.epochs


def train_cohort(
    plans: Sequence[Plan], saver: Saver, finish: Finish, passes: Passes
) -> dict[str, str]:
    """Train members of one pace to the end, going on from the cohort's checkpoint if there is one.

    `finish` gets all members that are trained. A member whose numbers burst stops alone, at the
    end of its epoch: name -> why is given for each. Raises Unstackable for models that cannot be
    stacked, and the errors of `train.train`.
    """
    for plan in plans:
        demand_possible(plan)
    with devices.reproducible():
        cohort = Cohort(plans, saver, passes)
        try:
            cohort.train()
            ended = cohort.conclude()
        except signals.Interrupted as interruption:
            if not interruption.amid:  # but between two rounds, in scoring say
                saver.save(cohort.states)
            raise
        if ended:
            finish(ended)
    return cohort.failed


class Cohort:
    """Members of one pace, and where the training of each stands."""

    def __init__(self, plans: Sequence[Plan], saver: Saver, passes: Passes) -> None:
        self.passes = passes
        self.plans, self.saver = {plan.name: plan for plan in plans}, saver
        # states of the members that are in no stack: those that have left theirs, or wait
        self.waiting: dict[str, Mapping[str, Any]] = dict(saver.load() or {})
        stopped = {name: saved["failed"] for name, saved in self.waiting.items()
                   if "failed" in saved and name in self.plans}  # fmt: skip
        # one that comes back alone is tried once more, from its last sound state
        self.failed: dict[str, str] = stopped if len(stopped) < len(plans) else {}
        self.seats: list[Seat] = []
        self.losses: list[Tensor] = []  # of the epoch in hand, (seats,) a batch

    # --- the first phase ------------------------------------------------------------------------

    def train(self) -> None:
        """All epochs of all members: those that stand at the same batch form a stack."""
        seats = [self._seated(plan) for name, plan in self.plans.items() if name not in self.failed]
        seats = [seat for seat in seats if not _is_over(seat)]

        def place(seat: Seat) -> tuple[int, int]:
            return seat.state.epoch, seat.state.batch

        for _, group in groupby(sorted(seats, key=place), place):
            self._train_stack(list(group))

    def _seated(self, plan: Plan) -> Seat:
        state = start(plan)
        noise = state.noise.generator if state.noise else torch.Generator(plan.loader.device)
        seat = Seat(plan, state, noise, {})
        saved = self.waiting.get(plan.name, {})
        if "model" in saved:
            with self.saver.fitting():
                _restore(state, saved)
                seat.noise.set_state(saved["noise"])
                seat.slot = saved["optimizers"]
        return seat

    def _train_stack(self, seats: list[Seat]) -> None:
        self._join(seats)
        work = seats[0].plan.multiplications * len(seats)
        with devices.threads_for(work, seats[0].plan.loader.device):
            while self.seats:
                self._epoch()
                self._leave([seat for seat in self.seats if _is_over(seat)])

    def _join(self, seats: list[Seat]) -> None:
        """Stack these members; their optimisers' states too."""
        self.seats, self.rows = seats, InStep([seat.plan.loader for seat in seats])
        augments = [seat.plan.augment for seat in seats]
        alike = all(_equal(augment, augments[0]) for augment in augments)
        self.augmented_at_once = alike and takes_parts(augments[0])
        models, plan = [seat.plan.model for seat in seats], seats[0].plan
        self.stack = Stack(models, plan.objective, plan.config, self.passes)
        self.optimizers = Optimizers(plan.model, ("",), plan.groups, plan.config)
        self.optimizers.stacked(self.stack.by_weight)
        if seats[0].slot:
            with self.saver.fitting():
                self.optimizers.load_state_dict(joined([seat.slot for seat in seats]))
        self.ensembles: dict[str, Ensemble | None] = {}  # by what they are asked for
        self.average = _stacked_average([seat.state.ema for seat in seats], self.stack.module, plan)
        columns = [torch.stack(seat.state.losses) for seat in seats if seat.state.losses]
        self.losses = list(torch.stack(columns, dim=1)) if columns else []

    def _leave(self, leaving: Sequence[Seat]) -> None:
        """These members cost no more; the others close ranks."""
        if not leaving:
            return
        for seat in leaving:
            if seat.plan.name not in self.failed:
                self.waiting[seat.plan.name] = self._state(self.seats.index(seat))
        staying = [seat for seat in self.seats if seat not in leaving]
        for seat in staying:
            seat.slot = part(self.optimizers.state_dict(), self.seats.index(seat))
        self.seats = []
        if staying:
            self._join(staying)

    def _epoch(self) -> None:
        """What is left of a pass of each member over its rows, and what follows it."""
        began, before = time.monotonic(), self.seats[0].state.batch
        if not before:
            for seat in self.seats:
                seed_draws(seat.plan, seat.state)
        with signals.deferred():
            self._rounds()
        self._stop_burst()
        if not self.seats:
            return
        losses = torch.stack(self.losses).mean(0).tolist()
        seconds = max(time.monotonic() - began, 1e-9)
        self._watch()
        for seat, loss, answers in zip(self.seats, losses, self._scored(), strict=True):
            plan, state = seat.plan, seat.state
            rows = (state.batch - before) * plan.loader.batch_size
            plan.after_epoch(state.epoch + 1, answers, figures(plan, loss, rows / seconds))
        with signals.deferred():
            for seat, loss in zip(self.seats, losses, strict=True):
                seat.state.close(loss)
            self.losses = []
            self.saver.stepped(self.states)

    def _rounds(self) -> None:
        """The rounds that are left of an epoch: a step of every member each."""
        plan, epoch = self.seats[0].plan, self.seats[0].state.epoch
        generators = [seat.noise for seat in self.seats]
        for number, batch in enumerate(self._batches(), start=self.seats[0].state.batch + 1):
            self.losses.append(self.stack.backward(batch, generators, self.optimizers.scale))
            if not plan.steps_after(number):
                continue
            self.optimizers.set_rate(plan.rate(epoch, number))
            self.optimizers.step([""])
            self.optimizers.finish()
            for seat in self.seats:
                seat.state.batch = number
            if self.average is not None:
                self.average.update_parameters(self.stack.module)
            self.saver.stepped(self.states)
            if signals.pending():
                return

    def _batches(self) -> Iterator[Batch]:
        """The batches that are left of an epoch, each part led by an axis of members."""
        epoch, first = self.seats[0].state.epoch, self.seats[0].state.batch
        if self._at_once:
            parts = self.rows.whole(epoch)
            yield from ([part[number] for part in parts] for number in range(first, len(parts[0])))
            return
        for batch in self.rows.batches(epoch, first):
            yield self._seen(batch)

    def _seen(self, batch: Batch) -> Batch:
        """The batch (members · rows, ...) as training sees it, each part (members, rows, ...)."""
        plan, count = self.seats[0].plan, len(self.seats)
        draws = [seat.state.draws for seat in self.seats]
        if self.augmented_at_once:
            changed = seen(plan, batch, draws)
            return rebuilt(changed, [part.unflatten(0, (count, -1)) for part in leaves(changed)])
        each = zip(self.seats, *(part.chunk(count) for part in batch), strict=True)
        return together([seen(seat.plan, own, seat.state.draws) for seat, *own in each])

    # --- what is asked after an epoch -----------------------------------------------------------

    def _watch(self) -> None:
        """Note each member's loss on the rows that it watches."""
        if not self.seats[0].plan.watches:
            return
        loaders = [seat.plan.watched for seat in self.seats if seat.plan.watched is not None]
        losses = self._asked("watched", loaders, lambda ensemble: ensemble.means(loaders))
        if losses is None:
            for seat in self.seats:
                watch(seat.plan, seat.state)
            return
        for seat, loss in zip(self.seats, losses, strict=True):
            note_watched(seat.state, loss)

    def _scored(self) -> Sequence[np.ndarray | None]:
        """Each member's answers to the fold that is held out of it, where they are asked for."""

        def ask(ensemble: Ensemble) -> list[np.ndarray]:
            batches = zip(*ensemble.answers(loaders, (original,)), strict=True)
            return [concatenated(own)[0] for own in batches]

        wanted = [seat.plan.scores(seat.state.epoch + 1) for seat in self.seats]
        loaders = [seat.plan.scored for seat in self.seats if seat.plan.scored is not None]
        answers = self._asked("scored", loaders, ask) if all(wanted) else None
        if answers is None:
            return [scored_answers(seat.plan, seat.state) for seat in self.seats]
        return answers

    def _asked(
        self, purpose: str, loaders: Sequence[Loader], ask: Callable[[Ensemble], list[T]]
    ) -> list[T] | None:
        """What all members say as one; None where they are to be asked one by one."""
        try:
            if purpose not in self.ensembles:
                self.ensembles[purpose] = self._ensemble(purpose, loaders)
            ensemble = self.ensembles[purpose]
            return None if ensemble is None else ask(ensemble)
        except Unstackable as reason:
            why = str(reason)
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            why = "there is not memory for all"
        _log.warning("engine: asks its members one by one: %s", why)
        self.ensembles[purpose] = None
        return None

    def _ensemble(self, purpose: str, loaders: Sequence[Loader]) -> Ensemble:
        """All members as one; Unstackable where they would not answer as each does alone."""
        plan = self.seats[0].plan
        function = plan.objective.predict if purpose == "scored" else partial(_loss, plan.objective)
        module = self.stack.module if self.average is None else self.average.module
        made = Ensemble(
            [seat.state.answering for seat in self.seats],
            named_tensors(module),
            function,
            plan.config,
            calls=plan.epochs * len(loaders[0]),
        )
        made.demand_right(next(abreast(loaders)))
        return made

    @property
    def _at_once(self) -> bool:
        """Whether a whole epoch is gathered at once: nothing is drawn, and it is small."""
        plan = self.seats[0].plan
        if plan.augment is not nothing or plan.config.mixup:
            return False
        size = self.rows.nbytes
        return size is not None and size <= _AT_ONCE

    @torch.no_grad()
    def _sound(self) -> Tensor:
        """(seats,) whether losses and weights of each are finite."""
        answering = self.stack.module if self.average is None else self.average.module
        weights = list(answering.parameters())
        sums = [weight.reshape(len(weight), -1).sum(1).float() for weight in weights]
        found = torch.stack(sums).sum(0).isfinite()
        return found & torch.stack(self.losses).isfinite().all(0) if self.losses else found

    def _stop_burst(self) -> None:
        """Let the members go whose numbers have burst; their last sound states stay saved."""
        burst = (~self._sound()).nonzero().flatten().tolist()
        if not burst:
            return
        saved = self.saver.load() or {}
        losses = torch.stack(self.losses)
        for place in burst:
            seat = self.seats[place]
            name, told = seat.plan.name, diverged(seat.plan, seat.state, losses[:, place])
            self.failed[name] = str(told)
            self.waiting[name] = {**saved.get(name, {}), "failed": str(told)}
        for place, seat in enumerate(self.seats):
            seat.state.losses = list(losses[:, place])
        self._leave([self.seats[place] for place in burst])

    # --- what follows ---------------------------------------------------------------------------

    def conclude(self) -> list[tuple[Plan, Trained]]:
        """The second-order phase of all members, and what each has become."""
        states = {name: self._answering(plan) for name, plan in self.plans.items()
                  if name not in self.failed}  # fmt: skip
        if states and next(iter(self.plans.values())).config.polish:
            for name, state in states.items():
                self.waiting[name] = {**self.waiting[name], "progress": state.progress}
            some = [(self.plans[name], state) for name, state in states.items()]
            polish_answering(some, lambda: self.saver.stepped(self.states))
        return [(self.plans[name], self._ended(name, state)) for name, state in states.items()]

    def _answering(self, plan: Plan) -> State:
        """Where a member stands at the end of the first phase, its weights no slices any more."""
        detach(plan.model)
        state = start(plan)
        with self.saver.fitting():
            _restore(state, self.waiting[plan.name])
        if state.best:
            state.answering.load_state_dict(state.best)
        return state

    def _ended(self, name: str, state: State) -> Trained:
        ended = {**self.waiting[name], "answering": state.answering.state_dict()}
        return Trained(state.answering, checkpoint.digest(ended), state.history)

    # --- what a checkpoint holds ----------------------------------------------------------------

    def states(self) -> Members | None:
        """The states of all members; None while numbers have burst: the last sound ones stay."""
        if self.seats and not bool(self._sound().all()):
            return None
        seated = {seat.plan.name: self._state(place) for place, seat in enumerate(self.seats)}
        return {**self.waiting, **seated}

    def _state(self, place: int) -> dict[str, Any]:
        seat = self.seats[place]
        state = seat.state
        losses = [loss[place] for loss in self.losses]
        return {
            "model": _copied(state.model.state_dict()),
            "optimizers": part(self.optimizers.state_dict(), place),
            "ema": {} if state.ema is None else _copied(state.ema.state_dict()),
            "noise": seat.noise.get_state(),
            "draws": state.draws.get_state(),
            "losses": torch.stack(losses) if losses else torch.zeros(0),
            "progress": state.progress,
        }


def _loss(objective: Objective, model: nn.Module, batch: Batch) -> Tensor:
    return total(objective.loss(model, batch))


def _equal(first: Any, second: Any) -> bool:
    """Whether two things are equal; not where they cannot tell, as arrays cannot."""
    try:
        return first is second or bool(first == second)
    except (RuntimeError, ValueError):
        return False


def _is_over(seat: Seat) -> bool:
    return seat.state.epoch >= seat.plan.epochs or out_of_patience(seat.plan, seat.state)


def _restore(state: State, saved: Mapping[str, Any]) -> None:
    """Weights, averages, draws and progress as they were saved."""
    state.model.load_state_dict(saved["model"])
    if state.ema is not None:
        state.ema.load_state_dict(saved["ema"])
    state.draws.set_state(saved["draws"])
    state.losses = list(saved["losses"].to(state.draws.device))
    state.progress = saved["progress"]


def _stacked_average(
    averages: Sequence[AveragedModel | None], module: nn.Module, plan: Plan
) -> AveragedModel | None:
    """The averages of all members as one, of which theirs become slices."""
    each = [average for average in averages if average is not None]
    stacked = averaged(module, plan.config)
    if stacked is None:
        return None
    detached = [average.module for average in each]
    attach(stacked.module, detached)
    stacked.n_averaged.copy_(each[0].n_averaged)
    for average in each:
        average.n_averaged = stacked.n_averaged
    return stacked


# --- states of stacked optimisers ---------------------------------------------------------------

_SHARED = ("step",)  # tensors that all models of a stack have in common


def part(state: Any, place: int, name: Any = None) -> Any:
    """The state of one model in that of stacked optimisers."""
    if isinstance(state, Tensor):
        return (state if name in _SHARED else state[place]).clone()
    if isinstance(state, Mapping):
        return {key: part(value, place, key) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(part(value, place) for value in state)
    return state


def joined(states: Sequence[Any], name: Any = None) -> Any:
    """The state of stacked optimisers from that of each model's: undoes `part`."""
    first = states[0]
    if isinstance(first, Tensor):
        return first.clone() if name in _SHARED else torch.stack(list(states))
    if isinstance(first, Mapping):
        return {key: joined([state[key] for state in states], key) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(joined(list(values)) for values in zip(*states, strict=True))
    return first


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without views: saving one would save the whole stack that it is a slice of."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}
