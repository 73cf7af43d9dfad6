from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kagglekit.data import Data, Task
from kagglekit.function_network import (
    FunctionConfig,
    FunctionNetwork,
    fit_scales,
    function_fitting,
    highest_frequency,
)
from kagglekit.network import Network
from tests.engine import (
    KilledError,
    fitted,
    killed_at_save,
    member,
    on_one_thread,  # noqa: F401
    settings,
    tensors,
)

CONFIG = FunctionConfig(
    epochs=60, batch_size=1000, lr=1e-2, weight_decay=0.0, precision="fp32", compile="off",
    channels_last=False, polish=30, polish_method="gauss_newton", score_every=0,
    sines=8, tanhs=4, second_sines=4, second_tanhs=4,
)  # fmt: skip
RECIPE = Network(tensors, FunctionNetwork, function_fitting, CONFIG, prepare=fit_scales)


def known(x: np.ndarray, y: np.ndarray) -> Data:
    table = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
    table.insert(0, "id", np.arange(len(x)))
    return Data(table, table[:16], y, pd.DataFrame({"id": []}))


def wave(rows: int = 300, constant: bool = False) -> Data:
    x = np.random.default_rng(5).uniform(-3, 3, (rows, 2 if constant else 1))
    y = np.stack([np.sin(2 * x[:, 0]) + 0.3 * x[:, 0] ** 2, 1e4 * np.cos(x[:, 0])], axis=1)
    if constant:
        x[:, 1], y[:, 1] = 7.0, -2.0
    return known(x, y)


def share_of_deviation(data: Data, folder: Path, config: FunctionConfig) -> np.ndarray:
    of = member(data, folder)
    fitted(RECIPE, of, config)
    error = RECIPE.restore(folder, config, {})(of.valid) - data.target[of.valid.rows]
    return np.sqrt((error**2).mean(0)) / data.target.std(0).clip(1e-12)


def test_a_fresh_function_is_fitted_to_half_a_percent(tmp_path: Path) -> None:
    assert (share_of_deviation(wave(), tmp_path, CONFIG) < 0.005).all()


def test_constant_columns_are_answered_as_they_are(tmp_path: Path) -> None:
    of = member(wave(constant=True), tmp_path)
    fitted(RECIPE, of, replace(CONFIG, epochs=20, polish=10))
    predicted = RECIPE.restore(tmp_path, CONFIG, {})(of.valid)
    np.testing.assert_allclose(predicted[:, 1], -2.0, atol=0.05)


def test_a_member_killed_between_its_steps_equals_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, epochs=3, polish=6, copies=2, checkpoint_seconds=0)
    expected = fitted(RECIPE, member(wave(), tmp_path / "a"), config)
    with monkeypatch.context() as context:
        killed_at_save(context, 6)
        with pytest.raises(KilledError):
            RECIPE.fit([member(wave(), tmp_path / "b")], config)
    assert fitted(RECIPE, member(wave(), tmp_path / "b"), config) == expected


def test_the_first_order_phase_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=3, polish=0)
    found = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.add(fitted(RECIPE, member(wave(), tmp_path / str(threads)), config))
    assert len(found) == 1


def network(copies: int = 1) -> FunctionNetwork:
    torch.manual_seed(0)
    built = FunctionNetwork(replace(CONFIG, copies=copies), Task((1,), 2))
    built.fit_scales(*wave().split(np.arange(300), "train").tensors().tensors)
    return built


def test_each_network_s_weights_move_its_own_column_alone() -> None:
    net = network(copies=3)
    inputs, target = torch.randn(5, 1).double(), torch.randn(5, 2).double()
    residual = net.residual(inputs, target)
    assert residual.shape == (5, 6)
    gradients = torch.autograd.grad(residual[:, 4].sum(), list(net.parameters()))
    for gradient in gradients:
        assert not gradient[[0, 1, 2, 3, 5]].any()
        assert gradient[4].any()


def test_the_residual_is_the_answer_s_error_in_deviations() -> None:
    net = network()
    inputs, target = torch.randn(5, 1).double(), torch.randn(5, 2).double()
    expected = (net(inputs) - target) / net.output_scale
    torch.testing.assert_close(net.residual(inputs, target), expected)


def test_copies_are_weighed_by_their_errors() -> None:
    net = network(copies=2)
    net.weigh(torch.tensor([1.0, 3.0, 0.0, 1.0]).double())
    torch.testing.assert_close(net.share[0], torch.tensor([0.75, 0.25]).double())
    assert net.share[1, 0] > 0.999
    assert bool((net.share.sum(1) - 1).abs().max() < 1e-12)


def test_more_rows_resolve_higher_frequencies() -> None:
    assert highest_frequency(4000, 1, 0.1) > highest_frequency(1000, 1, 0.1)
    assert highest_frequency(1000, 5, 0.1) == 1
    assert settings().polish == 0
