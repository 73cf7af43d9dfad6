"""Which members train together is decided once, for a reason that is told, and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kagglekit import choices, cohort, devices, engine, files, folders, trial
from kagglekit.augment import affine
from kagglekit.cli import main
from kagglekit.data import Split
from kagglekit.errors import DivergedError, UserError
from kagglekit.objectives import regression
from kagglekit.recipe import Member
from kagglekit.run import Run
from kagglekit.stacking import Stack, Unstackable
from tests import miniatures
from tests.engine import (
    KilledError,
    answers,
    classifier,
    dense,
    killed_at_save,
    member,
    numbers,
    on_one_thread,  # noqa: F401
    pictures,
    regressor,
    settings,
)
from tests.test_cohort import bursting, engines, files_of, members, normed


def fitted(run: Path, recipe: Any = None, rows: Any = None, count: int = 3, **knobs: Any) -> Any:
    """The members of a run, fitted; and what was decided."""
    names = tuple(f"fold{place}-seed0" for place in range(count))
    made = members(rows or numbers(), run, names)
    (recipe or regressor()).fit(made, settings(**{"engine": "auto", **knobs}))
    return made, choices.recorded(run)


LONG = {"epochs": 60, "score_every": 0, "checkpoint_seconds": 3600}


@pytest.fixture(autouse=True)
def tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_SHORT", 0.0)  # trainings here take a second
    monkeypatch.setattr(engine, "_SHORTEST", 0.0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_auto_stacks_small_networks_because_that_is_faster(
    precision: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # many, so that a busy machine shows it too
    _, (choice,) = fitted(tmp_path, count=20, precision=precision, **LONG)
    assert choice.engine == "stacked"
    assert choice.why.startswith("a round took ")
    assert f"engine: 20 members train stacked: {choice.why}" in caplog.messages


@pytest.mark.parametrize(("stacked", "wanted"), [(0.8, "stacked"), (1.0, "solo")])
def test_auto_takes_what_the_trial_says(
    stacked: float, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "compared", lambda *given: (0.01, stacked / 100))
    _, (choice,) = fitted(tmp_path, **LONG)
    assert choice.engine == wanted
    assert choice.why == f"a round took {8 if wanted == 'stacked' else 10:g} ms stacked, 10 ms one by one"  # fmt: skip  # noqa: E501


def test_a_trial_changes_nothing_that_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, _ = fitted(tmp_path / "told", engine="stacked", dropout=0.2, **LONG)
    monkeypatch.setattr(engine, "_GAIN", 1e9)
    tried, (choice,) = fitted(tmp_path / "tried", dropout=0.2, **LONG)
    assert choice.why != "engine=stacked"
    assert files_of(tried) == files_of(told)
    monkeypatch.setattr(engine, "_GAIN", 0.0)
    alone, _ = fitted(tmp_path / "alone", engine="solo", dropout=0.2, **LONG)
    tried, (choice,) = fitted(tmp_path / "apart", dropout=0.2, **LONG)
    assert choice.engine == "solo"
    assert files_of(tried) == files_of(alone)


def test_what_a_trial_said_is_written_before_the_first_step_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_GAIN", 1e9)
    whole, _ = fitted(tmp_path / "whole", **LONG)
    broken = members(numbers(), tmp_path / "broken")
    config = settings(engine="auto", **LONG)

    def die(plans: Any, *given: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_cohort", die)
        with pytest.raises(KilledError):
            regressor().fit(broken, config)
    begun = (tmp_path / "broken" / choices.RECORD).read_bytes()
    monkeypatch.setattr(engine, "_demand_faster", lambda *given: pytest.fail("tried again"))
    regressor().fit(broken, config)
    assert (tmp_path / "broken" / choices.RECORD).read_bytes() == begun
    assert files_of(broken) == files_of(whole)


def test_the_same_run_begun_anew_takes_the_engine_it_took_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_GAIN", 1e9)
    first, chosen = fitted(tmp_path / "here" / "run", **LONG)
    monkeypatch.setattr(engine, "_GAIN", 0.0)  # as if the machine were busy
    anew, again = fitted(tmp_path / "there" / "run", **LONG)
    assert again == chosen
    assert files_of(anew) == files_of(first)
    _, (other,) = fitted(tmp_path / "other" / "run", count=2, **LONG)
    assert other.engine == "solo"  # other members: a trial of their own
    (memory,) = (tmp_path / "cache" / "engines").iterdir()
    for damage in ("{", "[1]", '{"fold0-seed0 fold1-seed0 fold2-seed0": [{"engine": 1}]}'):
        memory.write_text(damage)
        _, (tried,) = fitted(tmp_path / f"damaged{len(damage)}" / "run", **LONG)
        assert tried.engine == "solo"


def test_another_engine_typed_later_does_not_change_a_run_that_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, _ = fitted(tmp_path / "whole", engine="stacked")
    broken = members(numbers(), tmp_path / "broken")
    with monkeypatch.context() as patch:
        killed_at_save(patch, 4)
        with pytest.raises(KilledError):
            regressor().fit(broken, settings(engine="stacked"))
    regressor().fit(broken, settings(engine="solo"))
    assert "engine: goes on stacked, as the run was begun" in caplog.messages
    assert files_of(broken) == files_of(whole)


def test_few_steps_and_single_members_are_not_worth_a_trial(tmp_path: Path) -> None:
    _, (choice,) = fitted(tmp_path / "few")
    assert (choice.engine, choice.why) == ("solo", "48 steps are too few to gain anything")
    _, (choice,) = fitted(tmp_path / "one", count=1, **LONG)
    assert (choice.engine, choice.why) == ("solo", "it is the only one")


def test_a_short_training_is_not_worth_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_SHORT", 20.0)
    monkeypatch.setattr(engine, "_SHORTEST", 20.0)
    _, (choice,) = fitted(tmp_path, **LONG)
    assert choice.engine == "solo"
    assert choice.why.endswith("too little to gain anything")


@pytest.mark.parametrize(("many", "wanted"), [(1, "stacked"), (10**9, "solo")])
def test_a_training_that_is_not_long_is_worth_a_trial_where_steps_are_many(
    many: int, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_SHORT", 1e9)
    monkeypatch.setattr(engine, "_MANY_STEPS", many)
    if wanted == "solo":
        for name in ("compared", "compared_in_lanes"):
            monkeypatch.setattr(trial, name, lambda *given: pytest.fail("tried another engine"))
    _, (choice,) = fitted(tmp_path, count=20, **LONG)
    assert choice.engine == wanted


def branching(config: Any, task: Any) -> nn.Module:
    class Branching(nn.Sequential):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = super().forward(inputs)
            return outputs if float(outputs.detach().mean()) > -1e9 else -outputs

    return Branching(*dense(config, task).children())


@pytest.mark.parametrize(
    ("recipe", "knobs", "why"),
    [
        (regressor(), {"data": "streamed", "workers": 0}, "rows are streamed"),
        (regressor(model=branching), {}, "vmap"),
    ],
    ids=["streamed", "branching"],
)
def test_what_cannot_be_stacked_is_trained_one_by_one_and_a_line_says_why(
    recipe: Any, knobs: Any, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    joint, (choice,) = fitted(tmp_path / "joint", recipe, engine="stacked", **knobs)
    assert choice.engine == "solo"
    told = [line for line in caplog.messages if line.startswith("engine: ")]
    assert told == [f"engine: 3 members train one by one: {choice.why}"]
    assert why in choice.why
    alone, _ = fitted(tmp_path / "alone", recipe, engine="solo", **knobs)
    assert files_of(joint) == files_of(alone)


def test_a_member_whose_batches_are_like_no_other_s_is_trained_alone(tmp_path: Path) -> None:
    _, choices = fitted(tmp_path, rows=numbers(94), engine="stacked", batch_size=1000)
    assert [(choice.engine, len(choice.members)) for choice in choices] == [
        ("solo", 1), ("stacked", 2),
    ]  # fmt: skip
    assert choices[0].why == "no other member has batches like its"


def test_a_wrong_stack_is_never_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Stack._gradients

    def wrong(self: Stack, *given: Any) -> Any:
        losses, gradients = sound(self, *given)
        return losses, tuple(None if g is None else g.flip(0) for g in gradients)

    monkeypatch.setattr(Stack, "_gradients", wrong)
    _, (choice,) = fitted(tmp_path, engine="stacked")
    assert choice.engine == "solo"
    assert "its gradient would be another" in choice.why


COMPILING = pytest.mark.skipif(not devices.can_compile(torch.device("cpu")), reason="no compiler")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's, which need not compile six programs first to see that the CPU is what it says."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")  # and will be afterwards
    with config.patch({"cpp.vec_isa_ok": True}):
        yield


@COMPILING
@pytest.mark.usefixtures("compiler")
def test_a_compiled_stack_learns_what_an_eager_one_does_and_is_kept_in_the_cache(
    tmp_path: Path,
) -> None:
    found = []
    for wanted in ("off", "on"):
        made, (choice,) = fitted(tmp_path / wanted, engine="stacked", compile=wanted)
        assert choice.engine == "stacked"
        found.append([regressor().restore(of.folder, settings(), {})(of.valid) for of in made])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert any((folders.cache() / "compiled").rglob("*.so"))


@COMPILING  # here, beside the stack: what a compiler needs to begin with takes ten seconds
@pytest.mark.usefixtures("compiler")
def test_a_compiled_member_answers_as_an_eager_one(tmp_path: Path) -> None:
    found = []
    for wanted in ("off", "on"):
        of, config = member(numbers(), tmp_path / wanted), settings(compile=wanted, optimizer="sgd")
        regressor().fit([of], config)
        found.append(answers(regressor(), of, config))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_a_resume_that_is_forced_compares_the_stack_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(run: Path) -> list[Member]:
        made = members(numbers(), run)
        with monkeypatch.context() as patch:
            killed_at_save(patch, 4)
            with pytest.raises(KilledError):
                regressor().fit(made, settings(engine="stacked"))
        return made

    def refuse(*given: Any) -> None:
        raise Unstackable("the model has changed")

    usual, forced = begun(tmp_path / "usual"), begun(tmp_path / "forced")
    monkeypatch.setattr(Stack, "demand_right", refuse)
    regressor().fit(usual, settings(engine="stacked"))
    assert set(engines(tmp_path / "usual").values()) == {"stacked"}
    stamp = replace(forced[0].stamp, forced=True)
    regressor().fit([replace(of, stamp=stamp) for of in forced], settings(engine="stacked"))
    (choice,) = choices.recorded(tmp_path / "forced")
    assert (choice.engine, choice.why) == ("solo", "the model has changed")


# --- memory -------------------------------------------------------------------------------------


def test_a_cohort_that_would_not_fit_is_split_into_groups_of_about_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "most_members", lambda plan: 3)
    made, found = fitted(tmp_path, count=5, engine="stacked")
    assert [len(choice.members) for choice in found] == [3, 2]
    assert set(engines(tmp_path).values()) == {"stacked"}
    assert all((of.folder / "weights.safetensors").exists() for of in made)


def test_the_memory_of_a_member_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (of, *_) = members(numbers(), tmp_path)

    def most(free: float, **knobs: Any) -> int:
        monkeypatch.setattr(devices, "free_bytes", lambda device: free)
        return trial.most_members(regressor()._planned(of, settings(**knobs)))

    assert most(1) == 1
    assert most(1e9) > 100
    assert most(1e8, batch_size=8) > 1.5 * most(1e8, batch_size=64)


def test_rows_that_members_share_take_the_memory_of_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1e9)

    def own(split: Split, config: Any) -> Any:
        return split.tensors(split.inputs)

    few, many = (member(numbers(rows), tmp_path / str(rows)) for rows in (96, 20_000))
    recipe, apart = regressor(), regressor(dataset=own)
    shared = [trial.most_members(recipe._planned(of, settings())) for of in (few, many)]
    alone = trial.most_members(apart._planned(many, settings()))
    targets = many.train.data.target.nbytes
    needed = [5e8 / most for most in (*shared, alone)]
    assert needed[1] - needed[0] == pytest.approx(targets, rel=0.05)
    assert needed[2] > needed[1] + many.train.inputs.nbytes / 2


def test_out_of_memory_halves_the_cohort_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backward = Stack.backward

    def full(self: Stack, *given: Any) -> torch.Tensor:
        if len(self.models) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(self, *given)

    expected, _ = fitted(tmp_path / "solo", count=5, engine="solo")
    with monkeypatch.context() as patch:  # it is in training that memory ends
        patch.setattr(engine, "_decided_on", lambda plans, passes: [
            choices.Choice("stacked", tuple(plan.name for plan in plans), "asked")])  # fmt: skip
        patch.setattr(Stack, "backward", full)
        made, found = fitted(tmp_path / "halved", count=5, engine="stacked")
    assert sorted(len(choice.members) for choice in found) == [1, 2, 2]
    assert sum("more memory than there is" in line for line in caplog.messages) == 2
    assert not list((tmp_path / "halved").glob("*.bin"))
    for of, other in zip(made, expected, strict=True):
        ours, theirs = (regressor().restore(o.folder, settings(), {}) for o in (of, other))
        np.testing.assert_allclose(ours(of.valid), theirs(of.valid), atol=1e-4)


def test_memory_that_ends_while_a_stack_s_members_answer_trains_nothing_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*others: Member) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = [replace(of, done=full) for of in members(numbers(), tmp_path)]
    with pytest.raises(torch.OutOfMemoryError):
        regressor().fit(made, settings(engine="stacked"))
    (choice,) = choices.recorded(tmp_path)
    assert choice.engine == "stacked"
    assert [line for line in caplog.messages if line.startswith("engine:")] == [f"engine: {choice}"]


def test_a_cohort_that_is_halved_in_the_middle_has_each_epoch_once_in_its_history(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    miniatures.fit_1d(project / "data" / "fit_1d")
    backward, steps = Stack.backward, iter(range(10_000))

    def full(self: Stack, *given: Any) -> torch.Tensor:
        if len(self.models) == 2 and next(steps) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(self, *given)

    monkeypatch.setattr(Stack, "backward", full)
    typed = ["epochs=8", "min_steps=0", "batch_size=16", "polish=0", "folds=2", "engine=stacked"]
    assert main(["train", "fit_1d", "neural", *typed]) == 0
    (history,) = Path("runs/fit_1d").glob("*/history.jsonl")
    noted = [json.loads(line) for line in history.read_text().splitlines()]
    for name in ("fold0-seed0", "fold1-seed0"):
        assert [one["epoch"] for one in noted if one["member"] == name] == [*range(1, 9)]
    assert next(steps) > 20  # it did begin in a stack


class Full(nn.Module):
    """A layer for whose training memory holds but so many rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inputs


