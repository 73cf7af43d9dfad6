"""Batches on the device: from rows that live there, or streamed from worker processes."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

from . import devices
from .config import NetworkConfig
from .errors import UserError
from .randomness import derive, generator, isolated, seed_cpu

Batch = list[Tensor]
Batches = Callable[..., Iterator[Batch]]  # (epoch, first batch = 0) -> its batches


@dataclass(frozen=True)
class Loader:
    """Gives the batches of a dataset on a device, in an order that (seed, epoch) alone fixes.

    Training shuffles and leaves the last incomplete batch out; prediction does neither. Items of
    uint8 are pixels and arrive as floats in 0…1; other floats arrive in `dtype`.
    """

    dataset: Dataset[Any]
    config: NetworkConfig
    device: torch.device
    seed: int
    training: bool
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        """Batches an epoch."""
        rows, size = count(self.dataset), self.batch_size
        return max(rows // size, 1) if self.training else -(-rows // size)

    @property
    def batch_size(self) -> int:
        """Rows a batch: never more than there are, fewer where `min_batches` asks for it."""
        rows = max(count(self.dataset), 1)
        return min(self.config.batch_size, max(rows // self.config.min_batches, 16), rows)

    def order(self, epoch: int) -> Tensor:
        """(rows,) positions in the order of `epoch`."""
        rows = count(self.dataset)
        if not self.training:
            return torch.arange(rows)
        shuffle = generator(torch.device("cpu"), derive(self.seed, "order", epoch))
        if self.config.sampling == "balanced":
            order = _balanced(_classes(self.dataset), shuffle)
        else:
            order = torch.randperm(rows, generator=shuffle)
        return order[: len(self) * self.batch_size]

    @cached_property
    def batches(self) -> Batches:
        """(epoch, first) -> its batches from the number `first` on.

        What is resident is moved to the device once, here.
        """
        # of a copy: a loader that its own batches refer to would go, and end its workers, only
        # when cycles are collected, in whichever process that happens
        loader = replace(self)
        if self.resident is not None:
            return loader._resident(self.resident)
        return loader._streamed()

    @cached_property
    def resident(self) -> list[Tensor] | None:
        """All rows, on the device; None where they are streamed."""
        if not is_resident(self.dataset, self.config, self.device):
            return None
        assert isinstance(self.dataset, TensorDataset)
        return [column.to(self.device) for column in self.dataset.tensors]

    def whole(self, epoch: int) -> Batch:
        """All batches of an epoch at once, of resident rows: (batches, batch, ...) of each part."""
        assert self.resident is not None
        order = self.order(epoch).to(self.device)
        shape = (len(self), self.batch_size)
        return self._ready([column[order].unflatten(0, shape) for column in self.resident])

    def _resident(self, columns: list[Tensor]) -> Batches:

        def epoch_of_batches(epoch: int, first: int = 0) -> Iterator[Batch]:
            for rows in self.order(epoch).to(self.device).split(self.batch_size)[first:]:
                yield self._ready([column[rows] for column in columns])

        return epoch_of_batches

    def _streamed(self) -> Batches:
        # not self, which keeps what is returned here: of a cycle, the workers' pipes could be
        # closed before the workers were told to end
        plain = replace(self)
        stream = _Stream(plain)
        carry = carrier(self.device)

        def epoch_of_batches(epoch: int, first: int = 0) -> Iterator[Batch]:
            for batch in stream.batches(epoch, first):
                yield plain._ready(carry(batch))

        return epoch_of_batches

    def _ready(self, batch: Sequence[Tensor]) -> Batch:
        """Pixels as floats in 0…1, other floats as `dtype`, images channels-last."""
        ready = []
        for part in batch:
            if part.dtype == torch.uint8:
                part = part.to(self.dtype).div_(255)
            elif part.is_floating_point():
                part = part.to(self.dtype)
            ready.append(part)
        if ready[0].ndim == 4:
            last = self.config.channels_last
            layout = torch.channels_last if last else torch.contiguous_format
            ready[0] = ready[0].contiguous(memory_format=layout)
        return ready


def count(dataset: Dataset[Any]) -> int:
    """Rows of a dataset."""
    return len(dataset)  # type: ignore[arg-type]


def _classes(dataset: Dataset[Any]) -> Tensor:
    """(rows,) class positions of a dataset's rows; UserError where it has none to tell."""
    if isinstance(dataset, TensorDataset):
        known: Any = dataset.tensors[-1]
    else:
        known = getattr(dataset, "targets", None)
    target = torch.zeros(0, 0) if known is None else torch.as_tensor(known)
    if target.ndim != 1 or target.is_floating_point():
        raise UserError("sampling=balanced needs classes, but this target is numbers")
    return target.cpu()


