"""A finished run answers as it did when it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kagglekit import Fitted, pipeline, problem
from kagglekit.errors import UserError
from kagglekit.progress import progress
from kagglekit.run import Key, Run
from tests import toys


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)
    return project


def fitted(recipe: str, **more: object) -> Fitted:
    request = pipeline.Request("toy", recipe, **more)  # type: ignore[arg-type]
    result = pipeline.train(request, progress())
    return Fitted(problem.find("toy"), Run(Path(result["folder"])))


def answers(run: Fitted, keys: Key | None = None) -> np.ndarray:
    data = problem.load(run.competition, Path("data/toy"))
    test = data.split(np.arange(len(data.test)), "test")
    return (run.whole() if keys is None else run.predictor(keys))(test)


@pytest.mark.parametrize("recipe", ["line", "refitted", "mix"])
def test_a_run_answers_the_test_as_it_did(recipe: str) -> None:
    run = fitted(recipe, seeds=2)
    np.testing.assert_array_equal(answers(run), np.load(run.run.folder / "test.npy"))


def test_a_member_answers_as_it_did() -> None:
    run = fitted("line")
    kept = run.run.answers(Key(2, 0))
    np.testing.assert_array_equal(answers(run, Key(2, 0)), kept.test)


def test_a_fit_on_all_rows_that_was_not_made_is_the_mean_of_its_seed_s_folds() -> None:
    run = fitted("line", seeds=2)
    folds = [run.run.answers(Key(fold, 1)).test for fold in range(3)]
    np.testing.assert_allclose(answers(run, Key(None, 1)), np.mean(folds, axis=0))


def test_only_members_that_were_scored_answer() -> None:
    run = fitted("line", folds=(0,))
    (run.run.folder / "fold1-seed0").mkdir()
    assert run.keys == [Key(0, 0)]


def test_nothing_is_restored_before_it_is_asked() -> None:
    run = fitted("line")
    (run.run.folder / "fold0-seed0" / "learned.npz").unlink()
    predictor = run.predictor(Key(0, 0))
    data = problem.load(run.competition, Path("data/toy"))
    with pytest.raises(UserError, match=r"learned\.npz"):
        predictor(data.split(np.arange(2), "test"))


def test_knobs_that_the_recipe_no_longer_has_are_named_with_their_file() -> None:
    run = fitted("line")
    path = run.run.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rigde": 1}))
    with pytest.raises(UserError, match=r"config\.json does not fit .*did you mean 'ridge'"):
        answers(run)


def test_a_needed_run_that_is_gone_is_named() -> None:
    run = fitted("mix")
    needed = run.run.folder.with_name(run.manifest["needs"]["line"])
    needed.rename(needed.with_name("moved"))
    with pytest.raises(UserError, match=f"needs run {needed.name}"):
        answers(run)
