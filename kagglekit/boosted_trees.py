"""Regression by gradient-boosted trees, kept as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class BoostedTrees:
    """Histogram gradient boosting, one sequence of trees for each output.

    Friedman 2001, doi:10.1214/aos/1013203451; histograms and leaf-wise growth as in LightGBM (Ke et
    al. 2017); scikit-learn's implementation. Training stops when `patience` trees have brought no
    gain on a share of the rows given to `fit`.
    """

    learning_rate: float = 0.05
    most_trees: int = 600
    leaves: int = 31  # of a tree, at most
    fewest_rows: int = 10  # in a leaf
    l2: float = 1e-3  # penalty on a leaf's value
    validation: float = 0.1  # share of the rows that decides when to stop
    patience: int = 30

    def fit(self, x: Array, y: Array, seed: int = 0) -> State:
        """Fit (rows, inputs) to (rows, outputs).

        Raises RuntimeError where the installed scikit-learn keeps its trees in another form.
        """
        from threadpoolctl import threadpool_limits

        bases, forests = [], []
        # sums of gradients by several threads end in other last bits than by one
        with threadpool_limits(1):
            for column in y.T:
                model = self._model(len(x), seed).fit(x, column)
                base, trees = _read(model)
                state = _packed([base], [trees])
                _check(self.predict(state, x[:64])[:, 0], model.predict(x[:64]))
                bases.append(base)
                forests.append(trees)
        return _packed(bases, forests)

    def predict(self, state: State, x: Array) -> Array:
        """(rows, outputs) for (rows, inputs); ValueError for nodes that lead back or nowhere."""
        own, nodes = np.arange(len(state["left"])), (state["left"], state["right"])
        if any(((below < own) | (below >= len(own))).any() for below in nodes):
            raise ValueError("a node of a tree does not lead to a later one")
        answers: Array = np.tile(state["base"], (len(x), 1))
        forests = np.split(state["roots"], np.cumsum(state["trees"])[:-1])
        for output, roots in enumerate(forests):
            for start in range(0, len(x), _BLOCK):
                rows = slice(start, start + _BLOCK)
                answers[rows, output] += state["value"][_leaves(state, x[rows], roots)].sum(1)
        return answers

    def _model(self, rows: int, seed: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingRegressor

        return HistGradientBoostingRegressor(
            learning_rate=self.learning_rate,
            max_iter=self.most_trees,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=min(self.fewest_rows, max(rows // 4, 1)),
            l2_regularization=self.l2,
            early_stopping=rows >= _FEWEST_TO_SHARE,
            validation_fraction=self.validation,
            n_iter_no_change=self.patience,
            random_state=seed,
        )


def _read(model: Any) -> tuple[float, list[NDArray[Any]]]:
    """The constant that the trees add to, and the nodes of each; scikit-learn names neither."""
    try:
        return float(model._baseline_prediction.ravel()[0]), [
            tree.nodes for (tree,) in model._predictors
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise _unknown_form() from error


def _check(own: Array, expected: Array) -> None:
    """Refuse trees that answer differently here than in scikit-learn."""
    if not np.allclose(own, expected, rtol=1e-9, atol=1e-9 * float(np.abs(expected).max())):
        raise _unknown_form()


def _unknown_form() -> RuntimeError:
    import sklearn

    return RuntimeError(
        f"scikit-learn {sklearn.__version__} keeps the trees of HistGradientBoostingRegressor in a"
        " form that BoostedTrees cannot read"
    )


def _packed(bases: list[float], forests: list[list[NDArray[Any]]]) -> State:
    """All nodes of all trees end to end; a leaf is its own child, so that a descent rests there."""
    sizes = [len(nodes) for trees in forests for nodes in trees]
    first = np.cumsum([0, *sizes])
    nodes = np.concatenate([nodes for trees in forests for nodes in trees])
    offset = np.repeat(first[:-1], sizes)
    leaf = nodes["is_leaf"].astype(bool)
    own = np.arange(len(nodes))
    return {
        "feature": np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64),
        "threshold": nodes["num_threshold"].astype(np.float64),
        "missing_left": nodes["missing_go_to_left"].astype(bool),
        "left": np.where(leaf, own, nodes["left"].astype(np.int64) + offset),
        "right": np.where(leaf, own, nodes["right"].astype(np.int64) + offset),
        "value": nodes["value"].astype(np.float64),
        "base": np.array(bases),
        "trees": np.array([len(trees) for trees in forests]),
        "roots": first[:-1],
    }


def _leaves(state: State, x: Array, roots: NDArray[Any]) -> NDArray[np.int64]:
    """(rows, trees): the leaf that each row reaches from each root."""
    node = np.broadcast_to(roots, (len(x), len(roots)))
    while True:
        value = np.take_along_axis(x, state["feature"][node], axis=1)
        goes_left = np.where(
            np.isnan(value), state["missing_left"][node], value <= state["threshold"][node]
        )
        below: NDArray[np.int64] = np.where(goes_left, state["left"][node], state["right"][node])
        if np.array_equal(below, node):
            return below
        node = below


_FEWEST_TO_SHARE = 50  # rows; with fewer, all trees are grown
_BLOCK = 512  # rows at once: (rows, trees) stays in the processor's cache
