"""Laws 1 and 2 in fp16: a member of a stack has its own scale, and skips steps by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from kagglekit import optimizers
from kagglekit.cohort import joined, part
from kagglekit.data import Task
from kagglekit.objectives import multiclass
from kagglekit.optimizers import Optimizers, decay_matrices
from kagglekit.recipe import Member
from kagglekit.stacking import Stack, attach, together
from tests.engine import (
    KilledError,
    convolution,
    killed_at_save,
    numbers,
    on_one_thread,  # noqa: F401
    regressor,
    settings,
)
from tests.test_cohort import engines, files_of, members

SEEDS = (7, 8, 9)
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales that grow after three sound steps."""
    monkeypatch.setattr(optimizers, "GradScaler", partial(GradScaler, growth_interval=3))


# --- steps --------------------------------------------------------------------------------------

# which members' gradients burst in a step, and where: the first matrix, or the last
BURSTS: list[dict[int, int]] = [
    {1: 0}, {1: 0, 2: -1}, {}, {0: -1}, {}, {}, {}, {1: -1, 0: 0, 2: 0}, {}, {}, {},
]  # fmt: skip


class Scaled(nn.Module):
    """With a weight that is a number, and one that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 2))
        self.factor, self.unused = nn.Parameter(torch.rand(())), nn.Parameter(torch.ones(3, 2))


def networks() -> list[nn.Module]:
    made = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        made.append(Scaled())
    return made


def gradients(model: nn.Module, step: int, place: int) -> list[Tensor | None]:
    """What the backward pass of a member would give it, unscaled."""
    source = torch.Generator().manual_seed(100 * step + place)
    reached: list[Tensor | None] = [
        torch.randn(weight.shape, generator=source) for weight in model.parameters()
    ]
    names = [name for name, _ in model.named_parameters()]
    reached[names.index("unused")] = None
    if place in BURSTS[step]:
        ends = [names.index("map.0.weight"), names.index("map.3.weight")]
        burst = reached[ends[BURSTS[step][place]]]
        assert burst is not None
        burst[0, 0] = float("nan") if step % 2 else float("inf")
    return reached


class Stacked:
    """Models stepped as one stack."""

    def __init__(self, models: Sequence[nn.Module], config: Any) -> None:
        self.models, self.module = models, copy.deepcopy(models[0])
        attach(self.module, models)
        self.optimizers = Optimizers(models[0], ("",), decay_matrices, config)
        stacks = dict(zip(models[0].parameters(), self.module.parameters(), strict=True))
        self.optimizers.stacked(stacks)

    def step(self, own: Sequence[Sequence[Tensor | None]]) -> None:
        scale = self.optimizers.scale
        assert scale is not None
        for weight, parts in zip(self.module.parameters(), zip(*own, strict=True), strict=True):
            found = [part for part in parts if part is not None]
            if found:
                factors = scale.reshape(-1, *[1] * (weight.ndim - 1))
                weight.grad = torch.stack(found) * factors
        take(self.optimizers)


def take(of: Optimizers) -> None:
    of.set_rate(0.5)
    of.step([""])
    of.finish()


def step_alone(of: Optimizers, model: nn.Module, own: Sequence[Tensor | None]) -> None:
    scaled = of.scaler.scale(torch.ones(()))
    for weight, gradient in zip(model.parameters(), own, strict=True):
        weight.grad = None if gradient is None else gradient * scaled
    take(of)


STEPS: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.1},
    "adamw, clipped": {"clip_norm": 0.5, "weight_decay": 0.0},
    "sgd": {"optimizer": "sgd", "weight_decay": 0.1, "lr": 0.1},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0, "clip_norm": 0.5},
    "muon": {"optimizer": "muon", "weight_decay": 0.1},
    "muon, clipped": {"optimizer": "muon", "clip_norm": 0.5},
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("knobs", STEPS.values(), ids=STEPS)
def test_each_model_of_a_stack_skips_steps_and_grows_its_scale_as_alone(
    knobs: dict[str, Any],
) -> None:
    config = settings(precision="fp16", **knobs)
    stack, alone = Stacked(networks(), config), networks()
    own = [Optimizers(model, ("",), decay_matrices, config) for model in alone]
    seen = set()
    for step, burst in enumerate(BURSTS):
        before = [[weight.detach().clone() for weight in m.parameters()] for m in stack.models]
        stack.step([gradients(model, step, place) for place, model in enumerate(alone)])
        assert stack.optimizers.scale is not None
        for place, (optimizer, model) in enumerate(zip(own, alone, strict=True)):
            step_alone(optimizer, model, gradients(model, step, place))
            found = list(stack.models[place].parameters())
            for weight, wanted in zip(found, model.parameters(), strict=True):
                torch.testing.assert_close(weight.detach(), wanted.detach(), rtol=1e-5, atol=1e-6)
            skipped = all(map(torch.equal, found, before[place]))
            assert skipped == (place in burst)
            assert optimizer.scaler.get_scale() == float(stack.optimizers.scale[place])
            seen.add(float(stack.optimizers.scale[place]))
    assert max(seen) > 2**16 > min(seen)


def test_scales_are_updated_as_torch_updates_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a larger one would be infinite."""
    first, growth, backoff, interval = 2.0**122, 8.0, 0.25, 2
    made = partial(GradScaler, "cpu", first, growth, backoff, interval)
    monkeypatch.setattr(optimizers, "GradScaler", lambda device, enabled: made(enabled=enabled))
    of = Stacked(networks(), settings(precision="fp16")).optimizers
    assert of.scales is not None
    scales = [torch.full((), first) for _ in SEEDS]
    streaks = [torch.zeros((), dtype=torch.int32) for _ in SEEDS]
    torch.manual_seed(0)
    for _ in range(40):
        of.scales.sound = torch.rand(3) < torch.tensor([0.9, 0.5, 1.0])
        for scale, streak, sound in zip(scales, streaks, of.scales.sound, strict=True):
            torch._amp_update_scale_(scale, streak, (~sound).float(), growth, backoff, interval)
        of.finish()
        assert torch.equal(of.scales.scale, torch.stack(scales))
        assert of.scales.streak.tolist() == [int(streak) for streak in streaks]


