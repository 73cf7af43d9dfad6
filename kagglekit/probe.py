"""The recipe of few examples: a linear classifier on frozen features, every choice nested."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from scipy.special import softmax

from . import backbones, files, folds
from .backbones import BackboneConfig
from .config import Config, knob
from .data import Data, Split
from .errors import UserError
from .randomness import derive
from .recipe import Member, Predictor, one_by_one

Candidates = Mapping[str, np.ndarray]  # name -> features (views, rows, features) of all rows

_STEPS = 500  # of the solver; what is not done by then changes no answer that counts


@dataclass(frozen=True, kw_only=True)
class ChoiceConfig(Config):
    """Strengths and sets of features are chosen inside each training fold."""

    strengths: tuple[float, ...] = knob(
        (0.01, 0.1, 1.0, 10.0), "inverse penalties C of the classifier to choose among", least=1e-9
    )
    inner_folds: int = knob(5, "folds inside the training rows, on which is chosen", least=2)
    average: int = knob(3, "so many of the best candidates answer together", least=1)
    class_weights: Literal["none", "balanced"] = knob(
        "none", "balanced = every class weighs the same, however many rows it has"
    )
    tta: bool = knob(True, "average over all views of a row when predicting")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(BackboneConfig, ChoiceConfig):
    """Strengths and layers of a backbone are chosen inside each training fold."""

    layers: tuple[str, ...] = knob(
        ("pooled", "block2", "block3", "block4"), "layers of the backbone to choose among"
    )


P = TypeVar("P", bound=ChoiceConfig)


@dataclass(frozen=True)
class Probe(Generic[P]):
    """Multinomial logistic regression on the best of several sets of frozen features.

    `candidates` gives the features of all training rows, or of all test rows, view by view: they
    know nothing of targets. Which sets answer, and how strongly each is penalised, is chosen by
    the log-loss of cross-validation inside the member's training rows, where rows that share a
    value of the column `group` stay together: so the rows that a member is scored on have no say.
    """

    candidates: Callable[[Data, bool, P], Candidates]  # (data, whether of the test, knobs)
    config: P
    group: str | None = None  # a column of the training table
    needs: tuple[str, ...] = ()
    views: tuple[str, ...] = ()  # names, in the features' order, for which gains are reported

    def resolve(self, config: P, sample: Split) -> P:
        """`config` with the backbone, if it has one, and the content of its weights filled in."""
        return backbones.resolve(config) if isinstance(config, BackboneConfig) else config

    def fit(self, members: Sequence[Member], config: P) -> None:
        """Choose and fit for each member; what it learned goes to its folder."""
        one_by_one(members, lambda member: self._fit(member, config))

    def _fit(self, member: Member, config: P) -> None:
        if (member.folder / "learned.npz").exists():
            return
        data, rows = member.train.data, member.train.rows
        features = {n: part[:, rows] for n, part in self.candidates(data, False, config).items()}
        target = member.train.target
        assert target is not None
        if target.dtype.kind != "i":
            raise UserError("Probe answers with classes, but this competition's target is numbers")
        inner = self._inner_folds(member, config)
        losses = {
            name: self._losses(part, target, inner, config) for name, part in features.items()
        }
        best = sorted(losses, key=lambda name: min(losses[name]))[: config.average]
        learned: dict[str, np.ndarray] = {"candidates": np.array(best, str)}
        chosen = []
        for number, name in enumerate(best):
            strength = config.strengths[int(np.argmin(losses[name]))]
            fitted = _fitted(features[name], target, [strength], config, data.outputs)[0]
            learned |= {f"{part}{number}": value for part, value in fitted.items()}
            chosen.append({"features": name, "C": strength, "inner_log_loss": min(losses[name])})
        files.write_json(member.folder / "chosen.json", {"chosen": chosen, "inner_losses": losses})
        files.write_arrays(member.folder / "learned.npz", **learned)  # the last: finished

    def _inner_folds(self, member: Member, config: P) -> list[folds.Fold]:
        """Folds of the member's training rows, positions among them."""
        split, data = member.train, member.train.data
        assert split.target is not None
        own = replace(data, train=split.frame.reset_index(drop=True), target=split.target)
        units = split.frame[self.group].to_numpy() if self.group else np.arange(len(split))
        scarcest = min(len(set(units[split.target == c])) for c in set(split.target.tolist()))
        count = max(min(config.inner_folds, scarcest), 2)
        seed = derive(member.seed, member.name, "inner folds") % 2**31
        rule = folds.stratified_grouped(self.group) if self.group else folds.stratified
        return folds.split(own, replace(config, folds=count, folds_file="", seed=seed), rule)

    def _losses(
        self, features: np.ndarray, target: np.ndarray, inner: Iterable[folds.Fold], config: P
    ) -> list[float]:
        """The log-loss of each strength on rows held out inside the training rows."""
        outputs = int(target.max()) + 1
        losses = np.zeros((len(config.strengths), len(target)))
        for train, valid in inner:
            fitted = _fitted(features[:, train], target[train], config.strengths, config, outputs)
            for number, learned in enumerate(fitted):
                right = _merged(_answers(learned, features[:, valid], config.tta))[
                    np.arange(len(valid)), target[valid]
                ]
                losses[number, valid] = -np.log(np.maximum(right, 1e-12))
        return [float(loss) for loss in losses.mean(axis=1)]

    def restore(self, folder: Path, config: P, before: Mapping[str, Predictor]) -> Predictor:
        """The predictor of a fitted member; UserError where its arrays are not a probe's."""
        path = folder / "learned.npz"
        learned = files.read_arrays(path)

        def by_view(split: Split) -> np.ndarray:
            features = self.candidates(split.data, split.stage == "test", config)
            try:
                parts = [
                    _answers(_part(learned, number), features[name][:, split.rows], config.tta)
                    for number, name in enumerate(learned["candidates"].tolist())
                ]
                return np.mean(parts, axis=0)
            except (LookupError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path} is not what this recipe learns ({error}): restore a copy, or train it"
                    " again"
                ) from error

        if self.views:
            return ProbePredictor(by_view, self.views if config.tta else self.views[:1])
        return lambda split: _merged(by_view(split))


