"""What moves in a clip, and how: optical flow told in numbers, and the place where most happens.

Differences of frames show where something moves, and flow how fast and whereto. What tells a
struggle from a walk is motion that changes: limbs that speed up, stop and turn, neighbouring parts
that move against each other. So beside speed there are its change over time and its spread within
small cells, each as high quantiles over cells and frames: a quarrel fills few of either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from kagglekit import UserError
from kagglekit.video import Clip, spread

FLOW, LOOKS = "2", "1"  # raise them when numbers, or pictures, change

SIDES = (4, 8, 16)  # of a cell, in points of the flow; there is one every second pixel
MOMENTS = 8  # at which frames and differences are looked at
SIDE = 128  # pixels of a picture for the backbone
# sides of the windows about what moves most, in heights of the picture; 0 = all of it
WINDOWS = {"whole": 0.0, "wide": 0.85, "close": 0.6}

_QUANTILES = (75, 90, 95, 98, 99, 99.7)
_UNIT = 1 / 15  # of time: speeds are in points a fifteenth of a second, whatever the rate
_FLOOR = 0.05  # below such a speed there is only noise
_FAINT = 12  # levels that a pixel changes by without anything moving


def describe(clip: Clip) -> dict[str, np.ndarray]:
    """All numbers about a clip's motion.

    | name | shape | what |
    |---|---|---|
    | flow | (features,) | quantiles over cells and frames: no order, alike in the mirror |
    | course | (MOMENTS, features) | quantiles over cells, part by part of the clip |
    """
    field = flow(clip)
    if len(field) < 3:  # too short for a change of speed: as if its frames stood still
        field = np.concatenate([field, np.zeros((3 - len(field), *field.shape[1:]), np.float32)])
    parts = [_measures(field, side) for side in SIDES]
    told = [number for part in parts for number in _told(part)]
    course = np.concatenate([_course(part) for part in parts], axis=1)
    return {"flow": np.array(told, np.float32), "course": course.astype(np.float32)}


def flow(clip: Clip) -> np.ndarray:
    """(frames - 1, height / 2, width / 2, 2) points a fifteenth of a second, the camera's removed.

    DIS optical flow (Kroeger et al., arXiv:1603.03590) down to half the resolution: at a quarter,
    as the fast presets stop, arms are lost, and with them a twentieth of all answers.
    """
    cv2.setNumThreads(1)  # else it cuts frames by the number of cores, and answers otherwise
    library: Any = cv2  # whose stubs do not know of this one
    method = library.DISOpticalFlow_create(library.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setPatchStride(4)
    method.setGradientDescentIterations(12)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in _at_least_16(clip.frames)]
    found = [method.calc(one, other, None)[::2, ::2] for one, other in pairwise(grey)]
    if not found:
        return np.zeros((0, grey[0].shape[0] // 2, grey[0].shape[1] // 2, 2), np.float32)
    field = np.stack(found).astype(np.float32) / 2
    field *= (_UNIT / np.diff(clip.times)).astype(np.float32)[:, None, None, None]
    return field - np.median(field, axis=(1, 2), keepdims=True)


def look(clip: Clip, names: Sequence[str]) -> np.ndarray:
    """Pictures for a backbone, uint8 (names · MOMENTS, SIDE, SIDE, 3), every second one mirrored.

    | name | what |
    |---|---|
    | whole, wide, close | frames: squeezed to a square, or a window about what moves most |
    | close-0.2 | how much that window changes over so many seconds |

    Raises UserError for another name.
    """
    cut: dict[str, Clip] = {}
    pictures = []
    for name in names:
        window, _, step = name.partition("-")
        if window not in WINDOWS or (step and not re.fullmatch(r"\d+(\.\d+)?", step)):
            raise UserError(
                f"there is no look {name!r}: give {', '.join(WINDOWS)}, alone or as in close-0.2"
            )
        if window not in cut:
            cut[window] = Clip(_cut(clip.frames, WINDOWS[window]), clip.times)
        pictures.append(_shown(cut[window], float(step or 0)))
    return np.concatenate(pictures)


# --- flow ---------------------------------------------------------------------------------------


def _measures(field: np.ndarray, side: int) -> dict[str, np.ndarray]:
    """Of cells of `side` points: (frames, rows, columns) each."""
    side = min(side, *field.shape[1:3])
    across, down = (_cells(field[..., axis], side) for axis in (0, 1))
    squared = _cells(np.square(field).sum(-1), side)
    together = np.hypot(across, down)
    change = np.zeros_like(together)
    change[1:] = np.hypot(np.diff(across, axis=0), np.diff(down, axis=0))
    speed = _cells(np.sqrt(np.square(field).sum(-1)), side)
    return {
        "together": together,  # speed of the cell as a whole
        "speed": speed,
        "apart": np.sqrt(np.maximum(squared - together**2, 0)),  # parts against each other
        "change": change,  # of the cell's velocity from frame to frame
        "hurry": np.abs(np.diff(speed, axis=0, prepend=speed[:1])),
        "across": across,
        "down": down,
    }


def _cells(values: np.ndarray, side: int) -> np.ndarray:
    """Means over squares of (frames, h, w)."""
    frames, height, width = values.shape
    rows, columns = height // side, width // side
    cut = values[:, : rows * side, : columns * side]
    return cut.reshape(frames, rows, side, columns, side).mean(axis=(2, 4))


def _told(parts: dict[str, np.ndarray]) -> list[float]:
    """One size of cell in numbers."""
    numbers: list[float] = []
    for name in ("together", "speed", "apart", "change", "hurry"):
        values = parts[name][1:] if name in ("change", "hurry") else parts[name]
        numbers += _logs(np.percentile(values, _QUANTILES))
        peaks = np.percentile(values.reshape(len(values), -1), 97, axis=1)
        numbers += _logs([peaks.mean(), np.percentile(peaks, 25), peaks.max()])
    speed = parts["speed"]
    moving = speed > np.percentile(speed, 95)
    if moving.any():
        numbers.append(_ratio(parts["apart"][moving].mean(), parts["together"][moving].mean()))
    else:
        numbers.append(0.0)
    later = moving[1:]
    change = parts["change"][1:][later].mean() if later.any() else 0.0
    numbers.append(_ratio(change, speed[1:][later].mean() if later.any() else 0.0))
    # whether what moves gets anywhere, and over how much of the picture it is spread
    energy = speed.mean(axis=0)
    busiest = energy >= np.percentile(energy, 95)
    gone = np.hypot(parts["across"].mean(axis=0), parts["down"].mean(axis=0))
    numbers.append(_ratio(gone[busiest].mean(), energy[busiest].mean()))
    spread = energy.sum() ** 2 / max(float(np.square(energy).sum()), 1e-12) / energy.size
    return [*numbers, float(spread)]


def _course(parts: dict[str, np.ndarray]) -> np.ndarray:
    """(MOMENTS, features): the quantiles of each part of the clip, one after the other."""
    frames = len(parts["speed"])
    edges = np.linspace(0, frames, MOMENTS + 1)
    rows = []
    for start, end in pairwise(edges):
        part = slice(min(int(start), frames - 1), max(int(np.ceil(end)), int(start) + 1))
        row: list[float] = []
        for name in ("together", "apart", "change"):
            row += _logs(np.percentile(parts[name][part], _QUANTILES[1:]))
        rows.append(row)
    return np.array(rows)


def _logs(values: np.ndarray | list[float]) -> list[float]:
    return [float(value) for value in np.log(np.asarray(values) + _FLOOR)]


def _ratio(one: float, other: float) -> float:
    return float(np.log((one + _FLOOR) / (other + _FLOOR)))


def _at_least_16(frames: np.ndarray) -> np.ndarray:
    """Tiny frames enlarged, as the flow's patches need room."""
    height, width = frames.shape[1:3]
    if min(height, width) >= 32:
        return frames
    size = (max(width, 32), max(height, 32))
    return np.stack([cv2.resize(frame, size) for frame in frames])


