"""Batches on the device: from rows that live there, or streamed from worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from . import devices
from .config import NetworkConfig
from .errors import UserError
from .prefetching import Batch as Batch
from .prefetching import Schedule, Stream
from .randomness import derive, generator

Batches = Callable[..., Iterator[Batch]]  # (epoch, first batch = 0) -> its batches

_ENDLESS = 1 << 62


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

    def stream(self) -> Stream:
        """The batches from worker processes, as items are: pixels not yet floats."""
        # not self, which keeps what comes of this: of a cycle, the workers' pipes could be
        # closed before the workers were told to end
        plain, config = replace(self), self.config
        # `min_steps` may ask for more epochs than there are; those beyond are begun for nothing
        epochs = _ENDLESS if config.min_steps else config.epochs
        schedule = Schedule(
            order=plain.order,
            size=self.batch_size,
            batches=len(self),
            epochs=epochs if self.training else None,
            seed=self.seed,
        )
        return Stream(self.dataset, schedule, config.workers, self.device)

    def _streamed(self) -> Batches:
        plain, stream = replace(self), self.stream()

        def epoch_of_batches(epoch: int, first: int = 0) -> Iterator[Batch]:
            for batch in stream.batches(epoch, first):
                yield plain._ready(batch)

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


def abreast(loaders: Sequence[Loader], first: int = 0) -> Iterator[list[Batch | None]]:
    """A batch of each loader at a time, from the number `first` on; None of one that is over.

    One loader that is given several times is read once, and its batch given as often.
    """
    if all(loader is loaders[0] for loader in loaders):
        for batch in loaders[0].batches(0, first):
            yield [batch] * len(loaders)
        return
    for batches in zip_longest(*(loader.batches(0, first) for loader in loaders)):
        yield list(batches)


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
