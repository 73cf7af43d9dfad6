"""Which members train together, and how: decided once, written down, and kept by every resume.

| engine | members are trained |
|---|---|
| stacked | in lock step: their weights stacked, one forward and backward pass for all |
| solo | one after the other |
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint, devices, files, folders
from .cohort import pace, train_cohort
from .config import NetworkConfig
from .errors import DivergedError, UserError
from .objectives import Batch
from .optimizers import Optimizers
from .randomness import generator
from .recipe import Member, demand_none, one_by_one
from .stacking import Passes, Stack, Unstackable, demand_stackable, together
from .train import Plan, Saver, Trained, demand_possible, epoch_seed, learn, seen, start, train

RECORD = "engine.json"  # in the folder of the run

_FEW_STEPS = 200  # of a member: recording a pass and the trial would take longer than they save
_SHORT = 20.0  # seconds of all training one by one that are over before a trial has paid
_LONG_STEP = 0.3  # seconds of a step alone from which a trial costs more than it could find out
_GAIN = 0.9  # a round must take less than this share of the time that it takes one by one
_ROUNDS, _REPEATS = 3, 4  # of the trial
_COPIES = 6  # of the weights: gradients, two moments, an average, and what a checkpoint copies

_log = logging.getLogger("kagglekit")


@dataclass(frozen=True)
class Choice:
    """Members that are trained by one engine: together where it is `stacked`."""

    engine: str
    members: tuple[str, ...]
    why: str

    def checkpoint(self, run: Path) -> Path:
        """Where the states of a stacked cohort are kept."""
        return run / f"cohort-{self.members[0]}.bin"


@dataclass(frozen=True)
class Work:
    """What a recipe does for one member: plan its training, and keep what was learned."""

    plan: Callable[[Member], Plan]
    keep: Callable[[Member, Trained], None]
    finished: Callable[[Path], bool]  # by the folder of a member
    passes: Passes = field(default_factory=dict)  # recorded once for all cohorts of one size


def fit(members: Sequence[Member], work: Work, config: NetworkConfig) -> None:
    """Train the members that are not finished, as `engine` says; `done` is called for each.

    Raises DivergedError, when the others are finished, for those whose numbers burst.
    """
    left = []
    for member in members:
        if work.finished(member.folder):
            checkpoint.remove(solo_checkpoint(member))
            _end_cohorts(member.folder.parent, work)
            member.done()
        else:
            left.append(member)
    failed: dict[str, str] = {}
    for choice, given in _chosen(left, work, config):
        failed |= _trained(choice, given, work)
    demand_none(failed)


def _trained(choice: Choice, members: Sequence[Member], work: Work) -> dict[str, str]:
    """Train the members as chosen; those whose numbers burst, and why."""
    if choice.engine == "stacked":
        return _together(choice, members, work)
    return _one_by_one(members, work)


def solo_checkpoint(member: Member) -> Path:
    """Where the state of a member that is trained alone is kept."""
    return member.folder / "checkpoint.bin"


def _one_by_one(members: Sequence[Member], work: Work) -> dict[str, str]:
    def fit_one(member: Member) -> None:
        work.keep(member, train(work.plan(member)))
        checkpoint.remove(solo_checkpoint(member))

    try:
        one_by_one(members, fit_one)
    except DivergedError as error:
        return error.members
    return {}


def _together(choice: Choice, members: Sequence[Member], work: Work) -> dict[str, str]:
    """Train a cohort; one that does not fit in memory is halved, and begun again."""
    run = members[0].folder.parent
    path, by_name = choice.checkpoint(run), {member.name: member for member in members}
    plans = [replace(work.plan(member), checkpoint=path) for member in members]

    def finish(plan: Plan, trained: Trained) -> None:
        member = by_name[plan.name]
        work.keep(member, trained)
        _end_cohorts(run, work)  # before it is answered: afterwards nobody might come here again
        member.done()

    saver = Saver(path, plans[0].stamp.of(", ".join(choice.members)), plans[0].config)
    try:
        if plans[0].stamp.forced:  # the source may be another than that which was compared
            _demand_right(plans, together(list(map(_first_batch, plans))), work.passes)
        return train_cohort(plans, saver, finish, work.passes)
    except Unstackable as reason:
        changed = [replace(choice, engine="solo", why=str(reason))]
    except RuntimeError as error:
        if not devices.is_out_of_memory(error) or len(members) < 2:
            raise
        changed = _halves(choice)
    del plans
    _log.warning("engine: %s", "; ".join(map(_told, changed)))
    checkpoint.remove(path)
    _replace(run, choice, changed)
    failed: dict[str, str] = {}
    for part in changed:
        given = [member for member in members if member.name in part.members]
        given = [member for member in given if not work.finished(member.folder)]
        if given:
            failed |= _trained(part, given, work)
    return failed


def _halves(choice: Choice) -> list[Choice]:
    half = math.ceil(len(choice.members) / 2)
    why = f"{len(choice.members)} together took more memory than there is"
    parts = (choice.members[:half], choice.members[half:])
    return [Choice("stacked" if len(part) > 1 else "solo", part, why) for part in parts]


# --- what was decided ---------------------------------------------------------------------------


def _chosen(
    members: Sequence[Member], work: Work, config: NetworkConfig
) -> list[tuple[Choice, list[Member]]]:
    """The choices that concern `members`, with those of theirs; new members are decided on."""
    if not members:
        return []
    run = members[0].folder.parent
    if any(member.folder != run / member.name for member in members):
        return [(Choice("solo", tuple(m.name for m in members), "no folder of a run"), [*members])]
    choices = recorded(run)
    known = {name for choice in choices for name in choice.members}
    new = [member for member in members if member.name not in known]
    if new:
        made = _remembered(run, new, work, config)
        choices += made
        _write(run, choices)  # before the first step: a trial is not to be repeated
        if len(new) > 1:
            _log.warning("engine: %s", "; ".join(map(_told, made)))
    else:
        _say_kept(choices, members, config)
    found = [(choice, [m for m in members if m.name in choice.members]) for choice in choices]
    return [(choice, given) for choice, given in found if given]


def recorded(run: Path) -> list[Choice]:
    """The choices of a run so far.

    Raises UserError for a record that is not as it was written.
    """
    path = run / RECORD
    if not path.exists():
        return []
    try:
        return _parsed(files.read_json(path)["cohorts"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not as kagglekit writes it: restore a copy, or train --fresh"
        ) from error


def _parsed(told: Any) -> list[Choice]:
    """Choices from JSON; KeyError or TypeError for anything else."""
    found = [Choice(one["engine"], tuple(one["members"]), one["why"]) for one in told]
    if not all(isinstance(text, str) for one in found for text in (one.engine, *one.members)):
        raise TypeError("engines and members are texts")
    return found


def _remembered(
    run: Path, members: Sequence[Member], work: Work, config: NetworkConfig
) -> list[Choice]:
    """What a trial decided for the same run and members on this machine, or decides now.

    Trials are timed: without this, the same command could leave other last bits where it begins
    anew while the machine is busier.
    """
    if config.engine != "auto" or len(members) < 2:
        return _decided(members, work, config)
    path = folders.cache() / "engines" / f"{run.name}.json"
    known, who = {}, " ".join(member.name for member in members)
    with suppress(UserError, KeyError, TypeError):  # a cache: what is damaged is made anew
        known = dict(files.read_json(path)) if path.exists() else {}
        return _parsed(known[who])
    made = _decided(members, work, config)
    with suppress(UserError):
        files.write_json(path, {**known, who: [asdict(choice) for choice in made]})
    return made


def _write(run: Path, choices: Sequence[Choice]) -> None:
    files.write_json(run / RECORD, {"cohorts": [asdict(choice) for choice in choices]})


def _replace(run: Path, choice: Choice, by: Sequence[Choice]) -> None:
    others = [other for other in recorded(run) if other.members != choice.members]
    _write(run, [*others, *by])


def _end_cohorts(run: Path, work: Work) -> None:
    """Remove the checkpoints of cohorts that are finished."""
    for choice in recorded(run):
        if choice.engine == "stacked" and all(work.finished(run / n) for n in choice.members):
            checkpoint.remove(choice.checkpoint(run))


def _told(choice: Choice) -> str:
    count = len(choice.members)
    who = f"{count} members train" if count > 1 else f"{choice.members[0]} trains"
    how = "stacked" if choice.engine == "stacked" else "one by one" if count > 1 else "alone"
    return f"{who} {how}: {choice.why}"


def _say_kept(choices: Sequence[Choice], members: Sequence[Member], config: NetworkConfig) -> None:
    names = {member.name for member in members}
    kept = {choice.engine for choice in choices if names & {*choice.members}}
    if config.engine != "auto" and kept - {config.engine}:
        _log.warning("engine: goes on %s, as the run was begun", " and ".join(sorted(kept)))


# --- the decision -------------------------------------------------------------------------------


def _decided(members: Sequence[Member], work: Work, config: NetworkConfig) -> list[Choice]:
    names = tuple(member.name for member in members)
    if config.engine == "solo":
        return [Choice("solo", names, "engine=solo")]
    if len(members) == 1:
        return [Choice("solo", names, "it is the only one")]
    first = work.plan(members[0])
    try:
        _demand_worthwhile(first)
        most = _most_members(first)
        plans = [first, *map(work.plan, members[1:])]
        return [
            choice for group in _groups(plans, most) for choice in _decided_on(group, work.passes)
        ]
    except Unstackable as reason:
        return [Choice("solo", names, str(reason))]
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        return [Choice("solo", names, "there is not memory enough for two")]


def _demand_worthwhile(plan: Plan) -> None:
    """Raise Unstackable for what needs no trial, UserError for what cannot be trained at all."""
    demand_possible(plan)
    demand_stackable(plan.model, plan.objective, plan.config, plan.loader.device)
    if plan.loader.resident is None:
        raise Unstackable("rows are streamed")
    steps = plan.epochs * plan.steps_per_epoch
    if plan.config.engine == "auto" and steps < _FEW_STEPS:
        raise Unstackable(f"{steps} steps are too few to gain anything")


def _groups(plans: Sequence[Plan], most: int) -> list[list[Plan]]:
    """Members that can be in lock step, in groups of about one size that are not too large."""
    groups = []
    for _, group in groupby(sorted(plans, key=pace), pace):  # sorting keeps the order of equals
        same = list(group)
        size = math.ceil(len(same) / math.ceil(len(same) / most))
        groups += [same[place : place + size] for place in range(0, len(same), size)]
    return groups


def _decided_on(plans: Sequence[Plan], passes: Passes) -> list[Choice]:
    """One group: stacked where that is right and, if asked, faster."""
    names = tuple(plan.name for plan in plans)
    if len(plans) == 1:
        return [Choice("solo", names, "no other member has batches like its")]
    config = plans[0].config
    try:
        batch = together([_first_batch(plan) for plan in plans])
        why = _demand_faster(plans, batch, passes) if config.engine == "auto" else "engine=stacked"
        _demand_right(plans, batch, passes)
    except Unstackable as reason:
        return [Choice("solo", names, str(reason))]
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        half = math.ceil(len(plans) / 2)
        return [*_decided_on(plans[:half], passes), *_decided_on(plans[half:], passes)]
    return [Choice("stacked", names, why)]


def _demand_right(plans: Sequence[Plan], batch: Batch, passes: Passes) -> None:
    """Raise Unstackable unless each member has in a stack what it has alone; on copies."""
    seeds = [epoch_seed(plan, 0) for plan in plans]
    _copied_stack(plans, passes).demand_right(batch, seeds)


def _first_batch(plan: Plan) -> Batch:
    batch = next(plan.loader.batches(0))
    return seen(plan, batch, generator(plan.loader.device, 0))


def _most_members(plan: Plan) -> int:
    """How many members of this kind fit in half of the memory that is free; at least one."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model = copy.deepcopy(plan.model).train()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        devices.autocast(plan.config.precision, plan.loader.device),
    ):
        plan.objective.loss(model, _first_batch(plan))
    weights = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))
    rows = sum(column.nbytes for column in plan.loader.resident or [])
    # what is kept for the backward pass, once more for the gradients that flow through it
    needed = _COPIES * weights + 2 * sum(kept.values()) + rows
    return max(1, int(devices.free_bytes(plan.loader.device) / 2 / max(needed, 1)))


