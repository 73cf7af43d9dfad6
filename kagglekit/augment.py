"""What training sees: random changes of a batch, drawn for each sample on the device it lives on.

Every augmentation here draws from the generator it is handed and from nothing else, waits for no
result of the device, and gives back the shape, dtype and memory layout it was given; so a step
that augments can be captured in a CUDA graph, and the same generator state gives the same bytes.

Given several generators, one for each of equal parts of the batch, it draws for each part what it
draws for that part alone, and changes all images at once: so do the members of a stack.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Literal, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .errors import UserError
from .objectives import Mixed

# Albumentations would ask the network for a newer version of itself as it is imported, here or in
# a competition; a worker process that unpickles its transforms passes by here first.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Inputs (batch, channels, height, width) in 0…1, and a generator on their device.
Augment = Callable[[Tensor, torch.Generator], Tensor]
# One generator for a batch, or one for each of equal parts of it, in their order.
Draws = torch.Generator | Sequence[torch.Generator]
InParts = Callable[[Tensor, Draws], Tensor]  # an augmentation that understands several
# One decoded image (height, width, channels) uint8 and a seed; height and width may change.
ImageAugment = Callable[[np.ndarray, int], np.ndarray]
PaddingMode = Literal["constant", "reflect"]  # what lies outside an image: zeros, or its mirror
# The coefficients (a, b, c) of a·x + b·y + c: numbers, or one for each image (batch, 1, 1).
Coefficients = tuple[Tensor | float, Tensor | float, Tensor | float]


C = TypeVar("C", bound=Callable[..., Any])


def in_parts(function: C) -> C:
    """Mark an augmentation, or the `__call__` of one, that understands several generators.

    It then takes `Draws` in place of a generator: see `uniform`.
    """
    vars(function)["in_parts"] = True
    return function


def takes_parts(augment: Augment) -> TypeGuard[InParts]:
    """Whether an augmentation understands several generators; a composed one if all in it do.

    What a subclass overrides is its own function, and not marked by what it overrides.
    """
    if isinstance(augment, _Composed):
        return all(map(takes_parts, augment.augments))
    called = augment if isinstance(augment, FunctionType) else type(augment).__call__
    return getattr(called, "in_parts", False)


def changed(augment: Augment, inputs: Tensor, draws: Draws) -> Tensor:
    """The inputs as an augmentation changes them.

    Raises TypeError where it is given several generators and does not understand them.
    """
    if isinstance(draws, torch.Generator):
        return augment(inputs, draws)
    if not takes_parts(augment):
        raise TypeError(f"{augment} takes one generator: mark it `in_parts` if it takes several")
    return augment(inputs, draws)


def uniform(draws: Draws, shape: Sequence[int], batch: int = 0) -> Tensor:
    """Numbers in 0…1 of a shape whose axis number `batch` is that of the images, float32.

    Of several generators each draws for its part what it would draw for that alone.
    """
    return _drawn(torch.rand, draws, shape, batch)


def _drawn(draw: Callable[..., Tensor], draws: Draws, shape: Sequence[int], batch: int) -> Tensor:
    if isinstance(draws, torch.Generator):
        return draw(shape, device=draws.device, generator=draws)
    part = [size // len(draws) if axis == batch else size for axis, size in enumerate(shape)]
    first = draw(part, device=draws[0].device, generator=draws[0])
    drawn = first.new_empty(len(draws), *part)
    drawn[0] = first
    for place, generator in zip(drawn[1:], draws[1:], strict=True):
        draw(part, generator=generator, out=place)
    return drawn.movedim(0, batch).flatten(batch, batch + 1)


@in_parts
def nothing(inputs: Tensor, draws: Draws) -> Tensor:
    """The inputs as they are; works for any shape."""
    return inputs


def compose(*augments: Augment) -> Augment:
    """The augmentations one after the other, each drawing on from where the last one stopped."""
    return _Composed(augments)


@dataclass(frozen=True)
class _Composed:
    augments: tuple[Augment, ...]

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        for augment in self.augments:
            inputs = changed(augment, inputs, draws)
        return inputs


@dataclass(frozen=True)
class affine:
    """Turn, move, scale and shear each image about its centre, in one bilinear resampling.

    | field | drawn uniformly from |
    |---|---|
    | degrees | -degrees…degrees, the rotation |
    | translate | -translate…translate as a share of the side, for each axis |
    | scale | scale[0]…scale[1]; above 1 enlarges |
    | shear | -shear…shear degrees, along the rows |

    Raises UserError for a negative or impossible range.
    """

    degrees: float = 0
    translate: float = 0.0
    scale: tuple[float, float] = (1, 1)
    shear: float = 0
    padding_mode: PaddingMode = "constant"

    def __post_init__(self) -> None:
        _demand(self.degrees >= 0, f"affine(degrees={self.degrees}): give 0 or more")
        _demand(0 <= self.translate <= 1, f"affine(translate={self.translate}): give 0…1")
        _demand(0 <= self.shear < 90, f"affine(shear={self.shear}): give 0 or more, below 90")
        low, high = self.scale
        _demand(0 < low <= high, f"affine(scale={self.scale}): give (least, most), both above 0")
        _demand_padding_mode(self.padding_mode)

    @in_parts
    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Resample the batch, each image with its own five draws."""
        batch, _, height, width = inputs.shape
        turn, slant, size, right, down = (
            draw.view(batch, 1, 1) for draw in uniform(draws, (5, batch), batch=1)
        )
        angle = (2 * turn - 1) * math.radians(self.degrees)
        slope = torch.tan((2 * slant - 1) * math.radians(self.shear))
        zoom = self.scale[0] + (self.scale[1] - self.scale[0]) * size
        right = (2 * right - 1) * (self.translate * width)
        down = (2 * down - 1) * (self.translate * height)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        # The inverse of move · zoom · turn · shear, since resampling asks where a pixel comes from.
        a, b = cos + slope * sin, sin - slope * cos
        across = (a, b, -(a * right + b * down))
        return resample(inputs, across, (-sin, cos, sin * right - cos * down), self.padding_mode)