def full(most: int) -> Any:
    """A recipe of networks that memory holds with `most` rows."""
    return regressor(model=lambda config, task: nn.Sequential(dense(config, task), Full(most)))


@pytest.mark.parametrize(("most", "parts"), [(8, 2), (5, 4)], ids=lambda given: str(given))
def test_out_of_memory_takes_a_batch_in_parts_which_changes_nothing_but_rounding(
    most: int, parts: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    knobs: dict[str, Any] = {"engine": "solo", "clip_norm": 0.1, "accumulate": 2, "ema": 0.8}
    expected, _ = fitted(tmp_path / "whole", full(16), **knobs)
    made, (choice,) = fitted(tmp_path / "parts", full(most), **knobs)
    assert choice.micro_batches == parts
    assert f"3 members train one by one, each batch in {parts} parts: " in caplog.text
    for of, other in zip(made, expected, strict=True):
        ours, theirs = (json.loads((o.folder / "trained.json").read_text()) for o in (of, other))
        np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-5)
        np.testing.assert_allclose(
            *(answers(full(16), o, settings()) for o in (of, other)), atol=1e-5
        )


def test_only_a_step_that_memory_does_not_hold_is_taken_in_parts(tmp_path: Path) -> None:
    class Watched(Full):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if not self.training:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return inputs

    recipe = regressor(model=lambda config, task: nn.Sequential(dense(config, task), Watched(16)))
    with pytest.raises(torch.OutOfMemoryError):
        fitted(tmp_path, recipe, engine="solo", patience=2, holdout=0.2)
    assert {choice.micro_batches for choice in choices.recorded(tmp_path)} == {1}


