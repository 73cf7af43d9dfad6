"""Batches made ahead by worker processes, in memory that they share, epoch after epoch."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from .errors import UserError
from .randomness import derive, isolated, seed_cpu

Batch = list[Tensor]

_AHEAD = 2  # batches that a worker makes ahead
_BY_VALUE = 1 << 16  # bytes of a part below which it is sent with the message itself


@dataclass(frozen=True)
class Schedule:
    """Which rows of a data set make each batch, and what their randomness depends on."""

    order: Callable[[int], Tensor]  # epoch -> (rows,) positions
    size: int  # rows a batch
    batches: int  # an epoch
    epochs: int | None  # None = every epoch is the same
    seed: int


class Stream:
    """The batches of a data set, which go on to the next epoch by themselves.

    Workers begin with it while the main process is still at the end of this one, scoring say, so
    that no epoch begins with a wait. Where all epochs are the same, they do so from the second
    time on that one is asked for: most are asked for once.
    """

    def __init__(
        self, dataset: Dataset[Any], schedule: Schedule, workers: int, device: torch.device
    ) -> None:
        self.schedule = schedule
        self.slots = _slots(dataset, schedule.size, workers)
        self.positions = _Positions(schedule, self.slots)
        self.carry = _Carrier(device, self.slots)
        self.source = DataLoader(
            _Seeded(dataset, schedule.seed, self.slots),
            batch_sampler=self.positions,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=workers > 0,
            prefetch_factor=_AHEAD if workers else None,
            worker_init_fn=_serve,
            # its own, or starting an epoch would draw from the generator that dropout uses
            generator=torch.Generator(),
            pin_memory=device.type == "cuda" and self.slots is None,
        )
        self.coming: Iterator[Any] = iter(())
        self.next: tuple[int, int] | None = None  # epoch and number of the batch that is coming

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from the number `first` on, on the device.

        On the CPU pixels lie where later batches will: they are to be used before the next comes.
        """
        for number in range(first, self.schedule.batches):
            if self.next != (epoch, number):
                self.positions.start(epoch, number)
                with _deaths_told_later():
                    self.coming = iter(self.source)
                if self.slots is not None:
                    self.slots.pin(self.carry.device)
            self.next = None  # unless this batch comes
            batch = next(self.coming)
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    # or the error and this frame would hold each other, and workers whose pipes
                    # are closed in the wrong order by the collector wait for 5 seconds each
                    del batch
            self.next = self.positions.after(epoch, number)
            yield self.carry(batch)


class _Positions(Sampler[Any]):
    """(epoch, rows, slot) of each batch, from where it was told to start on."""

    def __init__(self, schedule: Schedule, slots: _Slots | None) -> None:
        self.schedule, self.slots = schedule, slots
        self.begin = (0, 0)
        self.started = 0

    def start(self, epoch: int, number: int) -> None:
        """Begin anew with this batch."""
        self.begin = epoch, number
        self.started += 1

    def after(self, epoch: int, number: int) -> tuple[int, int] | None:
        """Epoch and number of the batch that follows; None where none does."""
        if number + 1 < self.schedule.batches:
            return epoch, number + 1
        if self.schedule.epochs is None:
            return (epoch, 0) if self.started > 1 else None
        return (epoch + 1, 0) if epoch + 1 < self.schedule.epochs else None

    def __iter__(self) -> Iterator[Any]:
        place: tuple[int, int] | None = self.begin
        while place is not None:
            epoch, first = place
            batches = self.schedule.order(epoch).split(self.schedule.size)
            for rows in batches[first:]:
                yield epoch, rows.tolist(), self.slots.take() if self.slots is not None else None
            place = self.after(epoch, len(batches) - 1)


