"""What is better is said where the numbers bear it, and refused where runs do not compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kagglekit import comparing, contenders, evidence
from kagglekit.cli import main
from kagglekit.comparing import _Members
from kagglekit.errors import UserError
from kagglekit.paired import Difference
from tests import miniatures, toys


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)


def train(*typed: str) -> str:
    """Train; the name of the run."""
    assert main(["train", "toy", *typed, "--json"]) == 0
    newest = max(Path("runs/toy").glob("*/scores.json"), key=lambda path: path.stat().st_mtime_ns)
    return newest.parent.name


def compared(capsys: pytest.CaptureFixture[str], *runs: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["compare", "toy", *runs, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_difference_far_above_the_noise_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    good = train("line", "--seeds", "2")
    poor = train("line", "--seeds", "2", "ridge=1000")
    told = compared(capsys, poor, good)
    (pair,) = told["pairs"]
    assert [run["run"] for run in told["runs"]] == [good, poor]  # the best first
    assert (pair["one"], pair["decided"], pair["repeats"]) == (good, True, True)
    assert pair["rows"]["interval"][0] > 0
    assert pair["members"]["effect"] > 0
    assert pair["p"] == max(pair["rows"]["p"], pair["members"]["p"])
    assert pair["probability"] > 0.95
    assert told["verdict"] == f"{good} is better than the other by more than noise."
    assert (told["rows"], told["units"], told["groups"]) == (60, 60, None)
    assert pair["rows"]["effect"] == pytest.approx(told["runs"][1]["cv"] - told["runs"][0]["cv"])
    assert told["shakeup"]["runs"][0]["run"] == good


def test_a_difference_within_the_noise_is_not_decided(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [train("line", f"ridge={ridge}") for ridge in (0.1, 0.10001)]
    told = compared(capsys, *runs)
    (pair,) = told["pairs"]
    assert not pair["decided"]
    assert "differ by less than the noise" in told["verdict"]
    assert "not decided" in pair["verdict"]
    assert "One seed each" in told["notes"][0]
    assert main(["compare", "toy", *runs]) == 0
    shown = capsys.readouterr().out
    for word in ("not decided", "P(better)", "Shake-up", "deserves a weight of", "--seeds 3"):
        assert word in shown


def test_all_pairs_are_adjusted_together(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [train("line"), train("curve"), train("line", "ridge=0.1")]
    told = compared(capsys, *runs)
    assert len(told["pairs"]) == 3
    assert all(pair["p"] >= pair["rows"]["p"] for pair in told["pairs"])
    assert main(["compare", "toy", *runs]) == 0
    assert "by Holm" in capsys.readouterr().out


def test_runs_of_different_seeds_are_paired_by_fold(capsys: pytest.CaptureFixture[str]) -> None:
    told = compared(capsys, train("line", "--seeds", "2"), train("curve"))
    assert not told["pairs"][0]["repeats"]
    assert any("Different seeds" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["folds=4"], "different folds: fold 0 validates 20 rows of one and 15 of the other, "
                      "folds=3 and folds=4"),
        (["seed=5"], "seed=0 and seed=5"),
        (["--rows", "40"], "all rows and --rows 40"),
    ],
)  # fmt: skip
def test_runs_of_different_folds_are_refused_with_the_reason(
    typed: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [train("line"), train("curve", *typed)]
    capsys.readouterr()
    assert main(["compare", "toy", *runs]) == 2
    assert words in capsys.readouterr().err


def test_runs_of_different_data_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = train("line")
    miniatures.function_fitting(Path("other"), 2, 1, 66)
    curve = train("curve", "--data", "other")
    assert main(["compare", "toy", line, curve]) == 2
    assert "were trained on different data" in capsys.readouterr().err
    again = train("curve")
    shutil.rmtree("data/toy")
    miniatures.function_fitting(Path("data/toy"), 2, 1, 63)
    assert main(["compare", "toy", line, again]) == 2
    assert "holds other data than" in capsys.readouterr().err


def test_what_is_no_comparison_is_refused() -> None:
    line = train("line")
    half = train("curve", "--folds", "0")
    other = train("refitted", "--folds", "1")
    with pytest.raises(UserError, match="two runs or more"):
        comparing.compare("toy", [line])
    with pytest.raises(UserError, match="named twice"):
        comparing.compare("toy", [line, line[:6]])
    with pytest.raises(UserError, match="no fold in common"):
        comparing.compare("toy", [half, other])
    told = comparing.compare("toy", [line, half])
    assert told["rows"] == 20
    assert "Compared on the 20 rows of 60" in told["notes"][-1]
    manifest = json.loads(Path(f"runs/toy/{line}/run.json").read_text())
    Path(f"runs/toy/{line}/run.json").write_text(json.dumps({**manifest, "finished": None}))
    with pytest.raises(UserError, match="is not finished"):
        comparing.compare("toy", [line, half])


def test_groups_of_the_folds_are_what_is_resampled(capsys: pytest.CaptureFixture[str]) -> None:
    more = (
        "\ncompetition = __import__('dataclasses').replace(competition, folds=folds.grouped('g'))\n"
        "read = competition.load\n"
        "def load(folder):\n"
        "    from dataclasses import replace\n"
        "    data = read(folder)\n"
        "    return replace(data, train=data.train.assign(g=np.arange(60) // 5), "
        "test=data.test.assign(g=0))\n"
        "competition = __import__('dataclasses').replace(competition, load=load)\n"
    )
    toys.write(Path.cwd(), more, data=False)
    told = compared(capsys, train("line"), train("curve"))
    assert (told["rows"], told["units"], told["groups"]) == (60, 12, "g")


def test_where_folds_go_forward_in_time_neighbours_are_drawn_together(
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = (
        "\nfrom dataclasses import replace\n"
        "read = competition.load\n"
        "def load(folder):\n"
        "    data = read(folder)\n"
        "    return replace(data, train=data.train.assign(day=np.arange(60) // 2), "
        "test=data.test.assign(day=40))\n"
        "competition = replace(competition, load=load, folds=folds.time_ordered('day'))\n"
    )
    toys.write(Path.cwd(), more, data=False)
    line, curve = train("line"), train("curve")
    told = compared(capsys, line, curve)
    assert (told["rows"], told["units"], told["times"]) == (42, 21, "day")
    assert told["block"] >= 1
    assert f"blocks of {told['block']} times" in told["pairs"][0]["rows"]["method"]
    assert main(["compare", "toy", line, curve]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "over 21 times of 'day'" in shown
    assert "circular block bootstrap" in shown
    held = evidence.gather("toy", line)
    assert len(np.unique(held.moments)) == 21


@pytest.mark.parametrize("wrapped", ["", ".repeated(RULE, 2)", ".training_only(RULE, all_rows)"])
def test_groups_of_a_file_are_resampled_too(
    wrapped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = 'folds.grouped_by_file(__import__("pathlib").Path("groups.csv"))'
    rule = f"folds{wrapped}".replace("RULE", rule) if wrapped else rule
    more = (
        "\nall_rows = lambda data: np.ones(len(data.train), bool)\n"
        f"competition = __import__('dataclasses').replace(competition, folds={rule})\n"
    )
    toys.write(Path.cwd(), more)
    rows = pd.read_csv("data/toy/train.csv")
    rows.assign(group=np.arange(60) // 5)[["id", "group"]].to_csv("groups.csv", index=False)
    told = compared(capsys, train("line"), train("curve"))
    assert (told["rows"], told["units"], told["groups"]) == (60, 12, "groups.csv")
    assert evidence.gather("toy", None).groups is not None


def rows(effect: float, reach: float) -> Difference:
    return Difference(effect, (effect - reach, effect + reach), 0.9, 0.2, "")


def members(differences: np.ndarray, **facts: float) -> _Members:
    told = {"seeds": 1, "folds": 5, "ratio": 0.25, "repeats": False, "error": 0.1,
            "error_of_one": 0.1} | facts  # fmt: skip
    return _Members(differences, **told)  # type: ignore[arg-type]


def test_more_seeds_are_advised_where_they_would_decide() -> None:
    spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    clear = members(1.0 + spread).more_seeds(rows(1.0, 0.5))
    assert clear is not None
    assert 1 <= clear <= 5
    assert members(0.01 + spread).more_seeds(rows(0.01, 0.5)) is None
    # the rows alone are too few: no number of seeds makes their error smaller than the effect
    many = members(1.0 + np.tile(spread, 2), seeds=2, error=1.0, error_of_one=1.0)
    assert many.more_seeds(rows(1.0, 2.0)) is None
    # but where most of that error is the luck of training, seeds average it out
    lucky = members(1.0 + np.tile(spread, 2), seeds=2, error=0.75, error_of_one=1.05)
    assert (lucky.more_seeds(rows(1.0, 1.5)) or 0) >= 2


def test_the_runs_that_compare_with_the_best_are_found() -> None:
    line, curve = train("line"), train("curve")
    train("line", "folds=4", "ridge=1000")
    told: list[str] = []
    assert [run.name for run in contenders.comparable("toy", told.append)] == [line, curve]
    assert contenders.comparable("nothing", told.append) == []
    assert not told
