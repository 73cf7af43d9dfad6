"""Whatever the machine does, a command ends in one sentence, and typed again it goes on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import TensorDataset

from kagglekit import faults, files
from kagglekit.config import NetworkConfig
from kagglekit.loading import Loader
from tests import leaves
from tests.children import Disk, limit, obey_permissions, small_disk
from tests.typist import Ended, kagglekit

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="faults are made by means of Linux"
)

TRAIN = ("train", "leaves")


@pytest.fixture(autouse=True)
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    leaves.write(project)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """What a command leaves where nothing ever stopped it."""
    kept: dict[tuple[str, ...], dict[str, bytes]] = {}

    def content(*typed: str) -> dict[str, bytes]:
        if typed not in kept:
            folder, before = tmp_path_factory.mktemp("unbroken"), Path.cwd()
            leaves.write(folder)
            os.chdir(folder)
            try:
                homes = {f"KAGGLEKIT_{n.upper()}": n for n in ("runs", "submissions", "cache")}
                ended = kagglekit(*typed, **homes)
            finally:
                os.chdir(before)
            assert ended.code == 0, ended.err
            kept[typed] = leaves.content(folder)
        return kept[typed]

    return content


@pytest.fixture
def disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk of one MiB with room for runs, submissions and cache."""
    disk = small_disk(1 << 20)
    for name in ("runs", "submissions", "cache"):
        monkeypatch.setenv(f"KAGGLEKIT_{name.upper()}", str(project / "disk" / name))
    yield disk
    disk.close()


def complained(ended: Ended, *words: str) -> None:
    """The command ended with one sentence for the user, in which are all `words`."""
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.complaint


def goes_on(project: Path, expected: dict[str, bytes], *typed: str) -> None:
    """The same command ends as an unbroken one, and leaves nothing half-written."""
    ended = kagglekit(*typed)
    assert ended.code == 0, ended.err
    assert leaves.content(project) == expected
    assert not list(project.rglob("*.tmp"))


def repack(project: Path) -> None:
    """Put the data into a zip, so that the cache is written."""
    shutil.rmtree(project / "data")
    leaves.write(project, packed=True)


