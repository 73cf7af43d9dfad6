"""Proof that a run killed anywhere ends with the bytes of an unbroken one: both are made here."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, get_args

from . import board, devices, files, folders, leaderboard, problem
from . import competition as competitions
from . import config as configs
from . import run as runs
from .config import Config
from .errors import KagglekitError, UserError
from .stages import Stage

EACH = 4  # kills in every stage, at least, where enough are asked for
SHORT = {"epochs": 3, "min_steps": 0, "polish": 4, "trees": 40, "starts": 2, "copies": 2}
"""Knobs that make a run short: the value taken where the recipe's own is larger."""
ROWS = 240  # training rows, where the user does not say
FOLDS = 2

# keys not compared; `why` an engine was chosen tells of times
_TIMES = {"started", "finished", "seconds", "rows_per_second", "gpu_gib", "why"}
_TIMED = {"run.json", "scores.json", "history.jsonl", "engine.json"}  # files that have such keys
_START = "start"  # before the first stage, and between two
# What children would each import for seconds; none of it starts a thread or touches a GPU.
_HEAVY = (
    "kagglekit.cli", "kagglekit.pipeline", "kagglekit.fitting", "kagglekit.pictures",
    "kagglekit.practice", "kagglekit.network", "torch._dynamo", "torch.utils.flop_counter",
    "safetensors.torch", "sklearn.model_selection", "pandas.io.parsers.readers", "psutil",
    "rich.console",
)  # fmt: skip
_PATIENCE = 10  # times the unbroken run's duration that a child may take…
_SLACK = 60.0  # … and so many seconds
_HOPELESS = 100  # shots in a row at one stage that miss it
_REMEMBERED = 64  # durations of a stage
_QUOTED = 12  # lines of a failed child's log
_SHOWN = 3  # keys of a JSON file that are named as different

Tell = Callable[[str], None]


class CertifyError(KagglekitError):
    """A child failed by itself, or hangs, or a stage is never hit: nothing could be certified."""


@dataclass(frozen=True)
class Request:
    """What a user typed after `kagglekit certify`. None = a value that makes the run short."""

    name: str
    recipe: str | None = None
    assignments: tuple[str, ...] = ()  # "key=value"
    data: Path | None = None
    seeds: int = 1
    folds: tuple[int, ...] | None = None
    rows: int | None = None
    kills: int = 20
    seed: int = 0  # of the moments
    weights: Path | None = None  # as typed; recipes find them by $KAGGLEKIT_WEIGHTS


@dataclass(frozen=True)
class Difference:
    """A file in which the broken run is not as the unbroken one, and how."""

    file: str
    what: str


@dataclass(frozen=True)
class Home:
    """Folders that one of the two runs has for itself."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """That of a child which works here and tells its stages."""
        own = {"RUNS": "runs", "SUBMISSIONS": "submissions", "CACHE": "cache"}
        places = {f"KAGGLEKIT_{key}": str(self.folder / name) for key, name in own.items()}
        return {**os.environ, **places, "KAGGLEKIT_STAGES": str(self.folder.parent / "stages")}

    @property
    def runs(self) -> Path:
        """Stands for `runs/`."""
        return self.folder / "runs"

    @property
    def submissions(self) -> Path:
        """Stands for `submissions/`."""
        return self.folder / "submissions"


def certify(request: Request, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Train whole, train killed again and again, compare; the certificate.

    | key | what |
    |---|---|
    | command | that was trained whole, and was killed and typed again |
    | equal, differences | the verdict, and each file that differs with what differs |
    | kills | asked for, and done |
    | hits | stage → kills that hit it; `start` is while starting up and between two stages |
    | targets | stage aimed at → stage hit → kills |
    | finished | broken runs that were allowed to finish, and were compared |
    | files | that were compared each time |
    | folder | where it is kept with the unbroken run; of unequal ones: with both |

    An equal one is kept in `runs/<competition>/certified/<run>/`. `tell` gets a line on how far
    it is, now and then. Raises UserError for what `train` refuses too and for a system without
    SIGKILL; CertifyError where a child fails or hangs without being killed.
    """
    _demand_signals()
    began = time.monotonic()
    typed = command(request)
    scratch = Path(tempfile.mkdtemp(prefix="kagglekit-certify-"))
    try:
        campaign = _Campaign(request, typed, scratch, tell)
        differences = campaign.fight()
        result = {
            **campaign.told(),
            "equal": not differences,
            "differences": [asdict(item) for item in differences],
            "seconds": round(time.monotonic() - began, 1),
        }
        result["folder"] = str(scratch if differences else _kept(campaign, result))
        if differences:
            files.write_json(scratch / "certificate.json", result)
    except CertifyError as error:  # its logs are evidence
        raise CertifyError(f"{error}; all is kept in {scratch}") from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if not differences:
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def _demand_signals() -> None:
    if not (hasattr(signal, "SIGKILL") and hasattr(os, "fork") and hasattr(os, "mkfifo")):
        raise UserError(
            "certify needs a system with SIGKILL, fork and named pipes, which this one is not: "
            "run it on Linux or macOS"
        )


