"""Answers from a trained model, one a view, and their average."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from . import devices
from .config import NetworkConfig
from .loading import Loader
from .objectives import Objective
from .views import View


@torch.no_grad()
def answers_by_view(
    model: nn.Module,
    objective: Objective,
    loader: Loader,
    views: Sequence[View],
    config: NetworkConfig,
) -> torch.Tensor:
    """(views, rows, ...) answers on the CPU, each view undone."""
    model.eval()
    answers = []
    for inputs, *rest in loader.batches(0):
        with devices.autocast(config.precision, loader.device):
            seen = [
                view.undo(objective.predict(model, [view.apply(inputs), *rest])) for view in views
            ]
        answers.append(torch.stack(seen))
    joined = torch.cat(answers, dim=1)
    half = joined.dtype in (torch.bfloat16, torch.float16)
    return (joined.float() if half else joined).cpu()


def as_array(answers: torch.Tensor) -> np.ndarray:
    """The answers as a NumPy array of the same shape, float32 or float64."""
    return answers.numpy()
