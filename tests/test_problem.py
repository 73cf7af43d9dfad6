"""Data are found, said and checked before anything is made of them; practice data are whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kagglekit import Competition, problem
from kagglekit.errors import UserError
from kagglekit.progress import progress
from tests import toys


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Competition:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)
    return problem.find("toy")


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_slug_replaces_the_competition_s_own() -> None:
    assert problem.find("toy", "toy-2031").slug == "toy-2031"
    assert problem.find("toy").slug == "toy-competition"


def test_reading_says_where_the_data_are(
    toy: Competition, capsys: pytest.CaptureFixture[str]
) -> None:
    read = problem.read("toy", toy, None, progress())
    assert capsys.readouterr().err == "data: data/toy\n"
    assert (read.source.kind, len(read.data.train)) == ("download", 60)


def test_the_fingerprint_is_of_the_content(toy: Competition) -> None:
    first = problem.read("toy", toy, None, progress()).fingerprint
    shutil.copytree("data/toy", "copy")
    assert problem.read("toy", toy, Path("copy"), progress()).fingerprint == first
    with Path("copy/train.csv").open("a") as handle:
        handle.write("9999,1,1,1\n")
    assert problem.read("toy", toy, Path("copy"), progress()).fingerprint != first


def test_data_that_are_not_of_one_piece_are_refused(toy: Competition) -> None:
    def short(folder: Path) -> Any:
        data = toy.load(folder)
        return replace(data, target=data.target[1:])

    with pytest.raises(UserError, match="60 training rows but 59 targets"):
        problem.load(replace(toy, load=short), Path("data/toy"))


def test_an_empty_test_set_is_refused(toy: Competition) -> None:
    def nothing(folder: Path) -> Any:
        data = toy.load(folder)
        return replace(data, test=data.test[:0])

    with pytest.raises(UserError, match="the test set is empty"):
        problem.load(replace(toy, load=nothing), Path("data/toy"))


def test_practice_data_have_their_answers_apart(toy: Competition) -> None:
    data, answers = problem.practise("toy", toy)
    assert sorted(listing(data)) == ["sample_submission.csv", "test.csv", "train.csv"]
    assert sorted(listing(answers)) == ["solution.csv"]
    assert "y" not in (data / "test.csv").read_text().splitlines()[0].split(",")
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "toy", "toy.answers", "toy.practice", "toy.practice-answers",
    ]  # fmt: skip


def test_practice_data_that_fail_leave_what_there_was(toy: Competition) -> None:
    data, answers = problem.practise("toy", toy)
    before = listing(data), listing(answers)

    def broken(folder: Path, answers: Path) -> None:
        (folder / "train.csv").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        problem.practise("toy", replace(toy, practice={"broken": broken}))
    assert (listing(data), listing(answers)) == before
    assert not list(Path("data").glob(".*"))


def test_practice_data_of_another_process_are_kept_and_typed_ones_replaced(
    toy: Competition,
) -> None:
    data, _ = problem.practise("toy", toy)
    (data / "train.csv").write_text("another process's")
    problem.practise("toy", toy, replace_data=False)
    assert (data / "train.csv").read_text() == "another process's"
    problem.practise("toy", toy)
    assert (data / "train.csv").read_text() != "another process's"


def test_practice_data_that_are_the_same_already_are_not_moved(toy: Competition) -> None:
    data, answers = problem.practise("toy", toy)
    before = data.stat().st_ino, answers.stat().st_ino
    assert problem.practise("toy", toy) == (data, answers)
    assert (data.stat().st_ino, answers.stat().st_ino) == before
    assert sorted(path.name for path in Path("data").iterdir() if path.name[0] == ".") == []


def test_an_empty_folder_does_not_stand_for_practice_data(toy: Competition) -> None:
    Path("data/toy.practice").mkdir(parents=True)
    data, _ = problem.practise("toy", toy, replace_data=False)
    assert len(listing(data)) == 3


def test_a_competition_without_practice_says_where_data_belong(toy: Competition) -> None:
    shutil.rmtree("data")
    with pytest.raises(UserError, match="put Kaggle's download of toy-competition in data/toy"):
        problem.read("toy", replace(toy, practice={}), None, progress())
    with pytest.raises(UserError, match="there are: functions"):
        problem.practise("toy", toy, "digits")
