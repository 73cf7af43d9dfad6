"""A competition is found by its path, and what is wrong with it is said in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kagglekit import competition
from kagglekit.competition import Competition
from kagglekit.errors import UserError
from tests import toys


@pytest.fixture(autouse=True)
def toy(project: Path) -> Path:
    toys.write(project, data=False)
    return project / "competitions"


def test_folders_and_modules_are_competitions_and_hidden_ones_are_not(toy: Path) -> None:
    (toy / "alone.py").write_text("")
    (toy / "_shared.py").write_text("")
    (toy / "no_code").mkdir()
    assert competition.names(toy) == ["alone", "toy"]
    assert competition.names(toy / "missing") == []


def test_a_module_can_be_a_competition_and_import_what_others_share(toy: Path) -> None:
    (toy / "_shared.py").write_text("SLUG = 'shared'\n")
    (toy / "alone.py").write_text(
        "from dataclasses import replace\nfrom ._shared import SLUG\nfrom .toy import competition\n"
        "competition = replace(competition, slug=SLUG)\n"
    )
    assert competition.find("alone", toy).slug == "shared"


def test_two_projects_in_one_process_keep_their_own_code(toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    toys.write(other, "\nfrom dataclasses import replace\n"
               "competition = replace(competition, slug='other')\n", data=False)  # fmt: skip
    for _ in range(2):
        assert competition.find("toy", toy).slug == "toy-competition"
        assert competition.find("toy", other / "competitions").slug == "other"


def test_a_competition_keeps_a_module_path_that_a_new_process_can_import(toy: Path) -> None:
    competition.find("toy", toy)
    assert str(toy.parent) in sys.path
    assert sys.modules["competitions.toy"].__file__ == str(toy / "toy" / "__init__.py")


def test_hyphens_are_understood(toy: Path) -> None:
    (toy / "two_words.py").write_text("")
    with pytest.raises(UserError, match="did you mean 'two_words'"):
        competition.find("two-words", toy)


@pytest.mark.parametrize(("gpu", "expected"), [(True, "wide"), (False, "small")])
def test_without_a_gpu_the_first_recipe_that_wants_none_is_the_default(
    gpu: bool, expected: str
) -> None:
    recipes = {
        "wide": SimpleNamespace(wants_gpu=True),
        "small": SimpleNamespace(wants_gpu=False),
        "other": SimpleNamespace(),
    }
    found = cast(Competition, SimpleNamespace(recipes=recipes))
    assert competition.default_recipe(found, has_gpu=gpu) == expected
    only = cast(Competition, SimpleNamespace(recipes={"wide": recipes["wide"]}))
    assert competition.default_recipe(only, has_gpu=gpu) == "wide"


def test_recipes_that_need_each_other_are_refused(toy: Path) -> None:
    needs: dict[str, Any] = {"a": ("b",), "b": ("c",), "c": ("a",)}
    recipes = "".join(f"competition.recipes[{n!r}] = Blend({w!r})\n" for n, w in needs.items())
    toys.write(toy.parent, recipes, data=False)
    with pytest.raises(UserError, match="a → b → c → a"):
        competition.find("toy", toy)
