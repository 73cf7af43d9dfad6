"""A blend is a run like any other, scored without the rows that chose it, and made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kagglekit import files, mixing
from kagglekit.cli import main
from kagglekit.run import Run
from tests import toys


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def test_a_blend_is_a_run_like_any_other(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line, curve = typed("train", "toy", "line", "--seeds", "2"), typed("train", "toy", "curve")
    before = toys.fits()
    told = typed("blend", "toy")
    assert toys.fits() == before  # nothing is trained
    best_first = sorted([line, curve], key=lambda run: run["cv"])
    assert [part["run"] for part in told["parts"]] == [run["run"] for run in best_first]
    assert told["trained"] is True
    assert told["cv"] <= (line["cv"] + curve["cv"]) / 2  # as of any mean, by convexity
    assert len(pd.read_csv(told["submission"])) == 30
    ranked = [row["run"] for row in typed("leaderboard", "toy")["runs"]]
    assert told["run"] in ranked
    again = typed("blend", "toy")  # the blend itself is no part of the next one
    assert (again["run"], again["trained"]) == (told["run"], False)
    assert typed("compare", "toy", told["run"], curve["run"])["rows"] == 60
    assert main(["blend", "toy"]) == 0
    assert "mixed by" in capsys.readouterr().out


def test_the_members_of_a_blend_answer_a_test_set_anew(typed: Any) -> None:
    typed("train", "toy", "line", "--seeds", "2")
    typed("train", "toy", "curve")
    told = typed("blend", "toy", "method=mean")
    again = typed("predict", "toy", told["run"], "--data", "data/toy")
    first, second = (pd.read_csv(each["submission"]) for each in (told, again))
    pd.testing.assert_frame_equal(first, second)


def test_the_rows_of_a_fold_do_not_choose_what_mixes_them(typed: Any) -> None:
    runs = [typed("train", "toy", name)["run"] for name in ("line", "curve")]
    told = typed("blend", "toy", *runs, "method=weights")
    folder = Path(told["folder"])
    target = files.read_array(folder / "target.npy")
    parts = np.stack([files.read_array(Path(f"runs/toy/{run}/oof.npy")) for run in sorted(runs)])
    for number, (_, valid) in enumerate(Run(folder).folds()):
        others = np.setdiff1d(np.arange(60), valid)
        learned = files.read_arrays(folder / f"fold{number}-seed0" / "weights.npz")["weights"]
        np.testing.assert_array_equal(learned, mixing.weights(parts[:, others], target[others]))
        mixed = files.read_array(folder / "oof.npy")[valid]
        np.testing.assert_allclose(mixed, (learned[:, None] * parts[:, valid]).sum(0))


def test_a_part_with_more_seeds_makes_another_blend(
    typed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("train", "toy", "line")
    typed("train", "toy", "curve")
    before = typed("blend", "toy", "method=mean")["run"]
    assert typed("predict", "toy", before, "--data", "data/toy")["run"] == before
    typed("train", "toy", "line", "--seeds", "2")
    assert main(["predict", "toy", before, "--data", "data/toy"]) == 2  # it was made of one seed
    assert "blend the runs again" in capsys.readouterr().err
    assert main(["notebook", "toy", before, "--user", "jane"]) == 2
    assert typed("blend", "toy", "method=mean")["run"] != before


def test_a_blend_of_practice_runs_is_a_practice_run(typed: Any) -> None:
    shutil.rmtree("data/toy")
    runs = [typed("train", "toy", name) for name in ("line", "curve")]
    assert all(run["data"]["kind"] == "practice" for run in runs)
    told = typed("blend", "toy", "method=mean")
    assert told["data"]["kind"] == "practice"
    assert told["practice_lb"] > 0


def test_a_competition_s_name_that_is_mistyped_is_no_missing_run(
    typed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in (["blend"], ["compare"], ["compare", "a", "b"], ["blend", "a", "b"]):
        assert main([verb[0], "toyy", *verb[1:]]) == 2
        assert "did you mean 'toy'?" in capsys.readouterr().err


def test_what_cannot_be_blended_is_refused(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blend", "toy"]) == 2
    assert "no two finished runs of toy" in capsys.readouterr().err
    line = typed("train", "toy", "line")["run"]
    half = typed("train", "toy", "curve", "--folds", "0")["run"]
    assert main(["blend", "toy", line]) == 2
    assert "alone is that run" in capsys.readouterr().err
    assert main(["blend", "toy", line, half]) == 2
    assert f"{half} has not answered all rows" in capsys.readouterr().err
    alone = typed("train", "toy", "line", "ridge=1.0", "--folds", "0")["run"]
    assert main(["blend", "toy", alone, half]) == 2
    assert "train two folds of each" in capsys.readouterr().err
    assert not list(Path("runs/toy").glob("blended-*"))
    curve = typed("train", "toy", "curve")["run"]
    assert main(["blend", "toy", line, curve, "folds=2"]) == 2
    assert "has the folds of its runs" in capsys.readouterr().err
    assert main(["blend", "toy", line, curve, "methd=mean"]) == 2
    assert "did you mean 'method'" in capsys.readouterr().err


def test_a_method_that_the_answers_do_not_bear_leaves_nothing_behind(
    typed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [typed("train", "toy", name)["run"] for name in ("line", "curve")]
    before = sorted(Path().rglob("*"))
    assert main(["blend", "toy", *runs, "method=ranks"]) == 2
    assert "method=ranks cannot mix such answers" in capsys.readouterr().err
    assert main(["train", "toy", "mix", "method=ranks", "folds=4"]) == 2
    assert "method=ranks cannot mix answers that are numbers" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_a_knob_of_another_method_is_refused_by_name(
    typed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [typed("train", "toy", name)["run"] for name in ("line", "curve")]
    before = sorted(Path().rglob("*"))
    for verb in (["blend", "toy", *runs], ["train", "toy", "mix"]):
        assert main([*verb, "method=mean", "bags=3"]) == 2
        assert "bags=3 is read by method=greedy alone" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before
    assert typed("blend", "toy", *runs, "method=greedy", "rounds=3")["method"] == "greedy"


DAMAGED = ["run.json", "covered.npy", "scores.json", "fold1-seed0/answers.npz"]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_run_is_left_out_of_a_blend_unless_it_was_named(
    typed: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    runs = [typed("train", "toy", recipe) for recipe in ("line", "curve", "refitted")]
    damaged = min(runs, key=lambda run: run["cv"])  # the best, which the others are held against
    sound = {run["run"] for run in runs} - {damaged["run"]}
    (Path(damaged["folder"]) / name).write_text("{")
    capsys.readouterr()
    assert main(["blend", "toy", "method=mean", "--json"]) == 0
    out, err = capsys.readouterr()
    assert {part["run"] for part in json.loads(out)["parts"]} == sound
    assert err.count("is left out") == 1
    assert name in err
    assert main(["compare", "toy", *sound]) == 0
    assert main(["report", "toy", min(sound)]) == 0
    assert main(["list"]) == 0
    capsys.readouterr()
    for verb in ("blend", "compare"):
        named = main([verb, "toy", damaged["run"], *sound])
        assert named == (0 if name == "covered.npy" else 2)  # which can be made again
    assert name == "covered.npy" or name in capsys.readouterr().err


def test_answers_of_different_shapes_do_not_mix(
    typed: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [typed("train", "toy", name)["run"] for name in ("line", "curve")]
    folder = Path("runs/toy") / runs[1]
    for answers in folder.glob("*/answers.npz"):
        kept = files.read_arrays(answers)
        views = np.repeat(kept["valid_views"], 2, -1)
        wide = {name: np.repeat(kept[name], 2, 1) for name in ("valid", "test")}
        files.write_arrays(answers, **{**kept, **wide, "valid_views": views})
    monkeypatch.setattr("kagglekit.scoring.cross_decided", lambda *_: np.zeros((60, 1)))
    assert main(["blend", "toy", *runs]) == 2
    assert "only answers of one shape mix" in capsys.readouterr().err


TIMES = """
from dataclasses import replace


