"""A recorded function does to other tensors what the function itself would do to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from kagglekit import recording
from kagglekit.recording import Unrecordable, recorded


def loss(inputs: Tensor, matrix: Tensor) -> Tensor:
    return nn.functional.silu(inputs @ matrix).square().mean()


def gradient(inputs: Tensor, matrix: Tensor) -> list[Tensor]:
    weight = matrix.detach().requires_grad_()
    losses = vmap(loss)(inputs, weight)
    return [losses.detach(), *torch.autograd.grad(losses.sum(), weight)]


def pieces(inputs: Tensor, matrix: Tensor) -> dict[str, Tensor]:
    top, *_ = inputs.split(2)
    return {"top": top + 1, "all": torch.cat([inputs, matrix]), "none": torch.zeros(3) - 1}


def normalised(inputs: Tensor, matrix: Tensor) -> Tensor:
    """Changes its matrix, as BatchNorm does its running mean."""
    matrix.mul_(0.9).add_(inputs.mean(0), alpha=0.1)
    return inputs - matrix


def summed_up(inputs: Tensor, matrix: Tensor) -> Tensor:
    """Builds a tensor and changes it, as an embedding its offsets."""
    offset = torch.tensor([0.0, 1.0, 2.0, 3.0])
    offset += 0.5
    return inputs * offset + inputs.new_tensor(2.0).mul_(3)


def idly_normalised(inputs: Tensor, matrix: Tensor) -> Tensor:
    """Keeps statistics of what it then leaves."""
    nn.functional.batch_norm(inputs, matrix[0, 0], matrix[0, 1], training=True)
    return inputs


def reduced(inputs: Tensor, matrix: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.einsum("bij,bjk->bik", inputs, matrix).float()


@pytest.mark.parametrize(
    "function", [gradient, pieces, normalised, summed_up, idly_normalised, reduced]
)
def test_it_gives_and_changes_what_the_function_does_for_other_tensors(
    function: Callable[..., object],
) -> None:
    def drawn() -> list[Tensor]:
        return [torch.randn(3, 4, 4, generator=source) for _ in range(2)]

    source = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        run = torch.no_grad()(recorded(function, drawn()))
    for _ in range(2):
        given = drawn()
        own = [tensor.clone() for tensor in given]
        torch.testing.assert_close(run(*given), function(*own), rtol=0, atol=0)
        torch.testing.assert_close(given, own, rtol=0, atol=0)


def test_tensors_from_elsewhere_stay_what_they_are() -> None:
    scale = torch.ones(2)
    run = recorded(lambda inputs: inputs * scale + torch.tensor([1.0, 2.0]), [torch.zeros(2)])
    scale.fill_(3)
    assert run(torch.ones(2)).tolist() == [4, 5]


def test_what_nobody_takes_is_left_out_unless_it_changes_something() -> None:
    def idle(inputs: Tensor, noted: Tensor) -> Tensor:
        inputs.exp()
        noted += inputs
        torch.rand(2)
        return inputs + 1

    run = recorded(idle, [torch.ones(2), torch.zeros(2)])
    done = [node.target for node in run.__self__.graph.nodes if node.op == "call_function"]  # type: ignore[attr-defined]
    aten = torch.ops.aten
    assert done == [aten.add_.Tensor, aten.rand.default, aten.add.Tensor]


@pytest.mark.parametrize(
    "reads", [lambda x: x * x.sum().item(), lambda x: x if x.sum() > 0 else -x, torch.equal]
)
def test_a_function_that_reads_numbers_is_refused(reads: Callable[..., object]) -> None:
    count = 2 if reads is torch.equal else 1
    with pytest.raises(Unrecordable, match="reads numbers out of a tensor"):
        recorded(reads, [torch.ones(3) for _ in range(count)])


counted = torch.zeros(3)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda inputs: inputs * counted.add_(1), "changes a tensor that is none of its inputs"),
        (lambda inputs: inputs.detach().unsqueeze_(0), "changes the shape of a tensor in place"),
        (lambda inputs: torch.rand(3, generator=torch.Generator()), "is given a Generator"),
    ],
)
def test_what_would_be_another_in_the_next_run_is_refused(
    function: Callable[..., object], why: str
) -> None:
    with pytest.raises(Unrecordable, match=why):
        recorded(function, [torch.ones(3)])


def test_what_the_function_lets_go_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes: list[recording._Tape] = []
    played = recording._Tape.played
    monkeypatch.setattr(
        recording._Tape,
        "played",
        lambda tape, answer: (tapes.append(tape), played(tape, answer))[1],
    )

    def long(inputs: Tensor) -> Tensor:
        for _ in range(50):
            inputs = inputs + 1
        return inputs

    recorded(long, [torch.ones(2)])
    assert len(tapes[0].nodes) <= 2


def test_a_module_s_pass_under_vmap_is_that_of_each_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
    names = [name for name, _ in model.named_parameters()]
    weights = [torch.randn(5, *weight.shape) for weight in model.parameters()]
    inputs = torch.randn(5, 7, 4)

    def answered(inputs: Tensor, *stack: Tensor) -> Tensor:
        return vmap(partial(functional_call, model))(
            dict(zip(names, stack, strict=True)), (inputs,)
        )

    with torch.no_grad():
        run = recorded(answered, [inputs, *weights])
        each = [
            functional_call(model, dict(zip(names, [w[place] for w in weights], strict=True)), x)
            for place, x in enumerate(inputs)
        ]
        torch.testing.assert_close(run(inputs, *weights), torch.stack(each))
