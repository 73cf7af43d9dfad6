"""Members side by side: laws 1 and 2 of `engine=streams`."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kagglekit import choices, devices, engine, signals, train, trial
from kagglekit.augment import affine
from kagglekit.choices import Choice
from kagglekit.cli import main
from kagglekit.errors import DivergedError
from kagglekit.lanes import Lanes
from kagglekit.network import Network
from kagglekit.run import Run
from kagglekit.train import Plan
from tests import miniatures
from tests.engine import (
    KilledError,
    classifier,
    killed_at_save,
    member,
    numbers,
    on_one_thread,  # noqa: F401
    pictures,
    regressor,
    settings,
    weights,
)
from tests.test_cohort import BROKEN, KNOBS, PICTURES, bursting, engines, files_of, members


def fitted(run: Path, recipe: Network[Any], data: Any, **knobs: Any) -> list[bytes]:
    made = members(data, run, unequal=knobs.pop("unequal", False))
    recipe.fit(made, settings(**knobs))
    return [weights(of.folder) for of in made]


# --- law 1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_members_learn_side_by_side_what_they_learn_alone_to_the_bit(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    alone = fitted(tmp_path / "alone", regressor(), numbers(), engine="solo", **knobs)
    beside = fitted(tmp_path / "beside", regressor(), numbers(), engine="streams", **knobs)
    assert set(engines(tmp_path / "beside").values()) == {"streams"}
    assert beside == alone
    assert len({*alone}) == 3


@pytest.mark.parametrize("knobs", PICTURES.values(), ids=PICTURES)
def test_convolutions_learn_side_by_side_what_they_learn_alone_to_the_bit(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    recipe = classifier(augment=lambda config: affine(degrees=10, translate=0.1))
    alone = fitted(tmp_path / "alone", recipe, pictures(), engine="solo", **knobs)
    beside = fitted(tmp_path / "beside", recipe, pictures(), engine="streams", **knobs)
    assert set(engines(tmp_path / "beside").values()) == {"streams"}
    assert beside == alone


def test_several_train_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, learn = threading.Barrier(2), train.learn
    met = set()

    def waiting(*given: Any) -> Any:
        if threading.get_ident() not in met:  # the first step of each lane
            met.add(threading.get_ident())
            meeting.wait(30)
        return learn(*given)

    monkeypatch.setattr(train, "learn", waiting)
    made = members(numbers(), tmp_path)[:2]
    regressor().fit(made, settings(engine="streams"))
    assert len(met) == 2


class Drawing(nn.Linear):
    """Draws from the generators of all."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) + 0.01 * torch.randn(1)


@pytest.mark.parametrize(
    ("model", "knobs", "why"),
    [
        (lambda config, task: Drawing(3, 2), {}, "it draws random numbers outside nn.Dropout"),
        (None, {"data": "streamed"}, "rows are streamed"),
    ],
)
def test_members_that_would_disturb_each_other_train_one_by_one(
    model: Any, knobs: dict[str, Any], why: str, tmp_path: Path
) -> None:
    recipe = regressor() if model is None else regressor(model=model)
    made = members(numbers(), tmp_path)
    recipe.fit(made, settings(engine="streams", **knobs))
    (choice,) = choices.recorded(tmp_path)
    assert (choice.engine, choice.why) == ("solo", why)


