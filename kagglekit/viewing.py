"""Which views prediction keeps: those that help OOF answers, chosen without the rows scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from . import paired, scoring
from .competition import Competition
from .data import Data
from .errors import UserError
from .run import Answers, Key, Run
from .views import Mean, average


@dataclass(frozen=True)
class Choice:
    """Names of the views that are kept: for the test, and for the rows of each fold."""

    kept: tuple[str, ...]
    by_fold: Mapping[int, tuple[str, ...]]  # chosen on the other folds alone


def choose(
    competition: Competition, data: Data, members: Mapping[Key, Answers], mean: Mean
) -> Choice:
    """The views that help, by backward elimination: for all rows, and for each fold by the others.

    From all views that one is dropped whose absence costs least, as long as it costs nothing. A
    view that changes what a class means goes at once: its own answers are wrong. What is left
    stays where it beats the first view, the row as it is, by more than noise (the 95 % interval
    of `paired.gain`); else that one alone is kept.
    """
    scored = {key: answers for key, answers in members.items() if key.fold is not None}
    names = [str(name) for name in next(iter(scored.values())).views]
    folds = sorted({key.fold for key in scored if key.fold is not None})

    def of(chosen: Mapping[Key, Answers]) -> tuple[str, ...]:
        return tuple(names[at] for at in _eliminated(competition, data, chosen, mean))

    others = {fold: _others(scored, fold) for fold in folds}
    everything = tuple(names)
    # one fold alone has no other rows to learn from: its views all stay
    by_fold = {fold: of(rest) if rest else everything for fold, rest in others.items()}
    return Choice(of(scored) if len(folds) > 1 else everything, by_fold)


def _others(members: Mapping[Key, Answers], fold: int) -> dict[Key, Answers]:
    """The members of the other folds on rows that `fold` does not answer, if there are any.

    Folds that are repeated validate a row several times, and each time it must have no say.
    """
    own = [answers.valid_rows for key, answers in members.items() if key.fold == fold]
    found = {}
    for key, answers in members.items():
        left = ~np.isin(answers.valid_rows, np.concatenate(own))
        if key.fold != fold and left.any():
            found[key] = replace(
                answers,
                valid_rows=answers.valid_rows[left],
                valid=answers.valid[left],
                valid_views=answers.valid_views[:, left],
            )
    return found


def as_kept(run: Run, members: Mapping[Key, Answers], mean: Mean) -> dict[Key, Answers]:
    """The members as those views answer that the run keeps; as they are where it keeps all."""
    if run.kept_views(None) is None:
        return dict(members)
    # a fit on all rows has validated none, and so names no views
    named = next(answers.views for answers in members.values() if len(answers.views))
    known = [str(name) for name in named]

    def places(fold: int | None) -> list[int]:
        kept = run.kept_views(fold) or ()
        strange = [name for name in kept if name not in known]
        if strange or not kept:
            raise UserError(f"{run.folder / 'views.json'} keeps unknown views: train it again")
        return [known.index(name) for name in kept]

    found = {}
    for key, answers in members.items():
        tested = run.test_views(key)
        if tested.shape != (len(known), *answers.test.shape):
            raise UserError(f"{run.member(key)} has test views of another shape: train it again")
        changed = replace(answers, test=_mean(tested, places(None), mean))
        if key.fold is not None:
            changed = replace(changed, valid=_mean(answers.valid_views, places(key.fold), mean))
        found[key] = changed
    return found


def _mean(views: np.ndarray, places: Sequence[int], mean: Mean) -> np.ndarray:
    return average(torch.from_numpy(views[list(places)]), mean).numpy()


def _eliminated(
    competition: Competition, data: Data, members: Mapping[Key, Answers], mean: Mean
) -> list[int]:
    """Positions of the views that stay."""
    sign = 1.0 if competition.metric.greater_is_better else -1.0

    def score(places: Sequence[int]) -> float:
        chosen = {
            key: replace(answers, valid=_mean(answers.valid_views, places, mean))
            for key, answers in members.items()
        }
        folds = scoring.by_fold(chosen, competition.combine)
        cv: float = scoring.score_folds(competition, data, folds)["cv"]
        return sign * cv

    kept = list(range(len(next(iter(members.values())).views)))
    whole = score(kept)
    while len(kept) > 1:
        without = {at: score([other for other in kept if other != at]) for at in kept}
        # of equals the last: the first view is the row as it is
        weakest = max(reversed(kept), key=lambda at: without[at])
        if without[weakest] < whole:
            break
        kept.remove(weakest)
        whole = without[weakest]
    return kept if kept == [0] or _beats(competition, data, members, kept, mean) else [0]


def _beats(
    competition: Competition,
    data: Data,
    members: Mapping[Key, Answers],
    kept: Sequence[int],
    mean: Mean,
) -> bool:
    """Whether these views beat the first alone by more than noise."""
    seen, first = (
        scoring.decided_by_views(competition, data, members, chosen, mean) for chosen in (kept, [0])
    )
    rows = np.flatnonzero(first[1])
    judged = scoring.judge(competition, data, rows, [seen[0][rows], first[0][rows]])
    _, (low, _), _ = paired.gain(judged, 0, 1, competition.metric.greater_is_better)
    return low > 0
