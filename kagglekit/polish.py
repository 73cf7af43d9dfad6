"""The second-order phase: all rows at once, in double precision, after the last epoch.

What first-order training leaves behind is optimisation error (arXiv:2210.13447). These methods
take it down by orders of magnitude where the target has no noise; where it has, rows held out
inside the training rows stop them early.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from . import devices, signals
from .config import NetworkConfig
from .errors import UserError
from .loading import Batch, Loader, count
from .objectives import Function, Objective

_PATIENCE = 15  # steps without gain on the held-out rows
_CHUNK = 1000  # rows whose Jacobian is held at once, of all models
_LBFGS_ITERATIONS = 20  # of one step
# Bytes of the J'J of models that are polished together: on a CPU what stays in its caches.
_CURVATURE = {"cpu": 1 << 23, "cuda": 1 << 31, "mps": 1 << 30}
_ROWS = 1 << 31  # bytes of their rows times weights, which is more than activations take
_APART = 1e-9  # relative: what a model may answer otherwise beside others than alone

_log = logging.getLogger("kagglekit")


@dataclass(frozen=True)
class Case:
    """A trained model, the rows to fit and those held out, and where its phase stands."""

    model: nn.Module
    loaders: tuple[Loader, Loader]
    progress: dict[str, Any]


def demand_polishable(objective: Objective, config: NetworkConfig) -> None:
    """Raise UserError unless the method of `polish` can minimise the objective's loss."""
    if objective.parts != ("",):
        raise UserError("polish needs one loss for the whole model, not one a part: set polish=0")
    if config.polish_method == "gauss_newton" and objective.residual is None:
        raise UserError(
            "polish_method=gauss_newton needs a squared error: take polish_method=lbfgs"
        )


def polish(
    cases: Sequence[Case], objective: Objective, config: NetworkConfig, stepped: Callable[[], None]
) -> None:
    """At most `config.polish` steps of each model, in place; its best weights remain.

    Best is what the held-out rows say; a model that never beats its start there keeps its start.
    Models of one kind are polished together, each on its own rows and as it would be alone: by
    Gauss-Newton all at once, as far as memory allows; by L-BFGS, whose line search is the model's
    own, one after another. `progress` of a case holds what a restored phase goes on from; `stepped`
    is called after every step. Raises UserError for a loss that the method cannot minimise.
    """
    demand_polishable(objective, config)
    for case in cases:
        case.model.double().eval()  # no dropout, no batch statistics: the loss is a function
    for group in _groups(cases, objective, config):
        _polish_group(group, objective, config, stepped)


def _polish_group(
    cases: Sequence[Case], objective: Objective, config: NetworkConfig, stepped: Callable[[], None]
) -> None:
    try:
        phase = _done_phase(cases, objective, config, stepped)
    except (RuntimeError, ValueError) as error:  # of what vmap cannot, or memory does not hold
        if len(cases) == 1:
            raise
        full = isinstance(error, RuntimeError) and devices.is_out_of_memory(error)
        reason = "there is not memory for all" if full else str(error).split("\n")[0]
    else:
        _finish(phase, cases, objective)
        return
    # with the error went what it held of the phase for all
    _log.warning("engine: polishes its members one by one: %s", reason)
    for case in cases:
        _finish(_done_phase([case], objective, config, stepped), [case], objective)


def _done_phase(
    cases: Sequence[Case], objective: Objective, config: NetworkConfig, stepped: Callable[[], None]
) -> Phase:
    phase = _phase(cases, objective, config)
    _take_steps(phase, cases, config, stepped)
    return phase


def _finish(phase: Phase, cases: Sequence[Case], objective: Objective) -> None:
    phase.finish()
    if objective.settle is not None:
        for case, loss in zip(cases, phase.final_loss, strict=True):
            objective.settle(case.model, loss)


def _phase(cases: Sequence[Case], objective: Objective, config: NetworkConfig) -> Phase:
    """The phase of these models, at its start or where it was.

    Raises RuntimeError for models that would answer otherwise together than alone.
    """
    fit, held_out = (
        Rows.of([_all_rows(case.loaders[place], config) for case in cases]) for place in (0, 1)
    )
    models = [case.model for case in cases]
    phase = _METHODS[config.polish_method](models, objective, fit, held_out)
    if len(cases) > 1:
        _demand_alike(phase)
    if cases[0].progress:
        phase.load_state_dicts([case.progress["state"] for case in cases])
    return phase


