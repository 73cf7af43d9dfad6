"""The second-order phase: all rows at once, in double precision, after the last epoch.

What first-order training leaves behind is optimisation error (arXiv:2210.13447). These methods
take it down by orders of magnitude where the target has no noise; where it has, rows held out
inside the training rows stop them early.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from . import signals
from .config import NetworkConfig
from .errors import UserError
from .loading import Batch, Loader, count
from .objectives import Function, Objective

_PATIENCE = 15  # steps without gain on the held-out rows
_CHUNK = 1000  # rows whose Jacobian is held at once
_LBFGS_ITERATIONS = 20  # of one step


def demand_polishable(objective: Objective, config: NetworkConfig) -> None:
    """Raise UserError unless the method of `polish` can minimise the objective's loss."""
    if objective.parts != ("",):
        raise UserError("polish needs one loss for the whole model, not one a part: set polish=0")
    if config.polish_method == "gauss_newton" and objective.residual is None:
        raise UserError(
            "polish_method=gauss_newton needs a squared error: take polish_method=lbfgs"
        )


def polish(
    model: nn.Module,
    objective: Objective,
    loaders: tuple[Loader, Loader],
    config: NetworkConfig,
    progress: dict[str, Any],
    stepped: Callable[[], None],
) -> None:
    """At most `config.polish` steps, in place; the best weights on the held-out rows remain.

    `loaders` are of the rows to fit and of those held out. A model that never beats its start on
    the held-out rows keeps its start. `progress` holds what a restored phase goes on from;
    `stepped` is called after every step. Raises UserError for a loss that the method cannot
    minimise.
    """
    demand_polishable(objective, config)
    model.double().eval()  # no dropout, no batch statistics: the loss must be a function
    fit, held_out = (_all_rows(loader, config) for loader in loaders)
    phase = _METHODS[config.polish_method](model, objective, fit, held_out)
    if progress:
        phase.load_state_dict(progress["state"])
    for step in range(progress.get("steps", 0), config.polish):
        if phase.done:
            break
        with signals.deferred():
            phase.step()
            progress.update(steps=step + 1, state=phase.state_dict())
            stepped()
    phase.finish()
    if objective.settle is not None:
        objective.settle(model, phase.final_loss)


def _all_rows(loader: Loader, config: NetworkConfig) -> Batch:
    everything = replace(config, batch_size=count(loader.dataset), min_batches=1)
    whole = replace(loader, config=everything, training=False, dtype=torch.float64)
    return next(whole.batches(0))


