"""Ways to make one answer of several: chosen and fitted on OOF answers, kept as plain arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd

from . import paired
from .data import INDEPENDENT, Dependence
from .decisions import Decision, as_is, most_probable
from .errors import UserError
from .metrics import Metric, average_precision, eer, log_loss, mse, roc_auc

State = dict[str, np.ndarray]  # what a mix has learned
METHODS = ("single", "mean", "geometric", "ranks", "greedy", "weights", "stack")

_FOR_CLASSES, _FOR_NUMBERS = ("geometric", "ranks"), ("weights",)
_OF_ORDER = (roc_auc, average_precision, eer)
_KNOTS = np.linspace(0, 1, 1001)  # of the distribution that ranks are read from
_MOST_ROWS = 5000  # of one bag of the greedy selection
_MOST_CHOOSING_ROWS = 12_000  # on which methods are held against one another
_CHOOSING_FOLDS = 3
_BEYOND_NOISE = 1.64  # standard errors: one-sided, of twenty equal methods one passes
_MANY_PARTS = 8  # from here on a bag sees half of the parts
_RIDGE = 1e-3


@dataclass(frozen=True)
class Judge:
    """The competition's own score of mixed answers, for choosing; higher is better.

    A decision that is fitted anew each time would make the choice slow and lucky: then classes are
    judged by log loss, numbers by squared error.
    """

    metric: Metric | None = None
    decision: Decision = as_is

    def __call__(self, target: np.ndarray, answers: np.ndarray) -> float:
        """The score of (rows, ...) answers; -inf where the metric has none for such answers."""
        metric, decision = self._used(target)
        decided = decision(target, answers)(answers)
        try:
            score = metric.score(target, decided, pd.DataFrame(index=np.arange(len(target))))
        except (UserError, KeyError):  # a metric that reads columns of the table
            return -math.inf
        if not math.isfinite(score):
            return -math.inf
        return score if metric.greater_is_better else -score

    def surely(
        self, target: np.ndarray, one: np.ndarray, other: np.ndarray, dependence: Dependence
    ) -> bool:
        """Whether (rows, ...) answers score better than others by more than noise of the rows."""
        metric, decision = self._used(target)
        decided = [decision(target, part)(part) for part in (one, other)]
        table = pd.DataFrame(index=np.arange(len(target)))
        judged = paired.judged(metric, target, decided, table, dependence)
        if paired.pieces(judged) < 2:  # which says nothing of others
            return False
        first, second = judged.whole() * (1 if metric.greater_is_better else -1)
        return bool(first - second > _BEYOND_NOISE * paired.standard_error(judged, 0, 1))

    @property
    def reads_order(self) -> bool:
        """Whether scores change with the order of the answers alone, so that ranks are answers."""
        return self.metric in _OF_ORDER and self.decision is as_is

    def _used(self, target: np.ndarray) -> tuple[Metric, Decision]:
        if self.metric is None or self.decision not in (as_is, most_probable):
            return (mse if target.dtype.kind == "f" else log_loss), as_is
        return self.metric, self.decision


@dataclass(frozen=True)
class Task:
    """What a mix is fitted on: answers (parts, rows, ...) of models that did not see the row."""

    answers: np.ndarray
    target: np.ndarray  # (rows,) or (rows, outputs)
    judge: Judge = field(default_factory=Judge)
    dependence: Dependence = INDEPENDENT  # of the rows: what the choice of a method must not part
    seed: int = 0
    bags: int = 10
    rounds: int = 25

    @property
    def distributions(self) -> bool:
        """Whether each answer is a probability for each of several classes."""
        answers = self.answers
        if self.target.dtype.kind == "f" or answers.ndim != 3 or answers.shape[-1] < 2:
            return False
        inside = answers.min(initial=0) >= 0
        return bool(inside and (abs(answers.sum(-1) - 1) < 0.01).all())

    @property
    def numbers(self) -> bool:
        """Whether answers are numbers, one for each number of the target."""
        shape = (len(self.target), self.target.size // max(len(self.target), 1))
        return self.target.dtype.kind == "f" and self.answers.shape[1:] == shape

    def of(self, rows: np.ndarray) -> Task:
        """The task of some rows."""
        return replace(self, answers=self.answers[:, rows], target=self.target[rows],
                       dependence=self.dependence.of(rows))  # fmt: skip


def demand(task: Task, method: str) -> None:
    """Raise UserError for a method that such answers do not bear; "auto" they always do."""
    known = _fitters(task)
    if method != "auto" and method not in known:
        raise UserError(
            f"method={method} cannot mix such answers; there are: {', '.join(['auto', *known])}"
        )


def demand_of(target: np.ndarray, method: str) -> None:
    """Raise UserError for a method that no answers to such a target bear: before there are any."""
    numbers = target.dtype.kind == "f"
    if method in (_FOR_CLASSES if numbers else _FOR_NUMBERS):
        known = [
            name for name in METHODS if name not in (_FOR_CLASSES if numbers else _FOR_NUMBERS)
        ]
        raise UserError(
            f"method={method} cannot mix answers that are {'numbers' if numbers else 'classes'}; "
            f"there are: {', '.join(['auto', *known])}"
        )


def fit(task: Task, method: str = "auto") -> State:
    """Learn to mix by `method`, or by that which `choose` finds.

    Raises UserError for a method that such answers do not bear.
    """
    demand(task, method)
    if method == "auto":
        method = choose(task)
    return {**_fitters(task)[method](task), "method": np.array(method)}


def choose(task: Task) -> str:
    """The plain mean, or the method that does best of those that surely do better than it.

    Each is judged on rows that it was not fitted on, and that other models answered: what is
    learned of one model's answers may be wrong of the next one's. It has to be ahead by more than
    noise of the rows, and for each of the models; where one model answered all rows, there is no
    telling. Rows of a group stay together; of rows in time, each part is mixed as those before it
    say.
    """
    folds = task.dependence.folds
    if folds is not None and len(np.unique(folds)) < 2:
        return "mean"
    parts = _choosing_folds(task)
    mixes = {
        name: [apply(fitter(task.of(own)), task.answers[:, held]) for own, held in parts]
        for name, fitter in _candidates(task).items()
    }
    held = task.of(np.concatenate([rows for _, rows in parts]))
    scores = {name: task.judge(held.target, np.concatenate(mixes[name])) for name in mixes}
    by_part = [
        {name: task.judge(task.target[rows], mixes[name][number]) for name in mixes}
        for number, (_, rows) in enumerate(parts)
    ]

    def better(name: str) -> bool:
        if scores["mean"] == -math.inf or scores[name] <= scores["mean"]:
            return scores[name] > scores["mean"]
        if folds is not None and any(one[name] < one["mean"] for one in by_part):
            return False
        one, mean = (np.concatenate(mixes[each]) for each in (name, "mean"))
        return task.judge.surely(held.target, one, mean, held.dependence)

    return max(["mean", *filter(better, scores)], key=lambda name: scores[name])


def _candidates(task: Task) -> dict[str, Callable[[Task], State]]:
    """The methods to choose among: ranks are answers where their order is all that counts."""
    found = _fitters(task)
    return {name: found[name] for name in found if name != "ranks" or task.judge.reads_order}


def _choosing_folds(task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit on, rows held out) of each part; the same rows where there are no others."""
    rng = np.random.default_rng(task.seed)
    order = rng.permutation(len(task.target))[:_MOST_CHOOSING_ROWS]
    parts = [part for part in _parts(task, order, rng) if len(part)]
    if task.dependence.moments is None:
        others = [np.concatenate(parts[:at] + parts[at + 1 :] or parts) for at in range(len(parts))]
        return list(zip(others, parts, strict=True))
    moments = task.dependence.moments
    forward = [(order[moments[order] < moments[part].min()], part) for part in parts]
    return [(own, part) for own, part in forward if len(own)] or [(order, order)]


