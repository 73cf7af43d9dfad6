from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn
from torch.nn import functional as F

from kagglekit import checkpoint, devices, signals, train
from kagglekit.errors import DivergedError, UserError
from kagglekit.network import Network
from kagglekit.objectives import Objective, multiclass, regression
from tests.conftest import ROOT
from tests.engine import (
    KilledError,
    answers,
    classifier,
    dense,
    fitted,
    killed_at_save,
    member,
    numbers,
    on_one_thread,  # noqa: F401
    pictures,
    regressor,
    settings,
    tensors,
    weights,
)

KNOBS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd"},
    "muon": {"optimizer": "muon"},
    "ema": {"ema": 0.8},
    "dropout": {"dropout": 0.3},
    "mixup": {"mixup": 0.4},
    "accumulate": {"accumulate": 2},
    "patience": {"patience": 3, "holdout": 0.2},
    "lbfgs": {"epochs": 2, "polish": 4, "holdout": 0.2},
    "gauss_newton": {"epochs": 2, "polish": 4, "holdout": 0.2, "polish_method": "gauss_newton"},
    "ema and lbfgs": {"epochs": 2, "ema": 0.8, "polish": 4, "holdout": 0.2},
    "streamed": {"data": "streamed", "workers": 1, "dropout": 0.3},
}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_a_member_killed_and_trained_again_equals_an_unbroken_one(
    knobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config, recipe = numbers(), settings(**knobs), regressor()
    unbroken = member(data, tmp_path / "whole")
    expected = fitted(recipe, unbroken, config)
    answered = answers(recipe, unbroken, config)
    for saves in (1, 3, 6):
        broken = member(data, tmp_path / f"after {saves}")
        with monkeypatch.context() as context:
            killed_at_save(context, saves)
            with pytest.raises(KilledError):
                recipe.fit([broken], config)
        assert not (broken.folder / "weights.safetensors").exists()
        assert fitted(recipe, broken, config) == expected, saves
        np.testing.assert_array_equal(answers(recipe, broken, config), answered)


def test_batch_statistics_survive_a_kill_in_the_middle_of_an_epoch_s_end(tmp_path: Path) -> None:
    config, recipe, data = (
        settings(ema=0.9, dropout=0.2, precision="bf16"),
        classifier(),
        pictures(),
    )

    def dying(epoch: int, answers: Any = None, **figures: float) -> None:
        if epoch == 3:
            raise KilledError

    expected = fitted(recipe, member(data, tmp_path / "a"), config)
    with pytest.raises(KilledError):
        recipe.fit([member(data, tmp_path / "b", record=dying)], config)
    assert fitted(recipe, member(data, tmp_path / "b"), config) == expected


def test_a_process_killed_for_real_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from tests.engine import member, numbers, regressor, settings\n"
        "def record(epoch, answers=None, **figures):\n"
        "    if epoch == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.set_num_threads(1)\n"
        "of = member(numbers(), Path(sys.argv[1]), record=record)\n"
        "regressor().fit([of], settings(dropout=0.2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

    def run(epoch: int) -> int:
        command = [sys.executable, "-c", code, str(tmp_path / "b"), str(epoch)]
        return subprocess.run(command, env=environment, check=False).returncode

    assert run(3) == -signal.SIGKILL
    assert (tmp_path / "b" / "checkpoint.bin").exists()
    config = settings(dropout=0.2)
    expected = fitted(regressor(), member(numbers(), tmp_path / "a"), config)
    assert fitted(regressor(), member(numbers(), tmp_path / "b"), config) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["step", "scoring"])
