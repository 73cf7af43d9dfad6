"""A plain eager PyTorch loop, one network after the other, with all data in memory."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.tasks import Case, Member, Prepared
from kagglekit.optimizers import learning_rate


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
    """Cross-entropy of digits, mean squared error of functions."""
    return nn.CrossEntropyLoss() if case.kind == "digits" else nn.MSELoss()


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


def fitted(prepared: Prepared, member: Member) -> nn.Module:
    """One network, trained."""
    case, place = prepared.case, device()
    inputs = torch.from_numpy(prepared.inputs[member.train]).to(place)
    targets = torch.from_numpy(prepared.targets[member.train]).to(place)
    model = prepared.model(member.seed).to(place)
    if case.kind == "digits":
        model = model.to(memory_format=torch.channels_last)
    optimizer, loss_function = optimizer_of(model, case), loss_of(case)
    steps = case.epochs * -(-len(inputs) // case.batch)
    step = 0
    model.train()
    for _ in range(case.epochs):
        for rows in torch.randperm(len(inputs), device=place).split(case.batch):
            batch = pixels(inputs[rows])
            if case.kind == "digits":
                batch = moved(batch).contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = case.lr * learning_rate(step, steps, case.config)
            with autocast(case):
                loss = loss_function(model(batch), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
    return model


@torch.no_grad()
def answers(model: nn.Module, inputs: np.ndarray, case: Case) -> np.ndarray:
    """(rows, outputs)"""
    model.eval()
    with autocast(case):
        parts = [
            model(pixels(part.to(device()))).float().cpu()
            for part in torch.from_numpy(inputs).split(4 * case.batch)
        ]
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
