"""A plain eager PyTorch loop, one network after the other.

Rows and digits are in memory; photographs come from DataLoader workers through torchvision.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.tasks import Case, Member, Prepared
from kagglekit.optimizers import learning_rate

WORKERS = min(max(os.cpu_count() or 1, 2), 16)


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(case: Case) -> contextlib.AbstractContextManager[object]:
    """The precision of the case."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if case.precision not in kinds:
        return contextlib.nullcontext()
    return torch.autocast(device().type, kinds[case.precision])


def pixels(inputs: Tensor) -> Tensor:
    """uint8 pictures as numbers up to 1; other rows as they are."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


def moved(inputs: Tensor) -> Tensor:
    """Every picture turned, moved, scaled and slanted by its own draws, in one resampling."""
    count = len(inputs)
    turn, slant, size, right, down = torch.rand(5, count, device=inputs.device)
    angle, slope = (2 * turn - 1) * 0.1745, torch.tan((2 * slant - 1) * 0.1396)
    zoom = 0.9 + 0.2 * size
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack(
        [
            torch.stack([cos + slope * sin, sin - slope * cos, (2 * right - 1) * 0.143], 1),
            torch.stack([-sin, cos, (2 * down - 1) * 0.143], 1),
        ],
        1,
    )
    grid = nn.functional.affine_grid(matrix, list(inputs.shape), align_corners=False)
    return nn.functional.grid_sample(inputs, grid, align_corners=False)


def loss_of(case: Case) -> nn.Module:
    """Cross-entropy of classes, mean squared error of functions."""
    return nn.MSELoss() if case.kind == "functions" else nn.CrossEntropyLoss()


def optimizer_of(model: nn.Module, case: Case) -> torch.optim.Optimizer:
    """AdamW that decays matrices alone."""
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, case.lr, fused=True)


def warmed() -> None:
    """The first step of an optimiser imports torch's compiler: seconds, but none of training."""
    weight = nn.Parameter(torch.zeros(1))
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()


class Photographs(Dataset[tuple[Tensor, int]]):
    """JPEG files as torchvision's transforms see them, one by one."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, training: bool) -> None:
        self.inputs, self.targets = inputs, targets
        scaled = v2.ToImage(), v2.ToDtype(torch.float32, scale=True)
        cropped = v2.RandomResizedCrop(224, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()
        middle = v2.Resize(256), v2.CenterCrop(224)
        self.transform = v2.Compose([*(cropped if training else middle), *scaled])

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(self.inputs[row]) as image:
            return self.transform(image.convert("RGB")), int(self.targets[row])


def photographs(
    case: Case, inputs: np.ndarray, targets: np.ndarray, training: bool
) -> DataLoader[tuple[Tensor, int]]:
    """Batches from workers, shuffled for training."""
    return DataLoader(
        Photographs(inputs, targets, training), case.batch, shuffle=training, num_workers=WORKERS,
        persistent_workers=True, drop_last=training, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


Epochs = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # the batches of the next epoch


def batches_of(case: Case, inputs: np.ndarray, targets: np.ndarray) -> Epochs:
    """What training sees, on the device."""
    place = device()
    if case.kind == "photos":
        loader = photographs(case, inputs, targets, training=True)
        return lambda: (
            (batch.to(place, non_blocking=True), labels.to(place)) for batch, labels in loader
        )
    held, labels = torch.from_numpy(inputs).to(place), torch.from_numpy(targets).to(place)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(held), device=place)
        for rows in order.split(case.batch)[: case.batches(len(held))]:
            batch = pixels(held[rows])
            yield moved(batch) if case.kind == "digits" else batch, labels[rows]

    return epoch


def fitted(prepared: Prepared, member: Member) -> nn.Module:
    """One network, trained."""
    case, place = prepared.case, device()
    epoch = batches_of(case, prepared.inputs[member.train], prepared.targets[member.train])
    model = prepared.model(member.seed).to(place)
    layout = torch.contiguous_format if case.kind == "functions" else torch.channels_last
    model = model.to(memory_format=layout)
    optimizer, loss_function = optimizer_of(model, case), loss_of(case)
    steps = case.epochs * case.batches(len(member.train))
    step = 0
    model.train()
    for _ in range(case.epochs):
        for batch, targets in epoch():
            batch = batch.contiguous(memory_format=layout)
            for group in optimizer.param_groups:
                group["lr"] = case.lr * learning_rate(step, steps, case.config)
            with autocast(case):
                loss = loss_function(model(batch), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
    return model


@torch.no_grad()
def answers(model: nn.Module, inputs: np.ndarray, case: Case) -> np.ndarray:
    """(rows, outputs)"""
    model.eval()
    if case.kind == "photos":
        nothing = np.zeros(len(inputs), np.int64)
        batches = (batch for batch, _ in photographs(case, inputs, nothing, training=False))
    else:
        batches = iter(torch.from_numpy(inputs).split(4 * case.batch))
    with autocast(case):
        parts = [model(pixels(part.to(device()))).float().cpu() for part in batches]
    return torch.cat(parts).numpy()


def run(folder: Path) -> dict[str, object]:
    """Train the case in `folder`; seconds in training and answering, and each member's score."""
    prepared, scores = Prepared(folder), []
    warmed()
    began = time.monotonic()
    for member in prepared.members():
        model = fitted(prepared, member)
        answers(model, prepared.test, prepared.case)
        scores.append(
            prepared.score(answers(model, prepared.inputs[member.valid], prepared.case), member)
        )
    return {"training": time.monotonic() - began, "scores": scores}
