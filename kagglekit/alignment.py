"""Finds pictures that are copies of others: recompressed, brightened, cropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from . import devices, neighbours
from .neighbours import Pairs

SAME = 0.12  # largest distance of copies: a correlation of 0.993 after alignment
CHANCE = 0.01  # largest number of pictures that chance may bring so near

_SIDE = 32  # pixels that pictures are compared at
_COARSE = 16  # pixels that candidates are looked for at
_COMPONENTS = 48
_CANDIDATES = 8  # of each picture, to be aligned
_STEPS = (2, 4)  # of all candidates, and of those that come near by them
_SURELY = 0.08  # a correlation of 0.997
_LONELY = 0.45  # share of the distance to the next but one candidate
_HOPELESS = 0.5  # a distance from which no more steps lead to a copy
_BATCH = 4096
_FLAT = 1.0  # grey levels of standard deviation; a picture with less shows nothing
_SCALES = (0.95, 0.89, 0.82)  # share of a side that a crop may have left
_LARGEST_STEP = 0.1


def luminance(pictures: np.ndarray) -> Tensor:
    """uint8 (n, channels, h, w) as floats (n, 1, side, side) at most, a little blurred.

    What recompression changes is mostly fine detail, which is gone then.
    """
    parts = []
    for first in range(0, len(pictures), _BATCH):
        grey = torch.from_numpy(pictures[first : first + _BATCH]).float().mean(1, keepdim=True)
        if max(grey.shape[2:]) > _SIDE:
            grey = functional.interpolate(
                grey, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False
            )
        parts.append(_blurred(grey))
    return torch.cat(parts)


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """uint8 (n, channels, h, w) as 16 × 16 normalised grey pixels, float32 (n, 256)."""
    return _seen(_soft(luminance(pictures)), _windows()[0]).numpy()


def shows(grey: Tensor) -> np.ndarray:
    """Which of `luminance` pictures show anything, (n,) bool."""
    return (grey.flatten(1).std(1) >= _FLAT).numpy()


def copies(grey: Tensor, owners: np.ndarray | None = None) -> Pairs:
    """Pairs of `luminance` pictures that are one picture, but for compression, tone and crop.

    Pictures that share a number in `owners`, (n,), as the frames of a clip do, are not compared.

    Candidates are the nearest pictures to small versions of each and of its crops. Each is aligned
    (scale and shift along both axes) and its tone curve fitted; the distance is what then remains,
    as the chord between normalised pictures. A pair counts where that is small, and far smaller
    than the density of pictures around both lets expect (`neighbours.Crowd`), or than what is left
    between either and the next but one of its own candidates; so that classes of pictures that look
    alike are not taken for copies.
    """
    kept = torch.nonzero(torch.from_numpy(shows(grey)))[:, 0]
    nothing = neighbours.close_pairs(grey[:0].flatten(1), 0.0)
    if len(kept) < neighbours.FEWEST:
        return nothing
    device = devices.device()
    shown = grey[kept].to(device)
    own = torch.arange(len(grey)) if owners is None else torch.from_numpy(owners)
    searched = _candidates(shown, own[kept].to(device))
    distance = _aligned(shown, searched).cpu().numpy()
    left, right = searched.left.cpu().numpy(), searched.right.cpu().numpy()
    around = neighbours.crowd(_neighbourhood(shown, searched.near))
    expected = np.maximum(around.expected(left, distance), around.expected(right, distance))
    lonely = distance < _LONELY * np.minimum(*_next_but_one(left, right, distance, len(shown)))
    chosen = (distance < SAME) & (expected < CHANCE) | (distance < _SURELY) & lonely
    rows = kept.numpy()
    return neighbours.pairs(
        rows[left[chosen]], rows[right[chosen]], distance[chosen], expected[chosen]
    )


def _next_but_one(
    left: np.ndarray, right: np.ndarray, distance: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """The third smallest distance of the candidates of each pair's left, and of its right."""
    order = np.lexsort((distance, left))
    rank = np.arange(len(order)) - np.searchsorted(left[order], left[order])
    third = np.full(rows, 2.0)
    third[left[order[rank == 2]]] = distance[order[rank == 2]]
    return third[left], third[right]


@dataclass(frozen=True)
class _Search:
    """Candidate pairs, where a crop of `left` may be `right`, and each picture's neighbours."""

    left: Tensor  # (pairs,)
    right: Tensor
    window: Tensor  # (pairs, 4): the part of `left`, see `_windows`
    near: Tensor  # (rows, ranks) positions


def _windows() -> list[tuple[float, float, float]]:
    """(share of the side, shift down, shift right) of the whole and of its crops.

    Shifts are in halves of a side, so that ±(1 - share) is where the crop touches the edge.
    """
    found = [(1.0, 0.0, 0.0), (_SCALES[0], 0.0, 0.0)]
    for scale in _SCALES[1:]:
        reach = 0.8 * (1 - scale)
        found += [(scale, y, x) for y in (-reach, 0.0, reach) for x in (-reach, 0.0, reach)]
    return found


