"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from .errors import UserError
from .secrecy import hide

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

PLAIN_SECONDS = 5.0  # between two plain lines of one member
_REFRESHES = 2  # frames a second; one takes some milliseconds of the training's interpreter
_MARGIN = 3  # screen lines that are no member: the head, the sums and the cursor's
_LATEST = 3  # finished members shown where not all fit
_BAR = 12  # characters of an epoch bar

# One character for one wherever a column's width depends on it.
_LEGIBLE = str.maketrans({"±": "+-", "…": ".", "·": "-", "×": "x", "✓": "*", "–": "-", "→": ">",
                         "─": "-", "●": "o", "┃": "|", "◆": "@"})  # fmt: skip


class Progress(Protocol):
    """The story of a run as it is told. Use it in a `with`, so that the terminal is given back."""

    def say(self, text: str) -> None:
        """One line of the story: above the live table, and in the log."""

    def note(self, text: str) -> None:
        """One line for the log alone."""

    def attach_log(self, path: Path) -> None:
        """Append the story to `path` from here on, and what no log has taken yet.

        Raises UserError where the file cannot be opened.
        """

    def start(self, members: Sequence[str], epochs: int) -> None:
        """A new table, one row a member; `epochs` = 0 for a recipe that has none."""

    def epoch(self, member: str, epoch: int, figures: Mapping[str, float]) -> None:
        """`member` has `epoch` epochs behind it (the first call gives 1).

        | figure | unit |
        |---|---|
        | loss, score, lr | as they are |
        | rows_per_second | training rows |
        | gpu_gib | peak memory, GiB |
        | epochs | that there will be, where they are not as many as `start` was told |
        """

    def finish(self, member: str, score: float | None, seconds: float) -> None:
        """`member` is fitted and scored; `seconds` is the time its fit took."""

    def close(self) -> None:
        """Leave the last table on the screen and close the log; calling it twice does no harm."""

    def __enter__(self) -> Progress:
        """Itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, whatever happened."""


def progress(stream: TextIO | None = None, log: Path | None = None) -> Progress:
    """A live table where `stream` (default: stderr) is a terminal that can show one, else lines.

    `TERM=dumb` and a notebook's `!command` get lines; `NO_COLOR` takes the colours away.
    """
    stream = sys.stderr if stream is None else stream
    screen = _Live(_console(legible(stream))) if _can_redraw(stream) else _Plain(legible(stream))
    story = _Story(screen)
    if log is not None:
        story.attach_log(log)
    return story


@contextmanager
def listening(story: Progress) -> Iterator[None]:
    """Tell what our own code warns of, and keep what libraries warn of in the log."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell = story.say if record.name.startswith("kagglekit") else story.note
            tell(record.getMessage())

    teller = Teller(logging.WARNING)
    loggers = [logging.getLogger()]
    if "TORCH_LOGS" not in os.environ:  # else torch's own printing was asked for
        loggers.append(logging.getLogger("torch"))
    before = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = [teller]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers


def figure(value: float | None) -> str:
    """A score or loss to five digits, at most five decimals: 0.99620, 33.120, 3.20e-7."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if 0 < size < 1e-3 or size >= 1e7:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if size < 1:
        return f"{value:.5f}" if value else "0"
    decimals = max(0, 4 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}"


def duration(seconds: float) -> str:
    """Seconds as 0.4s, 42s, 4m32s or 1h02m."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def spread(mean: float, deviation: float) -> str:
    """Mean ± standard deviation, with the latter's second digit as the last."""
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        return f"{figure(mean)} ± {figure(deviation)}"
    if deviation <= 0:
        return f"{figure(mean)} ± 0"
    small = 0 < abs(mean) < 1e-3
    exponent = math.floor(math.log10(abs(mean))) if small else 0
    mean, deviation = mean / 10**exponent, deviation / 10**exponent
    decimals = min(5, max(0, 1 - math.floor(math.log10(deviation))))
    text = f"{mean:,.{decimals}f} ± {deviation:,.{decimals}f}"
    return f"({text})e{exponent}" if small else text


