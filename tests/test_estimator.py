from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kagglekit.config import Config
from kagglekit.estimator import Estimator
from tests.engine import member, numbers


@dataclass
class Mean:
    """Answers with the mean target and a random number; counts its fits."""

    seen: list[tuple[np.ndarray, np.ndarray, int]] = field(default_factory=list)

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        self.seen.append((x, y, seed))
        return {"mean": y.mean(0), "drawn": np.random.default_rng(seed).random(1)}

    def predict(self, state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        return np.tile(state["mean"] + state["drawn"], (len(x), 1))


def recipe(learner: Mean) -> Estimator[Config]:
    return Estimator(lambda config: learner, Config())


def test_what_was_learned_answers_after_a_restart(tmp_path: Path) -> None:
    learner, of = Mean(), member(numbers(), tmp_path)
    recipe(learner).fit([of], Config())
    answers = recipe(Mean()).restore(tmp_path, Config(), {})(of.valid)
    assert answers.shape == (24, 2)
    drawn = np.random.default_rng(learner.seen[0][2]).random(1)
    np.testing.assert_allclose(answers[0], of.train.target.mean(0) + drawn)  # type: ignore


def test_only_training_rows_reach_the_learner(tmp_path: Path) -> None:
    learner, of = Mean(), member(numbers(), tmp_path)
    recipe(learner).fit([of], Config())
    x, y, _ = learner.seen[0]
    assert x.shape == (72, 3)
    np.testing.assert_array_equal(y, numbers().target[:72])


def test_a_finished_member_is_not_fitted_again(tmp_path: Path) -> None:
    learner, of = Mean(), member(numbers(), tmp_path)
    recipe(learner).fit([of], Config())
    recipe(learner).fit([of], Config())
    assert len(learner.seen) == 1


def test_members_have_seeds_of_their_own_that_nothing_else_changes(tmp_path: Path) -> None:
    learner = Mean()
    facts = [{"name": "fold0"}, {"name": "fold1"}, {"name": "fold0", "seed": 1}, {"name": "fold0"}]
    of = [member(numbers(), tmp_path / str(i), **fact) for i, fact in enumerate(facts)]  # type: ignore
    recipe(learner).fit(of, Config())
    first, second, third, again = (seed for _, _, seed in learner.seen)
    assert first == again
    assert len({first, second, third}) == 3


def test_targets_of_one_column_reach_the_learner_as_a_column(tmp_path: Path) -> None:
    learner, data = Mean(), numbers(outputs=1)
    of = member(replace(data, target=data.target[:, 0]), tmp_path)
    recipe(learner).fit([of], Config())
    assert learner.seen[0][1].shape == (72, 1)
