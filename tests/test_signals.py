from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from kagglekit import signals


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    with signals.handled():
        yield


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_obeyed_at_once(number: int) -> None:
    with pytest.raises(signals.Interrupted) as caught:
        send(number)
    assert caught.value.number == number


def test_a_step_is_finished_first() -> None:
    done = []

    def step() -> None:
        with signals.deferred():
            with signals.deferred():
                send(signal.SIGTERM)
            assert signals.pending()
            done.append("step")  # the end of an inner step is not yet the end

    with pytest.raises(signals.Interrupted):
        step()
    assert done == ["step"]
    assert not signals.pending()


def test_a_second_signal_does_not_wait() -> None:
    done = []

    def step() -> None:
        with signals.deferred():
            send(signal.SIGINT)
            send(signal.SIGINT)
            done.append("step")

    with pytest.raises(signals.Interrupted):
        step()
    assert not done
    assert not signals.pending()


def test_an_error_in_the_step_is_not_hidden_by_a_signal_that_waits() -> None:
    def step() -> None:
        with signals.deferred():
            send(signal.SIGTERM)
            raise ValueError("burst")

    with pytest.raises(ValueError, match="burst"):
        step()


def test_handlers_are_put_back() -> None:
    with signals.handled():
        pass
    with pytest.raises(signals.Interrupted):
        send(signal.SIGINT)