def test_members_whose_numbers_burst_are_named_also_where_memory_ended_later(
    tmp_path: Path,
) -> None:
    config = settings(engine="solo")
    made = members(numbers(), tmp_path)
    lost = bursting(made[0], config)
    layers: list[Full] = []

    def build(config: Any, task: Any) -> nn.Module:
        layers.append(Full(16 if len(layers) == 0 else 8))
        return nn.Sequential(dense(config, task), layers[-1])

    with pytest.raises(DivergedError) as raised:
        regressor(model=build).fit([lost, *made[1:]], config)
    assert set(raised.value.members) == {lost.name}
    found = {name: choice.micro_batches
             for choice in choices.recorded(tmp_path) for name in choice.members}  # fmt: skip
    assert [found[of.name] for of in made] == [1, 2, 2]


def test_a_loss_that_is_no_mean_over_rows_is_not_taken_in_parts(tmp_path: Path) -> None:
    def summed(model: nn.Module, batch: Any) -> torch.Tensor:
        outputs: torch.Tensor = model(batch[0])
        return (outputs - batch[1].to(outputs.dtype)).square().sum()

    recipe = replace(full(8), objective=lambda config: replace(regression(config), loss=summed))
    with pytest.raises(UserError, match="no mean over rows: lower batch_size"):
        fitted(tmp_path, recipe, engine="solo")