# --- law 2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", BROKEN.values(), ids=BROKEN)
def test_members_killed_side_by_side_and_trained_again_equal_unbroken_ones(
    knobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, recipe = settings(engine="streams", **knobs), regressor()
    whole = members(numbers(), tmp_path / "whole")
    recipe.fit(whole, config)
    for saves in (1, 8):
        run = tmp_path / f"after {saves}"
        broken = members(numbers(), run)
        with monkeypatch.context() as context:
            killed_at_save(context, saves)
            with pytest.raises(KilledError):
                recipe.fit(broken, config)
        assert list(run.rglob("checkpoint.bin"))
        left = [of for of in broken if not (of.folder / "weights.safetensors").exists()]
        recipe.fit(left, config)
        assert files_of(broken) == files_of(whole), saves
        assert not list(run.rglob("*.bin"))


def test_a_signal_is_obeyed_by_all_lanes_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(engine="streams", dropout=0.2, checkpoint_seconds=3600, epochs=30)
    recipe, learn, steps = regressor(), train.learn, [0]
    whole, broken = members(numbers(), tmp_path / "a"), members(numbers(), tmp_path / "b")
    recipe.fit(whole, config)

    def interrupted(*given: Any) -> Any:
        steps[0] += 1
        if steps[0] == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(*given)

    with monkeypatch.context() as patch:
        patch.setattr(train, "learn", interrupted)
        with signals.handled(), pytest.raises(signals.Interrupted):
            recipe.fit(broken, config)
    assert len(list((tmp_path / "b").rglob("checkpoint.bin"))) == 2  # both lanes had begun
    assert not [one for one in threading.enumerate() if one.name.startswith("lane")]
    recipe.fit(broken, config)
    assert files_of(broken) == files_of(whole)


def test_a_member_that_bursts_stops_alone(tmp_path: Path) -> None:
    config = settings(engine="streams", optimizer="sgd")
    first, second, third = members(numbers(), tmp_path)
    with pytest.raises(DivergedError, match="fold1-seed0: the loss became") as caught:
        regressor().fit([first, bursting(second, config), third], config)
    assert list(caught.value.members) == ["fold1-seed0"]
    alone = fitted(tmp_path / "alone", regressor(), numbers(), engine="solo", optimizer="sgd")
    assert [weights(of.folder) for of in (first, third)] == [alone[0], alone[2]]


def test_out_of_memory_halves_the_lanes_and_goes_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fitted(tmp_path / "solo", regressor(), numbers(), engine="solo")
    learn = train.learn

    def full(*given: Any) -> Any:
        (choice,) = choices.recorded(tmp_path / "halved")
        if choice.lanes > 1 and given[0].name == "fold1-seed0":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learn(*given)

    monkeypatch.setattr(train, "learn", full)
    found = fitted(tmp_path / "halved", regressor(), numbers(), engine="streams")
    (choice,) = choices.recorded(tmp_path / "halved")
    assert (choice.engine, choice.lanes) == ("streams", 1)
    assert any("more memory than there is" in line for line in caplog.messages)
    assert found == expected


# --- the decision -------------------------------------------------------------------------------


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(engine, "_SHORT", 0.0)
    monkeypatch.setattr(engine, "_SHORTEST", 0.0)
    yield
    torch.set_num_threads(before)


def wide(plan: Plan) -> Plan:
    """As if its matrices were large."""
    return replace(plan, multiplications=1e12)


def decided(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    planned = Network._planned
    monkeypatch.setattr(Network, "_planned", lambda *given: wide(planned(*given)))
    monkeypatch.setattr(engine, "_trained", lambda *given: {})
    names = tuple(f"fold{place}-seed0" for place in range(count))
    made = members(numbers(), tmp_path, names)
    regressor().fit(made, settings(engine="auto", epochs=80, checkpoint_seconds=3600))
    return choices.recorded(tmp_path)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("stacked", "beside", "wanted"),
    [(0.5, 0.8, "stacked"), (0.8, 0.5, "streams"), (1.2, 0.5, "streams"), (1.0, 1.0, "solo")],
)
def test_auto_takes_the_fastest(
    stacked: float, beside: float, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "compared", lambda *given: (1.0, stacked))
    monkeypatch.setattr(trial, "compared_in_lanes", lambda *given: (1.0, beside))
    (choice,) = decided(3, tmp_path, monkeypatch)
    assert choice.engine == wanted
    told = {"stacked": f"{1000 * stacked:g} ms stacked", "streams": "500 ms side by side",
            "solo": "1 s side by side"}  # fmt: skip
    assert told[wanted] in choice.why


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (2, [("streams", 2, 2, 2)]),
        (4, [("streams", 4, 4, 1)]),
        (5, [("streams", 4, 4, 1), ("solo", 1, 1, 0)]),
        (6, [("streams", 4, 4, 1), ("streams", 2, 2, 2)]),
        (7, [("streams", 7, 4, 1)]),
    ],
)
def test_those_that_are_left_over_share_the_cores(
    count: int, wanted: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "compared", lambda *given: (1.0, 1.0))
    monkeypatch.setattr(trial, "compared_in_lanes", lambda *given: (1.0, 0.5))
    found = decided(count, tmp_path, monkeypatch)
    assert [(one.engine, len(one.members), one.lanes, one.threads) for one in found] == wanted


