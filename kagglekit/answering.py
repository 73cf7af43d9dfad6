"""Predictors of finished runs: what a member, or a whole run, answers to any split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import competition as competitions
from . import config as configs
from . import files
from .backbones import BackboneConfig
from .blend import RECIPE, Blend
from .competition import Competition
from .config import Config
from .data import Split
from .errors import UserError
from .finetune import FinetuneConfig
from .recipe import Predictor, Recipe
from .run import Key, Run


class Fitted:
    """A run that has fitted members, and the recipe and knobs that they were fitted with."""

    def __init__(self, competition: Competition, run: Run) -> None:
        self.competition, self.run = competition, run

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What run.json says."""
        return self.run.manifest()

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, as the competition's code has it now."""
        name = self.manifest["recipe"]
        if name == RECIPE and name not in self.competition.recipes:
            return Blend(tuple(self.manifest["needs"]))
        return competitions.recipe(self.competition, self.manifest["competition"], name)

    @cached_property
    def config(self) -> Config:
        """The knobs the run was trained with."""
        path = self.run.folder / "config.json"
        try:
            config: Config = configs.load(type(self.recipe.config), files.read_json(path))
        except UserError as error:
            raise UserError(
                f"{path} does not fit the recipe as it is now ({error}): train it again"
            ) from error
        return config

    @property
    def keys(self) -> list[Key]:
        """The members that the run's scores and submission are made of."""
        return self.run.members()

    def predictor(self, key: Key) -> Predictor:
        """What `key` answers; for a fit on all rows that was not made, the mean of its folds.

        Restored at the first question, so that predictors nobody asks cost nothing.
        """
        return _Lazy(self, self._members(key), self.run.kept_views(key.fold))

    def _members(self, key: Key) -> list[Key]:
        if key in self.keys or key.fold is not None:
            return [key]
        return [other for other in self.keys if other.seed == key.seed]

    def whole(self) -> Predictor:
        """What the run answers to a test: its fits on all rows, else the mean over its members."""
        keys = [key for key in self.keys if key.fold is None] or self.keys
        if not keys:
            raise UserError(
                f"run {self.run.name} has no finished member: train it to the end first"
            )
        return _Lazy(self, keys, self.run.kept_views(None))

    def of_fold(self, fold: int | None) -> Predictor:
        """What the members of one fold answer together; of None what the run answers to a test."""
        if fold is None:
            return self.whole()
        keys = [key for key in self.keys if key.fold == fold]
        return _Lazy(self, keys, self.run.kept_views(fold))

    def restore(self, key: Key) -> Predictor:
        """The predictor of one member."""
        needs = self.manifest.get("needs", {})
        siblings = {
            name: Fitted(self.competition, self._sibling(run)) for name, run in needs.items()
        }
        if self.manifest["recipe"] == RECIPE:  # mixes its parts as they stand, all seeds together
            self.check_parts()
            before = {name: part.of_fold(key.fold) for name, part in siblings.items()}
        else:
            before = {name: part.predictor(key) for name, part in siblings.items()}
        return self.recipe.restore(self.run.member(key), self.config, before)

    @property
    def backbone(self) -> BackboneConfig | None:
        """Which pretrained weights its answers need beside what was learned; None for none.

        A network that was trained on from them has weights of its own.
        """
        config = self.config
        if isinstance(config, BackboneConfig) and not isinstance(config, FinetuneConfig):
            return config
        return None

    @property
    def needed(self) -> list[Fitted]:
        """The runs that it asks, each once."""
        names = sorted(set(self.manifest.get("needs", {}).values()))
        return [Fitted(self.competition, self._sibling(name)) for name in names]

    def everyone(self) -> Iterator[Fitted]:
        """The run, and all that it asks, directly or not."""
        yield self
        for other in self.needed:
            yield from other.everyone()

    def check_parts(self) -> None:
        """UserError where a run that was mixed answers otherwise now, as with more seeds."""
        for name in self.manifest.get("needs", {}).values():
            told = self.manifest.get("stamp", {}).get(f"needs {name}")
            if told is None:  # a recipe's own needs, of which only run names are noted
                continue
            if files.file_digest(self._sibling(name).folder / "oof.npy") not in told.split():
                raise UserError(
                    f"{name} has other answers than {self.run.name} was mixed of, as after more "
                    "seeds: blend the runs again"
                )

    def _sibling(self, name: str) -> Run:
        folder: Path = self.run.folder.parent / name
        if Path(name).name != name or not folder.is_dir():
            raise UserError(f"{self.run.name} needs run {name}, whose folder {folder} is gone")
        return Run(folder)


class _Lazy:
    """The combined answer of several members, restored at the first question."""

    def __init__(self, fitted: Fitted, keys: list[Key], views: tuple[str, ...] | None) -> None:
        self.fitted, self.keys, self.views = fitted, keys, views

    @cached_property
    def predictors(self) -> list[Predictor]:
        found: list[Any] = [self.fitted.restore(key) for key in self.keys]
        return found if self.views is None else [part.only(self.views) for part in found]

    def __call__(self, split: Split) -> np.ndarray:
        answers = np.stack([predictor(split) for predictor in self.predictors])
        return self.fitted.competition.combine(answers)
