from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kagglekit.blend import Blend, weights
from kagglekit.errors import UserError
from tests.engine import member, numbers, pictures

RNG = np.random.default_rng


def noisy(target: np.ndarray, *deviations: float) -> np.ndarray:
    rng = RNG(1)
    return np.stack([target + s * rng.standard_normal(target.shape) for s in deviations])


def test_weights_are_shares() -> None:
    target = RNG(0).standard_normal((200, 3))
    found = weights(noisy(target, 1.0, 2.0, 0.5), target)
    assert found.shape == (3, 3)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(0), 1)


def test_a_blend_is_no_worse_than_its_best_part() -> None:
    target = RNG(0).standard_normal((200, 2))
    answers = noisy(target, 1.0, 0.7, 3.0)
    blended = np.einsum("rno,ro->no", answers, weights(answers, target))
    best = ((answers - target) ** 2).mean(1).min(0)
    assert (((blended - target) ** 2).mean(0) <= best + 1e-9).all()


def test_independent_errors_weigh_by_inverse_variance() -> None:
    target = RNG(0).standard_normal((20000, 1))
    found = weights(noisy(target, 1.0, 2.0), target)
    np.testing.assert_allclose(found[:, 0], [0.8, 0.2], atol=0.02)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_weights_do_not_depend_on_units(scale: float) -> None:
    target = RNG(0).standard_normal((100, 1))
    answers = noisy(target, 1.0, 1.5)
    np.testing.assert_allclose(weights(answers * scale, target * scale), weights(answers, target))


def test_a_perfect_part_takes_it_all() -> None:
    target = RNG(0).standard_normal((50, 1))
    np.testing.assert_array_equal(weights(noisy(target, 0.0, 1.0), target)[:, 0], [1, 0])


def test_blending_a_run_with_itself_changes_nothing(tmp_path: Path) -> None:
    of = member(numbers(), tmp_path)
    own = of.train.target + 0.1 * RNG(0).standard_normal((72, 2))  # type: ignore[operator]
    blend = Blend(needs=("a", "b"))
    blend.fit([replace(of, oof={"a": own, "b": own})], blend.config)
    answer = RNG(2).standard_normal((24, 2))
    predict = blend.restore(tmp_path, blend.config, dict.fromkeys("ab", lambda split: answer))
    np.testing.assert_allclose(predict(of.valid), answer)


def test_targets_of_one_column_may_be_flat(tmp_path: Path) -> None:
    data = replace(numbers(outputs=1), target=numbers(outputs=1).target[:, 0])
    of = member(data, tmp_path)
    own = of.train.target[:, None] + 0.1  # type: ignore[index]
    Blend(needs=("a",)).fit([replace(of, oof={"a": own})], Blend(needs=("a",)).config)
    assert (tmp_path / "weights.npz").exists()


def test_classes_are_not_blended_as_numbers(tmp_path: Path) -> None:
    of = replace(member(pictures(), tmp_path), oof={"a": np.zeros((72, 3))})
    with pytest.raises(UserError, match="classes"):
        Blend(needs=("a",)).fit([of], Blend(needs=("a",)).config)
    assert not (tmp_path / "weights.npz").exists()