def command(request: Request) -> list[str]:
    """The `train` command of a short run: what the user says, and `SHORT` where nothing is said.

    A knob is only ever lowered, and what is off stays off; members that can are stacked. Two folds
    are trained, both of them, so that a fit on all rows has its turn too; `--folds` or a knob
    `folds` change that.
    """
    competition = problem.find(request.name)
    name = request.recipe or competitions.default_recipe(competition, devices.has_gpu())
    usual = competitions.recipe(competition, request.name, name).config
    given: Config = configs.override(usual, request.assignments)
    typed = {assignment.partition("=")[0] for assignment in request.assignments}
    short = dict(SHORT)
    if request.folds is None and "folds_file" not in typed:
        short["folds"] = FOLDS
    lowered = [
        f"{key}={value}"
        for key, value in short.items()
        if key not in typed and getattr(given, key, value) > value
    ]
    if hasattr(given, "checkpoint_seconds") and "checkpoint_seconds" not in typed:
        lowered.append("checkpoint_seconds=0")
    if getattr(given, "engine", None) == "auto" and "engine" not in typed:
        lowered.append("engine=stacked")  # two runs would time two trials, and might differ
    options = ["--rows", str(request.rows or ROWS)]
    if request.folds is not None:
        options += ["--folds", ",".join(map(str, request.folds))]
    if request.seeds != 1:
        options += ["--seeds", str(request.seeds)]
    if request.weights is not None:
        options += ["--weights", str(request.weights)]
    if request.data is not None:
        options += ["--data", str(request.data)]
    return ["train", request.name, name, *request.assignments, *lowered, *options, "--json"]


# --- the stages as they pass --------------------------------------------------------------------


class _Stages:
    """The pipe in which a child tells its stages, read as they come."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # also open for writing: a child that ends is then no end of the pipe
        self.pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.lasted: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._rest = b""
        self.begin()

    def begin(self) -> None:
        """Another child is started."""
        self.now, self._entered = _START, time.monotonic()
        self.told: Counter[str] = Counter()

    def read(self, seconds: float, *others: int) -> list[str]:
        """The stages told since; waits at most so long for one, or for one of `others`."""
        ready, _, _ = select.select([self.pipe, *others], [], [], seconds)
        if self.pipe in ready:
            self._rest += os.read(self.pipe, 1 << 16)
        *lines, self._rest = self._rest.split(b"\n")
        stages = [line.decode() for line in lines]
        moment = time.monotonic()
        for stage in stages:
            self.lasted[self.now].append(moment - self._entered)
            self.now, self._entered = stage, moment
        self.told.update(stages)
        return stages

    def close(self) -> None:
        os.close(self.pipe)


# --- one child ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """When to kill: in which stage, how many of its occurrences to let pass, how long into it."""

    stage: str
    passes: int
    seconds: float


def _child(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """A process of its own: one command, as if typed; what it prints goes to `log`."""
    os.setsid()  # so that its workers can be found
    # without a reader, telling a stage would wait: this process is one, should its watcher die
    os.open(environment["KAGGLEKIT_STAGES"], os.O_RDWR | os.O_NONBLOCK)
    os.environ.clear()
    os.environ.update(environment)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(target, stream)
    # the first is the default: a run's workers start as they do in an interpreter of its own
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    sys.argv = ["kagglekit", *arguments]
    runpy.run_module("kagglekit", run_name="__main__")


@contextmanager
def _anonymous() -> Iterator[None]:
    """A child started in here does not import the program that we are called from."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# --- the campaign -------------------------------------------------------------------------------


