"""Answers from a trained model, one a view, and their average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from . import devices
from .loading import Loader
from .objectives import Objective
from .views import View


def answers_by_view(
    model: nn.Module,
    objective: Objective,
    loader: Loader,
    views: Sequence[View],
    first: int = 0,
) -> Iterator[torch.Tensor]:
    """Batch by batch, (views, batch, ...) answers on the CPU, float32 or float64, views undone.

    `first` is the number of the batch to begin with.
    """
    model.eval()
    for inputs, *rest in loader.batches(0, first):
        with torch.no_grad(), devices.autocast(loader.config.precision, loader.device):
            seen = [
                view.undo(objective.predict(model, [view.apply(inputs), *rest])) for view in views
            ]
        yield readable(torch.stack(seen))


def readable(answers: torch.Tensor) -> torch.Tensor:
    """Answers on the CPU, in a precision that NumPy knows."""
    half = answers.dtype in (torch.bfloat16, torch.float16)
    return (answers.float() if half else answers).cpu()


def concatenated(batches: Iterable[torch.Tensor]) -> np.ndarray:
    """(views, rows, ...) from the (views, batch, ...) of each batch."""
    return torch.cat(list(batches), dim=1).numpy()