def test_a_row_that_memory_does_not_hold_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        fitted(tmp_path, full(1), engine="solo")
    assert {choice.micro_batches for choice in choices.recorded(tmp_path)} == {8}  # two rows each


def test_memory_that_ends_in_the_middle_costs_nothing_and_survives_a_kill(tmp_path: Path) -> None:
    """Whoever else takes the memory: what was trained is kept, and the rest goes on in parts."""
    config = settings(engine="solo", dropout=0.2)

    def trained(run: Path, killed: bool) -> tuple[dict[str, bytes], list[int]]:
        layers: list[Full] = []
        seen: list[int] = []

        def build(config: Any, task: Any) -> nn.Module:
            layers.append(Full(16))
            return nn.Sequential(dense(config, task), layers[-1])

        def shrinking(epoch: int, answers: Any = None, **figures: float) -> None:
            seen.append(epoch)
            layers[-1].most = 8 if epoch == 2 else layers[-1].most
            if killed and epoch == 3:
                raise KilledError

        made = members(numbers(), run)
        given = [made[0], replace(made[1], record=shrinking), made[2]]
        if killed:
            with pytest.raises(KilledError):
                regressor(model=build).fit(given, config)
            given = made[1:]
        regressor(model=build).fit(given, config)
        found = {name: choice.micro_batches
                 for choice in choices.recorded(run) for name in choice.members}  # fmt: skip
        assert [found[of.name] for of in made] == [1, 2, 2]
        return files_of(made), seen

    whole, seen = trained(tmp_path / "whole", killed=False)
    assert seen == [1, 2, 3, 4]
    assert trained(tmp_path / "killed", killed=True)[0] == whole


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    files.write_json(tmp_path / choices.RECORD, {"cohorts": [{"engine": "stacked"}]})
    with pytest.raises(UserError, match=r"engine\.json is not as kagglekit writes it"):
        fitted(tmp_path)