# --- the trial ----------------------------------------------------------------------------------


def _demand_faster(plans: Sequence[Plan], batch: Batch, passes: Passes) -> str:
    """Why stacked; Unstackable where a few rounds, on copies, say that nothing is gained."""
    count, device = len(plans), plans[0].loader.device
    work = plans[0].multiplications
    with devices.threads_for(work, device):
        alone = _alone(plans[0])
        step = _seconds(alone, device, 1)
        if step > _LONG_STEP:
            raise Unstackable(f"a step takes {step:.1f} s by itself")
        whole = step * count * plans[0].epochs * plans[0].steps_per_epoch
        if whole < _SHORT:
            raise Unstackable(f"that takes about {_brief(whole)}, too little to gain anything")
    stacked = _stacked(plans, batch, passes)
    times: list[tuple[float, float]] = []
    for _ in range(_REPEATS):  # in turn, so that a busy machine slows both
        with devices.threads_for(work, device):
            one = _seconds(alone, device, _ROUNDS)
        with devices.threads_for(work * count, device):
            times.append((count * one, _seconds(stacked, device, _ROUNDS)))
    apart, joint = (min(column) for column in zip(*times, strict=True))
    told = f"a round took {_brief(joint)} stacked, {_brief(apart)} one by one"
    if joint > _GAIN * apart:
        raise Unstackable(told)
    return told


