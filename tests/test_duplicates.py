"""Copies among rows of pictures and tables, and the groups that they suggest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kagglekit import Config, duplicates, folds
from kagglekit.data import Data
from kagglekit.errors import UserError


def table(train: np.ndarray, test: np.ndarray) -> Data:
    names = [f"x{number}" for number in range(train.shape[1])]
    known = pd.DataFrame(train, columns=names).assign(id=[f"r{n}" for n in range(len(train))])
    asked = pd.DataFrame(test, columns=names).assign(id=[f"t{n}" for n in range(len(test))])
    sample = pd.DataFrame({"id": asked["id"], "y": "0"})
    return Data(known, asked, np.arange(len(train)) % 2, sample, ("no", "yes"))


def pictures(train: np.ndarray, test: np.ndarray) -> Data:
    data = table(np.zeros((len(train), 1)), np.zeros((len(test), 1)))
    return Data(
        data.train[["id"]], data.test[["id"]], data.target, data.sample, data.classes, train, test
    )


def test_rows_of_nothing_but_ids_are_refused_in_one_sentence():
    with pytest.raises(UserError, match="there is nothing to compare rows by"):
        duplicates.looks(table(np.zeros((40, 0)), np.zeros((20, 0))))


def test_equal_and_nearly_equal_rows_of_a_table_are_found_and_no_others():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(400, 4)) * [1, 10, 1e4, 1e-3], rng.normal(size=(200, 4))
    test *= [1, 10, 1e4, 1e-3]
    train[20] = train[10]
    train[30] = train[11] * (1 + 1e-5)
    test[5] = train[12]
    found = duplicates.find(duplicates.looks(table(train, test)))
    assert [*zip(found.exact.left, found.exact.right, strict=True)] == [(10, 20), (12, 405)]
    assert [*zip(found.near.left, found.near.right, strict=True)] == [(11, 30)]
    assert len(found.within_train(found.copies)) == 2
    assert len(found.across(found.copies)) == 1
    assert len(found.alike) == 0
    assert found.groups[10] == found.groups[20] != found.groups[11] == found.groups[30]


def test_rows_of_text_and_gaps_are_compared_too():
    data = table(np.zeros((60, 1)), np.zeros((30, 1)))
    rng = np.random.default_rng(1)
    for part in (data.train, data.test):
        part["colour"] = rng.choice(["red", "green"], len(part))
        part["size"] = rng.normal(size=len(part))
    data.train.loc[3, "size"] = np.nan
    assert duplicates.looks(data).names == ("colour", "size")  # x0 is constant and tells nothing
    assert len(duplicates.find(duplicates.looks(data)).exact) == 0


def test_pictures_of_one_source_are_grouped_by_pixels_and_the_groups_make_folds(tmp_path: Path):
    rng = np.random.default_rng(2)
    scenes = rng.normal(size=(30, 6, 6)).repeat(5, axis=1).repeat(5, axis=2)
    source = rng.permutation(np.repeat(np.arange(30), 5))
    noise = rng.normal(size=(150, 6, 6)).repeat(5, axis=1).repeat(5, axis=2)
    looks = np.clip(128 + 40 * (scenes[source] + 0.3 * noise), 0, 255).astype(np.uint8)[:, None]
    looks[149] = looks[0]
    data = pictures(looks[:120], looks[120:])
    found = duplicates.find(duplicates.looks(data))
    assert [*zip(found.exact.left, found.exact.right, strict=True)] == [(0, 149)]
    one, other = np.triu_indices(149, 1)
    joined, same = found.groups[one] == found.groups[other], source[one] == source[other]
    assert joined[same].mean() > 0.8
    assert same[joined].mean() > 0.99

    path = tmp_path / "groups.csv"
    path.write_bytes(duplicates.group_file(data, found.groups[:120]))
    for stratify in (False, True):
        drawn = folds.split(data, Config(), folds.grouped_by_file(path, stratify))
        assert len(drawn) == 5
        for train, valid in drawn:
            assert not set(found.groups[train]) & set(found.groups[valid])


def test_a_file_that_lacks_a_row_or_the_groups_is_refused(tmp_path: Path):
    data = table(np.zeros((20, 1)), np.zeros((5, 1)))
    path = tmp_path / "groups.csv"
    path.write_bytes(duplicates.group_file(data, np.arange(20) // 2))
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:-1]))
    with pytest.raises(UserError, match="id 'r19' is missing: give every training row a group"):
        folds.split(data, Config(), folds.grouped_by_file(path))
    path.write_text("id,fold\nr0,1\n")
    with pytest.raises(UserError, match="has no column 'group'"):
        folds.split(data, Config(), folds.grouped_by_file(path))


def test_one_chain_through_most_rows_suggests_no_groups():
    ramp = np.linspace(0, 6, 200)[:, None, None] + np.linspace(0, 3, 20)[None, None, :]
    looks = (128 + 100 * np.sin(ramp * np.ones((1, 20, 1)))).astype(np.uint8)[:, None]
    found = duplicates.find(duplicates.looks(pictures(looks[:150], looks[150:])))
    assert np.bincount(neighbours_groups(found)).max() <= 100


def neighbours_groups(found: duplicates.Duplicates) -> np.ndarray:
    from kagglekit import neighbours

    return neighbours.clusters(found.rows, found.alike)


def moving(rows: int, frames: int = 48) -> list[np.ndarray]:
    """Clips (frames, 1, 36, 36) of blobs that drift over a slope of light."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:36, :36] / 36
    made = []
    for _ in range(rows):
        slope, places = rng.uniform(-80, 80, 2), rng.uniform(0, 0.8, (8, 2))
        speeds, lights = rng.uniform(-0.6, 0.6, (8, 2)), rng.uniform(-90, 90, 8)
        sizes = rng.uniform(0.05, 0.2, 8)
        clip = np.zeros((frames, 36, 36)) + slope[0] * x + slope[1] * y + 100
        for time in range(frames):
            for place, speed, light, size in zip(places, speeds, lights, sizes, strict=True):
                cy, cx = place + speed * time / frames
                clip[time] += light * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / size**2)
        made.append(np.clip(clip, 0, 255).astype(np.uint8)[:, None])
    return made


