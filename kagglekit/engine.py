"""Trains the members of a run: together where that is right and faster, as is decided once.

The decision is written down before the first step, and kept by every resume: see `choices`.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from . import checkpoint, choices, devices, lanes, trial
from .choices import Choice
from .cohort import pace, train_cohort
from .config import NetworkConfig
from .errors import DivergedError
from .lanes import Lanes
from .objectives import Batch
from .recipe import Member, demand_none, one_by_one
from .stacking import Passes, Unstackable, demand_own_draws, demand_stackable, together
from .stages import stage
from .train import BatchTooLargeError, Plan, Saver, Trained, demand_possible, epoch_seed, train

_FEW_STEPS = 200  # of a stack, or of all members in lanes: a trial takes longer than it saves
_SHORT = 8.0  # seconds of all training one by one that are over before a trial has paid
_SHORTEST = 2.0  # the same of many steps: they are quick then, and so is a trial
_MANY_STEPS = 3_000  # of all members
_BUSY_STEP = 0.02  # seconds of convolutions from which they keep a CPU busy by themselves
_LONG_STEP = 0.3  # seconds of a step alone from which a stack's trial costs more than it finds out
_GAIN = 0.9  # a round must take less than this share of the time that it takes one by one
_LANES_A_GPU = 8  # at most: each has its own activations, and a GPU is busy before

_log = logging.getLogger("kagglekit")


@dataclass(frozen=True)
class Work:
    """What a recipe does for one member: plan its training, and keep what was learned."""

    plan: Callable[[Member], Plan]
    keep: Callable[[Member, Trained], None]
    finished: Callable[[Path], bool]  # by the folder of a member
    passes: Passes = field(default_factory=dict)  # recorded once for all cohorts of one size
    ready: dict[str, Plan] = field(default_factory=dict)  # planned for a decision, and not used up
    # by the names of a stack, those of its members that an earlier session has trained
    waiting: dict[tuple[str, ...], list[Member]] = field(default_factory=dict)


def fit(members: Sequence[Member], work: Work, config: NetworkConfig) -> None:
    """Train the members that are not finished, as `engine` says; all that are, are then done.

    `done` is called for each, but once for those of a stack.

    Raises DivergedError, when the others are finished, for those whose numbers burst.
    """
    trained = [member for member in members if work.finished(member.folder)]
    left = [member for member in members if not work.finished(member.folder)]
    for member in trained:
        checkpoint.remove(solo_checkpoint(member))
        _end_cohorts(member.folder.parent, work)
    _answer(trained, left, work)
    failed: dict[str, str] = {}
    for choice, given in _chosen(left, work, config):
        failed |= _trained(choice, given, work)
    for some in work.waiting.values():  # those whose company could not be trained after all
        some[0].done(*some[1:])
    demand_none(failed)


def _answer(trained: Sequence[Member], left: Sequence[Member], work: Work) -> None:
    """Let members answer that were trained in an earlier session, as they would have then.

    Those of a stack together; where others of it are still to be trained, they wait for them.
    """
    stacks: dict[Choice, list[Member]] = {}
    for member in trained:
        choice = choices.of(member.folder.parent, member.name)
        if choice is not None and choice.engine == "stacked":
            stacks.setdefault(choice, []).append(member)
            continue
        with lanes.threads(choice.threads if choice else 0):
            member.done()
    for choice, some in stacks.items():
        if any(member.name in choice.members for member in left):
            work.waiting[choice.members] = some
        else:
            some[0].done(*some[1:])


def _trained(choice: Choice, members: Sequence[Member], work: Work) -> dict[str, str]:
    """Train the members as chosen; those whose numbers burst, and why."""
    if choice.engine == "stacked":
        return _together(choice, members, work)
    if choice.engine == "streams":
        return _side_by_side(choice, members, work)
    return _one_by_one(choice, members, work)


def solo_checkpoint(member: Member) -> Path:
    """Where the state of a member is kept that is in no stack."""
    return member.folder / "checkpoint.bin"


def _one_by_one(choice: Choice, members: Sequence[Member], work: Work) -> dict[str, str]:
    failed: dict[str, str] = {}

    def fit_one(member: Member) -> None:
        plan = work.ready.pop(member.name, None) or work.plan(member)
        try:
            trained = train(replace(plan, micro_batches=choice.micro_batches))
        except DivergedError as error:
            failed[member.name] = str(error)
            raise
        work.keep(member, trained)
        checkpoint.remove(solo_checkpoint(member))

    try:
        one_by_one(members, fit_one)
    except DivergedError:
        return failed
    except BatchTooLargeError:  # what it holds of the step has to go before the next is tried
        pass
    else:
        return {}
    run = members[0].folder.parent
    ended = [name for name in choice.members if name in failed or work.finished(run / name)]
    left = [member for member in members if member.name not in failed]
    return failed | _otherwise(choice, choice.in_parts(ended), left, work)


def _side_by_side(choice: Choice, members: Sequence[Member], work: Work) -> dict[str, str]:
    """Train and answer some members at a time, in the lanes of the choice."""
    failed: dict[str, str] = {}

    def fit_one(member: Member) -> None:
        with stage("train"):
            try:
                work.keep(member, train(replace(work.plan(member), beside=True)))
            except DivergedError as error:
                failed[member.name] = str(error)
                return
            checkpoint.remove(solo_checkpoint(member))
            member.done()

    try:
        with devices.reproducible():
            jobs = [partial(fit_one, member) for member in members]
            lanes.run(jobs, choice.in_lanes, devices.device())
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
    else:
        return failed
    left = [member for member in members if member.name not in failed]
    changed = choice.halved()
    return failed | _otherwise(choice, changed, left, work)


def _together(choice: Choice, members: Sequence[Member], work: Work) -> dict[str, str]:
    """Train a cohort; one that does not fit in memory is halved, and begun again."""
    run = members[0].folder.parent
    path, by_name = choice.checkpoint(run), {member.name: member for member in members}
    plans = [replace(work.plan(member), checkpoint=path) for member in members]

    def finish(some: Sequence[tuple[Plan, Trained]]) -> None:
        for plan, trained in some:
            work.keep(by_name[plan.name], trained)
        _end_cohorts(run, work)  # before they answer: afterwards nobody might come here again
        ended = [*work.waiting.pop(choice.members, []), *(by_name[plan.name] for plan, _ in some)]
        first, *others = sorted(ended, key=lambda member: choice.members.index(member.name))
        first.done(*others)

    saver = Saver(path, plans[0].stamp.of(", ".join(choice.members)), plans[0].config)
    try:
        if plans[0].stamp.forced:  # the source may be another than that which was compared
            _demand_right(plans, work.passes)
        return train_cohort(plans, saver, finish, work.passes)
    except Unstackable as reason:
        changed = [Choice("solo", choice.members, str(reason))]
    except RuntimeError as error:
        # where all are kept, it ended in what follows their training
        kept = all(work.finished(member.folder) for member in members)
        if not devices.is_out_of_memory(error) or kept:
            raise
        changed = choice.halved()
        if len(members) < 2:
            why = "stacked it took more memory than there is"
            changed = [Choice("solo", choice.members, why)]
    del plans
    checkpoint.remove(path)
    return _otherwise(choice, changed, members, work)


def _otherwise(
    choice: Choice, changed: Sequence[Choice], members: Sequence[Member], work: Work
) -> dict[str, str]:
    """Go on in another way with those of the members that are not finished."""
    choices.change(members[0].folder.parent, choice, changed)
    left = [member for member in members if not work.finished(member.folder)]
    given = [(part, [m for m in left if m.name in part.members]) for part in changed]
    given = [(part, some) for part, some in given if some]
    _log.warning("engine: %s", "; ".join(str(part) for part, _ in given))
    failed: dict[str, str] = {}
    for part, some in given:
        failed |= _trained(part, some, work)
    return failed


def _end_cohorts(run: Path, work: Work) -> None:
    """Remove the checkpoints of cohorts that are finished."""
    for choice in choices.recorded(run):
        if choice.engine == "stacked" and all(work.finished(run / n) for n in choice.members):
            checkpoint.remove(choice.checkpoint(run))


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
    found = choices.recorded(run)
    known = {name for choice in found for name in choice.members}
    new = [member for member in members if member.name not in known]
    if new:
        made = _remembered(run, new, work, config)
        found += made
        choices.write(run, found)  # before the first step: a trial is not to be repeated
        if len(new) > 1:
            _log.warning("engine: %s", "; ".join(map(str, made)))
    else:
        _say_kept(found, members, config)
    given = [(choice, [m for m in members if m.name in choice.members]) for choice in found]
    return [(choice, some) for choice, some in given if some]


def _remembered(
    run: Path, members: Sequence[Member], work: Work, config: NetworkConfig
) -> list[Choice]:
    """What is decided now, or was by an earlier trial."""
    names = [member.name for member in members]
    if config.engine != "auto" or len(members) < 2:
        return _decided(members, work, config)
    known = choices.remembered(run, names)
    if known is not None:
        return known
    made = _decided(members, work, config)
    choices.remember(run, names, made)
    return made


def _say_kept(found: Sequence[Choice], members: Sequence[Member], config: NetworkConfig) -> None:
    names = {member.name for member in members}
    kept = {choice.engine for choice in found if names & {*choice.members}}
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
    demand_possible(first)
    try:
        _demand_several(first, len(members))
    except Unstackable as reason:
        work.ready[first.name] = first  # a large model takes a while to build
        return [Choice("solo", names, str(reason))]
    try:
        plans = [first, *map(work.plan, members[1:])]
        return _decided_on(plans, work.passes)
    except Unstackable as reason:
        return [Choice("solo", names, str(reason))]
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        return [Choice("solo", names, "there is not memory enough for two")]


def _demand_several(plan: Plan, count: int) -> None:
    """Raise Unstackable for what has to be, or better is, trained one by one."""
    if plan.loader.resident is None:
        raise Unstackable("rows are streamed")
    if plan.config.engine == "auto":
        _demand_steps(count * _steps(plan))


def _demand_steps(steps: int) -> None:
    if steps < _FEW_STEPS:
        raise Unstackable(f"{steps} steps are too few to gain anything")


def _steps(plan: Plan) -> int:
    return plan.epochs * plan.steps_per_epoch


def _decided_on(plans: Sequence[Plan], passes: Passes) -> list[Choice]:
    """Stacked, side by side, or one by one: what is asked for, or else the fastest that is right.

    Raises Unstackable where that is one by one for all.
    """
    wanted, most = plans[0].config.engine, trial.most_members(plans[0])
    if wanted == "auto":
        return _fastest(plans, passes, most)
    if wanted == "streams":
        _demand_apart(plans[0])
        return _in_lanes(plans, _lanes(plans, most, least=2), "engine=streams")
    made = []
    for group in _groups(plans, most):
        try:
            made += _stacked(group, passes, lambda group, batch: "engine=stacked")
        except Unstackable as reason:
            made.append(Choice("solo", _names(group), str(reason)))
    return made


def _fastest(plans: Sequence[Plan], passes: Passes, most: int) -> list[Choice]:
    """What trials say: each group stacked, or else all others side by side, or one by one."""
    first = plans[0]
    one = trial.alone(first)
    with devices.threads_for(first.multiplications, first.loader.device):
        step = trial.seconds(one, first.loader.device)
    steps = len(plans) * _steps(first)
    whole = step * steps
    if whole < (_SHORTEST if steps >= _MANY_STEPS else _SHORT):
        raise Unstackable(f"that takes about {_brief(whole)}, too little to gain anything")
    share, beside = _beside(plans, one, most)

    def why_stacked(group: Sequence[Plan], batch: Batch) -> str:
        _demand_steps(_steps(first))
        cpu = first.loader.device.type == "cpu"
        if step > (_BUSY_STEP if cpu and math.isinf(first.multiplications) else _LONG_STEP):
            raise Unstackable(f"a step takes {_brief(step)} by itself")
        return _demand_faster(group, (one, batch), passes, min(share, _GAIN))

    made: list[Choice] = []
    apart: list[Plan] = []
    why = ""
    for group in _groups(plans, most):
        try:
            made += _stacked(group, passes, why_stacked)
        except Unstackable as reason:
            apart += group
            why = str(reason)
    if share <= _GAIN and len(apart) > 1:
        return [*made, *_in_lanes(apart, _lanes(apart, most), beside)]
    if apart:
        made.append(Choice("solo", _names(apart), "; ".join(filter(None, [why, beside]))))
    return made


def _names(plans: Sequence[Plan]) -> tuple[str, ...]:
    return tuple(plan.name for plan in plans)


# --- side by side -------------------------------------------------------------------------------


def _demand_apart(plan: Plan) -> None:
    """Raise Unstackable for a member that others would disturb."""
    device = plan.loader.device
    if device.type not in ("cpu", "cuda"):
        raise Unstackable("an Apple GPU trains one at a time")
    twin, batch = copy.deepcopy(plan.model).train(), trial.first_batch(plan)
    demand_own_draws(twin, plan.objective, plan.config, batch)


def _beside(plans: Sequence[Plan], one: trial.Step, most: int) -> tuple[float, str]:
    """A round side by side as a share of one by one, and what to say of it; infinite without."""
    given = _lanes(plans, most)
    if given.count < 2:
        return math.inf, ""
    try:
        _demand_apart(plans[0])
    except Unstackable as reason:
        return math.inf, f"it cannot be trained side by side: {reason}"
    apart, joint = trial.compared_in_lanes(plans, one, given)
    return joint / apart, f"a round took {_brief(joint)} side by side, {_brief(apart)} one by one"


def _lanes(plans: Sequence[Plan], most: int, least: int = 1) -> Lanes:
    """As many as have cores of their own, or as a GPU has room for."""
    first = plans[0]
    if first.loader.device.type == "cuda":
        return Lanes(min(len(plans), most, _LANES_A_GPU * torch.cuda.device_count()), 0)
    if first.loader.device.type != "cpu":
        return Lanes(1, 0)
    cores = torch.get_num_threads()
    count = max(min(len(plans), cores, most), least)
    alone = devices.wants_one_thread(first.multiplications, first.loader.device)
    return Lanes(count, 1 if alone else max(1, cores // count))


def _in_lanes(plans: Sequence[Plan], given: Lanes, why: str) -> list[Choice]:
    """Full rounds of lanes; those that are left over share the cores among themselves."""
    names, rest = _names(plans), len(plans) % given.count
    cores = torch.get_num_threads()
    if plans[0].loader.device.type != "cpu" or cores // max(rest, 1) <= given.threads:
        rest = 0
    if devices.wants_one_thread(plans[0].multiplications, plans[0].loader.device):
        rest = 0
    full = Choice("streams", names[: len(names) - rest], why, given.count, given.threads)
    if not rest:
        return [full]
    if rest == 1:
        return [full, Choice("solo", names[-1:], "all cores are left to it")]
    return [full, Choice("streams", names[-rest:], why, rest, cores // rest)]


# --- stacked ------------------------------------------------------------------------------------


def _groups(plans: Sequence[Plan], most: int) -> list[list[Plan]]:
    """Members that can be in lock step, in groups of about one size that are not too large."""
    groups = []
    for _, group in groupby(sorted(plans, key=pace), pace):  # sorting keeps the order of equals
        same = list(group)
        size = math.ceil(len(same) / math.ceil(len(same) / most))
        groups += [same[place : place + size] for place in range(0, len(same), size)]
    return groups


def _stacked(
    plans: Sequence[Plan], passes: Passes, why: Callable[[Sequence[Plan], Batch], str]
) -> list[Choice]:
    """One group as one stack, or as two where memory does not hold it.

    Raises Unstackable unless that is right, and `why` gives a reason for it.
    """
    first = plans[0]
    if len(plans) == 1:
        raise Unstackable("no other member has batches like its")
    demand_stackable(first.model, first.objective, first.config, first.loader.device)
    try:
        batch = together(list(map(trial.first_batch, plans)))
        reason = why(plans, batch)
        _demand_right(plans, passes)
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        half = math.ceil(len(plans) / 2)
        return [*_stacked(plans[:half], passes, why), *_stacked(plans[half:], passes, why)]
    return [Choice("stacked", _names(plans), reason)]


def _demand_right(plans: Sequence[Plan], passes: Passes) -> None:
    """Raise Unstackable unless each member has in a stack what it has alone; on copies."""
    seeds = [epoch_seed(plan, 0) for plan in plans]
    batch = together(list(map(trial.first_batch, plans)))
    trial.copied_stack(plans, passes).demand_right(batch, seeds)


def _demand_faster(
    plans: Sequence[Plan], given: tuple[trial.Step, Batch], passes: Passes, share: float
) -> str:
    """Why stacked; Unstackable where a round takes more than a share of one by one."""
    one, batch = given
    together = trial.stacked(plans, batch, passes)
    apart, joint = trial.compared(plans[0], one, together, len(plans))
    told = f"a round took {_brief(joint)} stacked, {_brief(apart)} one by one"
    if joint > share * apart:
        raise Unstackable(told)
    return told


def _brief(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
