"""The contract: all that the core asks of a folder in competitions/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from .data import Data
from .decisions import Combine, Decision, as_is, mean
from .errors import UserError
from .folds import Folds
from .metrics import Metric
from .recipe import Recipe
from .submission import Submission

Practice = Callable[[Path, Path], None]  # (download folder, answers folder) -> writes both


@dataclass(frozen=True)
class Competition:
    """The problem Kaggle poses, and the recipes that answer it."""

    slug: str  # as in kaggle.com/competitions/<slug>
    load: Callable[[Path], Data]  # reads the folder that Kaggle's download was unpacked in
    folds: Folds
    metric: Metric
    submission: Submission
    recipes: Mapping[str, Recipe]  # the first is the default
    decision: Decision = as_is  # answers -> what metric and submission want
    combine: Combine = mean  # several members' answers for one row -> one
    practice: Mapping[str, Practice] = field(default_factory=dict)  # the first is the default
    public_share: float | None = None  # of the test rows in the public score; None = not known


def names(folder: Path) -> list[str]:
    """The competitions in `folder`: its importable folders and modules, sorted."""
    if not folder.is_dir():
        return []
    packages = [path.parent.name for path in folder.glob("*/__init__.py")]
    modules = [path.stem for path in folder.glob("*.py")]
    return sorted(name for name in packages + modules if not name.startswith("_"))


def find(name: str, folder: Path) -> Competition:
    """Import `name` from `folder` and return its `competition`.

    Raises UserError for an unknown name or a file without `competition`; an error inside the
    competition's own code passes through with its traceback.
    """
    known = names(folder)
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder} of competitions: work in the project's folder, or name "
            "the one that has them with --competitions"
        )
    if name not in known:
        near = get_close_matches(name.replace("-", "_"), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"
        raise UserError(f"no competition {name!r} in {folder}; {hint}")
    module = _import(folder.resolve(), name)
    competition = getattr(module, "competition", None)
    if not isinstance(competition, Competition):
        raise UserError(f"{module.__file__} must define `competition = Competition(...)`")
    if not competition.recipes:
        raise UserError(f"{module.__file__}: `recipes` is empty; give at least one")
    share = competition.public_share
    if share is not None and not 0 < share <= 1:
        raise UserError(
            f"{module.__file__}: public_share={share} is no share of the test rows: give it as 0.3"
        )
    for wanted in competition.recipes:
        _check_needs(competition, name, wanted, ())
    return competition


def _check_needs(competition: Competition, name: str, wanted: str, above: Sequence[str]) -> None:
    """Refuse recipes that need one that there is not, or in the end themselves."""
    if wanted in above:
        raise UserError(f"{name}: recipes need each other: {' → '.join([*above, wanted])}")
    for other in recipe(competition, name, wanted).needs:
        _check_needs(competition, name, other, (*above, wanted))


def recipe(competition: Competition, name: str, wanted: str) -> Recipe:
    """The recipe `wanted` of competition `name`, or a UserError with the nearest known one."""
    if wanted in competition.recipes:
        return competition.recipes[wanted]
    known = list(competition.recipes)
    near = get_close_matches(wanted, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    raise UserError(f"{name} has no recipe {wanted!r}; {hint}")


def _import(folder: Path, name: str):  # type: ignore[no-untyped-def]
    """Import by a real module path, so that worker processes started afresh can import it too."""
    package, parent = folder.name, str(folder.parent)
    loaded = {key: sys.modules[key] for key in sys.modules if key.split(".")[0] == package}
    sources = [getattr(module, "__file__", None) for module in loaded.values()]
    if any(source and folder not in Path(source).resolve().parents for source in sources):
        for key in loaded:  # another project's folder of the same name
            del sys.modules[key]
    if sys.path[:1] != [parent]:  # first, so that no other folder of that name comes before it
        sys.path[:] = [parent, *(path for path in sys.path if path != parent)]
    importlib.invalidate_caches()
    return importlib.import_module(f"{package}.{name}")


def default_recipe(competition: Competition, has_gpu: bool) -> str:
    """The first recipe, or without a GPU the first that does not ask for one."""
    order: Sequence[str] = list(competition.recipes)
    if has_gpu:
        return order[0]
    light = [name for name in order if not getattr(competition.recipes[name], "wants_gpu", False)]
    return (light or order)[0]


def reads_weights(competition: Competition, name: str) -> bool:
    """Whether a recipe, or one that it needs, starts from pretrained weights."""
    return bool(from_weights(competition, name))


def from_weights(competition: Competition, name: str) -> list[str]:
    """Which start from pretrained weights: the recipe, and those that it needs."""
    recipe = competition.recipes[name]
    own = [name] if hasattr(recipe.config, "weights_digest") else []
    return own + [n for other in recipe.needs for n in from_weights(competition, other)]
