from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kagglekit.objectives import Mixed, binary, multiclass, regression
from tests.engine import settings

MODEL = nn.Identity()
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])
TARGET = torch.tensor([0, 2])


def test_multiclass_is_cross_entropy_and_answers_with_probabilities() -> None:
    objective = multiclass(settings())
    torch.testing.assert_close(
        objective.loss(MODEL, (LOGITS, TARGET)), F.cross_entropy(LOGITS, TARGET)
    )
    answers = objective.predict(MODEL, (LOGITS,))
    torch.testing.assert_close(answers.sum(1), torch.ones(2))


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    plain, smooth = multiclass(settings()), multiclass(settings(label_smoothing=0.3))
    every = [plain.loss(MODEL, (LOGITS, torch.full((2,), k))) for k in range(3)]
    expected = 0.7 * plain.loss(MODEL, (LOGITS, TARGET)) + 0.3 * sum(every) / 3  # type: ignore
    torch.testing.assert_close(smooth.loss(MODEL, (LOGITS, TARGET)), expected)


def test_binary_is_the_logistic_loss_and_smoothing_pulls_to_one_half() -> None:
    logits, target = LOGITS[:, :1], torch.tensor([1, 0])
    torch.testing.assert_close(
        binary(settings()).loss(MODEL, (logits, target)),
        F.binary_cross_entropy_with_logits(logits[:, 0], target.float()),
    )
    torch.testing.assert_close(
        binary(settings(label_smoothing=1.0)).loss(MODEL, (logits, target)),
        F.binary_cross_entropy_with_logits(logits[:, 0], torch.full((2,), 0.5)),
    )
    answers = binary(settings()).predict(MODEL, (logits,))
    assert answers.shape == (2, 1)
    assert bool(((answers > 0) & (answers < 1)).all())


@pytest.mark.parametrize("make", [multiclass, binary, regression])
def test_a_blend_of_a_row_with_itself_is_that_row(make: object) -> None:
    objective = make(settings())  # type: ignore[operator]
    target = torch.randn(2, 3) if make is regression else torch.tensor([0, 1])
    mixed = Mixed(target, target, torch.tensor([0.2, 0.9]))
    torch.testing.assert_close(
        objective.loss(MODEL, (LOGITS, mixed)), objective.loss(MODEL, (LOGITS, target))
    )


def test_a_blended_class_counts_by_its_share() -> None:
    objective = multiclass(settings())
    mixed = Mixed(TARGET, TARGET.flip(0), torch.tensor([1.0, 0.0]))
    expected = objective.loss(MODEL, (LOGITS, torch.tensor([0, 0])))
    torch.testing.assert_close(objective.loss(MODEL, (LOGITS, mixed)), expected)


def test_outputs_of_any_scale_count_alike_in_regression() -> None:
    class Scaled(nn.Identity):
        output_scale = torch.tensor([1.0, 1000.0, 1.0])

    error = torch.tensor([[1.0, 1000.0, 1.0]])
    loss = regression(settings()).loss(Scaled(), (error, torch.zeros(1, 3)))
    torch.testing.assert_close(loss, torch.tensor(1.0))


@pytest.mark.parametrize("mixed", [False, True])
def test_one_number_a_row_is_no_outer_product(mixed: bool) -> None:
    outputs, flat = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 3.0])
    target = Mixed(flat, flat, torch.full((3,), 0.3)) if mixed else flat
    assert regression(settings()).loss(MODEL, (outputs, target)) < 1e-12  # type: ignore[operator]


def test_the_residual_s_mean_square_is_the_loss() -> None:
    objective = regression(settings())
    batch = (LOGITS, torch.zeros(2, 3))
    assert objective.residual is not None
    torch.testing.assert_close(
        objective.residual(MODEL, batch).square().mean(), objective.loss(MODEL, batch)
    )
