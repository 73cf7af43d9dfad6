"""Captured passes: nothing that a replay overwrites is still needed, and none is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kagglekit import capture, ensemble, views
from kagglekit.augment import affine
from kagglekit.data import Task
from kagglekit.loading import Loader
from kagglekit.objectives import multiclass
from kagglekit.predict import answers_by_view
from tests.engine import (
    classifier,
    convolution,
    numbers,
    on_one_thread,  # noqa: F401
    pictures,
    regressor,
    settings,
)
from tests.test_cohort import files_of, members


class Replay:
    """A graph of a GPU as one would be on a CPU: each call reads and writes the same memory."""

    made = 0

    def __init__(self, run: capture.Run, given: Sequence[Tensor], generators: Any) -> None:
        Replay.made += 1
        self.run, self.given = run, [part.clone() for part in given]
        self.returned = [part.clone() for part in run(self.given)]

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        for place, part in zip(self.given, given, strict=True):
            place.copy_(part)
        for place, part in zip(self.returned, self.run(self.given), strict=True):
            place.copy_(part)
        return self.returned


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "possible", lambda device: True)
    monkeypatch.setattr(capture, "_aside", contextlib.nullcontext)
    monkeypatch.setattr(capture, "Graph", Replay)
    monkeypatch.setattr(Replay, "made", 0)


KNOBS: dict[str, dict[str, Any]] = {
    "adamw": {"ema": 0.8, "dropout": 0.3},
    "muon": {"optimizer": "muon", "clip_norm": 0.01},
    "mixup": {"mixup": 0.4},
    "accumulate": {"accumulate": 3},
    "fp16": {"precision": "fp16", "optimizer": "sgd", "accumulate": 3, "clip_norm": 0.1},
}


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("engine", ["stacked", "streams"])
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
@pytest.mark.parametrize("kind", ["numbers", "pictures"])
def test_what_is_replayed_learns_what_is_not(
    kind: str, knobs: dict[str, Any], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = (regressor(), numbers()) if kind == "numbers" else (
        classifier(augment=lambda config: affine(degrees=10)), pictures())  # fmt: skip
    config = settings(engine=engine, **knobs)
    with_graphs = members(data, tmp_path / "with")
    recipe.fit(with_graphs, config)
    assert (Replay.made > 0) == (engine == "stacked" or "accumulate" not in knobs)
    monkeypatch.setattr(capture, "possible", lambda device: False)
    without = members(data, tmp_path / "without")
    recipe.fit(without, config)
    assert files_of(with_graphs) == files_of(without)


@pytest.mark.usefixtures("replayed")
def test_replayed_members_answer_with_all_views_as_those_that_are_not() -> None:
    """A replay overwrites the answers to the view before."""
    _demand_replayed_right(torch.device("cpu"), near=1e-6, calls=1000)
    assert Replay.made == 1


def _demand_replayed_right(device: torch.device, near: float, calls: int) -> None:
    config, task = settings(), Task((1, 8, 8), 3)
    models = [convolution(config, task).to(device).eval() for _ in range(3)]
    parts = [pictures().split(np.arange(rows), "valid").tensors() for rows in (40, 40, 20)]
    loaders = [Loader(part, config, device, 0, training=False) for part in parts]
    seen = (views.original, views.mirrored, views.flipped)
    predict = multiclass(config).predict
    alone = [torch.cat(list(answers_by_view(model, multiclass(config), loader, seen)), 1)
             for model, loader in zip(models, loaders, strict=True)]  # fmt: skip
    joint = ensemble.Ensemble.of(models, predict, config, calls)
    found = [torch.cat(own, 1) for own in zip(*joint.answers(loaders, seen), strict=True)]
    for own, wanted in zip(found, alone, strict=True):
        torch.testing.assert_close(own, wanted, rtol=near, atol=near)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("calls", [1, 1000])
def test_members_answer_together_on_a_gpu_as_alone(calls: int) -> None:
    _demand_replayed_right(torch.device("cuda"), 0.02, calls)  # TensorFloat-32


def doubled(given: Sequence[Tensor]) -> list[Tensor]:
    return [2 * given[0]]


@pytest.mark.usefixtures("replayed")
def test_a_capture_leaves_buffers_and_draws_as_they_were() -> None:
    norm, draws = nn.BatchNorm1d(3), torch.Generator().manual_seed(1)
    before = draws.get_state()

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        return [norm(given[0]) + torch.rand(1, generator=draws)]

    made = capture.captured(run, [torch.randn(8, 3)], list(norm.buffers()), [draws])
    assert isinstance(made, Replay)
    assert torch.equal(draws.get_state(), before)
    assert int(norm.num_batches_tracked or 0) == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize(
    ("fault", "told"), [("wrong", "would give something else"), ("refused", "cannot be captured")]
)
def test_what_cannot_be_captured_runs_as_it_is_and_a_line_says_why(
    fault: str, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Replay):
        def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
            if fault == "refused":
                raise RuntimeError("operation not permitted when stream is capturing\nand so on")
            return [3 * given[0]]

    monkeypatch.setattr(capture, "Graph", Faulty)
    assert capture.captured(doubled, [torch.ones(2)], []) is doubled
    assert told in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_graph_of_a_gpu_gives_what_its_function_gives() -> None:
    device = torch.device("cuda")
    draws = torch.Generator(device).manual_seed(1)
    weight = torch.randn(64, 64, device=device)

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        noise = torch.empty_like(given[0]).bernoulli_(0.5, generator=draws)
        return [given[0] @ weight * noise]

    inputs = [torch.randn(32, 64, device=device) for _ in range(4)]
    made = capture.captured(run, [inputs[0]], [], [draws])
    assert isinstance(made, capture.Graph)
    draws.manual_seed(2)
    found = [made([part])[0].clone() for part in inputs]
    draws.manual_seed(2)
    for ours, part in zip(found, inputs, strict=True):
        torch.testing.assert_close(ours, run([part])[0])
