"""Laws of augmentation: drawn for each sample, from the generator alone, shape and layout kept."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from kagglekit import augment
from kagglekit.augment import Augment
from kagglekit.errors import UserError

AUGMENTS: list[Augment] = [
    augment.affine(degrees=15, translate=0.1, scale=(0.8, 1.2), shear=10),
    augment.affine(degrees=15, translate=0.1, padding_mode="reflect"),
    augment.shift(3),
    augment.crop(3),
    augment.crop(3, "constant"),
    augment.flip(),
    augment.flip(horizontal=False, vertical=True),
    augment.erase(1.0),
    augment.brightness(0.3),
    augment.contrast(0.3),
    augment.compose(augment.shift(2), augment.flip(), augment.contrast(0.2)),
]
every = pytest.mark.parametrize("change", AUGMENTS, ids=repr)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 32, channels: int = 3, height: int = 12, width: int = 16) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=random(1))


def pictures(batch: Tensor) -> int:
    """How many different images the batch holds."""
    return len({image.numpy().tobytes() for image in batch})


@every
def test_two_samples_of_a_batch_draw_differently(change: Augment) -> None:
    alike = images(1).expand(32, -1, -1, -1).contiguous()
    changed = change(alike, random())
    assert pictures(changed) > 1


@every
def test_the_same_generator_state_gives_the_same_bytes_and_the_next_others(change: Augment) -> None:
    generator = random()
    first, second = change(images(), generator), change(images(), generator)
    assert torch.equal(first, change(images(), random()))
    assert not torch.equal(first, second)


@every
def test_the_global_generator_is_left_alone(change: Augment) -> None:
    before = torch.random.get_rng_state()
    change(images(), random())
    assert torch.equal(before, torch.random.get_rng_state())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_layout_are_kept_and_the_inputs_too(
    change: Augment, dtype: torch.dtype
) -> None:
    layouts = (torch.contiguous_format, torch.channels_last)
    for batch, channels, layout in itertools.product((1, 5), (1, 3), layouts):
        inputs = images(batch, channels).to(dtype).contiguous(memory_format=layout)
        before = inputs.clone()
        changed = change(inputs, random())
        assert changed.shape == inputs.shape
        assert changed.dtype == dtype
        assert changed.stride() == inputs.stride()
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert torch.equal(inputs, before)


@every
def test_a_layout_in_memory_changes_no_pixel(change: Augment) -> None:
    other = images().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(change(other, random()), change(images(), random()))


@every
def test_an_augmentation_survives_pickling(change: Augment) -> None:
    restored = pickle.loads(pickle.dumps(change))
    assert torch.equal(restored(images(), random()), change(images(), random()))


@pytest.mark.gpu
@every
def test_an_augmentation_can_be_captured_in_a_graph(change: Augment) -> None:
    inputs = images().cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    change(inputs, generator)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        changed = change(inputs, generator)
    generator.manual_seed(7)
    graph.replay()
    expected = change(inputs, torch.Generator("cuda").manual_seed(7))
    torch.testing.assert_close(changed, expected)


PARTS = [(1, 1), (3, 5), (4, 16), (5, 33), (20, 64)]  # members, rows of each


def drawn_alone_and_together(
    members: int, rows: int, change: Any, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """The images of several members, changed for each alone and for all at once."""
    inputs = images(members * rows).contiguous(memory_format=layout)
    alone = [change(part.clone(), random(seed)) for seed, part in enumerate(inputs.split(rows))]
    return torch.cat(alone), change(inputs, [random(seed) for seed in range(members)])


@every
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_several_members_draw_at_once_to_the_bit_what_each_draws_alone(
    change: Augment, layout: torch.memory_format
) -> None:
    assert augment.takes_parts(change)
    for members, rows in PARTS:
        alone, together = drawn_alone_and_together(members, rows, change, layout)
        assert torch.equal(alone, together), (members, rows)
        assert together.is_contiguous(memory_format=layout)
        assert alone.stride() == together.stride()


@pytest.mark.gpu
@every
def test_several_members_draw_at_once_on_a_gpu_what_each_draws_alone(change: Augment) -> None:
    inputs = images(80).cuda()
    alone = [change(part.clone(), torch.Generator("cuda").manual_seed(seed))
             for seed, part in enumerate(inputs.split(16))]  # fmt: skip
    generators = [torch.Generator("cuda").manual_seed(seed) for seed in range(5)]
    torch.testing.assert_close(augment.changed(change, inputs, generators), torch.cat(alone))


@every
def test_each_generator_stands_where_it_would_stand_alone(change: Augment) -> None:
    alone, several = random(3), [random(seed) for seed in range(5)]
    change(images(4), alone)
    augment.changed(change, images(20), several)
    assert torch.equal(several[3].get_state(), alone.get_state())


def test_an_own_augmentation_takes_several_generators_only_where_it_says_so() -> None:
    def own(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs

    class Louder(augment.brightness):
        def __call__(self, inputs: Tensor, generator: Any) -> Tensor:
            return inputs + torch.rand(1, generator=generator)

    assert augment.takes_parts(augment.nothing)
    assert augment.takes_parts(augment.compose(augment.flip(), augment.nothing))
    for other in (own, Louder(0.1), partial(own), augment.training_view(8)):
        assert not augment.takes_parts(other)  # type: ignore[arg-type]
        assert not augment.takes_parts(augment.compose(augment.flip(), other))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="takes one generator"):
            augment.changed(other, images(20), [torch.Generator() for _ in range(2)])  # type: ignore[arg-type]
    assert augment.takes_parts(augment.in_parts(own))


@pytest.mark.parametrize("alpha", [0.05, 0.4])
def test_mixup_at_once_gives_each_member_what_it_has_alone(alpha: float) -> None:
    for members, rows in [*PARTS, (20, 300)]:
        inputs, target = images(members * rows), torch.arange(members * rows)
        generators = [random(seed) for seed in range(members)]
        blended, mixed = augment.mixup(inputs, target, alpha, generators)
        for seed, own in enumerate(target.split(rows)):
            alone, mixed_alone = augment.mixup(inputs[own], own, alpha, random(seed))
            assert torch.equal(blended[own], alone)
            assert all(torch.equal(part[own], other) for part, other in
                       zip(mixed, mixed_alone, strict=True))  # fmt: skip


def test_nothing_changes_nothing() -> None:
    assert torch.equal(augment.nothing(images(), random()), images())


@pytest.mark.parametrize(
    "idle",
    [
        augment.compose(),
        augment.affine(),
        augment.shift(0),
        augment.crop(0),
        augment.flip(horizontal=False),
        augment.erase(0.0),
        augment.brightness(0.0),
        augment.contrast(0.0),
    ],
    ids=repr,
)
def test_an_augmentation_of_no_strength_changes_nothing(idle: Augment) -> None:
    torch.testing.assert_close(idle(images(), random()), images(), atol=1e-5, rtol=0)


def test_composing_is_doing_one_after_the_other() -> None:
    generator = random()
    one_by_one = augment.flip()(augment.shift(2)(images(), generator), generator)
    composed = augment.compose(augment.shift(2), augment.flip())
    assert torch.equal(composed(images(), random()), one_by_one)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("change", "mode"), [(augment.shift(2), "constant"), (augment.crop(2), "reflect")]
)
def test_shifts_and_crops_are_windows_of_the_padded_image(
    change: Augment, mode: str, layout: torch.memory_format
) -> None:
    inputs = images(200).contiguous(memory_format=layout)
    padded = torch.nn.functional.pad(inputs, (2, 2, 2, 2), mode=mode)
    windows = [
        padded[..., top : top + 12, left : left + 16] for top in range(5) for left in range(5)
    ]
    changed = change(inputs, random())
    matches = torch.stack([(window == changed).flatten(1).all(1) for window in windows])
    assert (matches.sum(0) == 1).all(), "each image is exactly one window"
    assert matches.any(1).all(), "200 images take all 25 offsets"


def test_flips_mirror_about_half_of_the_images() -> None:
    inputs = images(400)
    changed = augment.flip()(inputs, random())
    flipped = (changed == inputs.flip(-1)).flatten(1).all(1)
    assert ((changed == inputs).flatten(1).all(1) ^ flipped).all()
    assert 150 < flipped.sum() < 250


def test_both_flips_together_give_all_four_pictures() -> None:
    alike = images(1).expand(64, -1, -1, -1)
    assert pictures(augment.flip(True, True)(alike, random())) == 4


@pytest.mark.parametrize("area", [(0.02, 0.2), (0.1, 0.1), (1.0, 1.0)])
def test_erasing_overwrites_one_rectangle_of_the_wanted_area(area: tuple[float, float]) -> None:
    inputs = images(300, 1, 40, 40)
    erased = (augment.erase(0.5, area)(inputs, random()) != inputs).squeeze(1)
    assert 110 < erased.flatten(1).any(1).sum() < 190
    for mask in erased[erased.flatten(1).any(1)]:
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert int(mask.sum()) == height * width
        assert height * width / 1600 < area[1] * 1.3
        # a rectangle cut to the image is smaller than drawn
        assert height * width / 1600 > area[0] * 0.7 or 40 in (height, width)


def test_affine_moves_a_point_by_no_more_than_it_was_told() -> None:
    inputs = torch.zeros(500, 1, 41, 61)
    inputs[..., 18:23, 28:33] = 1
    changed = augment.affine(translate=0.1)(inputs, random()).squeeze(1)
    mass = changed.sum((1, 2))
    across = (changed.sum(1) * (torch.arange(61) - 30)).sum(1) / mass
    down = (changed.sum(2) * (torch.arange(41) - 20)).sum(1) / mass
    assert 5.5 < across.abs().max() <= 6.11
    assert 3.7 < down.abs().max() <= 4.11
    assert across.min() < -5 < 5 < across.max()


def test_affine_scales_areas_and_keeps_them_when_it_turns_or_shears() -> None:
    inputs = torch.zeros(300, 1, 64, 64)
    inputs[..., 22:42, 22:42] = 1

    def area(change: Augment) -> Tensor:
        return change(inputs, random()).sum((1, 2, 3)) / 400

    assert torch.allclose(area(augment.affine(degrees=45, shear=30)), torch.ones(300), atol=0.02)
    scaled = area(augment.affine(scale=(0.5, 1.5)))
    assert 0.2 < scaled.min() < 0.4
    assert 2.0 < scaled.max() < 2.3
    assert torch.allclose(
        area(augment.affine(scale=(1.5, 1.5))), torch.full((300,), 2.25), atol=0.03
    )


def test_affine_turns_no_further_than_it_was_told_whatever_the_sides() -> None:
    inputs = torch.zeros(400, 1, 31, 61)
    inputs[..., 15, 20:41] = 1
    changed = augment.affine(degrees=20)(inputs, random()).squeeze(1)
    x, y = torch.arange(61) - 30.0, torch.arange(31) - 15.0
    mass = changed.sum((1, 2))
    spread = (changed.sum(1) * x * x).sum(1) / mass
    slope = torch.einsum("bhw,h,w->b", changed, y, x) / mass / spread
    turned = torch.rad2deg(torch.atan(slope))
    assert 18 < turned.abs().max() < 20.5
    assert turned.min() < -17 < 17 < turned.max()


def test_affine_under_autocast_is_as_exact_as_without() -> None:
    change = augment.affine(degrees=15, translate=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = change(images(), random())
    assert torch.equal(inside, change(images(), random()))


@pytest.mark.parametrize(
    "build",
    [
        lambda: augment.affine(degrees=-1),
        lambda: augment.affine(translate=2),
        lambda: augment.affine(scale=(1.2, 0.8)),
        lambda: augment.affine(shear=90),
        lambda: augment.affine(padding_mode="edges"),  # type: ignore[arg-type]
        lambda: augment.shift(-1),
        lambda: augment.crop(-1),
        lambda: augment.crop(2, "wrap"),  # type: ignore[arg-type]
        lambda: augment.crop(12)(images(), random()),
        lambda: augment.erase(1.5),
        lambda: augment.erase(0.5, (0.3, 0.2)),
        lambda: augment.brightness(-0.1),
        lambda: augment.contrast(1.1),
        lambda: augment.mixup(images(), torch.zeros(32), 0.0, random()),
    ],
)
def test_an_impossible_strength_is_the_user_s_mistake(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"give|wants"):
        build()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_mixup_s_shares_follow_the_beta_distribution(alpha: float) -> None:
    rows = torch.zeros(4000, 1)
    _, mixed = augment.mixup(rows, rows, alpha, random())
    share = mixed.share.double().numpy()
    assert mixed.share.shape == (4000,)
    assert share.min() >= 0
    assert share.max() <= 1
    # float32 cannot tell 1 - 1e-9 from 1, so small alphas are compared a little inside
    inside = np.clip(share, 1e-6, 1 - 1e-6)
    distance = stats.ks_1samp(inside, stats.beta(alpha, alpha).cdf).statistic
    atom = 2 * stats.beta(alpha, alpha).cdf(1e-6)
    assert distance < 0.03 + atom


@pytest.mark.parametrize("shape", [(64, 3, 12, 16), (64, 7)])
def test_mixup_blends_inputs_just_as_the_target_says(shape: tuple[int, ...]) -> None:
    inputs = torch.rand(shape, generator=random(2))
    target = torch.arange(64)
    blended, mixed = augment.mixup(inputs, target, 1.0, random())
    share = mixed.share.view(64, *[1] * (len(shape) - 1))
    expected = share * inputs[mixed.first] + (1 - share) * inputs[mixed.second]
    torch.testing.assert_close(blended, expected)
    assert torch.equal(mixed.first, target)
    assert torch.equal(mixed.second.sort().values, target), "each row is one row's partner"
    assert not torch.equal(mixed.second, target)


def test_mixup_repeats_with_its_generator_and_keeps_layout_and_dtype() -> None:
    inputs = images().bfloat16().contiguous(memory_format=torch.channels_last)
    blended, mixed = augment.mixup(inputs, torch.arange(32), 0.4, random())
    again, mixed_again = augment.mixup(inputs, torch.arange(32), 0.4, random())
    assert blended.dtype == torch.bfloat16
    assert blended.stride() == inputs.stride()
    assert torch.equal(blended, again)
    assert torch.equal(mixed.share, mixed_again.share)
    assert torch.equal(mixed.second, mixed_again.second)


def test_mixup_of_a_single_row_is_that_row() -> None:
    blended, mixed = augment.mixup(images(1), torch.tensor([3]), 0.4, random())
    torch.testing.assert_close(blended, images(1))
    assert mixed.second.tolist() == [3]


def photographs(count: int, channels: int = 3) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (40, 52, channels), dtype=np.uint8) for _ in range(count)]


def test_albumentations_depends_on_the_seed_and_on_no_order() -> None:
    change = augment.training_view(24)
    pictures = photographs(6)
    forwards = [change(picture, seed) for seed, picture in enumerate(pictures)]
    backwards = [change(pictures[seed], seed) for seed in reversed(range(6))][::-1]
    assert all(map(np.array_equal, forwards, backwards))
    assert not np.array_equal(change(pictures[0], 1), forwards[0])


def test_albumentations_gives_another_process_the_same_bytes_and_asks_no_network() -> None:
    change, picture = augment.training_view(24), photographs(1)[0]
    child = (
        "import pickle, sys\n"
        "change, picture = pickle.load(sys.stdin.buffer)\n"
        "from albumentations import check_version\n"
        "assert check_version.opener is None, 'looked for a newer version'\n"
        "sys.stdout.buffer.write(change(picture, 5).tobytes())\n"
    )
    root = str(Path(augment.__file__).parents[1])
    surroundings = {**os.environ, "PYTHONPATH": root}
    surroundings.pop("NO_ALBUMENTATIONS_UPDATE", None)
    answer = subprocess.run(
        [sys.executable, "-c", child],
        input=pickle.dumps((change, picture)),
        stdout=subprocess.PIPE,
        env=surroundings,
        check=True,
    )
    assert answer.stdout == change(picture, 5).tobytes()


def test_albumentations_transforms_draw_independently_of_each_other() -> None:
    import albumentations as library

    picture = np.zeros((4, 4, 1), np.uint8)
    picture[0, 0] = 255
    change = augment.albumentations(library.HorizontalFlip(p=0.5), library.VerticalFlip(p=0.5))
    corners = {change(picture, seed).tobytes() for seed in range(40)}
    assert len(corners) == 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, 64])
def test_the_training_view_gives_square_images_and_leaves_the_photograph(
    channels: int, size: int
) -> None:
    picture = photographs(1, channels)[0]
    before = picture.copy()
    change = augment.training_view(size)
    for seed in range(20):
        changed = change(picture, seed)
        assert changed.shape == (size, size, channels)
        assert changed.dtype == np.uint8
        assert changed.flags.c_contiguous
    assert np.array_equal(picture, before)


def test_the_training_view_averages_what_it_shrinks() -> None:
    stripes = np.zeros((300, 300, 1), np.uint8)
    stripes[:, ::2] = 200
    view = augment.training_view(40)
    for seed in range(20):
        seen = view(stripes, seed)
        assert seen[seen > 0].std() < 4  # bilinear without averages gives bars of 0 to 200


def test_the_training_view_crops_what_it_promises() -> None:
    draw = Random(0)
    for _ in range(500):
        rows, columns = augment._part(90, 120, draw)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert min(rows.start, columns.start) >= 0
        assert rows.stop <= 90
        assert columns.stop <= 120
        assert 0.28 < height * width / (90 * 120) <= 1
        assert 0.72 < width / height < 1.38
    assert augment._part(1, 90, draw) == (slice(0, 1), slice(0, 90))  # nothing else fits


def test_the_training_view_jitters_brightness_and_colour_and_leaves_grey_grey() -> None:
    view = augment.training_view(8)
    grey, orange = np.full((20, 20, 3), 120, np.uint8), np.full((20, 20, 3), (200, 120, 40))
    plain = [view(grey, seed)[0, 0].astype(int) for seed in range(300)]
    assert all(np.ptp(pixel) <= 1 for pixel in plain)
    seen = np.array([pixel[0] for pixel in plain if pixel.any()])  # but for the patch left out
    assert 0.7 * 120 - 1 <= seen.min() < 90
    assert 150 < seen.max() <= 1.3 * 120 + 1
    assert 0.1 < (seen == 120).mean() < 0.3  # one in five is left as it is
    pixels = np.array([view(orange.astype(np.uint8), seed)[0, 0] for seed in range(300)], int)
    pixels = pixels[pixels.any(1)]
    assert (pixels[:, 0] > pixels[:, 1] + 20).all()  # never another colour
    assert (pixels[:, 1] > pixels[:, 2] + 20).all()
    hues = (pixels[:, 1] - pixels[:, 2]) / (pixels[:, 0] - pixels[:, 2])
    assert 0.3 < hues.min() < 0.4 < 0.6 < hues.max() < 0.7


def test_the_training_view_mirrors_half_and_leaves_a_patch_out_of_a_quarter() -> None:
    ramp = np.repeat(np.arange(40, 240, dtype=np.uint8)[None, :, None], 200, axis=0)
    view = augment.training_view(64)
    seen = [view(ramp, seed)[:, :, 0].astype(int) for seed in range(300)]
    mirrored = np.mean([picture[:, 0].max() > picture[:, -1].max() for picture in seen])
    patches = np.array([(picture == 0).mean() for picture in seen])
    assert 0.4 < mirrored < 0.6
    assert 0.18 < (patches > 0).mean() < 0.32
    assert 0.01 <= patches[patches > 0].min() < patches.max() < 0.13


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 4)])
def test_the_training_view_asks_for_grey_or_colour(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="training_view changes images of shape"):
        augment.training_view(8)(np.zeros(shape, np.uint8), 0)


def test_albumentations_that_leave_no_uint8_are_the_user_s_mistake() -> None:
    import albumentations as library

    change = augment.albumentations(library.Normalize())
    with pytest.raises(UserError, match="float32, not uint8"):
        change(photographs(1)[0], 0)
