"""A journal comes back as it was written, never forgets, and is refused where it is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kagglekit import journal
from kagglekit.errors import UserError
from kagglekit.journal import Attempt
from kagglekit.kaggle import Submitted

ATTEMPT = Attempt(
    competition="toy", run="line-1", slug="toy-competition", file="submissions/toy/line-1.csv",
    digest="d", answers="a", bytes=3, marker="kagglekit-1", description="line-1 kagglekit-1",
    planned="2026-01-01T00:00:00+00:00", cv=0.5,
)  # fmt: skip
SENT = replace(ATTEMPT, state="uploaded", sent="2026-01-01T00:00:01+00:00")


def found(status: str = "complete", public: float | None = 0.25, **more) -> Submitted:
    item = Submitted(7, "2026-01-01T00:00:02+00:00", "line-1 kagglekit-1", "line-1.csv", 3, status,
                     public, None, "", "ours")  # fmt: skip
    return replace(item, **more)


def test_attempts_come_back_as_they_were_written_the_last_one_first() -> None:
    place = journal.path(Path("submissions/toy"), "line-1")
    assert journal.read(place) == []
    attempts = [replace(ATTEMPT, marker="kagglekit-2", reported=True), SENT]
    journal.write(place, attempts)
    assert journal.read(place) == attempts
    told = json.loads(place.read_text())
    assert (told["marker"], told["earlier"][0]["marker"]) == ("kagglekit-2", "kagglekit-1")
    assert journal.all_of(place.parent) == {place: attempts}


def test_markers_differ() -> None:
    assert len({journal.new_marker() for _ in range(100)}) == 100


@pytest.mark.parametrize("change", [
    {"state": "somewhere"}, {"marker": ""}, {"marker": None}, {"digest": 7}, {"ref": "7"},
    {"cv": "good"}, {"bytes": None}, {"earlier": {}}, {"earlier": [1]}, {"reported": "yes"},
    {"sent": 12},
])  # fmt: skip
def test_a_damaged_journal_is_refused_because_it_might_let_something_be_sent_twice(change) -> None:
    place = Path("line-1.json")
    journal.write(place, [SENT])
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    with pytest.raises(UserError, match=r"line-1\.json is not as kagglekit writes it"):
        journal.read(place)
    place.write_text("[]")
    with pytest.raises(UserError, match="not as kagglekit writes it"):
        journal.read(place)
    place.write_text("{broken")
    with pytest.raises(UserError, match="damaged"):
        journal.read(place)


def test_what_a_later_version_adds_is_no_damage() -> None:
    place = Path("line-1.json")
    journal.write(place, [SENT])
    place.write_text(json.dumps({**json.loads(place.read_text()), "mood": "good"}))
    assert journal.read(place) == [SENT]


def test_an_attempt_is_found_by_its_number_else_by_its_marker() -> None:
    others = [found(ref=1, description="by hand"), found(ref=2, description="kagglekit-11")]
    assert journal.listed(SENT, others[:1]) is None
    assert journal.listed(SENT, [*others[:1], found()]) == found()
    numbered = replace(SENT, ref=1)
    assert journal.listed(numbered, [found(), others[0]]) == others[0]


def test_a_marker_that_begins_another_is_not_taken_for_it() -> None:
    longer = [found(ref=2, description="line-1 kagglekit-11")]
    assert journal.listed(SENT, longer) is None


def test_what_kaggle_tells_is_taken_in_and_never_lost_again() -> None:
    assert SENT.unclear
    created = journal.told(SENT, found("pending", None))
    assert (created.state, created.ref, created.waiting) == ("created", 7, True)
    scored = journal.told(created, found())
    assert (scored.state, scored.public, scored.status) == ("scored", 0.25, "complete")
    assert journal.told(scored, found("pending", None)) == scored  # a list that lags behind
    assert journal.told(scored, None) == scored
    later = journal.told(scored, found(private=0.3, public=None))
    assert (later.public, later.private, later.settled) == (0.25, 0.3, scored.settled)
    failed = journal.told(created, found("error", None, error="30 rows are wanted"))
    assert (failed.state, failed.error, failed.counts) == ("failed", "30 rows are wanted", False)


def test_complete_without_a_score_is_still_waited_for() -> None:
    assert journal.told(SENT, found(public=None)).waiting
