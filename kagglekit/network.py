"""The recipe that the core provides: a torch model trained by gradient descent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from . import devices, engine, files
from .augment import Augment, nothing
from .config import NetworkConfig
from .data import Split, Task
from .dropout import own_noise
from .ensemble import Ensemble
from .errors import UserError
from .loading import Loader, abreast
from .objectives import Objective
from .optimizers import Groups, decay_matrices
from .predict import answers_by_view, concatenated
from .prefetching import as_parts
from .randomness import derive, isolated
from .recipe import Member, Predictor
from .train import Plan, Trained
from .views import View, average, original

C = TypeVar("C", bound=NetworkConfig)

_MOST_NUMBERS = 1 << 28  # inputs of a row times its outputs; no data set has such rows
_FEW_STEPS = 400  # below so many steps compiling takes longer than it saves

_REUSES_WEIGHTS = (
    nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention, nn.Embedding,
)  # fmt: skip


def _no_augment(config: Any) -> Augment:
    return nothing


def _one_view(config: Any) -> tuple[View, ...]:
    return (original,)


def _as_typed(config: Any) -> Any:
    return config


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
    complete: Callable[[C], C] = _as_typed  # fills in knobs, e.g. what the weights are of
    wants_gpu: bool = False  # not the default where there is none
    needs: tuple[str, ...] = ()

    def resolve(self, config: C, sample: Split) -> C:
        """`config` with every "auto" replaced by what this machine will do for such rows."""
        config = self.complete(config)
        device = devices.device()
        images = len(self._task(sample, config).inputs) == 3
        half = _half_is_enough(images, bool(sample.data.classes), config, device)
        precision, _ = devices.resolve_precision(config.precision, device, half)
        chosen: dict[str, Any] = {
            "precision": precision,
            "compile": self._compile(config, sample, images),
        }
        return replace(config, **chosen)

    def fit(self, members: Sequence[Member], config: C) -> None:
        """Train the members, together where that is faster: see `engine`.

        The weights and the task of each go to its folder.
        """
        devices.spare_compiler()
        work = engine.Work(
            plan=lambda member: self._planned(member, config),
            keep=lambda member, trained: self._keep(member, trained, config),
            finished=lambda folder: (folder / "weights.safetensors").exists(),
        )
        engine.fit(members, work, config)

    def restore(
        self, folder: Path, config: C, before: Mapping[str, Predictor]
    ) -> NetworkPredictor[C]:
        """The predictor of a trained member."""
        with isolated(0):  # its weights are read in a moment
            model = self.model(config, _read_task(folder / "task.json"))
        weights = _read_weights(folder / "weights.safetensors")
        try:
            model.load_state_dict(weights, assign=True)  # in the precision they were trained in
        except RuntimeError as error:
            raise UserError(
                f"{folder / 'weights.safetensors'} does not fit the model as its code is now: "
                "train it again"
            ) from error
        return NetworkPredictor(self, _placed(model, config), config)

    def together(self, predictors: Sequence[Predictor]) -> NetworkPredictors[C]:
        """Predictors of members, as one that asks all of them at once."""
        return NetworkPredictors(cast("Sequence[NetworkPredictor[C]]", predictors))

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
        device = devices.device()
        able = devices.can_compile(device)
        if config.compile == "on" and not able:
            raise UserError("compile=on needs Triton on a GPU, or a C++ compiler: set compile=off")
        if config.compile != "auto":
            return config.compile
        # on a CPU compiling takes about as long as it then saves
        steps = max(config.epochs * len(sample.data.train) // config.batch_size, config.min_steps)
        pays = images and steps >= _FEW_STEPS and device.type == "cuda"
        return "on" if pays and able else "off"

    def _task(self, split: Split, config: C) -> Task:
        with isolated(0):  # the item may be one that is drawn anew each time
            first = as_parts(self.dataset(split.take(np.arange(1)), config)[0])
        return Task(tuple(first[0].shape), split.data.outputs)

    def _planned(self, member: Member, config: C) -> Plan:
        """The training of a member, whose model has its first weights."""
        with isolated(derive(member.seed, member.name, "weights")):
            task = self._task(member.train, config)
            model = self.model(config, task)
            self.prepare(model, member.train)
        model = _placed(model, config)
        own_noise(model, devices.device())
        plan = self._plan(member, model, config)
        work = _multiplications(model, task, plan.loader.batch_size)
        return replace(plan, multiplications=work)

    def _keep(self, member: Member, trained: Trained, config: C) -> None:
        from safetensors.torch import save

        task = self._task(member.train, config)
        files.write_text(member.folder / "task.json", json.dumps(asdict(task)))
        told = {"state": trained.state, "losses": trained.history}
        files.write_json(member.folder / "trained.json", told)
        # cloned, since safetensors takes no two names for the same memory
        named = {n: part.contiguous().clone() for n, part in trained.model.state_dict().items()}
        files.write_bytes(member.folder / "weights.safetensors", save(named))  # the last: finished

    def _plan(self, member: Member, model: nn.Module, config: C) -> Plan:
        rows, watched = member.train, None
        if config.patience or config.polish:
            rows, held_out = hold_out(member.train, config.holdout, member.seed)
            watched = replace(self.loader(held_out, config, member.seed, model), training=False)
        valid = self.loader(member.valid, config, member.seed, model) if len(member.valid) else None
        return Plan(
            model=model,
            objective=self.objective(config),
            loader=self.loader(rows, config, member.seed, model),
            augment=self.augment(config),
            config=config,
            name=member.name,
            seed=member.seed,
            checkpoint=engine.solo_checkpoint(member),
            stamp=member.stamp,
            watched=watched,
            scored=valid,
            groups=self.groups,
            compiled=config.compile == "on",
            after_epoch=partial(_record, member),
        )


@dataclass(frozen=True)
class NetworkPredictor(Generic[C]):
    """Answers of one trained member; also view by view."""

    recipe: Network[C]
    model: nn.Module
    config: C
    kept: tuple[str, ...] | None = None  # names of the views that answer; None = all

    @property
    def views(self) -> tuple[View, ...]:
        """The views that are averaged; only the first where `tta` is off."""
        views = self.recipe.views(self.config)
        views = views if self.config.tta else views[:1]
        kept = tuple(view for view in views if self.kept is None or view.name in self.kept)
        if not kept:
            raise UserError(
                f"the recipe has none of the views {', '.join(self.kept or ())} that its run keeps:"
                " train it again"
            )
        return kept

    def only(self, names: tuple[str, ...]) -> NetworkPredictor[C]:
        """The predictor that answers by the views of these names alone."""
        return replace(self, kept=names)

    def __call__(self, split: Split) -> np.ndarray:
        """(rows, outputs) answers, averaged over the views."""
        if self.config.tta_mean == "probabilities":  # row by row, so not all views are kept
            means = (average(batch, "probabilities")[None] for batch in self._batches(split))
            answers: np.ndarray = concatenated(means)[0]
            return answers
        return self.merge(self.by_view(split))

    def by_view(self, split: Split) -> np.ndarray:
        """(views, rows, outputs) answers."""
        return concatenated(self._batches(split))

    def batches(self, split: Split, first: int = 0) -> Iterator[np.ndarray]:
        """(views, rows, outputs) answers of each batch from the number `first` on."""
        for answers in self._batches(split, first):
            yield answers.numpy()

    def _batches(self, split: Split, first: int = 0) -> Iterator[torch.Tensor]:
        objective = self.recipe.objective(self.config)
        loader = self.recipe.loader(split, self.config, 0, self.model)
        with devices.reproducible():
            yield from answers_by_view(self.model, objective, loader, self.views, first)

    def merge(self, answers: np.ndarray) -> np.ndarray:
        """(views, rows, outputs) -> (rows, outputs), as `tta_mean` says."""
        return average(torch.from_numpy(answers), self.config.tta_mean).numpy()


@dataclass(frozen=True)
class NetworkPredictors(Generic[C]):
    """Answers of several trained members of one kind, batch by batch and all at once."""

    each: Sequence[NetworkPredictor[C]]

    def batches(self, splits: Sequence[Split], first: int = 0) -> Iterator[list[np.ndarray]]:
        """(views, rows, outputs) answers of each member to a batch of its own split.

        Begins with the batch of number `first`. A split that is the same for all is read once.
        Raises Unstackable where members would not answer together as each does alone.
        """
        with devices.reproducible():
            loaders = self._loaders(splits)
            for answers in self._ensemble(loaders).answers(loaders, self.each[0].views, first):
                yield [own.numpy() for own in answers]

    def _loaders(self, splits: Sequence[Split]) -> list[Loader]:
        made: dict[int, Loader] = {}
        for one, split in zip(self.each, splits, strict=True):
            if id(split) not in made:
                made[id(split)] = one.recipe.loader(split, one.config, 0, one.model)
        return [made[id(split)] for split in splits]

    def _ensemble(self, loaders: Sequence[Loader]) -> Ensemble:
        """The members as one, which is compared with each alone on the first batch."""
        one = self.each[0]
        predict = one.recipe.objective(one.config).predict
        calls = len(one.views) * len(loaders[0])
        ensemble = Ensemble.of([other.model for other in self.each], predict, one.config, calls)
        ensemble.demand_right(next(abreast(loaders)))
        return ensemble


def _read_task(path: Path) -> Task:
    """The task that `_keep` wrote; UserError for sizes that no row has, before they cost memory."""
    saved = files.read_json(path)
    sizes = (
        [saved.get("outputs"), *_listed(saved.get("inputs"))] if isinstance(saved, dict) else [0]
    )
    if any(type(size) is not int or size < 1 for size in sizes) or math.prod(sizes) > _MOST_NUMBERS:
        raise UserError(f"{path} is damaged: delete its folder and train again, or restore a copy")
    return Task(tuple(sizes[1:]), sizes[0])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete its folder and train again, or restore a copy"
        ) from error


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Training rows in two: those to train on, and `share` of each class (or of all) to watch.

    At least one row on either side; raises UserError where there is but one row in all.
    """
    assert split.target is not None
    rows = len(split)
    if rows < 2:
        raise UserError("`patience` and `polish` hold rows out of training, and there is only one")
    shuffled = np.random.default_rng(derive(seed, "holdout")).permutation(rows)
    if split.data.classes:
        shuffled = shuffled[np.argsort(split.target[shuffled], kind="stable")]
    # as evenly over the classes as whole rows can be
    counts = np.floor(np.arange(rows + 1) * np.clip(share, 1 / rows, 1 - 1 / rows) + 0.5)
    watched = np.zeros(rows, bool)
    watched[shuffled[np.diff(counts) > 0]] = True
    return split.take(np.flatnonzero(~watched)), split.take(np.flatnonzero(watched))