@dataclass(frozen=True)
class shift:
    """Move each image by -pixels…pixels whole pixels along each axis; what comes in is zero.

    The same as `crop(pixels, "constant")`. Raises UserError for a negative number.
    """

    pixels: int

    def __post_init__(self) -> None:
        _demand(self.pixels >= 0, f"shift(pixels={self.pixels}): give 0 or more")

    @in_parts
    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Move the batch, each image by its own two offsets."""
        return _moved(inputs, draws, self.pixels, "constant")


@dataclass(frozen=True)
class crop:
    """Pad each side by `padding` pixels, then cut each image's own window of the former size.

    Raises UserError for a negative number, or for more mirrored pixels than an image has.
    """

    padding: int
    padding_mode: PaddingMode = "reflect"

    def __post_init__(self) -> None:
        _demand(self.padding >= 0, f"crop(padding={self.padding}): give 0 or more")
        _demand_padding_mode(self.padding_mode)

    @in_parts
    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Crop the batch, each image at its own place."""
        side = min(inputs.shape[-2:])
        _demand(
            self.padding_mode == "constant" or self.padding < side,
            f"crop(padding={self.padding}) mirrors more pixels than a side of {side} has: "
            f"give at most {side - 1}",
        )
        return _moved(inputs, draws, self.padding, self.padding_mode)


@dataclass(frozen=True)
class flip:
    """Mirror each image left to right, or top to bottom, with probability one half for each."""

    horizontal: bool = True
    vertical: bool = False

    @in_parts
    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Mirror the batch, each image by its own coins."""
        flipped = inputs
        for axis, wanted in ((-1, self.horizontal), (-2, self.vertical)):
            if wanted:
                coin = _uniform(inputs, draws) < 0.5
                flipped = torch.where(coin, flipped.flip(axis), flipped)
        return laid_out_like(inputs, flipped)


@dataclass(frozen=True)
class erase:
    """Overwrite a rectangle of some images with uniform noise: random erasing, arXiv:1708.04896.

    With `probability`, a rectangle of `area[0]`…`area[1]` of the image and of a ratio of height to
    width of 0.3…1/0.3 (uniform in its logarithm); where one would not fit, it is cut to the image
    rather than drawn again. Raises UserError for a probability or area outside 0…1.
    """

    probability: float
    area: tuple[float, float] = (0.02, 0.2)

    def __post_init__(self) -> None:
        _demand(0 <= self.probability <= 1, f"erase(probability={self.probability}): give 0…1")
        low, high = self.area
        _demand(0 < low <= high <= 1, f"erase(area={self.area}): give shares (least, most) in 0…1")

    @in_parts
    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Erase from the batch, each image its own rectangle."""
        height, width = inputs.shape[-2:]
        chance, size, aspect, top, left = (_uniform(inputs, draws) for _ in range(5))
        pixels = (self.area[0] + (self.area[1] - self.area[0]) * size) * (height * width)
        ratio = torch.exp((2 * aspect - 1) * math.log(1 / 0.3))
        inside = (
            _span(height, (pixels * ratio).sqrt(), top).unsqueeze(-1)
            & _span(width, (pixels / ratio).sqrt(), left).unsqueeze(-2)
            & (chance < self.probability)
        )
        noise = uniform(draws, inputs.shape)
        return laid_out_like(inputs, torch.where(inside, noise.to(inputs.dtype), inputs))


