"""What a report is made of is what the run was scored on, and nothing that is damaged passes."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", ["oof.npy", "target.npy", "scores.json", "folds.csv"])
def test_a_damaged_run_is_refused_in_a_sentence(project, name):
    toys.write(project)
    assert cli.main(["train", "toy", "line", "--json"]) == 0
    (path,) = Path("runs/toy").glob(f"line-*/{name}")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r".{20,}"):
        evidence.gather("toy", "line")