@OPTIMIZERS
def test_a_member_cut_out_of_a_stack_goes_on_in_another(optimizer: str) -> None:
    config = settings(precision="fp16", optimizer=optimizer)
    whole, places = Stacked(networks(), config), [2, 0]
    for step in range(5):
        whole.step([gradients(model, step, at) for at, model in enumerate(whole.models)])
    states = [part(whole.optimizers.state_dict(), place) for place in places]
    fewer = Stacked([copy.deepcopy(whole.models[place]) for place in places], config)
    fewer.optimizers.load_state_dict(joined(states))
    for step in range(5, len(BURSTS)):
        whole.step([gradients(model, step, at) for at, model in enumerate(whole.models)])
        fewer.step([gradients(whole.models[at], step, at) for at in places])
    for place, model in zip(places, fewer.models, strict=True):
        for weight, wanted in zip(
            model.parameters(), whole.models[place].parameters(), strict=True
        ):
            torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-7)
    scales = [of.optimizers.state_dict()["scaler"]["scale"] for of in (whole, fewer)]
    assert torch.equal(scales[0][places], scales[1])


@OPTIMIZERS
def test_moments_of_other_shapes_are_refused(optimizer: str) -> None:
    config = settings(precision="fp16", optimizer=optimizer)
    made = Stacked(networks(), config)
    made.step([gradients(model, 2, at) for at, model in enumerate(made.models)])
    state = made.optimizers.state_dict()
    for one in state["parts"][""]:
        for moments in one["state"].values():
            wide = [name for name in moments if moments[name].ndim > 1]
            moments.update({name: moments[name][:, 1:] for name in wide})
    with pytest.raises(ValueError, match="is \\(3, "):
        Stacked(networks(), config).optimizers.load_state_dict(state)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_alone_no_optimiser_steps_where_the_gradients_of_another_have_burst(optimizer: str) -> None:
    """Clipping by a norm that is no number would make its weights none either."""
    model = networks()[0]
    of = Optimizers(model, ("",), decay_matrices, settings(
        precision="fp16", optimizer=optimizer, clip_norm=1.0))  # fmt: skip
    before = [weight.detach().clone() for weight in model.parameters()]
    step_alone(of, model, gradients(model, 3, 0))
    assert all(map(torch.equal, model.parameters(), before))
    assert of.scaler.get_scale() == 2**15
    step_alone(of, model, gradients(model, 2, 0))
    assert not torch.equal(next(model.parameters()), before[0])


# --- passes -------------------------------------------------------------------------------------


