"""Models asked together: each on its own rows, by its own weights, as it would be alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kagglekit import ensemble as ensemble_module
from kagglekit import views
from kagglekit.config import NetworkConfig
from kagglekit.data import Task
from kagglekit.ensemble import Ensemble
from kagglekit.loading import Loader
from kagglekit.objectives import Batch, multiclass, regression
from kagglekit.predict import answers_by_view
from kagglekit.stacking import Unstackable, total
from tests.engine import CPU, convolution, dense, numbers, on_one_thread, pictures, settings

__all__ = ["on_one_thread"]
ROWS = (40, 39, 33, 23)  # batches of sixteen: the last member is through after the second

Build = Callable[[NetworkConfig, Task], nn.Module]
KINDS: dict[str, tuple[Build, Any, Any, Task]] = {
    "dense": (dense, numbers, regression, Task((3,), 2)),
    "convolutions with BatchNorm": (convolution, pictures, multiclass, Task((1, 8, 8), 3)),
}


def models(build: Build, task: Task, config: NetworkConfig) -> list[nn.Module]:
    made = []
    for seed in range(len(ROWS)):
        torch.manual_seed(seed)
        model = build(config, task).train()
        for batches in range(3):  # BatchNorm has seen something, each model something else
            model(torch.rand(8, *task.inputs, generator=torch.Generator().manual_seed(batches)))
        made.append(model)
    return made


def loaders(data: Any, config: NetworkConfig) -> list[Loader]:
    made = []
    for place, rows in enumerate(ROWS):
        split = data().split(np.arange(place, place + rows), "train")
        made.append(Loader(split.tensors(), config, CPU, 0, training=False))
    return made


def loss(objective: Any, model: nn.Module, batch: Batch) -> torch.Tensor:
    return total(objective.loss(model, batch))


@pytest.mark.parametrize("often", [1, 1000])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_answers_its_own_rows_as_it_does_alone(
    kind: str, precision: str, often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble_module, "_OFTEN", often)
    # whole batches are answered together, what is left of unequal rows alone
    build, data, criterion, task = KINDS[kind]
    config = settings(precision=precision, dropout=0.5)
    each, objective, given = models(build, task, config), criterion(config), loaders(data, config)
    seen = (views.original, views.mirrored, views.flipped) if len(task.inputs) == 3 else (
        views.original,)  # fmt: skip
    alone = [torch.cat(list(answers_by_view(copy.deepcopy(model), objective, loader, seen)), 1)
             for model, loader in zip(each, given, strict=True)]  # fmt: skip
    ensemble = Ensemble.of(each, objective.predict, config, calls=100)
    found = [torch.cat(own, 1) for own in zip(*ensemble.answers(given, seen), strict=True)]
    assert [answers.shape[1] for answers in found] == list(ROWS)
    for own, wanted in zip(found, alone, strict=True):
        assert own.dtype == wanted.dtype
        near = 0.05 if precision == "bf16" else 1e-5
        torch.testing.assert_close(own, wanted, rtol=near, atol=near)
    assert not torch.allclose(found[0][:, :23], found[1][:, :23], atol=1e-3)  # models differ
    assert bool(ensemble.passes) == (often == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_pass_follows_weights_and_statistics(kind: str) -> None:
    build, data, criterion, task = KINDS[kind]
    config = settings()
    each, objective, given = models(build, task, config), criterion(config), loaders(data, config)
    ensemble = Ensemble.of(each, objective.predict, config, calls=1000)
    batches = [[part[:7] for part in next(loader.batches(0))] for loader in given]
    batch = [torch.stack(parts) for parts in zip(*batches, strict=True)]
    before = [ensemble(batch), ensemble._mapped(batch)]
    assert ensemble.passes
    assert torch.equal(before[0], before[1])
    with torch.no_grad():
        for model in each[1:]:
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.mul_(2)
    after = ensemble(batch)
    assert torch.equal(after[0], before[0][0])
    for place in range(1, len(each)):
        alone = ensemble.alone(place, [part[place] for part in batch])
        torch.testing.assert_close(after[place], alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after[place], before[0][place], atol=1e-3)


def test_rows_that_all_are_asked_are_read_and_turned_once() -> None:
    config, turns = settings(), list[int]()
    each = models(convolution, Task((1, 8, 8), 3), config)
    loader = loaders(pictures, config)[0]

    def mirror(images: torch.Tensor) -> torch.Tensor:
        turns.append(len(images))
        return images.flip(-1)

    view = views.View("mirrored", mirror)
    objective = multiclass(config)
    ensemble = Ensemble.of([copy.deepcopy(model) for model in each], objective.predict, config)
    found = list(zip(*ensemble.answers([loader] * len(each), (view,)), strict=True))
    assert turns == [16, 16, 8]
    for model, own in zip(each, found, strict=True):
        wanted = torch.cat(list(answers_by_view(model, objective, loader, (view,))), 1)
        torch.testing.assert_close(torch.cat(own, 1), wanted, rtol=1e-5, atol=1e-5)


def test_answers_that_are_turned_back_are_so_row_by_row() -> None:
    """Images in, images out: an undone view gives the inputs back, times each model's weight."""

    class Times(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(weight))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs * self.weight

    config = settings()
    given = loaders(pictures, config)
    ensemble = Ensemble.of(
        [Times(1.0 + place) for place in range(len(ROWS))],
        lambda model, batch: model(batch[0]),
        config,
    )
    turned = [views.for_images(view) for view in (views.original, views.mirrored, views.turned(1))]
    for place, own in enumerate(zip(*ensemble.answers(given, turned), strict=True)):
        pixels = torch.cat([batch[0] for batch in given[place].batches(0)])
        for view in torch.cat(own, 1):
            torch.testing.assert_close(view, pixels * (1.0 + place))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_loss_is_that_over_a_model_s_own_rows(kind: str) -> None:
    build, data, criterion, task = KINDS[kind]
    config = settings()
    each, given = models(build, task, config), loaders(data, config)
    function = partial(loss, criterion(config))
    found = Ensemble.of(each, function, config).means(given)
    for model, loader, mean in zip(each, given, found, strict=True):
        parts = [torch.cat(list(part)) for part in zip(*loader.batches(0), strict=True)]
        with torch.no_grad():
            assert mean == pytest.approx(float(function(model.eval(), parts)), rel=1e-5)