def test_a_trial_of_lanes_times_both_and_changes_nothing(tmp_path: Path) -> None:
    plans = [regressor()._planned(of, settings(dropout=0.2)) for of in members(numbers(), tmp_path)]
    before = [[weight.clone() for weight in plan.model.parameters()] for plan in plans]
    apart, beside = trial.compared_in_lanes(plans, trial.alone(plans[0]), Lanes(2, 1))
    assert min(apart, beside) > 0
    for plan, kept in zip(plans, before, strict=True):
        assert all(map(torch.equal, plan.model.parameters(), kept))


def test_a_member_answers_after_a_kill_by_the_threads_it_would_have_had(tmp_path: Path) -> None:
    data = numbers()
    made = [member(data, tmp_path / name, name=name) for name in ("fold0-seed0", "fold1-seed0")]
    config = settings(engine="streams")
    regressor().fit(made, config)
    (choice,) = choices.recorded(tmp_path)
    choices.write(tmp_path, [replace(choice, threads=2)])
    seen = []
    regressor().fit(
        [replace(of, done=lambda: seen.append(torch.get_num_threads())) for of in made], config
    )
    assert seen == [2, 2]
    assert torch.get_num_threads() == 1


# --- whole runs ---------------------------------------------------------------------------------


def whole(kind: str, capsys: pytest.CaptureFixture[str]) -> Run:
    typed = ["epochs=2", "min_steps=0", "batch_size=32", "optimizer=sgd", f"engine={kind}"]
    assert main(["train", "mics_mnist", "cnn_small", *typed, "folds=3", "--fresh", "--json"]) == 0
    return Run(Path(json.loads(capsys.readouterr().out)["folder"]))


def test_a_run_side_by_side_answers_as_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    miniatures.mics_mnist(Path("data") / "mics_mnist")
    found = {kind: whole(kind, capsys) for kind in ("solo", "streams")}
    run = found["streams"]
    assert {choice.engine for choice in choices.recorded(run.folder)} == {"streams"}
    for name in ("oof.npy", "test.npy"):
        np.testing.assert_array_equal(*(np.load(one.folder / name) for one in found.values()))
    noted = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    for key in run.members():
        assert [one["epoch"] for one in noted if one["member"] == key.name] == [1, 2]
    assert not list(run.folder.rglob("*.bin"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("knobs", [
    {"ema": 0.8, "mixup": 0.2, "clip_norm": 0.1, "dropout": 0.3},
    {"precision": "bf16", "optimizer": "muon"},
    {"precision": "fp16", "accumulate": 2},
    {"compile": "on", "optimizer": "sgd"},
], ids=str)  # fmt: skip
def test_streams_of_a_gpu_learn_what_members_learn_alone(
    knobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda"))
    recipe = classifier(augment=lambda config: affine(degrees=10))
    found = []
    for kind in ("solo", "streams"):
        made = members(pictures(), tmp_path / kind)
        recipe.fit(made, settings(engine=kind, **knobs))
        assert set(engines(tmp_path / kind).values()) == {kind}
        found.append([recipe.restore(of.folder, settings(), {})(of.valid) for of in made])
    np.testing.assert_allclose(*found, atol=0.1 if "precision" in knobs else 1e-3)