class _Slots:
    """Places for batches of pixels, in memory shared with workers that are forked later.

    Each batch would else come in memory of its own, which the main process maps and gives back:
    milliseconds a batch, and no more than /dev/shm has. Places are taken in turn, and there are
    more than batches on their way.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        """`shape`: (rows, height, width, channels)."""
        size = torch.Size(shape).numel()
        self.pixels = torch.frombuffer(mmap(-1, count * size), dtype=torch.uint8)
        self.pixels = self.pixels.view(count, *shape)
        self.copied: dict[int, Any] = {}  # by slot, the event at the end of its copy to the device
        self.taken = 0
        self.pinned = False

    def take(self) -> int:
        """The next slot, whose last batch is on the device."""
        slot = self.taken % len(self.pixels)
        self.taken += 1
        if slot in self.copied:
            self.copied.pop(slot).synchronize()
        return slot

    def fits(self, values: Sequence[Any]) -> bool:
        """Whether these are images, uint8 (channels, height, width), of the size of the places."""
        height, width, channels = self.pixels.shape[2:]
        return all(
            isinstance(value, Tensor)
            and value.dtype == torch.uint8
            and value.shape == (channels, height, width)
            for value in values
        )

    def fill(self, slot: int, values: Sequence[Tensor]) -> tuple[int, int]:
        """Put images into a slot; what tells the main process of it."""
        torch.stack(
            [value.permute(1, 2, 0) for value in values], out=self.pixels[slot][: len(values)]
        )
        return slot, len(values)

    def look(self, told: tuple[int, int]) -> Tensor:
        """The images (rows, channels, height, width) that a worker told of."""
        slot, rows = told
        return self.pixels[slot, :rows].permute(0, 3, 1, 2)

    def pin(self, device: torch.device) -> None:
        """Let a GPU copy from here by itself; where that is refused, copies wait for the CPU.

        After workers were forked: what the driver does to these pages is no concern of theirs.
        """
        if self.pinned or device.type != "cuda":
            return
        self.pinned = True
        driver, start = torch.cuda.cudart(), self.pixels.data_ptr()
        if int(driver.cudaHostRegister(start, self.pixels.nbytes, 0)) == 0:
            weakref.finalize(self, driver.cudaHostUnregister, start)
            return
        with suppress(RuntimeError):  # the next kernel would be blamed for it
            torch.zeros(1, device=device)


def _slots(dataset: Dataset[Any], size: int, workers: int) -> _Slots | None:
    """Places for the batches of `workers`; None where items are no images, or cannot be shared."""
    usual = multiprocessing.get_all_start_methods()[0]  # asking for the default would fix it
    if not size or not workers:
        return None
    if (multiprocessing.get_start_method(allow_none=True) or usual) != "fork":
        return None
    try:
        with isolated(0):  # an item may be one that is drawn anew each time
            first = as_parts(dataset[0])[0]
    except UserError:  # said when its row comes
        return None
    if not isinstance(first, Tensor) or first.dtype != torch.uint8 or first.ndim != 3:
        return None
    channels, height, width = first.shape
    # those that workers make or have made, the one in use, and one whose copy may not be over
    return _Slots(_AHEAD * workers + 2, (size, height, width, channels))


class _Seeded(Dataset[Any]):
    """Batches of items whose randomness depends on (seed, epoch, row) and not on the worker."""

    def __init__(self, dataset: Dataset[Any], seed: int, slots: _Slots | None) -> None:
        self.dataset, self.seed, self.slots = dataset, seed, slots

    def __getitems__(self, position: tuple[int, list[int], int | None]) -> list[Any] | UserError:
        """The parts of a batch; a fault as a value: a worker would wrap it in its traceback."""
        epoch, rows, slot = position
        # in the main process dropout must not notice the items' draws; a worker has its own
        # generators, and may have been forked while another thread was in such a moment
        with nullcontext() if get_worker_info() else isolated(0):
            try:
                items = [as_parts(self._item(epoch, row)) for row in rows]
            except UserError as error:
                return error
        first, *others = zip(*items, strict=True)
        if self.slots is None or slot is None or not self.slots.fits(first):
            return [_stacked(part) for part in (first, *others)]
        return [self.slots.fill(slot, first), *map(_sent, map(_stacked, others))]

    def _item(self, epoch: int, row: int) -> Any:
        seed_cpu(derive(self.seed, "item", epoch, row))
        return self.dataset[row]


def as_parts(item: Any) -> Sequence[Any]:
    """An item of a dataset as (inputs, ...), where it may be the inputs alone."""
    return item if isinstance(item, tuple | list) else (item,)


def _stacked(values: Sequence[Any]) -> Any:
    """One part of a batch; images whose channels lie last in memory keep them there."""
    first = values[0]
    if isinstance(first, Tensor) and first.ndim == 3 and not first.is_contiguous():
        batch: Tensor = default_collate([value.permute(1, 2, 0) for value in values])
        return batch.permute(0, 3, 1, 2)
    return default_collate(list(values))


def _sent(part: Any) -> Any:
    """A small tensor as an array: sent by value it costs less than memory of its own."""
    small = isinstance(part, Tensor) and part.nbytes < _BY_VALUE
    return part.numpy() if small else part


def _as_it_is(batch: Any) -> Any:
    return batch


def _serve(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process of a command, to the main one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what was inherited is the main process's to clean up, not this one's
    if "cv2" in sys.modules:  # or each worker would start a thread for each core
        sys.modules["cv2"].setNumThreads(1)


@contextmanager
def _deaths_told_later() -> Iterator[None]:
    """The context in which workers are begun, undisturbed by the death of others.

    torch's handler raises wherever the main thread is; an iterator that is but half made would then
    complain of itself once it is collected, below the sentence about the worker.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []
    beginning = True

    def note(number: int, frame: Any) -> None:
        if beginning:
            told.append(number)
        else:  # torch's handler, put above this one meanwhile, passes on what it is told
            handler(number, frame)

    signal.signal(signal.SIGCHLD, note)
    try:
        yield
    finally:
        beginning = False
        if signal.getsignal(signal.SIGCHLD) is note:
            signal.signal(signal.SIGCHLD, handler)
    if told:
        handler(signal.SIGCHLD, None)


class _Carrier:
    """Takes a batch to the device: on a GPU by a stream of its own, while the last step runs."""

    def __init__(self, device: torch.device, slots: _Slots | None) -> None:
        self.device, self.slots = device, slots
        self.copying = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: list[Any]) -> Batch:
        told = batch[0]
        shared = isinstance(told, tuple) and self.slots is not None
        parts = [torch.as_tensor(part) for part in batch[1:]]
        parts.insert(0, self.slots.look(told) if shared and self.slots else batch[0])
        if self.copying is None:
            return [part.to(self.device) for part in parts]
        with torch.cuda.stream(self.copying):
            moved = [part.to(self.device, non_blocking=True) for part in parts]
            if shared and self.slots is not None:
                self.slots.copied[told[0]] = self.copying.record_event()
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.copying)
        for part in moved:  # allocated for `copying`, which must not have it back before the step
            part.record_stream(computing)
        return moved