class _Campaign:
    """An unbroken run, and broken ones until there are enough kills."""

    def __init__(self, request: Request, typed: list[str], scratch: Path, tell: Tell) -> None:
        self.request, self.typed, self.tell = request, typed, tell
        self.scratch, self.log = scratch, scratch / "broken.log"
        self.whole, self.broken = Home(scratch / "whole"), Home(scratch / "broken")
        self.random = random.Random(request.seed)
        self.stages = _Stages(scratch / "stages")
        self.run = ""  # its name
        self.times: Counter[str] = Counter()  # that the unbroken run was in each stage
        self.seconds = 0.0  # that it took
        self.targets: dict[str, Counter[str]] = defaultdict(Counter)
        self.missed: Counter[str] = Counter()  # shots in a row that did not hit the stage meant
        self.finished = 0
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(list(_HEAVY))

    @property
    def hits(self) -> Counter[str]:
        """Kills by the stage that they hit."""
        return sum(self.targets.values(), Counter())

    @property
    def possible(self) -> list[str]:
        """The stages that this run has."""
        return [stage for stage in get_args(Stage) if self.times[stage]]

    @property
    def enough(self) -> bool:
        """Whether there are as many kills as asked for, in all and in each stage."""
        hits, asked = self.hits, self.request.kills
        each = min(EACH, asked // len(self.possible))
        return hits.total() >= asked and all(hits[stage] >= each for stage in self.possible)

    def fight(self) -> list[Difference]:
        """All of it; the differences, empty where the law holds."""
        try:
            self._train_whole()
            while not self.enough:
                self.broken.folder.mkdir()
                kills = self._break()
                differences = differing(self.whole, self.broken, self.request.name)
                if differences:
                    return differences
                self.finished += kills > 0
                shutil.rmtree(self.broken.folder)
            return []
        finally:
            self.stages.close()

    def told(self) -> dict[str, Any]:
        """What the certificate says of the campaign."""
        manifest = files.read_json(self.whole.runs / self.request.name / self.run / "run.json")
        hits = self.hits
        return {
            "command": shlex.join(["kagglekit", *self.typed]),
            "competition": self.request.name,
            "recipe": manifest["recipe"],
            "run": self.run,
            "kills": {"asked": self.request.kills, "done": hits.total()},
            "hits": {stage: hits[stage] for stage in (_START, *get_args(Stage))},
            "targets": {stage: dict(self.targets[stage]) for stage in self.possible},
            "finished": self.finished,
            "files": sum(path.is_file() for path in _entries(self.whole).values()),
            "seed": self.request.seed,
            "when": runs.now(),
            "versions": manifest["versions"],
            "device": manifest["device"],
        }

    def _train_whole(self) -> None:
        """The unbroken run, in an interpreter of its own; how long its stages take is learned."""
        self.tell("the unbroken run")
        self.whole.folder.mkdir()
        out, log = self.scratch / "whole.json", self.scratch / "whole.log"
        began = time.monotonic()
        self.stages.begin()
        with out.open("wb") as printed, log.open("wb") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "kagglekit", *self.typed],
                env=self.whole.environment(), stdin=subprocess.DEVNULL, stdout=printed,
                stderr=said, pass_fds=(self.stages.pipe,),
            )  # fmt: skip
        try:
            while child.poll() is None:
                self.stages.read(0.05)
        finally:
            child.kill()
            child.wait()
        self.stages.read(0)
        self.seconds = time.monotonic() - began
        if child.returncode:
            _refuse(child.returncode, log)
        self.times = self.stages.told
        self.run = json.loads(out.read_bytes())["run"]

    def _break(self) -> int:
        """One run, killed and typed again until it finishes; how often it was killed."""
        seen: Counter[str] = Counter()
        kills = 0
        while True:
            aim = None if self.enough else self._aim(seen)
            hit = self._child(aim)
            seen += self.stages.told
            if aim is None:
                return kills
            self.missed[aim.stage] = 0 if hit == aim.stage else self.missed[aim.stage] + 1
            self._demand_hits(aim.stage)
            if hit is None:
                return kills
            kills += 1
            self.targets[aim.stage][hit] += 1
            self.tell(self._score())

    def _score(self) -> str:
        hits = self.hits
        by_stage = "  ".join(f"{stage} {hits[stage]}" for stage in (_START, *self.possible))
        return f"kills {hits.total()}/{self.request.kills}   {by_stage}"

    def _demand_hits(self, stage: str) -> None:
        if self.missed[stage] > _HOPELESS:
            raise CertifyError(
                f"the stage {stage!r} was missed {_HOPELESS} times in a row: it is over before a "
                "kill arrives"
            )

    def _aim(self, seen: Counter[str]) -> Aim:
        """At the stage that was hit least often, at any of the times it is still to come.

        `seen` counts the occurrences in this run so far. A stage that is missed again and again
        is over sooner than a kill arrives: each miss halves the wait.
        """
        hits, possible = self.hits, self.possible
        fewest = min(hits[stage] for stage in possible)
        stage = self.random.choice([stage for stage in possible if hits[stage] == fewest])
        left = max(self.times[stage] - seen[stage], 1)
        usual = self.random.choice(self.stages.lasted[stage])
        wait = self.random.uniform(0, usual) / 2 ** self.missed[stage]
        return Aim(stage, self.random.randrange(left), wait)

    def _child(self, aim: Aim | None) -> str | None:
        """One child; the stage in which it was killed, None where it finished before that."""
        child = self.server.Process(
            target=_child, args=(self.typed, self.broken.environment(), str(self.log))
        )
        self.stages.begin()
        with _anonymous():
            child.start()
        try:
            shot = self._watch(child, aim)
        finally:
            _end(child)
        self.stages.read(0)  # what it told between our last look and its end
        code = child.exitcode
        child.close()
        if shot and code == -signal.SIGKILL:
            return self.stages.now
        if code:
            raise CertifyError(f"a run failed by itself: {_quoted(code, self.log)}")
        return None

    def _watch(self, child: BaseProcess, aim: Aim | None) -> bool:
        """Follow a child to the moment to kill it (True), or to its end."""
        passes = aim.passes if aim else 0
        limit = _SLACK + _PATIENCE * self.seconds
        ends = time.monotonic() + limit
        while child.is_alive():
            for stage in self.stages.read(1.0, child.sentinel):
                if aim is None or stage != aim.stage:
                    continue
                if not passes:
                    time.sleep(aim.seconds)
                    return True
                passes -= 1
            if time.monotonic() > ends:
                raise CertifyError(
                    f"a run is still in {self.stages.now!r} {limit:.0f} s after its start, where "
                    f"the unbroken one took {self.seconds:.0f} s in all: it hangs"
                )
        return False


