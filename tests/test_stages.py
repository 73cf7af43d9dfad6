from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kagglekit.stages import go_on, stage


def test_each_change_of_the_stage_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "stages"
    monkeypatch.setenv("KAGGLEKIT_STAGES", str(told))
    with stage("train"), stage("save"):
        assert told.read_text().split() == ["train", "save"]
    assert told.read_text().split() == ["train", "save", "train", "start"]


def test_one_stage_goes_on_to_another_without_the_one_before_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "stages"
    monkeypatch.setenv("KAGGLEKIT_STAGES", str(told))
    with stage("train"), stage("predict"):
        go_on("write")
    assert told.read_text().split() == ["train", "predict", "write", "train", "start"]


def test_a_thread_is_in_stages_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "stages"
    monkeypatch.setenv("KAGGLEKIT_STAGES", str(told))

    def beside() -> None:
        with stage("predict"):
            pass

    with stage("train"):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert told.read_text().split() == ["train", "predict", "start", "start"]


def test_a_stage_that_fails_is_left_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "stages"
    monkeypatch.setenv("KAGGLEKIT_STAGES", str(told))
    with pytest.raises(ValueError, match="no"), stage("predict"):
        raise ValueError("no")
    assert told.read_text().split() == ["predict", "start"]


def test_nothing_is_told_where_nobody_watches(tmp_path: Path) -> None:
    with stage("load"):
        pass
    assert not list(tmp_path.glob("stages*"))