def test_a_signal_is_obeyed_after_the_step_and_nothing_is_lost(
    place: str, number: int, tmp_path: Path
) -> None:
    data, config = numbers(), settings(dropout=0.2, checkpoint_seconds=3600, score_every=1)
    expected = fitted(regressor(), member(data, tmp_path / "a"), config)
    sound, batches = regression(config).loss, [0]

    def loss(model: nn.Module, batch: Any) -> Any:
        batches[0] += 1
        if place == "step" and batches[0] == 6:
            os.kill(os.getpid(), number)
        return sound(model, batch)

    def record(epoch: int, answers: Any = None, **figures: float) -> None:
        if place == "scoring" and epoch == 2:
            os.kill(os.getpid(), number)

    objective = Objective(loss, lambda model, batch: model(batch[0]))
    recipe = regressor(objective=lambda c: objective)
    with signals.handled(), pytest.raises(signals.Interrupted):
        recipe.fit([member(data, tmp_path / "b", record)], config)
    found = checkpoint.load(tmp_path / "b" / "checkpoint.bin")
    assert found is not None
    progress = found.members["fold0-seed0"]["progress"]
    assert (progress["epoch"], progress["batch"]) == ((1, 2) if place == "step" else (1, 4))
    assert batches[0] == (6 if place == "step" else 8)
    assert fitted(regressor(), member(data, tmp_path / "b"), config) == expected


def test_a_second_signal_in_a_step_keeps_the_checkpoint_before_it(tmp_path: Path) -> None:
    data, config = numbers(), settings(dropout=0.2)
    expected = fitted(regressor(), member(data, tmp_path / "a"), config)
    sound, batches = regression(config).loss, [0]

    def loss(model: nn.Module, batch: Any) -> Any:
        batches[0] += 1
        if batches[0] == 6:
            model.get_submodule("1").weight.data.zero_()  # a step that is half done
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return sound(model, batch)

    objective = Objective(loss, lambda model, batch: model(batch[0]))
    with signals.handled(), pytest.raises(signals.Interrupted):
        regressor(objective=lambda c: objective).fit([member(data, tmp_path / "b")], config)
    assert fitted(regressor(), member(data, tmp_path / "b"), config) == expected


def test_what_a_training_went_through_is_digested(tmp_path: Path) -> None:
    told = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fitted(regressor(), member(numbers(), tmp_path / name, seed=seed), settings(dropout=0.2))
        told[name] = json.loads((tmp_path / name / "trained.json").read_text())
    assert told["a"] == told["b"]
    assert told["a"]["state"] != told["c"]["state"]
    assert len(told["a"]["losses"]) == 4


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    data, recipe, config = numbers(), regressor(), settings(dropout=0.2, mixup=0.2)
    first = fitted(recipe, member(data, tmp_path / "a"), config)
    assert fitted(recipe, member(data, tmp_path / "b"), config) == first
    assert fitted(recipe, member(data, tmp_path / "c", seed=1), config) != first


def test_a_member_does_not_notice_those_trained_before_it(tmp_path: Path) -> None:
    data, recipe, config = numbers(), regressor(), settings(dropout=0.2, mixup=0.2)
    alone = fitted(recipe, member(data, tmp_path / "alone", name="fold1"), config)
    others = [member(data, tmp_path / name, name=name) for name in ("fold0", "fold1")]
    recipe.fit(others, config)
    assert weights(tmp_path / "fold1") == alone != weights(tmp_path / "fold0")


@pytest.mark.parametrize("data", ["resident", "streamed"])
def test_scoring_changes_no_weights(data: str, tmp_path: Path) -> None:
    scored: list[int] = []

    def record(epoch: int, answers: Any = None, **figures: float) -> None:
        if answers is not None:
            scored.append(epoch)

    silent = settings(dropout=0.2, mixup=0.2, data=data)
    expected = fitted(classifier(), member(pictures(), tmp_path / "a", record), silent)
    assert scored == []
    watched = settings(dropout=0.2, mixup=0.2, data=data, score_every=2)
    assert fitted(classifier(), member(pictures(), tmp_path / "b", record), watched) == expected
    assert scored == [2, 4]


def test_targets_of_validation_rows_change_nothing(tmp_path: Path) -> None:
    config = settings(patience=2, polish=2, holdout=0.2)
    data = numbers()
    expected = fitted(regressor(), member(data, tmp_path / "a"), config)
    data.target[72:] = 1e6
    assert fitted(regressor(), member(data, tmp_path / "b"), config) == expected
    data.target[:72] += 1
    assert fitted(regressor(), member(data, tmp_path / "c"), config) != expected


