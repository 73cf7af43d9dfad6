from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kagglekit.muon import orthogonalised
from kagglekit.optimizers import Optimizers, decay_matrices, learning_rate
from tests.engine import (
    on_one_thread,  # noqa: F401
    settings,
)


def course(steps: int = 100, **knobs: Any) -> list[float]:
    return [learning_rate(step, steps, settings(**knobs)) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 1.0])
def test_the_rate_rises_over_the_warm_up_and_never_leaves_0_to_1(
    schedule: str, warmup: float
) -> None:
    rates = course(schedule=schedule, warmup=warmup)
    rise = round(100 * warmup)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:rise] == sorted(rates[:rise])
    assert rates[rise:] == sorted(rates[rise:], reverse=True)
    if rise < 100:
        assert rates[rise] == 1


def test_each_schedule_ends_as_it_says() -> None:
    assert course(schedule="constant")[-1] == 1
    assert 0 < course(schedule="cosine")[-1] < 1e-3
    assert course(schedule="cosine", warmup=0.0)[50] == pytest.approx(0.5)
    assert course(schedule="onecycle")[-1] == pytest.approx(1e-4, rel=10)
    assert course(schedule="onecycle", warmup=0.3)[0] == pytest.approx(1 / 25)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))


def moved(**knobs: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model after a step, and how far each weight went."""
    net = model()
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    config = settings(**{"weight_decay": 0.0, **knobs})
    optimizers = Optimizers(net, ("",), decay_matrices, config)
    optimizers.set_rate(1.0)
    optimizers.backward({"": net(torch.randn(20, 4)).square().sum()})
    optimizers.step([""])
    return net, {name: w.detach() - before[name] for name, w in net.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_weight_decay_spares_vectors(optimizer: str) -> None:
    _, free = moved(optimizer=optimizer)
    _, decayed = moved(optimizer=optimizer, weight_decay=0.5)
    for name, change in free.items():
        assert torch.equal(change, decayed[name]) == (change.ndim == 1), name


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    plain = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0}

    def norm(**knobs: Any) -> float:
        _, changes = moved(**plain, **knobs)
        return float(torch.cat([change.flatten() for change in changes.values()]).norm())

    assert norm() > 0.1
    assert norm(clip_norm=0.1) == pytest.approx(0.1, rel=1e-4)
    assert norm(clip_norm=1e6) == norm()


def test_muon_moves_hidden_matrices_alike_in_all_directions() -> None:
    _, changes = moved(optimizer="muon", lr=0.1, adamw_lr=0.0)
    values = torch.linalg.svdvals(changes["2.weight"])[:2]  # of two outputs
    assert bool(((values > 0.06) & (values < 0.14)).all())
    assert all(not change.any() for name, change in changes.items() if name != "2.weight")


@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (8, 8)])
def test_orthogonalising_keeps_directions_and_levels_their_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.mT @ orthogonalised(matrix) @ right.mT
    torch.testing.assert_close(found, torch.eye(min(shape)), atol=0.4, rtol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_layer_wise_rates_scale_the_step(optimizer: str) -> None:
    def frozen_start(module: nn.Module, config: Any) -> list[dict[str, Any]]:
        parts = list(module.children())
        return [{"params": list(parts[0].parameters()), "lr_scale": 0.0},
                {"params": [w for part in parts[1:] for w in part.parameters()]}]  # fmt: skip

    net = model()
    start = net[0].weight.detach().clone()  # type: ignore[index,union-attr]
    optimizers = Optimizers(net, ("",), frozen_start, settings(optimizer=optimizer))
    optimizers.set_rate(0.5)
    optimizers.backward({"": net(torch.ones(3, 4)).sum()})
    optimizers.step([""])
    assert torch.equal(net[0].weight, start)  # type: ignore[index,union-attr,arg-type]


def test_a_part_s_loss_reaches_that_part_alone() -> None:
    net = model()
    optimizers = Optimizers(net, ("0", "3"), decay_matrices, settings())
    loss = net(torch.ones(3, 4)).square().sum()
    optimizers.backward({"3": loss})
    reached = {name for name, weight in net.named_parameters() if weight.grad is not None}
    assert reached == {"3.weight", "3.bias"}
