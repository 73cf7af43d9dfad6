"""What cannot be stacked is found out before it is trained, and never gives a wrong answer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kagglekit.data import Task
from kagglekit.objectives import Mixed, Objective, leaves, rebuilt, regression
from kagglekit.stacking import (
    Stack,
    Unstackable,
    attach,
    detach,
    model_at,
    together,
)
from tests.engine import (
    convolution,
    dense,
    on_one_thread,  # noqa: F401
    settings,
)

SEEDS = (7, 8, 9)


def models(build: Callable[[], nn.Module]) -> list[nn.Module]:
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        made.append(build())
    return made


def batch(rows: int = 40) -> Any:
    torch.manual_seed(1)
    return together([[torch.randn(rows, 3), torch.randn(rows, 2)] for _ in range(3)])


def judged(build: Callable[[], nn.Module], objective: Any = None, **knobs: Any) -> None:
    config = settings(**knobs)
    Stack(models(build), objective or regression(config), config).demand_right(batch(), SEEDS)


class Wrapped(nn.Module):
    """A linear map and what a test does with its outputs."""

    def __init__(self, then: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.map, self.then, self.calls = nn.Linear(3, 2), then, 0
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.then(self, self.map(inputs))


def branching(model: Any, outputs: torch.Tensor) -> torch.Tensor:
    return outputs if float(outputs.detach().sum()) > 0 else 2 * outputs


def counting(model: Any, outputs: torch.Tensor) -> torch.Tensor:
    model.calls += 1
    return outputs


def drawing(model: Any, outputs: torch.Tensor) -> torch.Tensor:
    return outputs + torch.randn_like(outputs)


def functional_dropout(model: Any, outputs: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(outputs, 0.5, model.training)


def rebinding(model: Any, outputs: torch.Tensor) -> torch.Tensor:
    model.seen = model.seen + outputs.detach().mean(0)
    return outputs


@pytest.mark.parametrize(
    ("then", "why"),
    [
        (branching, "vmap"),
        (counting, "remembers something outside its buffers"),
        (drawing, "draws random numbers outside nn.Dropout"),
        (functional_dropout, "draws random numbers outside nn.Dropout"),
        (rebinding, "its buffers would be another"),
    ],
)
def test_a_model_that_cannot_be_stacked_is_refused_with_the_reason(then: Any, why: str) -> None:
    with pytest.raises(Unstackable, match=why):
        judged(lambda: Wrapped(then))


def test_a_model_that_holds_numbers_of_the_first_one_alone_is_found_out() -> None:
    """What is no parameter and no buffer cannot be stacked: all would use the first model's."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.shift = nn.Linear(3, 2), torch.randn(2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.map(inputs) + self.shift

    with pytest.raises(Unstackable, match="its loss would be another"):
        judged(Fixed)


def test_hooks_and_parts_are_refused_at_once() -> None:
    def hooked() -> nn.Module:
        model = nn.Linear(3, 2)
        model.register_forward_hook(lambda module, inputs, outputs: outputs * 2)
        return model

    with pytest.raises(Unstackable, match="its Linear has hooks"):
        judged(hooked)
    plain = regression(settings())
    halves = Objective(plain.loss, plain.predict, parts=("0", "1"))
    with pytest.raises(Unstackable, match="several parts"):
        judged(lambda: nn.Linear(3, 2), halves)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.randn(4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(inputs)))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 5).requires_grad_(False), nn.Linear(5, 2)
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs).relu()) * self.scale


def normed() -> nn.Module:
    drop = nn.Dropout(0.4)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), drop, nn.GELU(), nn.Linear(8, 8),
                         nn.LayerNorm(8), drop, nn.Linear(8, 2))  # fmt: skip


@pytest.mark.parametrize("build", [Tied, Frozen, normed], ids=["tied", "frozen", "normed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stacked_gradients_are_those_of_each_model_alone(build: Any, precision: str) -> None:
    judged(build, precision=precision)


def test_a_wrong_gradient_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Stack._gradients

    def wrong(self: Stack, *given: Any) -> Any:
        losses, gradients = sound(self, *given)
        return losses, tuple(None if g is None else g.flip(0) for g in gradients)

    monkeypatch.setattr(Stack, "_gradients", wrong)
    with pytest.raises(Unstackable, match="its gradient would be another"):
        judged(normed)


def test_models_are_slices_of_the_stack_and_can_leave_it() -> None:
    made = models(lambda: convolution(settings(dropout=0.2), Task((1, 8, 8), 3)))
    before = [copy.deepcopy(model.state_dict()) for model in made]
    stacked = copy.deepcopy(made[0])
    attach(stacked, made)
    for model, state in zip(made, before, strict=True):
        assert all(torch.equal(model.state_dict()[name], part) for name, part in state.items())
    with torch.no_grad():
        stacked.get_parameter("0.weight")[1] += 1
        made[2].get_buffer("1.running_mean").fill_(5)
    moved = made[1].get_parameter("0.weight") - before[1]["0.weight"]
    torch.testing.assert_close(moved, torch.ones_like(moved))
    assert bool((stacked.get_buffer("1.running_mean")[2] == 5).all())
    detach(made[1])
    with torch.no_grad():
        stacked.get_parameter("0.weight").zero_()
    assert bool(made[1].get_parameter("0.weight").any())
    assert not made[0].get_parameter("0.weight").any()


def test_batches_are_taken_apart_and_put_together_again() -> None:
    parts = [torch.randn(4, 3), Mixed(torch.rand(4), torch.rand(4), torch.rand(4))]
    joint = together([parts, parts])
    assert [part.shape[0] for part in leaves(joint)] == [2] * 4
    again = model_at(joint, 1, settings())
    assert isinstance(again[1], Mixed)
    assert all(torch.equal(a, b) for a, b in zip(leaves(again), leaves(parts), strict=True))
    assert leaves(rebuilt(parts, leaves(parts))) == leaves(parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's dropout draws otherwise")
def test_dropout_of_a_stack_draws_the_bits_of_each_model_alone() -> None:
    config = settings(dropout=0.5)
    task = Task((3,), 2)
    stack = Stack(models(lambda: dense(config, task)), regression(config), config)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    given = batch()
    stack.backward(given, generators)
    for place, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        model = copy.deepcopy(stack.models[place]).train()
        regression(config).loss(model, model_at(given, place, config)).backward()  # type: ignore[union-attr]
        for weight, alone in zip(stack.weights, model.parameters(), strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad[place], alone.grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(torch.default_generator.get_state(), generators[place].get_state())
