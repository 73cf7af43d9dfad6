"""The index agrees with the folders, whatever happened to it."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from kagglekit import leaderboard
from kagglekit.errors import UserError

ROOT = Path(leaderboard.__file__).parents[1]


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class Project:
    """A folder of runs and one of submissions."""

    def __init__(self, home: Path) -> None:
        self.runs, self.submissions = home / "runs", home / "submissions"
        self.runs.mkdir(parents=True)

    def run(self, run: str, cv: float | None, competition: str = "digits", **more: object) -> None:
        folder = self.runs / competition / run
        told = {
            "run": run,
            "competition": competition,
            "recipe": run.split("-")[0],
            "slug": "digit-recognizer",
            "started": "2025-01-02T03:04:05Z",
            "finished": "2025-01-02T03:05:05Z",
            "seeds": [0],
            "folds_wanted": 5,
            "data": {"folder": "x", "kind": more.pop("kind", "download"), "fingerprint": "0"},
            "device": "cpu",
            "precision": "fp32",
        }
        told |= {key: more.pop(key) for key in ("started", "finished", "seeds") if key in more}
        write(folder / "run.json", told)
        if cv is not None:
            scores = {
                "metric": "accuracy",
                "greater_is_better": True,
                "cv": cv,
                "mean": cv,
                "std": abs(cv) / 1000,
                "coverage": 1.0,
                "folds": [{"fold": fold, "score": cv * (1 + fold / 1e4)} for fold in range(5)],
                "members": [],
                "views": [],
                "practice_lb": None,
                "seconds": 272.0,
            }
            write(folder / "scores.json", scores | more)

    def record(self, run: str, competition: str = "digits") -> None:
        leaderboard.record(self.runs, self.submissions, competition, run)

    def rows(self, competition: str | None = None) -> list[leaderboard.Row]:
        return leaderboard.rows(self.runs, competition, self.submissions)

    def names(self, competition: str | None = None) -> list[str]:
        return [row.run for row in self.rows(competition)]

    def index(self, statement: str) -> list[tuple]:
        database = sqlite3.connect(self.runs / leaderboard.DATABASE, isolation_level=None)
        try:
            return database.execute(statement).fetchall()
        finally:
            database.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def shown(rows: list[leaderboard.Row], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(leaderboard.table(rows, width))
    return capture.get()


def test_a_recorded_run_is_read_back_as_its_folder_tells(project: Project):
    project.run("cnn-1a", 0.99, practice_lb=0.98, coverage=0.4, seeds=[0, 1])
    write(project.submissions / "digits" / "cnn-1a.json", {"public": 0.97, "status": "COMPLETE"})
    project.record("cnn-1a")
    (row,) = project.rows()
    assert (row.recipe, row.seeds, row.practice, row.greater_is_better) == (
        "cnn",
        (0, 1),
        False,
        True,
    )
    assert (row.cv, row.coverage, row.seconds) == (0.99, 0.4, 272.0)
    assert (row.practice_lb, row.public_lb, row.private_lb) == (0.98, 0.97, None)
    assert row.folds[1] == (1, 0.99 * 1.0001)


def test_a_rebuilt_index_equals_the_one_that_grew(project: Project):
    for number, name in enumerate(["a-1", "b-2", "a-3", "c-4"]):
        project.run(name, None if name == "c-4" else 0.9 + number / 100)
        project.record(name)
        project.record(name)
    grown = project.index("SELECT * FROM runs ORDER BY run")
    rows = project.rows()
    assert leaderboard.rebuild(project.runs, project.submissions) == 4
    assert project.index("SELECT * FROM runs ORDER BY run") == grown
    (project.runs / leaderboard.DATABASE).unlink()
    assert project.rows() == rows


def test_a_run_recorded_again_has_its_new_scores(project: Project):
    project.run("cnn-1", None, finished=None)
    project.record("cnn-1")
    project.run("cnn-1", 0.9)
    project.record("cnn-1")
    assert [(row.cv, row.finished is None) for row in project.rows()] == [(0.9, False)]


@pytest.mark.parametrize(("greater", "order"), [(True, ["b", "c", "a"]), (False, ["a", "c", "b"])])
def test_the_metric_s_direction_decides_which_run_is_best(project: Project, greater, order):
    for name, cv in (("a", 0.1), ("b", 0.3), ("c", 0.2), ("unscored", None)):
        project.run(name, cv, greater_is_better=greater)
        project.record(name)
    assert project.names()[:3] == order
    assert project.names()[3:] == ["unscored"]
    best = leaderboard.best(project.runs, "digits", project.submissions)
    assert best is not None
    assert best.run == order[0]


def test_competitions_are_listed_one_after_the_other_and_apart(project: Project):
    for competition in ("zebras", "ants"):
        for name, cv in (("low", 0.1), ("high", 0.2)):
            project.run(name, cv, competition)
            project.record(name, competition)
    assert [(row.competition, row.run) for row in project.rows()] == [
        ("ants", "high"),
        ("ants", "low"),
        ("zebras", "high"),
        ("zebras", "low"),
    ]
    assert {row.competition for row in project.rows("ants")} == {"ants"}
    assert leaderboard.best(project.runs, "none", project.submissions) is None


def test_a_run_on_practice_data_never_ranks_above_one_on_real_data(project: Project):
    project.run("practised", 0.999, kind="practice")
    project.record("practised")
    assert project.rows()[0].practice
    best = leaderboard.best(project.runs, "digits", project.submissions)
    assert best is not None
    assert best.run == "practised"
    project.run("real", 0.5)
    project.record("real")
    assert project.names() == ["real", "practised"]


def test_scores_of_a_metric_that_was_replaced_do_not_compete(project: Project):
    project.run("old", 50.0, metric="rmse", started="2025-01-01T00:00:00Z")
    project.run("new", 0.5)
    for name in ("old", "new"):
        project.record(name)
    assert project.names() == ["new", "old"]


def test_a_run_whose_folder_is_gone_or_set_aside_does_not_appear(project: Project):
    for name in ("stays", "goes", "stays~1"):
        project.run(name, 0.5)
        project.record(name)
    shutil.rmtree(project.runs / "digits" / "goes")
    assert project.names() == ["stays"]
    assert leaderboard.rebuild(project.runs, project.submissions) == 1
    project.record("goes")
    assert project.names() == ["stays"]


RECORDER = """
import sys
from pathlib import Path
from kagglekit import leaderboard
runs, submissions, *names = sys.argv[1:]
for name in names:
    leaderboard.record(Path(runs), Path(submissions), "digits", name)
