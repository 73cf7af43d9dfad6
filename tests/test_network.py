from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from kagglekit import devices, views
from kagglekit.data import Data
from kagglekit.errors import UserError
from kagglekit.network import Network, hold_out
from kagglekit.objectives import multiclass
from tests.engine import (
    answers,
    classifier,
    convolution,
    dense,
    fitted,
    member,
    numbers,
    on_one_thread,  # noqa: F401
    pictures,
    regressor,
    settings,
)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.4, 0.75, 0.9])
def test_the_held_out_share_is_what_was_asked_for(share: float) -> None:
    for data in (numbers(90), pictures(90)):
        split = data.split(np.arange(90), "train")
        fit, watched = hold_out(split, share, 0)
        assert len(watched) == pytest.approx(max(90 * share, 1), abs=0.51)
        np.testing.assert_array_equal(np.sort(np.append(fit.rows, watched.rows)), split.rows)


def test_every_class_is_held_out_alike() -> None:
    data = pictures(90)
    _, watched = hold_out(data.split(np.arange(90), "train"), 0.2, 0)
    np.testing.assert_array_equal(np.bincount(data.target[watched.rows]), [6, 6, 6])


def test_held_out_rows_depend_on_the_seed_alone() -> None:
    split = numbers().split(np.arange(96), "train")
    first, again, other = (hold_out(split, 0.2, seed)[1].rows for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_row_cannot_be_parted() -> None:
    fit, watched = hold_out(numbers().split(np.arange(2), "train"), 0.1, 0)
    assert len(fit) == len(watched) == 1
    with pytest.raises(UserError, match="only one"):
        hold_out(numbers().split(np.arange(1), "train"), 0.1, 0)


def test_a_finished_member_is_not_trained_again(tmp_path: Path) -> None:
    of, recipe = member(numbers(), tmp_path), regressor()
    expected = fitted(recipe, of, settings())
    broken = replace(recipe, model=lambda config, task: pytest.fail("trained again"))
    assert fitted(broken, of, settings()) == expected


def view_answers(tmp_path: Path, **knobs: Any) -> tuple[np.ndarray, np.ndarray]:
    recipe = classifier(views=lambda config: (views.original, views.mirrored, views.flipped))
    of, config = member(pictures(), tmp_path), settings(**knobs)
    fitted(recipe, of, config)
    predictor = recipe.restore(of.folder, config, {})
    by_view, merged = predictor.by_view(of.valid), predictor(of.valid)
    np.testing.assert_array_equal(predictor.merge(by_view), merged)
    return by_view, merged


def test_without_tta_one_view_answers(tmp_path: Path) -> None:
    by_view, merged = view_answers(tmp_path, tta=False)
    assert by_view.shape == (1, 24, 3)
    np.testing.assert_array_equal(by_view[0], merged)


@pytest.mark.parametrize("mean", ["probabilities", "geometric", "logits"])
def test_views_are_averaged_as_tta_mean_says(mean: str, tmp_path: Path) -> None:
    by_view, merged = view_answers(tmp_path, tta_mean=mean)
    assert by_view.shape == (3, 24, 3)
    assert len({view.tobytes() for view in by_view}) == 3
    expected = by_view.mean(0)
    if mean != "probabilities":
        expected = np.exp(np.log(by_view).mean(0))
        expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(merged, expected, rtol=1e-4)


def test_a_network_in_double_precision_answers_in_it(tmp_path: Path) -> None:
    recipe = regressor(model=lambda config, task: dense(config, task).double())
    of, config = member(numbers(), tmp_path), settings()
    fitted(recipe, of, config)
    assert answers(recipe, of, config).dtype == np.float64


class Mixed(nn.Module):
    """A network with one buffer in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(2, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) * self.scale


def test_every_weight_is_restored_in_the_precision_it_was_trained_in(tmp_path: Path) -> None:
    recipe = regressor(model=lambda config, task: Mixed())
    of = member(numbers(), tmp_path)
    fitted(recipe, of, settings())
    model = recipe.restore(of.folder, settings(), {}).model
    assert {name: part.dtype for name, part in model.state_dict().items()} == {
        "layer.weight": torch.float32, "layer.bias": torch.float32, "scale": torch.float64,
    }  # fmt: skip


class Tied(nn.Module):
    """Two names for one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(inputs)))


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    recipe = regressor(model=lambda config, task: Tied())
    of = member(numbers(), tmp_path)
    fitted(recipe, of, settings())
    assert np.isfinite(answers(recipe, of, settings())).all()


