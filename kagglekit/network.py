"""The recipe that the core provides: a torch model trained by gradient descent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from . import devices, files
from .augment import Augment, nothing
from .config import NetworkConfig
from .data import Split, Task
from .loading import Loader
from .objectives import Objective
from .optimizers import Groups, decay_matrices
from .predict import answers_by_view
from .randomness import derive, seed_all
from .recipe import Member, Predictor
from .train import AfterEpoch, Plan, train
from .views import View, average, original

C = TypeVar("C", bound=NetworkConfig)

_FEW_STEPS = 400  # below so many steps compiling takes longer than it saves


def _no_augment(config: Any) -> Augment:
    return nothing


def _one_view(config: Any) -> tuple[View, ...]:
    return (original,)


def _as_built(model: nn.Module, train: Split) -> None:
    """Leave the model as its constructor made it."""


@dataclass(frozen=True)
class Network(Generic[C]):
    """A recipe that trains a torch model: every part is a function of the knobs.

    `dataset` gives a TensorDataset (kept on the device; uint8 inputs are pixels and reach the
    model as floats in 0…1) or any other Dataset (streamed from worker processes).
    """

    dataset: Callable[[Split, C], Dataset[Any]]
    model: Callable[[C, Task], nn.Module]
    objective: Callable[[C], Objective]
    config: C
    augment: Callable[[C], Augment] = _no_augment  # what training sees
    views: Callable[[C], tuple[View, ...]] = _one_view  # what prediction averages
    groups: Groups = decay_matrices  # parameter groups, e.g. layer-wise learning rates
    prepare: Callable[[nn.Module, Split], None] = _as_built  # e.g. scalers, from training rows
    wants_gpu: bool = False  # not the default where there is none
    needs: tuple[str, ...] = ()

    def resolve(self, config: C, sample: Split) -> C:
        """`config` with every "auto" replaced by what this machine will do for such rows."""
        device = devices.device()
        images = len(self._task(sample, config).inputs) == 3
        precision, _ = devices.resolve_precision(config.precision, device, images)
        chosen: dict[str, Any] = {
            "precision": precision,
            "compile": self._compile(config, sample, images),
        }
        return replace(config, **chosen)

    def fit(self, members: Sequence[Member], config: C) -> None:
        """Train each member; its weights and task go to its folder."""
        for member in members:
            if not (member.folder / "weights.safetensors").exists():
                self._fit(member, config)

    def restore(
        self, folder: Path, config: C, before: Mapping[str, Predictor]
    ) -> NetworkPredictor[C]:
        """The predictor of a trained member."""
        from safetensors.torch import load_file

        saved = files.read_json(folder / "task.json")
        task = Task(tuple(saved["inputs"]), saved["outputs"])
        model = self.model(config, task)
        weights = load_file(folder / "weights.safetensors")
        if any(weight.dtype == torch.float64 for weight in weights.values()):
            model.double()
        model.load_state_dict(weights)
        return NetworkPredictor(self, _placed(model, config), config)

    def loader(self, split: Split, config: C, seed: int, model: nn.Module) -> Loader:
        """The batches of `split`: shuffled where it is for training."""
        return Loader(
            dataset=self.dataset(split, config),
            config=config,
            device=devices.device(),
            seed=seed,
            training=split.stage == "train",
            dtype=_dtype(model),
        )

    def _compile(self, config: C, sample: Split, images: bool) -> str:
        if config.compile != "auto":
            return config.compile
        steps = config.epochs * len(sample.data.train) // config.batch_size
        pays = images and steps >= _FEW_STEPS and devices.can_compile(devices.device())
        return "on" if pays else "off"

    def _task(self, split: Split, config: C) -> Task:
        first = self.dataset(split.take(np.arange(min(1, len(split)))), config)[0]
        return Task(tuple(first[0].shape), split.data.outputs)

    def _fit(self, member: Member, config: C) -> None:
        from safetensors.torch import save

        seed_all(derive(member.seed, member.name, "weights"))
        task = self._task(member.train, config)
        model = self.model(config, task)
        self.prepare(model, member.train)
        model = _placed(model, config)
        trained = train(self._plan(member, model, config))
        files.write_text(member.folder / "task.json", json.dumps(asdict(task)))
        weights = {name: part.contiguous() for name, part in trained.state_dict().items()}
        files.write_bytes(member.folder / "weights.safetensors", save(weights))
        (member.folder / "checkpoint.bin").unlink(missing_ok=True)

    def _plan(self, member: Member, model: nn.Module, config: C) -> Plan:
        rows, watched = member.train, None
        if config.patience or config.polish:
            rows, held_out = hold_out(member.train, config.holdout, member.seed)
            watched = replace(self.loader(held_out, config, member.seed, model), training=False)
        return Plan(
            model=model,
            objective=self.objective(config),
            loader=self.loader(rows, config, member.seed, model),
            augment=self.augment(config),
            config=config,
            name=member.name,
            seed=member.seed,
            checkpoint=member.folder / "checkpoint.bin",
            watched=watched,
            groups=self.groups,
            compiled=config.compile == "on",
            after_epoch=self._recorder(member, config, model),
        )

    def _recorder(self, member: Member, config: C, model: nn.Module) -> AfterEpoch:
        """Scores the held-out rows now and then: for the screen and the history, nothing else."""
        objective = self.objective(config)
        loader = (
            self.loader(member.valid, config, member.seed, model) if len(member.valid) else None
        )

        def after_epoch(model: nn.Module, epoch: int, figures: Any) -> None:
            answers = None
            if loader and config.score_every and epoch % config.score_every == 0:
                answers = answers_by_view(model, objective, loader, (original,), config)[0].numpy()
            member.record(epoch, answers, **figures)

        return after_epoch


@dataclass(frozen=True)
class NetworkPredictor(Generic[C]):
    """Answers of one trained member; also view by view."""

    recipe: Network[C]
    model: nn.Module
    config: C

    @property
    def views(self) -> tuple[View, ...]:
        """The views that are averaged; only the first where `tta` is off."""
        views = self.recipe.views(self.config)
        return views if self.config.tta else views[:1]

    def __call__(self, split: Split) -> np.ndarray:
        """(rows, outputs) answers, averaged over the views."""
        return self.merge(self.by_view(split))

    def by_view(self, split: Split) -> np.ndarray:
        """(views, rows, outputs) answers."""
        objective = self.recipe.objective(self.config)
        loader = self.recipe.loader(split, self.config, 0, self.model)
        return answers_by_view(self.model, objective, loader, self.views, self.config).numpy()

    def merge(self, answers: np.ndarray) -> np.ndarray:
        """(views, rows, outputs) -> (rows, outputs), as `tta_mean` says."""
        return average(torch.from_numpy(answers), self.config.tta_mean).numpy()


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Training rows in two: those to train on, and `share` of each class (or of all) to watch."""
    assert split.target is not None
    shuffled = np.random.default_rng(derive(seed, "holdout")).permutation(len(split))
    if split.data.classes:
        shuffled = shuffled[np.argsort(split.target[shuffled], kind="stable")]
    watched = np.zeros(len(split), bool)
    watched[shuffled[:: max(round(1 / share), 2)]] = True
    return split.take(np.flatnonzero(~watched)), split.take(np.flatnonzero(watched))


def _placed(model: nn.Module, config: NetworkConfig) -> nn.Module:
    model = model.to(devices.device())
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def _dtype(model: nn.Module) -> torch.dtype:
    floating = (part.dtype for part in model.parameters() if part.is_floating_point())
    return next(floating, torch.float32)