def _end(child: BaseProcess) -> None:
    """Kill a child, and then the workers that it may leave behind."""
    assert child.pid is not None
    child.kill()
    child.join()
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nobody is left; macOS says the latter
        return


def _refuse(code: int, log: Path) -> None:
    """The unbroken run failed: a user's mistake is told as `train` tells it."""
    sentence = log.read_text(errors="replace").strip().rpartition("\n")[2]
    if code == UserError.exit_code and sentence.startswith("kagglekit: "):
        raise UserError(sentence.removeprefix("kagglekit: "))
    raise CertifyError(f"the unbroken run failed: {_quoted(code, log)}")


def _quoted(code: int, log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_QUOTED:] if log.exists() else []
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}; it said\n" + "\n".join(f"  {line}" for line in lines) + "\n "


# --- equal to the byte --------------------------------------------------------------------------


def differing(whole: Home, broken: Home, competition: str) -> list[Difference]:
    """Where the runs and submissions of two homes are not the same, and their leaderboards.

    Files that hold times are compared without them, `run.log` only by being there. An epoch that
    was done twice may stand in the history twice, with the same figures, and members that train
    side by side in any order.
    """
    ours, theirs = _entries(whole), _entries(broken)
    found = [Difference(name, "is missing") for name in ours if name not in theirs]
    found += [Difference(name, "is left over") for name in theirs if name not in ours]
    for name in ours:
        if name in theirs and (what := _unlike(ours[name], theirs[name], whole, broken)):
            found.append(Difference(name, what))
    rows = [_timeless(_rows(home, competition)) for home in (whole, broken)]
    if rows[0] != rows[1]:
        found.append(Difference("leaderboard", _keys(*rows)))
    return sorted(found, key=lambda item: item.file)


