"""Practice data are laid out as Kaggle lays out a download."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kagglekit import UserError, practice


def test_targets_of_the_test_go_to_the_solution_alone(tmp_path: Path) -> None:
    folder, answers = tmp_path / "data", tmp_path / "answers"
    folder.mkdir()
    answers.mkdir()
    table = pd.DataFrame(
        {"key": [3, 1, 2], "x": [0.5, 1.5, 2.5], "y": [1.25, 2, 3], "n": [7, 8, 9]}
    )
    practice.write(folder, answers, table[:2], table[2:], ["y", "n"])
    assert (folder / "train.csv").read_text() == "key,x,y,n\n3,0.5,1.25,7\n1,1.5,2.0,8\n"
    assert (folder / "test.csv").read_text() == "key,x\n2,2.5\n"
    assert (folder / "sample_submission.csv").read_text() == "key,y,n\n2,0.0,0\n"
    assert (answers / "solution.csv").read_text() == "key,y,n\n2,3.0,9\n"


def test_a_text_that_a_spreadsheet_would_execute_is_not_written(tmp_path: Path) -> None:
    table = pd.DataFrame({"key": ["a", "=1+1"], "x": [-0.5, 1.5], "y": [1.25, 2]})
    with pytest.raises(UserError, match="=1"):
        practice.write(tmp_path, tmp_path, table, table, ["y"])
    assert not list(tmp_path.glob("*.csv"))
