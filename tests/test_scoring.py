"""OOF answers are the mean of what did not see the row, and so are the scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kagglekit import Competition, Data, folds, mean, metrics, most_probable, scoring, submission
from kagglekit.errors import UserError
from kagglekit.run import Answers, Key
from kagglekit.scoring import FoldAnswers

RNG = np.random.default_rng(0)


def numbers(rows: int = 6) -> Data:
    ids = [str(row) for row in range(rows)]
    return Data(
        train=pd.DataFrame({"id": ids}),
        test=pd.DataFrame({"id": ["8", "9", "07"]}),
        target=np.arange(rows, dtype=float)[:, None],
        sample=pd.DataFrame({"id": ["07", "8", "9"], "y": ["0", "0", "0"]}),
    )


def competition(**more: Any) -> Competition:
    return Competition(
        slug="s",
        load=lambda folder: numbers(),
        folds=folds.shuffled,
        metric=metrics.rmse,
        submission=submission.numbers(),
        recipes={},
        **more,
    )


def member(rows: list[int], valid: list[float], views: list[list[float]] | None = None) -> Answers:
    names = np.array([f"view{n}" for n in range(len(views or []))], dtype=str)
    by_view = np.array(views or np.zeros((0, len(rows))))[..., None]
    return Answers(np.array(rows), np.array(valid)[:, None], np.zeros((3, 1)), by_view, names)


def test_seeds_are_combined_and_folds_are_in_order() -> None:
    members = {
        Key(1, 0): member([2, 3], [1, 1]),
        Key(0, 1): member([0, 1], [4, 6]),
        Key(0, 0): member([0, 1], [2, 2]),
        Key(None, 0): member([], []),
    }
    first, second = scoring.by_fold(members, mean)
    assert (first.fold, second.fold) == (0, 1)
    np.testing.assert_array_equal(first.answers[:, 0], [3, 4])
    np.testing.assert_array_equal(first.rows, [0, 1])


def test_oof_has_one_entry_a_row_and_says_which_are_covered() -> None:
    drawn = [
        FoldAnswers(0, np.array([4, 1]), np.array([[1.0], [2.0]])),
        FoldAnswers(1, np.array([1, 0]), np.array([[4.0], [8.0]])),
    ]
    oof = scoring.out_of_fold(drawn, 6)
    np.testing.assert_array_equal(oof.answers[:, 0], [8, 3, 0, 0, 1, 0])
    np.testing.assert_array_equal(oof.covered, [1, 1, 0, 0, 1, 0])


def test_answers_of_any_shape_keep_it() -> None:
    masks = RNG.random((2, 3, 4, 4)).astype(np.float32)
    drawn = [FoldAnswers(n, np.array([0, 1, n + 2]), masks[n]) for n in range(2)]
    oof = scoring.out_of_fold(drawn, 5)
    assert oof.answers.shape == (5, 4, 4)
    assert oof.answers.dtype == np.float32
    np.testing.assert_allclose(oof.answers[0], masks[:, 0].mean(0), rtol=1e-6)


def test_the_cv_is_of_all_rows_together_and_not_the_folds_mean() -> None:
    drawn = [
        FoldAnswers(0, np.array([0, 1]), np.array([[0.0], [1.0]])),
        FoldAnswers(1, np.array([2, 3]), np.array([[4.0], [5.0]])),
    ]
    scores = scoring.score_folds(competition(), numbers(), drawn)
    assert [fold["score"] for fold in scores["folds"]] == [0, 2]
    assert scores["mean"] == 1
    assert scores["std"] == pytest.approx(np.sqrt(2))
    assert scores["cv"] == pytest.approx(np.sqrt(2))
    assert scores["coverage"] == pytest.approx(4 / 6)


def test_one_fold_has_no_spread() -> None:
    drawn = [FoldAnswers(0, np.array([0, 1]), np.array([[0.0], [1.0]]))]
    assert scoring.score_folds(competition(), numbers(), drawn)["std"] == 0


def test_a_decision_never_learns_from_the_rows_it_is_scored_on() -> None:
    learned: list[set[float]] = []

    def spy(target: np.ndarray, answers: np.ndarray) -> Any:
        learned.append(set(target[:, 0].tolist()))
        return lambda answers: answers

    drawn = [FoldAnswers(n, np.array([2 * n, 2 * n + 1]), np.zeros((2, 1))) for n in range(3)]
    scoring.score_folds(competition(decision=spy), numbers(), drawn)
    assert learned == [{2.0, 3.0, 4.0, 5.0}, {0.0, 1.0, 4.0, 5.0}, {0.0, 1.0, 2.0, 3.0}]
    learned.clear()
    scoring.score_member(competition(decision=spy), numbers(), np.array([1]), np.zeros((1, 1)))
    assert learned == [set()]


def test_a_view_s_gain_is_positive_where_it_helps() -> None:
    views = [[0.0, 1.0], [5.0, 5.0]]
    members = {Key(0, 0): member([0, 1], [2.5, 3.0], views)}
    good, bad = scoring.score_views(competition(), numbers(), members, "probabilities")
    assert good["name"] == "view0"
    assert good["alone"] == 0
    assert good["gain"] > 0 > bad["gain"]
    assert bad["without"] == 0


def test_a_single_view_has_no_gain() -> None:
    members = {Key(0, 0): member([0, 1], [0, 1], [[0.0, 1.0]])}
    assert scoring.score_views(competition(), numbers(), members, "probabilities") == []


def test_a_solution_is_joined_by_id_and_may_hold_more(tmp_path: Path) -> None:
    path = tmp_path / "solution.csv"
    path.write_text("Usage,y,id\nPublic,3,07\nPublic,1,8\nPrivate,2,9\nPrivate,5,77\n")
    np.testing.assert_array_equal(scoring.solution(numbers(), path)[:, 0], [1, 2, 3])


@pytest.mark.parametrize(
    ("content", "words"),
    [("id,y\n8,1\n9,1\n", "no answer for id 07"), ("id,z\n07,1\n", "lacks the column 'y'")],
)
def test_a_solution_that_lacks_something_is_named(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "solution.csv").write_text(content)
    with pytest.raises(UserError, match=words):
        scoring.solution(numbers(), tmp_path / "solution.csv")


def test_a_solution_of_classes_gives_positions(tmp_path: Path) -> None:
    data = replace(numbers(), classes=("cat", "dog"), target=np.zeros(6, np.int64))
    (tmp_path / "solution.csv").write_text("id,y\n07,dog\n8,cat\n9,dog\n")
    assert scoring.solution(data, tmp_path / "solution.csv").tolist() == [0, 1, 1]
    (tmp_path / "solution.csv").write_text("id,y\n07,dog\n8,cow\n9,dog\n")
    with pytest.raises(UserError, match="unknown class 'cow'"):
        scoring.solution(data, tmp_path / "solution.csv")


def test_classes_are_scored_by_what_was_decided() -> None:
    data = replace(numbers(), classes=("a", "b"), target=np.array([0, 1, 0, 1, 0, 1]))
    judged = replace(competition(decision=most_probable), metric=metrics.accuracy)
    answers = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    score = scoring.score_member(judged, data, np.array([0, 1, 2]), answers)
    assert score == pytest.approx(2 / 3)


def test_every_seed_is_scored_alone_and_their_mean_has_an_interval() -> None:
    members = {
        Key(0, 0): member([0, 1, 2], [0, 1, 2]), Key(1, 0): member([3, 4, 5], [3, 4, 5]),
        Key(0, 1): member([0, 1, 2], [2, 3, 4]), Key(1, 1): member([3, 4, 5], [5, 6, 7]),
        Key(0, 2): member([0, 1, 2], [9, 9, 9]),  # has not answered all folds
    }  # fmt: skip
    told = scoring.score_seeds(competition(), numbers(), members)
    assert told["scores"] == [{"seed": 0, "score": 0.0}, {"seed": 1, "score": 2.0}]
    assert (told["mean"], told["std"]) == (1.0, pytest.approx(np.sqrt(2)))
    low, high = told["interval"]
    assert low == pytest.approx(1 - 12.706, abs=0.01)
    assert high == pytest.approx(1 + 12.706, abs=0.01)


def test_one_seed_has_no_interval() -> None:
    members = {Key(0, 0): member([0, 1], [0, 1])}
    told = scoring.score_seeds(competition(), numbers(), members)
    assert (told["mean"], told["std"], told["interval"]) == (0.0, None, None)


def test_a_view_s_gain_has_an_interval() -> None:
    right, wrong = [0.0, 1, 2], [2.0, 3, 4]
    members = {
        Key(0, 0): member([0, 1, 2], right, [right, wrong]),
        Key(1, 0): member([3, 4, 5], [3, 4, 5], [[3.0, 4, 5], [5.0, 6, 8]]),
    }
    helps, hurts = scoring.score_views(competition(), numbers(), members, "probabilities")
    assert helps["gain"] > 0 > hurts["gain"]
    assert hurts["interval"][0] <= hurts["gain"] <= hurts["interval"][1] < 0
    assert (helps["probability"], hurts["probability"]) == (1.0, 0.0)


def test_calibration_is_told_of_probabilities_and_of_nothing_else() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((400, 2))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = (rng.random(400) < honest[:, 1]).astype(np.int64)
    sharp = honest**4 / (honest**4).sum(1, keepdims=True)
    data = replace(numbers(400), classes=("a", "b"), target=target)
    drawn = [FoldAnswers(n, np.arange(n, 400, 4), sharp[n::4]) for n in range(4)]
    told = scoring.score_calibration(competition(), data, drawn)
    assert told is not None
    assert told["temperature"] == pytest.approx(4, rel=0.3)
    assert told["after"]["ece"] < told["before"]["ece"] / 2
    assert told["after"]["log_loss"] < told["before"]["log_loss"]
    assert scoring.score_calibration(competition(), numbers(400), drawn[:2]) is None
    assert scoring.score_calibration(competition(), data, drawn[:1]) is None


def test_the_temperature_of_a_fold_is_learned_from_the_others() -> None:
    target = np.zeros(40, np.int64)
    sure = np.tile([0.8, 0.2], (40, 1))
    sure[::2] = [0.2, 0.8]  # all of fold 0 is wrong, and all of fold 1 right
    data = replace(numbers(40), classes=("a", "b"), target=target)
    drawn = [FoldAnswers(n, np.arange(n, 40, 2), sure[n::2]) for n in range(2)]
    told = scoring.score_calibration(competition(), data, drawn)
    assert told is not None
    # what suits one fold does not suit the other: a temperature that had seen both would not lose
    assert told["after"]["log_loss"] > told["before"]["log_loss"] + 0.5