class Phase:
    """Weights as one matrix, a row a block, and the best of each block on held-out rows."""

    stateful: tuple[str, ...] = ("weights", "start", "best", "start_loss", "best_loss", "stale")

    def __init__(self, model: nn.Module, objective: Objective, fit: Batch, held_out: Batch) -> None:
        self.objective, self.fit, self.held_out = objective, fit, held_out
        self.wrapped = Function(model, objective.residual or objective.loss)
        self.buffers = dict(self.wrapped.named_buffers())
        named = {n: p for n, p in self.wrapped.named_parameters() if p.requires_grad}
        self.parameters = named
        self.blocks = next(iter(named.values())).shape[0] if objective.independent else 1
        flat = [weight.detach().reshape(self.blocks, -1) for weight in named.values()]
        self.weights = torch.cat(flat, dim=1)  # (blocks, size)
        self.start = self.weights.clone()
        self.best = self.weights.clone()
        self.start_loss = self._held_out_loss()
        # the path is compared with itself: it may have to pass through worse than its start
        self.best_loss = torch.full_like(self.start_loss, math.inf)
        self.stale = torch.zeros(self.blocks, dtype=torch.long, device=self.weights.device)

    def step(self) -> None:
        """One step of every block."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether no block has gained on the held-out rows for a while."""
        return bool((self.stale >= _PATIENCE).all())

    @property
    def final_loss(self) -> Tensor:
        """(blocks,) held-out loss of what `finish` leaves in the model."""
        return torch.minimum(self.best_loss, self.start_loss)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the best weights in the model; a block that never beat its start keeps the start."""
        kept = torch.where((self.best_loss < self.start_loss)[:, None], self.best, self.start)
        for parameter, value in zip(self.parameters.values(), self._parts(kept), strict=True):
            parameter.copy_(value)

    def losses(self, weights: Tensor, batch: Batch) -> Tensor:
        """(blocks,) mean loss with `weights`, (blocks, size)."""
        value = self.evaluate(weights, batch)
        if self.objective.residual is None:
            return value.reshape(1)
        squares = value.square().mean(0)
        return squares if self.objective.independent else squares.mean(0, keepdim=True)

    def evaluate(self, weights: Tensor, batch: Batch) -> Tensor:
        """The residual (rows, columns), or the loss where there is none, with `weights`."""
        named = dict(zip(self.parameters, self._parts(weights), strict=True))
        value: Tensor = functional_call(self.wrapped, named | self.buffers, (batch,))
        return value

    def _parts(self, weights: Tensor) -> list[Tensor]:
        shapes = [parameter.shape for parameter in self.parameters.values()]
        parts = weights.split([shape.numel() // self.blocks for shape in shapes], dim=1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

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

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {name: getattr(self, name).detach().cpu().clone() for name in self.stateful}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in self.stateful:
            setattr(self, name, state[name].to(self.weights.device))


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

    def __init__(self, model: nn.Module, objective: Objective, fit: Batch, held_out: Batch) -> None:
        super().__init__(model, objective, fit, held_out)
        self.settings = Damping()
        self.rows = len(fit[0])
        self.damping = self.weights.new_full((self.blocks,), self.settings.first)
        self.anchor = self.weights.new_full((self.blocks,), self.settings.anchor * self.rows)

    def step(self) -> None:
        """One accepted step of every block still open."""
        curvature, slope = self._normal_equations()
        with torch.no_grad():
            self._descend(curvature, slope + self.anchor[:, None] * (self.weights - self.start))
        # far below rounding the anchor only costs digits
        self.anchor = (self.anchor * self.settings.relax).clamp_min(1e-14 * self.rows)
        self.remember()

    def _jacobian(self, batch: Batch) -> Tensor:
        """Residuals by weights for some rows: (blocks, rows × columns of a block, size)."""

        def one_row(weights: Tensor, *row: Tensor) -> Tensor:
            return self.evaluate(weights, [value[None] for value in row])[0]

        rows_only = (None, *[0] * len(batch))
        if self.objective.independent:  # weights of k move column k only: one gradient of the sum
            per_row = vmap(grad(lambda w, *row: one_row(w, *row).sum()), rows_only)
            independent: Tensor = per_row(self.weights, *batch)
            return independent.transpose(0, 1).contiguous()
        whole: Tensor = vmap(jacrev(one_row), rows_only)(self.weights, *batch)
        return whole.reshape(1, -1, self.weights.shape[1])

    def _normal_equations(self) -> tuple[Tensor, Tensor]:
        """J'J (blocks, size, size) and J'r (blocks, size), summed over chunks of rows."""
        blocks, size = self.weights.shape
        curvature = self.weights.new_zeros(blocks, size, size)
        slope = torch.zeros_like(self.weights)
        open_blocks = (self.stale < _PATIENCE).nonzero()[:, 0].tolist()
        for chunk in zip(*(part.split(_CHUNK) for part in self.fit), strict=True):
            batch = list(chunk)
            with torch.no_grad():
                residual = self.evaluate(self.weights, batch)
            jacobian = self._jacobian(batch).detach()
            residual = residual.mT if self.objective.independent else residual.reshape(1, -1)
            for block in open_blocks:
                matrix = jacobian[block]
                curvature[block].addmm_(matrix.mT, matrix)
                slope[block].addmv_(matrix.mT, residual[block])
        return curvature, slope

    def _descend(self, curvature: Tensor, slope: Tensor) -> None:
        """Move each open block by the least damped step found that lowers its loss."""
        scale = curvature.diagonal(dim1=1, dim2=2).mean(1)
        identity = torch.eye(curvature.shape[1], dtype=curvature.dtype, device=curvature.device)
        before = self._anchored(self.weights)
        waiting = self.stale < _PATIENCE
        for _ in range(self.settings.tries):
            ridge = (self.anchor + self.damping * scale).clamp_min(1e-300)
            factor, failed = torch.linalg.cholesky_ex(curvature + ridge[:, None, None] * identity)
            moved = self.weights - torch.cholesky_solve(slope[..., None], factor)[..., 0]
            accepted = waiting & (failed == 0) & (self._anchored(moved) < before)  # nan is False
            self.weights = torch.where(accepted[:, None], moved, self.weights)
            factors = torch.where(accepted, 0.25, torch.where(waiting, 4.0, 1.0))
            self.damping = (self.damping * factors).clamp(1e-15, 1e6)
            waiting = waiting & ~accepted
            if not waiting.any():
                return

    def _anchored(self, weights: Tensor) -> Tensor:
        """(blocks,) sum of squares with the anchor's pull."""
        value = self.evaluate(weights, self.fit).square().sum(0)
        squares = value if self.objective.independent else value.sum(0, keepdim=True)
        return squares + self.anchor * (weights - self.start).square().sum(1)


class Lbfgs(Phase):
    """L-BFGS with a strong Wolfe line search (Nocedal and Wright 2006, ch. 7).

    For networks too large for `GaussNewton`, and for every loss: memory and work grow with the
    size, not with its square.
    """

    def __init__(self, model: nn.Module, objective: Objective, fit: Batch, held_out: Batch) -> None:
        super().__init__(model, objective, fit, held_out)
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

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return super().state_dict() | {"optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        weights = self.weights
        super().load_state_dict(state)
        with torch.no_grad():
            weights.copy_(self.weights)  # in place: the optimiser holds this tensor
        self.weights = weights
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


_METHODS: dict[str, Callable[[nn.Module, Objective, Batch, Batch], Phase]] = {
    "gauss_newton": GaussNewton,
    "lbfgs": Lbfgs,
}
