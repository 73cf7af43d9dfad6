"""Each folder moves with its variable; data are found in a fixed order, and said which."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kagglekit import folders
from kagglekit.errors import UserError

VARIABLES: dict[str, Callable[[], Path]] = {
    "KAGGLEKIT_DATA": folders.data,
    "KAGGLEKIT_RUNS": folders.runs,
    "KAGGLEKIT_SUBMISSIONS": folders.submissions,
    "KAGGLEKIT_CACHE": folders.cache,
    "KAGGLEKIT_COMPETITIONS": folders.competitions,
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with no variable set."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in [*VARIABLES, "XDG_CACHE_HOME", "LOCALAPPDATA"]:
        monkeypatch.delenv(name, raising=False)
    return here


def filled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("id\n")
    return folder


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_moves_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = VARIABLES[name]()
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert VARIABLES[name]() == tmp_path / "elsewhere" != default
    monkeypatch.setenv(name, "")
    assert VARIABLES[name]() == default
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(name, "~/mine")
    assert VARIABLES[name]() == tmp_path / "mine"


def test_the_defaults_are_beside_the_project() -> None:
    found = [folders.data(), folders.runs(), folders.submissions(), folders.competitions()]
    assert list(map(str, found)) == ["data", "runs", "submissions", "competitions"]


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, ".cache/kagglekit"),
        ("linux", {"XDG_CACHE_HOME": "{home}/xdg"}, "xdg/kagglekit"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache/kagglekit"),
        ("darwin", {}, "Library/Caches/kagglekit"),
        ("win32", {}, "AppData/Local/kagglekit"),
        ("win32", {"LOCALAPPDATA": "{home}/local"}, "local/kagglekit"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    platform: str,
    variables: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    assert folders.cache() == tmp_path / expected


def test_data_are_found_in_the_promised_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEKIT_DATA", str(tmp_path / "env"))
    (tmp_path / "env").mkdir()
    assert folders.find_data("toy") is None
    kinds = {
        "practice": folders.practice_folder("toy"),
        "download": Path("data/toy"),
        "environment": tmp_path / "env" / "toy",
        "given": tmp_path / "given",
    }
    for kind, folder in kinds.items():  # from the last resort to the first
        filled(folder)
        source = folders.find_data("toy", folder if kind == "given" else None)
        assert source == folders.Source(folder, kind)  # type: ignore[arg-type]
    assert folders.find_data("other") is None
    # however it is typed, a stand-in is one: nothing trained on it may pass for real
    stand_in = folders.practice_folder("toy").resolve()
    assert folders.find_data("toy", stand_in) == folders.Source(stand_in, "practice")


def test_folders_without_files_do_not_count(project: Path) -> None:
    filled(folders.practice_folder("toy"))
    (project / "data" / "toy").mkdir()
    (project / "data" / "toy" / ".gitkeep").write_text("")
    source = folders.find_data("toy")
    assert source is not None
    assert source.kind == "practice"
    (project / "data" / "toy" / ".gitkeep").unlink()
    (project / "data" / "toy").rmdir()
    (project / "data" / "toy").write_text("a file")
    assert folders.find_data("toy") == source


def test_a_given_folder_must_hold_something(tmp_path: Path) -> None:
    filled(Path("data/toy"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        folders.find_data("toy", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        folders.find_data("toy", tmp_path / "empty")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.zip is a file"):
        folders.find_data("toy", tmp_path / "a.zip")


def test_a_variable_that_names_no_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    filled(Path("data/toy"))
    monkeypatch.setenv("KAGGLEKIT_DATA", "/no/such/folder")
    with pytest.raises(UserError, match=r"\$KAGGLEKIT_DATA is /no/such/folder"):
        folders.find_data("toy")
    given = folders.find_data("toy", Path("data/toy"))  # what is not needed is not checked
    assert given is not None
    assert given.kind == "given"


def test_practice_data_stay_here_whatever_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEKIT_DATA", str(tmp_path))
    assert folders.practice_folder("toy") == Path("data/toy.practice")
    assert folders.practice_answers("toy") == Path("data/toy.practice-answers")


def test_one_line_says_which_data_these_are() -> None:
    lines = {
        kind: folders.Source(Path("x") / "toy", kind).describe()
        for kind in ("given", "environment", "download")
    }
    assert all(line.startswith(f"data: {os.path.join('x', 'toy')}") for line in lines.values())
    assert len(set(lines.values())) == 3
    assert "$KAGGLEKIT_DATA" in lines["environment"]
    assert "--data" in lines["given"]
    practice = folders.Source(folders.practice_folder("toy"), "practice").describe()
    assert practice.startswith("practice data: ")
    assert "stand-in" in practice
    assert str(Path("data/toy")) + ")" in practice
    assert "\n" not in "".join([*lines.values(), practice])


def test_a_cache_without_a_home_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match=r"\$KAGGLEKIT_CACHE"):
        folders.cache()