def size(count: int) -> str:
    """Bytes to three digits, in decimal units as disks are sold: 812 B, 4.1 kB, 123 MB, 1.2 GB."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return (
        f"{value:.1f} {units[0]}" if value < 9.95 and units[0] != "B" else f"{value:.0f} {units[0]}"
    )


def ago(moment: str) -> str:
    """How long ago an ISO time in UTC was: just now, 5 min ago, 3 h ago, 12 days ago."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    if seconds < 60:
        return "just now"  # and so does a clock that was set back
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 2 * 86400:
        return f"{seconds // 3600:.0f} h ago"
    return f"{seconds // 86400:.0f} days ago"


def legible(stream: TextIO) -> TextIO:
    """`stream`, able to take any text: what its encoding lacks is written in ASCII."""
    return cast(TextIO, _Legible(stream))


class _Legible:
    """A text stream whose `write` never fails for want of a character."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_LEGIBLE)
            text = text.encode(encoding, "replace").decode(encoding)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _can_redraw(stream: TextIO) -> bool:
    terminal = getattr(stream, "isatty", lambda: False)()
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    # A notebook's `!command` offers a terminal whose cursor cannot move up.
    return terminal and not dumb and "JPY_PARENT_PID" not in os.environ


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, force_terminal=True, force_jupyter=False, highlight=False)


_TELLING_SECONDS = 30.0  # of a first epoch, from which on it tells of those to come
_MOMENT_SECONDS = 0.05


@dataclass
class _Row:
    """What is known of one member. Times are seconds of the monotonic clock."""

    name: str
    epochs: int  # as planned; a polish may go beyond
    epoch: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    first: tuple[int, float] | None = None  # the first epoch heard of, and when
    heard: float = 0.0  # when the last epoch ended
    pace: float | None = None  # seconds an epoch
    score: float | None = None
    seconds: float | None = None  # of the whole fit; None = not finished

    @property
    def total(self) -> int:
        return max(self.epochs, self.epoch)

    @property
    def running(self) -> bool:
        return self.seconds is None and self.epoch > 0

    def advance(self, epoch: int, figures: Mapping[str, float], began: float, now: float) -> None:
        """Take in one epoch. `began`: the earliest moment at which the member can have started."""
        self.epoch, self.epochs = epoch, int(figures.get("epochs", self.epochs))
        self.figures = {**self.figures, **figures}
        if self.first is None:
            self.first = (epoch, now)
            # A resumed member's first epoch here says nothing of the ones before, and a short one
            # little: it is timed together with all that was prepared.
            timed = epoch == 1 and now - began >= _TELLING_SECONDS
            self.pace = now - began if timed else None
        elif epoch > self.first[0]:
            self.pace = (now - self.first[1]) / (epoch - self.first[0])
        self.heard = now

    def left(self, now: float) -> float | None:
        """Seconds until the last epoch's end, as the pace so far has it."""
        if self.pace is None or self.seconds is not None:
            return None
        return max(0.0, (self.total - self.epoch) * self.pace - (now - self.heard))

    def describe_epoch(self, figures: Mapping[str, float], now: float) -> str:
        parts = [f"{self.name}  epoch {self.epoch}/{self.total}"]
        parts += [f"{key} {figure(figures[key])}" for key in ("loss", "score") if key in figures]
        if "rows_per_second" in figures:
            parts.append(f"{figures['rows_per_second']:,.0f} rows/s")
        if "gpu_gib" in figures:
            parts.append(f"{figures['gpu_gib']:.1f} GiB")
        if "lr" in figures:
            parts.append(f"lr {figures['lr']:.2e}")
        left = self.left(now)
        if left is not None and self.epoch < self.total:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def describe_end(self) -> str:
        score = "" if self.score is None else f"  score {figure(self.score)}"
        return f"{self.name}  done{score}  in {duration(self.seconds or 0.0)}"