def _parts(task: Task, order: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows of `order` in parts: by the models that answered them, else about three alike."""
    depends = task.dependence
    if depends.folds is not None and len(np.unique(depends.folds[order])) > 1:
        labels = depends.folds  # groups are whole in them, and times in order, already
        values = list(np.unique(labels[order])[:, None])
    elif depends.moments is not None:
        labels = depends.moments
        values = np.array_split(np.unique(labels[order]), _CHOOSING_FOLDS + 1)
    elif depends.groups is not None:
        labels = depends.groups
        values = np.array_split(rng.permutation(np.unique(labels[order])), _CHOOSING_FOLDS)
    else:
        return np.array_split(order, _CHOOSING_FOLDS)
    return [order[np.isin(labels[order], some)] for some in values]


def apply(state: Mapping[str, np.ndarray], answers: np.ndarray) -> np.ndarray:
    """(rows, ...) from the parts' answers (parts, rows, ...)."""
    space = str(state["space"])
    if space == "stack":
        return _stacked(state, answers)
    seen = _ranked(state["knots"], answers) if space == "ranks" else answers
    if space == "logs":
        tiny = np.finfo(answers.dtype).tiny
        mixed = np.exp(_weighted(state["weights"], np.log(np.maximum(answers, tiny))))
        return mixed / mixed.sum(-1, keepdims=True)
    return _weighted(state["weights"], seen)


def fits(state: Mapping[str, np.ndarray], parts: int, outputs: tuple[int, ...]) -> bool:
    """Whether a state, as read from a file, is one for so many parts of such answers."""
    space = str(state.get("space", ""))
    width = outputs[-1] if outputs else 1
    if space == "stack":
        wanted = {"coefficients": (parts * width, width), "intercepts": (width,)}
    elif space in ("plain", "logs", "ranks"):
        wanted = {"weights": (parts, width)}
        if space == "ranks":
            wanted["knots"] = (parts, width, len(_KNOTS))
    else:
        return False
    found = {name: state.get(name, np.zeros(0)) for name in wanted}
    if space == "stack" and str(state.get("link", "")) not in ("identity", "softmax"):
        return False
    return all(
        part.shape == wanted[name] and part.dtype.kind == "f" for name, part in found.items()
    )


# --- the methods --------------------------------------------------------------------------------


def _fitters(task: Task) -> dict[str, Callable[[Task], State]]:
    """The methods that answers of this kind bear, the simplest first."""
    found: dict[str, Callable[[Task], State]] = {"single": _single, "mean": _mean}
    if task.distributions:
        found["geometric"] = partial(_mean, space="logs")
    if task.answers.ndim == 3 and task.target.dtype.kind != "f":
        found["ranks"] = _ranks
    found["greedy"] = _greedy
    if task.numbers:
        found |= {"weights": _weights, "stack": _linear_stack}
    if task.distributions:
        found["stack"] = _logistic_stack
    return found


def _plain(shares: np.ndarray, task: Task, space: str = "plain") -> State:
    """A state of weights (parts,) that all outputs share."""
    width = task.answers.shape[-1] if task.answers.ndim > 2 else 1
    return {"space": np.array(space), "weights": np.repeat(shares[:, None], width, axis=1)}


def _single(task: Task) -> State:
    """The best part alone."""
    scores = [task.judge(task.target, part) for part in task.answers]
    return _plain(np.eye(len(scores))[int(np.argmax(scores))], task)


def _mean(task: Task, space: str = "plain") -> State:
    """All parts alike."""
    parts = len(task.answers)
    return _plain(np.full(parts, 1 / parts), task, space)


def _ranks(task: Task) -> State:
    """The mean of ranks: where a number stands among the OOF answers of its part, 0 to 1."""
    knots = np.quantile(task.answers.astype(np.float64), _KNOTS, axis=1)  # (knots, parts, outputs)
    return {**_mean(task, "ranks"), "knots": np.moveaxis(knots, 0, -1)}


def _greedy(task: Task) -> State:
    """Greedy selection with replacement, bagged (Caruana et al. 2004, doi:10.1145/1015330.1015432).

    Each bag draws at most 5,000 rows with replacement, and of 8 parts or more one half; it begins
    with its best part, adds again and again that which helps the mean most, and keeps its best
    round. The weights are the mean over bags.
    """
    rng = np.random.default_rng(task.seed)
    parts, rows = len(task.answers), len(task.target)
    counts = np.zeros(parts)
    for _ in range(task.bags):
        drawn = rng.integers(0, rows, min(rows, _MOST_ROWS))
        size = math.ceil(parts / 2) if parts >= _MANY_PARTS else parts
        among = rng.permutation(parts)[:size]
        shares = _bag(task.answers[among][:, drawn], task.target[drawn], task.judge, task.rounds)
        counts[among] += shares
    return _plain(counts / counts.sum(), task)


def _bag(answers: np.ndarray, target: np.ndarray, judge: Judge, rounds: int) -> np.ndarray:
    """(parts,) shares of the best round of one bag."""
    taken = np.zeros(len(answers))
    total = np.zeros(answers.shape[1:], np.float64)
    best, kept = -math.inf, np.ones(len(answers))  # alike where rows drawn have no score at all
    for number in range(1, rounds + 1):
        scores = [judge(target, (total + part) / number) for part in answers]
        chosen = int(np.argmax(scores))
        taken = taken + np.eye(len(answers))[chosen]
        total += answers[chosen]
        if scores[chosen] > best:
            best, kept = scores[chosen], taken
        if number > 1 and scores[chosen] == -math.inf:
            break
    return kept / kept.sum()


def _weights(task: Task) -> State:
    """For each output non-negative weights that sum to one (Breiman 1996)."""
    target = task.target.reshape(len(task.target), -1)
    return {"space": np.array("plain"), "weights": weights(task.answers, target)}


def weights(answers: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(parts, outputs) weights that minimise the squared error of the weighted mean.

    `answers` is (parts, rows, outputs), `target` (rows, outputs). For each output: non-negative
    least squares of the errors against zero with one more row that asks for a sum of one; the
    direction of that solution is the constrained optimum, its scale is then set.
    """
    from scipy.optimize import nnls

    columns = []
    for output in range(target.shape[1]):
        errors = (answers[:, :, output] - target[:, output]).T
        scale = np.sqrt(np.mean(errors**2, axis=0)).min()
        if scale == 0:  # a perfect part takes it all
            solution = (np.abs(errors).max(0) == 0).astype(float)
        else:
            rows = errors / (scale * np.sqrt(len(errors)))
            system = np.vstack([rows, np.ones(len(answers))])
            solution, _ = nnls(system, np.append(np.zeros(len(rows)), 1.0))
        columns.append(solution / solution.sum())
    return np.stack(columns, axis=1)


def _linear_stack(task: Task) -> State:
    """Ridge regression on all parts' outputs, drawn to their plain mean (Wolpert 1992)."""
    target = task.target.reshape(len(task.target), -1)
    mean = task.answers.mean(axis=0)
    inputs = _side_by_side(task.answers)
    middle, offset = inputs.mean(0), (target - mean).mean(0)
    centred, left = inputs - middle, target - mean - offset
    square = centred.T @ centred
    ridge = _RIDGE * np.trace(square) / len(square)
    moved = np.linalg.solve(square + max(ridge, np.finfo(float).tiny) * np.eye(len(square)),
                            centred.T @ left)  # fmt: skip
    parts, _, outputs = task.answers.shape
    coefficients = np.tile(np.eye(outputs) / parts, (parts, 1)) + moved
    return {
        "space": np.array("stack"),
        "link": np.array("identity"),
        "coefficients": coefficients,
        "intercepts": offset - middle @ moved,
    }


def _logistic_stack(task: Task) -> State:
    """Multinomial logistic regression on the parts' log-probabilities, with scikit-learn's L2."""
    from sklearn.linear_model import LogisticRegression

    classes = task.answers.shape[-1]
    model = LogisticRegression(C=1.0, max_iter=300, tol=1e-3)
    inputs = _logs(task.answers)
    known = np.unique(task.target)
    coefficients, intercepts = np.zeros((inputs.shape[1], classes)), np.full(classes, -20.0)
    if len(known) < 2:
        intercepts[known] = 0.0
    else:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unconverged after 300 steps is good enough to judge
            model.fit(inputs, task.target)
        if len(known) == 2:  # scikit-learn then keeps the second class's side alone
            coefficients[:, known] = np.stack([-model.coef_[0], model.coef_[0]], axis=1) / 2
            intercepts[known] = np.array([-1, 1]) * model.intercept_[0] / 2
        else:
            coefficients[:, known] = model.coef_.T
            intercepts[known] = model.intercept_
    return {
        "space": np.array("stack"),
        "link": np.array("softmax"),
        "coefficients": coefficients,
        "intercepts": intercepts,
    }


def _stacked(state: Mapping[str, np.ndarray], answers: np.ndarray) -> np.ndarray:
    softmax = str(state["link"]) == "softmax"
    inputs = _logs(answers) if softmax else _side_by_side(answers)
    found = inputs @ state["coefficients"] + state["intercepts"]
    if not softmax:
        return found
    found = np.exp(found - found.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)


def _logs(answers: np.ndarray) -> np.ndarray:
    """(rows, parts · classes) log-probabilities, no less than those of single precision."""
    return np.log(np.maximum(_side_by_side(answers), 1e-6))


def _side_by_side(answers: np.ndarray) -> np.ndarray:
    """(parts, rows, outputs) -> (rows, parts · outputs), float64."""
    parts, rows, outputs = answers.shape
    return np.moveaxis(answers, 0, 1).reshape(rows, parts * outputs).astype(np.float64)


def _ranked(knots: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(parts, rows, outputs) of 0 to 1: the share of the OOF answers below."""
    found = np.empty(answers.shape, np.float64)
    for part in range(len(answers)):
        for output in range(answers.shape[-1]):
            of = knots[part, output]
            low = np.searchsorted(of, answers[part, :, output], "left")
            high = np.searchsorted(of, answers[part, :, output], "right")
            found[part, :, output] = (low + high) / 2 / len(of)  # ties: the middle of their places
    return found


def _weighted(shares: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The weighted mean over parts; `shares` (parts, outputs) go with the last axis."""
    if answers.ndim == 2:  # (parts, rows): one number a row
        shares = shares[:, 0]
    return sum(share * part for share, part in zip(shares, answers, strict=True))
