"""Law 1: a member of a cohort answers as the same member alone."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kagglekit import checkpoint, choices, signals
from kagglekit.augment import affine, compose, contrast, crop, erase, in_parts, nothing
from kagglekit.cohort import Cohort
from kagglekit.ensemble import Ensemble
from kagglekit.errors import DivergedError
from kagglekit.network import Network
from kagglekit.objectives import leaves
from kagglekit.recipe import Member
from kagglekit.stacking import Stack
from kagglekit.train import Saver, seed_draws, seen, start
from tests.engine import (
    KilledError,
    answers,
    classifier,
    convolution,
    dense,
    killed_at_save,
    member,
    numbers,
    on_one_thread,  # noqa: F401
    pictures,
    regressor,
    settings,
)

NAMES = ("fold0-seed0", "fold1-seed0", "fold2-seed0")


def members(data: Any, run: Path, names: Any = NAMES, unequal: bool = False) -> list[Member]:
    """Members of one run, of folds of one size or of unequal ones."""
    made = []
    for place, name in enumerate(names):
        rows = np.arange(len(data.train))
        valid = (rows % max(len(names), 2)) == place
        if unequal and place == len(names) - 1:
            valid |= rows < 40
        of = member(data, run / name, name=name, seed=place)
        made.append(replace(of, train=data.split(rows[~valid], "train"),
                            valid=data.split(rows[valid], "valid")))  # fmt: skip
    return made


def learned(recipe: Network[Any], cohort: list[Member], config: Any) -> dict[str, Any]:
    recipe.fit(cohort, config)
    return {of.name: load_file(of.folder / "weights.safetensors") for of in cohort}


def engines(run: Path) -> dict[str, str]:
    return {name: one.engine for one in choices.recorded(run) for name in one.members}


def demand_alike(recipe: Network[Any], data: Any, path: Path, most: float, **knobs: Any) -> None:
    unequal = knobs.pop("unequal", False)
    apart = learned(recipe, members(data, path / "solo", unequal=unequal),
                    settings(engine="solo", **knobs))  # fmt: skip
    joint = learned(recipe, members(data, path / "stacked", unequal=unequal),
                    settings(engine="stacked", **knobs))  # fmt: skip
    assert set(engines(path / "solo").values()) == {"solo"}
    found = engines(path / "stacked")
    assert list(found.values()).count("stacked") == (2 if unequal else 3), choices.recorded(
        path / "stacked"
    )
    assert not list((path / "stacked").glob("*.bin"))
    for name, weights in apart.items():
        for key, weight in weights.items():
            other = joint[name][key]
            assert weight.dtype == other.dtype
            size = weight.double().norm().clamp_min(1e-3)
            error = float((weight.double() - other.double()).norm() / size)
            assert error <= most, f"{key} of {name} is {error:.2g} apart"
    answered = [
        [answers(recipe, of, settings()) for of in members(data, path / kind, unequal=unequal)]
        for kind in ("solo", "stacked")
    ]
    np.testing.assert_allclose(*answered, atol=most * np.abs(answered[0]).max())
    first, second, *_ = joint.values()
    assert any(not torch.equal(first[key], second[key]) for key in first)


ROUNDED = {"bf16": 0.05, "fp16": 0.02}

KNOBS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd"},
    "muon": {"optimizer": "muon"},
    "ema": {"ema": 0.8},
    "dropout": {"dropout": 0.3},
    "mixup": {"mixup": 0.4},
    "clip": {"clip_norm": 0.01},
    "accumulate": {"accumulate": 3},
    "patience": {"patience": 1, "holdout": 0.2, "epochs": 8, "lr": 0.3},
    "lbfgs": {"epochs": 2, "polish": 4, "holdout": 0.2},
    "gauss_newton": {"epochs": 2, "polish": 4, "holdout": 0.2, "polish_method": "gauss_newton"},
    "all": {"ema": 0.8, "dropout": 0.2, "mixup": 0.2, "clip_norm": 0.1, "accumulate": 2},
    "bf16": {"precision": "bf16"},
    "fp16 muon": {"precision": "fp16", "optimizer": "muon", "accumulate": 3},
    "fp16 all": {"precision": "fp16", "ema": 0.8, "dropout": 0.2, "clip_norm": 0.1, "mixup": 0.2},
    "unequal": {"unequal": True, "batch_size": 16},
}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_dense_members_learn_in_a_cohort_what_they_learn_alone(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    # bf16 rounds each product otherwise; L-BFGS carries the last digit of its start far
    most = ROUNDED.get(knobs.get("precision", ""), 0.02 if "polish" in knobs else 1e-4)
    demand_alike(regressor(), numbers(), tmp_path, most, **knobs)


PICTURES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd"},
    "muon": {"optimizer": "muon", "accumulate": 2},
    "ema and dropout": {"ema": 0.8, "dropout": 0.3},
    "mixup and clipping": {"mixup": 0.4, "clip_norm": 0.1},
    "patience": {"patience": 1, "holdout": 0.2, "epochs": 6},
    "bf16": {"precision": "bf16", "optimizer": "sgd"},
    "bf16 and dropout": {"precision": "bf16", "ema": 0.8, "dropout": 0.2, "optimizer": "sgd"},
    "fp16": {"precision": "fp16", "optimizer": "sgd", "ema": 0.8, "dropout": 0.2},
    "contiguous": {"channels_last": False},
}


def normed(config: Any, task: Any) -> nn.Module:
    """As `convolution`, without the bias that BatchNorm takes away again.

    The gradient of that is rounding alone, of which AdamW makes steps of full size.
    """
    model = convolution(config, task)
    assert isinstance(model, nn.Sequential)
    model[0] = nn.Conv2d(task.inputs[0], 6, 3, padding=1, bias=False)
    return model


@pytest.mark.parametrize("knobs", PICTURES.values(), ids=PICTURES)
def test_convolutions_with_batch_norm_learn_in_a_cohort_what_they_learn_alone(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    recipe = classifier(model=normed, augment=lambda config: affine(degrees=10, translate=0.1))
    most = ROUNDED.get(knobs.get("precision", ""), 2e-3)
    demand_alike(recipe, pictures(), tmp_path, most, **knobs)


class Scaled(nn.Sequential):
    """With a weight that is a single number."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = nn.Sequential(*list(self.children())).forward(inputs)
        return outputs * self.factor


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_members_with_a_weight_that_is_a_number_learn_in_a_cohort_what_they_learn_alone(
    precision: str, tmp_path: Path
) -> None:
    recipe = regressor(model=lambda config, task: Scaled(*dense(config, task).children()))
    most = ROUNDED.get(precision, 1e-4)
    demand_alike(recipe, numbers(), tmp_path, most, precision=precision, clip_norm=0.1)


