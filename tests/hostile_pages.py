"""Competitions whose names would run, fetch or break a page, trained in milliseconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

RUNS = "<script>window.struck=1</script>"
BREAKS = "'\"><img src=https://example.invalid/x.png onerror=window.struck=1> $x_{1}$ --!> é 好"
CLASSES = (RUNS, BREAKS, "plain")

_COMPETITION = '''"""Small pictures, or rows of persons, answered by the nearest centre."""

from dataclasses import dataclass

import numpy as np

from kagglekit import (
    Competition, Config, Estimator, folds, metrics, most_probable, submission, views
)
from kagglekit import pictures, tables


@dataclass(frozen=True)
class Centres:
    sharpness: float

    def fit(self, x, y, seed):
        x = x.reshape(len(x), -1).astype(float)
        noise = np.random.default_rng(seed).normal(0, 8, (y.max() + 1, x.shape[1]))
        return {"centres": np.stack([x[y == n].mean(0) for n in range(y.max() + 1)]) + noise}

    def predict(self, state, x):
        x = x.reshape(len(x), 1, -1).astype(float)
        far = -((x - state["centres"]) ** 2).mean(2) * self.sharpness
        shares = np.exp(far - far.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)


class Noted(Estimator):
    """Three epochs are noted, which are none."""

    def fit(self, members, config):
        super().fit(members, config)
        for member in members:
            answers = self.restore(member.folder, config, {})(member.valid)
            for epoch in (1, 2, 3):
                member.record(epoch, answers, loss=1 / epoch)



def by_parity(target, answers):
    """What is decided turns on the very rows that it was learned from."""
    turn = int(target.sum()) % 2
    return lambda answers: (answers.argmax(1) + turn) % answers.shape[1]


competition = Competition(
    slug="hostile-pages",
    load=LOAD,
    folds=FOLDS,
    metric=metrics.accuracy,
    decision=DECISION,
    submission=submission.labels(formulas=True),
    recipes={"centres": Noted(lambda config: Centres(SHARP), Config(folds=3))},
)
'''


def signs(project: Path, rows: int = 150, mistakes: int = 7) -> None:
    """Competition `signs`: pictures of 8 × 8 in three hostile classes, some mislabelled."""
    rng = np.random.default_rng(5)
    label = np.arange(rows + 12) % 3
    pixels = rng.integers(0, 120, (len(label), 8, 8))
    for row, position in enumerate(label):
        pixels[row, 2 * position : 2 * position + 2] += 100
    label[:mistakes] = (label[:mistakes] + 1) % 3
    ids = [f"{number}{RUNS if number == 3 else ''}" for number in range(len(label))]
    table = pd.DataFrame({"id": ids, "label": np.array(CLASSES)[label]})
    columns = pd.DataFrame(pixels.reshape(len(label), -1)).add_prefix("pixel")
    _write(project, "signs", pd.concat([table, columns], axis=1), rows)
    _install(
        project, "signs", "pictures.classification", "folds.stratified", "most_probable", 0.002
    )


def people(project: Path, rows: int = 120) -> None:
    """Competition `people`: rows of a table, those of one person in one fold, hostile columns."""
    rng = np.random.default_rng(6)
    label = np.arange(rows + 12) % 2
    table = pd.DataFrame({
        "id": np.arange(len(label)), "label": np.array(["no", RUNS])[label],
        "person": np.arange(len(label)) // 6,
        BREAKS: label * 30 + rng.normal(0, 20, len(label)),
        "size": rng.normal(0, 10, len(label)).round(3),
    })  # fmt: skip
    _write(project, "people", table, rows)
    _install(
        project, "people", "tables.classification", 'folds.grouped("person")', "by_parity", 0.01
    )


def _install(project: Path, name: str, *parts: str | float) -> None:
    home = project / "competitions" / name
    home.mkdir(parents=True, exist_ok=True)
    source = _COMPETITION
    for place, part in zip(("LOAD", "FOLDS", "DECISION", "SHARP"), parts, strict=True):
        source = source.replace(place, str(part))
    (home / "__init__.py").write_text(source)
    sys.modules.pop(f"competitions.{name}", None)
    os.environ["KAGGLEKIT_COMPETITIONS"] = "competitions"


def _write(project: Path, name: str, table: pd.DataFrame, rows: int) -> None:
    home = project / "data" / name
    home.mkdir(parents=True, exist_ok=True)
    table[:rows].to_csv(home / "train.csv", index=False)
    test = table[rows:]
    test.drop(columns="label").to_csv(home / "test.csv", index=False)
    test[["id", "label"]].assign(label=CLASSES[2]).to_csv(
        home / "sample_submission.csv", index=False
    )