class _Screen(Protocol):
    """How the story is shown."""

    def say(self, text: str) -> None: ...
    def start(self, table: _Table) -> None: ...
    def epoch(self, row: _Row, line: str) -> None: ...
    def finish(self, row: _Row) -> None: ...
    def close(self) -> None: ...


@dataclass
class _Table:
    """The rows of one `start`, and how far they are."""

    rows: dict[str, _Row]
    started: float
    last_end: float
    steps: int = 0  # epochs, or members that have none, heard of since the start
    first: tuple[int, float] | None = None  # steps of the first moment that had any, and when

    def row(self, name: str, epochs: int = 0) -> _Row:
        if name not in self.rows:  # the screen's thread may be walking through the old mapping
            self.rows = {**self.rows, name: _Row(name, epochs)}
        return self.rows[name]

    def epoch(self, name: str, epoch: int, figures: Mapping[str, float], now: float) -> _Row:
        row = self.row(name)
        row.advance(epoch, figures, self.last_end, now)
        for other in self.rows.values():
            if not other.epoch:  # members are alike: those to come will have as many epochs
                other.epochs = row.epochs
        self._step(1, now, now)
        return row

    def _step(self, count: int, began: float, now: float) -> None:
        """Count steps. Those of members in lock step are heard of at one moment."""
        self.steps += count
        if self.first is None:
            self.first = (self.steps if began == now else 0, began)
        elif now - self.first[1] <= _MOMENT_SECONDS:
            self.first = (self.steps, self.first[1])

    def finish(self, name: str, score: float | None, seconds: float, now: float) -> _Row:
        row = self.row(name)
        if not row.epoch:
            # One taken over from an earlier session of the run says nothing of this one's pace.
            fitted_now = seconds <= now - self.started + 1
            if fitted_now:
                self._step(max(row.epochs, 1), now - seconds, now)
            row.epoch = row.epochs
        row.score, row.seconds, self.last_end = score, seconds, now
        return row

    def left(self, now: float) -> float | None:
        """Seconds until all members are done, at the pace of all of them together."""
        todo = sum(max(row.total, 1) - row.epoch for row in self.unfinished())
        if self.first is None or not todo:
            return None
        last = max([row.heard for row in self.rows.values()] + [self.last_end])
        steps, since = self.first
        if self.steps == steps:  # the first moment is timed together with all that was prepared
            steps, since = 0, self.started
            if last - since < _TELLING_SECONDS:
                return None
        return max(0.0, todo * (last - since) / (self.steps - steps) - (now - last))

    def unfinished(self) -> list[_Row]:
        return [row for row in self.rows.values() if row.seconds is None]

    def finished(self) -> list[_Row]:
        return [row for row in self.rows.values() if row.seconds is not None]


