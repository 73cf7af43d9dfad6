"""Test-time augmentation: ways to look at a batch, to bring its answers back and to average them.

| view | exactly undone | what an image loses |
|---|---|---|
| `original`, `mirrored`, `flipped`, `transposed`, `turned(quarters)` | yes | nothing |
| `shifted(dx, dy)` | yes, inside | the pixels moved over the border |
| `scaled(factor)`, `rotated(degrees)` | no, bilinear | its border, and detail |

An interpolating view of 0.8…1.25 or of up to 20 degrees changes images in 0…1 without detail
finer than 16 pixels by less than 0.03 once undone, away from the border.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .augment import laid_out_like, resample
from .errors import UserError

Mean = Literal["probabilities", "geometric", "logits"]
Fill = Literal["zeros", "edge"]  # what moves in over the border: zeros, or the nearest pixel


def same(answers: Tensor) -> Tensor:
    """The answers as they are."""
    return answers


@dataclass(frozen=True)
class View:
    """One way to look at a test row.

    | field | from | to |
    |---|---|---|
    | apply | inputs (batch, channels, height, width) | the same shape |
    | undo | what the model answers to those | the answer to the inputs themselves |
    | inverse | what `apply` gave | the inputs; None where the view knows no way back |

    A class is the same in the mirror, so `undo` is the identity unless answers are images: see
    `for_images`. All functions have to be importable, so that views reach worker processes.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor] = same
    inverse: Callable[[Tensor], Tensor] | None = None


def for_images(view: View) -> View:
    """The view for answers that are images (batch, ..., height, width), which `undo` turns back.

    The answers of a shift have to be as large as its inputs. Raises UserError for a view of one's
    own that names no `inverse`.
    """
    if view.inverse is None:
        raise UserError(f"the view {view.name!r} cannot be undone on images: give it an `inverse`")
    return replace(view, undo=view.inverse)


def then(first: View, second: View) -> View:
    """`second` looks at what `first` shows; their undos run in reverse order."""
    inverse = None
    if first.inverse is not None and second.inverse is not None:
        inverse = partial(_in_turn, steps=(second.inverse, first.inverse))
    return View(
        f"{first.name} then {second.name}",
        partial(_in_turn, steps=(first.apply, second.apply)),
        partial(_in_turn, steps=(second.undo, first.undo)),
        inverse,
    )


def turned(quarters: int) -> View:
    """Turned by quarters of a circle against the clock; odd ones want square images.

    `apply` raises UserError where height and width differ, since the shape would change.
    """
    return View(
        f"turned({quarters})",
        partial(_turn, quarters=quarters),
        inverse=partial(_turn, quarters=-quarters),
    )


def shifted(dx: int, dy: int, fill: Fill = "zeros") -> View:
    """Moved by whole pixels: `dx` to the right, `dy` down. Raises UserError for an unknown fill."""
    if fill not in ("zeros", "edge"):
        raise UserError(f"shifted(fill={fill!r}) is unknown: give 'zeros' or 'edge'")
    return View(
        f"shifted({dx}, {dy})" if fill == "zeros" else f"shifted({dx}, {dy}, {fill!r})",
        partial(_shift, dx=dx, dy=dy, fill=fill),
        inverse=partial(_shift, dx=-dx, dy=-dy, fill=fill),
    )


def scaled(factor: float) -> View:
    """Enlarged about the centre, or shrunk below 1, where the nearest pixels fill the border.

    Bilinear: much below 1 fine detail aliases. Raises UserError unless the factor is above 0.
    """
    if not 0 < factor < math.inf:
        raise UserError(f"scaled({factor}) shows nothing: give a factor above 0")
    return View(
        f"scaled({factor})",
        partial(_resample, turn=0.0, zoom=factor),
        inverse=partial(_resample, turn=0.0, zoom=1 / factor),
    )


def rotated(degrees: float) -> View:
    """Rotated about the centre against the clock; the nearest pixels fill the corners."""
    return View(
        f"rotated({degrees})",
        partial(_resample, turn=math.radians(degrees), zoom=1.0),
        inverse=partial(_resample, turn=-math.radians(degrees), zoom=1.0),
    )


def dihedral() -> tuple[View, ...]:
    """The eight symmetries of the square (the group D4); images have to be square."""
    other_diagonal = replace(then(transposed, turned(2)), name="transposed the other way")
    turns = (turned(1), turned(2), turned(3))
    return (original, *turns, mirrored, flipped, transposed, other_diagonal)