# --- pictures -----------------------------------------------------------------------------------


def _shown(clip: Clip, step: float) -> np.ndarray:
    """Frames, or with a step how much they change over it, at MOMENTS evenly spread moments."""
    seen = _changes(clip, step) if step else clip.at(spread(clip.duration, MOMENTS))
    return _half_mirrored(_square(seen))


def _cut(frames: np.ndarray, share: float) -> np.ndarray:
    """The window of that side, or all of the frames for a share of 0."""
    if not share:
        return frames
    top, left, side = _window(frames, share)
    return frames[:, top : top + side, left : left + side]


def _window(frames: np.ndarray, share: float) -> tuple[int, int, int]:
    """(top, left, side) of the square in which most changes from frame to frame."""
    height, width = frames.shape[1:3]
    side = max(2, min(round(share * height), width, height))
    energy = np.zeros((height, width), np.float32)
    for one, other in pairwise(frames):
        changed = cv2.absdiff(one, other).max(axis=-1).astype(np.float32)
        energy += np.maximum(changed - _FAINT, 0)
    sums = cv2.integral(cv2.GaussianBlur(energy, (0, 0), max(height / 20, 0.5)))
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    if not energy.any():
        top, left = (height - side) // 2, (width - side) // 2
    return int(top), int(left), side


def _changes(clip: Clip, step: float) -> np.ndarray:
    """Absolute differences of frames `step` seconds apart, at MOMENTS evenly spread moments."""
    step = min(step, clip.duration / 2)
    # at least one frame on, so that a slow clip shows a difference at all
    step = max(step, 1.01 / clip.rate)
    starts = spread(max(clip.duration - step, 0), MOMENTS)
    one, other = clip.at(starts), clip.at(starts + step)
    return np.maximum(one, other) - np.minimum(one, other)


def _square(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(f, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for f in frames])


def _half_mirrored(pictures: np.ndarray) -> np.ndarray:
    pictures[1::2] = pictures[1::2, :, ::-1].copy()
    return pictures
