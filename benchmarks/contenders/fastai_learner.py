"""fastai: its Learner, and for photographs its data block with its own decoding and transforms."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.schedule import ParamScheduler
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    Flip,
    ImageBlock,
    RandomResizedCrop,
    RandomSplitter,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.contenders.lightning_trainer import Pictures
from benchmarks.contenders.plain import (
    WORKERS,
    autocast,
    device,
    loss_of,
    optimizer_of,
    warmed,
)
from benchmarks.tasks import Case, Member, Prepared
from kagglekit.optimizers import learning_rate


class Unvalidated(Callback):
    """No answers after each epoch: the others give none either."""

    def before_validate(self) -> None:
        """Leave it out."""
        raise CancelValidException


class Cast(nn.Module):
    """A network in the precision of the case; fastai's own callback casts on a GPU alone."""

    def __init__(self, model: nn.Module, case: Case) -> None:
        super().__init__()
        if case.kind != "functions":
            model = model.to(memory_format=torch.channels_last)
        self.model, self.case = model, case

    def forward(self, inputs: Tensor) -> Tensor:
        """Answers in fp32."""
        with autocast(self.case):
            answers: Tensor = self.model(inputs)
        return answers.float()


def photographs(inputs: np.ndarray, targets: np.ndarray, case: Case) -> DataLoaders:
    """Crops decoded by workers, mirrored on the device; all rows are for training."""
    labels = dict(zip(inputs, targets, strict=True))
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=range(int(targets.max()) + 1), sort=False)),
        get_y=labels.get, splitter=RandomSplitter(0.0),
        item_tfms=RandomResizedCrop(224, min_scale=0.35), batch_tfms=Flip(),
    )  # fmt: skip
    return block.dataloaders(
        list(inputs), bs=case.batch, num_workers=WORKERS, device=device(), drop_last=True,
        persistent_workers=True, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def loaders(prepared: Prepared, member: Member) -> DataLoaders:
    """Batches of the rows that a member learns from."""
    case = prepared.case
    inputs, targets = prepared.inputs[member.train], prepared.targets[member.train]
    if case.kind == "photos":
        return photographs(inputs, targets, case)
    rows = dataset(case, inputs, targets, training=True)
    return DataLoaders.from_dsets(
        rows, rows, bs=case.batch, num_workers=workers(case), device=device(), drop_last=True,
        persistent_workers=workers(case) > 0,
    )  # fmt: skip


def dataset(
    case: Case, inputs: np.ndarray, targets: np.ndarray, training: bool
) -> Pictures | TensorDataset:
    """Digits through torchvision's transforms, or rows of numbers."""
    if case.kind == "digits":
        return Pictures(inputs, targets, training)
    return TensorDataset(torch.from_numpy(inputs), torch.from_numpy(targets))


def workers(case: Case) -> int:
    """None for rows of numbers, where that is faster."""
    return 0 if case.kind == "functions" else 2


def fitted(prepared: Prepared, member: Member) -> Learner:
    """One network, trained."""
    case = prepared.case
    steps = case.epochs * case.batches(len(member.train))
    model = Cast(prepared.model(member.seed), case)
    learner = Learner(
        loaders(prepared, member), model, loss_func=loss_of(case), train_bn=True,
        opt_func=lambda groups, **kwargs: OptimWrapper(opt=optimizer_of(model, case)),
    )  # fmt: skip

    def rate(share: float) -> float:
        return case.lr * learning_rate(round(share * steps), steps, case.config)

    with learner.no_bar(), learner.no_logging():
        learner.fit(case.epochs, cbs=[ParamScheduler({"lr": rate}), Unvalidated()])
    return learner


def answers(learner: Learner, prepared: Prepared, inputs: np.ndarray) -> np.ndarray:
    """(rows, outputs)"""
    case = prepared.case
    if case.kind == "photos":
        batches = learner.dls.test_dl(list(inputs), num_workers=WORKERS)
    else:
        nothing = np.zeros((len(inputs), *prepared.targets.shape[1:]), prepared.targets.dtype)
        rows = dataset(case, inputs, nothing, training=False)
        batches = learner.dls.train.new(rows, shuffle=False, drop_last=False)
    with learner.no_bar():
        found = learner.get_preds(dl=batches, act=nn.Identity())[0]
    return found.numpy()


def run(folder: Path) -> dict[str, object]:
    """Train the case in `folder`; seconds in training and answering, and each member's score."""
    warnings.simplefilter("ignore")
    prepared, scores = Prepared(folder), []
    warmed()
    began = time.monotonic()
    for member in prepared.members():
        learner = fitted(prepared, member)
        answers(learner, prepared, prepared.test)
        found = answers(learner, prepared, prepared.inputs[member.valid])
        scores.append(prepared.score(found, member))
    return {"training": time.monotonic() - began, "scores": scores}
