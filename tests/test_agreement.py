"""How CV and LB agree, and which two submissions are worth ticking."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kagglekit import agreement, decisions, metrics
from kagglekit.agreement import Scored
from kagglekit.run import Run


def scored(cv: list[float], public: list[float], **more) -> list[Scored]:
    return [Scored(f"run{i}", Path(f"run{i}.csv"), i, *pair, **more)
            for i, pair in enumerate(zip(cv, public, strict=True))]  # fmt: skip


def test_one_submission_says_nothing_of_agreement() -> None:
    assert agreement.compare(scored([0.9], [0.8]), True) is None


def test_correlation_and_gap_are_those_of_the_textbook() -> None:
    told = agreement.compare(scored([0.90, 0.92, 0.95], [0.88, 0.91, 0.925]), True)
    assert told is not None
    gaps = np.array([-0.02, -0.01, -0.025])
    assert told["pearson"] == pytest.approx(
        np.corrcoef([0.9, 0.92, 0.95], [0.88, 0.91, 0.925])[0, 1]
    )
    assert told["spearman"] == pytest.approx(1)
    assert told["gap"] == pytest.approx(gaps.mean())
    assert told["gap_error"] == pytest.approx(gaps.std(ddof=1) / math.sqrt(3))
    assert (told["public_error"], told["worse"]) == (None, None)


def test_scores_that_do_not_vary_have_no_correlation() -> None:
    told = agreement.compare(scored([0.9, 0.8], [0.5, 0.5]), True)
    assert told is not None
    assert (told["pearson"], told["spearman"]) == (None, None)


@pytest.mark.parametrize(("greater", "public", "worse"), [
    (True, [0.80, 0.81], True), (True, [0.93, 0.94], False), (True, [0.89, 0.90], False),
    (False, [0.99, 1.00], True), (False, [0.80, 0.81], False),
])  # fmt: skip
def test_lb_is_called_worse_only_beyond_the_chance_in_a_public_score(
    greater: bool, public: list[float], worse: bool
) -> None:
    told = agreement.compare(scored([0.90, 0.91], public, public_error=0.01), greater)
    assert told is not None
    assert told["worse"] is worse


def test_the_error_of_a_public_score_is_that_of_a_sample_of_its_rows(project: Path) -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 4000)
    right = rng.random(4000) < 0.9
    answers = np.where(right, target, 1 - target)
    run = Run(project)
    np.save("oof.npy", answers)
    np.save("covered.npy", np.ones(4000, bool))
    data = SimpleNamespace(
        train=pd.DataFrame({"id": range(4000)}), test=pd.DataFrame({"id": range(1000)}),
        target=target,
    )  # fmt: skip
    competition = SimpleNamespace(
        public_share=0.25, metric=metrics.accuracy, decision=decisions.as_is
    )
    wanted = math.sqrt(0.9 * 0.1 / 250)
    assert agreement.public_error(competition, data, run) == pytest.approx(wanted, rel=0.25)
    unknown = SimpleNamespace(**{**vars(competition), "public_share": None})
    assert agreement.public_error(unknown, data, run) is None


def write(name: str, column: list[object]) -> Path:
    pd.DataFrame({"id": range(len(column)), "y": column}).to_csv(name, index=False)
    return Path(name)


def test_the_difference_of_names_is_the_share_of_rows_and_of_numbers_their_distance() -> None:
    names = write("a.csv", ["x", "y", "x", "y"]), write("b.csv", ["x", "x", "x", "y"])
    assert agreement.difference(*names) == 0.25
    whole = write("c.csv", [1, 2, 3, 1]), write("d.csv", [1, 2, 3, 2])
    assert agreement.difference(*whole) == 0.25
    numbers = np.random.default_rng(0).normal(size=500)
    one, other = write("e.csv", list(numbers)), write("f.csv", list(numbers + 0.1))
    assert agreement.difference(one, other) == pytest.approx(0.1, rel=0.1)
    assert agreement.difference(one, one) == 0
    assert agreement.difference(one, names[0]) is None
    assert agreement.difference(one, Path("absent.csv")) is None


def test_the_second_to_tick_is_good_and_the_most_different() -> None:
    base = ["x"] * 10
    for number, flips in enumerate((0, 1, 4, 9)):
        write(f"run{number}.csv", ["y"] * flips + base[flips:])
    cv = [0.900, 0.899, 0.898, 0.700]  # the last is different, and bad
    made = scored(cv, cv, error=0.002)
    told = agreement.recommend(made, True)
    assert [choice["run"] for choice in told] == ["run0", "run2"]
    assert told[1]["different"] == 0.4
    alone = agreement.recommend([replace(made[0], error=0.0), made[3]], True)
    assert [choice["run"] for choice in alone] == ["run0", "run3"]
    assert agreement.recommend([], True) == []
    lower = agreement.recommend(made, False)
    assert lower[0]["run"] == "run3"
