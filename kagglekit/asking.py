"""What fitted members answer: to the rows held out of them, view by view, and to the test."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import devices, files
from . import run as runs
from .config import Config
from .data import Split
from .gather import gather, gather_abreast
from .recipe import Joint, Member, Recipe
from .run import Answers, Key, Run
from .stacking import Unstackable

_log = logging.getLogger("kagglekit")


@dataclass(frozen=True)
class Asker:
    """Asks the members of a run; batches that a killed session had answered are not asked again."""

    recipe: Recipe
    config: Config
    run: Run
    test: Split
    each_view: bool  # of the test too, since which ones count is not chosen yet

    def __call__(self, member: Member) -> Answers:
        """What a member answers to its validation rows, view by view, and to the test."""
        predictor: Any = self.recipe.restore(member.folder, self.config, member.before)
        by_view = hasattr(predictor, "batches")
        each = by_view and self.each_view

        def ask(split: Split, part: str, merged: bool) -> np.ndarray:
            def batches(first: int) -> Iterator[np.ndarray]:
                if not by_view:
                    yield from [] if first else [predictor(split)[None]]
                    return
                for answers in predictor.batches(split, first):
                    yield predictor.merge(answers)[None] if merged else answers

            return gather(batches, len(split), member.folder / runs.ASKED[part], self._seconds)

        test = ask(self.test, "test", merged=not each)
        if each:
            self.run.keep_views(Key.parse(member.name), test)
            test = predictor.merge(test)[None]
        test = test[0]
        if not len(member.valid):
            return Answers(member.valid.rows, test[:0], test, test[None, :0][:0], np.array([], str))
        valid = ask(member.valid, "valid", merged=False)
        if not by_view:
            return Answers(member.valid.rows, valid[0], test, valid[:0], np.array([], str))
        views = np.array([view.name for view in predictor.views], str)
        return Answers(member.valid.rows, predictor.merge(valid), test, valid, views)

    def together(self, members: Sequence[Member]) -> None:
        """Ask several members at once, where the recipe can: what they answer is gathered on disk.

        What they are asked afterwards, one by one, is then known. None is to be finished before all
        are asked, so that a killed session's members are asked by the same company again.
        """
        recipe = self.recipe
        if len(members) < 2 or not isinstance(recipe, Joint):
            return
        if any((member.folder / runs.ALONE).exists() for member in members):
            return
        predictors: list[Any] = [
            recipe.restore(member.folder, self.config, member.before) for member in members
        ]
        pairs = list(zip(members, predictors, strict=True))
        try:
            self._ask(pairs, "test", recipe)
            self._ask([pair for pair in pairs if len(pair[0].valid)], "valid", recipe)
        except Unstackable as reason:
            _part(members, str(reason))
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            _part(members, "there is not memory for all")

    def _ask(self, pairs: Sequence[tuple[Member, Any]], part: str, recipe: Joint) -> None:
        if len(pairs) < 2:
            return
        members, predictors = zip(*pairs, strict=True)
        merged = part == "test" and not self.each_view
        splits = [self.test if part == "test" else member.valid for member in members]
        panel = recipe.together(predictors)

        def batches(first: int) -> Iterator[Sequence[np.ndarray]]:
            for each in panel.batches(splits, first):
                yield [predictor.merge(answers)[None] if merged else answers
                       for predictor, answers in zip(predictors, each, strict=True)]  # fmt: skip

        rows = {member.folder / runs.ASKED[part]: len(split)
                for member, split in zip(members, splits, strict=True)}  # fmt: skip
        gather_abreast(batches, rows, self._seconds)

    @property
    def _seconds(self) -> float:
        """Between two times that answers are saved."""
        seconds: float = getattr(self.config, "checkpoint_seconds", 30)
        return seconds


def _part(members: Sequence[Member], reason: str) -> None:
    """Let these members be asked one by one, from the first batch on and whoever is left of them.

    What was gathered together depends on when it was saved, and fewer members may fit in memory.
    """
    _log.warning("engine: asks its members one by one: %s", reason)
    for member in members:
        files.write_json(member.folder / runs.ALONE, {"why": reason})
        for name in runs.ASKED.values():
            (member.folder / name).unlink(missing_ok=True)
