"""Jobs side by side: each with its share of the machine, and none outlives a failure."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from kagglekit import lanes, signals
from kagglekit.lanes import Lanes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    # a shell leaves it ignored in what it starts in the background
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)
    torch.set_num_threads(before)


def test_jobs_run_side_by_side_in_their_order() -> None:
    meeting, begun = threading.Barrier(2), list[int]()

    def job(number: int) -> None:
        begun.append(number)
        meeting.wait(30)  # passes only where two are there at once

    lanes.run([lambda n=number: job(n) for number in range(6)], Lanes(2, 1), CPU)  # type: ignore[misc]
    assert sorted(begun) == [*range(6)]
    assert {*begun[:2]} == {0, 1}


def test_a_lane_has_its_own_threads_and_the_others_keep_theirs() -> None:
    seen = []
    lanes.run([lambda: seen.append(torch.get_num_threads())] * 3, Lanes(2, 2), CPU)
    assert seen == [2, 2, 2]
    assert torch.get_num_threads() == 3
    with lanes.threads(1):
        assert torch.get_num_threads() == 1
    with lanes.threads(0):
        assert torch.get_num_threads() == 3


def lanes_alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def stepping(done: threading.Event, steps: list[int]) -> None:
    """A job of many steps that obeys what ends it."""
    for step in range(10_000):
        with signals.deferred():
            steps.append(step)
            done.set()
            time.sleep(0.001)


def test_a_failure_ends_the_others_after_their_step_and_no_job_is_begun_any_more() -> None:
    running, steps, late = threading.Event(), list[int](), list[int]()

    def failing() -> None:
        running.wait(30)
        raise ValueError("no")

    jobs = [lambda: stepping(running, steps), failing, lambda: late.append(1)]
    with pytest.raises(ValueError, match="no"):
        lanes.run(jobs, Lanes(2, 1), CPU)
    assert len(steps) < 10_000
    assert not late
    assert not lanes_alive()
    lanes.run([lambda: late.append(2)], Lanes(1, 1), CPU)  # nothing is left of the failure
    assert late == [2]


def test_what_a_failed_job_held_goes_with_its_error() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def failing() -> None:
        large = torch.zeros(3)
        held.append(weakref.ref(large))
        raise ValueError

    gc.disable()  # a cycle would keep the tensor until it is collected
    try:
        with contextlib.suppress(ValueError):
            lanes.run([failing], Lanes(1, 1), CPU)
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("handled", [True, False])
def test_a_signal_ends_all_lanes_after_their_steps(handled: bool) -> None:
    steps, late = list[int](), list[int]()
    running = [threading.Event(), threading.Event()]

    def tell() -> None:
        for event in running:
            event.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    jobs = [lambda e=event: stepping(e, steps) for event in running]  # type: ignore[misc]
    teller = threading.Thread(target=tell)
    teller.start()
    wanted: type[BaseException] = signals.Interrupted if handled else KeyboardInterrupt
    with signals.handled() if handled else contextlib.nullcontext(), pytest.raises(wanted):
        lanes.run([*jobs, lambda: late.append(1)], Lanes(2, 1), CPU)
    teller.join()
    assert len(steps) < 20_000
    assert not late
    assert not lanes_alive()
    assert not signals.pending()


def test_a_second_signal_does_not_wait_for_long_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_LAST_WAIT", 0.01)
    running, release = threading.Event(), threading.Event()

    def long_step() -> None:
        with signals.deferred():
            running.set()
            release.wait(30)

    def tell() -> None:
        running.wait(30)
        os.kill(os.getpid(), signal.SIGTERM)
        while not signals.pending():  # two that come at once are one
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    teller = threading.Thread(target=tell)
    teller.start()
    with signals.handled(), pytest.raises(signals.Interrupted):
        lanes.run([long_step], Lanes(1, 1), CPU)
    teller.join()
    (left,) = lanes_alive()
    release.set()
    left.join(30)
    signals.resume()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_lanes_of_gpus_have_streams_of_their_own() -> None:
    seen = []

    def look() -> None:
        seen.append((torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream))

    lanes.run([look] * 4, Lanes(4, 0), torch.device("cuda"))
    assert all(stream != torch.cuda.default_stream().cuda_stream for _, stream in seen)
    assert {device for device, _ in seen} <= {*range(torch.cuda.device_count())}
