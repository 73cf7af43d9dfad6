"""Answers come view by view, undone, row for row in the split's order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kagglekit import views
from kagglekit.loading import Loader
from kagglekit.objectives import Objective
from kagglekit.predict import answers_by_view
from tests.engine import CPU, pictures, settings

# an image-to-image answer: where a pixel goes is seen
ECHO = Objective(lambda model, batch: model(batch[0]).mean(), lambda model, batch: model(batch[0]))


class Batched(nn.Module):
    """Gives its inputs back, and notes how many rows came at once and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.rows: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.rows.append(len(inputs))
        return inputs * self.weight


def loader(rows: int = 40, **knobs: Any) -> Loader:
    """Pictures to be answered, sixteen at a time."""
    split = pictures().split(np.arange(rows), "valid")
    return Loader(split.tensors(), settings(**knobs), CPU, 0, training=False)


def test_every_view_is_undone_and_every_row_answered_once_in_order() -> None:
    model = Batched().train()
    seen = (views.original, *map(views.for_images, (views.mirrored, views.turned(1))))
    found = list(answers_by_view(model, ECHO, loader(), seen))
    assert [batch.shape for batch in found] == [(3, n, 1, 8, 8) for n in (16, 16, 8)]
    expected = torch.from_numpy(pictures().train_inputs[:40]).float() / 255
    joined = torch.cat(found, dim=1)
    for answers in joined:
        torch.testing.assert_close(answers, expected)
    assert not joined.requires_grad


@pytest.mark.parametrize(("precision", "exact"), [("fp32", True), ("bf16", False)])
def test_answers_are_float32_in_every_precision(precision: str, exact: bool) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    (full,) = answers_by_view(model, ECHO, loader(8), (views.original,))
    (found,) = answers_by_view(model, ECHO, loader(8, precision=precision), (views.original,))
    assert found.dtype == torch.float32
    assert torch.equal(found, full) == exact
    torch.testing.assert_close(found, full, atol=0.02, rtol=0.02)


def test_rows_that_memory_does_not_hold_at_once_are_answered_by_fewer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Full(Batched):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if len(inputs) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(inputs)

    both = (views.original, views.flipped)
    wanted = list(answers_by_view(Batched(), ECHO, loader(), both))
    model = Full()
    for found, expected in zip(answers_by_view(model, ECHO, loader(), both), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert set(model.rows) == {4}
    assert [line for line in caplog.messages if "memory ran out" in line] == [
        f"memory ran out: answers are asked for by {rows} rows at a time" for rows in (8, 4)
    ]


def test_one_row_that_memory_does_not_hold_is_an_error() -> None:
    class Full(Batched):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        next(answers_by_view(Full(), ECHO, loader(), (views.original,)))