def _candidates(grey: Tensor, owners: Tensor) -> _Search:
    windows = _windows()
    blurred = _soft(grey)
    whole = _seen(blurred, windows[0])
    axes = torch.linalg.svd(whole[:: max(1, len(whole) // 4000)], full_matrices=False)[2]
    axes = axes[:_COMPONENTS].T
    points = functional.normalize(whole @ axes, dim=1)
    ranks = neighbours.ranks(len(grey))
    cells = neighbours.index(points)
    near = cells.search(points, ranks, owners)[1]
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    rows = torch.arange(len(grey), device=grey.device)
    for rank in range(min(3, ranks)):
        away = (points - points[near[:, rank]]).square().sum(1)
        found.append((rows, near[:, rank], torch.zeros_like(rows), away))
    for number, window in list(enumerate(windows))[1:]:
        asked = functional.normalize(_seen(blurred, window) @ axes, dim=1)
        away, others = cells.search(asked, 1, owners)
        found.append((rows, others[:, 0], torch.full_like(rows, number), away[:, 0]))
    left, right, view, away = (torch.cat(parts) for parts in zip(*found, strict=True))
    best = _best_of_each_pair(left, right, away)
    left, right, view = left[best], right[best], view[best]
    places = torch.tensor(windows, device=grey.device)[view]
    return _Search(left, right, places[:, [0, 0, 1, 2]], near)


def _best_of_each_pair(left: Tensor, right: Tensor, away: Tensor) -> Tensor:
    """Positions of the nearest view of each pair, for the best few of each left."""
    a, b, distance = left.cpu().numpy(), right.cpu().numpy(), away.cpu().numpy()
    order = np.lexsort((distance, b, a))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(a[order]) != 0) | (np.diff(b[order]) != 0)
    order = order[first]
    order = order[np.lexsort((distance[order], a[order]))]
    rank = np.arange(len(order)) - np.searchsorted(a[order], a[order])
    return torch.from_numpy(order[rank < _CANDIDATES]).to(left.device)


def _neighbourhood(grey: Tensor, near: Tensor) -> np.ndarray:
    """Sorted distances of each picture to its neighbours as they are, (rows, ranks)."""
    flat = _normalised(grey.flatten(1))
    found = neighbours.distances(flat, torch.arange(len(flat)), near)
    return found.sort(1).values.cpu().numpy()


# --- alignment ----------------------------------------------------------------------------------


def _aligned(grey: Tensor, searched: _Search) -> Tensor:
    """The distance of each pair after alignment, (pairs,); 2 where it is not worth the steps."""
    window = searched.window.clone()
    away = torch.full((len(window),), 2.0, device=window.device)
    kept = torch.arange(len(window), device=window.device)
    for steps in _STEPS:
        for part in kept.split(_BATCH):
            pair = grey[searched.left[part]], grey[searched.right[part]]
            away[part], window[part] = _align(*pair, window[part], steps)
        kept = kept[away[kept] < _HOPELESS]
    distance = torch.full_like(away, 2.0)
    for part in kept.split(_BATCH):
        whole, crop = grey[searched.left[part]], grey[searched.right[part]].flatten(1)
        seen = _sampled(whole, window[part])[0]
        distance[part] = _tone_free(seen.flatten(1), crop)
    return distance


def _align(whole: Tensor, crop: Tensor, window: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Distance (n,) of `crop` to a part of `whole` near `window` that is most like it, and that.

    Gauss-Newton steps on the window's scales and shifts, with brightness and contrast solved along
    (Baker and Matthews 2004, "Lucas-Kanade 20 years on", for many pairs at once).
    """
    target = crop.flatten(1)
    layers, wanted = _layers(whole), _normalised(target)
    best = torch.full((len(whole),), torch.inf, device=whole.device)
    found = window
    for step in range(steps + 1):
        seen, places = _sampled(layers, window)
        away = (_normalised(seen[:, 0].flatten(1)) - wanted).norm(dim=1)
        found = torch.where((away < best)[:, None], window, found)
        best = torch.minimum(best, away)
        if step < steps:
            window = _stepped(window, _jacobian(seen, places), target)
    return best, found


def _layers(whole: Tensor) -> Tensor:
    """Pictures and their slopes, (n, 3, h, w)."""
    return torch.cat([whole, *_slopes(whole)], 1)


def _sampled(layers: Tensor, window: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The layers of a part, (n, layers, h, w), and the coordinates of its rows and columns."""
    height, width = layers.shape[2:]
    down, right = (_places(length, layers.device) for length in (height, width))
    y = window[:, 0, None] * down + window[:, 2, None]
    x = window[:, 1, None] * right + window[:, 3, None]
    shape = (len(window), height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    seen = functional.grid_sample(layers, grid, padding_mode="border", align_corners=False)
    return seen, (down, right)


def _jacobian(seen: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """How window and tone change each pixel, (n, 6, pixels)."""
    down, right = places
    pixels, by_y, by_x = seen.unbind(1)
    parts = [by_y * down[:, None], by_x * right, by_y, by_x, pixels, torch.ones_like(pixels)]
    return torch.stack([part.flatten(1) for part in parts], 1)


def _stepped(window: Tensor, jacobian: Tensor, target: Tensor) -> Tensor:
    """The next window; contrast and brightness are unknowns of the same least squares."""
    normal = jacobian @ jacobian.transpose(1, 2)
    damping = 1e-3 * normal.diagonal(dim1=1, dim2=2) + 1e-6
    solved = torch.linalg.solve(normal + torch.diag_embed(damping), jacobian @ target[..., None])
    contrast = solved[:, 4]
    contrast = torch.where(contrast.abs() < 0.2, 0.2, contrast)
    step = (solved[:, :4, 0] / contrast).clamp(-_LARGEST_STEP, _LARGEST_STEP)
    scales = (window[:, :2] + step[:, :2]).clamp(0.6, 1.1)
    room = (1 - scales).abs() + 0.05
    shifts = torch.maximum(torch.minimum(window[:, 2:] + step[:, 2:], room), -room)
    return torch.cat([scales, shifts], 1)


def _tone_free(pixels: Tensor, target: Tensor) -> Tensor:
    """Chord between normalised pictures (n, p), after the best tone curve for `pixels`.

    The curve is quadratic, as gamma bends it, or straight and cut off where `target` is brightest,
    as brightening clips it.
    """
    line = _normalised(pixels)
    bend = line * line
    for _ in range(2):  # once leaves what rounding leaves
        bend = _normalised(bend - (bend * line).sum(1, keepdim=True) * line)
    wanted = _normalised(target)
    along, beside = (line * wanted).sum(1), (bend * wanted).sum(1)
    cosine = (along * along + beside * beside).clamp(0, 1).sqrt()
    away = torch.minimum((2 - 2 * cosine).sqrt(), (_clipped(line, target) - wanted).norm(dim=1))
    return torch.where(along > 0, away, 2.0)  # a negative is another picture


def _clipped(line: Tensor, target: Tensor) -> Tensor:
    """`line` brightened as `target` is where that is not at its brightest, then cut off there."""
    top = target.amax(1, keepdim=True)
    open_to_fit = (target < top - 2).to(line.dtype)
    count = open_to_fit.sum(1, keepdim=True).clamp_min(1)
    middle, level = ((part * open_to_fit).sum(1, keepdim=True) / count for part in (line, target))
    moved = (line - middle) * open_to_fit
    slope = (moved * (target - level)).sum(1, keepdim=True)
    slope = slope / moved.square().sum(1, keepdim=True).clamp_min(1e-9)
    return _normalised(torch.minimum((line - middle) * slope + level, top))


def _seen(grey: Tensor, window: tuple[float, float, float]) -> Tensor:
    """A part of each picture at few pixels, normalised, (n, pixels)."""
    scale, down, right = window
    places = _places(_COARSE, grey.device)
    y, x = torch.meshgrid(scale * places + down, scale * places + right, indexing="ij")
    grid = torch.stack([x, y], -1)[None]
    return torch.cat([_normalised(part) for part in _sampled_parts(grey, grid)])


def _sampled_parts(grey: Tensor, grid: Tensor) -> Iterator[Tensor]:
    for first in range(0, len(grey), _BATCH):
        part = grey[first : first + _BATCH]
        whole_grid = grid.expand(len(part), -1, -1, -1)
        seen = functional.grid_sample(part, whole_grid, padding_mode="border", align_corners=False)
        yield seen.flatten(1)


def _places(count: int, device: torch.device) -> Tensor:
    """Centres of `count` pixels between -1 and 1."""
    return (torch.arange(count, device=device) * 2 + 1) / count - 1


def _slopes(grey: Tensor) -> tuple[Tensor, Tensor]:
    """How brightness changes down and to the right, for coordinates of -1…1."""
    height, width = grey.shape[2:]
    down, right = torch.zeros_like(grey), torch.zeros_like(grey)
    down[:, :, 1:-1] = (grey[:, :, 2:] - grey[:, :, :-2]) * (height / 4)
    right[..., 1:-1] = (grey[..., 2:] - grey[..., :-2]) * (width / 4)
    return down, right


def _soft(grey: Tensor) -> Tensor:
    """Blurred once more where that leaves something, as few pixels are to be sampled of it."""
    return _blurred(grey) if min(grey.shape[2:]) >= 24 else grey


def _blurred(grey: Tensor) -> Tensor:
    kernel = torch.tensor([0.25, 0.5, 0.25], device=grey.device)
    padded = functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, torch.outer(kernel, kernel)[None, None])


def _normalised(values: Tensor) -> Tensor:
    """Rows with mean zero and length one."""
    return functional.normalize(values - values.mean(1, keepdim=True), dim=1, eps=1e-6)
