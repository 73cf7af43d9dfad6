"""A run's folder says what was run, and keeps what its members left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kagglekit import run
from kagglekit.errors import UserError
from kagglekit.run import Answers, Key, Run


def test_a_member_that_answered_is_finished_and_keeps_its_answers(tmp_path: Path) -> None:
    kept, key = Run(tmp_path / "line-1"), Key(1, 0)
    answers = Answers(
        np.array([4, 2]), np.ones((2, 3)), np.zeros((5, 3)), np.ones((1, 2, 3)), np.array(["view"])
    )
    assert not kept.finished(key)
    kept.keep(key, answers, (np.array(["d", "b"]), np.array(list("vwxyz"))))
    assert kept.finished(key)
    for field, value in vars(kept.answers(key)).items():
        np.testing.assert_array_equal(value, getattr(answers, field))


@pytest.mark.parametrize("key", [Key(0, 0), Key(12, 34), Key(None, 5)])
def test_a_member_s_folder_names_it(key: Key) -> None:
    assert Key.parse(key.name) == key


def runs(folder: Path, *names: str) -> Path:
    for found in names:
        (folder / "toy" / found).mkdir(parents=True)
        (folder / "toy" / found / "run.json").write_text("{}")
    return folder


def test_the_beginning_of_a_name_is_enough_where_it_fits_one_run(tmp_path: Path) -> None:
    home = runs(tmp_path, "line-12ab", "line-34cd", "curve-12ab", "line-34cd~1")
    assert run.find(home, "toy", "cur").name == "curve-12ab"
    assert run.find(home, "toy", "line-34cd").name == "line-34cd"
    assert run.find(home, "toy", "line-3").name == "line-34cd"  # not what was set aside
    assert run.find(home, "toy", "line-34cd~1").name == "line-34cd~1"
    with pytest.raises(UserError, match="fits 2 runs: line-12ab, line-34cd"):
        run.find(home, "toy", "line")
    with pytest.raises(UserError, match="there are: curve-12ab"):
        run.find(home, "toy", "spline")
    with pytest.raises(UserError, match="kagglekit train other makes one"):
        run.find(home, "other", "line")


def test_an_earlier_run_is_set_aside_under_the_next_free_number(tmp_path: Path) -> None:
    folder = runs(tmp_path, "line-1", "line-1~1") / "toy" / "line-1"
    assert run.set_aside(Run(folder)) == folder.with_name("line-1~2")
    assert not folder.exists()
    assert run.set_aside(Run(folder)) is None


@pytest.mark.parametrize("content", ["[]", '{"recipe": "line"}', '{"recipe"'])
def test_a_run_json_of_another_make_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        Run(tmp_path).manifest()


def test_the_path_of_a_run_s_folder_names_it(tmp_path: Path, monkeypatch) -> None:
    folder = runs(tmp_path / "runs", "line-1", "curve-1")
    monkeypatch.chdir(tmp_path)
    for typed in ("runs/toy/line-1/", "./runs/toy/line", str(folder / "toy" / "line-1")):
        assert run.find(folder, "toy", typed) == Run(folder / "toy" / "line-1")
    for other in ("runs/toy", "elsewhere/line-1", "../toy/line-1", "runs/toy/line-1/run.json"):
        with pytest.raises(UserError, match="no run"):
            run.find(folder, "toy", other)


def test_the_history_is_one_line_an_epoch(tmp_path: Path) -> None:
    for epoch in (1, 2):
        Run(tmp_path).note(Key(0, 1), epoch, {"loss": 1 / epoch})
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines[1] == {"member": "fold0-seed1", "epoch": 2, "loss": 0.5}


def test_epochs_that_are_trained_again_are_forgotten_and_torn_lines_too(tmp_path: Path) -> None:
    kept = Run(tmp_path)
    for member in (Key(0, 0), Key(1, 0)):
        for epoch in (1, 2, 3):
            kept.note(member, epoch, {"loss": 1.0})
    with (tmp_path / "history.jsonl").open("a") as history:
        history.write('{"member": "fold1-se')
    kept.forget(Key(1, 0), 2)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(line["member"], line["epoch"]) for line in lines] == [
        ("fold0-seed0", 1), ("fold0-seed0", 2), ("fold0-seed0", 3), ("fold1-seed0", 1),
    ]  # fmt: skip


def test_tidying_removes_leftovers_and_nothing_that_is_needed(tmp_path: Path) -> None:
    kept = Run(tmp_path)
    for name in ("fold0-seed0", "fold1-seed0"):
        (tmp_path / name).mkdir()
        for file in run.ASKED.values():
            (tmp_path / name / file).touch()
    (tmp_path / "fold0-seed0" / "answers.npz").touch()
    (tmp_path / "fold0-seed0" / ".0123.tmp").touch()
    (tmp_path / ".4567.tmp").touch()
    kept.tidy()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    unfinished = {f"fold1-seed0/{file}" for file in run.ASKED.values()}
    assert left == {"fold0-seed0/answers.npz", *unfinished}


@pytest.mark.parametrize("name", ["fold0", "fold-1-seed0", "fold0-seed", "fold٣-seed0", "x-seed0"])
def test_a_member_s_name_that_none_has_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match="no member"):
        Key.parse(name)
