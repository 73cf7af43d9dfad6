"""Members that were trained as a stack are asked together, and answer as each does alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kagglekit import views
from kagglekit.asking import Asker
from kagglekit.ensemble import Ensemble
from kagglekit.network import Network, NetworkPredictor
from kagglekit.recipe import Member
from kagglekit.run import ASKED, Answers, Run
from tests.engine import (
    KilledError,
    classifier,
    numbers,
    on_one_thread,
    pictures,
    regressor,
    settings,
)
from tests.test_cohort import members

__all__ = ["on_one_thread"]
CONFIG = settings(engine="stacked", batch_size=12)


def shown(config: Any) -> tuple[views.View, ...]:
    return views.original, views.mirrored


def fitted(folder: Path, recipe: Network[Any], data: Any = numbers) -> tuple[Asker, list[Member]]:
    made = data()
    cohort = members(made, folder, unequal=True)
    recipe.fit(cohort, CONFIG)
    return Asker(recipe, CONFIG, Run(folder), made.split(np.arange(20), "test"), False), cohort


def same(found: Answers, wanted: Answers, near: float = 0.0) -> None:
    np.testing.assert_array_equal(found.valid_rows, wanted.valid_rows)
    np.testing.assert_array_equal(found.views, wanted.views)
    for name in ("valid", "test", "valid_views"):
        pair = getattr(found, name), getattr(wanted, name)
        np.testing.assert_allclose(*pair, rtol=near, atol=near)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody is asked alone any more."""

    def refuse(*given: Any) -> Iterator[np.ndarray]:
        raise AssertionError("asked alone")
        yield

    monkeypatch.setattr(NetworkPredictor, "batches", refuse)
    return monkeypatch


@pytest.mark.parametrize("each_view", [False, True])
@pytest.mark.parametrize("kind", ["numbers", "pictures"])
def test_all_answers_are_gathered_at_once_and_are_those_of_each_alone(
    kind: str, each_view: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe, data = (regressor(), numbers) if kind == "numbers" else (
        classifier(views=shown), pictures)  # fmt: skip
    asker, cohort = fitted(tmp_path, recipe, data)
    asker = replace(asker, each_view=each_view)
    alone = [asker(member) for member in cohort]
    for member in cohort:
        for name in ASKED.values():
            (member.folder / name).unlink()
    request.getfixturevalue("forbidden")
    asker.together(cohort)
    for member, wanted in zip(cohort, alone, strict=True):
        same(asker(member), wanted, near=1e-5)
    assert not np.allclose(alone[0].test, alone[1].test, atol=1e-4)


@pytest.mark.parametrize("fatal", [1, 2, 3, 5])
def test_a_kill_amid_the_asking_changes_no_bit(
    fatal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = regressor()
    asker, cohort = fitted(tmp_path / "a", recipe)
    asker.together(cohort)
    wanted = [asker(member) for member in cohort]
    broken, again = fitted(tmp_path / "b", recipe)
    asked, ask = [0], Ensemble.__call__

    def dying(ensemble: Ensemble, batch: Any) -> Any:
        asked[0] += len(batch) == 1 and batch[0].dtype == torch.float32
        if asked[0] == fatal:
            raise KilledError
        return ask(ensemble, batch)

    with monkeypatch.context() as context:
        context.setattr(Ensemble, "__call__", dying)
        with pytest.raises(KilledError):
            broken.together(again)
    broken.together(again)
    for member, answers in zip(again, wanted, strict=True):
        same(broken(member), answers)


def test_a_fit_on_all_rows_has_none_to_validate(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    asker, cohort = fitted(tmp_path, regressor())
    nothing = cohort[1].valid.take(np.arange(0))
    cohort[1] = replace(cohort[1], valid=nothing)
    request.getfixturevalue("forbidden")
    asker.together(cohort)
    rows = [len(member.valid) for member in cohort]
    assert [len(asker(member).valid) for member in cohort] == rows
    assert rows[1] == 0 < rows[0] < rows[2]


class Stepped(nn.Module):
    """Looks at its numbers before it knows what to answer; in training it does not."""

    def __init__(self, *given: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        answers = self.layer(inputs)
        if self.training or float(answers.mean()) > 1e9:
            return answers
        return answers + 1


def test_those_that_cannot_be_asked_together_are_asked_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asker, cohort = fitted(tmp_path, regressor(model=Stepped))
    asker.together(cohort)
    assert caplog.text.count("asks its members one by one") == 1
    assert all(asker(member).test.shape == (20, 2) for member in cohort)


@pytest.mark.parametrize("seconds", [0, 1000])
@pytest.mark.parametrize("fatal", [2, 4])
def test_memory_for_one_alone_is_enough_and_when_it_was_saved_makes_no_difference(
    fatal: int,
    seconds: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does it that fewer members, those that a killed session has left, would fit."""
    asker, cohort = fitted(tmp_path / "a", regressor())
    wanted = [asker(member) for member in cohort]
    full, others = fitted(tmp_path / "b", regressor())
    full = replace(full, config=replace(CONFIG, checkpoint_seconds=seconds))
    calls, ask = [0], Ensemble.__call__

    def hungry(ensemble: Ensemble, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == fatal:
            raise torch.OutOfMemoryError("no memory")
        return ask(ensemble, batch)

    monkeypatch.setattr(Ensemble, "__call__", hungry)
    full.together(others)
    assert "there is not memory for all" in caplog.text
    full.together(others[1:])
    assert calls[0] == fatal
    for member, answers in zip(others, wanted, strict=True):
        same(full(member), answers)
