"""What a report is made of is what the run was scored on, and nothing that is damaged passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kagglekit import cli, evidence
from kagglekit.errors import UserError
from tests import hostile_pages, toys


def test_decided_answers_give_the_run_s_own_score_fold_by_fold_and_together(project):
    hostile_pages.people(project)
    assert cli.main(["train", "people", "--json"]) == 0
    found = evidence.gather("people", None)
    rows = np.arange(len(found.rows))
    assert found.score(rows) == found.scores["cv"]
    for item in found.scores["folds"]:
        assert found.score(rows[found.fold == item["fold"]]) == item["score"]
    assert found.group_column == "person"
    low, high = found.interval(rows)
    assert low < found.scores["cv"] < high
    assert not found.missing


def test_folds_that_were_left_out_are_neither_judged_nor_shown(project):
    toys.write(project)
    assert cli.main(["train", "toy", "line", "--folds", "1", "--json"]) == 0
    found = evidence.gather("toy", "line")
    assert set(found.fold) == {1}
    assert len(found.rows) == len(found.folds[1][1]) < len(found.data.train)
    assert found.score(np.arange(len(found.rows))) == found.scores["cv"]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("folds", [{"fold": 0}]),
        ("folds", [{"fold": "0", "score": 1.0}]),
        ("members", [{"fold": 0, "seed": None, "score": 1.0}]),
        ("views", [{"name": "x", "alone": 1.0, "without": 1.0, "gain": 0.0, "interval": [1.0]}]),
        ("repeats", {"mean": 1.0, "std": [], "interval": None, "scores": []}),
        ("calibration", {"temperature": 1.0, "before": {}, "after": {}}),
        ("cv", 1e308),
    ],
)
def test_scores_that_no_run_writes_are_refused_in_a_sentence(part, value, project):
    toys.write(project)
    assert cli.main(["train", "toy", "line", "--json"]) == 0
    (path,) = Path("runs/toy").glob("line-*/scores.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    with pytest.raises(UserError, match=r"scores\.json is not as kagglekit writes it"):
        evidence.gather("toy", path.parent.name)


def test_of_a_torn_history_the_whole_lines_are_read(project):
    toys.write(project)
    assert cli.main(["train", "toy", "line", "--json"]) == 0
    found = evidence.gather("toy", None)
    good = '{"member": "fold0-seed0", "epoch": 1, "loss": 0.5, "score": "x", "lr": [1]}'
    lines = [good, "[" * 9999, '{"member": 1}', "null", good[:30]]
    (found.run.folder / "history.jsonl").write_text("\n".join(lines))
    assert found.history() == [{"member": "fold0-seed0", "epoch": 1, "loss": 0.5}]


@pytest.mark.parametrize("name", ["oof.npy", "target.npy", "scores.json", "folds.csv"])
def test_a_damaged_run_is_refused_in_a_sentence(project, name):
    toys.write(project)
    assert cli.main(["train", "toy", "line", "--json"]) == 0
    (path,) = Path("runs/toy").glob(f"line-*/{name}")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r".{20,}"):
        evidence.gather("toy", "line")
