"""What `kagglekit leaks` finds and accuses: `python -m benchmarks.leaks DATA [--weights FILE]`.

DATA holds the folders `mics_mnist` and `glasses`, as they are downloaded. Prints the share of
planted copies that is found, the share of unaltered digits that is flagged, how well the groups
suggested for faces are the persons, how often data without any leak are accused, and times.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from kagglekit import alignment, backbones, duplicates, pictures, shortcuts
from kagglekit import files as kagglekit_files
from kagglekit.data import Data
from kagglekit.shortcuts import Known
from tests import planted

ROWS = 10_000  # digits
EACH = 500  # planted copies of a kind; of the faces as many as there are
DRAWS = 100  # clean problems


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    ways = [None]
    if options.weights:
        os.environ["KAGGLEKIT_WEIGHTS"] = str(options.weights.resolve())
        ways.append(backbones.BackboneConfig())
    with tempfile.TemporaryDirectory() as cache:
        os.environ["KAGGLEKIT_CACHE"] = cache
        digits, faces = (read(options.data / name) for name in ("mics_mnist", "glasses"))
        assert digits.train_inputs is not None
        assert faces.train_inputs is not None
        copies("digits", digits.train_inputs[: options.rows])
        copies("faces", faces.train_inputs)
        for weights in ways:
            unaltered(part(digits, options.rows), weights)
            persons(faces, weights)
    alarms()


def read(folder: Path) -> Data:
    return pictures.classification(
        kagglekit_files.unpacked(folder, Path(os.environ["KAGGLEKIT_CACHE"]))
    )


def part(data: Data, rows: int) -> Data:
    """The first rows of train; half of them stand for the test rows."""
    assert data.train_inputs is not None
    half = rows // 2
    return Data(
        data.train[:half], data.train[half:rows], data.target[:half], data.sample, data.classes,
        data.train_inputs[:half], data.train_inputs[half:rows],
    )  # fmt: skip


def copies(name: str, originals: np.ndarray) -> None:
    each = min(EACH, len(originals) // 3)
    made, sources, kinds = planted.copies(originals, each, seed=1)
    pairs = alignment.copies(alignment.luminance(np.concatenate([originals, made])))
    hit = planted.found(pairs.left, pairs.right, len(originals), sources)
    shares = {kind: hit[kinds == n].mean() for n, kind in enumerate(planted.KINDS)}
    told = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
    print(f"{name}: of {len(made)} planted copies {hit.mean():.1%} found ({told})", flush=True)


def unaltered(data: Data, weights: backbones.BackboneConfig | None) -> None:
    began = time.monotonic()
    seen = duplicates.looks(data, weights)
    looked = time.monotonic() - began
    found = duplicates.find(seen)
    seconds = time.monotonic() - began
    flagged = (np.bincount(found.groups) > 1)[found.groups].mean()
    print(
        f"digits by {seen.basis}: {flagged:.3%} of {found.rows} unaltered rows are in a group; "
        f"{seconds:.0f} s, {looked:.0f} of them for features",
        flush=True,
    )


def persons(data: Data, weights: backbones.BackboneConfig | None) -> None:
    seen = duplicates.looks(data, weights)
    groups = duplicates.find(seen).groups[: len(data.train)]
    person = data.train["subject"].to_numpy()
    one, other = np.triu_indices(len(person), 1)
    same, joined = person[one] == person[other], groups[one] == groups[other]
    print(
        f"faces by {seen.basis}: groups join {joined[same].mean():.1%} of the pairs of one person; "
        f"{same[joined].mean():.2%} of the pairs that they join are of one person",
        flush=True,
    )


def alarms() -> None:
    """Problems of 300 rows of noise, of each kind: how many are accused."""
    accused = dict.fromkeys(("order", "name", "size", "numbers", "origin"), 0)
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        target, rows = rng.integers(0, 2, 300), np.arange(300)
        names = [f"{number:08x}.png" for number in rng.integers(0, 2**32, 300)]
        looks = {
            "order": Known(shortcuts.of_order(rows), target, 2),
            "name": Known(shortcuts.of_names(names), target, 2),
            "size": Known(rng.integers(2000, 9000, (300, 1)).astype(float), target, 2),
            "numbers": Known(rng.normal(size=(300, 3)), rng.normal(size=(300, 2)), 0),
        }
        scores = {kind: shortcuts.predicts(known, draw) for kind, known in looks.items()}
        noise = rng.normal(size=(450, 8))
        scores["origin"] = shortcuts.told_apart(noise[:300], noise[300:], seed=draw)
        for kind, score in scores.items():
            accused[kind] += score is not None and score.tells
    told = ", ".join(f"{kind} {count}" for kind, count in accused.items())
    print(f"of {DRAWS} clean problems each, accused: {told}")


if __name__ == "__main__":
    main()