# --- disks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [0, 8, 16, 24, 76, 80, 84, 88])
def test_a_full_disk_is_named_and_nothing_is_lost(
    free: int, disk: Disk, project: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    (disk.inside / "ballast").write_bytes(bytes(disk.size - 1024 * free))
    ended = kagglekit(*TRAIN, before=disk.enter)
    complained(ended, "full" if "leaderboard.db" not in ended.complaint else "free", "disk/")
    (disk.inside / "ballast").unlink()
    ended = kagglekit(*TRAIN, before=disk.enter)
    assert ended.code == 0, ended.err
    assert leaves.content(disk.inside) == unbroken(*TRAIN)
    assert not list(disk.inside.rglob("*.tmp"))


def test_a_full_disk_leaves_earlier_results_as_they_were(disk: Disk) -> None:
    assert kagglekit(*TRAIN, before=disk.enter).code == 0
    earlier = leaves.content(disk.inside)
    free = os.statvfs(disk.inside).f_bavail * os.statvfs(disk.inside).f_frsize
    (disk.inside / "ballast").write_bytes(bytes(free - (12 << 10)))
    complained(kagglekit(*TRAIN, "seed=1", before=disk.enter), "disk/")
    for path in disk.inside.glob("runs/leaves/*"):
        if not (path / "oof.npy").exists():
            shutil.rmtree(path)
    assert leaves.content(disk.inside) == earlier


def test_a_disk_that_turned_read_only_is_named(
    disk: Disk, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    disk.command(f"mount -o remount,ro '{disk.folder}'")
    complained(kagglekit(*TRAIN, before=disk.enter), "read-only", "$KAGGLEKIT_CACHE")
    disk.command(f"mount -o remount,rw '{disk.folder}'")
    assert kagglekit(*TRAIN, before=disk.enter).code == 0
    assert leaves.content(disk.inside) == unbroken(*TRAIN)


def test_files_that_may_not_grow_are_named(
    project: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    repack(project)
    named = set()
    for size in (100, 4_000, 16_000):
        ended = kagglekit(*TRAIN, before=partial(limit, "RLIMIT_FSIZE", size))
        complained(ended)
        named.add(next(word for word in ("cache/", "runs/") if word in ended.complaint))
    assert named == {"cache/", "runs/"}
    goes_on(project, unbroken(*TRAIN), *TRAIN)


@pytest.mark.parametrize(
    ("name", "seconds"), [("checkpoint.bin", 0), ("history.jsonl", 1000)], ids=str
)
def test_a_limit_in_the_middle_of_training_is_named(
    name: str, seconds: int, project: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    typed = (*TRAIN, "epochs=10", f"checkpoint_seconds={seconds}")

    def tighten(pid: int) -> None:
        await_file(f"runs/leaves/*/fold0-seed0/{name}", f"runs/leaves/*/{name}")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1_000, 1_000))

    complained(kagglekit(*typed, then=tighten), "fold0-seed0" if not seconds else "runs/")
    for history in project.glob("runs/leaves/*/history.jsonl"):
        for line in history.read_text().splitlines(keepends=True):
            assert line.endswith("}\n")
    goes_on(project, unbroken(*typed), *typed)


@pytest.mark.parametrize("locked", ["runs", "submissions", "cache", "runs/leaves"])
def test_a_folder_without_permission_is_named(
    locked: str, project: Path, tmp_path: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    if locked == "cache":
        repack(project)
    folder = tmp_path / "cache" if locked == "cache" else project / locked
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    try:
        ended = kagglekit(*TRAIN, before=obey_permissions)
    finally:
        folder.chmod(0o700)
    complained(ended, "permission", locked)
    goes_on(project, unbroken(*TRAIN), *TRAIN)


def test_data_without_permission_are_named(project: Path) -> None:
    secret = project / "data" / "leaves" / "train" / "oak" / "train7.png"
    secret.chmod(0)
    complained(kagglekit(*TRAIN, before=obey_permissions), "permission denied", "train7.png")
    secret.chmod(0o600)
    folder = project / "data" / "leaves" / "train"
    folder.chmod(0)
    try:
        complained(kagglekit(*TRAIN, before=obey_permissions), "permission denied", "leaves/train")
    finally:
        folder.chmod(0o700)


# --- data ---------------------------------------------------------------------------------------


def await_file(*patterns: str) -> None:
    """Wait until a file of one of these names is there."""
    end = time.monotonic() + 30
    while not any(any(Path().glob(pattern)) for pattern in patterns):
        assert time.monotonic() < end, f"no {patterns}"
        time.sleep(0.002)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes_in_mid_training_is_named(
    workers: int, project: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    typed = (*TRAIN, "epochs=10", "checkpoint_seconds=0")
    away = project / "away"

    def remove(pid: int) -> None:
        await_file("runs/leaves/*/fold0-seed0/checkpoint.bin")
        (project / "data" / "leaves").rename(away)

    ended = kagglekit(*typed, f"workers={workers}", then=remove)
    complained(ended, ".png does not exist", "data/leaves/t")
    away.rename(project / "data" / "leaves")
    goes_on(project, unbroken(*typed), *typed)


def test_edited_data_are_another_run(project: Path) -> None:
    typed = (*TRAIN, "epochs=10", "checkpoint_seconds=0")

    def kill(pid: int) -> None:
        await_file("runs/leaves/*/fold0-seed0/checkpoint.bin")
        os.kill(pid, signal.SIGKILL)

    assert kagglekit(*typed, then=kill).code == -signal.SIGKILL
    (stopped,) = (path.parent for path in project.glob("runs/leaves/*/run.json"))
    home = project / "data" / "leaves" / "train"
    shutil.copy(home / "oak" / "train1.png", home / "ash" / "train0.png")
    assert kagglekit(*typed).code == 0
    (other,) = (path.parent for path in project.glob("runs/leaves/*/oof.npy"))
    assert other != stopped
    shutil.rmtree(stopped)
    mixed = leaves.content(project)
    shutil.rmtree(project / "runs")
    assert kagglekit(*typed).code == 0
    assert leaves.content(project) == mixed


# --- clocks -------------------------------------------------------------------------------------


def test_an_edit_is_seen_though_size_and_time_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(b"old")
    long_ago = time.time() - 3600
    os.utime(folder / "a", (long_ago, long_ago))
    monkeypatch.setattr(files, "_RACE_SECONDS", 0)  # so that the digest is remembered
    first = files.fingerprint(folder, tmp_path / "cache")
    assert next((tmp_path / "cache" / "digests").iterdir()).read_text() != "{}\n"
    (folder / "a").write_bytes(b"new")
    os.utime(folder / "a", (long_ago, long_ago))
    assert files.fingerprint(folder, tmp_path / "cache") != first


def test_a_digest_of_a_file_from_the_future_is_not_remembered(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(b"old")
    tomorrow = time.time() + 86_400
    os.utime(folder / "a", (tomorrow, tomorrow))
    first = files.fingerprint(folder, tmp_path / "cache")
    assert not (tmp_path / "cache" / "digests").exists()
    (folder / "a").write_bytes(b"new")
    os.utime(folder / "a", (tomorrow, tomorrow))
    assert files.fingerprint(folder, tmp_path / "cache") != first


def test_a_clock_set_back_between_two_sessions_changes_nothing(
    project: Path, tmp_path: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    typed = (*TRAIN, "epochs=10", "checkpoint_seconds=0")

    def kill(pid: int) -> None:
        await_file("runs/leaves/*/fold1-seed0/checkpoint.bin")
        os.kill(pid, signal.SIGKILL)

    assert kagglekit(*typed, then=kill).code == -signal.SIGKILL
    for offset, home in ((86_400, project), (-86_400 * 9999, tmp_path / "cache")):
        for path in home.rglob("*"):
            os.utime(path, (time.time() + offset, time.time() + offset))
    goes_on(project, unbroken(*typed), *typed)
    (told,) = project.glob("runs/leaves/*/run.json")
    assert files.read_json(told)["seconds"] >= 0


# --- processes and memory -----------------------------------------------------------------------


def workers_of(pid: int) -> list[psutil.Process]:
    """The workers that serve a training that has begun."""
    await_file("runs/leaves/*/fold0-seed0/checkpoint.bin")
    return psutil.Process(pid).children()


def test_a_killed_worker_is_told_of(
    project: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    typed = (*TRAIN, "epochs=10", "checkpoint_seconds=0")
    ended = kagglekit(*typed, "workers=2", then=lambda pid: workers_of(pid)[0].kill())
    assert ended.code == 2, ended.err
    sentence = ended.err.splitlines()[-1]  # torch's handler may have raised where nobody listens
    assert sentence.startswith("kagglekit: worker process ")
    assert "workers" in sentence
    goes_on(project, unbroken(*typed), *typed)


def test_ctrl_c_is_left_to_the_main_process(
    project: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    typed = (*TRAIN, "epochs=10", "checkpoint_seconds=0")

    def send(pid: int) -> None:
        for worker in workers_of(pid):
            worker.send_signal(signal.SIGINT)

    ended = kagglekit(*typed, "workers=2", then=send)
    assert ended.code == 0, ended.err
    assert leaves.content(project) == unbroken(*typed)


def test_workers_end_with_their_training_and_say_nothing() -> None:
    ended = kagglekit(*TRAIN, "workers=2")
    assert ended.code == 0
    assert "Exception" not in ended.err
    rows = TensorDataset(torch.arange(8.0)[:, None])
    config = NetworkConfig(data="streamed", workers=1)
    loader = Loader(rows, config, torch.device("cpu"), seed=0, training=False)
    assert len(list(loader.batches(0))) == 1
    alive = weakref.ref(loader)
    del loader  # in a cycle it would live on until a collection, and its workers with it
    assert alive() is None


@pytest.mark.parametrize(("workers", "where"), [(0, "this process"), (2, "a worker process")])
def test_want_of_memory_is_told_in_a_sentence(
    workers: int, where: str, project: Path, unbroken: Callable[..., dict[str, bytes]]
) -> None:
    typed = (*TRAIN, "epochs=10", "checkpoint_seconds=0")

    def starve(pid: int) -> None:
        await_file("runs/leaves/*/fold0-seed0/checkpoint.bin")
        Path("hungry").touch()

    ended = kagglekit(*typed, f"workers={workers}", then=starve)
    complained(ended, f"memory ran out in {where}", "batch_size")
    Path("hungry").unlink()
    goes_on(project, unbroken(*typed), *typed)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
            "worker process 7, 8",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. "), "/dev/shm"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "(Killed)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU's memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "this process"),
        (RuntimeError("unable to write to file </torch_1_2_3>"), "/dev/shm"),
        (RuntimeError("can't start new thread"), "memory ran out"),
        (OSError(12, "Cannot allocate memory"), "memory ran out"),
        (MemoryError(), "memory ran out in this process"),
    ],
)
def test_what_torch_says_becomes_a_sentence(error: Exception, words: str) -> None:
    sentence = faults.explain(error)
    assert sentence is not None
    assert words in sentence


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), KeyError("memory"), OSError(2)])
def test_a_bug_stays_a_bug(error: Exception) -> None:
    assert faults.explain(error) is None
    with pytest.raises(type(error)), faults.explained():
        raise error
