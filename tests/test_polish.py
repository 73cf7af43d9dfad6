from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kagglekit import polish as second_order
from kagglekit.function_network import FunctionConfig, FunctionNetwork, function_fitting
from kagglekit.loading import Loader
from kagglekit.network import hold_out
from kagglekit.objectives import Objective, multiclass, regression
from kagglekit.polish import polish
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
