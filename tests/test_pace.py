from __future__ import annotations

import time

import pytest

from kagglekit.pace import Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_a_save_is_due_after_a_pause(clock: Clock) -> None:
    pace = Pace(30)
    clock.now = 29.9
    assert not pace.due
    clock.now = 30.0
    assert pace.due
    with pace.saving():
        pass
    assert not pace.due


def test_saving_that_is_slow_is_done_less_often(clock: Clock) -> None:
    pace = Pace(30)
    with pace.saving():
        clock.now += 2
    clock.now += 99
    assert not pace.due
    clock.now += 1
    assert pace.due  # 2 seconds of 102


def test_no_pause_is_every_chance_whatever_it_costs(clock: Clock) -> None:
    pace = Pace(0)
    with pace.saving():
        clock.now += 2
    assert pace.due