@dataclass(frozen=True)
class Look:
    """A view by its name: what it is lies in the features."""

    name: str


@dataclass(frozen=True)
class ProbePredictor:
    """Answers of one fitted member, also view by view."""

    ask: Callable[[Split], np.ndarray]  # (views, rows, classes)
    names: tuple[str, ...]  # of the views, in the order of the features

    @property
    def views(self) -> tuple[Look, ...]:
        """The views that are averaged."""
        return tuple(map(Look, self.names))

    def __call__(self, split: Split) -> np.ndarray:
        """(rows, classes) probabilities, averaged over the views."""
        return self.merge(self.by_view(split))

    def by_view(self, split: Split) -> np.ndarray:
        """(views, rows, classes) probabilities; UserError where views are not as many as names."""
        found = self.ask(split)
        if len(found) != len(self.names):
            raise UserError(
                f"the recipe names {len(self.names)} views ({', '.join(self.names)}), but its "
                f"features have {len(found)}: correct `views` of the Probe"
            )
        return found

    def batches(self, split: Split, first: int = 0) -> Iterator[np.ndarray]:
        """All rows in one batch, number 0."""
        if first == 0:
            yield self.by_view(split)

    def merge(self, answers: np.ndarray) -> np.ndarray:
        """(views, rows, classes) -> (rows, classes)."""
        return _merged(answers)


def _merged(answers: np.ndarray) -> np.ndarray:
    found: np.ndarray = answers.mean(axis=0)
    return found


def _part(learned: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    return {name: learned[f"{name}{number}"] for name in ("weights", "bias")}


def _answers(
    learned: Mapping[str, np.ndarray], features: np.ndarray, all_views: bool
) -> np.ndarray:
    """(views, rows, classes) probabilities, of all views or of the first alone."""
    logits = (features if all_views else features[:1]) @ learned["weights"] + learned["bias"]
    probabilities: np.ndarray = softmax(logits, axis=-1)
    return probabilities


def _fitted(
    features: np.ndarray,
    target: np.ndarray,
    strengths: Sequence[float],
    config: ChoiceConfig,
    outputs: int,
) -> list[dict[str, np.ndarray]]:
    """The classifier of each strength: `weights` (features, classes) and `bias` (classes,).

    Every view (views, rows, features) is a row to learn from. Features are scaled to a variance of
    one, and then expressed in the directions that the rows span, since no penalised classifier
    looks into others: so a thousand features cost no more than there are rows.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    views, rows, _ = features.shape
    x = features.reshape(views * rows, -1).astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-9 * max(float(scale.max()), 1e-30)] = 1.0  # a feature that never changes
    x = (x - mean) / scale
    fitted = []
    with threadpool_limits(1), warnings.catch_warnings():  # small sums; the same on any machine
        warnings.simplefilter("ignore", ConvergenceWarning)
        directions = np.eye(x.shape[1])
        if x.shape[1] > len(x):
            directions = np.linalg.svd(x, full_matrices=False)[2].T
        weight = None if config.class_weights == "none" else config.class_weights
        learner: Any = LogisticRegression(class_weight=weight, max_iter=_STEPS, warm_start=True)
        for strength in strengths:
            learner.set_params(C=strength / views)  # a view is no new row
            learner.fit(x @ directions, np.tile(target, views))
            fitted.append(_as_arrays(learner, directions, mean, scale, outputs))
    return fitted


def _as_arrays(
    learner: Any, directions: np.ndarray, mean: np.ndarray, scale: np.ndarray, outputs: int
) -> dict[str, np.ndarray]:
    """The learner as one linear map of unscaled features to a logit a class."""
    rising = learner.coef_ @ directions.T / scale
    offset = learner.intercept_ - rising @ mean
    if len(learner.classes_) == 2:  # it keeps the difference of the two logits
        rising, offset = (
            np.concatenate([-rising, rising]) / 2,
            np.concatenate([-offset, offset]) / 2,
        )
    weights, bias = np.zeros((rising.shape[1], outputs)), np.full(outputs, -np.inf)
    weights[:, learner.classes_], bias[learner.classes_] = rising.T, offset
    return {"weights": weights, "bias": bias}