class _Story:
    """Keeps the table and the log, and hands each event, of whatever thread, to the screen."""

    def __init__(self, screen: _Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen = screen
        self._clock = clock
        self._log: TextIO | None = None
        self._untaken: list[str] = []  # lines told before there was a log
        self._closed = False
        self._table = _Table({}, clock(), clock())
        self._telling = threading.RLock()  # a screen that fails to write warns of it, in between

    def say(self, text: str) -> None:
        with self._telling:
            for line in hide(text).splitlines():
                line = _printable(line)
                self._note(line)
                self._screen.say(line)

    def note(self, text: str) -> None:
        with self._telling:
            for line in hide(text).splitlines():
                self._note(_printable(line))

    def attach_log(self, path: Path) -> None:
        if self._log is not None:
            self._log.close()
        try:
            self._log = path.open("a", encoding="utf-8")
        except OSError as error:
            self._log = None
            raise UserError(
                f"{path} cannot be written: {error.strerror}; free the folder or choose another"
            ) from error
        lines, self._untaken = self._untaken, []
        self._write(lines)

    def start(self, members: Sequence[str], epochs: int) -> None:
        now = self._clock()
        self._table = _Table({name: _Row(name, epochs) for name in members}, now, now)
        self._screen.start(self._table)

    def epoch(self, member: str, epoch: int, figures: Mapping[str, float]) -> None:
        with self._telling:
            now = self._clock()
            row = self._table.epoch(member, epoch, figures, now)
            line = row.describe_epoch(figures, now)
            self._note(line)
            self._screen.epoch(row, line)

    def finish(self, member: str, score: float | None, seconds: float) -> None:
        with self._telling:
            row = self._table.finish(member, score, seconds, self._clock())
            self._note(row.describe_end())
            self._screen.finish(row)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._screen.close()
        finally:
            if self._log is not None:
                self._log.close()
                self._log = None

    def __enter__(self) -> _Story:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _note(self, line: str) -> None:
        stamped = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n"
        if self._log is None:
            self._untaken.append(stamped)
        else:
            self._write([stamped])

    def _write(self, lines: Iterable[str]) -> None:
        """Lines to the log at once: a killed run has told all that happened."""
        log = self._log
        if log is None:
            return
        try:
            log.writelines(lines)
            log.flush()
        except OSError as error:  # a full disk stops the log, not the training
            self._log = None
            with suppress(OSError):  # what could not be written is tried once more
                log.close()
            self._screen.say(f"{log.name} is no longer written: {error.strerror}")


class _Plain:
    """Lines without control codes; at most one an epoch, and about one a second in all."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._told: dict[str, float] = {}
        self._table = _Table({}, 0.0, 0.0)

    def say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def start(self, table: _Table) -> None:
        self._told, self._table = {}, table

    def epoch(self, row: _Row, line: str) -> None:
        now = self._clock()
        running = sum(other.running for other in self._table.rows.values())
        pause = max(PLAIN_SECONDS, running)
        last = row.epoch == row.epochs
        if last or row.name not in self._told or now - self._told[row.name] >= pause:
            self._told[row.name] = now
            self.say(line)

    def finish(self, row: _Row) -> None:
        self.say(row.describe_end())

    def close(self) -> None:
        self._stream.flush()


class _Live:
    """A table that redraws itself; what is said or printed meanwhile appears above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._table: _Table | None = None

    def say(self, text: str) -> None:
        # soft_wrap: the terminal breaks long lines, so that a path can be copied whole
        self._console.print(text, markup=False, soft_wrap=True)

    def start(self, table: _Table) -> None:
        self.close()
        self._table = table
        self._show(table)

    def epoch(self, row: _Row, line: str) -> None:
        """The next frame shows it; a table that was done before comes back."""
        if self._live is None and self._table is not None:
            self._show(self._table)

    def finish(self, row: _Row) -> None:
        """The next frame shows it; the last one stays, and the story goes on below it."""
        if self._table is not None and not self._table.unfinished():
            self.close()

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _show(self, table: _Table) -> None:
        from rich.live import Live

        _keep_streams_in_children()
        ours = getattr(self._console.file, "_stream", None) is sys.stderr
        self._live = Live(
            get_renderable=lambda: _frame(table, self._console, self._clock()),
            console=self._console,
            refresh_per_second=_REFRESHES,
            # Prints go above the table, but never from a pipe that somebody reads to the terminal.
            redirect_stdout=ours and sys.stdout.isatty(),
            redirect_stderr=ours,
        )
        self._live.start(refresh=True)


_streams_kept = False


def _keep_streams_in_children() -> None:
    """Give forked workers the plain stdout and stderr back.

    The live table stands in for both, and a child that prints through it may wait for ever on a
    lock that the parent's drawing thread held when it forked.
    """
    global _streams_kept
    if _streams_kept or not hasattr(os, "register_at_fork"):
        return
    _streams_kept = True
    os.register_at_fork(after_in_child=_plain_streams)


def _plain_streams() -> None:
    from rich.file_proxy import FileProxy

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, FileProxy):
            plain = stream.rich_proxied_file
            setattr(sys, name, plain)