def test_a_loss_that_bursts_names_its_batch_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"batch \d of 4 of epoch 1 of 4; .*lr=1e"):
        fitted(regressor(), member(numbers(), tmp_path), settings(optimizer="sgd", lr=1e30))
    assert not (tmp_path / "weights.safetensors").exists()


def test_the_last_sound_state_survives_a_loss_that_bursts(tmp_path: Path) -> None:
    config = settings()
    sound, batches = regression(config).loss, [0]

    def loss(model: nn.Module, batch: Any) -> Any:
        batches[0] += 1
        return sound(model, batch) * (math.nan if batches[0] == 7 else 1)  # type: ignore[operator]

    objective = Objective(loss, lambda model, batch: model(batch[0]))
    with pytest.raises(DivergedError, match=r"nan in batch 3 of 4 of epoch 2.*after batch 2 of ep"):
        fitted(regressor(objective=lambda c: objective), member(numbers(), tmp_path), config)
    found = checkpoint.load(tmp_path / "checkpoint.bin")
    assert found is not None
    state = found.members["fold0-seed0"]
    assert (state["progress"]["epoch"], state["progress"]["batch"]) == (1, 2)
    assert all(bool(weight.isfinite().all()) for weight in state["model"].values())


def test_weights_that_burst_in_the_last_step_never_answer(tmp_path: Path) -> None:
    config = settings(epochs=1, batch_size=1000, optimizer="sgd", lr=1e38, schedule="constant",
                      warmup=0.0, momentum=0.0)  # fmt: skip

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return 100 * regression(config).loss(model, batch)  # type: ignore[operator,return-value]

    objective = Objective(loss, lambda model, batch: model(batch[0]))
    with pytest.raises(
        UserError, match=r"fold0-seed0: the weights burst in batch 1 of 1 of epoch 1"
    ):
        fitted(regressor(objective=lambda c: objective), member(numbers(), tmp_path), config)


