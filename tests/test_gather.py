from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kagglekit import signals
from kagglekit.gather import Abreast, gather, gather_abreast

ANSWERS = np.arange(2 * 25 * 3.0).reshape(2, 25, 3)
Batches = Callable[[int], Iterator[np.ndarray]]


class KilledError(BaseException):
    pass


def batches(asked: list[int], fatal: int | None = None, signalled: int | None = None) -> Batches:
    """Five batches of five rows; dies, or is told to end, in one of them."""

    def ask(first: int) -> Iterator[np.ndarray]:
        for number in range(first, 5):
            if number == fatal:
                raise KilledError
            if number == signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            asked.append(number)
            yield ANSWERS[:, 5 * number : 5 * number + 5]

    return ask


@pytest.mark.parametrize("fatal", range(5))
def test_what_was_answered_before_a_kill_is_not_asked_again(fatal: int, tmp_path: Path) -> None:
    asked: list[int] = []
    with pytest.raises(KilledError):
        gather(batches(asked, fatal), 25, tmp_path / "a.npz", 0)
    found = gather(batches(asked), 25, tmp_path / "a.npz", 0)
    np.testing.assert_array_equal(found, ANSWERS)
    assert asked == list(range(5))


def test_a_signal_loses_nothing(tmp_path: Path) -> None:
    asked: list[int] = []
    with signals.handled(), pytest.raises(signals.Interrupted):
        gather(batches(asked, signalled=3), 25, tmp_path / "a.npz", 3600)
    gather(batches(asked), 25, tmp_path / "a.npz", 3600)
    assert asked == list(range(5))


def test_finished_answers_are_not_asked_again(tmp_path: Path) -> None:
    asked: list[int] = []
    for _ in range(2):
        found = gather(batches(asked), 25, tmp_path / "a.npz", 3600)
        np.testing.assert_array_equal(found, ANSWERS)
    assert asked == list(range(5))


@pytest.mark.parametrize("content", ["torn", "other rows", "other arrays"])
def test_damaged_answers_are_asked_again(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.npz"
    gather(batches([]), 25, path, 0)
    if content == "torn":
        path.write_bytes(path.read_bytes()[:-9])
    elif content == "other rows":
        np.savez(path, answers=np.zeros((2, 40, 3)), sizes=np.array([20, 20]))
    else:
        np.savez(path, answers=np.zeros((2, 5, 3)))
    asked: list[int] = []
    np.testing.assert_array_equal(gather(batches(asked), 25, path, 0), ANSWERS)
    assert asked == list(range(5))
    assert str(path) in caplog.text


# --- several members ----------------------------------------------------------------------------

OTHERS = -ANSWERS[:, :23]  # the last batch has fewer rows


def abreast(asked: list[int], fatal: int | None = None) -> Abreast:
    def ask(first: int) -> Iterator[Sequence[np.ndarray]]:
        for number, batch in enumerate(batches(asked, fatal)(first), start=first):
            yield [batch, OTHERS[:, 5 * number : 5 * number + 5]]

    return ask


@pytest.mark.parametrize("fatal", range(5))
def test_members_that_are_asked_together_go_on_together(fatal: int, tmp_path: Path) -> None:
    rows, asked = {tmp_path / "a.npz": 25, tmp_path / "b.npz": 23}, list[int]()
    with pytest.raises(KilledError):
        gather_abreast(abreast(asked, fatal), rows, 0)
    for _ in range(2):  # what is whole is not asked again
        gather_abreast(abreast(asked), rows, 0)
    assert asked == list(range(5))
    # and each is known when it is asked for alone
    np.testing.assert_array_equal(gather(batches(asked), 25, tmp_path / "a.npz", 0), ANSWERS)
    np.testing.assert_array_equal(gather(batches(asked), 23, tmp_path / "b.npz", 0), OTHERS)
    assert asked == list(range(5))


def test_what_one_of_them_lacks_is_asked_again_of_all(tmp_path: Path) -> None:
    rows, asked = {tmp_path / "a.npz": 25, tmp_path / "b.npz": 23}, list[int]()
    gather_abreast(abreast(asked), rows, 0)
    (tmp_path / "b.npz").unlink()
    gather_abreast(abreast(asked), rows, 0)
    assert asked == [*range(5), *range(5)]
    np.testing.assert_array_equal(gather(batches(asked), 25, tmp_path / "a.npz", 0), ANSWERS)
    np.testing.assert_array_equal(gather(batches(asked), 23, tmp_path / "b.npz", 0), OTHERS)