"""


@pytest.mark.parametrize("start", ["missing", "corrupt"])
def test_two_processes_that_record_at_once_lose_no_run(project: Project, start):
    names = [f"cnn-{number}" for number in range(40)]
    for name in names:
        project.run(name, 0.5)
    if start == "corrupt":
        (project.runs / leaderboard.DATABASE).write_bytes(b"no database" * 1000)
    command = [sys.executable, "-c", RECORDER, str(project.runs), str(project.submissions)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([*command, *part], env=environment, stderr=subprocess.PIPE, text=True)
        for part in (names[::2], names[1::2])
    ]
    errors = [worker.communicate()[1] for worker in workers]
    assert errors == ["", ""]
    assert project.index("SELECT count(*) FROM runs") == [(40,)]


@pytest.mark.parametrize("damage", ["overwritten", "truncated", "other version", "other columns"])
def test_a_damaged_or_unknown_index_is_made_again_from_the_folders(project: Project, damage):
    for name in ("a", "b"):
        project.run(name, 0.5)
        project.record(name)
    before = project.rows()
    path = project.runs / leaderboard.DATABASE
    if damage == "overwritten":
        path.write_bytes(b"this is not a database" * 100)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "other version":
        project.index("PRAGMA user_version=99")
        project.index("DELETE FROM runs")
    else:
        project.index("DROP TABLE runs")
        project.index("CREATE TABLE runs (competition, run)")
    assert project.rows() == before
    project.run("c", 0.9)
    project.record("c")
    assert project.names()[0] == "c"


def test_a_damaged_run_is_named_and_keeps_no_other_from_the_index(
    project: Project, caplog: pytest.LogCaptureFixture
):
    project.run("whole", 0.5)
    project.run("broken", 0.5)
    (project.runs / "digits" / "broken" / "scores.json").write_text('{"cv": ')
    with pytest.raises(UserError, match=r"broken.scores\.json"):
        project.record("broken")
    assert leaderboard.rebuild(project.runs, project.submissions) == 1
    (warning,) = caplog.messages
    assert "broken is left out" in warning
    assert "scores.json" in warning
    write(project.runs / "digits" / "broken" / "scores.json", {"folds": [{"fold": 0}]})
    with pytest.raises(UserError, match="broken"):
        project.record("broken")


def test_an_index_that_cannot_be_written_is_read_around(project: Project):
    project.run("a", 0.5)
    (project.runs / leaderboard.DATABASE).mkdir()
    assert project.names() == ["a"]
    with pytest.raises(UserError, match=r"leaderboard\.db"):
        project.record("a")


def test_the_index_uses_wal_and_where_there_is_none_a_rollback_journal(
    project: Project, monkeypatch
):
    project.run("a", 0.5)
    project.record("a")
    assert project.index("PRAGMA journal_mode") == [("wal",)]

    class NoWal(sqlite3.Connection):
        def execute(self, statement: str, *more: object) -> sqlite3.Cursor:  # type: ignore[override]
            if statement.endswith("journal_mode=WAL"):
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(statement, *more)  # type: ignore[arg-type]

    (project.runs / leaderboard.DATABASE).unlink()
    connect = sqlite3.connect
    monkeypatch.setattr(
        leaderboard.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=NoWal)
    )
    project.record("a")
    assert project.names() == ["a"]
    monkeypatch.undo()
    assert project.index("PRAGMA user_version") == [(leaderboard.SCHEMA,)]


def test_a_wal_index_brought_to_a_file_system_without_shared_memory_stays_readable(
    project: Project, monkeypatch
):
    project.run("a", 0.5)
    project.record("a")

    class NoSharedMemory(sqlite3.Connection):
        exclusive = False

        def execute(self, statement: str, *more: object) -> sqlite3.Cursor:  # type: ignore[override]
            if statement == "PRAGMA locking_mode=EXCLUSIVE":
                self.exclusive = True
            elif statement == "PRAGMA journal_mode" and not self.exclusive:
                raise sqlite3.OperationalError("unable to open database file")
            return super().execute(statement, *more)  # type: ignore[arg-type]

    connect = sqlite3.connect
    monkeypatch.setattr(
        leaderboard.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=NoSharedMemory)
    )
    project.run("b", 0.6)
    project.record("b")
    monkeypatch.undo()
    assert project.index("PRAGMA journal_mode") == [("delete",)]
    assert project.index("SELECT run FROM runs ORDER BY run") == [("a",), ("b",)]


def test_asking_leaves_nothing_where_there_are_no_runs(tmp_path: Path):
    nowhere = tmp_path / "nowhere"
    assert leaderboard.rows(nowhere, submissions=tmp_path) == []
    assert leaderboard.rebuild(nowhere, tmp_path) == 0
    assert not nowhere.exists()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_shows_every_figure_whole(project: Project, width):
    project.run("cnn_small-1a2b3c4d", 0.9962, "mics_mnist")
    write(
        project.submissions / "mics_mnist" / "cnn_small-1a2b3c4d.json",
        {"public": 0.99575, "private": 0.99512, "status": "COMPLETE"},
    )
    project.run("spline-5e6f7a8b", 3.2e-7, "fit_1d", metric="mse", greater_is_better=False)
    project.run("neural-9c0d1e2f", 33.1, "fit_1d", kind="practice", practice_lb=33.4, coverage=0.4)
    project.run("gp-00112233", None, "fit_1d", finished=None, seeds=[0, 1])
    leaderboard.rebuild(project.runs, project.submissions)
    text = shown(project.rows(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in (
        "cnn_small-1a2b3c4d",
        "0.99620",
        ".9962",
        "4m32s",
        "1 seed",
        "2 seeds",
        "0.99575",
        "0.99512",
        "3.20e-7",
        "33.100",
        "practice data",
        "40 % of rows",
        "not finished",
    ):
        assert part in text, part


def test_fold_scores_share_one_exponent_and_many_give_their_range(project: Project):
    project.run("a", 3.2e-7)
    assert leaderboard.rebuild(project.runs, project.submissions) == 1
    (row,) = project.rows()
    assert leaderboard._folds(row) == "(3.200 3.200 3.201 3.201 3.201)e-7"
    folds = [{"fold": number, "score": 0.99 + number / 1000} for number in range(20)]
    project.run("a", 0.99, folds=folds)
    project.record("a")
    (row,) = project.rows()
    assert leaderboard._folds(row) == "20 folds, 0.990 to 1.009"


@pytest.mark.parametrize("width", [90, 130])
def test_several_seeds_show_their_mean_and_one_is_marked_as_such(project: Project, width: int):
    repeats = {
        "scores": [{"seed": seed, "score": 0.99 + seed / 1000} for seed in range(3)],
        "mean": 0.991, "std": 0.001, "interval": [0.9885, 0.9935],
    }  # fmt: skip
    project.run("cnn-1a", 0.992, seeds=[0, 1, 2], repeats=repeats)
    project.run("cnn-2b", 0.981, seeds=[0])
    for run in ("cnn-1a", "cnn-2b"):
        project.record(run)
    first, second = project.rows()
    assert first.seed_scores == ((0, 0.99), (1, 0.991), (2, 0.992))
    assert (first.seed_mean, first.seed_std) == (0.991, 0.001)
    assert first.seed_interval == (0.9885, 0.9935)
    assert (second.seed_scores, second.seed_interval) == ((), None)
    text = shown(project.rows(), width)
    for part in ("3 seeds", "0.9910 ± 0.0010", "[0.98850, 0.99350]", "1 seed"):
        assert part in text
