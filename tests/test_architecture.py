"""The house stands as the README draws it: what imports what, what is public, what loads when."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kagglekit
from tests.conftest import ROOT

CORE = ROOT / "kagglekit"
MODULES = sorted(path.stem for path in CORE.glob("*.py") if not path.stem.startswith("__"))
COMPETITION_FILES = sorted((ROOT / "competitions").rglob("*.py"))
HEAVY = ("torch", "pandas", "numpy", "timm", "albumentations", "kaggle", "sklearn", "scipy", "rich")


def order() -> list[str]:
    """The modules in the order in which the README's tree names them."""
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("## The house")[1].split("\ncompetitions/")[0]
    return re.findall(r"(\w+)\.py", tree)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(dots, dotted name) of all that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{node.module}." if node.module else ""
            yield from ((node.level, module + name.name) for name in node.names)


def test_the_readme_names_each_module_once() -> None:
    assert sorted(order()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_those_before_it(module: str) -> None:
    before = set(order()[: order().index(module)]) | {"__version__"}
    own = {name.partition(".")[0] for dots, name in imports(CORE / f"{module}.py") if dots}
    assert own <= before, f"{module} comes before {', '.join(sorted(own - before))} in the README"
    absolute = {name.partition(".")[0] for dots, name in imports(CORE / f"{module}.py") if not dots}
    assert not absolute & {"kagglekit", "competitions", "tests"}


@pytest.mark.parametrize(
    "path", COMPETITION_FILES, ids=lambda path: str(path.relative_to(ROOT / "competitions"))
)
def test_a_competition_imports_the_core_and_its_own_folder_only(path: Path) -> None:
    for dots, name in imports(path):
        assert dots <= 1, f"{path} imports from another competition"
        assert name.partition(".")[0] != "competitions"
        if not dots and name.startswith("kagglekit"):
            assert not any(part.startswith("_") for part in name.split(".")), name


def test_the_public_names_are_those_of_all_and_each_is_where_it_is_said_to_be() -> None:
    tree = ast.parse((CORE / "__init__.py").read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        name.asname: (item.module, name.name)
        for item in guarded.body
        if isinstance(item, ast.ImportFrom)
        for name in item.names
    }
    assert kagglekit.__all__ == sorted(told)
    assert set(dir(kagglekit)) == {*told, "__version__"}
    for public, (home, name) in told.items():
        module = importlib.import_module(f"kagglekit.{home}")
        assert getattr(kagglekit, public) is getattr(module, name)
        assert public == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        kagglekit.Nothing  # noqa: B018


@pytest.mark.parametrize("code", ["import kagglekit", "import kagglekit.cli as c; c.main([])"])
def test_neither_the_import_nor_help_loads_anything_heavy(code: str) -> None:
    check = f"{code}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