class Summed(nn.Module):
    """Two biases that are added: autograd gives them one gradient."""

    def __init__(self, inner: nn.Module, outputs: int) -> None:
        super().__init__()
        self.inner = inner
        self.first, self.second = (nn.Parameter(torch.zeros(outputs)) for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.inner(inputs) + (self.first + self.second)
        return outputs


@pytest.mark.parametrize("knobs", [{"clip_norm": 0.01}, {"accumulate": 3}], ids=str)
def test_weights_that_are_summed_have_a_gradient_each(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    def build(config: Any, task: Any) -> nn.Module:
        return Summed(dense(config, task), task.outputs)

    demand_alike(regressor(model=build), numbers(), tmp_path, 1e-3, optimizer="sgd", **knobs)


# --- one reading and one augmentation for all ----------------------------------------------------

AUGMENTS = {
    "none": nothing,
    "built in": compose(affine(degrees=10), crop(1), erase(0.5), contrast(0.2)),
    "own": lambda inputs, generator: inputs * torch.rand(1, generator=generator),
}


@pytest.mark.parametrize("mixes", [0.0, 0.4])
@pytest.mark.parametrize("name", AUGMENTS)
def test_a_stack_sees_to_the_bit_what_each_member_sees_alone(
    name: str, mixes: float, tmp_path: Path
) -> None:
    config = settings(mixup=mixes)
    recipe = classifier(augment=lambda config: AUGMENTS[name])
    plans = [recipe._planned(of, config) for of in members(pictures(), tmp_path)]
    cohort = Cohort(plans, Saver(tmp_path / "c.bin", plans[0].stamp, config), {})
    cohort._join([cohort._seated(plan) for plan in plans])
    assert cohort.rows.columns
    for seat in cohort.seats:
        seed_draws(seat.plan, seat.state)
    found = list(cohort._batches())
    assert len(found) == 4
    for place, plan in enumerate(plans):
        state = start(plan)
        seed_draws(plan, state)
        for batch, alone in zip(found, plan.loader.batches(0), strict=True):
            wanted, got = leaves(seen(plan, alone, state.draws)), leaves(batch)
            assert all(torch.equal(part[place], own) for part, own in
                       zip(got, wanted, strict=True))  # fmt: skip


def test_augmentations_that_cannot_be_compared_change_each_member_by_itself(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Brighter:
        by: torch.Tensor

        @in_parts
        def __call__(self, inputs: torch.Tensor, draws: Any) -> torch.Tensor:
            return inputs + self.by

    recipe = classifier(augment=lambda config: Brighter(torch.full((1, 8, 8), 0.1)))
    recipe.fit(members(pictures(), tmp_path), settings(engine="stacked"))
    assert set(engines(tmp_path).values()) == {"stacked"}


def test_all_members_are_changed_at_once_where_the_augmentation_knows_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[int] = []
    turn = affine.__call__

    def counted(change: affine, inputs: torch.Tensor, draws: Any) -> torch.Tensor:
        images.append(len(inputs))
        return turn(change, inputs, draws)

    monkeypatch.setattr(affine, "__call__", counted)
    for knows_how in (True, False):
        images.clear()
        vars(counted)["in_parts"] = knows_how
        recipe = classifier(augment=lambda config: affine(degrees=10))
        made = members(pictures(), tmp_path / str(knows_how))
        recipe.fit(made, settings(engine="stacked", epochs=1))
        assert images.count(3 * 16 if knows_how else 16) >= 4
        assert (3 * 16 in images) == knows_how


# --- law 2 --------------------------------------------------------------------------------------

BROKEN: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "all": {"ema": 0.8, "dropout": 0.2, "mixup": 0.2, "clip_norm": 0.1, "accumulate": 2},
    "patience": {"patience": 1, "holdout": 0.2, "epochs": 8, "lr": 0.3},
    "lbfgs": {"epochs": 2, "polish": 3, "holdout": 0.2, "patience": 3, "ema": 0.9},
    "gauss_newton": {"epochs": 2, "polish": 3, "holdout": 0.2, "polish_method": "gauss_newton"},
}


def files_of(cohort: list[Member]) -> dict[str, bytes]:
    names = ("weights.safetensors", "trained.json")
    return {f"{of.name}/{name}": (of.folder / name).read_bytes() for of in cohort for name in names}


@pytest.mark.parametrize("knobs", BROKEN.values(), ids=BROKEN)
def test_a_cohort_killed_and_trained_again_equals_an_unbroken_one(
    knobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, recipe = settings(engine="stacked", **knobs), regressor()
    whole = members(numbers(), tmp_path / "whole")
    recipe.fit(whole, config)
    for saves in (1, 3, 7):
        run = tmp_path / f"after {saves}"
        broken = members(numbers(), run)
        with monkeypatch.context() as context:
            killed_at_save(context, saves)
            with pytest.raises(KilledError):
                recipe.fit(broken, config)
        assert (run / "cohort-fold0-seed0.bin").exists()
        left = [of for of in broken if not (of.folder / "weights.safetensors").exists()]
        recipe.fit(left, config)
        assert files_of(broken) == files_of(whole), saves
        assert not list(run.glob("*.bin"))


def test_batch_statistics_of_a_cohort_survive_a_kill(tmp_path: Path) -> None:
    config = settings(engine="stacked", ema=0.9, dropout=0.2, precision="bf16")
    recipe = classifier(augment=lambda config: affine(degrees=10))

    def dying(epoch: int, answers: Any = None, **figures: float) -> None:
        if epoch == 3:
            raise KilledError

    whole, broken = members(pictures(), tmp_path / "a"), members(pictures(), tmp_path / "b")
    recipe.fit(whole, config)
    with pytest.raises(KilledError):
        recipe.fit([*broken[:2], replace(broken[2], record=dying)], config)
    recipe.fit(broken, config)
    assert files_of(broken) == files_of(whole)


def test_members_that_are_kept_wait_for_the_others_of_their_stack_and_all_end_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, recipe = settings(engine="stacked", polish=2, holdout=0.2), regressor()
    whole, broken = members(numbers(), tmp_path / "a"), members(numbers(), tmp_path / "b")
    recipe.fit(whole, config)
    asked: list[list[str]] = []

    def listed(member: Member) -> Member:
        def done(*others: Member) -> None:
            asked.append([one.name for one in (member, *others)])

        return replace(member, done=done)

    keep = Network._keep

    def die_before_the_last(*given: Any) -> None:
        if given[1].name == broken[2].name:
            raise KilledError
        keep(*given)

    with monkeypatch.context() as context:
        context.setattr(Network, "_keep", die_before_the_last)
        with pytest.raises(KilledError):
            recipe.fit(list(map(listed, broken)), config)
    assert not asked
    recipe.fit(list(map(listed, broken)), config)
    assert asked == [[member.name for member in broken]]
    assert files_of(broken) == files_of(whole)
    assert not list((tmp_path / "b").glob("*.bin"))
    recipe.fit(list(map(listed, broken[1:])), config)  # killed before these were answered
    assert asked[1:] == [[member.name for member in broken[1:]]]


def test_those_that_are_kept_are_asked_together_also_where_another_bursts_again(
    tmp_path: Path,
) -> None:
    config, recipe = settings(engine="stacked"), regressor()
    cohort = members(numbers(), tmp_path)
    asked: list[list[str]] = []

    def listed(member: Member) -> Member:
        def done(*others: Member) -> None:
            asked.append([one.name for one in (member, *others)])

        return replace(member, done=done)

    given = [listed(cohort[0]), bursting(listed(cohort[1]), config), listed(cohort[2])]
    for session in range(1, 3):  # the second as after a kill before they had answered
        with pytest.raises(DivergedError):
            recipe.fit(given, config)
        assert asked == [[cohort[0].name, cohort[2].name]] * session


def test_a_signal_while_members_answer_leaves_no_checkpoint_of_what_is_kept(tmp_path: Path) -> None:
    config = settings(engine="stacked", checkpoint_seconds=3600)
    cohort = members(numbers(), tmp_path)

    def interrupted(*others: Member) -> None:
        raise signals.Interrupted(signal.SIGTERM)

    with pytest.raises(signals.Interrupted):
        regressor().fit([replace(member, done=interrupted) for member in cohort], config)
    assert all((member.folder / "weights.safetensors").exists() for member in cohort)
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("purpose", ["watched", "scored"])
def test_memory_that_does_not_hold_all_when_they_are_asked_ends_no_training(
    purpose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    knobs: dict[str, Any] = {"score_every": 1} if purpose == "scored" else KNOBS["patience"]
    config, recipe = settings(engine="stacked", **knobs), regressor()
    usual, full = members(numbers(), tmp_path / "a"), members(numbers(), tmp_path / "b")
    recipe.fit(usual, config)
    calls, ask = [0], Ensemble.__call__

    def hungry(ensemble: Ensemble, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] > 5:
            raise torch.OutOfMemoryError("no memory")
        return ask(ensemble, batch)

    monkeypatch.setattr(Ensemble, "__call__", hungry)
    recipe.fit(full, config)
    assert "asks its members one by one: there is not memory for all" in caplog.text
    assert "halves" not in caplog.text
    assert set(engines(tmp_path / "b").values()) == {"stacked"}
    for one, other in zip(usual, full, strict=True):
        found, wanted = (load_file(of.folder / "weights.safetensors") for of in (other, one))
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["step", "scoring"])
def test_a_signal_is_obeyed_after_the_round_and_nothing_is_lost(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(engine="stacked", dropout=0.2, checkpoint_seconds=3600)
    recipe = regressor()
    whole, broken = members(numbers(), tmp_path / "a"), members(numbers(), tmp_path / "b")
    recipe.fit(whole, config)

    def record(epoch: int, answers: Any = None, **figures: float) -> None:
        if place == "scoring" and epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    backward, rounds = Stack.backward, [0]

    def interrupted(self: Stack, *given: Any) -> torch.Tensor:
        rounds[0] += 1
        if place == "step" and rounds[0] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Stack, "backward", interrupted)
        with signals.handled(), pytest.raises(signals.Interrupted):
            recipe.fit([broken[0], replace(broken[1], record=record), broken[2]], config)
    assert (tmp_path / "b" / "cohort-fold0-seed0.bin").exists()
    recipe.fit(broken, config)
    assert files_of(broken) == files_of(whole)


def test_the_cohort_of_the_beginning_is_kept_whatever_is_asked_for_later(tmp_path: Path) -> None:
    made = members(numbers(), tmp_path)

    def dying(epoch: int, answers: Any = None, **figures: float) -> None:
        if epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        regressor().fit([replace(made[0], record=dying), made[1]], settings(engine="stacked"))
    begun = choices.recorded(tmp_path)
    assert [choice.members for choice in begun] == [NAMES[:2]]
    regressor().fit(made, settings(engine="solo"))
    assert engines(tmp_path) == dict(zip(NAMES, ("stacked", "stacked", "solo"), strict=True))
    expected = members(numbers(), tmp_path / "expected")
    regressor().fit(expected[:2], settings(engine="stacked"))
    assert files_of(made[:2]) == files_of(expected[:2])


# --- each for itself ----------------------------------------------------------------------------


def bursting(of: Member, config: Any) -> Member:
    """The member with one infinite target, in its second batch."""
    position = int(regressor()._planned(of, config).loader.order(0)[20])
    target = of.train.data.target.copy()
    target[of.train.rows[position]] = np.inf
    return replace(of, train=replace(of.train, data=replace(of.train.data, target=target)))


def test_a_member_that_bursts_stops_alone_and_the_others_learn_the_same(tmp_path: Path) -> None:
    config, recipe = settings(engine="stacked", optimizer="sgd"), regressor()
    first, second, third = members(numbers(), tmp_path)
    with pytest.raises(DivergedError, match="fold1-seed0: the loss became") as caught:
        recipe.fit([first, bursting(second, config), third], config)
    assert list(caught.value.members) == ["fold1-seed0"]
    assert set(engines(tmp_path).values()) == {"stacked"}
    alone = members(numbers(), tmp_path / "alone")
    recipe.fit(alone, settings(engine="solo", optimizer="sgd"))
    for of, other in ((first, alone[0]), (third, alone[2])):
        ours, theirs = (load_file(one.folder / "weights.safetensors") for one in (of, other))
        for key, weight in ours.items():
            torch.testing.assert_close(weight, theirs[key], rtol=1e-3, atol=1e-5)
    assert not (second.folder / "weights.safetensors").exists()
    with pytest.raises(DivergedError, match="fold1-seed0: the loss became"):
        recipe.fit([bursting(second, config)], config)
    found = checkpoint.load(tmp_path / "cohort-fold0-seed0.bin")
    assert found is not None
    stopped = found.members["fold1-seed0"]
    assert "failed" in stopped
    assert (stopped["progress"]["epoch"], stopped["progress"]["batch"]) == (0, 1)


def test_others_go_on_after_a_burst_and_a_kill_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, recipe = settings(engine="stacked", optimizer="sgd"), regressor()
    cohorts = []
    for name in ("a", "b"):
        first, second, third = members(numbers(), tmp_path / name)
        cohorts.append([first, bursting(second, config), third])
    with pytest.raises(DivergedError):
        recipe.fit(cohorts[0], config)
    with monkeypatch.context() as context:
        killed_at_save(context, 3)
        with pytest.raises(KilledError):
            recipe.fit(cohorts[1], config)
    with pytest.raises(DivergedError, match="fold1-seed0"):
        recipe.fit(cohorts[1], config)
    assert set(engines(tmp_path / "a").values()) == {"stacked"}
    assert files_of(cohorts[0][::2]) == files_of(cohorts[1][::2])


def test_a_finished_member_costs_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward, sizes = Stack.backward, []

    def counted(self: Stack, *given: Any) -> torch.Tensor:
        sizes.append(len(self.models))
        return backward(self, *given)

    monkeypatch.setattr(Stack, "_compare", lambda *given: None)
    monkeypatch.setattr(Stack, "backward", counted)
    knobs = {"patience": 1, "holdout": 0.2, "epochs": 12, "lr": 0.3}
    epochs: dict[str, int] = {}
    cohort = [
        replace(of, record=lambda epoch, answers=None, name=of.name, **figures: epochs.update(
            {name: epoch}))
        for of in members(numbers(), tmp_path)
    ]  # fmt: skip
    regressor().fit(cohort, settings(engine="stacked", **knobs))
    assert len(set(epochs.values())) > 1
    steps = len(sizes) // max(epochs.values())
    assert sum(sizes) == steps * sum(epochs.values())
    assert sizes == sorted(sizes, reverse=True)


def test_a_member_s_history_is_its_own(tmp_path: Path) -> None:
    noted: dict[str, list[tuple[int, float]]] = {}

    def noting(name: str) -> Any:
        def record(epoch: int, answers: Any = None, **figures: float) -> None:
            noted.setdefault(name, []).append((epoch, figures["loss"]))
            assert (answers is not None) == (epoch % 2 == 0)
            if answers is not None:
                assert answers.shape == (32, 2)

        return record

    config = settings(engine="stacked", score_every=2)
    cohort = [replace(of, record=noting(of.name)) for of in members(numbers(), tmp_path)]
    regressor().fit(cohort, config)
    assert [epoch for epoch, _ in noted["fold1-seed0"]] == [1, 2, 3, 4]
    told = json.loads((cohort[1].folder / "trained.json").read_text())
    assert told["losses"] == [loss for _, loss in noted["fold1-seed0"]]
    assert noted["fold0-seed0"] != noted["fold1-seed0"]
