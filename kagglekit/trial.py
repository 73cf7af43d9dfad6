"""What a training step takes, measured on copies of the members: seconds and memory."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import devices, lanes
from .lanes import Lanes
from .objectives import Batch
from .optimizers import Optimizers
from .randomness import generator
from .stacking import Passes, Stack
from .train import Plan, learner, seen, start

Step = Callable[[], Any]

_REPEATS, _LEAST_REPEATS = 4, 2
_LONG = 0.5  # seconds of a comparison after which the least repeats are enough
_LEAST, _MOST_STEPS = 0.02, 30  # seconds that are timed at once, and steps
_COPIES = 6  # of the weights: gradients, two moments, an average, and what a checkpoint copies
_MORE_IN_FP16 = 4  # weights and gradients as matrices, and what a step makes of them


def first_batch(plan: Plan) -> Batch:
    """A batch as training sees it."""
    batch = next(plan.loader.batches(0))
    return seen(plan, batch, generator(plan.loader.device, 0))


def alone(plan: Plan) -> Step:
    """A training step of a copy of one member."""
    twin = replace(plan, model=copy.deepcopy(plan.model).train())
    step, batch = learner(twin, start(twin).optimizers), first_batch(plan)
    return lambda: step(batch, True)


def stacked(plans: Sequence[Plan], batch: Batch, passes: Passes) -> Step:
    """A round of copies of all members, a step of each."""
    stack, config = copied_stack(plans, passes), plans[0].config
    optimizers = Optimizers(stack.models[0], ("",), plans[0].groups, config)
    optimizers.stacked(stack.by_weight)
    generators = [generator(stack.device, 0) for _ in plans]

    def step() -> None:
        stack.backward(batch, generators, optimizers.scale)
        optimizers.step([""])
        optimizers.finish()

    return step


def copied_stack(plans: Sequence[Plan], passes: Passes) -> Stack:
    """A stack of copies of the members' models."""
    models = [copy.deepcopy(plan.model) for plan in plans]
    return Stack(models, plans[0].objective, plans[0].config, passes)


def seconds(step: Step, device: torch.device) -> float:
    """Of one step by itself, after one that warms up."""
    step()
    return _timed(step, device)


def compared(plan: Plan, one: Step, round_of_all: Step, count: int) -> tuple[float, float]:
    """Seconds of a round of `count` members: one by one, and all at once by `round_of_all`.

    In turn, so that a busy machine slows both; the least of some repeats.
    """
    device, work = plan.loader.device, plan.multiplications
    times: list[tuple[float, float]] = []
    began = time.perf_counter()
    while not _enough(len(times), began):
        with devices.threads_for(work, device):
            apart = count * seconds(one, device)
        with devices.threads_for(work * count, device):
            times.append((apart, seconds(round_of_all, device)))
    return _least(times)


def compared_in_lanes(plans: Sequence[Plan], one: Step, given: Lanes) -> tuple[float, float]:
    """Seconds of a round of all members: one by one, and side by side in full lanes."""
    plan, count = plans[0], len(plans)
    device = plan.loader.device
    times: list[tuple[float, float]] = []
    steps = [alone(replace(each, beside=True)) for each in plans[: given.count]]
    devices.synchronise(device)  # what was copied here is used by other streams
    began = time.perf_counter()
    while not _enough(len(times), began):
        with devices.threads_for(plan.multiplications, device):
            apart = seconds(one, device)
        rounds = _rounds(apart)
        _side_by_side(steps, 1, given, device)
        began = time.perf_counter()
        _side_by_side(steps, rounds, given, device)
        beside = (time.perf_counter() - began) / rounds / given.count
        times.append((count * apart, count * beside))
    return _least(times)


def most_members(plan: Plan) -> int:
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
        plan.objective.loss(model, first_batch(plan))
    weights = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))
    rows = plan.loader.resident.unshared if plan.loader.resident else 0
    # what is kept for the backward pass, once more for the gradients that flow through it
    copies = _COPIES + (_MORE_IN_FP16 if plan.config.precision == "fp16" else 0)
    needed = copies * weights + 2 * sum(kept.values()) + rows
    return max(1, int(devices.free_bytes(plan.loader.device) / 2 / max(needed, 1)))


def _side_by_side(steps: Sequence[Step], rounds: int, given: Lanes, device: torch.device) -> None:
    def repeat(step: Step) -> None:
        for _ in range(rounds):
            step()

    lanes.run([partial(repeat, step) for step in steps], given, device)


def _enough(repeats: int, began: float) -> bool:
    """Whether more repeats would cost more than they find out."""
    long = time.perf_counter() - began > _LONG
    return repeats >= (_LEAST_REPEATS if long else _REPEATS)


def _timed(step: Step, device: torch.device) -> float:
    """Seconds of a step: of one, or of as many as a clock needs."""
    devices.synchronise(device)
    began, done = time.perf_counter(), 0
    while not done or (time.perf_counter() - began < _LEAST and done < _MOST_STEPS):
        step()
        done += 1
    devices.synchronise(device)
    return (time.perf_counter() - began) / done


def _rounds(step: float) -> int:
    return max(1, min(_MOST_STEPS, math.ceil(_LEAST / max(step, 1e-9))))


def _least(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first, second = (min(column) for column in zip(*times, strict=True))
    return first, second
