"""The leaderboard as one asks for it: filtered, sorted, and as CSV that executes nothing."""

from __future__ import annotations

import csv
import io
import json

import pytest

from kagglekit import cli, standings
from kagglekit.errors import UserError
from kagglekit.leaderboard import Row
from tests import toys


def row(run: str, cv: float | None, **more) -> Row:
    told = {
        "competition": "digits", "run": run, "recipe": run.partition("-")[0], "slug": "d",
        "started": "2025", "finished": "2025", "practice": False, "seeds": (0,),
        "folds_wanted": 5, "greater_is_better": True,
    }  # fmt: skip
    return Row(**(told | {"cv": cv} | more))


ROWS = [
    row("cnn-1", 0.9, seconds=9.0),
    row("cnn_small-2", 0.95, seconds=30.0, seeds=(0, 1)),
    row("gp-3", None, practice=True),
    row("gp-4", 0.2, seconds=1.0, greater_is_better=False, public_lb=0.1),
]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["recipe=cnn"], "1"),
        (["recipe=cnn*"], "12"),
        (["recipe!=gp"], "12"),
        (["cv>=0.9"], "12"),
        (["cv<0.95", "time>5"], "1"),
        (["cv=0.90"], "1"),
        (["cv=none"], "3"),
        (["practice=yes"], "3"),
        (["practice = no", "seeds>1"], "2"),
        (["public!=none"], "4"),
    ],
)
def test_the_rows_that_fulfil_every_condition_are_kept(filters, found):
    kept = standings.select(ROWS, None, filters)
    assert "".join(one.run[-1] for one in kept) == found


@pytest.mark.parametrize(
    ("column", "order"), [("cv", "2143"), ("time", "4123"), ("run", "1234"), ("seeds", "1342")]
)
def test_scores_are_sorted_best_first_and_what_is_missing_comes_last(column, order):
    assert "".join(one.run[-1] for one in standings.select(ROWS, column, [])) == order


@pytest.mark.parametrize(
    ("sort", "filters", "part"),
    [
        ("tme", [], "did you mean 'time'"),
        (None, ["recipe"], "COLUMN=VALUE"),
        (None, ["recip=cnn"], "did you mean 'recipe'"),
        (None, ["cv>good"], "no number"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(sort, filters, part):
    with pytest.raises(UserError, match=part):
        standings.select([], sort, filters)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_the_csv_is_a_formula(start):
    bad = f"{start}1+cmd|' /C calc'!A0"
    text = standings.as_csv([row("cnn-1", -0.5, device=bad, slug='x,"\n=1')])
    header, values = csv.reader(io.StringIO(text))
    told = dict(zip(header, values, strict=True))
    assert told["device"] == f"'{start if start.isprintable() else ' '}{bad[1:]}"
    assert told["slug"] == 'x," =1'
    assert len(text.splitlines()) == 2
    assert float(told["cv"]) == -0.5  # a number below zero is no formula
    assert all(not cell.startswith(("=", "+", "@")) for cell in values)


def test_the_command_line_filters_sorts_and_writes_csv(project, capsys):
    toys.write(project)
    assert cli.main(["train", "toy", "line", "--json"]) == 0
    assert cli.main(["train", "toy", "curve", "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["leaderboard", "toy", "--json", "--sort", "run"]) == 0
    names = [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert [name.partition("-")[0] for name in names] == ["curve", "line"]
    assert cli.main(["leaderboard", "--csv", "--filter", "recipe=line"]) == 0
    told = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [one["run"] for one in told] == names[1:]
    assert cli.main(["leaderboard", "--csv", "--json"]) == 2
