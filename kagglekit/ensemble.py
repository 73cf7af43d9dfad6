"""Models of one kind that answer together: their weights stacked, one forward pass for all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from . import capture, devices
from .config import NetworkConfig
from .loading import Loader, abreast
from .objectives import Batch, Function
from .predict import readable
from .stacking import TOLERANCE, Unstackable, attach, distance, in_double, in_single, recorded
from .views import View

Apply = Callable[[nn.Module, Batch], Tensor]  # a function of a model and a batch

_FEW_ROWS = 32  # of a batch, on which answers are compared in double precision
_OFTEN = 50  # calls from which recording the pass saves more than it takes


class Ensemble:
    """A function of several models, each on rows of its own and as it would be alone.

    `function` gives answers to a batch, or a loss. `tensors` are weights and buffers by name,
    (models, ...): see `stacking.attach`. What changes there has changed in the ensemble. `calls`
    is about how often it will be asked, from the beginning of a run and not of a session.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        tensors: Mapping[str, Tensor],
        function: Apply,
        config: NetworkConfig,
        calls: int = 0,
    ) -> None:
        self.models, self.function, self.config = models, function, config
        self.tensors = {f"model.{name}": tensor.detach() for name, tensor in tensors.items()}
        self.device = next(iter(self.tensors.values())).device
        self.often = calls >= _OFTEN
        self.passes: dict[Any, Callable[[list[Tensor]], Tensor]] = {}  # recorded, by shapes
        self.pattern = Function(copy.deepcopy(models[0]).eval(), function)

    @classmethod
    def of(
        cls, models: Sequence[nn.Module], function: Apply, config: NetworkConfig, calls: int = 0
    ) -> Ensemble:
        """The ensemble of these models, whose weights and buffers become slices of its own."""
        stacked = copy.deepcopy(models[0])
        attach(stacked, models)
        return cls(models, named_tensors(stacked), function, config, calls)

    def __call__(self, batch: Batch) -> Tensor:
        """(models, ...) of a batch whose parts are (models, rows, ...)."""
        parts = list(batch)
        if not self.often:
            return self._mapped(parts)
        kind = tuple((part.shape, part.stride(), part.dtype) for part in parts)
        if kind not in self.passes:
            self.passes[kind] = self._recorded(parts)
        return self.passes[kind](parts)

    def _mapped(self, parts: list[Tensor]) -> Tensor:
        return self._inside(*self.tensors.values(), *parts)

    def _inside(self, *inputs: Tensor) -> Tensor:
        count = len(self.tensors)
        tensors = dict(zip(self.tensors, inputs[:count], strict=True))

        def one(tensors: dict[str, Tensor], parts: list[Tensor]) -> Tensor:
            value: Tensor = functional_call(self.pattern, tensors, (parts,))
            return value

        with torch.no_grad(), devices.autocast(self.config.precision, self.device):
            values: Tensor = vmap(one)(tensors, list(inputs[count:]))
        return values

    def _recorded(self, parts: list[Tensor]) -> Callable[[list[Tensor]], Tensor]:
        """The same for batches of one kind, without vmap, and on a GPU as a graph."""
        own = list(self.tensors.values())
        forward = torch.no_grad()(recorded(self._inside, [*own, *parts]))
        if not capture.possible(self.device):
            return lambda given: forward(*own, *given)

        def run(given: Sequence[Tensor]) -> list[Tensor]:
            return [forward(*own, *given)]

        replay = capture.captured(run, parts, [])
        return lambda given: replay(given)[0].clone()  # the next replay overwrites it

    def alone(self, place: int, batch: Batch) -> Tensor:
        """The value for one of the models, of a batch of its own (rows, ...)."""
        with torch.no_grad(), devices.autocast(self.config.precision, self.device):
            return self.function(self.models[place].eval(), batch)

    def answers(
        self, loaders: Sequence[Loader], views: Sequence[View], first: int = 0
    ) -> Iterator[list[Tensor]]:
        """Batch by batch, what each model answers to its own loader: (views, batch, ...) each.

        On the CPU, float32 or float64, views undone. `first` is the number of the batch to begin
        with; a model whose rows are over answers none.
        """
        for batches in abreast(loaders, first):
            if (batch := _together(batches)) is not None:
                yield list(readable(self._seen(batch, views)))
                continue
            # filled up, the shorter ones would be others to a model that looks across its batch
            seen = {at: self._seen_alone(at, own, views)
                    for at, own in enumerate(batches) if own is not None}  # fmt: skip
            nothing = next(iter(seen.values()))[:, :0]
            yield [seen.get(at, nothing) for at in range(len(batches))]

    def _seen(self, batch: Batch, views: Sequence[View]) -> Tensor:
        """(models, views, rows, ...)"""
        inputs, *rest = batch
        seen = []
        for view in views:
            answered = self([_row_by_row(view.apply, inputs), *rest])
            seen.append(_row_by_row(view.undo, answered))
        return torch.stack(seen, dim=1)

    def _seen_alone(self, place: int, batch: Batch, views: Sequence[View]) -> Tensor:
        """(views, rows, ...)"""
        inputs, *rest = batch
        seen = [view.undo(self.alone(place, [view.apply(inputs), *rest])) for view in views]
        return readable(torch.stack(seen))

    def means(self, loaders: Sequence[Loader]) -> list[float]:
        """For each model the mean over its own rows, of a function that is a mean over a batch."""
        totals, rows = [0.0] * len(self.models), [0] * len(self.models)
        for batches in abreast(loaders):
            batch = _together(batches)
            values = None if batch is None else self(batch).tolist()
            for place, own in enumerate(batches):
                if own is not None:
                    value = float(self.alone(place, own)) if values is None else values[place]
                    totals[place] += value * len(own[0])
                    rows[place] += len(own[0])
        return [total / max(count, 1) for total, count in zip(totals, rows, strict=True)]

    def demand_right(self, batches: Sequence[Batch | None]) -> None:
        """Raise Unstackable unless each model gives what it gives alone, of a batch of its own.

        Compared on a few rows in double precision, where nothing but a mistake differs, and on all
        that the batches have in common as they are.
        """
        common = _together(batches)
        if common is None:
            rows = min(0 if batch is None else len(batch[0]) for batch in batches)
            common = _together([batch and [part[:rows] for part in batch] for batch in batches])
        if common is None:
            raise Unstackable("a member has no rows")
        few = [part[:, :_FEW_ROWS] for part in common]
        try:
            doubled = [copy.deepcopy(model).double() for model in self.models]
            exact = Ensemble.of(doubled, self.function, in_single(self.config))
            exact._compare([in_double(part) for part in few], TOLERANCE["fp64"])
        except (RuntimeError, TypeError):  # single precision in the model's code; Apple's GPUs
            single = list(map(copy.deepcopy, self.models))
            exact = Ensemble.of(single, self.function, in_single(self.config))
            exact._compare(few, TOLERANCE["fp32"])
        self._compare(common, TOLERANCE[self.config.precision])

    def _compare(self, batch: Batch, most: float) -> None:
        places = range(len(self.models))
        alone = [self.alone(place, [part[place] for part in batch]) for place in places]
        try:
            together = self(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # vmap and a model's own code fail in many ways
            raise Unstackable(str(error).strip().split("\n")[0]) from error
        for place in places:
            apart = distance([together[place]], [alone[place]])
            if not apart <= most:
                raise Unstackable(f"together, it would give something else ({apart:.1g} of it)")


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a module, by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _together(batches: Sequence[Batch | None]) -> Batch | None:
    """One batch whose parts are (models, rows, ...); None where rows are not equally many."""
    first = batches[0]
    if first is None or any(batch is None for batch in batches):
        return None
    if all(batch is first for batch in batches):
        return [part.expand(len(batches), *part.shape) for part in first]
    whole = [batch for batch in batches if batch is not None]
    if len({len(batch[0]) for batch in whole}) > 1:
        return None
    return [torch.stack(parts) for parts in zip(*whole, strict=True)]


def _row_by_row(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """(models, rows, ...) of a function of rows; what all models share is computed once."""
    if values.stride(0) == 0:
        one = function(values[0])
        return one.expand(len(values), *one.shape)
    return function(values.flatten(0, 1)).unflatten(0, values.shape[:2])
