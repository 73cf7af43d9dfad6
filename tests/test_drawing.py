"""Figures are sound SVG in the page's colours, and no name in them is a formula or an element."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from kagglekit import diagnosis, drawing
from kagglekit.drawing import Cloud, Curve
from tests.hostile_pages import BREAKS, RUNS

rng = np.random.default_rng(0)
many = Cloud(rng.normal(size=20_000), rng.normal(size=20_000))
few = Cloud(np.arange(3.0), np.array([1e-9, 5.0, 1e6]), [RUNS, BREAKS, "three"])
line = Curve(np.arange(1.0, 9), np.array([9, 5, 3, 2, 1, 0.1, 0.01, 0.001]), 11, RUNS)
flat = Curve(np.array([1.0]), np.array([0.5]), 0, "one epoch")
bins = diagnosis.reliability(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]))

FIGURES = {
    "curves": lambda: drawing.curves(RUNS, [line, flat], (BREAKS, RUNS), late=True),
    "flat": lambda: drawing.curves("flat", [flat], ("epoch", "score"), late=True),
    "strip": lambda: drawing.strip("folds", [(RUNS, 0.5), ("b", 0.5)], 0.5, BREAKS),
    "wide strip": lambda: drawing.strip("folds", [("a", 1e-9), ("b", 0.5)], 0.5, "rmse"),
    "reliability": lambda: drawing.reliability("sure", bins),
    "cloud": lambda: drawing.cloud("cloud", many, (BREAKS, RUNS), "diagonal", few),
    "residuals": lambda: drawing.cloud("left", few, ("x", "y"), "zero"),
    "function": lambda: drawing.function("f", few, line, few, (RUNS, BREAKS)),
    "sizes": lambda: drawing.sizes("sizes", np.array([0.0, 1e-9, 3.0, -4.0]), "|x|"),
    "no sizes": lambda: drawing.sizes("sizes", np.zeros(5), "|x|"),
    "agreement": lambda: drawing.agreement("LB over CV", few, few, ("CV", "LB")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_sound_small_and_named(name):
    text = FIGURES[name]()
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert "#0101" not in text.replace("var(", "")
    assert "#0102" not in text
    assert "var(--" in text
    assert len(text) < 400_000
    assert not any(part.tag.endswith("script") for part in root.iter())
    said = [part.text or "" for part in root.iter() if part.tag.endswith("text")]
    assert not any("mathdefault" in words for words in said)
    if name in ("curves", "cloud"):
        assert BREAKS in said
        assert RUNS in said


def test_what_is_told_of_a_point_is_its_title_and_a_cloud_is_thinned():
    root = ElementTree.fromstring(FIGURES["cloud"]())
    titles = [part.text for part in root.iter() if part.tag.endswith("title")]
    assert titles == [RUNS, BREAKS, "three"]
    points = sum(part.tag.endswith("use") for part in root.iter())
    assert 3000 < points < 3100
    assert len(drawing.thinned(10)) == 10