def _placed(model: nn.Module, config: NetworkConfig) -> nn.Module:
    model = model.to(devices.device())
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def _record(
    member: Member, epoch: int, answers: np.ndarray | None, figures: Mapping[str, float]
) -> None:
    member.record(epoch, answers, **figures)


def _half_is_enough(
    images: bool, classes: bool, config: NetworkConfig, device: torch.device
) -> bool:
    """Whether a network may compute in half precision without a loss, and gains by that."""
    if device.type == "cpu":
        # bf16 kernels are made for channels-last; with the other layout and maps of 1 × 1 oneDNN
        # reads memory that nobody wrote, so that weights burst now and then
        return images and config.channels_last
    return images or classes  # a table's numbers would be answered to three digits


def _multiplications(model: nn.Module, task: Task, rows: int) -> float:
    """Of the model on a batch, about; infinite where a row meets a weight more than once."""
    reuses = any(isinstance(module, _REUSES_WEIGHTS) for module in model.modules())
    if reuses or len(task.inputs) != 1:
        return math.inf
    return float(rows * sum(weight.numel() for weight in model.parameters()))


def _dtype(model: nn.Module) -> torch.dtype:
    floating = (part.dtype for part in model.parameters() if part.is_floating_point())
    return next(floating, torch.float32)