def _seconds(step: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Seconds of one step; the first, which warms up, is not counted."""
    step()
    devices.synchronise(device)
    began = time.perf_counter()
    for _ in range(rounds):
        step()
    devices.synchronise(device)
    return (time.perf_counter() - began) / rounds


def _alone(plan: Plan) -> Callable[[], Any]:
    """A training step of a copy of one member."""
    twin = replace(plan, model=copy.deepcopy(plan.model).train())
    state, batch = start(twin), _first_batch(plan)
    return lambda: learn(twin, state.optimizers, twin.model, batch, True)


def _stacked(plans: Sequence[Plan], batch: Batch, passes: Passes) -> Callable[[], Any]:
    """A round of copies of all members."""
    stack, config = _copied_stack(plans, passes), plans[0].config
    optimizers = Optimizers(stack.models[0], ("",), plans[0].groups, config)
    optimizers.stacked(stack.by_weight)
    generators = [torch.Generator() for _ in plans]

    def step() -> None:
        stack.backward(batch, generators)
        optimizers.step([""])

    return step


def _copied_stack(plans: Sequence[Plan], passes: Passes) -> Stack:
    models = [copy.deepcopy(plan.model) for plan in plans]
    return Stack(models, plans[0].objective, plans[0].config, passes)


def _brief(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
