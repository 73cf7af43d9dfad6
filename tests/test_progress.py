"""What a person sees and what the log keeps."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from kagglekit import progress as module
from kagglekit.errors import UserError
from kagglekit.progress import duration, figure, progress, spread

FIGURES = {"loss": 0.0312, "score": 0.9912, "rows_per_second": 8123.4, "gpu_gib": 1.25, "lr": 1e-3}


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def usual_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "JPY_PARENT_PID", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def plain(clock: Clock) -> tuple[module._Story, io.StringIO]:
    stream = io.StringIO()
    return module._Story(module._Plain(stream, clock), clock), stream


def frame(table: module._Table, now: float, width: int = 80, height: int = 24) -> list[str]:
    console = Console(force_terminal=True, width=width, height=height, file=io.StringIO())
    with console.capture() as capture:
        console.print(module._frame(table, console, now))
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).rstrip("\n").split("\n")


def filled(members: int, running: int, done: int) -> module._Table:
    names = [f"fold{number % 5}-seed{number // 5}" for number in range(members)]
    table = module._Table({name: module._Row(name, 10) for name in names}, 0.0, 0.0)
    for name in names[: done + running]:
        table.epoch(name, 1, FIGURES, 2.0)
        table.epoch(name, 2, FIGURES, 4.0)
    for number, name in enumerate(names[:done]):
        table.finish(name, 0.99 + number * 0.001, 20.0, 5.0)
    return table


def test_plain_output_has_no_control_codes():
    stream = io.StringIO()
    with progress(stream) as story:
        story.say("data: \x1b[31mred\x1b[0m\r name")
        story.start(["fold0-seed0"], 2)
        story.epoch("fold0-seed0", 1, FIGURES)
        story.epoch("fold0-seed0", 2, FIGURES)
        story.finish("fold0-seed0", 0.9912, 65.0)
    lines = stream.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[-1] == "fold0-seed0  done  score 0.99120  in 1m05s"
    assert "epoch 2/2  loss 0.03120  score 0.99120  8,123 rows/s  1.2 GiB" in lines[-2]


def test_a_member_has_at_most_one_plain_line_in_five_seconds_and_its_last_epoch_always():
    clock = Clock()
    story, stream = plain(clock)
    story.start(["a"], 20)
    for epoch in range(1, 21):
        clock.now += 1.0
        story.epoch("a", epoch, FIGURES)
    told = re.findall(r"epoch (\d+)/20", stream.getvalue())
    assert told == ["1", "6", "11", "16", "20"]


def test_a_large_cohort_says_about_one_plain_line_a_second():
    clock = Clock()
    story, stream = plain(clock)
    names = [f"m{number}" for number in range(50)]
    story.start(names, 1000)
    for epoch in range(1, 101):
        clock.now += 1.0
        for name in names:
            story.epoch(name, epoch, FIGURES)
    assert len(stream.getvalue().splitlines()) <= 50 * 4


def test_epochs_beyond_the_plan_are_held_back_like_the_others():
    clock = Clock()
    story, stream = plain(clock)
    story.start(["a"], 1)
    for epoch in range(1, 200):
        story.epoch("a", epoch, FIGURES)
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("JPY_PARENT_PID", "1")])
def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    stream = Terminal()
    with progress(stream) as story:
        story.start(["a"], 1)
        story.epoch("a", 1, FIGURES)
    assert "\x1b" not in stream.getvalue()


def test_no_color_takes_the_colours_from_the_live_table(monkeypatch):
    def colours() -> list[str]:
        stream = Terminal()
        with progress(stream) as story:
            story.start(["a"], 2)
            story.epoch("a", 1, FIGURES)
            story.finish("a", 0.5, 1.0)
        return re.findall(r"\x1b\[(?:\d+;)*(?:3\d|9\d)(?:;\d+)*m", stream.getvalue())

    assert colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()


def test_a_live_table_fits_eighty_columns_without_cutting_a_figure():
    lines = frame(filled(members=5, running=2, done=2), now=4.0)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert lines[0].split() == ["member", "epoch", "loss", "score", "rows/s", "left", "GPU"]
    assert len(lines) == 1 + 5 + 1
    assert "waiting" in lines[5]
    assert lines[-1].startswith("2 of 5 done · score 0.99050 ± 0.00071")


@pytest.mark.parametrize(("running", "done"), [(50, 0), (5, 30), (0, 50), (0, 0), (30, 10)])
@pytest.mark.parametrize("height", [4, 10, 24])
def test_fifty_members_never_overflow_the_screen(running, done, height):
    table = filled(members=50, running=running, done=done)
    lines = frame(table, now=6.0, height=height)
    assert len(lines) < height
    assert f"{done} of 50 done" in lines[-1]
    assert "not shown" in lines[-1]


def test_where_not_all_fit_the_running_members_are_the_ones_shown():
    lines = frame(filled(members=50, running=5, done=30), now=6.0)
    assert [line.split()[0] for line in lines[1:-1]] == [f"fold{fold}-seed6" for fold in range(5)]


def test_a_column_that_no_member_has_figures_for_is_left_out():
    table = module._Table({"a": module._Row("a", 0)}, 0.0, 0.0)
    assert frame(table, now=1.0)[0].split() == ["member", "left"]
    assert "fitting" in frame(table, now=1.0)[1]


def test_time_left_is_the_pace_since_the_first_epoch_times_the_epochs_to_go():
    table = filled(members=1, running=1, done=0)  # epoch 2 of 10 after 4 s, 2 s an epoch
    assert table.rows["fold0-seed0"].left(now=5.0) == pytest.approx(8 * 2 - 1)
    assert table.left(now=5.0) == pytest.approx(8 * 2 - 1)


def test_members_taken_over_from_an_earlier_session_do_not_shorten_the_time_left():
    table = module._Table({name: module._Row(name, 10) for name in "ab"}, 0.0, 0.0)
    table.finish("a", 0.9, seconds=300.0, now=0.1)
    assert table.left(now=0.1) is None
    table.epoch("b", 1, FIGURES, 2.1)
    table.epoch("b", 2, FIGURES, 4.1)
    assert table.left(now=4.1) == pytest.approx(8 * 2.0)
    assert table.rows["a"].epoch == 10


def test_what_was_prepared_does_not_count_as_the_pace_of_members_in_lock_step():
    table = module._Table({name: module._Row(name, 100) for name in "abc"}, 0.0, 0.0)
    for name in "abc":
        table.epoch(name, 1, FIGURES, 20.0)  # a trial took most of it
        assert table.rows[name].left(20.0) is None
        assert table.left(20.0) is None
    for name in "abc":
        row = table.epoch(name, 2, FIGURES, 20.5)
        assert row.left(20.5) == pytest.approx(98 * 0.5)
    assert table.left(20.5) == pytest.approx(98 * 0.5)


def test_a_long_first_epoch_tells_of_those_to_come():
    table = module._Table({"a": module._Row("a", 10)}, 0.0, 0.0)
    table.epoch("a", 1, FIGURES, 40.0)
    assert table.left(40.0) == table.rows["a"].left(40.0) == pytest.approx(9 * 40)


def test_members_to_come_are_expected_to_take_as_many_epochs_as_the_first_says():
    table = module._Table({name: module._Row(name, 6) for name in "abc"}, 0.0, 0.0)
    table.finish("a", 0.9, seconds=1.0, now=1.0)
    table.epoch("b", 1, {**FIGURES, "epochs": 13}, 2.0)
    assert [table.rows[name].total for name in "abc"] == [6, 13, 13]


def test_a_resumed_member_s_pace_does_not_count_the_epochs_before():
    table = module._Table({"a": module._Row("a", 10)}, 0.0, 0.0)
    table.epoch("a", 7, FIGURES, 1.0)
    assert table.rows["a"].left(1.0) is None
    table.epoch("a", 8, FIGURES, 3.0)
    assert table.rows["a"].left(3.0) == pytest.approx(4.0)


def test_what_is_said_meanwhile_appears_and_an_exception_gives_the_cursor_back():
    stream = Terminal()

    def broken() -> None:
        with progress(stream) as story:
            story.start(["a"], 3)
            story.say("a path: [bold]/x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    told = stream.getvalue()
    assert "a path: [bold]/x" in told
    assert told.rindex("\x1b[?25h") > told.rindex("\x1b[?25l")


def test_a_second_table_leaves_the_first_on_the_screen():
    stream = Terminal()
    with progress(stream) as story:
        for name in ("first", "second"):
            story.start([name], 1)
            story.epoch(name, 1, FIGURES)
            story.finish(name, 0.5, 1.0)
            story.epoch(name, 2, FIGURES)  # a table that was done comes back
    assert "first" in stream.getvalue()
    assert "second" in stream.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("terminal", [False, True])
def test_any_text_can_be_written_whatever_the_encoding(encoding, terminal):
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding)
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    with progress(stream) as story:
        story.say("0.99 ± 0.01 · 数字")
        story.start(["fold0-数", "b"], 2)
        for name in ("fold0-数", "b"):
            story.epoch(name, 1, {"loss": float("nan")})
            story.finish(name, 0.5, 1.0)
    stream.flush()
    assert b"0.5" in content.getvalue()


def test_the_log_keeps_the_whole_story_with_its_times(tmp_path: Path):
    path = tmp_path / "run.log"
    with progress(io.StringIO()) as story:
        story.say("before there was a log")
        story.attach_log(path)
        story.start(["a"], 3)
        for epoch in (1, 2, 3):
            story.epoch("a", epoch, FIGURES)
        assert "epoch 3/3" in path.read_text()  # flushed at once
        story.finish("a", 0.5, 1.0)
    with progress(io.StringIO(), log=path) as story:
        story.say("resumed ±")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S", line) for line in lines)
    story_told = [line.split(" ", 1)[1] for line in lines]
    assert story_told[0] == "before there was a log"
    assert [line for line in story_told if "epoch" in line and "lr 1.00e-03" in line][2:]
    assert story_told[-2:] == ["a  done  score 0.50000  in 1.0s", "resumed ±"]


def test_a_log_that_cannot_be_opened_is_the_user_s_to_mend(tmp_path: Path):
    story = progress(io.StringIO())
    with pytest.raises(UserError, match=r"run\.log cannot be written"):
        story.attach_log(tmp_path / "missing" / "run.log")


def test_a_full_disk_stops_the_log_but_not_the_run():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    stream = io.StringIO()
    with progress(stream) as story:
        story.attach_log(full)
        story.say("one")
        story.say("two")
    lines = stream.getvalue().splitlines()
    assert [lines[0].startswith("/dev/full is no longer written"), lines[1:]] == [
        True,
        ["one", "two"],
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9962, "0.99620"),
        (3.2e-7, "3.20e-7"),
        (33.12, "33.120"),
        (12345.6, "12,346"),
        (-0.5, "-0.50000"),
        (0.0, "0"),
        (float("nan"), "nan"),
        (1.0, "1.0000"),
    ],
)
def test_figures_have_the_digits_that_tell_runs_apart(value, text):
    assert figure(value) == text


def test_a_spread_ends_with_the_deviation_s_second_digit():
    assert spread(0.99623, 0.00041) == "0.99623 ± 0.00041"
    assert spread(33.123456, 1.234) == "33.1 ± 1.2"
    assert spread(3.2e-7, 1.1e-8) == "(3.20 ± 0.11)e-7"
    assert spread(0.5, 0.0) == "0.50000 ± 0"


def test_durations_are_short():
    shown = [duration(seconds) for seconds in (0.42, 9.96, 59.7, 272, 3599.6, 3755)]
    assert shown == ["0.4s", "10s", "1m00s", "4m32s", "1h00m", "1h02m"]