def _entries(home: Home) -> dict[str, Path]:
    """Every file and folder of runs and submissions, by its path in the home."""
    paths = [path for part in (home.runs, home.submissions) for path in sorted(part.rglob("*"))]
    return {
        path.relative_to(home.folder).as_posix(): path
        for path in paths
        # made of the folders, anew whenever they are wanted: the index's rows are compared
        if not path.name.startswith((leaderboard.DATABASE, board.FILE))
    }


def _rows(home: Home, competition: str) -> list[dict[str, Any]]:
    return [asdict(row) for row in leaderboard.rows(home.runs, competition, home.submissions)]


def _unlike(one: Path, other: Path, whole: Home, broken: Home) -> str:
    """What differs between two files; nothing where they are equal."""
    if one.is_dir() or other.is_dir():
        return "" if one.is_dir() and other.is_dir() else "is a folder on one side only"
    if one.name == "run.log":
        return ""
    ours, theirs = one.read_bytes(), other.read_bytes()
    if ours == theirs:
        return ""
    if one.name not in _TIMED:
        return _bytes(ours, theirs)
    try:
        values = [
            _timeless(_values(content, home, one.suffix))
            for content, home in ((ours, whole), (theirs, broken))
        ]
    except ValueError as error:
        return f"is no JSON: {error}"
    return "" if values[0] == values[1] else _keys(*values)


def _values(content: bytes, home: Home, suffix: str) -> Any:
    """The JSON of a file, with the paths in it as they are inside the home."""
    text = content.decode().replace(f"{home.folder.resolve()}{os.sep}", "")
    if suffix != ".jsonl":
        return json.loads(text)
    lines = [_timeless(json.loads(line)) for line in text.splitlines()]
    once = [line for place, line in enumerate(lines) if line not in lines[:place]]
    # members that train side by side tell of their epochs in whatever order the clock has it
    return sorted(once, key=lambda line: str(line.get("member")))


def _timeless(value: Any) -> Any:
    """JSON without what a clock or a meter said; of a time only whether there is one."""
    if isinstance(value, dict):
        return {
            key: (item is not None if key in _TIMES else _timeless(item))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_timeless(item) for item in value]
    return value


def _bytes(ours: bytes, theirs: bytes) -> str:
    sizes = "" if len(ours) == len(theirs) else f" ({len(theirs)} bytes for {len(ours)})"
    common = min(len(ours), len(theirs))
    first = next((n for n in range(common) if ours[n] != theirs[n]), common)
    return f"differs from byte {first} on{sizes}"


def _keys(ours: Any, theirs: Any) -> str:
    """The keys in which two JSON values differ."""
    found = list(_unequal(ours, theirs, ""))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _unequal(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            yield from _unequal(ours.get(key), theirs.get(key), f"{where}.{key}".lstrip("."))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _unequal(one, other, f"{where}[{place}]")
    elif ours != theirs:
        yield f"{where or 'all'}: {_brief(theirs)} for {_brief(ours)}"


def _brief(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, dict | list) else str(value)


# --- what is kept -------------------------------------------------------------------------------


def _kept(campaign: _Campaign, certificate: dict[str, Any]) -> Path:
    """Put the unbroken run, its CSV and the certificate beside the user's runs; where they are."""
    name, run = campaign.request.name, campaign.run
    target = folders.runs() / name / "certified" / run
    with files.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
            fresh = Path(scratch) / run
            left = campaign.whole.runs / name / run
            csv = campaign.whole.submissions / name / f"{run}.csv"
            for path in (csv, *left.rglob("*")):
                if path.is_file():
                    inside = path.name if path == csv else path.relative_to(left)
                    files.write_bytes(fresh / inside, path.read_bytes())
            files.write_json(fresh / "certificate.json", {**certificate, "folder": str(target)})
            if target.exists():
                target.rename(fresh.with_name("old"))
            fresh.rename(target)
    return target
