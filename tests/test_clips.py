"""Folders of clips: classes, films, broken files, and frames that are changed all alike."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kagglekit import clips, duplicates, folds, video
from kagglekit.augment import affine, compose, flip
from kagglekit.cli import main
from kagglekit.errors import UserError
from tests import miniatures

FOLDER = Path("data/sword_video")
RULE = clips.sound(folds.stratified_grouped(clips.FILM))


@pytest.fixture
def download(project: Path) -> Path:
    miniatures.sword_video(FOLDER)
    return FOLDER


def test_classes_are_folders_and_films_are_joined_by_name(download: Path) -> None:
    data = clips.classification(download)
    assert data.classes == ("jumps", "stays")
    assert [data.classes[position] for position in data.target] == [
        path.parent.name for path in data.train_paths
    ]
    numbers = data.train["video"].str.extract(r"(\d+)", expand=False).astype(int)
    assert (data.train[clips.FILM] == "film" + (numbers // 2).astype(str)).all()
    assert [path.name for path in data.test_paths] == data.sample["video"].tolist()


def test_a_clip_is_stood_for_by_its_middle_frame(download: Path) -> None:
    data = clips.classification(download)
    train, test = data.stills()
    assert (train.shape, test.shape) == (
        (len(data.train), 3, 128, 128), (len(data.test), 3, 128, 128),
    )  # fmt: skip
    frames = data.look(0)
    middle = frames[len(frames) // 2].mean((0, 1))
    np.testing.assert_allclose(train[0].mean((1, 2)), middle, atol=1)
    seen = duplicates.looks(data)
    assert seen.pictures is not None
    assert seen.glimpses is not None  # and compared by six, evenly spaced
    assert seen.glimpses.shape == (len(data.train) + len(data.test), 6, 3, 64, 64)
    last = frames[11 * len(frames) // 12].mean((0, 1))
    np.testing.assert_allclose(seen.glimpses[0, 5].mean((1, 2)), last, atol=1)


def test_films_never_straddle_folds(download: Path) -> None:
    data = clips.classification(download)
    for seed in range(3):
        config = clips.ClipsConfig(folds=3, seed=seed)
        for train, valid in folds.split(data, config, RULE):
            film = data.train[clips.FILM].to_numpy()
            assert not set(film[train]) & set(film[valid])
    # and who resamples or shows rows film by film is told by which column
    kept_together = clips.sound(folds.stratified_grouped(clips.FILM))
    assert folds.group_column(kept_together) == clips.FILM
    assert folds.group_column(clips.sound(folds.stratified)) is None


def test_without_films_each_clip_is_its_own_and_that_is_said(
    download: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (download / "data/sources.csv").unlink()
    data = clips.classification(download)
    assert data.train[clips.FILM].is_unique
    assert "sources.csv" in caplog.text


def test_a_clip_that_is_asked_for_and_not_there_is_named(download: Path) -> None:
    (download / "test_data/videos/c13.mkv").unlink()
    with pytest.raises(UserError, match=r"c13\.mkv"):
        clips.classification(download)


def test_a_broken_clip_fails_or_is_skipped_as_the_knob_says(
    download: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = download / "data/videos/stays/c01.mkv", download / "test_data/videos/c14.mkv"
    for path in broken:
        path.write_bytes(b"no clip")
    data = clips.classification(download)
    with pytest.raises(UserError, match=r"c01\.mkv.*broken=skip.*1 more") as caught:
        folds.split(data, clips.ClipsConfig(folds=3), RULE)
    assert "\n" not in str(caught.value)

    row = data.train["video"].tolist().index("c01.mkv")
    with caplog.at_level(logging.WARNING):
        drawn = folds.split(data, clips.ClipsConfig(folds=3, broken="skip"), RULE)
    assert all(row not in train for train, _ in drawn)
    assert sum(row in valid for _, valid in drawn) == 1  # answered, though from nothing
    assert "c01.mkv" in caplog.text
    assert "c14.mkv" in caplog.text
    greys = [clip.frames.std() for clip in data.each(True, lambda clip: clip)]
    assert [grey == 0 for grey in greys] == [False, False, True, False]


def test_what_is_seen_is_kept_by_content(download: Path) -> None:
    seen: list[int] = []

    def see(clip: video.Clip) -> dict[str, np.ndarray]:
        seen.append(len(clip.frames))
        return {"mean": clip.frames.mean(axis=(0, 1, 2))}

    first = clips.kept(clips.classification(download), True, "mean", see)["mean"]
    assert len(seen) == len(first) == 4
    again = clips.kept(clips.classification(download), True, "mean", see)["mean"]
    assert len(seen) == 4
    assert (again == first).all()
    miniatures.clip(download / "test_data/videos/c12.mkv", np.zeros((3, 24, 32, 3), np.uint8))
    changed = clips.kept(clips.classification(download), True, "mean", see)["mean"]
    assert len(seen) == 8
    assert (changed[0] == 0).all()
    assert (changed[1:] == first[1:]).all()


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    still = torch.rand(3, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    augment = compose(
        clips.jittered(4), affine(degrees=20, translate=0.2, scale=(0.7, 1.3)), flip()
    )
    moved = augment(still.expand(3, 8, 20, 30).contiguous(), torch.Generator().manual_seed(1))
    assert moved.shape == (3, 4, 20, 30)
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))
    assert (moved[:, 0] - still[:, 0]).abs().amax(dim=(1, 2)).min() > 0.1


def test_jitter_draws_one_frame_of_each_part_and_offsets_name_theirs() -> None:
    frames = torch.arange(12.0).view(1, 12, 1, 1).expand(50, 12, 2, 2)
    drawn = clips.jittered(4)(frames, torch.Generator().manual_seed(0))[:, :, 0, 0]
    assert (drawn // 3 == torch.arange(4)).all()
    assert len(drawn.unique()) == 12
    places = [clips.offset(4, place).apply(frames)[0, :, 0, 0].tolist() for place in (0, 0.5, 1)]
    assert places == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_without_weights_practice_takes_what_needs_none_and_real_clips_ask_for_them(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniatures.sword_video(Path("data/sword_video.practice"))
    assert main(["train", "sword_video", "folds=2", "inner_folds=2"]) == 0
    assert "no pretrained weights here: taking flow (blend is" in capsys.readouterr().err
    Path("data/sword_video.practice").rename("data/sword_video")
    assert main(["train", "sword_video", "broken=skip"]) == 2
    assert "--weights" in capsys.readouterr().err


def test_practice_clips_are_told_by_motion_and_by_nothing_easier(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from competitions.sword_video import looks, practice

    monkeypatch.setattr(practice, "FILMS", 7)
    monkeypatch.setattr(practice, "TEST_FILMS", 1)
    data_folder, answers = project / "practice", project / "answers"
    data_folder.mkdir()
    answers.mkdir()
    practice.write(data_folder, answers)
    data = clips.classification(data_folder)
    assert pd.read_csv(answers / "solution.csv")["video"].tolist() == data.test["video"].tolist()

    def outside(clip: video.Clip) -> list[float]:
        pixels = clip.frames.reshape(-1, 3)
        shape = clip.frames.shape
        return [*pixels.mean(0), *pixels.std(0), shape[0], shape[2], clip.duration, clip.rate]

    cheats = [
        [*told, path.stat().st_size, path.suffix == ".avi", *map(ord, path.stem[:4])]
        for told, path in zip(data.each(False, outside), data.train_paths, strict=True)
    ]
    flow = looks.numbers(data, False)["flow"]
    scores = _accuracy(np.array(cheats, float), data), _accuracy(flow, data)
    assert scores[0] < 0.62, scores
    assert scores[1] > 0.66, scores


def _accuracy(features: np.ndarray, data: clips.Clips) -> float:
    """Grouped CV of the better of two learners, mean over three draws of the folds."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    trees = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=0)
    film = data.train[clips.FILM].to_numpy(str)
    scores = []
    for learner in (linear, trees):
        rules = [StratifiedGroupKFold(5, shuffle=True, random_state=seed) for seed in range(3)]
        answers = [
            cross_val_predict(learner, features, data.target, groups=film, cv=rule)
            for rule in rules
        ]
        scores.append(float(np.mean([answer == data.target for answer in answers])))
    return max(scores)
