"""Eight processes at once train, read and write one project, and nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from kagglekit import files, inventory, leaderboard, locks
from kagglekit.cli import main
from tests import toys
from tests.conftest import ROOT
from tests.test_pipeline import content, unbroken
from tests.typist import IMPORTED

PROCESSES = 8
SECONDS = 100  # nothing here takes a tenth of it; a deadlock would take for ever

TRAININGS = [
    ("line",),
    ("line", "--seeds", "2"),
    ("curve",),
    ("curve", "--folds", "1"),
    ("mix",),
    ("mix",),
    ("refitted",),
    ("line", "ridge=0.5", "--fresh"),
]
READINGS = (("leaderboard",), ("list",), ("runs", "--all"), ("runs",))


@pytest.fixture(scope="module")
def crowd() -> Any:
    """Starts processes in milliseconds: they are forked from one that has imported everything."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy competition, its data in a zip, and an index that somebody has damaged."""
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)
    data = project / "data" / "toy"
    with zipfile.ZipFile(data / "toy.zip", "w") as archive:
        for path in sorted(data.glob("*.csv")):
            archive.write(path, path.name)
            path.unlink()
    Path("runs").mkdir()
    Path("runs", leaderboard.DATABASE).write_bytes(b"no database" * 1000)
    return project


def typed(*command: str) -> int:
    """The exit code of a command; what it prints is appended to a file of this process."""
    with (
        Path(f"out-{os.getpid()}.txt").open("a") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        print("$", *command)
        return main([*command, "--json"])


def build() -> dict[str, np.ndarray]:
    """Arrays that take their time, and are counted."""
    with Path("built.txt").open("a") as handle:
        handle.write("built\n")
    time.sleep(0.3)
    return {"x": np.arange(1000)}


def work(number: int, project: str, environment: dict[str, str], start: Any) -> None:
    """What one of the processes does; it ends with 1 where any command failed."""
    os.environ.update(environment)
    os.chdir(project)
    start.wait(SECONDS)
    codes = [typed("practice", "toy")]
    found = files.cached_arrays(Path(environment["KAGGLEKIT_CACHE"]), "slow", build)
    codes += [typed("train", "toy", *TRAININGS[number])]
    codes += [typed(*reading) for reading in READINGS]
    sys.exit(int(any(codes) or found["x"].sum() != 499_500))


def run_all(crowd: Any, target: Any, count: int = PROCESSES) -> None:
    """`count` processes of `target` at once, none of which fails."""
    environment = {key: value for key, value in os.environ.items() if key.startswith("KAGGLEKIT_")}
    start = crowd.Barrier(count)
    processes = [
        crowd.Process(target=target, args=(number, str(Path.cwd()), environment, start))
        for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(SECONDS)
        codes = [process.exitcode for process in processes]
        told = "\n".join(path.read_text() for path in Path().glob("out-*.txt"))
        assert codes == [0] * count, told[-10_000:]
    finally:
        for process in processes:
            process.kill()


def leftovers() -> list[Path]:
    """Temporaries and lock files anywhere in the project and its cache."""
    homes = Path.cwd(), Path(os.environ["KAGGLEKIT_CACHE"])
    found = [path for home in homes for path in home.rglob("*")]
    return [path for path in found if path.suffix in (".tmp", ".lock") or "fresh-" in path.name]


def test_eight_processes_lose_no_row_train_nothing_twice_and_leave_caches_whole(
    crowd: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(crowd, work)
    check_runs(capsys)
    check_caches()


def check_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Every run is on the leaderboard, once and whole, and every learner was fitted once."""
    assert main(["leaderboard", "--json"]) == 0
    boards = json.loads(capsys.readouterr().out)["runs"]
    recipes = Counter(row["recipe"] for row in boards)
    assert recipes == {"line": 2, "curve": 1, "mix": 1, "refitted": 1}
    assert all(row["finished"] and row["coverage"] == 1 for row in boards)
    assert len({row["run"] for row in boards}) == 5
    assert sorted(row["seeds"] for row in boards if row["recipe"] == "line") == [[0], [0, 1]]
    # line: 3 folds × 2 seeds, and 3 with the other ridge; curve 3; refitted 3 folds and all rows
    assert toys.fits() == 6 + 3 + 3 + 4
    for row in boards:
        folder = Path("runs", "toy", row["run"])
        assert np.load(folder / "covered.npy").all()
        assert Path("submissions", "toy", f"{row['run']}.csv").is_file()
        told = json.loads((folder / "run.json").read_text())
        assert told["members"] == told["wanted"]
    assert inventory.report(None, everything=False)["runs"] == []
    with contextlib.closing(sqlite3.connect(Path("runs", leaderboard.DATABASE))) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM runs").fetchall() == [(5,)]


def check_caches() -> None:
    """Each was built by one process, and is whole; nothing temporary is left."""
    cache = Path(os.environ["KAGGLEKIT_CACHE"])
    assert Path("built.txt").read_text() == "built\n"
    (unpacked,) = (cache / "unpacked").iterdir()
    assert files._whole(unpacked)
    assert len(list(unpacked.glob("*.csv"))) == 3
    assert leftovers() == []
    practice = sorted(path.name for path in Path("data", "toy.practice").iterdir())
    assert practice == ["sample_submission.csv", "test.csv", "train.csv"]
    assert [path.name for path in Path("data", "toy.practice-answers").iterdir()] == [
        "solution.csv"
    ]


def pair(number: int, project: str, environment: dict[str, str], start: Any) -> None:
    """Train what the other one trains."""
    os.environ.update(environment)
    os.chdir(project)
    start.wait(SECONDS)
    sys.exit(typed("train", "toy", "mix"))


def test_two_processes_at_once_end_with_the_same_bytes(crowd: Any, tmp_path: Path) -> None:
    shutil.rmtree("data")  # so that both make practice data too
    run_all(crowd, pair, 2)
    told = [path.read_text().partition("\n{")[2] for path in Path().glob("out-*.txt")]
    results = [json.loads("{" + text) for text in told]
    assert len(results) == 2
    assert results[0]["cv"] == results[1]["cv"]
    assert results[0]["practice_lb"] is not None
    assert content(results[0]) == unbroken(tmp_path, "mix")


# --- a damaged cache, and an index that is damaged again and again -------------------------------


def mend(number: int, project: str, environment: dict[str, str], start: Any) -> None:
    """Ask for a cache that was damaged, and record a run in an index that is damaged each time."""
    os.environ.update(environment)
    os.chdir(project)
    start.wait(SECONDS)
    runs, submissions = Path("runs"), Path("submissions")
    unpacked = files.unpacked(Path("data/toy"), Path(environment["KAGGLEKIT_CACHE"]))
    for _ in range(20):
        if not all((unpacked / f"{name}.csv").read_bytes() for name in ("train", "test")):
            sys.exit(1)
    name = f"line-{number:08x}"
    told = {"recipe": "line", "started": "2025-01-01T00:00:00+00:00", "finished": None}
    files.write_json(runs / "toy" / name / "run.json", told)
    for _ in range(10):
        start.wait(SECONDS)
        if number == 0:
            (runs / leaderboard.DATABASE).write_bytes(b"no database" * 1000)
        start.wait(SECONDS)
        leaderboard.record(runs, submissions, "toy", name)
        if name not in {row.run for row in leaderboard.rows(runs, "toy", submissions)}:
            sys.exit(2)


def test_what_is_damaged_is_mended_by_one_while_the_others_read(crowd: Any) -> None:
    cache = Path(os.environ["KAGGLEKIT_CACHE"])
    (files.unpacked(Path("data/toy"), cache) / "test.csv").unlink()
    run_all(crowd, mend)
    rows = leaderboard.rows(Path("runs"), "toy", Path("submissions"))
    assert len(rows) == PROCESSES
    assert leftovers() == []


# --- an owner that dies --------------------------------------------------------------------------

DOOMED = """
import os, sys, time
from pathlib import Path
from torch.utils.data import DataLoader, Dataset
from kagglekit import locks

class Slow(Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, row):
        if row > 1:
            time.sleep(60)
        return row

with locks.held(Path(sys.argv[1]), "kagglekit train toy", print):
    batches = iter(DataLoader(Slow(), num_workers=2, persistent_workers=True))
    next(batches)
    print("training", flush=True)
    next(batches), next(batches)
"""


def test_a_killed_owner_s_lock_is_taken_over_while_its_workers_still_live(tmp_path: Path) -> None:
    run = tmp_path / "line-1"
    owner = subprocess.Popen(
        [sys.executable, "-c", DOOMED, str(run)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == "training\n"
    workers = psutil.Process(owner.pid).children()
    assert len(workers) == 2
    try:
        assert not locks.Lock(run).take()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        began = time.monotonic()
        with locks.held(run, "", print):
            taken = time.monotonic() - began
            assert all(worker.is_running() for worker in workers)
        assert taken < 2
    finally:
        owner.kill()
        for worker in workers:
            worker.kill()
        owner.stdout.close()


def wait(number: int, project: str, environment: dict[str, str], start: Any) -> None:
    """Train what another process has locked."""
    os.environ.update(environment)
    os.chdir(project)
    start.wait(SECONDS)
    sys.exit(typed("train", "toy"))


def test_who_waits_for_a_run_is_told_for_whom_and_finds_it_trained(crowd: Any) -> None:
    assert main(["train", "toy", "--json"]) == 0
    (run,) = (path.parent for path in Path("runs/toy").glob("*/run.json"))
    lock = locks.held(run, "kagglekit train toy", print)

    def release_when_both_wait() -> None:
        for _ in range(600):
            told = [path.read_text() for path in Path().glob("out-*.txt")]
            if sum("is being trained" in text for text in told) == 2:
                break
            time.sleep(0.1)
        lock.release()

    threading.Thread(target=release_when_both_wait).start()
    run_all(crowd, wait, 2)
    for path in Path().glob("out-*.txt"):
        told = path.read_text()
        assert f"is being trained by process {os.getpid()} on " in told
        assert "is trained already" in told
        assert '"trained": false' in told
    assert toys.fits() == 3
