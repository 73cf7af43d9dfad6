"""What the documents show works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kagglekit import cli
from tests import miniatures
from tests.conftest import ROOT


def code(document: str) -> str:
    """The one Python block of a document."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    return block


def install(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("mine") / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(source)
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", str(folder.parent.resolve()))


def leaves(folder: Path) -> None:
    """Colour pictures of two species, told apart by their colour."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 8)):
        for number in range(count):
            species = ("ash", "oak")[number % 2]
            home = folder / part / (species if part == "train" else "")
            home.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 90, (16, 16, 3))
            pixels[..., number % 2] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(home / f"{part}{number}.png")
    ids = [f"test{number}" for number in range(8)]
    sample = pd.DataFrame({"id": ids, "species": "ash"})
    sample.to_csv(folder / "sample_submission.csv", index=False)


def test_the_competition_of_contributing_trains_and_submits(monkeypatch):
    install("leaves", code("CONTRIBUTING.md"), monkeypatch)
    leaves(Path("data/leaves"))
    assert cli.main(["train", "leaves", "epochs=8", "folds=2", "compile=off", "--json"]) == 0
    (csv,) = Path("submissions/leaves").glob("*.csv")
    answers = pd.read_csv(csv)
    assert list(answers["species"]) == ["ash", "oak"] * 4


def test_the_competition_of_the_readme_trains_and_submits(monkeypatch):
    install("houses", code("README.md"), monkeypatch)
    miniatures.function_fitting(Path("data/houses"), inputs=2, outputs=1)
    assert cli.main(["train", "houses", "folds=2", "trees=20", "--json"]) == 0
    assert len(list(Path("submissions/houses").glob("*.csv"))) == 1


def test_the_tree_in_the_readme_names_every_module():
    tree = (ROOT / "README.md").read_text().split("## The house")[1].split("## Words")[0]
    modules = {path.name for path in (ROOT / "kagglekit").glob("*.py")}
    assert {name for name in modules if not name.startswith("__")} <= set(
        re.findall(r"\w+\.py", tree)
    )


def test_the_readme_names_the_exit_codes_and_the_variables():
    text = (ROOT / "README.md").read_text()
    for word in ("`2`", "`3`", "`4`", "`130`", "`143`"):
        assert word in text
    for name in ("DATA", "RUNS", "SUBMISSIONS", "CACHE", "COMPETITIONS"):
        assert f"$KAGGLEKIT_{name}" in text


def test_no_line_of_a_text_is_wider_than_130_columns() -> None:
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    texts += [*ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("competitions/*/*.md")]
    wide = [
        f"{text.relative_to(ROOT)}:{number}"
        for text in texts
        for number, line in enumerate(text.read_text("utf-8").splitlines(), 1)
        if len(line) > 130 and not line.startswith("|")  # tables
    ]
    assert not wide
