from __future__ import annotations

from pathlib import Path

import pytest

from kagglekit.stages import stage


def test_each_change_of_the_stage_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "stages"
    monkeypatch.setenv("KAGGLEKIT_STAGES", str(told))
    with stage("train"), stage("save"):
        assert told.read_text().split() == ["train", "save"]
    assert told.read_text().split() == ["train", "save", "train", "start"]


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
