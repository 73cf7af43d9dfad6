"""A run's folder says what was run, and its name is everything that answers depend on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from kagglekit import Config, knob, run
from kagglekit.errors import UserError
from kagglekit.run import Answers, Key, Run


@dataclass(frozen=True, kw_only=True)
class Knobs(Config):
    lr: float = knob(0.1, "rate")
    shown: int = knob(1, "what the screen shows", hashed=False)


FOLDS = [(np.array([0, 1]), np.array([2, 3])), (np.array([2, 3]), np.array([0, 1]))]


def name(config: Config = Knobs(), data: str = "d", source: str = "s", **extra: str) -> str:
    return run.identity(config, data, FOLDS, source, extra)


def test_the_name_depends_on_all_that_answers_depend_on() -> None:
    names = [
        name(),
        name(replace(Knobs(), lr=0.2)),
        name(data="e"),
        name(source="t"),
        name(device="cuda"),
        run.identity(Knobs(), "d", FOLDS[::-1], "s", {}),
    ]
    assert len(set(names)) == len(names)
    assert all(len(found) == 8 and int(found, 16) >= 0 for found in names)


def test_the_name_does_not_depend_on_what_leaves_answers_unchanged() -> None:
    assert name(replace(Knobs(), shown=7)) == name()


def test_the_source_s_digest_sees_edits_moves_and_shared_modules(tmp_path: Path) -> None:
    home = tmp_path / "competitions" / "toy"
    (home / "parts").mkdir(parents=True)
    (home / "__init__.py").write_text("x = 1\n")
    seen = [run.source_digest(home)]
    (home / "__init__.py").write_text("x = 2\n")
    seen.append(run.source_digest(home))
    (home / "model.py").write_text("y = 1\n")
    seen.append(run.source_digest(home))
    (home / "model.py").rename(home / "parts" / "model.py")
    seen.append(run.source_digest(home))
    (home.parent / "_shared.py").write_text("z = 1\n")
    seen.append(run.source_digest(home))
    assert len(set(seen)) == len(seen)
    (home / "README.md").write_text("words\n")
    (home.parent / "other.py").write_text("another competition\n")
    assert run.source_digest(home) == seen[-1]


def test_the_source_s_digest_does_not_depend_on_where_the_project_is(tmp_path: Path) -> None:
    digests = set()
    for place in ("a", "z/y"):
        home = tmp_path / place / "competitions" / "toy"
        home.mkdir(parents=True)
        (home / "__init__.py").write_text("x = 1\n")
        digests.add(run.source_digest(home))
    assert len(digests) == 1


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
    with pytest.raises(UserError, match="fits 3 runs: line-12ab, line-34cd"):
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


def test_the_history_is_one_line_an_epoch(tmp_path: Path) -> None:
    for epoch in (1, 2):
        Run(tmp_path).note(Key(0, 1), epoch, {"loss": 1 / epoch})
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines[1] == {"member": "fold0-seed1", "epoch": 2, "loss": 0.5}


def test_versions_name_what_computes() -> None:
    assert {"python", "torch", "numpy"} <= set(run.versions())


@pytest.mark.parametrize("name", ["fold0", "fold-1-seed0", "fold0-seed", "fold٣-seed0", "x-seed0"])
def test_a_member_s_name_that_none_has_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match="no member"):
        Key.parse(name)