def test_an_objective_of_two_parts_steps_them_in_turn(tmp_path: Path) -> None:
    seen: list[tuple[bool, bool]] = []

    class Game(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maker, self.judge = nn.Linear(3, 2), nn.Linear(2, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.maker(inputs)

    made: list[float] = []

    def loss(model: Any, batch: Any) -> Any:
        made.append(float(model.maker.weight.detach().sum()))
        before = {n: w.detach().clone() for n, w in model.named_parameters()}

        def maker() -> torch.Tensor:
            now = dict(model.named_parameters())
            moved = {n for n in before if not torch.equal(before[n], now[n])}
            seen.append(("judge.weight" in moved, "maker.weight" in moved))
            return F.softplus(-model.judge(model.maker(batch[0]))).mean()

        fake = model.judge(model.maker(batch[0]))  # attached: only `judge` may move all the same
        return {"judge": F.softplus(-model.judge(batch[1])).mean() + F.softplus(fake).mean(),
                "maker": maker}  # fmt: skip

    objective = Objective(loss, lambda model, batch: model(batch[0]), parts=("judge", "maker"))
    recipe = regressor(model=lambda c, t: Game(), objective=lambda c: objective)
    start = Game()
    trained = load(fitted(recipe, member(numbers(), tmp_path / "a"), settings(optimizer="sgd")))
    assert set(seen) == {(True, False)}
    assert all(not torch.equal(trained[n], w) for n, w in start.named_parameters())
    assert len(set(made)) == len(made) == 16
    seen.clear()
    made.clear()
    fitted(recipe, member(numbers(), tmp_path / "b"), settings(optimizer="sgd", accumulate=2))
    assert set(seen) == {(True, False), (False, False)}
    assert len(set(made)) == 8  # no part steps before both batches are in


def test_a_loss_of_an_unknown_part_is_named(tmp_path: Path) -> None:
    objective = Objective(
        lambda model, batch: {"heart": model(batch[0]).mean()}, lambda model, batch: model(batch[0])
    )
    with pytest.raises(UserError, match="'heart'"):
        fitted(regressor(objective=lambda c: objective), member(numbers(), tmp_path), settings())


def test_what_an_objective_cannot_do_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_phases", lambda *parts: pytest.fail("trained first"))
    plain = Objective(regression(settings()).loss, lambda model, batch: model(batch[0]))
    recipe = regressor(objective=lambda c: plain)
    for knobs, key in (
        ({"mixup": 0.2}, "mixup"),
        ({"polish": 2, "polish_method": "gauss_newton"}, "polish_method"),
    ):
        with pytest.raises(UserError, match=key):
            fitted(recipe, member(numbers(), tmp_path), settings(**knobs))


def plan(folder: Path, **knobs: Any) -> train.Plan:
    recipe, config = regressor(), settings(**knobs)
    of = member(numbers(), folder)
    torch.manual_seed(0)
    return recipe._plan(of, dense(config, recipe._task(of.train, config)), config)


def test_min_steps_raises_epochs(tmp_path: Path) -> None:
    assert plan(tmp_path).steps_per_epoch == 4  # 72 rows of 16 a batch
    assert plan(tmp_path, min_steps=41).epochs == 11
    assert plan(tmp_path, min_steps=3).epochs == 4


def test_min_batches_makes_batches_smaller_but_not_tiny(tmp_path: Path) -> None:
    assert plan(tmp_path, batch_size=64, min_batches=3).loader.batch_size == 24
    assert plan(tmp_path, batch_size=64, min_batches=30).loader.batch_size == 16


def test_two_accumulated_batches_equal_one_of_twice_the_rows(tmp_path: Path) -> None:
    by_size = {}
    for size, accumulate in ((36, 1), (18, 2)):
        knobs = {"batch_size": size, "accumulate": accumulate, "optimizer": "sgd"}
        by_size[size] = train.train(plan(tmp_path / str(size), **knobs)).model.state_dict()
    for name, weight in by_size[36].items():
        torch.testing.assert_close(weight, by_size[18][name], rtol=1e-5, atol=1e-6)


def test_patience_stops_early_and_the_best_epoch_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(train, "_mean_loss", lambda *given: next(losses))
    snapshots = []

    def note(epoch: int, answers: Any, figures: Any) -> None:
        state = stopping.model.state_dict()
        snapshots.append({n: w.detach().clone() for n, w in state.items()})

    stopping = plan(tmp_path, epochs=20, patience=3)
    object.__setattr__(stopping, "after_epoch", note)
    trained = train.train(stopping).model.state_dict()
    assert len(snapshots) == 5  # the best was the second
    assert all(torch.equal(trained[name], weight) for name, weight in snapshots[1].items())


def test_averaged_weights_answer_and_forget_the_start(tmp_path: Path) -> None:
    plain = load(fitted(classifier(), member(pictures(), tmp_path / "a"), settings()))
    mean = load(fitted(classifier(), member(pictures(), tmp_path / "b"), settings(ema=0.999)))
    assert all(not torch.equal(plain[n], mean[n]) for n in plain if plain[n].is_floating_point())
    assert torch.equal(plain["1.num_batches_tracked"], torch.tensor(16))
    # the memory grows with the steps: after 16 of them, 0.999 does not hold on to the first
    assert (plain["0.weight"] - mean["0.weight"]).norm() < 0.5 * plain["0.weight"].norm()


@pytest.mark.parametrize(
    "knobs",
    [
        {"mixup": 0.5},
        {"label_smoothing": 0.2},
        {"dropout": 0.5},
        {"weight_decay": 0.5},
        {"clip_norm": 0.001},
        {"schedule": "onecycle"},
        {"schedule": "constant"},
        {"warmup": 0.5},
        {"lr": 3e-3},
        {"precision": "bf16"},
        {"batch_size": 24},
        {"epochs": 5},
        {"optimizer": "sgd"},
        {"optimizer": "muon"},
        {"optimizer": "muon", "adamw_lr": 3e-3},
        {"optimizer": "muon", "momentum": 0.5},
    ],
    ids=str,
)
def test_every_knob_of_training_changes_the_weights(knobs: dict[str, Any], tmp_path: Path) -> None:
    base = {"optimizer": "muon"} if len(knobs) > 1 else {}
    before = fitted(classifier(), member(pictures(), tmp_path / "a"), settings(**base))
    after = fitted(classifier(), member(pictures(), tmp_path / "b"), settings(**base | knobs))
    assert before != after
    assert all(bool(weight.isfinite().all()) for weight in load(after).values())


def test_channels_last_is_only_a_layout(tmp_path: Path) -> None:
    recipe, data = classifier(), pictures()
    found = []
    for name, wanted in (("a", True), ("b", False)):
        of, config = member(data, tmp_path / name), settings(optimizer="sgd", channels_last=wanted)
        fitted(recipe, of, config)
        found.append(answers(recipe, of, config))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_training_learns(tmp_path: Path) -> None:
    of, config = member(pictures(), tmp_path), settings(epochs=8)
    fitted(classifier(), of, config)
    predicted = answers(classifier(), of, config).argmax(1)
    assert (predicted == of.train.data.target[:16]).mean() > 0.9


def test_the_number_of_threads_is_put_back(tmp_path: Path) -> None:
    threads: list[int] = []
    torch.set_num_threads(2)
    recipe = regressor()
    fitted(
        recipe,
        member(numbers(), tmp_path, lambda *a, **k: threads.append(torch.get_num_threads())),
        settings(),
    )
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("knobs", [{"patience": 2}, {"polish": 2}], ids=str)
def test_rows_that_are_watched_are_training_rows_that_are_never_trained_on(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    made = plan(tmp_path, holdout=0.25, **knobs)
    assert made.watched is not None

    def inputs(loader: Any) -> set[tuple[float, ...]]:
        return {tuple(row.tolist()) for row in loader.dataset.tensors[0]}

    trained, watched = inputs(made.loader), inputs(made.watched)
    training_rows = numbers().split(np.arange(72), "train").tensors().tensors[0]
    assert len(watched) == 18
    assert not trained & watched
    assert trained | watched == {tuple(row.tolist()) for row in training_rows}


def test_augmentation_draws_anew_in_every_epoch_and_for_every_member(tmp_path: Path) -> None:
    drawn: list[float] = []

    def augment(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn.append(float(torch.rand((), generator=generator)))
        return inputs

    recipe = regressor(augment=lambda config: augment)
    for name in ("fold0", "fold1"):
        fitted(recipe, member(numbers(), tmp_path / name, name=name), settings(epochs=3))
    assert len(set(drawn)) == len(drawn) == 24


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_gpu_answers_as_the_cpu_within_its_precision(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Network[Any] = classifier(objective=multiclass, dataset=tensors)
    config = settings(epochs=8)
    on_cpu = member(pictures(), tmp_path / "cpu")
    fitted(recipe, on_cpu, config)
    expected = answers(recipe, on_cpu, config)
    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda"))
    config = settings(epochs=8, precision=precision)
    first, again = member(pictures(), tmp_path / "gpu"), member(pictures(), tmp_path / "again")
    assert fitted(recipe, first, config) == fitted(recipe, again, config)
    found = answers(recipe, first, config)
    assert math.isfinite(found.sum())
    np.testing.assert_allclose(found, expected, atol=0.02 if precision == "fp32" else 0.2)


@pytest.mark.parametrize("engine", ["solo", "stacked"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_checkpoint_whose_moments_have_other_shapes_is_refused(
    optimizer: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = settings(optimizer=optimizer, engine=engine), numbers()
    made = [member(data, tmp_path / name, name=name) for name in ("fold0-seed0", "fold1-seed0")]
    with monkeypatch.context() as context:
        killed_at_save(context, 3)
        with pytest.raises(KilledError):
            regressor().fit(made, config)
    (path,) = (path for path in tmp_path.rglob("c*.bin") if "earlier" not in path.name)
    found = checkpoint.load(path)
    assert found is not None
    for state in found.members.values():
        for optimizers in state["optimizers"]["parts"].values():
            for one in optimizers:
                for moments in one["state"].values():
                    wide = [name for name, part in moments.items() if part.ndim > 1]
                    moments.update({name: torch.zeros(3, 5) for name in wide})
    checkpoint.save(path, found)
    with pytest.raises(UserError, match=r"\.bin does not fit the model that is trained"):
        regressor().fit(made, config)
