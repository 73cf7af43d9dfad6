"""Blocks of rows that follow in time: how long they have to be, and draws of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """Units in the order of time, resampled in blocks of `length` neighbours (Künsch 1989,
    doi:10.1214/aos/1176347265), the last followed by the first (the circular block bootstrap of
    Politis and Romano 1992; see 1994, doi:10.1080/01621459.1994.10476870).
    """

    units: int
    length: int
    times: int = 1  # that a unit is made of, where there are very many

    @property
    def span(self) -> int:
        """Times in a block."""
        return self.length * self.times

    @property
    def pieces(self) -> np.ndarray:
        """(units,) number of the piece that each unit is in, where they are parted without rest.

        Pieces have `length` units or a few more, so that none is a stump.
        """
        count = max(self.units // self.length, 1)
        return np.arange(self.units) * count // self.units

    def positions(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """(size,) positions of units, block after block, the last cut off."""
        starts = rng.integers(0, self.units, math.ceil(size / self.length))
        return ((starts[:, None] + np.arange(self.length)) % self.units).reshape(-1)[:size]

    def counts(self, rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
        """(draws, units) how often each unit is in `size` units drawn so."""
        blocks = math.ceil(size / self.length)
        starts = rng.integers(0, self.units, (draws, blocks))
        lengths = np.full(blocks, self.length)
        lengths[-1] = size - (blocks - 1) * self.length
        width = 2 * self.units + 1  # a block may end behind the last unit, which is the first again
        offsets = np.arange(draws)[:, None] * width
        begun = np.bincount((starts + offsets).ravel(), minlength=draws * width)
        ended = np.bincount((starts + lengths + offsets).ravel(), minlength=draws * width)
        running = (begun - ended).reshape(draws, width).cumsum(axis=1)
        counts: np.ndarray = running[:, : self.units] + running[:, self.units : -1]
        return counts.astype(np.float64)


def of(losses: Sequence[np.ndarray], units: np.ndarray, times: int = 1) -> Blocks:
    """Blocks for the differences between runs, of which each has a loss (rows,) in every row.

    `units` (rows,) are numbers from 0 in the order of time. The longest block that any two runs ask
    for is taken; one run alone is asked by itself.
    """
    rows = np.bincount(units)
    means = [np.bincount(units, loss) / rows for loss in losses]
    series = [one - other for one, other in combinations(means, 2)] or means
    return Blocks(len(rows), max(length(values) for values in series), times)


def length(series: np.ndarray) -> int:
    """The block length that makes the variance of a mean over time most exact, 1 for noise.

    Of Politis and White 2004 (doi:10.1081/ETR-120028836), corrected by Patton, Politis and White
    2009 (doi:10.1080/07474930802459016), for the circular bootstrap.
    """
    count = len(series)
    centred = series - series.mean()
    most = min(math.ceil(3 * math.sqrt(count)), count // 3)
    if most < 2 or not centred.any():
        return 1
    lags = min(math.ceil(math.sqrt(count)) + _still(count), count - 1)
    spectrum = abs(np.fft.rfft(centred, 2 * count)) ** 2
    covariances = np.fft.irfft(spectrum)[: lags + 1] / count
    reach = min(2 * max(_memory(covariances / covariances[0], count), 1), lags)
    lag = np.arange(-reach, reach + 1)
    flat = np.clip(2 * (1 - abs(lag) / reach), 0, 1)  # weights of the lags (Politis, Romano 1995)
    weighted = flat * covariances[abs(lag)]
    slope, level = float((abs(lag) * weighted).sum()), float(weighted.sum())
    if level <= 0:
        return 1
    best = (1.5 * (slope / level) ** 2 * count) ** (1 / 3)
    return int(np.clip(math.ceil(best), 1, most))


def _still(count: int) -> int:
    """So many small correlations in a row say that there are no more."""
    return max(5, math.ceil(math.sqrt(math.log10(count))))


def _memory(correlations: np.ndarray, count: int) -> int:
    """The lag after which correlations are none: smaller than chance makes them, all in a row."""
    large = abs(correlations[1:]) > 2 * math.sqrt(math.log10(count) / count)
    quiet = _still(count)
    for lag in range(len(large) - quiet + 1):
        if not large[lag : lag + quiet].any():
            return lag
    return int(np.flatnonzero(large)[-1]) + 1
