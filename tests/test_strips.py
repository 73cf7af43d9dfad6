"""Scores keep their order on a line, whatever their range."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kagglekit import strips
from kagglekit.strips import Scale

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=8))
def test_places_are_ordered_as_the_scores_are_and_lie_on_the_line(scores):
    scale = Scale.over(scores)
    places = [scale.place(score) for score in sorted(scores)]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)


def test_a_wide_range_is_logarithmic_so_that_small_errors_can_be_told_apart():
    scale = Scale.over([1e-6, 1.0])
    assert scale.place(1e-3) == 0.5
    assert Scale.over([1.0, 2.0]).place(1.5) == 0.5
    assert Scale.over([]).place(3.0) == 0.5


def test_a_strip_shows_folds_and_the_whole():
    assert strips.text([0.0, 1.0], 0.5, Scale(0, 1), 5) == "●─┃─●"
    assert strips.text([0.5], 0.5, Scale(0, 1), 3) == "─◆─"
    assert strips.text([], None, Scale(0, 0), 3) == "───"
