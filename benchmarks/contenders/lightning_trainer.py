"""PyTorch Lightning with DataLoader workers and torchvision's transforms."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from benchmarks.contenders.plain import loss_of, optimizer_of, photographs, warmed
from benchmarks.tasks import Case, Member, Prepared
from kagglekit.optimizers import learning_rate

WORKERS = 2
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures as torchvision's transforms see them, one by one."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, training: bool) -> None:
        self.inputs, self.targets = torch.from_numpy(inputs), torch.from_numpy(targets)
        affine = v2.RandomAffine(
            10, translate=(1 / 14, 1 / 14), scale=(0.9, 1.1), shear=8,
            interpolation=v2.InterpolationMode.BILINEAR,
        )  # fmt: skip
        scaled = v2.ToDtype(torch.float32, scale=True)
        self.transform = v2.Compose([affine, scaled] if training else [scaled])

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.inputs[row]), self.targets[row]


class Learner(lightning.LightningModule):
    """The network of a member."""

    def __init__(self, model: nn.Module, case: Case) -> None:
        super().__init__()
        if case.kind != "functions":
            model = model.to(memory_format=torch.channels_last)
        self.model, self.case, self.loss = model, case, loss_of(case)

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        """The loss of a batch."""
        found: Tensor = self.loss(self.model(batch[0]), batch[1])
        return found

    def predict_step(self, batch: list[Tensor], number: int) -> Tensor:
        """(rows, outputs)"""
        answers: Tensor = self.model(batch[0]).float()
        return answers

    def configure_optimizers(self):
        """AdamW and the case's learning rate over time."""
        optimizer = optimizer_of(self.model, self.case)
        steps, config = int(self.trainer.estimated_stepping_batches), self.case.config
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, steps, config)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def loader(case: Case, inputs: np.ndarray, targets: np.ndarray, training: bool) -> DataLoader:
    """Batches: pictures from workers, rows of numbers from this process, where that is faster."""
    if case.kind == "functions":
        rows = TensorDataset(torch.from_numpy(inputs), torch.from_numpy(targets))
        return DataLoader(rows, case.batch, shuffle=training, drop_last=training)
    if case.kind == "photos":
        return photographs(case, inputs, targets, training)
    pictures = Pictures(inputs, targets, training)
    return DataLoader(
        pictures, case.batch, shuffle=training, num_workers=WORKERS, persistent_workers=True,
        drop_last=training, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def fitted(prepared: Prepared, member: Member) -> tuple[lightning.Trainer, Learner]:
    """One network, trained."""
    case = prepared.case
    trainer = lightning.Trainer(
        max_epochs=case.epochs, precision=PRECISIONS[case.precision], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    learner = Learner(prepared.model(member.seed), case)
    inputs, targets = prepared.inputs[member.train], prepared.targets[member.train]
    trainer.fit(learner, loader(case, inputs, targets, training=True))
    return trainer, learner


def run(folder: Path) -> dict[str, object]:
    """Train the case in `folder`; seconds in training and answering, and each member's score."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    prepared, scores = Prepared(folder), []
    case = prepared.case
    nothing = np.zeros((len(prepared.test), *prepared.targets.shape[1:]), prepared.targets.dtype)
    warmed()
    began = time.monotonic()
    for member in prepared.members():
        trainer, learner = fitted(prepared, member)
        trainer.predict(learner, loader(case, prepared.test, nothing, training=False))
        inputs, targets = prepared.inputs[member.valid], prepared.targets[member.valid]
        parts = trainer.predict(learner, loader(case, inputs, targets, training=False))
        scores.append(prepared.score(torch.cat(parts).cpu().numpy(), member))
    return {"training": time.monotonic() - began, "scores": scores}
