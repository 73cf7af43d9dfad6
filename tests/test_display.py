"""What people see fits their terminal, and says what the JSON says."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kagglekit import (
    cleaning,
    display,
    doctor,
    inventory,
    leaderboard,
    locks,
    overview,
    pipeline,
)
from kagglekit.progress import progress
from tests import toys

SUMMARY: dict[str, Any] = {
    "run": "cnn_small-4c63357a",
    "competition": "mics_mnist",
    "recipe": "cnn_small",
    "metric": "accuracy",
    "cv": 0.99733,
    "mean": 0.99733,
    "std": 0.0028,
    "coverage": 0.5,
    "folds": [{"fold": n, "score": 0.99 + n / 5000} for n in range(5)],
    "views": [
        {"name": "original", "alone": 0.998, "without": 0.997, "gain": 0.0},
        {"name": "shifted(1, 0)", "alone": 0.996, "without": 0.998, "gain": -0.00067},
    ],
    "practice_lb": 0.99663,
    "seconds": 30.4,
    "device": "NVIDIA H100 80GB HBM3",
    "precision": "bf16",
    "submission": "submissions/mics_mnist/cnn_small-4c63357a.csv",
}


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)


def shown(
    kind: str, result: Any, capsys: pytest.CaptureFixture[str], width: int | None = None
) -> str:
    with pytest.MonkeyPatch.context() as patch:
        if width:
            patch.setenv("COLUMNS", str(width))
            patch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
            patch.setenv("TERM", "xterm")
        display.show(kind, result)
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_summary_fits_the_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown("summary", SUMMARY, capsys, width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in ("0.99733", "accuracy", "50.0%", "0.99663", "shifted(1, 0)", "-0.00067", "bf16"):
        assert word in text
    frame = [line for line in lines if line[0] in "│╭╰"]
    assert len({len(line) for line in frame}) == 1


def test_a_path_is_one_piece_where_the_output_is_no_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / ("deep/" * 30) / "run.csv")
    assert path in shown("summary", {**SUMMARY, "submission": path}, capsys)
    prediction = {"run": "r", "rows": 3, "submission": path}
    assert path in shown("prediction", prediction, capsys)


def test_many_folds_are_wrapped_inside_the_frame(capsys: pytest.CaptureFixture[str]) -> None:
    folds = [{"fold": n, "score": 0.9 + n / 1000} for n in range(30)]
    lines = shown("summary", {**SUMMARY, "folds": folds}, capsys, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "0.92900" in "\n".join(lines)


CERTIFICATE: dict[str, Any] = {
    "competition": "mics_mnist",
    "run": "cnn_small-4c63357a",
    "command": "kagglekit train mics_mnist cnn_small epochs=3 min_steps=0 --rows 240 --json",
    "equal": True,
    "differences": [],
    "kills": {"asked": 200, "done": 203},
    "hits": {"start": 3, "load": 40, "train": 100, "save": 30, "predict": 30, "write": 0},
    "finished": 40,
    "files": 17,
    "seconds": 310.0,
    "device": "CPU (2 threads)",
    "folder": "runs/mics_mnist/certified/cnn_small-4c63357a",
}


@pytest.mark.parametrize("width", [60, 120])
def test_a_certificate_fits_the_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown("certificate", CERTIFICATE, capsys, width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in ("equal to the byte", "203 kills", "40 broken runs", "5m10s"):
        assert word in text
    bars = {line.split()[-4]: line.count("▇") for line in lines if "▇" in line}
    assert bars["train"] == 24
    assert bars["load"] == 10
    assert 0 < bars["start"] <= 1
    assert "write" not in bars


def test_a_certificate_that_failed_names_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    differences = [{"file": "runs/a/b/oof.npy", "what": "differs from byte 128 on"}]
    text = shown("certificate", {**CERTIFICATE, "equal": False, "differences": differences}, capsys)
    assert "not the same bytes" in text
    assert "runs/a/b/oof.npy  differs from byte 128 on" in text


def test_a_ticker_tells_lines_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with display.ticker() as tell:
        for number in range(5):
            tell(f"kill {number}")
    assert capsys.readouterr().err == "kill 0\n"


@pytest.mark.parametrize("width", [80, 120])
def test_lists_and_knobs_fit_the_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.train(pipeline.Request("toy"), progress())
    found = overview.competitions()
    found["competitions"].append(
        {**found["competitions"][0], "name": "broken", "error": "SyntaxError: " + "long " * 30}
    )
    lists = shown("competitions", found, capsys, width)
    for word in ("toy", "refitted", "data/toy", "rmse", "broken", "SyntaxError"):
        assert word in lists
    recipes = shown("recipes", overview.recipes("toy"), capsys, width)
    assert "ridge=1e-06" in recipes
    assert "needs line, curve" in recipes
    assert max(len(line) for line in (lists + recipes).splitlines()) <= width


def test_what_is_piped_on_is_not_filled_up_with_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, result in (
        ("recipes", overview.recipes("toy")),
        ("competitions", overview.competitions()),
    ):
        assert max(map(len, shown(kind, result, capsys).splitlines())) < 200


def test_an_empty_leaderboard_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert "kagglekit train" in shown("leaderboard", {"runs": [], "all": 0}, capsys)


def test_every_kind_that_the_command_line_asks_for_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(display._KINDS) == {
        "summary", "prediction", "practice", "competitions", "recipes", "leaderboard", "doctor",
        "runs", "plan", "cleaned", "certificate", "spending", "submitted", "submissions",
        "downloaded", "served", "report", "board", "leaks", "notebook", "comparison", "blended",
    }  # fmt: skip
    shown("practice", {"data": "a", "answers": "b"}, capsys)
    assert doctor.table is display._KINDS["doctor"]
    assert leaderboard.Row


# --- runs, and what may go -----------------------------------------------------------------------


def unfinished(**more: Any) -> dict[str, Any]:
    """A run as `kagglekit runs --json` tells of it."""
    state = inventory.State(
        "mics_mnist", "cnn_small-4c63357a", Path("runs/mics_mnist/cnn_small-4c63357a"), "cnn_small",
        done=("fold0-seed0",), wanted=("fold0-seed0", "fold1-seed0"), bytes=123_456_789,
        changed=inventory.moment(time.time() - 300), member="fold1-seed0", epoch=7, epochs=20,
        command="kagglekit train mics_mnist cnn_small epochs=20 lr=3e-3 mixup=0.2 dropout=0.1",
    )  # fmt: skip
    return replace(state, **more).as_json()


def runs(*found: dict[str, Any], others: int = 0) -> dict[str, Any]:
    return {"folder": "runs", "runs": list(found), "others": others, "bytes": 4_100_000_000}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_list_of_runs_fits_the_terminal_and_says_all(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    told = runs(
        unfinished(),
        unfinished(failed=("fold1-seed0",), forced=True),
        unfinished(owner=locks.Owner(123, "node", "2024-01-01T12:00:00+00:00")),
        unfinished(damage="runs/mics_mnist/cnn-1/run.json is damaged: delete it"),
        others=3,
    )
    text = shown("runs", told, capsys, width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    for part in (
        "cnn_small-4c63357a", "123 MB", "5 min ago", "1 of 2 members, fold1-seed0 at epoch 7 of 20",
        "kagglekit train mics_mnist cnn_small epochs=20 lr=3e-3 mixup=0.2", "1 failed: fold1-seed0",
        "by force", "running: process 123 on node since 2024-01-01", "run.json is damaged",
        "3 more, finished or set aside", "4.1 GB in runs",
    ):  # fmt: skip
        assert part in flat, part


def test_a_list_without_unfinished_runs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("runs", runs(others=2), capsys).startswith("no unfinished runs\n2 more")
    assert shown("runs", {**runs(), "bytes": 0}, capsys) == "no runs\n"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_may_go_fits_the_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    things = [
        cleaning.Thing("cache", "unpacked zips (12)", (), 12_300_000_000, inventory.moment(0)),
        cleaning.Thing(
            "unfinished", "mics_mnist cnn_small-4c63357a", (), 812, inventory.moment(time.time()),
            "3 of 5 members done",
        ),
    ]  # fmt: skip
    plan = cleaning.Plan(tuple(things), ("toy line-1 is being trained by process 7: kept",))
    text = shown("plan", plan, capsys, width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("12 GB", "812 B", "just now", "3 of 5 members done", "process 7: kept"):
        assert part in text, part
    assert display.question(plan) == "Remove 2 things, 12 GB?"
    gone = cleaning.Plan(plan.things[:1], (*plan.skipped, "toy line-2 is gone already"))
    text = shown("cleaned", (plan, gone), capsys, width)
    assert text == "removed 1 thing, 12 GB\ntoy line-2 is gone already\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (812, "812 B"), (999, "999 B"), (1000, "1.0 kB"), (4100, "4.1 kB"),
        (9_960, "10 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (1_234_000_000, "1.2 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)  # fmt: skip
def test_sizes_have_two_or_three_digits(count: int, text: str) -> None:
    assert display.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3600, "just now"), (30, "just now"), (90, "1 min ago"), (3700, "1 h ago"),
        (47 * 3600, "47 h ago"), (49 * 3600, "2 days ago"), (90 * 86400, "90 days ago"),
    ],
)  # fmt: skip
def test_times_are_told_as_how_long_ago_they_were(seconds: int, text: str) -> None:
    assert display.ago(inventory.moment(time.time() - seconds)) == text