def _balanced(classes: Tensor, shuffle: torch.Generator) -> Tensor:
    """(rows,) positions in random order, of each class equally many: scarce ones come again.

    No row comes a second time before all of its class have come once.
    """
    rows, present = len(classes), classes.unique()
    share = -(-rows // len(present))
    drawn = []
    for name in present:
        members = torch.nonzero(classes == name).flatten()
        turns = -(-share // len(members))
        order = [members[torch.randperm(len(members), generator=shuffle)] for _ in range(turns)]
        drawn.append(torch.cat(order)[:share])
    together = torch.cat(drawn)
    return together[torch.randperm(len(together), generator=shuffle)][:rows]


def is_resident(dataset: Dataset[Any], config: NetworkConfig, device: torch.device) -> bool:
    """Whether all rows are kept on the device: tensors that take at most half of what is free.

    Raises UserError where `data=resident` is asked of a dataset that is no TensorDataset.
    """
    tensors = isinstance(dataset, TensorDataset)
    if config.data == "resident" and not tensors:
        raise UserError(
            "data=resident needs rows in memory, but this recipe reads files: data=auto"
        )
    if config.data != "auto":
        return config.data == "resident"
    if not isinstance(dataset, TensorDataset):
        return False
    if all(column.device == device for column in dataset.tensors):
        return True
    needed = sum(column.nbytes for column in dataset.tensors)
    return needed < devices.free_bytes(device) / 2


# --- streamed -----------------------------------------------------------------------------------


class _Stream:
    """The batches of a loader from worker processes, which go on to the next epoch by themselves.

    They begin with it while the main process is still at the end of this one, scoring say, so that
    no epoch begins with a wait. A loader for prediction goes on once it was asked a second time.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.positions = _Positions(loader)
        workers = loader.config.workers
        self.source = DataLoader(
            _Seeded(loader.dataset, loader.seed),
            batch_sampler=self.positions,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            worker_init_fn=_serve,
            # its own, or starting an epoch would draw from the generator that dropout uses
            generator=torch.Generator(),
            pin_memory=loader.device.type == "cuda",
        )
        self.coming: Iterator[Any] = iter(())
        self.next: tuple[int, int] | None = None  # epoch and number of the batch that is coming

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from the number `first` on, in shared or pinned memory."""
        for number in range(first, len(self.loader)):
            if self.next != (epoch, number):
                self.positions.start(epoch, number)
                self.coming = iter(self.source)
            self.next = None  # unless this batch comes
            batch = next(self.coming)
            if isinstance(batch, UserError):
                raise batch
            self.next = self.positions.after(epoch, number)
            yield batch


class _Positions(Sampler[Any]):
    """(epoch, rows) of each batch, from where it was told to start on."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.begin = (0, 0)
        self.started = 0

    def start(self, epoch: int, number: int) -> None:
        """Begin anew with this batch."""
        self.begin = epoch, number
        self.started += 1

    def after(self, epoch: int, number: int) -> tuple[int, int] | None:
        """Epoch and number of the batch that follows; None where none does."""
        if number + 1 < len(self.loader):
            return epoch, number + 1
        config = self.loader.config
        if self.loader.training:
            more = epoch + 1 < config.epochs or config.min_steps > 0
            return (epoch + 1, 0) if more else None
        return (epoch, 0) if self.started > 1 else None

    def __iter__(self) -> Iterator[Any]:
        place: tuple[int, int] | None = self.begin
        while place is not None:
            epoch, first = place
            batches = self.loader.order(epoch).split(self.loader.batch_size)
            for rows in batches[first:]:
                yield epoch, rows.tolist()
            place = self.after(epoch, len(batches) - 1)


class _Seeded(Dataset[Any]):
    """Items whose randomness depends on (seed, epoch, row) and not on the worker."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, position: tuple[int, list[int]]) -> list[Any] | UserError:
        """The items of a batch; a fault as a value: a worker would wrap it in its traceback."""
        epoch, rows = position
        # isolated: in the main process (no workers) dropout must not notice the items' draws
        with isolated(0):
            try:
                return [self._item(epoch, row) for row in rows]
            except UserError as error:
                return error

    def _item(self, epoch: int, row: int) -> Any:
        seed_cpu(derive(self.seed, "item", epoch, row))
        return self.dataset[row]


def as_parts(item: Any) -> Sequence[Any]:
    """An item of a dataset as (inputs, ...), where it may be the inputs alone."""
    return item if isinstance(item, tuple | list) else (item,)


def _collate(items: list[Any] | UserError) -> Any:
    if isinstance(items, UserError):
        return items
    return [_stacked(part) for part in zip(*map(as_parts, items), strict=True)]


def _stacked(values: Sequence[Any]) -> Any:
    """One part of a batch; images whose channels lie last in memory keep them there."""
    first = values[0]
    if isinstance(first, Tensor) and first.ndim == 3 and not first.is_contiguous():
        batch: Tensor = default_collate([value.permute(1, 2, 0) for value in values])
        return batch.permute(0, 3, 1, 2)
    return default_collate(list(values))


def _serve(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process of a command, to the main one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what was inherited is the main process's to clean up, not this one's
    if "cv2" in sys.modules:  # or each worker would start a thread for each core
        sys.modules["cv2"].setNumThreads(1)


def carrier(device: torch.device) -> Callable[[Batch], Batch]:
    """What takes a batch to `device`: on a GPU by a stream of its own, while the last step runs."""
    if device.type != "cuda":
        return lambda batch: [part.to(device) for part in batch]
    copying = torch.cuda.Stream(device)

    def carry(batch: Batch) -> Batch:
        with torch.cuda.stream(copying):
            moved = [part.to(device, non_blocking=True) for part in batch]
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for part in moved:  # allocated for `copying`, which must not have it back before the step
            part.record_stream(computing)
        return moved

    return carry
