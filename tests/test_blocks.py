"""Blocks are as long as time carries on, and draw every unit alike."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from kagglekit import blocks
from kagglekit.blocks import Blocks

RNG = np.random.default_rng


def carried_on(share: float, count: int, seed: int) -> np.ndarray:
    return signal.lfilter([1], [1, -share], RNG(seed).standard_normal(count + 200))[200:]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_blocks_are_as_long_as_theory_says(share: float) -> None:
    found = [blocks.length(carried_on(share, 2000, seed)) for seed in range(20)]
    assert np.median(found) == pytest.approx(
        (3000 * (2 * share / (1 - share**2)) ** 2) ** (1 / 3), rel=0.25
    )


def test_noise_needs_hardly_any_blocks_and_what_does_not_vary_none() -> None:
    assert np.median([blocks.length(RNG(seed).standard_normal(500)) for seed in range(20)]) <= 2
    assert blocks.length(np.ones(100)) == 1
    assert [blocks.length(np.arange(count, dtype=float)) for count in (1, 2, 5)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("units", "length", "size"), [(7, 3, 7), (7, 7, 20), (10, 4, 3), (1, 1, 5)]
)
def test_every_unit_is_drawn_alike_and_in_runs(units: int, length: int, size: int) -> None:
    drawn = Blocks(units, length)
    counts = drawn.counts(RNG(0), 4000, size)
    assert (counts.sum(axis=1) == size).all()
    assert counts.mean(axis=0) == pytest.approx(np.full(units, size / units), rel=0.12)
    positions = drawn.positions(RNG(0), size)
    assert len(positions) == size
    for begun in range(0, size, length):
        block = positions[begun : begun + length]
        assert (block == (block[0] + np.arange(len(block))) % units).all()


@pytest.mark.parametrize(("units", "length"), [(10, 3), (7, 7), (5, 9), (12, 1)])
def test_pieces_part_the_units_without_a_stump(units: int, length: int) -> None:
    pieces = Blocks(units, length).pieces
    sizes = np.bincount(pieces)
    assert (np.diff(pieces) >= 0).all()
    assert sizes.min() >= min(length, units)
    assert sizes.max() < 2 * length or len(sizes) == 1


def test_the_longest_block_that_two_runs_ask_for_is_taken() -> None:
    common, own = carried_on(0.95, 900, 1), RNG(2).standard_normal(900)
    times = np.arange(900)
    alike = blocks.of([common, common + own], times)  # what they share does not count
    assert alike.length <= 4
    assert blocks.of([common], times).length > 20
    assert blocks.of([own, common], times).length > 20
    twice = blocks.of([np.repeat(common, 2)], np.repeat(times, 2))
    assert twice == blocks.of([common], times)