def _frame(table: _Table, console: Console, now: float) -> RenderableType:
    """The table and its sums, never higher than the screen."""
    from rich.console import Group

    shown = _visible(list(table.rows.values()), max(1, console.size.height - _MARGIN))
    grid = _grid(list(table.rows.values()))
    for row in shown:
        grid.add_row(*_cells(row, [str(column.header) for column in grid.columns], now))
    return Group(grid, _sums(table, len(shown), now))


def _visible(rows: list[_Row], room: int) -> list[_Row]:
    """All rows where they fit; else the running ones, or the latest finished if none runs."""
    if len(rows) <= room:
        return rows
    running = [row for row in rows if row.running]
    done = [row for row in rows if row.seconds is not None]
    return (running or done[-_LATEST:] or rows)[:room]


def _grid(rows: list[_Row]) -> Table:
    """An empty table with a column for each figure that any member has."""
    from rich.table import Table

    grid = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    grid.add_column("member", no_wrap=True, max_width=22)
    known = {key for row in rows for key in row.figures}
    scored = "score" in known or any(row.score is not None for row in rows)
    if any(row.total for row in rows):
        grid.add_column("", no_wrap=True, width=_BAR)
        grid.add_column("epoch", no_wrap=True, justify="right")
    for header, wanted in (
        ("loss", "loss" in known),
        ("score", scored),
        ("rows/s", "rows_per_second" in known),
        ("left", True),
        ("GPU", "gpu_gib" in known),
    ):
        if wanted:
            grid.add_column(header, no_wrap=True, justify="right")
    return grid


def _cells(row: _Row, headers: list[str], now: float) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    done = row.seconds is not None
    score = row.score if done and row.score is not None else row.figures.get("score")
    speed, memory = row.figures.get("rows_per_second"), row.figures.get("gpu_gib")
    colour = "green" if done else "" if row.running else "dim"
    cells: dict[str, RenderableType] = {
        "member": Text(_printable(row.name), style=colour),
        "": ProgressBar(total=max(row.total, 1), completed=row.epoch, width=_BAR),
        "epoch": Text(f"{row.epoch}/{row.total}", style=colour),
        "loss": _number(row.figures.get("loss"), "{:.4g}"),
        "score": _number(score, style="bold" if done else ""),
        "rows/s": Text("" if speed is None or done else f"{speed:,.0f}"),
        "left": Text(_time_left(row, now), style=colour),
        "GPU": Text("" if memory is None else f"{memory:.1f} GiB", style="dim"),
    }
    return [cells[header] for header in headers]


def _time_left(row: _Row, now: float) -> str:
    if row.seconds is not None:
        return f"✓ {duration(row.seconds)}"
    left = row.left(now)
    if left is not None:
        return duration(left)
    return "" if row.running else "waiting" if row.total else "fitting"


def _number(value: float | None, form: str = "", style: str = "") -> Text:
    from rich.text import Text

    if value is None:
        return Text("")
    if not math.isfinite(value):
        return Text(str(value), style="bold red")
    return Text(form.format(value) if form else figure(value), style=style)


def _sums(table: _Table, shown: int, now: float) -> Text:
    """One line: how many are done, how well they scored, how long it takes."""
    from rich.text import Text

    done, total = table.finished(), len(table.rows)
    parts = [f"{len(done)} of {total} done"]
    scores = [row.score for row in done if row.score is not None]
    if len(scores) > 1:
        mean = math.fsum(scores) / len(scores)
        deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / (len(scores) - 1))
        parts.append(f"score {spread(mean, deviation)}")
    if shown < total:
        parts.append(f"{total - shown} not shown")
    parts.append(f"{duration((now if table.unfinished() else table.last_end) - table.started)}")
    left = table.left(now)
    if left is not None:
        parts.append(f"{duration(left)} left")
    return Text(" · ".join(parts), style="dim", no_wrap=True, overflow="ellipsis")


def _printable(text: str) -> str:
    """`text` without control codes, which a file's name may bring along."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "?" for letter in text)
