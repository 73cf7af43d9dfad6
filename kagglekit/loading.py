"""Batches on the device: from rows that live there, or streamed from worker processes."""

from __future__ import annotations

import threading
import weakref
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
from .data import SharedRows
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
    def resident(self) -> Resident | None:
        """All rows, on the device; None where they are streamed."""
        if not is_resident(self.dataset, self.config, self.device):
            return None
        assert isinstance(self.dataset, TensorDataset)
        columns, positions = _columns(self.dataset)
        if positions is not None and not _fit(columns, self.device):  # but its own rows do
            columns, positions = [column[positions] for column in columns], None
        return Resident([_moved(column, self.device) for column in columns], positions)

    def _resident(self, rows: Resident) -> Batches:

        def epoch_of_batches(epoch: int, first: int = 0) -> Iterator[Batch]:
            places = rows.places(self.order(epoch)).to(self.device)
            for some in places.split(self.batch_size)[first:]:
                yield self.ready([_picked(column, some) for column in rows.columns])

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
                yield plain.ready(batch)

        return epoch_of_batches

    def ready(self, batch: Sequence[Tensor]) -> Batch:
        """Pixels as floats in 0…1, other floats as `dtype`, images channels-last."""
        ready = self.floats(batch)
        if ready[0].ndim == 4:
            last = self.config.channels_last
            layout = torch.channels_last if last else torch.contiguous_format
            ready[0] = ready[0].contiguous(memory_format=layout)
        return ready

    def floats(self, parts: Sequence[Tensor]) -> Batch:
        """Pixels as floats in 0…1, other floats as `dtype`."""
        floats = []
        for part in parts:
            if part.dtype == torch.uint8:
                part = part.to(self.dtype).div_(255)
            elif part.is_floating_point():
                part = part.to(self.dtype)
            floats.append(part)
        return floats


class _Moved:
    """A column on a device; as it holds the column, no other has its id meanwhile."""

    def __init__(self, column: Tensor, device: torch.device) -> None:
        self.column, self.values = column, column.to(device)


# by the id of the column and the device; gone once no loader reads it
_on_devices: weakref.WeakValueDictionary[tuple[int, torch.device], _Moved]
_on_devices = weakref.WeakValueDictionary()
_moving = threading.Lock()


def _moved(column: Tensor, device: torch.device) -> _Moved:
    """The column on a device, which it is moved to once for all that read it."""
    device = _exact(device)
    with _moving:
        found = _on_devices.get((id(column), device))
        if found is None:
            found = _on_devices[id(column), device] = _Moved(column, device)
    if device.type == "cuda":  # its memory is no other's before this stream has read it
        found.values.record_stream(torch.cuda.current_stream(device))
    return found


def _exact(device: torch.device) -> torch.device:
    """The device with its number: lanes take turns over several GPUs."""
    return torch.empty(0, device=device).device


@dataclass(frozen=True)
class Resident:
    """Rows on a device: those at `positions` of columns that other loaders may read too.

    `positions` (rows,) are on the CPU; None = the columns are its own, and have no other rows.
    """

    moved: list[_Moved]
    positions: Tensor | None = None

    @property
    def columns(self) -> list[Tensor]:
        """(all rows, ...) of each part of an item."""
        return [one.values for one in self.moved]

    @property
    def nbytes(self) -> int:
        """Of its own rows, whoever reads them too."""
        if self.positions is None:
            return sum(column.nbytes for column in self.columns)
        return sum(column[:1].nbytes for column in self.columns) * len(self.positions)

    @property
    def unshared(self) -> int:
        """Bytes that one more loader of the same data takes."""
        own = self.columns if self.positions is None else self.columns[1:]
        return sum(column.nbytes for column in own)

    def places(self, order: Tensor) -> Tensor:
        """Where in the columns the rows in that order are."""
        return order if self.positions is None else self.positions[order]


