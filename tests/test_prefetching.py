"""Places for batches: filled by workers, taken in turn, never while a copy may still read them."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kagglekit import prefetching
from kagglekit.errors import UserError
from kagglekit.prefetching import Schedule, Stream

CPU = torch.device("cpu")


def photograph(number: int, height: int = 5, channels: int = 3) -> Tensor:
    """Channels first, but last in memory; the pixels tell which one it is."""
    return torch.full((height, 6, channels), number, dtype=torch.uint8).permute(2, 0, 1)


class Photographs(Dataset[Any]):
    def __init__(self, rows: int = 30, **shape: int) -> None:
        self.rows, self.shape = rows, shape

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Any:
        return photograph(row, **self.shape), torch.tensor(row), torch.full((20_000,), float(row))


def stream(dataset: Dataset[Any], workers: int = 1, size: int = 4) -> Stream:
    rows = len(dataset)  # type: ignore[arg-type]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return Stream(
        dataset, Schedule(lambda epoch: order, size, -(-rows // size), 99, 0), workers, CPU
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_batch_has_its_own_rows_for_as_long_as_it_is_in_use(
    workers: int, channels: int
) -> None:
    data = Photographs(channels=channels)
    streamed = stream(data, workers)
    assert (streamed.slots is None) == (workers == 0)
    seen = []
    for epoch in range(3):
        for pixels, numbers, long in streamed.batches(epoch, 0):
            assert pixels.shape[1:] == (channels, 5, 6)
            assert pixels[:, 0, 0, 0].tolist() == pixels[:, -1, -1, -1].tolist() == numbers.tolist()
            assert long[:, -1].tolist() == numbers.tolist()
            seen += numbers.tolist()
    assert seen == seen[:30] * 3
    assert sorted(seen[:30]) == list(range(30))


def test_places_are_only_for_images_of_one_size_and_workers_that_share_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Numbers(Photographs):
        def __getitem__(self, row: int) -> Any:
            return torch.tensor([row])

    class Broken(Photographs):
        def __getitem__(self, row: int) -> Any:
            raise UserError("broken")

    slots = prefetching._slots(Photographs(), 4, 2)
    assert slots is not None
    assert slots.pixels.shape == (6, 4, 5, 6, 3)
    assert slots.fits([photograph(1), photograph(2).contiguous()])
    assert not slots.fits([photograph(1, 4), photograph(2, 4)])
    assert not slots.fits([photograph(1), photograph(2, 4)])
    assert not slots.fits([photograph(1).float()])
    assert not slots.fits([3])
    for dataset in (Numbers(), Broken()):
        assert prefetching._slots(dataset, 4, 2) is None
    assert prefetching._slots(Photographs(0), 0, 2) is None
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert prefetching._slots(Photographs(), 4, 2) is None


def test_a_place_is_not_taken_before_its_last_batch_is_on_the_device() -> None:
    class Event:
        waited = False

        def synchronize(self) -> None:
            self.waited = True

    slots = prefetching._Slots(3, (4, 5, 6, 3))
    assert [slots.take() for _ in range(3)] == [0, 1, 2]
    slots.copied = {0: Event(), 1: Event()}
    first, second = slots.copied[0], slots.copied[1]
    assert slots.take() == 0
    assert first.waited
    assert not second.waited
    assert list(slots.copied) == [1]


def test_no_place_is_given_away_while_its_batch_is_in_use() -> None:
    streamed = stream(Photographs(60), workers=2)
    assert streamed.slots is not None
    taken = []
    take = streamed.slots.take
    streamed.slots.take = lambda: taken.append(take()) or taken[-1]  # type: ignore[method-assign]
    for number, batch in enumerate(streamed.batches(0, 0)):
        address = batch[0].data_ptr()
        own = (address - streamed.slots.pixels.data_ptr()) // streamed.slots.pixels[0].nbytes
        assert own == taken[number]
        assert own not in taken[number + 1 :]  # by whatever is on its way when this one is used
        if number == 8:
            break


def test_workers_end_at_once_after_a_fault() -> None:
    class Broken(Photographs):
        def __getitem__(self, row: int) -> Any:
            raise UserError("broken")

    def failed(streamed: Stream) -> None:
        with pytest.raises(UserError, match="broken"):
            next(streamed.batches(0, 0))

    earlier = psutil.Process().children()
    streamed = stream(Broken(), workers=2)
    failed(streamed)
    workers = [child for child in psutil.Process().children() if child not in earlier]
    assert len(workers) == 2
    gc.disable()
    try:
        del streamed  # nothing else holds it: a collection would be too late, and in any order
        assert not any(worker.is_running() for worker in workers)
    finally:
        gc.enable()


def test_the_death_of_another_worker_is_told_once_the_new_ones_are_there() -> None:
    """Raised amid their beginning, it would leave an iterator that complains of itself later."""
    streamed = stream(Photographs())
    order, told = streamed.schedule.order, []

    def dying(number: int, frame: Any) -> None:
        told.append(streamed.coming)
        raise RuntimeError("worker (pid 1) is killed by signal: Killed.")

    def while_beginning(epoch: int) -> Tensor:
        if not told:
            signal.raise_signal(signal.SIGCHLD)
        return order(epoch)

    streamed.positions.schedule = replace(streamed.schedule, order=while_beginning)
    usual = signal.signal(signal.SIGCHLD, dying)
    try:
        with pytest.raises(RuntimeError, match="is killed"):
            next(streamed.batches(0, 0))
        assert told == [streamed.coming]
        assert hasattr(streamed.coming, "_workers_status")  # the last thing that it is given
        assert signal.getsignal(signal.SIGCHLD) is dying
    finally:
        signal.signal(signal.SIGCHLD, usual)
    assert torch.equal(torch.cat([batch[1] for batch in streamed.batches(0, 0)]), order(0))