@dataclass(frozen=True)
class brightness:
    """Multiply each image by its own factor of 1-amount…1+amount, cut to 0…1.

    Raises UserError for an amount outside 0…1.
    """

    amount: float

    def __post_init__(self) -> None:
        _demand(0 <= self.amount <= 1, f"brightness(amount={self.amount}): give 0…1")

    @in_parts
    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Scale the batch, each image by its own factor."""
        factor = 1 + self.amount * (2 * _uniform(inputs, draws) - 1)
        return laid_out_like(inputs, (inputs * factor).clamp(0, 1))


@dataclass(frozen=True)
class contrast:
    """Multiply each image's distance from its mean by its own 1-amount…1+amount, cut to 0…1.

    Raises UserError for an amount outside 0…1.
    """

    amount: float

    def __post_init__(self) -> None:
        _demand(0 <= self.amount <= 1, f"contrast(amount={self.amount}): give 0…1")

    @in_parts
    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Stretch the batch, each image by its own factor."""
        factor = 1 + self.amount * (2 * _uniform(inputs, draws) - 1)
        mean = inputs.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float32)
        return laid_out_like(inputs, (mean + factor * (inputs - mean)).clamp(0, 1))


def mixup(inputs: Tensor, target: Tensor, alpha: float, draws: Draws) -> tuple[Tensor, Mixed]:
    """Blend each row with another of its batch: arXiv:1710.09412, a share for each row.

    Where each part of the batch has a generator of its own, with another row of its part.

    `inputs` (batch, ...) float, `target` (batch, ...); the shares follow Beta(alpha, alpha).
    Gives the blended inputs, and as target both rows' own with the share of the first.
    Raises UserError unless alpha is above 0.
    """
    _demand(alpha > 0, f"mixup={alpha}: blending wants an alpha above 0")
    rows = len(inputs)
    share = _symmetric_beta(alpha, rows, draws)
    parts = 1 if isinstance(draws, torch.Generator) else len(draws)
    partner = uniform(draws, (rows,)).view(parts, -1).argsort()
    part = torch.arange(parts, device=partner.device)[:, None]
    partner = (partner + part * (rows // parts)).flatten()
    weight = share.view(rows, *[1] * (inputs.ndim - 1))
    blended = inputs * weight + inputs[partner] * (1 - weight)
    return laid_out_like(inputs, blended), Mixed(target, target[partner], share)


def albumentations(*transforms: Any) -> ImageAugment:
    """Albumentations' transforms in turn, for images that worker processes read one at a time.

    What comes out depends on the image and the seed alone: on no worker, order or earlier item.
    Gives a callable that can be pickled; it raises UserError where the transforms leave no uint8
    image, since scaling to 0…1 is the engine's part.
    """
    return _Albumentations(transforms)


def training_view(size: int) -> ImageAugment:
    """Usual changes for photographs, grey (h, w, 1) or colour (h, w, 3): (size, size) comes out.

    A random crop of 0.3…1 of the area, mirroring, some jitter of colour and a patch left out; all
    drawn from the seed alone. Shrinking averages over all pixels, because plain bilinear shrinking
    of a large photograph aliases. It takes a third of the time of the same in albumentations.
    """
    import cv2  # noqa: F401  # here, so that worker processes find it and keep it to one thread

    return _TrainingView(size)


_RATIO = math.log(4 / 3)  # of width to height, at most, of a crop
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# brightness, and two axes of colour: a hue is an angle between them (YIQ, as of NTSC television)
_TO_YIQ = np.array([_GREY, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclass(frozen=True)
class _TrainingView:
    size: int

    def __reduce__(self) -> tuple[Callable[[int], ImageAugment], tuple[int]]:
        return training_view, (self.size,)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] not in (1, 3):
            raise UserError(
                f"training_view changes images of shape (h, w, 1) or (h, w, 3), not {image.shape}"
            )
        import cv2

        draw = random.Random(seed)
        rows, columns = _part(image.shape[0], image.shape[1], draw)
        part = image[rows, columns]
        # a copy in either case; numpy would mirror byte by byte
        part = cv2.flip(part, 1) if draw.random() < 0.5 else np.array(part, order="C")
        seen = _resized(part.reshape(*part.shape[:2], -1), self.size)
        if draw.random() < 0.8:
            seen = _recoloured(seen, draw)
        if draw.random() < 0.25:
            height, width = (round(self.size * draw.uniform(0.1, 0.35)) for _ in range(2))
            top, left = draw.randint(0, self.size - height), draw.randint(0, self.size - width)
            seen[top : top + height, left : left + width] = 0
        return seen


def _part(height: int, width: int, draw: random.Random) -> tuple[slice, slice]:
    """Rows and columns of a crop of 0.3…1 of the area, 3:4 to 4:3; all, where none of ten fits."""
    for _ in range(10):
        area, ratio = height * width * draw.uniform(0.3, 1), math.exp(draw.uniform(-_RATIO, _RATIO))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = draw.randint(0, height - rows), draw.randint(0, width - columns)
            return slice(top, top + rows), slice(left, left + columns)
    return slice(0, height), slice(0, width)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """(h, w, channels) uint8 as (size, size, channels), contiguous; averaged where it shrinks."""
    import cv2

    if max(image.shape[:2]) <= size:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR).reshape(
            size, size, -1
        )
    # torch averages bytes several times as fast as OpenCV's INTER_AREA does
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    shrunk = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return shrunk.permute(0, 2, 3, 1)[0].numpy()


def _recoloured(image: np.ndarray, draw: random.Random) -> np.ndarray:
    """Brightness, contrast and saturation times 0.7…1.3 each, hue turned by up to 11 degrees.

    All of it is one matrix for each pixel, since contrast is about the mean brightness, which
    saturation and hue leave as it is.
    """
    import cv2

    bright, contrast, saturation = (draw.uniform(0.7, 1.3) for _ in range(3))
    angle = 2 * math.pi * draw.uniform(-0.03, 0.03)
    mean = bright * np.array(cv2.mean(image)[: image.shape[2]])
    scale = bright * contrast
    if image.shape[2] == 1:
        matrix = np.array([[scale, (1 - contrast) * mean[0]]])
    else:
        x, y = saturation * math.cos(angle), saturation * math.sin(angle)
        turned = _FROM_YIQ @ np.array([[1, 0, 0], [0, x, -y], [0, y, x]]) @ _TO_YIQ
        offset = np.full((3, 1), (1 - contrast) * float(_GREY @ mean))
        matrix = np.hstack([scale * turned, offset])
    # in place: memory of this size is new from the system each time, which costs more than the sums
    return cv2.transform(image, matrix, dst=image).reshape(image.shape)


class _Albumentations:
    def __init__(self, transforms: tuple[Any, ...]) -> None:
        from albumentations import Compose

        self.pipeline = Compose(transforms)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        # One state for all transforms: `set_random_seed` would give each the same draws, so that
        # the mirrored images would also be the brighter ones.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        changed = self.pipeline(image=image)["image"]
        if not isinstance(changed, np.ndarray) or changed.dtype != np.uint8:
            kind = getattr(changed, "dtype", type(changed).__name__)
            raise UserError(
                f"the albumentations transforms turn an image into {kind}, not uint8: "
                "leave out Normalize, ToFloat and ToTensorV2, the engine scales images itself"
            )
        return np.ascontiguousarray(changed)


def resample(
    images: Tensor,
    across: Coefficients,
    down: Coefficients,
    padding_mode: Literal["constant", "reflect", "edge"],
) -> Tensor:
    """The images (batch, channels, height, width), each pixel read from another place, bilinearly.

    The pixel at (x, y) comes from (a·x + b·y + c, d·x + e·y + f), in pixels from the centre, where
    `across` is (a, b, c) and `down` (d, e, f). Outside an image lie zeros, its mirror image or
    its nearest pixel. Coordinates are float32 whatever the images are: bf16 cannot tell
    neighbouring pixels apart, and autocast would turn torch's own `affine_grid` to it.
    """
    batch, _, height, width = images.shape
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).unsqueeze(-1)
    grid = torch.empty(batch, height, width, 2, device=images.device)
    for place, (a, b, c), side in zip(
        grid.unbind(-1), (across, down), (width, height), strict=True
    ):
        # in place: memory of this size is new from the system each time, which costs more than sums
        torch.add(a * x, (b * y + c).expand(batch, height, 1), out=place)
        place.mul_(2 / side)  # -1…1 from border to border is what grid_sample calls a side
    modes = {"constant": "zeros", "reflect": "reflection", "edge": "border"}
    sampled = functional.grid_sample(
        images.float(),
        grid,
        mode="bilinear",
        padding_mode=modes[padding_mode],
        align_corners=False,
    )
    return laid_out_like(images, sampled)


def laid_out_like(pattern: Tensor, result: Tensor) -> Tensor:
    """`result` in the dtype and, where the shapes agree, the memory layout of `pattern`.

    A layout that changed from batch to batch would make torch.compile compile again.
    """
    if result.dtype == pattern.dtype and result.stride() == pattern.stride():
        return result
    if result.shape != pattern.shape:
        return result.to(pattern.dtype).contiguous()
    return torch.empty_like(pattern).copy_(result)


def _moved(inputs: Tensor, draws: Draws, pixels: int, padding_mode: PaddingMode) -> Tensor:
    """Each image's own window of the padded images; drawn for both axes at once."""
    top, left = _drawn(partial(torch.randint, 2 * pixels + 1), draws, (2, len(inputs)), batch=1)
    padded = functional.pad(inputs, (pixels, pixels, pixels, pixels), mode=padding_mode)
    return laid_out_like(inputs, _windows(padded, top, left, inputs.shape[-2:]))


def _windows(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, ...]) -> Tensor:
    """The window of `size` of each image at its own (top, left), both (batch,) int64.

    A row of a window is one run of memory, so the images are read as all runs of that length,
    overlapping, and the wanted ones are picked: on a CPU one memcpy a row, three times as fast as
    gathering pixels and fifty times as fast as resampling.
    """
    batch, channels, rows, columns = images.shape
    height, width = size
    channels_last = not images.is_contiguous()
    planes, run = (1, channels) if channels_last else (channels, 1)
    pixels = images.permute(0, 2, 3, 1).contiguous() if channels_last else images
    plane = torch.arange(batch * planes, device=images.device).view(batch, planes, 1)
    row = torch.arange(height, device=images.device)
    first = plane * (rows * columns) + (top * columns + left).view(batch, 1, 1) + row * columns
    runs = pixels.as_strided((pixels.numel() - width * run + 1, width * run), (1, 1))
    picked = runs.index_select(0, (first * run).flatten())
    if channels_last:
        return picked.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return picked.view(batch, channels, height, width)