def average(answers: Tensor, mean: Mean) -> Tensor:
    """One answer from the views': (views, batch, ...) to (batch, ...).

    | mean | class distributions (last dimension sums to 1) | single probabilities |
    |---|---|---|
    | probabilities | arithmetic mean | arithmetic mean |
    | geometric | exp of the mean log, renormalised | exp of the mean log |
    | logits | softmax of the mean log-probabilities | sigmoid of the mean logit |

    For class distributions "geometric" and "logits" are the same numbers. For single
    probabilities "logits" is the geometric mean renormalised against that of the complements, so
    it treats p and 1 - p alike, and "geometric" is never above "probabilities". Where the views
    agree all three coincide, and for one view "probabilities" gives its answer to the bit. Only
    "probabilities" makes sense of other numbers. Views that contradict each other with
    certainty (exactly 0 and 1) make no NaN: logarithms are taken of the nearest number inside.

    Raises UserError for an unknown mean, for no views at all, and for answers that are no
    probabilities with another mean than "probabilities".
    """
    if mean not in ("probabilities", "geometric", "logits"):
        raise UserError(
            f"tta_mean={mean} is unknown: give 'probabilities', 'geometric' or 'logits'"
        )
    if len(answers) == 0:
        raise UserError("there are no views to average: give the recipe at least `original`")
    if mean == "probabilities":
        return answers.mean(dim=0)
    # `all` of comparisons rather than of their negation, so that a NaN is no probability
    if not bool(((answers >= 0) & (answers <= 1)).all()):
        raise UserError(
            f"tta_mean={mean} wants probabilities, and these answers leave 0…1: "
            "give tta_mean=probabilities, which averages any numbers"
        )
    exact = answers.to(torch.promote_types(answers.dtype, torch.float32))
    return _probability_mean(exact, mean, _are_distributions(answers)).to(answers.dtype)


def _probability_mean(answers: Tensor, mean: Mean, distributions: bool) -> Tensor:
    precision = torch.finfo(answers.dtype)
    if mean == "logits" and not distributions:
        # the same distance from 0 and from 1, so that two certain views cancel
        return answers.logit(eps=precision.eps).mean(dim=0).sigmoid()
    logarithm = answers.clamp(min=precision.tiny).log().mean(dim=0)
    return logarithm.softmax(dim=-1) if distributions else logarithm.exp()


def _are_distributions(answers: Tensor) -> bool:
    """Whether the last dimension sums to 1, to the precision of a softmax taken in bf16."""
    if answers.ndim < 3 or answers.shape[-1] < 2:
        return False
    return bool(((answers.float().sum(dim=-1) - 1).abs() < 0.01).all())


def _in_turn(images: Tensor, steps: tuple[Callable[[Tensor], Tensor], ...]) -> Tensor:
    for step in steps:
        images = step(images)
    return images


def _mirror(images: Tensor) -> Tensor:
    return images.flip(-1)


def _flip(images: Tensor) -> Tensor:
    return images.flip(-2)


def _transpose(images: Tensor) -> Tensor:
    _demand_square(images)
    return laid_out_like(images, images.transpose(-1, -2))


def _turn(images: Tensor, quarters: int) -> Tensor:
    if quarters % 2:
        _demand_square(images)
    return laid_out_like(images, torch.rot90(images, quarters, dims=(-2, -1)))


def _demand_square(images: Tensor) -> None:
    height, width = images.shape[-2:]
    if height != width:
        raise UserError(
            f"a view turns images of {height} by {width} pixels on their side, which changes "
            "their shape: use it on square images only"
        )


def _shift(images: Tensor, dx: int, dy: int, fill: Fill) -> Tensor:
    height, width = images.shape[-2:]
    if fill == "zeros":  # padding on one side and cutting off the other
        right, down = max(-width, min(dx, width)), max(-height, min(dy, height))
        return laid_out_like(images, functional.pad(images, (right, -right, down, -down)))
    for axis, side, pixels in ((-2, height, dy), (-1, width, dx)):
        source = (torch.arange(side, device=images.device) - pixels).clamp(0, side - 1)
        images = laid_out_like(images, images.index_select(axis, source))
    return images


def _resample(images: Tensor, turn: float, zoom: float) -> Tensor:
    cos, sin = math.cos(turn) / zoom, math.sin(turn) / zoom
    # rows count downwards, so this asks for the pixel that a turn against the clock brings here
    return resample(images, (cos, -sin, 0.0), (sin, cos, 0.0), "edge")


original = View("original", same, inverse=same)
mirrored = View("mirrored", _mirror, inverse=_mirror)
flipped = View("flipped", _flip, inverse=_flip)
transposed = View("transposed", _transpose, inverse=_transpose)