class Waiting(TorchDispatchMode):
    """Counts the operations that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.waits += "_local_scalar_dense" in str(func) or "nonzero" in str(func)
        return func(*args, **(kwargs or {}))


def stacked(config: Any, device: str = "cpu") -> tuple[Stack, list[Any]]:
    models, batches = [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        models.append(convolution(config, Task((1, 8, 8), 3)).to(device))
        pictures, label = torch.rand(16, 1, 8, 8), torch.randint(0, 3, (16,))
        batches.append([pictures.to(device), label.to(device)])
    return Stack(models, multiclass(config), config), batches


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])


def rounds(optimizer: str, device: str) -> Callable[[], None]:
    """A round of a stack whose pass is recorded, and captured where there are graphs."""
    config = settings(precision="fp16", optimizer=optimizer, clip_norm=1.0)
    stack, batches = stacked(config, device)
    of = Optimizers(stack.models[0], ("",), decay_matrices, config)
    of.stacked(stack.by_weight)
    joint, generators = together(batches), [torch.Generator(device) for _ in SEEDS]

    def one() -> None:
        stack.backward(joint, generators, of.scale)
        take(of)

    one()
    return one


@OPTIMIZERS
def test_a_round_waits_for_nothing(optimizer: str) -> None:
    one = rounds(optimizer, "cpu")
    with Waiting() as watched:
        one()
    assert watched.operations > 50
    assert watched.waits == 0


@pytest.mark.gpu
@NO_GPU
@OPTIMIZERS
def test_a_round_does_not_wait_for_a_gpu(optimizer: str) -> None:
    one = rounds(optimizer, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        one()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_member_that_bursts_in_a_pass_disturbs_no_other(device: str, records: bool) -> None:
    stack, batches = stacked(settings(precision="fp16"), device)
    stack.records = records
    generators, found = [torch.Generator(device) for _ in SEEDS], []
    for scale in ([64.0, 64.0, 64.0], [64.0, 2.0**40, 128.0]):
        for weight in stack.weights:
            weight.grad = None
        losses = stack.backward(together(batches), generators, torch.tensor(scale, device=device))
        found.append((losses, [weight.grad.clone() for weight in stack.weights
                               if weight.grad is not None]))  # fmt: skip
    (losses, alike), (same, burst) = found
    torch.testing.assert_close(losses, same)
    for one, other in zip(alike, burst, strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(2 * one[2], other[2], rtol=1e-2, atol=1e-2)
    assert not all(bool(part[1].isfinite().all()) for part in burst)


# --- cohorts ------------------------------------------------------------------------------------


def amplified(of: Member, factor: float) -> Member:
    """The member with targets so large that its gradients burst at the first scales."""
    target = of.train.data.target * factor
    return replace(of, train=replace(of.train, data=replace(of.train.data, target=target)))


def uneven(run: Path) -> list[Member]:
    first, second, third = members(numbers(), run)
    return [first, amplified(second, 150.0), third]


def followed(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[list[float]]]:
    """The scales after each step, by the optimisers that took it, whose order is kept."""
    finish, seen, kept = Optimizers.finish, dict[int, list[list[float]]](), []

    def finished(self: Optimizers) -> None:
        finish(self)
        kept.append(self)  # so that no other gets its place in memory
        scale = [self.scaler.get_scale()] if self.scale is None else self.scale.tolist()
        seen.setdefault(id(self), []).append(scale)

    monkeypatch.setattr(Optimizers, "finish", finished)
    return seen


FITS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "lr": 1e-3},
    "muon": {"optimizer": "muon", "clip_norm": 1.0},
    "ema": {"ema": 0.8, "clip_norm": 0.1},
    "accumulate": {"accumulate": 3, "dropout": 0.2},
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("knobs", FITS.values(), ids=FITS)
def test_members_skip_the_steps_that_they_skip_alone_and_no_others(
    knobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, scales = settings(precision="fp16", epochs=6, **knobs), []
    for kind in ("solo", "stacked"):
        with monkeypatch.context() as context:
            seen = followed(context)
            regressor().fit(uneven(tmp_path / kind), replace(config, engine=kind))
        assert set(engines(tmp_path / kind).values()) == {kind}
        scales.append([column for rows in seen.values() for column in zip(*rows, strict=True)])
    assert scales[0] == scales[1]
    assert scales[0][1][0] < 2**16 <= min(scales[0][0][0], scales[0][2][0])
    assert len(set(scales[0][0])) > 1
    for solo, joint in zip(uneven(tmp_path / "solo"), uneven(tmp_path / "stacked"), strict=True):
        wanted, found = (load_file(of.folder / "weights.safetensors") for of in (solo, joint))
        for name, weight in wanted.items():
            error = float((found[name] - weight).norm() / weight.norm().clamp_min(1e-3))
            assert error < 0.05, (solo.name, name)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("knobs", [
    {"ema": 0.8, "accumulate": 2},
    {"optimizer": "muon"},
    {"patience": 1, "holdout": 0.2, "epochs": 8, "lr": 0.3},
    {"epochs": 2, "polish": 2, "holdout": 0.2, "polish_method": "gauss_newton"},
], ids=str)  # fmt: skip
def test_a_stack_in_fp16_killed_and_trained_again_equals_an_unbroken_one(
    knobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(engine="stacked", precision="fp16", **knobs)
    whole = uneven(tmp_path / "whole")
    regressor().fit(whole, config)
    for saves in (2, 6):
        broken = uneven(tmp_path / f"after {saves}")
        with monkeypatch.context() as context:
            killed_at_save(context, saves)
            with pytest.raises(KilledError):
                regressor().fit(broken, config)
        left = [of for of in broken if not (of.folder / "weights.safetensors").exists()]
        regressor().fit(left, config)
        assert set(engines(tmp_path / f"after {saves}").values()) == {"stacked"}
        assert files_of(broken) == files_of(whole), saves