def test_members_whose_folders_are_not_a_run_s_are_trained_one_by_one(tmp_path: Path) -> None:
    made = members(numbers(), tmp_path)
    moved = []
    for of in made:
        folder = tmp_path / "elsewhere" / f"of-{of.name}"
        folder.mkdir(parents=True)
        moved.append(replace(of, folder=folder))
    regressor().fit(moved, settings(engine="stacked"))
    assert not (tmp_path / "elsewhere" / choices.RECORD).exists()
    assert all((of.folder / "weights.safetensors").exists() for of in moved)


# --- whole runs ---------------------------------------------------------------------------------

WHOLE = {
    "fit_1d neural": ("epochs=30", "polish=2", "copies=2"),
    "fit_5d neural": ("epochs=8", "polish=0", "copies=1"),
    "mics_mnist cnn_small": ("epochs=2", "min_steps=0", "batch_size=32", "optimizer=sgd",
                             "precision=fp32"),
}  # fmt: skip


def whole(name: str, engine_name: str, capsys: pytest.CaptureFixture[str], *typed: str) -> Run:
    competition, recipe = name.split()
    command = ["train", competition, recipe, *typed, f"engine={engine_name}", "folds=3"]
    capsys.readouterr()
    code = main([*command, "--fresh", "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return Run(Path(json.loads(printed.out)["folder"]))


@pytest.mark.parametrize("name", WHOLE)
def test_the_recipes_at_hand_really_run_stacked(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    competition = name.split()[0]
    getattr(miniatures, competition)(Path("data") / competition)
    found = {}
    for kind in ("solo", "stacked"):
        run = whole(name, kind, capsys, *WHOLE[name])
        assert {choice.engine for choice in choices.recorded(run.folder)} == {kind}
        found[kind] = np.load(run.folder / "oof.npy")
        assert not list(run.folder.rglob("*.bin"))
    size = np.abs(found["solo"]).max(0)
    np.testing.assert_allclose(found["solo"] / size, found["stacked"] / size, atol=2e-3)


def test_a_run_tells_which_members_of_a_cohort_burst(capsys: pytest.CaptureFixture[str]) -> None:
    miniatures.fit_1d(Path("data") / "fit_1d")
    knobs = ["engine=stacked", "optimizer=sgd", "lr=1e30", "epochs=3", "polish=0", "folds=3"]
    assert main(["train", "fit_1d", "neural", *knobs]) == 2
    assert "3 of 3 members stopped" in capsys.readouterr().err
    (path,) = Path("runs/fit_1d").glob("*/run.json")
    failed = json.loads(path.read_text())["failed"]
    assert list(failed) == [f"fold{fold}-seed0" for fold in range(3)]
    assert all(name in sentence for name, sentence in failed.items())


def test_members_of_one_pace_have_batches_of_one_shape(tmp_path: Path) -> None:
    def paces(data: Any, **knobs: Any) -> set[Any]:
        made: list[Member] = members(data, tmp_path)
        return {cohort.pace(regressor()._planned(of, settings(**knobs))) for of in made}

    assert paces(numbers(94), batch_size=16) == {(16, 3, 4)}
    assert len(paces(numbers(94), batch_size=1000)) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("knobs", [
    {"ema": 0.8, "mixup": 0.2, "clip_norm": 0.1},
    {"precision": "bf16", "optimizer": "muon"},
    {"precision": "fp16", "accumulate": 2, "clip_norm": 0.1},
    {"precision": "fp16", "optimizer": "sgd", "ema": 0.8},
    {"compile": "on"},
], ids=str)  # fmt: skip
def test_a_stack_on_a_gpu_learns_what_its_members_learn_alone(
    knobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda"))
    recipe = classifier(model=normed, augment=lambda config: affine(degrees=10))
    found = []
    for kind in ("solo", "stacked"):
        made, (choice,) = fitted(tmp_path / kind, recipe, pictures(), engine=kind, **knobs)
        assert choice.engine == kind
        found.append([recipe.restore(of.folder, settings(), {})(of.valid) for of in made])
    most = 0.1 if "precision" in knobs else 0.02  # TensorFloat-32 multiplies convolutions
    np.testing.assert_allclose(*found, atol=most)
