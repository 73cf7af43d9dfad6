"""Nothing is ever half-written, nothing damaged is ever used, no zip reaches out of its folder."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kagglekit import files
from kagglekit.errors import UserError


@pytest.fixture(autouse=True)
def project(tmp_path: Path) -> Path:
    """No project here: `tmp_path` holds what a test puts there, and nothing else."""
    return tmp_path


def zipped(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def zip_bytes(entries: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return content.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files.visible_files(folder).items()}


def aged(path: Path, seconds: float = 100) -> Path:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))
    return path


# --- one file -----------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "ü"}
    files.write_json(tmp_path / "new" / "folder" / "a.json", value)
    assert files.read_json(tmp_path / "new" / "folder" / "a.json") == value
    assert list(files.read_json(tmp_path / "new" / "folder" / "a.json")) == ["b", "a"]
    files.write_text(tmp_path / "a.txt", "one\r\ntwo\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\r\ntwo\n"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    files.write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk of .*a\.txt is full"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_new_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename = os.replace

    def renamed(old: Path, new: Path) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", lambda handle: steps.append("fsync"))
    monkeypatch.setattr(os, "replace", renamed)
    files.write_bytes(tmp_path / "a", b"1")
    assert steps[:2] == ["fsync", "rename"]


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="runs"):
        files.write_bytes(tmp_path / "runs" / "a" / "b", b"")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken"):
        files.write_bytes(tmp_path / "taken", b"")
    assert sorted(os.listdir(tmp_path)) == ["runs", "taken"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_file_that_outgrows_a_limit_leaves_nothing_behind(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from kagglekit import errors, files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_bytes(Path(sys.argv[1]), b"x" * 5000)
except errors.UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "big")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "big" in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS]
)
def test_an_error_that_the_user_can_remedy_is_one_sentence_with_the_path(code: int) -> None:
    sentence = files.explain(OSError(code, "words of the system", "/some/where"))
    assert sentence is not None
    assert "/some/where" in sentence
    assert "\n" not in sentence


def test_other_errors_are_not_explained_away() -> None:
    assert files.explain(OSError(errno.ECHILD, "no child")) is None
    with pytest.raises(ChildProcessError), files.explained():
        raise OSError(errno.ECHILD, "no child")


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", [float("nan")])
    assert os.listdir(tmp_path) == []


def test_damaged_and_missing_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1')
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    for name in ("a.json", "b.json", "c.json"):
        with pytest.raises(UserError, match=name):
            files.read_json(tmp_path / name)


def test_arrays_come_back_bit_by_bit_whatever_their_name(tmp_path: Path) -> None:
    arrays = {
        "path": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "file": np.array(3.5),
        "layer.0/weight": np.ones((2, 3), np.float32).T,
        "ids": np.array(["a", "ünï"]),
        "none": np.zeros((0, 7)),
    }
    files.write_arrays(tmp_path / "a.npz", **arrays)
    back = files.read_arrays(tmp_path / "a.npz")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        np.testing.assert_array_equal(plain["path"], arrays["path"])


def test_equal_arrays_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_arrays(tmp_path / "a.npz", x=np.arange(5))
    monkeypatch.setattr(time, "time", lambda: 2e9)
    files.write_arrays(tmp_path / "b.npz", x=np.arange(5))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="objects"):
        files.write_arrays(tmp_path / "a.npz", x=np.array([{}], object))
    assert os.listdir(tmp_path) == []
    np.savez(tmp_path / "b.npz", x=np.array([{}], object))
    with pytest.raises(UserError, match=r"b\.npz"):
        files.read_arrays(tmp_path / "b.npz")


def test_every_truncation_and_flipped_data_byte_of_an_npz_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    files.write_arrays(path, x=np.arange(4, dtype=np.int16))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a\.npz"):
            files.read_arrays(path)
    start = whole.index(b"\x93NUMPY")
    for position in range(start, start + 136):  # the npy header and the numbers
        flipped = bytearray(whole)
        flipped[position] ^= 0x41
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"a\.npz"):
            files.read_arrays(path)


# --- fingerprints -------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_name_and_content_only(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a").write_bytes(b"1")
    first = files.fingerprint(folder, cache)
    assert len(first) == 16
    assert int(first, 16) >= 0
    aged(folder / "train" / "a")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "b").write_bytes(b"x")
    assert files.fingerprint(folder, cache) == first
    (folder / "train" / "a").write_bytes(b"2")
    second = files.fingerprint(folder, cache)
    (folder / "train" / "a").rename(folder / "train" / "b")
    third = files.fingerprint(folder, cache)
    (folder / "c").write_bytes(b"")
    fourth = files.fingerprint(folder, cache)
    assert len({first, second, third, fourth}) == 4
    folder.rename(tmp_path / "moved")
    assert files.fingerprint(tmp_path / "moved", tmp_path / "other") == fourth


def test_gigabytes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    monkeypatch.setattr(files, "_RACE_SECONDS", 0)  # as if the file were older
    first = files.fingerprint(folder, cache)
    read: list[Path] = []
    digest = files.file_digest

    def counted(path: Path) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(files, "file_digest", counted)
    assert files.fingerprint(folder, cache) == first
    assert read == []
    (folder / "a").write_bytes(b"2")  # same size, another time
    assert files.fingerprint(folder, cache) != first
    assert read == [folder / "a"]


def test_a_file_that_just_changed_is_read_again(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    status = (folder / "a").stat()
    first = files.fingerprint(folder, cache)
    (folder / "a").write_bytes(b"2")  # within the resolution of the clock
    os.utime(folder / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.fingerprint(folder, cache) != first


@pytest.mark.parametrize("damage", ["", "[1]", '{"a": 3}', '{"a": [1, 2, 3]}', "\x00"])
def test_a_damaged_memory_is_made_again(
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    monkeypatch.setattr(files, "_RACE_SECONDS", 0)  # as if the file were older
    first = files.fingerprint(folder, cache)
    (memory,) = (cache / "digests").iterdir()
    memory.write_text(damage)
    with caplog.at_level(logging.WARNING, "kagglekit"):
        assert files.fingerprint(folder, cache) == first
    assert str(memory) in caplog.text
    assert "a" in json.loads(memory.read_text())


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a").write_bytes(b"1")
    (tmp_path / "data" / "sub" / "up").symlink_to(tmp_path / "data")
    assert list(files.visible_files(tmp_path / "data")) == ["sub/a"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        files.unpacked(tmp_path / "nowhere", tmp_path / "cache")


# --- zips ---------------------------------------------------------------------------------------


def test_a_folder_without_zips_is_itself(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_bytes(b"1")
    assert files.unpacked(tmp_path / "data", tmp_path / "cache") == tmp_path / "data"
    assert not (tmp_path / "cache").exists()


CSVS = {"train.csv": b"a", "test.csv": b"b"}


LAYOUTS: dict[str, tuple[dict[str, dict[str, bytes]], dict[str, bytes], dict[str, bytes]]] = {
    "alone": ({"all.zip": CSVS}, {}, CSVS),
    "dots": ({"all.ZIP": {"./x/a": b"1", "./b": b"2"}}, {}, {"x/a": b"1", "b": b"2"}),
    "one file": ({"train.csv.zip": {"train.csv": b"a"}}, {"test.csv": b"b"}, CSVS),
    "one folder, many files": (
        {"train.zip": {"train/0/a.png": b"1"}, "test.zip": {"x.png": b"2", "y.png": b"3"}},
        {"sample.csv": b"4"},
        {"train/0/a.png": b"1", "test/x.png": b"2", "test/y.png": b"3", "sample.csv": b"4"},
    ),
    "deep": (
        {"in/all.zip": CSVS},
        {"in/x": b"1"},
        {"in/x": b"1", "in/all/train.csv": b"a", "in/all/test.csv": b"b"},
    ),
    "unpacked by hand": (
        {"all.zip": CSVS},
        {"train.csv": b"a"},
        {"train.csv": b"a", "all/train.csv": b"a", "all/test.csv": b"b"},
    ),
    "same folder": (
        {"train.zip": {"train/a": b"1"}},
        {"train/a": b"1", "train/b": b"2"},
        {"train/a": b"1", "train/b": b"2"},
    ),
    "hidden": (
        {"mac.zip": {"a/x": b"1", "__MACOSX/a/._x": b"?", "a/.DS_Store": b"?", "a/": b""}},
        {"y": b"2"},
        {"a/x": b"1", "y": b"2"},
    ),
    "nested": (
        {"2.zip": {"a.zip": zip_bytes({"a": b"1"}), "b.zip": zip_bytes({"x": b"2", "y": b"3"})}},
        {},
        {"a": b"1", "b/x": b"2", "b/y": b"3"},
    ),
    "same name, three deep": (
        {"d.zip": {"d.zip": zip_bytes({"d.zip": zip_bytes({"deep": b"1"})})}},
        {},
        {"deep": b"1"},
    ),
}


@pytest.mark.parametrize(("zips", "loose", "content"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("linked", [True, False])
def test_zips_unpack_where_they_belong(
    tmp_path: Path,
    zips: dict[str, dict[str, bytes]],
    loose: dict[str, bytes],
    content: dict[str, bytes],
    linked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, cache = tmp_path / "data", tmp_path / "cache"
    for name, entries in zips.items():
        zipped(folder / name, entries)
    for name, data in loose.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    before = tree(folder)
    if not linked:
        monkeypatch.setattr(Path, "symlink_to", _no_links)
    found = files.unpacked(folder, cache)
    assert tree(found) == content
    assert tree(folder) == before
    assert [path for path in (cache / "unpacked").iterdir() if path != found] == []


def _no_links(self: Path, target: Path) -> None:
    raise OSError("a required privilege is not held")


def test_what_is_deeper_than_three_zips_stays_packed(tmp_path: Path) -> None:
    content = zip_bytes({"a": b"1"})
    for depth in range(3):
        content = zip_bytes({f"{depth}.zip": content})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "top.zip").write_bytes(content)
    assert list(tree(files.unpacked(tmp_path / "data", tmp_path / "cache"))) == ["0.zip"]


def test_a_finished_folder_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "data" / "a.zip", CSVS)
    found = files.unpacked(tmp_path / "data", tmp_path / "cache")
    monkeypatch.setattr(files, "_extract", None)
    assert files.unpacked(tmp_path / "data", tmp_path / "cache") == found
    monkeypatch.undo()
    zipped(tmp_path / "data" / "a.zip", {**CSVS, "new.csv": b"c"})
    assert tree(files.unpacked(tmp_path / "data", tmp_path / "cache")).keys() >= {"new.csv"}


def test_edited_loose_files_are_seen_where_links_are_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "symlink_to", _no_links)
    zipped(tmp_path / "data" / "a.zip", {"a/x": b"1"})
    (tmp_path / "data" / "b").write_bytes(b"old")
    files.unpacked(tmp_path / "data", tmp_path / "cache")
    (tmp_path / "data" / "b").write_bytes(b"new")
    found = files.unpacked(tmp_path / "data", tmp_path / "cache")
    assert (found / "b").read_bytes() == b"new"


@pytest.mark.parametrize("damage", ["missing", "short", "list", "a file"])
def test_a_damaged_unpacked_folder_is_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    zipped(tmp_path / "data" / "a.zip", CSVS)
    found = files.unpacked(tmp_path / "data", tmp_path / "cache")
    if damage == "missing":
        (found / "train.csv").unlink()
    elif damage == "short":
        (found / "train.csv").write_bytes(b"")
    elif damage == "list":
        (found / ".unpacked.json").write_text("[")
    else:
        files._remove(found)
        found.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "kagglekit"):
        assert tree(files.unpacked(tmp_path / "data", tmp_path / "cache")) == CSVS
    assert caplog.text.count("is damaged") == 1
    assert os.listdir(tmp_path / "cache" / "unpacked") == [found.name]


def test_many_at_once_agree(tmp_path: Path) -> None:
    zipped(tmp_path / "data" / "a.zip", {f"{number}": bytes(1000) for number in range(50)})
    found: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(files.unpacked(tmp_path / "data", tmp_path / "cache"))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(tree(found[0])) == 50
    assert os.listdir(tmp_path / "cache" / "unpacked") == [found[0].name]


def test_what_killed_processes_left_is_swept_away(tmp_path: Path) -> None:
    home = tmp_path / "cache" / "unpacked"
    (home / ".old.tmp" / "sub").mkdir(parents=True)
    (home / ".new.tmp").mkdir()
    aged(home / ".old.tmp", 3 * 24 * 3600)
    zipped(tmp_path / "data" / "a.zip", CSVS)
    files.unpacked(tmp_path / "data", tmp_path / "cache")
    assert not (home / ".old.tmp").exists()
    assert (home / ".new.tmp").exists()


def test_a_killed_writer_s_temporary_is_swept_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    target = tmp_path / "run" / "member" / "answers.npz"
    script = (
        "import os, signal, sys; from pathlib import Path; from kagglekit import files\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_bytes(Path(sys.argv[1]), b'half')"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    (left,) = target.parent.iterdir()
    assert killed.returncode == -9
    living = files._beside(target)
    living.touch()
    elsewhere = living.with_name(".0000000000-1-ab.tmp")
    elsewhere.touch()
    files.sweep(tmp_path / "run")
    assert not left.exists()
    assert living.exists()
    assert elsewhere.exists()
    aged(elsewhere, 3 * 24 * 3600)
    files.sweep(tmp_path / "run")
    assert [path.name for path in target.parent.iterdir()] == [living.name]


def refused(tmp_path: Path, *words: str) -> None:
    """`data` cannot be unpacked, the error names all words, nothing is left or let out."""
    before = {path.name for path in tmp_path.iterdir()} | {"cache"}
    with pytest.raises(UserError) as caught:
        files.unpacked(tmp_path / "data", tmp_path / "cache")
    for word in words:
        assert word in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= before
    home = tmp_path / "cache" / "unpacked"
    assert not home.exists() or os.listdir(home) == []


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "C:/evil", "..\\evil", "a\\b", "\\\\host\\evil"]
)
def test_a_path_that_escapes_is_refused(tmp_path: Path, name: str) -> None:
    zipped(tmp_path / "data" / "a.zip", {"ok": b"1", "x/ok": b"2", name: b"evil"})
    refused(tmp_path, "a.zip", repr(name))


def test_a_path_that_escapes_in_a_nested_zip_is_refused(tmp_path: Path) -> None:
    inner = zip_bytes({"../../evil": b"1"})
    zipped(tmp_path / "data" / "a.zip", {"inner.zip": inner, "b": b""})
    refused(tmp_path, "inner.zip", "../../evil")


@pytest.mark.parametrize(
    ("kind", "word"), [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFIFO, "or a pipe")]
)
def test_links_and_pipes_are_refused(tmp_path: Path, kind: int, word: str) -> None:
    entry = zipfile.ZipInfo("passwords")
    entry.external_attr = (kind | 0o777) << 16
    entry.create_system = 3
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    refused(tmp_path, "a.zip", "passwords", word)


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "data" / "a.zip", {"secret.csv": b"1" * 50})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    refused(tmp_path, "a.zip", "secret.csv", "is encrypted")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_zip_is_refused(tmp_path: Path, share: float) -> None:
    path = zipped(tmp_path / "data" / "a.zip", {"a": os.urandom(1000), "b": os.urandom(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path, "a.zip")


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_flipped_bytes_are_found(tmp_path: Path, method: int) -> None:
    content = os.urandom(500) + bytes(500)
    path = zipped(tmp_path / "data" / "a.zip", {"ok": b"1", "bad.csv": content}, method)
    data = bytearray(path.read_bytes())
    start = data.index(b"bad.csv") + 60
    for position in range(start, start + 40):
        data[position] ^= 0xFF
    path.write_bytes(data)
    refused(tmp_path, "a.zip", "bad.csv")


def test_a_zip_that_is_larger_than_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(tmp_path / "data" / "a.zip", {"a": bytes(100), "large": bytes(2000)})

    class Usage:
        free = 1500

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    refused(tmp_path, "a.zip", "large", "2,100", "1,500", "$KAGGLEKIT_CACHE")


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "data" / "a.zip", {"zeros": bytes(3_000_000)})
    files.unpacked(tmp_path / "data", tmp_path / "cache")  # small enough to be honest
    monkeypatch.setattr(files, "_BOMB_BYTES", 1_000_000)
    files._remove(tmp_path / "cache")
    refused(tmp_path, "a.zip", "zeros", "bomb")


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "data" / "a.zip", {"one": os.urandom(4000)})
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry, tail = content[start:end], bytearray(content[end:])
    tail[8:12] = (2).to_bytes(2, "little") * 2
    tail[12:16] = (2 * len(entry)).to_bytes(4, "little")
    path.write_bytes(content[:start] + entry * 2 + tail)
    refused(tmp_path, "a.zip", "one", "bomb")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_must_be_the_same(tmp_path: Path) -> None:
    with zipfile.ZipFile(zipped(tmp_path / "data" / "a.zip", {"x": b"1", "y": b"2"}), "a") as more:
        more.writestr("x", b"1")
    assert tree(files.unpacked(tmp_path / "data", tmp_path / "cache")) == {"x": b"1", "y": b"2"}
    files._remove(tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "data" / "a.zip", "a") as more:
        more.writestr("x", b"3")
    refused(tmp_path, "a.zip", "'x'", "twice")


def test_an_entry_inside_a_file_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "data" / "a.zip", {"x": b"1", "x/y": b"2"})
    refused(tmp_path, "a.zip", "x/y")


def test_a_loose_file_that_contradicts_a_zip_is_named(tmp_path: Path) -> None:
    zipped(tmp_path / "data" / "train.csv.zip", {"train.csv": b"1"})
    (tmp_path / "data" / "train.csv").write_bytes(b"2")
    refused(tmp_path, "train.csv", "differs")


def test_a_page_of_html_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.zip").write_bytes(b"<!doctype html>" * 100)
    refused(tmp_path, "a.zip", "download it again")


def test_a_cache_that_is_a_file_is_named(tmp_path: Path) -> None:
    zipped(tmp_path / "data" / "a.zip", CSVS)
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(UserError, match="cache"):
        files.unpacked(tmp_path / "data", tmp_path / "cache")
    with pytest.raises(UserError, match="cache"):
        files.cached_arrays(tmp_path / "cache", "key", lambda: {"x": np.arange(3)})


# --- cached arrays ------------------------------------------------------------------------------


def made() -> dict[str, np.ndarray]:
    return {
        "pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "ids": np.array(["1", "007"]),
        "nothing": np.zeros((0, 2)),
        "number": np.array(7),
    }


def never() -> dict[str, np.ndarray]:
    raise AssertionError("built again")


def test_cached_arrays_are_built_once(tmp_path: Path) -> None:
    first = files.cached_arrays(tmp_path, "key", made)
    again = files.cached_arrays(tmp_path, "key", never)
    for name, array in made().items():
        for found in (first[name], again[name]):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
    other = files.cached_arrays(tmp_path, "other", lambda: {"x": np.arange(2)})
    assert list(other) == ["x"]


@pytest.mark.parametrize("damage", ["flip", "short", "missing", "empty", "json", "file"])
def test_a_damaged_cache_is_built_again_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    files.cached_arrays(tmp_path, "key", made)
    home = tmp_path / "arrays" / "key"
    path = home / "pixels.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "flip":
        path.write_bytes(content)
    elif damage == "short":
        path.write_bytes(content[:-3])
    elif damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "json":
        (home / "digests.json").write_text('{"pixels": ')
    else:
        files._remove(home)
        home.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "kagglekit"):
        found = files.cached_arrays(tmp_path, "key", made)
    np.testing.assert_array_equal(found["pixels"], made()["pixels"])
    assert caplog.text.count("built again") == 1
    assert str(home) in caplog.text
    files.cached_arrays(tmp_path, "key", never)
    assert os.listdir(tmp_path / "arrays") == ["key"]


def test_a_build_that_fails_leaves_no_cache(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        files.cached_arrays(tmp_path, "key", never)
    with pytest.raises(TypeError, match="objects"):
        files.cached_arrays(tmp_path, "key", lambda: {"x": np.array([None])})
    with pytest.raises(ValueError, match="name"):
        files.cached_arrays(tmp_path, "../key", made)
    assert not list(tmp_path.glob("[!.]*"))


def test_sixty_thousand_digits_load_in_well_under_a_second(tmp_path: Path) -> None:
    digits = {"pixels": np.zeros((60_000, 784), np.uint8)}
    files.cached_arrays(tmp_path, "digits", lambda: digits)
    start = time.perf_counter()
    files.cached_arrays(tmp_path, "digits", never)
    assert time.perf_counter() - start < 1


def test_files_load_without_numpy() -> None:
    program = "import sys, kagglekit.files, kagglekit.folders; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


def test_a_bomb_of_many_small_zips_is_refused_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BOMB_BYTES", 1 << 20)
    inner = tmp_path / "inner.zip"
    zipped(inner, {"zeros": bytes(1 << 20)})  # each is below the limit
    content = inner.read_bytes()
    with zipfile.ZipFile(tmp_path / "outer.zip", "w", zipfile.ZIP_DEFLATED) as outer:
        for number in range(8):
            outer.writestr(f"{number}.zip", content)
    inner.unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "outer.zip").rename(tmp_path / "data" / "a.zip")
    refused(tmp_path, "bomb")


def test_an_entry_deeper_than_the_stack_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "data" / "a.zip", {"a/" * 1200 + "x": b"x"})
    refused(tmp_path, "folders deep")


@pytest.mark.parametrize("content", ["[" * 9999, '{"a": "\\ud800"}', '{"a": NaN}', '{"a": 1e999}'])
def test_json_that_we_never_write_is_not_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json")


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3000000000,), }\n"
    size = len(header).to_bytes(2, "little")
    path.write_bytes(b"\x93NUMPY\x01\x00" + size + header + bytes(24))
    with pytest.raises(UserError, match="damaged"):
        files.read_array(path)