def seen(clips: list[np.ndarray]) -> duplicates.Looks:
    middles = np.stack([clip[len(clip) // 2] for clip in clips])
    places = [(2 * np.arange(6) + 1) * len(clip) // 12 for clip in clips]
    glimpses = np.stack([clip[at] for clip, at in zip(clips, places, strict=True)])
    features = middles.reshape(len(clips), -1).astype(float)
    return duplicates.Looks(middles, features, (), "pixels", len(clips), glimpses)


def test_a_clip_that_was_cut_again_is_a_copy_and_one_that_shares_a_scene_is_not():
    clips = moving(48)
    copies = {
        "again": np.clip(clips[0] * 1.1 + 5, 0, 255).astype(np.uint8),
        "its end": clips[1][16:],
        "its begin": clips[2][:32],
        "within": clips[3][6:40],
    }
    shared = {
        "one scene": np.concatenate([clips[20][:24], clips[21][24:]]),
        "the middle": np.concatenate([clips[22][:19], clips[23][19:29], clips[24][29:]]),
    }
    found = duplicates.find(seen([*clips[:20], *copies.values(), *shared.values(), *clips[20:]]))
    pairs = set(zip(found.near.left.tolist(), found.near.right.tolist(), strict=True))
    assert pairs == {(number, 20 + number) for number in range(4)}
    exact = duplicates.find(seen([*clips[:20], clips[7], shared["the middle"], clips[23]])).exact
    assert [*zip(exact.left, exact.right, strict=True)] == [(7, 20)]
