from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kagglekit.blend import Blend, BlendConfig
from kagglekit.config import Config
from kagglekit.errors import UserError
from tests.engine import member, numbers, pictures

RNG = np.random.default_rng


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


def test_a_method_that_classes_do_not_bear_is_refused(tmp_path: Path) -> None:
    of = replace(member(pictures(), tmp_path), oof={"a": np.full((72, 3), 1 / 3)})
    with pytest.raises(UserError, match=r"method=weights cannot mix.*geometric"):
        Blend(needs=("a",)).fit([of], BlendConfig(method="weights"))
    assert not (tmp_path / "weights.npz").exists()


def test_a_file_of_another_mix_is_refused(tmp_path: Path) -> None:
    of = member(numbers(), tmp_path)
    blend = Blend(needs=("a",))
    blend.fit([replace(of, oof={"a": np.zeros((72, 2))})], blend.config)
    two = Blend(needs=("a", "b")).restore(
        tmp_path, blend.config, dict.fromkeys("ab", lambda split: np.zeros((24, 2)))
    )
    with pytest.raises(UserError, match="no mix of 2 such answers"):
        two(of.valid)


def test_a_blend_takes_the_knobs_of_blends_only() -> None:
    with pytest.raises(TypeError, match="Blend takes a BlendConfig, not a Config"):
        Blend(("a", "b"), Config())  # type: ignore[arg-type]
