"""What was made of files once is found again: by every process, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from kagglekit import files, keeping
from kagglekit.errors import UserError
from tests.conftest import ROOT


def array(seed: int, shape: tuple[int, int, int] = (30, 40, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(8, "little") * 2


def forked(work: Callable[[], None]) -> int:
    """The id of a copy of this process that does some work and ends."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def ended_well(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture(params=["disk", "memory"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> keeping.Shelf:
    return keeping.Disk(tmp_path, True) if request.param == "disk" else keeping.Memory(1 << 20)


def test_what_is_kept_is_found_and_nothing_else(shelf: keeping.Shelf) -> None:
    shelf.keep(key(1), array(1))
    shelf.keep(key(2), array(2)[:, ::2])  # not in one piece
    assert shelf.has(key(1))
    assert not shelf.has(key(3))
    assert shelf.find(key(3), check=True) is None
    for number, expected in ((1, array(1)), (2, array(2)[:, ::2])):
        found = shelf.find(key(number), check=True)
        assert found is not None
        np.testing.assert_array_equal(found, expected)
        found[:] = 0  # the caller's own
    np.testing.assert_array_equal(shelf.find(key(1), check=False), array(1))  # type: ignore[arg-type]


def test_several_processes_fill_it_at_once_and_all_see_all(shelf: keeping.Shelf) -> None:
    def work(own: int) -> None:
        numbers = np.random.default_rng(own).permutation(60)
        for number in map(int, numbers):
            found = shelf.find(key(number), check=True)
            if found is None:
                shelf.keep(key(number), array(number))
            else:
                np.testing.assert_array_equal(found, array(number))

    children = [forked(lambda own=own: work(own)) for own in range(4)]  # type: ignore[misc]
    assert all(map(ended_well, children))
    for number in range(60):
        np.testing.assert_array_equal(shelf.find(key(number), True), array(number))  # type: ignore[arg-type]


def test_memory_that_is_full_keeps_no_more(tmp_path: Path) -> None:
    shelf = keeping.Memory(2 * array(0).size)
    for number in range(4):
        shelf.keep(key(number), array(number))
    assert [shelf.has(key(number)) for number in range(4)] == [True, True, False, False]
    assert shelf.free() == 0


def test_keys_that_meet_in_the_table_of_memory_are_told_apart() -> None:
    shelf = keeping.Memory(1 << 20)
    for number in range(5):
        meeting = (7 + number * keeping._PLACES).to_bytes(8, "little") + bytes(8)
        assert not shelf.has(meeting)
        shelf.keep(meeting, array(number))
    for number in range(5):
        meeting = (7 + number * keeping._PLACES).to_bytes(8, "little") + bytes(8)
        np.testing.assert_array_equal(shelf.find(meeting, True), array(number))  # type: ignore[arg-type]


def test_memory_is_not_multiplied_by_the_processes_that_read_it() -> None:
    size = 1 << 26
    shelf = keeping.Memory(size)
    for number in range(60):
        shelf.keep(key(number), array(number, (1000, 1000, 1)))
    ready, done = os.pipe(), os.pipe()

    def work() -> None:
        for number in range(60):
            assert shelf.find(key(number), check=False) is not None
        os.write(ready[1], b".")
        os.read(done[0], 1)

    children = [forked(work) for _ in range(3)]
    os.read(ready[0], 1), os.read(ready[0], 1), os.read(ready[0], 1)
    own = [psutil.Process(child).memory_full_info().uss for child in children]
    os.write(done[1], b"...")
    assert all(map(ended_well, children))
    assert max(own) < size / 4


BUILDER = """
import sys
from pathlib import Path
from kagglekit import files, images
files._RACE_SECONDS = -1
paths = sorted(Path(sys.argv[1]).iterdir())
data = images.Decoded(paths, 3, "disk")
for row in range(len(paths)):
    data[row]
    print(row, flush=True)
"""


def test_a_killed_build_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from kagglekit import folders, images

    home = tmp_path / "photographs"
    home.mkdir()
    for number in range(40):
        Image.fromarray(array(number, (300, 400, 3))).save(home / f"{number:02}.png")
    environment = {**os.environ, "KAGGLEKIT_CACHE": str(folders.cache()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUILDER, str(home)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        while int(builder.stdout.readline()) < 10:
            pass
        builder.send_signal(signal.SIGKILL)
    monkeypatch.setattr(files, "_RACE_SECONDS", -1)
    paths, read, made = sorted(home.iterdir()), images.read, []
    monkeypatch.setattr(images, "read", lambda path, *rest: made.append(path) or read(path, *rest))
    data = images.Decoded(paths, 3, "disk")
    for row in range(40):
        np.testing.assert_array_equal(data[row], array(row, (300, 400, 3)))
    assert len(made) <= 30
    assert made == paths[-len(made) :]


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_is_new_with_each_change_of_the_file_and_of_how_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_RACE_SECONDS", -1)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = keeping.key(path, "as it is")
    assert first == keeping.key(path, "as it is")
    monkeypatch.chdir(tmp_path)
    assert keeping.key(Path("a"), "as it is") == first
    assert keeping.key(path, "smaller") != first
    before = path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as copying tools do
    assert keeping.key(path, "as it is") != first
    with pytest.raises(UserError, match="does not exist"):
        keeping.key(tmp_path / "b", "as it is")
    with pytest.raises(UserError, match=r"does not exist|cannot be read"):
        keeping.key(path / "below", "as it is")


def test_nothing_is_kept_of_a_file_that_was_changed_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")  # and two within the same tick of the file system's clock, perhaps
    assert keeping.key(path, "as it is") is None
    monkeypatch.setattr(files, "_RACE_SECONDS", -1)  # as if it were older
    assert keeping.key(path, "as it is") is not None
