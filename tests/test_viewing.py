"""A view that changes what a class means is caught by its own numbers, and dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kagglekit import files, metrics, most_probable, viewing
from kagglekit.cli import main
from kagglekit.errors import UserError
from kagglekit.run import Answers, Key, Run
from tests.test_scoring import competition, numbers

COMPETITION = '''"""Digits of 8 × 8 pixels."""

import numpy as np
import pandas as pd
from torch import nn

from kagglekit import (
    Competition, Data, Network, NetworkConfig, folds, metrics, most_probable, multiclass,
    submission, views,
)


def load(folder):
    saved = np.load(folder / "digits.npz")
    train, test = (pd.DataFrame({"id": saved[part]}) for part in ("train_id", "test_id"))
    sample = pd.DataFrame({"id": saved["test_id"].astype(str), "label": "0"})
    names = tuple(str(digit) for digit in range(10))
    return Data(train, test, saved["label"], sample, names, saved["train"], saved["test"])


def model(config, task):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def seen(config):
    return (views.original, views.turned(2))


competition = Competition(
    slug="digits",
    load=load,
    folds=folds.stratified,
    metric=metrics.accuracy,
    decision=most_probable,
    submission=submission.labels(),
    recipes={
        "mlp": Network(
            lambda split, config: split.tensors(), model, multiclass,
            NetworkConfig(folds=3, epochs=15, lr=1e-2, batch_size=64, compile="off",
                          precision="fp32", engine="solo", score_every=0),
            views=seen,
        ),
    },
)
'''


def digits(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project of 500 digits to learn from and 60 to answer."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = (bunch.images * 15).astype(np.uint8)[:, None]
    home, data = project / "competitions" / "digits", project / "data" / "digits"
    home.mkdir(parents=True)
    data.mkdir(parents=True)
    (home / "__init__.py").write_text(COMPETITION)
    np.savez(
        data / "digits.npz", train=pixels[:500], test=pixels[500:560],
        label=bunch.target[:500].astype(np.int64), train_id=np.arange(500),
        test_id=np.arange(500, 560),
    )  # fmt: skip
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_rotated_six_is_caught_by_its_own_numbers(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits(project, monkeypatch)
    every = typed(capsys, "train", "digits")
    chosen = typed(capsys, "train", "digits", "views=auto")
    by_name = {view["name"]: view for view in chosen["views"]}
    upside_down = by_name["turned(2)"]
    assert not upside_down["kept"]
    assert upside_down["gain"] < 0
    assert upside_down["interval"][1] < 0
    assert upside_down["probability"] < 0.01
    assert by_name["original"]["kept"]
    assert chosen["cv"] > every["cv"] + 0.02
    assert all(view["kept"] for view in every["views"])

    # the test is answered by the kept views alone, now and by a restored run
    again = typed(capsys, "predict", "digits", chosen["run"], "--data", "data/digits")
    first, second = (pd.read_csv(told["submission"]) for told in (chosen, again))
    pd.testing.assert_frame_equal(first, second)
    assert main(["train", "digits", "views=auto"]) == 0
    assert "turned(2)  dropped" in capsys.readouterr().out

    # with another list of kept views, or none, others would answer
    kept = Path(chosen["folder"]) / "views.json"
    told = kept.read_bytes()
    everything = [view["name"] for view in chosen["views"]]
    edited = {**json.loads(told), "kept": everything}
    for fault in ("was changed after the run was scored: delete it", "is gone"):
        files.write_json(kept, edited)
        if fault == "is gone":
            kept.unlink()
        for lost in (["predict", "digits", chosen["run"], "--data", "data/digits"],
                     ["notebook", "digits", chosen["run"], "--user", "jane"],
                     ["compare", "digits", chosen["run"], every["run"]]):  # fmt: skip
            assert main(lost) == 2
            assert f"views.json {fault}" in capsys.readouterr().err
    assert typed(capsys, "train", "digits", "views=auto")["cv"] == chosen["cv"]
    assert kept.read_bytes() == told

    # what more seeds would choose from anew is needed for as long as the run is
    (Path(chosen["folder"]) / "fold0-seed0/test-views.npy").unlink()
    assert main(["compare", "digits", chosen["run"], every["run"]]) == 2
    assert "fold0-seed0/test-views.npy" in capsys.readouterr().err


def judged() -> Any:
    return replace(competition(decision=most_probable), metric=metrics.accuracy)


def member(rows: list[int], *views: Any) -> Answers:
    """Views that are sure of these classes, of two; the test is answered alike."""
    seen = np.eye(2)[np.array(views)]
    names = np.array([f"view{number}" for number in range(len(views))])
    return Answers(np.array(rows), seen.mean(0), np.zeros((3, 2)), seen, names)


def rows_of(target: list[int]) -> Any:
    return replace(numbers(), classes=("a", "b"), target=np.array(target))


def test_the_rows_of_a_fold_do_not_choose_the_views_that_answer_them() -> None:
    right, wrong = [0, 1, 0], [1, 0, 1]
    members = {
        Key(0, 0): member([0, 1, 2], wrong, right),
        Key(1, 0): member([3, 4, 5], right, wrong),
    }
    choice = viewing.choose(judged(), rows_of([0, 1, 0, 0, 1, 0]), members, "probabilities")
    # each fold is answered by the view that is right on the other one, and so is all wrong
    assert choice.by_fold == {0: ("view0",), 1: ("view1",)}


def test_a_row_that_repeated_folds_validate_twice_has_no_say_in_either() -> None:
    right, wrong = [0, 1, 0], [1, 0, 1]
    members = {
        Key(0, 0): member([0, 1, 2], wrong, right),
        Key(1, 0): member([3, 4, 5], right, wrong),
        Key(2, 0): member([0, 1, 2], wrong, right),
        Key(3, 0): member([3, 4, 5], right, wrong),
    }
    choice = viewing.choose(judged(), rows_of([0, 1, 0, 0, 1, 0]), members, "probabilities")
    first, second = ("view0",), ("view1",)
    assert choice.by_fold == {0: first, 1: second, 2: first, 3: second}


def test_views_that_change_nothing_are_dropped_and_the_first_stays() -> None:
    same = [0, 1, 0]
    members = {Key(n, 0): member([3 * n, 3 * n + 1, 3 * n + 2], same, same, same) for n in (0, 1)}
    choice = viewing.choose(judged(), rows_of([0, 1, 0, 0, 1, 0]), members, "probabilities")
    assert choice.kept == ("view0",)


def test_views_that_help_stay_where_it_is_more_than_luck() -> None:
    target = [0, 1] * 60
    mend = np.array(target)
    poor = mend.copy()
    poor[:20] = 1 - poor[:20]

    def chosen(first: np.ndarray) -> tuple[str, ...]:
        rows = np.arange(120)
        members = {Key(n, 0): member(list(rows[n::2]), first[n::2], mend[n::2]) for n in (0, 1)}
        data = replace(numbers(120), classes=("a", "b"), target=mend)
        return viewing.choose(judged(), data, members, "probabilities").kept

    assert chosen(poor) == ("view1",)
    lucky = mend.copy()
    lucky[0] = 1 - lucky[0]  # one row is no evidence
    assert chosen(lucky) == ("view0",)


def test_one_fold_alone_keeps_all_views() -> None:
    members = {Key(0, 0): member([0, 1, 2], [0, 1, 0], [1, 0, 1])}
    choice = viewing.choose(judged(), rows_of([0, 1, 0, 0, 1, 0]), members, "probabilities")
    assert choice.kept == choice.by_fold[0] == ("view0", "view1")


@pytest.mark.parametrize(
    "told", [{}, {"kept": ["view9"]}, {"kept": []}, {"kept": "view0"}, [], {"kept": [1]}]
)
def test_a_views_json_that_no_run_writes_is_refused(told: object, tmp_path: Path) -> None:
    (tmp_path / "views.json").write_text(json.dumps(told))
    run = Run(tmp_path)
    members: Mapping[Key, Answers] = {Key(0, 0): member([0, 1, 2], [0, 1, 0], [1, 0, 1])}
    (tmp_path / "fold0-seed0").mkdir()
    run.keep_views(Key(0, 0), np.zeros((2, 3, 2)))
    with pytest.raises(UserError, match="train it again"):
        viewing.as_kept(run, members, "probabilities")