class InStep:
    """Loaders of one pace as one: what they have in common is read by one indexing for all.

    They have where they read the same inputs; columns that each has of its own, targets, are laid
    one below the other for it.
    """

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders, self.one = list(loaders), loaders[0]
        self.resident = [rows for loader in loaders if (rows := loader.resident) is not None]
        self.columns: list[Tensor] = []  # of all; none where each is read by itself
        self.offsets: list[int] = []  # in each, how far below those of one the next one's rows are
        if len(self.resident) == len(loaders) and _have_in_common(self.resident):
            for each in zip(*(rows.columns for rows in self.resident), strict=True):
                alike = all(column is each[0] for column in each)
                self.columns.append(each[0] if alike else torch.cat(each))
                self.offsets.append(0 if alike else len(each[0]))

    @property
    def nbytes(self) -> int | None:
        """Of an epoch's rows, about; None where any are streamed."""
        if len(self.resident) < len(self.loaders):
            return None
        return self.resident[0].nbytes * len(self.loaders)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch: parts (members · batch, ...), member after member."""
        if not self.columns:
            apart = [loader.batches(epoch, first) for loader in self.loaders]
            for batches in zip(*apart, strict=True):
                yield [torch.cat(parts) for parts in zip(*batches, strict=True)]
            return
        places, size = self._places(epoch), self.one.batch_size
        for begin in range(first * size, places[0].shape[1], size):
            here = [place[:, begin : begin + size].flatten() for place in places]
            yield self.one.ready(list(map(_picked, self.columns, here)))

    def whole(self, epoch: int) -> Batch:
        """All batches of an epoch at once, of resident rows: (batches, members, batch, ...)."""
        count, members, size = len(self.one), len(self.loaders), self.one.batch_size
        if not self.columns:
            each = zip(self.resident, self._each(epoch), strict=True)
            apart = [[_picked(column, places.to(column.device)) for column in rows.columns]
                     for rows, places in each]  # fmt: skip
            parts = [torch.stack([own.unflatten(0, (count, size)) for own in part], dim=1)
                     for part in zip(*apart, strict=True)]  # fmt: skip
            return self.one.floats(parts)
        in_turn = [place.view(members, count, size).transpose(0, 1).flatten()
                   for place in self._places(epoch)]  # fmt: skip
        parts = list(map(_picked, self.columns, in_turn))
        return self.one.floats([part.unflatten(0, (count, members, size)) for part in parts])

    def _each(self, epoch: int) -> list[Tensor]:
        """Where each member's rows of an epoch are in its own columns, (rows,) on the CPU."""
        both = zip(self.resident, self.loaders, strict=True)
        return [rows.places(loader.order(epoch)) for rows, loader in both]

    def _places(self, epoch: int) -> list[Tensor]:
        """(members, rows) of each column of all: where the rows of an epoch are, on the device."""
        places = torch.stack(self._each(epoch)).to(self.one.device)
        member = torch.arange(len(places), device=places.device)[:, None]
        return [places + offset * member if offset else places for offset in self.offsets]


def _have_in_common(several: Sequence[Resident]) -> bool:
    """Whether they read the same inputs, and beside these the same kind of columns."""
    kinds = {tuple((part.shape, part.dtype) for part in rows.columns) for rows in several}
    first = several[0]
    same = all(rows.moved[0] is first.moved[0] for rows in several)
    return same and len(kinds) == 1 and all(rows.positions is not None for rows in several)


def _picked(column: Tensor, rows: Tensor) -> Tensor:
    """Those rows of a column."""
    # a memcpy a row, on a CPU a tenth of the time of indexing; but it gives another layout
    return column.index_select(0, rows) if column.is_contiguous() else column[rows]


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
        columns, positions = _columns(dataset)
        known: Any = columns[-1] if positions is None else columns[-1][positions]
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
    columns, positions = _columns(dataset)
    if positions is None or _fit(columns, device):
        return _fit(columns, device)
    own = sum(column[:1].nbytes for column in columns) * len(positions)
    return own < devices.free_bytes(device) / 2


def _columns(dataset: TensorDataset) -> tuple[Sequence[Tensor], Tensor | None]:
    """Columns of a dataset, and which rows of them are its own; None = all."""
    if isinstance(dataset, SharedRows) and dataset.shares:
        return dataset.columns, dataset.positions
    return dataset.tensors, None


def _fit(columns: Sequence[Tensor], device: torch.device) -> bool:
    """Whether the columns are on the device, or what is not there takes half of what is free."""
    device = _exact(device)
    missing = [column for column in columns if column.device != device
               and (id(column), device) not in _on_devices]  # fmt: skip
    needed = sum(column.nbytes for column in missing)
    return not missing or needed < devices.free_bytes(device) / 2