def _uniform(inputs: Tensor, draws: Draws) -> Tensor:
    """One number in 0…1 for each image, float32 (batch, 1, 1, 1)."""
    return uniform(draws, (len(inputs), 1, 1, 1))


def _span(side: int, length: Tensor, place: Tensor) -> Tensor:
    """Which of `side` pixels lie in a span of `length` pixels at `place` 0…1: (batch, 1, side)."""
    length = length.round().clamp(1, side)
    start = (place * (side - length + 1)).floor()
    pixel = torch.arange(side, device=length.device)
    return ((pixel >= start) & (pixel < start + length)).squeeze(-2)


def _symmetric_beta(alpha: float, count: int, draws: Draws) -> Tensor:
    """`count` draws from Beta(alpha, alpha), float32, from three uniform numbers each.

    Bailey's method for Student's t put into Best's relation to the beta (L. Devroye, "Random
    variate generation in one line of code", WSC 1996): unlike rejection it draws a fixed amount.
    """
    radius, angle, side = uniform(draws, (3, count), batch=1)
    logarithm = radius.log() / alpha
    # (1 - U^(1/alpha))·cos² and U^(1/alpha): their quotient would overflow where alpha is small
    spread = -torch.expm1(logarithm) * torch.cos(2 * math.pi * angle).square()
    distance = (spread / (spread + logarithm.exp())).sqrt()
    return 0.5 + 0.5 * torch.where(side < 0.5, -distance, distance)


def _demand(truth: bool, sentence: str) -> None:
    if not truth:
        raise UserError(sentence)


def _demand_padding_mode(padding_mode: str) -> None:
    _demand(
        padding_mode in ("constant", "reflect"),
        f"padding_mode={padding_mode!r} is unknown: give 'constant' or 'reflect'",
    )
