"""Laws of views: an undo inverts its apply, and averages keep what they are meant to keep."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from kagglekit import views
from kagglekit.errors import UserError
from kagglekit.views import View, average, for_images, then


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(seed: int = 0, side: int = 24) -> Tensor:
    return torch.rand(3, 2, side, side, generator=random(seed))


def smooth(seed: int, side: int = 64) -> Tensor:
    """Waves of 16 pixels and more in random directions, spread over 0…1: (4, 1, side, side)."""
    generator = random(seed)
    angle, phase, period = torch.rand(3, 4, 1, 1, generator=generator)
    x, y = torch.arange(side).float(), torch.arange(side).float().unsqueeze(-1)
    along = x * (2 * math.pi * angle).cos() + y * (2 * math.pi * angle).sin()
    return (0.5 + 0.5 * torch.sin(2 * math.pi * (along / (16 + 32 * period) + phase)))[:, None]


EXACT = [*views.dihedral(), *(views.turned(quarters) for quarters in (-1, 4, 5))]
EXACT += [then(first, second) for first in views.dihedral()[1:5] for second in views.dihedral()[4:]]
FILLS: tuple[views.Fill, ...] = ("zeros", "edge")
SHIFTS = [
    views.shifted(dx, dy, fill)
    for dx, dy in torch.randint(-4, 5, (6, 2), generator=random()).tolist()
    for fill in FILLS
]
SHIFTS += [then(views.mirrored, views.shifted(3, -2)), then(views.shifted(-1, 4), views.turned(3))]
SMOOTH = [views.scaled(factor) for factor in (0.8, 0.93, 1.0, 1.1, 1.25)]
SMOOTH += [views.rotated(degrees) for degrees in (-20, -7, 0, 3, 15)]
SMOOTH += [then(views.scaled(1.1), views.mirrored), then(views.turned(1), views.rotated(8))]
ALL = EXACT + SHIFTS + SMOOTH


def names(view: View) -> str:
    return view.name


@pytest.mark.parametrize("view", EXACT, ids=names)
def test_a_view_s_undo_inverts_its_apply(view: View) -> None:
    for seed in range(3):
        assert torch.equal(for_images(view).undo(view.apply(images(seed))), images(seed))


@pytest.mark.parametrize("view", SHIFTS, ids=names)
def test_a_shift_s_undo_inverts_its_apply_inside(view: View) -> None:
    back = for_images(view).undo(view.apply(images()))
    assert torch.equal(back[..., 4:-4, 4:-4], images()[..., 4:-4, 4:-4])


@pytest.mark.parametrize("view", SMOOTH, ids=names)
def test_an_interpolating_view_s_undo_inverts_its_apply_on_smooth_images(view: View) -> None:
    for seed in range(5):
        inputs = smooth(seed)
        back = for_images(view).undo(view.apply(inputs))
        assert (back - inputs)[..., 16:-16, 16:-16].abs().max() < 0.03


@pytest.mark.parametrize("view", ALL, ids=names)
def test_the_answers_of_a_class_need_no_undoing(view: View) -> None:
    answers = torch.rand(5, 10, generator=random())
    assert torch.equal(view.undo(answers), answers)


@pytest.mark.parametrize("view", ALL, ids=names)
def test_a_view_keeps_shape_dtype_and_layout(view: View) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            inputs = images().to(dtype).contiguous(memory_format=layout)
            before = inputs.clone()
            seen = view.apply(inputs)
            assert (seen.shape, seen.dtype, seen.stride()) == (inputs.shape, dtype, inputs.stride())
            assert torch.equal(inputs, before)


@pytest.mark.parametrize("view", ALL, ids=names)
def test_a_view_survives_pickling(view: View) -> None:
    for chosen in (view, for_images(view)):
        restored = pickle.loads(pickle.dumps(chosen))
        assert torch.equal(restored.apply(images()), chosen.apply(images()))
        assert torch.equal(restored.undo(images()), chosen.undo(images()))


def test_a_composed_view_undoes_the_answers_in_reverse_order() -> None:
    first, second = for_images(views.turned(1)), for_images(views.mirrored)
    both = then(first, second)
    assert torch.equal(both.undo(both.apply(images())), images())


def test_a_view_under_autocast_is_as_exact_as_without() -> None:
    view = views.rotated(10)
    with torch.autocast("cpu", torch.bfloat16):
        inside = view.apply(images())
    assert torch.equal(inside, view.apply(images()))


def test_every_name_tells_its_view() -> None:
    known = [*views.dihedral(), *SHIFTS[::2], views.scaled(1.1), views.rotated(-7)]
    assert len({view.name for view in views.dihedral()}) == 8
    assert views.shifted(2, -1).name == "shifted(2, -1)"
    assert views.shifted(2, -1, "edge").name == "shifted(2, -1, 'edge')"
    assert then(views.mirrored, views.turned(1)).name == "mirrored then turned(1)"
    assert all(view.name.isascii() for view in known)


def test_the_dihedral_views_are_a_group_of_eight() -> None:
    inputs = images()[:1]
    pictures = [view.apply(inputs) for view in views.dihedral()]
    assert len({picture.numpy().tobytes() for picture in pictures}) == 8
    for first in views.dihedral():
        for second in views.dihedral():
            both = then(first, second).apply(inputs)
            assert any(torch.equal(both, picture) for picture in pictures)


def test_views_look_where_they_say() -> None:
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 2, 3] = 1  # row 2, column 3; the centre is (4, 4)

    def place(view: View) -> tuple[int, int]:
        row, column = divmod(int(view.apply(dot).flatten().argmax()), 9)
        return row, column

    assert place(views.original) == (2, 3)
    assert place(views.mirrored) == (2, 5)
    assert place(views.flipped) == (6, 3)
    assert place(views.transposed) == (3, 2)
    assert place(views.turned(1)) == (5, 2)
    assert place(views.rotated(90)) == (5, 2)
    assert place(views.shifted(4, 1)) == (3, 7)
    assert place(views.scaled(2)) == (0, 2)
    assert place(then(views.shifted(4, 1), views.mirrored)) == (3, 1)


def test_a_shift_fills_with_zeros_or_with_the_edge() -> None:
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert views.shifted(1, 0).apply(row).flatten().tolist() == [0, 1, 2]
    assert views.shifted(-2, 0).apply(row).flatten().tolist() == [3, 0, 0]
    assert views.shifted(1, 0, "edge").apply(row).flatten().tolist() == [1, 1, 2]
    assert views.shifted(-2, 0, "edge").apply(row).flatten().tolist() == [3, 3, 3]
    assert views.shifted(7, 7).apply(row).flatten().tolist() == [0, 0, 0]


def test_masks_without_a_channel_are_turned_back_too() -> None:
    masks = torch.rand(3, 8, 8, generator=random())
    for view in EXACT:
        undone = for_images(view)
        assert torch.equal(undone.undo(view.apply(masks[:, None])[:, 0]), masks)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: views.turned(1).apply(torch.zeros(1, 1, 4, 6)),
        lambda: views.transposed.apply(torch.zeros(1, 1, 4, 6)),
        lambda: views.scaled(0.0),
        lambda: views.shifted(1, 1, "mirror"),  # type: ignore[arg-type]
        lambda: for_images(View("mine", views.same)),
        lambda: for_images(then(View("mine", views.same), views.mirrored)),
        lambda: average(torch.rand(0, 3, 4), "probabilities"),
        lambda: average(torch.rand(2, 3, 4), "median"),  # type: ignore[arg-type]
        lambda: average(torch.full((2, 3), 1.5), "logits"),
        lambda: average(torch.full((2, 3), -0.5), "geometric"),
        lambda: average(torch.full((2, 3), math.nan), "geometric"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r": (give|use)"):
        wrong()


def distributions(count: int = 5) -> Tensor:
    return (3 * torch.randn(count, 40, 10, generator=random())).softmax(-1)


def test_the_arithmetic_mean_of_one_view_is_that_view_to_the_bit() -> None:
    for answers in (distributions(1), torch.randn(1, 40), distributions(1).bfloat16()):
        assert torch.equal(average(answers, "probabilities"), answers[0])


@pytest.mark.parametrize("mean", ["probabilities", "geometric", "logits"])
def test_views_that_agree_average_to_what_they_say(mean: views.Mean) -> None:
    single = torch.rand(1, 40, 3, generator=random())
    for answers in (distributions(1), single, single[..., 0]):
        for count in (1, 4):
            same = answers.expand(count, *answers.shape[1:])
            torch.testing.assert_close(average(same, mean), answers[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mean", ["probabilities", "geometric", "logits"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_averaged_distributions_are_distributions(mean: views.Mean, dtype: torch.dtype) -> None:
    averaged = average(distributions().to(dtype), mean)
    assert averaged.shape == (40, 10)
    assert averaged.dtype == dtype
    slack = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert (averaged.double().sum(-1) - 1).abs().max() < slack


def test_geometric_and_logits_coincide_for_distributions_only() -> None:
    answers = distributions()
    assert torch.equal(average(answers, "geometric"), average(answers, "logits"))
    expected = answers.log().mean(0).exp()
    expected /= expected.sum(-1, keepdim=True)
    torch.testing.assert_close(average(answers, "geometric"), expected)
    assert not torch.allclose(average(answers, "probabilities"), expected, atol=0.01)


@pytest.mark.parametrize("shape", [(4, 50), (4, 50, 1), (4, 50, 6)])
def test_single_probabilities_are_not_renormalised(shape: tuple[int, ...]) -> None:
    answers = torch.rand(shape, generator=random(), dtype=torch.float64)
    geometric, logits = average(answers, "geometric"), average(answers, "logits")
    torch.testing.assert_close(geometric, answers.prod(0) ** 0.25)
    torch.testing.assert_close(logits, answers.logit().mean(0).sigmoid())
    assert (geometric <= average(answers, "probabilities") + 1e-12).all()
    torch.testing.assert_close(average(1 - answers, "logits"), 1 - logits)


@pytest.mark.parametrize("mean", ["geometric", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_that_contradict_each_other_make_no_nan(mean: views.Mean, dtype: torch.dtype) -> None:
    certain = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]], dtype=dtype)
    torch.testing.assert_close(
        average(certain, mean), torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=dtype)
    )
    assert average(torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=dtype), mean).isfinite().all()


def test_logits_of_two_certain_and_contrary_single_answers_cancel() -> None:
    averaged = average(torch.tensor([[[0.0]], [[1.0]]]), "logits")
    torch.testing.assert_close(averaged, torch.tensor([[0.5]]))


@pytest.mark.parametrize(
    "answers", [torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.full((2, 5, 1), 0.995)]
)
def test_rows_and_lone_outputs_are_taken_for_no_distribution(answers: Tensor) -> None:
    torch.testing.assert_close(average(answers, "geometric"), answers.prod(0).sqrt())


def test_numbers_that_are_no_probabilities_have_an_arithmetic_mean() -> None:
    answers = torch.tensor([[[-3.0], [10.0]], [[5.0], [20.0]]])
    assert average(answers, "probabilities").flatten().tolist() == [1.0, 15.0]