class Bare(Dataset[Any]):
    """Inputs alone, not wrapped in a tuple, where there is no target."""

    def __init__(self, split: Any) -> None:
        self.columns = split.tensors().tensors

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: int) -> Any:
        item = tuple(column[row] for column in self.columns)
        return item if len(item) > 1 else item[0]


def test_items_may_be_inputs_alone(tmp_path: Path) -> None:
    recipe = regressor(dataset=lambda split, config: Bare(split))
    of = member(numbers(), tmp_path)
    assert recipe._task(of.valid, settings()).inputs == (3,)
    assert fitted(recipe, of, settings()) == fitted(
        regressor(), member(numbers(), tmp_path / "b"), settings()
    )
    assert answers(recipe, of, settings()).shape == (16, 2)


@pytest.mark.parametrize(
    ("recipe", "data", "precision"),
    [
        (classifier(), pictures(), "bf16"),
        (regressor(objective=multiclass), replace(numbers(), classes=("a", "b")), "bf16"),
        (regressor(), numbers(), "fp32"),  # a table's numbers would be answered to three digits
    ],
)
def test_a_gpu_computes_in_half_precision_where_that_is_enough(
    recipe: Network[Any], data: Data, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(devices, "can_compile", lambda device: False)
    auto = settings(precision="auto")
    assert recipe.resolve(auto, data.split(np.arange(96), "train")).precision == precision


def test_auto_is_resolved_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    split = pictures().split(np.arange(96), "train")
    auto = settings(precision="auto", compile="auto")
    resolved = classifier().resolve(auto, split)
    assert resolved.precision in ("fp32", "bf16")
    assert resolved.compile == "off"
    assert regressor().resolve(auto, numbers().split(np.arange(96), "train")).precision == "fp32"
    monkeypatch.setattr(devices, "can_compile", lambda device: False)
    with pytest.raises(UserError, match="compile=on"):
        classifier().resolve(settings(compile="on"), split)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    of, recipe = member(numbers(), tmp_path), regressor()
    fitted(recipe, of, settings())
    path = of.folder / "weights.safetensors"
    with pytest.raises(UserError, match="does not fit"):
        replace(recipe, model=lambda c, t: nn.Linear(3, 2)).restore(of.folder, settings(), {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged"):
        recipe.restore(of.folder, settings(), {})
    assert convolution(
        settings(), recipe._task(pictures().split(np.arange(4), "train"), settings())
    )


@pytest.mark.parametrize("engine", ["solo", "stacked"])
def test_small_training_waits_for_no_library_that_it_does_not_use(
    engine: str, project: Path
) -> None:
    typed = ["train", "fit_1d", "neural", "epochs=1", "min_steps=0", "polish=0", "folds=2"]
    typed += [f"engine={engine}"]
    code = (
        f"import sys; from kagglekit.cli import main; ended = main({typed!r});"
        "slow = ['torch._dynamo', 'scipy', 'sklearn', 'timm', 'albumentations', 'torchvision'];"
        "sys.exit(repr([ended, *(name for name in slow if name in sys.modules)]))"
    )
    root = Path(__file__).parents[1]
    paths = {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **paths}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "[0]"
    assert ("train stacked" in done.stderr) == (engine == "stacked")