def load(folder):
    data = tables.regression(folder)
    return replace(data, train=data.train.assign(day=np.arange(60) // 2), target=data.target,
                   train_inputs=data.train.drop(columns="id", errors="ignore").to_numpy(),
                   test_inputs=data.test.drop(columns="id").to_numpy())


competition = replace(competition, load=load, folds=folds.time_ordered("day"))
"""


def test_folds_that_go_forward_in_time_are_blended_from_the_second_on(
    typed: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write(Path.cwd(), TIMES, data=False)
    runs = [typed("train", "toy", name)["run"] for name in ("line", "curve")]
    tasks: list[mixing.Task] = []
    chosen = mixing.choose
    monkeypatch.setattr(mixing, "choose", lambda task: tasks.append(task) or chosen(task))
    told = typed("blend", "toy", *runs)
    assert [fold["fold"] for fold in told["folds"]] == [1, 2]
    assert len(pd.read_csv(told["submission"])) == 30
    compared = typed("compare", "toy", told["run"], runs[0])
    assert compared["rows"] == 28
    own = {run["run"]: run["cv"] for run in compared["runs"]}
    (part,) = (part for part in told["parts"] if part["run"] == runs[0])
    assert part["cv"] == pytest.approx(own[runs[0]])  # of the rows that the blend has answered
    assert len(tasks) == 3  # of two folds, and of all rows
    assert all(len(np.unique(task.dependence.moments)) == len(task.target) / 2 for task in tasks)
    assert main(["blend", "toy", *runs]) == 0
    assert "scored on folds 1, 2: nothing was answered before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "asked", "scored"), [(TIMES, (), 2), (TIMES, ("--folds", "0,1"), 1),
                                  ("", ("--folds", "0,2"), 2)]
)  # fmt: skip
def test_the_test_is_answered_by_a_mix_of_all_rows_that_were_answered(
    typed: Any, more: str, asked: tuple[str, ...], scored: int
) -> None:
    toys.write(Path.cwd(), more, data=False)
    runs = sorted(typed("train", "toy", name, *asked)["run"] for name in ("line", "curve"))
    told = typed("blend", "toy", *runs, "method=weights")
    assert len(told["folds"]) == scored

    def of(name: str) -> np.ndarray:
        return np.stack([files.read_array(Path(f"runs/toy/{run}/{name}.npy")) for run in runs])

    folder = Path(told["folder"])
    (covered,) = np.unique(of("covered"), axis=0)
    learned = files.read_arrays(folder / "all-seed0" / "weights.npz")["weights"]
    target = files.read_array(folder / "target.npy")[covered]
    np.testing.assert_allclose(learned, mixing.weights(of("oof")[:, covered], target))
    mixed = (learned[:, None] * of("test")).sum(0)
    np.testing.assert_allclose(files.read_array(folder / "test.npy"), mixed)
    again = typed("predict", "toy", told["run"], "--data", "data/toy")
    first, second = (pd.read_csv(each["submission"]) for each in (told, again))
    pd.testing.assert_frame_equal(first, second)
