"""Muon steps as its reference does, and in every direction alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kagglekit.muon import Muon


@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (48, 20), (20, 48)])
def test_steps_are_those_of_timm(shape: tuple[int, ...]) -> None:
    from timm.optim.muon import Muon as Reference

    torch.manual_seed(0)
    start = torch.randn(shape)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"weight_decay": 0.01}
    ours = Muon([{**group, "params": [mine]}], lr=0.1, momentum=0.9)
    reference = Reference(
        [{**group, "params": [theirs], "use_fallback": False}], lr=0.1, momentum=0.9,
        nesterov=True, adjust_lr_fn="original", ns_coefficients="original",
    )  # fmt: skip
    for _ in range(4):
        gradient = torch.randn(shape)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        reference.step()
    moved = (theirs - start).norm()
    assert moved > 1
    assert (mine - theirs).norm() < 0.02 * moved  # timm's products are in bf16


def test_the_size_of_the_gradient_does_not_matter() -> None:
    torch.manual_seed(0)
    gradient, found = torch.randn(8, 12), []
    for scale in (1e-4, 1.0, 1e4):
        weight = nn.Parameter(torch.zeros(8, 12))
        weight.grad = gradient * scale
        Muon([{"params": [weight]}], lr=0.1, momentum=0.9).step()
        found.append(weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[2], found[1], rtol=1e-3, atol=1e-5)


def test_no_gradient_is_no_step_and_a_gradient_of_zeros_no_nan() -> None:
    frozen, flat = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    flat.grad = torch.zeros(4, 4)
    Muon([{"params": [frozen, flat]}], lr=0.1, momentum=0.9).step()
    assert torch.equal(frozen, torch.ones(4, 4))
    assert torch.equal(flat, torch.ones(4, 4))
