"""Scores of several runs on one line: where each stands between the least and the greatest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 18  # columns of a strip of text
_WIDE = 30  # greatest over least, beyond which the line is logarithmic


@dataclass(frozen=True)
class Scale:
    """A line from `low` to `high`; in powers where all is positive and ranges widely."""

    low: float
    high: float

    @classmethod
    def over(cls, scores: Iterable[float]) -> Scale:
        """The scale on which all finite `scores` have their place."""
        known = [score for score in scores if math.isfinite(score)]
        return cls(min(known, default=0.0), max(known, default=0.0))

    def place(self, score: float) -> float:
        """From 0 for the least to 1 for the greatest; the middle where all are the same."""
        if self.low > 0 and self.high > _WIDE * self.low:
            low, high = math.log(self.low), math.log(self.high)
            score = math.log(min(max(score, self.low), self.high))
        else:
            low, high = self.low, self.high
        width = high - low
        if not (width > 0 and math.isfinite(width)):
            return 0.5
        return min(1.0, max(0.0, (score - low) / width))


def text(folds: Sequence[float], whole: float | None, scale: Scale, width: int = WIDTH) -> str:
    """A strip plot in one line: `●` a fold or several, `┃` the score of all rows, `◆` both."""
    line = ["─"] * width
    for score in folds:
        line[round(scale.place(score) * (width - 1))] = "●"
    if whole is not None:
        at = round(scale.place(whole) * (width - 1))
        line[at] = "◆" if line[at] == "●" else "┃"
    return "".join(line)
