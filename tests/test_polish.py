from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kagglekit import polish as second_order
from kagglekit.config import NetworkConfig
from kagglekit.data import Task
from kagglekit.function_network import FunctionConfig, FunctionNetwork, function_fitting
from kagglekit.loading import Loader
from kagglekit.network import hold_out
from kagglekit.objectives import Objective, multiclass, regression
from kagglekit.polish import Case
from tests.engine import (
    CPU,
    answers,
    classifier,
    fitted,
    member,
    numbers,
    on_one_thread,  # noqa: F401
    pictures,
    regressor,
    settings,
)

METHODS = ["lbfgs", "gauss_newton"]


def loaders(rows: int = 96, noise: float = 0.0, outputs: int = 2) -> tuple[Loader, Loader]:
    data = numbers(rows, outputs=outputs)
    data.target[:] += noise * np.random.default_rng(1).standard_normal(data.target.shape)
    parts = hold_out(data.split(np.arange(rows), "train"), 0.25, 0)
    fit, held_out = (Loader(part.tensors(), settings(), CPU, 0, False) for part in parts)
    return fit, held_out


def polish(
    model: nn.Module,
    objective: Objective,
    pair: tuple[Loader, Loader],
    config: NetworkConfig,
    progress: dict[str, Any],
    stepped: Callable[[], None],
) -> None:
    second_order.polish([Case(model, pair, progress)], objective, config, stepped)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def error(model: nn.Module, loader: Loader) -> float:
    (inputs, target) = next(loader.batches(0))
    with torch.no_grad():
        return float((model(inputs.double()) - target.double()).square().mean())


@pytest.mark.parametrize("method", METHODS)
def test_the_held_out_error_falls_tenfold_in_a_few_steps(method: str) -> None:
    model, pair = small(), loaders()
    before = error(model.double(), pair[1])
    config = settings(polish=25, polish_method=method)
    polish(model, regression(config), pair, config, {}, lambda: None)
    assert error(model, pair[1]) < before / 10
    assert next(model.parameters()).dtype == torch.float64


@pytest.mark.parametrize("method", METHODS)
def test_a_phase_taken_up_again_is_the_same_to_the_bit(method: str) -> None:
    config, pair = settings(polish=6, polish_method=method), loaders()
    whole, halves, progress = small(), small(), dict[str, Any]()
    polish(whole, regression(config), pair, config, {}, lambda: None)

    class StopError(Exception):
        pass

    def stop() -> None:
        if progress["steps"] == 3:
            raise StopError

    with pytest.raises(StopError):
        polish(halves, regression(config), pair, config, progress, stop)
    again = small()
    polish(again, regression(config), pair, config, progress, lambda: None)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_does_not_gain_keeps_its_start(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, pair = settings(polish=3, polish_method=method), loaders()
    model, start = small(), small().double()

    def worse(phase: Any) -> torch.Tensor:
        return torch.full((phase.blocks,), 1.0 if torch.equal(phase.weights, phase.start) else 2.0)

    monkeypatch.setattr(second_order.Phase, "_held_out_loss", worse)
    polish(model, regression(config), pair, config, {}, lambda: None)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True)
    )


def test_it_stops_once_held_out_rows_gain_no_more() -> None:
    progress: dict[str, Any] = {}
    config, pair = settings(polish=500, polish_method="gauss_newton"), loaders(noise=0.5)
    polish(small(), regression(config), pair, config, progress, lambda: None)
    assert progress["steps"] < 200


@pytest.mark.parametrize("method", METHODS)
def test_each_output_of_independent_networks_is_polished_by_itself(method: str) -> None:
    config = FunctionConfig(sines=2, tanhs=3, second_sines=2, second_tanhs=2, polish=4,
                            polish_method=method)  # type: ignore[arg-type]  # fmt: skip

    def alone(wanted: list[int]) -> torch.Tensor:
        torch.manual_seed(0)
        data = numbers()
        full = FunctionNetwork(config, regressor()._task(member_split(data), config))
        for parameter in full.parameters():
            parameter.data = parameter.data[wanted]
        full.share = full.share[wanted]
        pair = []
        for loader in loaders():
            inputs, target = loader.dataset.tensors  # type: ignore[attr-defined]
            dataset = torch.utils.data.TensorDataset(inputs, target[:, wanted])
            pair.append(Loader(dataset, settings(), CPU, 0, False, torch.float64))
        full.output_mean, full.output_scale = full.output_mean[wanted], full.output_scale[wanted]
        polish(full, function_fitting(config), (pair[0], pair[1]), config, {}, lambda: None)
        return full.readout.detach()

    if method == "gauss_newton":  # L-BFGS shares its line search
        torch.testing.assert_close(alone([0, 1])[1:], alone([1]), rtol=1e-4, atol=1e-6)
    else:
        assert bool(alone([0, 1]).isfinite().all())


def member_split(data: Any) -> Any:
    return data.split(np.arange(len(data.train)), "train")


# --- several models -----------------------------------------------------------------------------