def _take_steps(
    phase: Phase, cases: Sequence[Case], config: NetworkConfig, stepped: Callable[[], None]
) -> None:
    for step in range(cases[0].progress.get("steps", 0), config.polish):
        if phase.done:
            break
        with signals.deferred():
            phase.step()
            for case, state in zip(cases, phase.state_dicts(), strict=True):
                case.progress.update(steps=step + 1, state=state)
            stepped()


def _groups(
    cases: Sequence[Case], objective: Objective, config: NetworkConfig
) -> Iterator[list[Case]]:
    """Models that are polished together: what memory holds of those at the same step.

    How many that are depends on nothing but the models, so that a phase that is taken up again
    has the groups it had.
    """
    most = 1
    if config.polish_method == "gauss_newton":
        weights = [w for w in cases[0].model.parameters() if w.requires_grad]
        blocks = weights[0].shape[0] if objective.independent else 1
        whole = sum(weight.numel() for weight in weights)
        curved = whole**2 // blocks * 8
        shown = max(count(loader.dataset) for case in cases for loader in case.loaders) * whole * 8
        most = max(1, min(_CURVATURE[weights[0].device.type] // curved, _ROWS // shown))

    def steps(case: Case) -> int:
        done: int = case.progress.get("steps", 0)
        return done

    for _, same in groupby(sorted(cases, key=steps, reverse=True), steps):
        left = list(same)
        yield from (left[first : first + most] for first in range(0, len(left), most))


def _all_rows(loader: Loader, config: NetworkConfig) -> Batch:
    everything = replace(config, batch_size=count(loader.dataset), min_batches=1)
    whole = replace(loader, config=everything, training=False, dtype=torch.float64)
    return next(whole.batches(0))


@dataclass(frozen=True)
class Rows:
    """All rows of each model: the shorter ones are filled up with rows that do not count."""

    batch: list[Tensor]  # parts (models, rows, ...)
    count: Tensor  # (models,) rows that do count
    mask: Tensor | None  # (models, rows, 1) of 0 and 1; None where all count

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Rows:
        """The rows of each model's batch."""
        counts = [len(batch[0]) for batch in batches]
        most, device = max(counts), batches[0][0].device
        parts = zip(*batches, strict=True)
        batch = [torch.stack([_filled(part, most) for part in some]) for some in parts]
        count = torch.tensor(counts, dtype=torch.float64, device=device)
        mask = (torch.arange(most, device=device) < count[:, None]).double()[..., None]
        return cls(batch, count, None if min(counts) == most else mask)

    def chunks(self, size: int) -> Iterator[Rows]:
        """At most `size` rows of each model at a time."""
        parts = [part.split(size, dim=1) for part in self.batch]
        masks = [None] * len(parts[0]) if self.mask is None else self.mask.split(size, dim=1)
        for batch, mask in zip(zip(*parts, strict=True), masks, strict=True):
            yield Rows(list(batch), self.count, mask)

    def counted(self, values: Tensor) -> Tensor:
        """(models, rows, ...) values, 0 in rows that do not count."""
        return values if self.mask is None else values * self.mask


def _filled(part: Tensor, rows: int) -> Tensor:
    return torch.cat([part, part[-1:].expand(rows - len(part), *part.shape[1:])])


class Phase:
    """Weights of all models as one matrix, a row a block, and each block's best on held-out rows.

    A model has one block, or one for each column of an objective that is `independent`; those of a
    model lie together.
    """

    stateful: tuple[str, ...] = ("weights", "start", "best", "start_loss", "best_loss", "stale")

    def __init__(
        self, models: Sequence[nn.Module], objective: Objective, fit: Rows, held_out: Rows
    ) -> None:
        self.models, self.objective, self.fit, self.held_out = models, objective, fit, held_out
        self.wrapped = Function(models[0], objective.residual or objective.loss)
        self.names = [n for n, p in self.wrapped.named_parameters() if p.requires_grad]
        kept = [{f"model.{n}": t for n, t in _kept(model).items()} for model in models]
        self.kept = {name: torch.stack([each[name] for each in kept]) for name in kept[0]}
        trained = [_trained(model) for model in models]
        self.shapes = [weight.shape for weight in trained[0]]
        self.blocks = self.shapes[0][0] if objective.independent else 1  # of a model
        flat = [torch.cat([w.detach().reshape(self.blocks, -1) for w in own], 1) for own in trained]
        self.weights = torch.cat(flat)  # (models × blocks, size)
        self.start = self.weights.clone()
        self.best = self.weights.clone()
        self.start_loss = self._held_out_loss()
        # the path is compared with itself: it may have to pass through worse than its start
        self.best_loss = torch.full_like(self.start_loss, math.inf)
        self.stale = torch.zeros(len(self.weights), dtype=torch.long, device=self.weights.device)

    def step(self) -> None:
        """One step of every block."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether no block has gained on the held-out rows for a while."""
        return bool((self.stale >= _PATIENCE).all())

    @property
    def final_loss(self) -> Tensor:
        """(models, blocks) held-out loss of what `finish` leaves in the models."""
        return torch.minimum(self.best_loss, self.start_loss).unflatten(0, (-1, self.blocks))

    @torch.no_grad()
    def finish(self) -> None:
        """Put the best weights in the models; a block that never beat its start keeps the start."""
        kept = torch.where((self.best_loss < self.start_loss)[:, None], self.best, self.start)
        for model, *values in zip(self.models, *self._parts(kept), strict=True):
            for parameter, value in zip(_trained(model), values, strict=True):
                parameter.copy_(value)

    def losses(self, weights: Tensor, rows: Rows) -> Tensor:
        """(models × blocks,) mean loss with `weights`, (models × blocks, size)."""
        value = self.evaluate(weights, rows)
        if self.objective.residual is None:
            return value
        squares = value.square().sum(1) / rows.count[:, None]
        return (squares if self.objective.independent else squares.mean(1)).flatten()

    def evaluate(self, weights: Tensor, rows: Rows) -> Tensor:
        """Residuals (models, rows, columns), or losses (models,) where there are none."""
        named = dict(zip(self.names, self._parts(weights), strict=True))
        return rows.counted(self._all(self._one)({**named, **self.kept}, rows.batch))

    def _one(self, named: dict[str, Tensor], batch: Batch) -> Tensor:
        value: Tensor = functional_call(self.wrapped, named, (batch,))
        return value

    def _all(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a model's tensors, as one of those of all models."""
        return vmap(function) if len(self.models) > 1 else partial(_of_one, function)

    def _parts(self, weights: Tensor) -> list[Tensor]:
        """(models, ...) of each weight."""
        parts = weights.split([shape.numel() // self.blocks for shape in self.shapes], dim=1)
        pairs = zip(parts, self.shapes, strict=True)
        return [part.reshape(-1, *shape) for part, shape in pairs]

    @torch.no_grad()
    def _held_out_loss(self) -> Tensor:
        return self.losses(self.weights, self.held_out)

    def remember(self) -> None:
        """Keep the weights of every block whose held-out loss is its best so far."""
        loss = self._held_out_loss()
        better = loss < self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best = torch.where(better[:, None], self.weights.detach(), self.best)
        self.stale = torch.where(better, 0, self.stale + 1)

    def state_dicts(self) -> list[dict[str, Any]]:
        """Of each model, everything that its next step depends on."""
        parts = {name: self._by_model(getattr(self, name)) for name in self.stateful}
        places = range(len(self.models))
        return [{name: part[place] for name, part in parts.items()} for place in places]

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `state_dicts` gave."""
        for name in self.stateful:
            whole = torch.cat([state[name] for state in states])
            setattr(self, name, whole.to(self.weights.device))

    def _by_model(self, values: Tensor) -> list[Tensor]:
        """Copies, since a view would keep those of all models."""
        return [part.clone() for part in values.detach().cpu().split(self.blocks)]


def _of_one(function: Callable[..., Any], named: dict[str, Tensor], batch: Batch) -> Any:
    """A function of one model's tensors, without vmap but as by it."""
    alone = {name: tensor[0] for name, tensor in named.items()}
    return function(alone, [part[0] for part in batch])[None]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """Weights that are not trained, and buffers, by name."""
    frozen = {name: w.detach() for name, w in model.named_parameters() if not w.requires_grad}
    return {**frozen, **dict(model.named_buffers())}


@torch.no_grad()
def _demand_alike(phase: Phase) -> None:
    """Raise RuntimeError unless each model answers its held-out rows as it does alone."""
    rows = phase.held_out
    together = phase.evaluate(phase.weights, rows)
    for place, model in enumerate(phase.models):
        own = int(rows.count[place])
        alone = Function(model, phase.wrapped.function)([part[place, :own] for part in rows.batch])
        apart = float((together[place, :own] - alone).norm())
        if not apart <= _APART * max(float(alone.norm()), 1e-300):
            raise RuntimeError(f"together, {apart:.1g} of a residual would be another")


@dataclass(frozen=True)
class Damping:
    """How a Gauss-Newton step is held back, in units of the mean loss and its curvature."""

    first: float = 1e-2  # Marquardt's, as a share of the mean curvature
    anchor: float = 1e-3  # pull to the weights the phase began with
    relax: float = 0.4  # the anchor's factor at each step
    tries: int = 8  # dampings tried before a step is given up


class GaussNewton(Phase):
    """Levenberg-Marquardt, each block with its own damping, on a relaxing anchor.

    Step: (J'J + anchor + damping) d = -(J'r + anchor (w - start)). The geometric relaxation is the
    iteratively regularised Gauss-Newton method (Bakushinskii 1992): early weights are smooth ones
    near the start, late ones fit every row, and held-out rows pick the place between. Damping:
    Levenberg 1944, Marquardt 1963. Needs size² × 8 bytes a block, and rows × size² products.
    """

    stateful = (*Phase.stateful, "damping", "anchor")

    def __init__(
        self, models: Sequence[nn.Module], objective: Objective, fit: Rows, held_out: Rows
    ) -> None:
        super().__init__(models, objective, fit, held_out)
        self.settings = Damping()
        self.rows = fit.count.repeat_interleave(self.blocks)
        self.damping = torch.full_like(self.rows, self.settings.first)
        self.anchor = self.settings.anchor * self.rows

    def step(self) -> None:
        """One accepted step of every block still open."""
        curvature, slope = self._normal_equations()
        with torch.no_grad():
            self._descend(curvature, slope + self.anchor[:, None] * (self.weights - self.start))
        # far below rounding the anchor only costs digits
        self.anchor = torch.maximum(self.anchor * self.settings.relax, 1e-14 * self.rows)
        self.remember()

    @property
    def _open(self) -> Tensor:
        """(models × blocks,) whether a block may still gain."""
        return self.stale < _PATIENCE

    def _jacobian(self, rows: Rows) -> Tensor:
        """Residuals by weights: (models × blocks, rows × columns of a block, size)."""

        def one_row(weights: Tensor, kept: dict[str, Tensor], row: list[Tensor]) -> Tensor:
            named = dict(zip(self.names, (p[0] for p in self._parts(weights)), strict=True))
            return self._one({**named, **kept}, [value[None] for value in row])[0]

        def one_sum(*of: Any) -> Tensor:
            return one_row(*of).sum()

        independent = self.objective.independent  # weights of k move column k only
        per_row = grad(one_sum) if independent else jacrev(one_row)

        def one_model(named: dict[str, Tensor], batch: list[Tensor]) -> Tensor:
            kept = {name: part for name, part in named.items() if name != "weights"}
            by_row: Tensor = vmap(per_row, (None, None, 0))(named["weights"], kept, batch)
            return by_row

        weights = self.weights.unflatten(0, (-1, self.blocks))
        whole: Tensor = self._all(one_model)({"weights": weights, **self.kept}, rows.batch)
        if rows.mask is not None:
            whole = whole * rows.mask.reshape(*rows.mask.shape[:2], *[1] * (whole.ndim - 2))
        if independent:
            return whole.transpose(1, 2).flatten(0, 1).contiguous()
        return whole.reshape(len(self.weights), -1, self.weights.shape[1])

    def _normal_equations(self) -> tuple[Tensor, Tensor]:
        """J'J (models × blocks, size, size) and J'r (…, size), summed over chunks of rows."""
        blocks, size = self.weights.shape
        curvature = self.weights.new_zeros(blocks, size, size)
        slope = torch.zeros_like(self.weights)
        open_blocks = self._open.nonzero()[:, 0].tolist()
        for rows in self.fit.chunks(max(_CHUNK // len(self.models), 1)):
            with torch.no_grad():
                residual = self.evaluate(self.weights, rows)
            jacobian = self._jacobian(rows).detach()
            residual = residual.mT if self.objective.independent else residual
            residual = residual.reshape(blocks, -1)
            for block in open_blocks:
                matrix = jacobian[block]
                curvature[block].addmm_(matrix.mT, matrix)
                slope[block].addmv_(matrix.mT, residual[block])
        return curvature, slope

    def _descend(self, curvature: Tensor, slope: Tensor) -> None:
        """Move each open block by the least damped step found that lowers its loss."""
        scale = curvature.diagonal(dim1=1, dim2=2).mean(1)
        before = self._anchored(self.weights)
        waiting = self._open
        for _ in range(self.settings.tries):
            tried = waiting.nonzero()[:, 0]
            ridge = (self.anchor + self.damping * scale).clamp_min(1e-300)[tried]
            damped = curvature[tried]
            damped.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
            factor, failed = torch.linalg.cholesky_ex(damped)
            moved = self.weights.clone()
            moved[tried] -= torch.cholesky_solve(slope[tried, :, None], factor)[..., 0]
            accepted = self._anchored(moved) < before  # nan is False
            accepted[tried] &= failed == 0
            accepted &= waiting
            self.weights = torch.where(accepted[:, None], moved, self.weights)
            factors = torch.where(accepted, 0.25, torch.where(waiting, 4.0, 1.0))
            self.damping = (self.damping * factors).clamp(1e-15, 1e6)
            waiting = waiting & ~accepted
            if not waiting.any():
                return

    def _anchored(self, weights: Tensor) -> Tensor:
        """(models × blocks,) sum of squares with the anchor's pull."""
        value = self.evaluate(weights, self.fit).square().sum(1)
        squares = value if self.objective.independent else value.sum(1, keepdim=True)
        return squares.flatten() + self.anchor * (weights - self.start).square().sum(1)


class Lbfgs(Phase):
    """L-BFGS with a strong Wolfe line search (Nocedal and Wright 2006, ch. 7).

    For networks too large for `GaussNewton`, and for every loss: memory and work grow with the
    size, not with its square.
    """

    def __init__(
        self, models: Sequence[nn.Module], objective: Objective, fit: Rows, held_out: Rows
    ) -> None:
        super().__init__(models, objective, fit, held_out)
        self.weights.requires_grad_()
        self.optimizer = torch.optim.LBFGS(
            [self.weights],
            max_iter=_LBFGS_ITERATIONS,
            history_size=50,
            tolerance_grad=1e-14,
            tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )

    def step(self) -> None:
        """Some iterations on the sum of all blocks' losses."""

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.losses(self.weights, self.fit).sum()
            loss.backward()
            return loss

        self.optimizer.step(closure)
        self.remember()

    def state_dicts(self) -> list[dict[str, Any]]:
        """Of the model, everything that its next step depends on."""
        (state,) = super().state_dicts()
        return [state | {"optimizer": copy.deepcopy(self.optimizer.state_dict())}]

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `state_dicts` gave."""
        weights = self.weights
        super().load_state_dicts(states)
        with torch.no_grad():
            weights.copy_(self.weights)  # in place: the optimiser holds this tensor
        self.weights = weights
        self.optimizer.load_state_dict(copy.deepcopy(states[0]["optimizer"]))


_METHODS: dict[str, Callable[[Sequence[nn.Module], Objective, Rows, Rows], Phase]] = {
    "gauss_newton": GaussNewton,
    "lbfgs": Lbfgs,
}
