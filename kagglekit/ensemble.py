"""Models of one kind that answer together: their weights stacked, one forward pass for all."""

from __future__ import annotations

import copy
from collections import Counter
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

_FEW_ROWS = 32  # of a batch, on which answers are compared in double precision
_OFTEN = 50  # batches of one shape after which recording the pass saves more than it takes


class Ensemble:
    """A function of several models, each on rows of its own and as it would be alone.

    `function` gives answers to a batch, or a loss. `tensors` are weights and buffers by name,
    (models, ...): see `stacking.attach`. What changes there has changed in the ensemble.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        tensors: Mapping[str, Tensor],
        function: Callable[[nn.Module, Batch], Tensor],
        config: NetworkConfig,
    ) -> None:
        self.models, self.function, self.config = models, function, config
        self.tensors = {f"model.{name}": tensor.detach() for name, tensor in tensors.items()}
        self.device = next(iter(self.tensors.values())).device
        self.asked: Counter[Any] = Counter()  # by shapes of a batch
        self.quick: dict[Any, Callable[[list[Tensor]], Tensor]] = {}
        self.pattern = Function(copy.deepcopy(models[0]).eval(), function)

    @classmethod
    def of(
        cls,
        models: Sequence[nn.Module],
        function: Callable[[nn.Module, Batch], Tensor],
        config: NetworkConfig,
    ) -> Ensemble:
        """The ensemble of these models, whose weights and buffers become slices of its own."""
        stacked = copy.deepcopy(models[0])
        attach(stacked, models)
        return cls(models, named_tensors(stacked), function, config)

    def __call__(self, batch: Batch) -> Tensor:
        """(models, ...) of a batch whose parts are (models, rows, ...)."""
        parts = list(batch)
        kind = tuple((part.shape, part.stride(), part.dtype) for part in parts)
        self.asked[kind] += 1
        if self.asked[kind] == _OFTEN:
            self.quick[kind] = self._recorded(parts)
        return self.quick.get(kind, self._mapped)(parts)

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
        try:
            forward = torch.no_grad()(recorded(self._inside, [*own, *parts]))
        except Unstackable:  # it goes on as it did
            return self._mapped
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
        for (inputs, *rest), counts in abreast(loaders, first):
            seen = []
            for view in views:
                answered = self([_row_by_row(view.apply, inputs), *rest])
                seen.append(_row_by_row(view.undo, answered))
            answers = readable(torch.stack(seen, dim=1))
            yield [own[:, :count] for own, count in zip(answers, counts, strict=True)]

    def means(self, loaders: Sequence[Loader]) -> list[float]:
        """For each model the mean over its own rows, of a function that is a mean over a batch."""
        totals = [0.0] * len(self.models)
        rows = [0] * len(self.models)
        for batch, counts in abreast(loaders):
            if len(set(counts)) == 1:
                values = self(batch).tolist()
            else:  # rows that fill up must not count in a mean
                parts = [[part[at, :n] for part in batch] for at, n in enumerate(counts)]
                values = [float(self.alone(at, part)) if len(part[0]) else 0.0
                          for at, part in enumerate(parts)]  # fmt: skip
            for place, (value, count) in enumerate(zip(values, counts, strict=True)):
                totals[place] += value * count
                rows[place] += count
        return [total / max(count, 1) for total, count in zip(totals, rows, strict=True)]

    def demand_right(self, batch: Batch) -> None:
        """Raise Unstackable unless each model gives what it gives alone, of a batch as above.

        Compared on a few rows in double precision, where nothing but a mistake differs, and on all
        as they are.
        """
        few = [in_double(part[:, :_FEW_ROWS]) for part in batch]
        doubled = [copy.deepcopy(model).double() for model in self.models]
        exact = Ensemble.of(doubled, self.function, in_single(self.config))
        try:
            exact._compare(few, TOLERANCE["fp64"])
        except (RuntimeError, TypeError) as error:  # single precision in the model's code, say
            if isinstance(error, torch.OutOfMemoryError):
                raise
        self._compare(batch, TOLERANCE[self.config.precision])

    def _compare(self, batch: Batch, most: float) -> None:
        try:
            together = self(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # vmap and a model's own code fail in many ways
            raise Unstackable(str(error).strip().split("\n")[0]) from error
        for place in range(len(self.models)):
            alone = self.alone(place, [part[place] for part in batch])
            apart = distance([together[place]], [alone])
            if not apart <= most:
                raise Unstackable(f"together, it would give something else ({apart:.1g} of it)")


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a module, by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _row_by_row(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """(models, rows, ...) of a function of rows; what all models share is computed once."""
    if values.stride(0) == 0:
        one = function(values[0])
        return one.expand(len(values), *one.shape)
    return function(values.flatten(0, 1)).unflatten(0, values.shape[:2])