def test_it_begins_with_the_batch_that_is_asked_for() -> None:
    config = settings()
    each, given = models(dense, Task((3,), 2), config), loaders(numbers, config)
    ensemble = Ensemble.of(each, regression(config).predict, config)
    whole = list(ensemble.answers(given, (views.original,)))
    later = list(ensemble.answers(given, (views.original,), first=1))
    assert [[own.shape[1] for own in batch] for batch in later] == [[16, 16, 16, 7], [8, 7, 1, 0]]
    for found, wanted in zip(later, whole[1:], strict=True):
        for own, other in zip(found, wanted, strict=True):
            assert torch.equal(own, other)


class Centred(nn.Module):
    """Looks across its batch, also when it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs - inputs.mean(0))


def test_rows_of_others_do_not_show_in_a_short_batch() -> None:
    config, given = settings(), loaders(numbers, settings())
    each = [Centred() for _ in ROWS]
    objective = regression(config)
    alone = [torch.cat(list(answers_by_view(model, objective, loader, (views.original,))), 1)
             for model, loader in zip(each, given, strict=True)]  # fmt: skip
    ensemble = Ensemble.of(each, objective.predict, config)
    for place, own in enumerate(zip(*ensemble.answers(given, (views.original,)), strict=True)):
        torch.testing.assert_close(torch.cat(own, 1), alone[place], rtol=1e-5, atol=1e-6)


class Single(nn.Module):
    """Its code is of single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs.float())


def test_a_model_of_single_precision_is_compared_in_that() -> None:
    ensemble = Ensemble.of([Single(), Single()], lambda model, batch: model(batch[0]), settings())
    ensemble.demand_right([[torch.randn(16, 3)], [torch.randn(12, 3)]])


class Plain(nn.Module):
    """Its factor is a plain number: an ensemble has that of the first model."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(3, 2), factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) * self.factor


class Branching(Plain):
    """Looks at its numbers before it knows what to do."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) * (2.0 if float(inputs.mean()) > 0 else 1.0)


@pytest.mark.parametrize(
    ("build", "why"), [(Plain, "something else"), (Branching, "data-dependent|item")]
)
def test_models_that_would_answer_otherwise_are_refused(build: Any, why: str) -> None:
    config = settings()
    ensemble = Ensemble.of(
        [build(1.0), build(1.0 + 1e-4)], lambda model, batch: model(batch[0]), config
    )
    with pytest.raises(Unstackable, match=why):
        ensemble.demand_right([[torch.randn(16, 3)], [torch.randn(16, 3)]])


def test_models_that_are_alike_are_not_refused() -> None:
    config = settings()
    ensemble = Ensemble.of([Plain(2.0), Plain(2.0)], lambda model, batch: model(batch[0]), config)
    ensemble.demand_right([[torch.randn(16, 3)], [torch.randn(16, 3)]])
