"""What `list` and `leaderboard` know."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kagglekit import overview, pipeline
from kagglekit.cli import main
from kagglekit.errors import UserError
from kagglekit.progress import progress
from tests import toys


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)
    return project


def train(recipe: str, **more: object) -> dict[str, object]:
    return pipeline.train(pipeline.Request("toy", recipe, **more), progress())  # type: ignore[arg-type]


def test_a_competition_that_does_not_load_hides_no_other(toy: Path) -> None:
    (toy / "competitions" / "broken.py").write_text("1 / 0\n")
    (toy / "competitions" / "empty.py").write_text("")
    broken, empty, sound = overview.competitions()["competitions"]
    assert broken["error"] == "ZeroDivisionError: division by zero"
    assert "must define" in empty["error"]
    assert sound["recipes"] == ["line", "curve", "refitted", "mix"]
    assert set(sound) <= set(broken) - {"error"}


def test_the_best_run_is_shown_and_real_data_go_before_practice_data() -> None:
    shutil.move("data", "elsewhere")
    train("curve")
    (entry,) = overview.competitions()["competitions"]
    assert (entry["data"]["kind"], entry["best"]["practice"]) == ("practice", True)
    line = train("line", data=Path("elsewhere/toy"))
    (entry,) = overview.competitions()["competitions"]
    assert entry["best"] == {
        "run": line["run"], "recipe": "line", "cv": line["cv"], "practice": False,
    }  # fmt: skip


def test_recipes_come_with_their_knobs() -> None:
    found = {recipe["recipe"]: recipe for recipe in overview.recipes("toy")["recipes"]}
    assert found["mix"]["needs"] == ["line", "curve"]
    ridge = {"key": "ridge", "value": 1e-6, "help": "penalty on large weights"}
    assert ridge in found["line"]["knobs"]


def test_a_rebuilt_leaderboard_is_the_one_that_grew() -> None:
    for recipe in ("line", "curve", "mix"):
        train(recipe)
    toys.trap("fit-interrupt", 1)
    with pytest.raises(KeyboardInterrupt):
        train("refitted")
    grown = overview.leaderboard("toy", rebuild=False)
    assert [row["cv"] is None for row in grown["runs"]] == [False, False, False, True]
    Path("runs/leaderboard.db").unlink()
    assert overview.leaderboard("toy", rebuild=True) == grown


def test_a_filter_that_no_run_passes_does_not_say_that_there_are_none(capsys) -> None:
    train("line")
    train("curve")
    assert main(["leaderboard", "toy", "--filter", "recipe=mix"]) == 0
    assert capsys.readouterr().out.strip() == "no run of 2 runs passes --filter"


def test_a_leaderboard_of_an_unknown_competition_is_an_error_and_an_empty_one_is_none() -> None:
    assert overview.leaderboard("toy", rebuild=False) == {"runs": [], "all": 0, "kaggle": None}
    with pytest.raises(UserError, match="did you mean 'toy'"):
        overview.leaderboard("tox", rebuild=False)