class Scaled(nn.Module):
    """Its scale is a plain number: one that is stacked with others would have that of the first."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inside, self.scale = small(), scale

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.scale * self.inside(inputs)


def function_network(seed: int) -> nn.Module:
    config = FunctionConfig(sines=3, tanhs=4, second_sines=2, second_tanhs=3, copies=2)
    torch.manual_seed(seed)
    network = FunctionNetwork(config, Task((3,), 2))
    inputs, target = loaders()[0].dataset.tensors  # type: ignore[attr-defined]
    network.fit_scales(inputs.double(), target.double())
    return network


def dense(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


KINDS: dict[str, tuple[Callable[[int], nn.Module], Callable[[Any], Objective]]] = {
    "function networks": (function_network, function_fitting),
    "one network for all outputs": (dense, regression),
}


def several(build: Callable[[int], nn.Module]) -> list[Case]:
    """Three models, each with rows of its own, and of another number."""
    return [
        Case(build(seed), loaders(rows, noise=0.1), {}) for seed, rows in enumerate((96, 93, 80))
    ]


def answered(cases: Sequence[Case]) -> list[torch.Tensor]:
    (inputs, _) = next(loaders(200)[0].batches(0))
    with torch.no_grad():
        return [case.model.double().eval()(inputs.double()) for case in cases]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_models_polished_together_answer_as_each_does_alone(kind: str, method: str) -> None:
    build, objective = KINDS[kind]
    config = settings(polish=12, polish_method=method)
    cases, alone = several(build), several(build)
    before = answered(several(build))
    second_order.polish(cases, objective(config), config, lambda: None)
    for case in alone:
        second_order.polish([case], objective(config), config, lambda: None)
    for found, wanted, start in zip(answered(cases), answered(alone), before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
        assert float((wanted - start).abs().max()) > 0.01


def test_models_polished_together_are_the_same_to_the_bit_after_a_stop() -> None:
    config = settings(polish=6, polish_method="gauss_newton")
    cases, halves = several(function_network), several(function_network)
    second_order.polish(cases, function_fitting(config), config, lambda: None)

    class StopError(Exception):
        pass

    def stop() -> None:
        if halves[0].progress["steps"] == 3:
            raise StopError

    with pytest.raises(StopError):
        second_order.polish(halves, function_fitting(config), config, stop)
    assert [case.progress["steps"] for case in halves] == [3, 3, 3]
    again = [Case(new.model, new.loaders, old.progress)
             for new, old in zip(several(function_network), halves, strict=True)]  # fmt: skip
    second_order.polish(again, function_fitting(config), config, lambda: None)
    for found, wanted in zip(answered(again), answered(cases), strict=True):
        assert torch.equal(found, wanted)


def test_only_as_many_are_polished_at_once_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    config, sizes = settings(polish=2, polish_method="gauss_newton"), list[int]()
    size = sum(weight.numel() for weight in small().parameters())
    monkeypatch.setitem(second_order._CURVATURE, "cpu", 2 * 8 * size**2)
    step = second_order.GaussNewton.step
    monkeypatch.setattr(
        second_order.GaussNewton,
        "step",
        lambda phase: (sizes.append(len(phase.models)), step(phase)),
    )
    cases = several(lambda seed: small())
    second_order.polish(cases, regression(config), config, lambda: None)
    assert sizes == [2, 2, 1, 1]


def test_models_that_are_no_batch_are_polished_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    config = settings(polish=3, polish_method="gauss_newton")
    cases, alone = (several(lambda seed: Scaled(1.0 + seed)) for _ in range(2))
    second_order.polish(cases, regression(config), config, lambda: None)
    assert "polishes its members one by one" in caplog.text
    for case in alone:
        second_order.polish([case], regression(config), config, lambda: None)
    for found, wanted in zip(answered(cases), answered(alone), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_constant_columns_do_not_break_it(method: str) -> None:
    fit, held_out = loaders()
    for loader in (fit, held_out):
        inputs, target = loader.dataset.tensors  # type: ignore[attr-defined]
        inputs[:, 0] = 3.0
        target[:] = 5.0
    config, model = settings(polish=10, polish_method=method), small()
    polish(model, regression(config), (fit, held_out), config, {}, lambda: None)
    assert error(model, held_out) < 1e-3


def test_every_loss_can_be_polished_by_lbfgs(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.smooth_l1_loss(model(batch[0]), batch[1])

    recipe = regressor(objective=lambda c: Objective(loss, lambda m, batch: m(batch[0])))
    worse, better = settings(), settings(polish=10, holdout=0.2)
    found = []
    for name, config in (("a", worse), ("b", better)):
        of = member(numbers(), tmp_path / name)
        fitted(recipe, of, config)
        predicted = recipe.restore(of.folder, config, {})(of.valid)
        found.append(np.mean((predicted - numbers().target[72:]) ** 2))
    assert found[1] < found[0] / 10


def test_classes_and_batch_norm_can_be_polished(tmp_path: Path) -> None:
    of, config = member(pictures(), tmp_path), settings(polish=3, holdout=0.2)
    fitted(classifier(objective=multiclass), of, config)
    assert answers(classifier(), of, config).dtype in (np.float32, np.float64)


@pytest.mark.parametrize("method", METHODS)
def test_neither_dropout_nor_batch_statistics_disturb_it(method: str) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)
    model = nn.Sequential(*layers).train()
    config, pair = settings(polish=15, polish_method=method), loaders()
    before = error(model.double().eval(), pair[1])
    polish(model.train(), regression(config), pair, config, {}, lambda: None)
    assert not model.training
    assert error(model, pair[1]) < before / 10
    assert not model[1].running_mean.any()  # type: ignore[union-attr,operator]
