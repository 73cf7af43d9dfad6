"""Answers from a trained model, one a view, and their average."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from . import devices
from .loading import Batch, Loader
from .objectives import Objective
from .views import View

_log = logging.getLogger("kagglekit")


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

    def ask(inputs: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), devices.autocast(loader.config.precision, loader.device):
            seen = [
                view.undo(objective.predict(model, [view.apply(inputs), *rest])) for view in views
            ]
        return readable(torch.stack(seen))

    most = max(loader.batch_size, 1)  # rows that are asked for at once
    for batch in loader.batches(0, first):
        answers, most = _within_memory(ask, batch, most)
        yield answers


def _within_memory(
    ask: Callable[..., torch.Tensor], batch: Batch, most: int
) -> tuple[torch.Tensor, int]:
    """(views, batch, ...) answers, by `most` rows or as few as memory holds; so many those are."""
    while True:
        try:
            parts = zip(*(part.split(most) for part in batch), strict=True)
            return torch.cat([ask(*given) for given in parts], dim=1), most
        except RuntimeError as error:
            if not devices.is_out_of_memory(error) or most < 2:
                raise
        most = (most + 1) // 2
        _log.warning("memory ran out: answers are asked for by %d rows at a time", most)


def readable(answers: torch.Tensor) -> torch.Tensor:
    """Answers on the CPU, in a precision that NumPy knows."""
    half = answers.dtype in (torch.bfloat16, torch.float16)
    return (answers.float() if half else answers).cpu()


def concatenated(batches: Iterable[torch.Tensor]) -> np.ndarray:
    """(views, rows, ...) from the (views, batch, ...) of each batch."""
    return torch.cat(list(batches), dim=1).numpy()
