"""`kagglekit leaks`: planted leaks are told with what to do; sound data get a calm report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kagglekit import cli, leaks
from kagglekit.neighbours import pairs
from tests import planted
from tests.test_alignment import drawn
from tests.test_scoring import numbers

COMPETITION = '''"""Scenes."""
from kagglekit import Competition, fitting, folds, metrics, most_probable, pictures, submission

competition = Competition(
    slug="scenes", load=pictures.classification, folds=folds.{folds}, metric=metrics.accuracy,
    decision=most_probable, submission=submission.labels(), recipes={{"gp": fitting.spline()}},
)
'''


def competition(monkeypatch: pytest.MonkeyPatch, name: str, folds: str) -> None:
    home = Path("mine") / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "__init__.py").write_text(COMPETITION.format(folds=folds))
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", str(Path("mine").resolve()))


def write(folder: Path, train: np.ndarray, test: np.ndarray, names: list[str]) -> None:
    """Folders of PNG files; the class of a training picture is whether its number is odd."""
    for number, (picture, name) in enumerate(zip(train, names, strict=True)):
        home = folder / "train" / ("even", "odd")[number % 2]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(home / f"{name}.png")
    (folder / "test").mkdir()
    for number, picture in enumerate(test):
        Image.fromarray(picture[0]).save(folder / "test" / f"t{number}.png")
    ids = [f"t{number}" for number in range(len(test))]
    pd.DataFrame({"id": ids, "label": "odd"}).to_csv(folder / "sample_submission.csv", index=False)


def report(capsys: pytest.CaptureFixture[str], *typed: str) -> dict[str, Any]:
    assert cli.main(["leaks", *typed, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def told(result: dict[str, Any], topic: str) -> list[dict[str, Any]]:
    return [finding for finding in result["findings"] if finding["topic"] == topic]


def test_copies_names_and_folds_that_part_copies_are_told_with_what_to_do(monkeypatch, capsys):
    competition(monkeypatch, "scenes", "stratified")
    scenes = drawn(150)
    copies, sources, _ = planted.copies(scenes[:100], 10, seed=2)
    train = np.concatenate([scenes[:100], copies[:20]])
    rng = np.random.default_rng(0)
    names = [f"{'ab'[n % 2]}{rng.integers(2**32):08x}" for n in range(len(train))]
    test = np.concatenate([scenes[100:], copies[20:], scenes[:2]])
    write(Path("data/scenes"), train, test, names)

    result = report(capsys, "scenes")
    counts = result["copies"]
    assert counts["train"]["near_pairs"] >= 19
    assert counts["train_and_test"] == {"exact_pairs": 2, "near_pairs": pytest.approx(9, abs=1)}
    inside, *others = told(result, "copies")
    assert inside["level"] == "leak"
    assert "folds part" in inside["sentence"]
    assert "folds.grouped_by_file(" in inside["advice"]
    assert "answers are known" in others[-1]["sentence"]
    (name,) = told(result, "name")
    assert name["level"] == "leak"
    assert result["shortcuts"]["name"]["low"] > 0.9
    assert told(result, "order")[0]["level"] == "fine"  # class by class, as folders are read
    folder = Path(result["folder"])
    assert result["files"] == ["leaks.json", "groups.csv", "pairs.csv", "pairs.png"]
    Image.open(folder / "pairs.png").verify()
    pairs = pd.read_csv(folder / "pairs.csv")
    assert list(pairs["kind"][:2]) == ["exact copy", "exact copy"]
    groups = pd.read_csv(folder / "groups.csv").set_index("id")["group"]
    kept = [groups[names[s]] == groups[names[100 + n]] for n, s in enumerate(sources[:20])]
    assert np.mean(kept) >= 0.95


def test_sound_pictures_get_a_calm_report_on_the_screen(monkeypatch, capsys):
    competition(monkeypatch, "scenes", "stratified")
    scenes = drawn(120)
    rng = np.random.default_rng(1)
    write(Path("data/scenes"), scenes[:80], scenes[80:], [f"{n:08x}" for n in
          rng.integers(2**32, size=80)])  # fmt: skip
    assert cli.main(["leaks", "scenes"]) == 0
    shown = capsys.readouterr().out
    assert "nothing to worry about" in shown
    assert "no test row is a copy of a training row" in shown
    assert "test rows look like training rows" in shown
    assert "!" not in shown


def test_sorted_tables_and_other_test_rows_are_told_for_what_they_are(capsys):
    assert cli.main(["practice", "fit_1d"]) == 0
    capsys.readouterr()
    folder = Path("data/fit_1d.practice")
    test = pd.read_csv(folder / "test.csv")
    test["x"] += 5
    test.to_csv(folder / "test.csv", index=False)
    train = pd.read_csv(folder / "train.csv").sort_values("x")
    train["id"] = range(len(train))
    train.to_csv(folder / "train.csv", index=False)
    result = report(capsys, "fit_1d", "--data", str(folder))
    (name,), (origin,) = told(result, "name"), told(result, "train and test")
    assert name["level"] == "fine"
    assert "sorted by x" in name["sentence"]
    assert origin["level"] in ("note", "leak")
    assert "most of all by x" in origin["sentence"]
    assert result["adversarial"]["columns"] == ["x"]


def test_weights_for_a_table_are_refused_in_one_sentence(capsys, tmp_path):
    assert cli.main(["leaks", "fit_1d", "--weights", str(tmp_path)]) == 2
    assert "the rows of fit_1d are no pictures" in capsys.readouterr().err


def test_no_text_of_the_pairs_is_computed_by_a_spreadsheet():
    data = replace(numbers(2), target=np.array([0, 1]), classes=("=1+1", "-2"))
    found = pairs(np.array([0]), np.array([1]), np.zeros(1), np.zeros(1))
    table = leaks._table(SimpleNamespace(data=data, train=2), [("near copy", found, 0)])
    assert table["left_target"].tolist() == ["'=1+1"]
    assert table["right_target"].tolist() == ["-2"]


TABLE = '''"""A table."""
from kagglekit import Competition, fitting, folds, metrics, submission, tables

competition = Competition(
    slug="table", load=tables.regression, folds=folds.{folds}, metric=metrics.rmse,
    submission=submission.numbers(), recipes={{"gp": fitting.spline()}},
)
'''


def table(monkeypatch: pytest.MonkeyPatch, folds: str, **columns: np.ndarray) -> None:
    """A competition of 200 rows in train and 100 in test, of these columns and two of noise."""
    home = Path("mine/table")
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(TABLE.format(folds=folds))
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", str(Path("mine").resolve()))
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"id": np.arange(300), **columns})
    rows[["a", "b"]] = rng.standard_normal((300, 2))
    rows["y"] = rng.standard_normal(300)
    folder = Path("data/table")
    folder.mkdir(parents=True)
    rows[:200].to_csv(folder / "train.csv", index=False)
    rows[200:].drop(columns="y").to_csv(folder / "test.csv", index=False)
    rows.loc[200:, ["id", "y"]].to_csv(folder / "sample_submission.csv", index=False)


def test_the_time_that_folds_go_by_is_no_column_to_drop(monkeypatch, capsys):
    table(monkeypatch, "time_ordered('day')", day=np.arange(300) // 2)
    result = report(capsys, "table")
    (origin,) = told(result, "train and test")
    assert origin["level"] == "fine"
    assert "without day, in whose order folds go forward" in origin["sentence"]
    assert not any("drop" in finding["advice"] for finding in result["findings"])
    assert not told(result, "groups")[0]["advice"]
    assert told(result, "order")[0]["level"] == told(result, "name")[0]["level"] == "fine"


def test_what_drifts_with_time_is_told_and_not_called_a_leak(monkeypatch, capsys):
    table(monkeypatch, "time_ordered('day')", day=np.arange(300) // 2, trend=np.arange(300) ** 2)
    (origin,) = told(report(capsys, "table"), "train and test")
    assert origin["level"] == "note"
    assert "most of all by trend" in origin["sentence"]
    assert "test comes later" in origin["advice"]


@pytest.mark.parametrize(
    ("first", "advice"), [(50, "time_ordered('who')"), (-99, "grouped('who')")]
)
def test_a_column_whose_names_are_others_in_test_names_groups(monkeypatch, capsys, first, advice):
    who = np.concatenate(
        [np.random.default_rng(1).integers(0, 50, 200), first + np.arange(100) // 4]
    )
    table(monkeypatch, "shuffled", who=who, kind=np.arange(300) % 7)
    (group,) = (one for one in told(report(capsys, "table"), "groups") if "who" in one["sentence"])
    assert group["level"] == "note"
    assert f"folds.{advice}" in group["advice"]


def test_rows_that_repeat_in_all_but_the_id_are_told_with_their_targets(monkeypatch, capsys):
    table(monkeypatch, "shuffled")
    train = pd.read_csv("data/table/train.csv")
    test = pd.read_csv("data/table/test.csv")
    train.loc[10:19, ["a", "b"]] = train.loc[:9, ["a", "b"]].to_numpy()
    test.loc[:4, ["a", "b"]] = train.loc[100:104, ["a", "b"]].to_numpy()
    train.to_csv("data/table/train.csv", index=False)
    test.to_csv("data/table/test.csv", index=False)
    result = report(capsys, "table")
    assert result["copies"]["train"]["exact_pairs"] == 10
    assert result["copies"]["train_and_test"]["exact_pairs"] == 5
    assert result["copies"]["other_target"] == 10
    assert any("have different targets" in one["sentence"] for one in told(result, "copies"))
