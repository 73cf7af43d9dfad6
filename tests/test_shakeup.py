"""A public score is worth its rows, and ranks move as far as chance lets them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from kagglekit import metrics, paired, shakeup

RNG = np.random.default_rng


def simulated(*asked: Any, **more: Any) -> dict[str, Any]:
    told = shakeup.simulate(*asked, **more)
    assert told is not None
    return told


def accuracies(*shares: float, rows: int = 2000) -> paired.Judged:
    rng = RNG(0)
    target = np.zeros(rows, np.int64)
    answers = [(rng.permutation(rows) >= share * rows).astype(np.int64) for share in shares]
    return paired.judged(metrics.accuracy, target, answers, pd.DataFrame(index=np.arange(rows)))


def test_runs_far_apart_keep_their_ranks() -> None:
    told = simulated(accuracies(0.95, 0.8, 0.5), 0.3, 0.7, greater_is_better=True)
    assert told["ranks"] == [(1, 1), (2, 2), (3, 3)]
    assert told["moves"] == 0
    assert told["best"] == pytest.approx([1, 0, 0])
    assert told["pick"] == {"cv": 1.0, "public": 1.0, "both": 1.0}


def test_runs_alike_may_trade_places() -> None:
    told = simulated(accuracies(0.9, 0.9, 0.9), 0.1, 0.2, greater_is_better=True)
    assert told["ranks"] == [(1, 3)] * 3
    assert told["moves"] == 2
    assert max(told["best"]) < 0.6


@pytest.mark.parametrize(("public", "trust"), [(0.1, 1 / 11), (1.0, 1 / 2), (4.0, 4 / 5)])
def test_a_public_score_weighs_as_much_as_its_rows(public: float, trust: float) -> None:
    told = simulated(accuracies(0.9, 0.88), public, 1.0, greater_is_better=True)
    assert told["trust"] == pytest.approx(trust, abs=0.04)
    assert told["loss"]["both"] <= min(told["loss"]["cv"], told["loss"]["public"]) + 1e-3


def test_a_lower_error_ranks_first() -> None:
    rng = RNG(0)
    target = rng.standard_normal(500)
    answers = [target + s * rng.standard_normal(500) for s in (0.1, 1.0)]
    scores = paired.judged(metrics.rmse, target, answers, pd.DataFrame(index=np.arange(500)))
    assert simulated(scores, 0.5, 0.5, greater_is_better=False)["ranks"] == [(1, 1), (2, 2)]


def test_a_public_score_of_rows_that_have_none_is_not_drawn() -> None:
    rng, target = RNG(0), np.arange(60) % 2
    rows = pd.DataFrame(index=np.arange(60))
    scores = paired.judged(metrics.roc_auc, target, [rng.random(60), rng.random(60)], rows)
    assert shakeup.simulate(scores, 1 / 60, 0.5, greater_is_better=True) is None
