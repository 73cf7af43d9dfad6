"""A download is whole or it is not there; what was there before stays; a broken one goes on."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kagglekit import cli, downloading
from tests import toys
from tests.kaggle_server import SLUG, TOKEN, Server
from tests.typist import Typist

BIG = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    toys.write(project)
    with Server() as kaggle:
        kaggle.files = {p.name: p.read_bytes() for p in Path("data/toy").iterdir()}
        kaggle.files["extra.bin"] = BIG
        shutil.rmtree("data")
        for name, value in kaggle.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KAGGLEKIT_PATIENCE", "1")
        monkeypatch.setenv("HOME", str(tmp_path))
        yield kaggle


def download(*more: str) -> int:
    return cli.main(["download", "toy", *more])


def here(folder: str = "data/toy") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name[0] != "."}


def left() -> list[str]:
    return sorted(path.name for path in Path("data").iterdir())


def test_the_files_are_here_unpacked_and_trainable(server: Server, capsys) -> None:
    assert download("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["data"], told["files"], told["fresh"]) == ("data/toy", 4, True)
    assert here() == server.files
    assert set(left()) <= {"toy", ".locks"}
    assert cli.main(["train", "toy", "--json"]) == 0


def test_a_second_time_says_that_it_is_here_already(server: Server, capsys) -> None:
    download()
    heard = server.calls["GET"]
    capsys.readouterr()
    assert download() == 0
    assert capsys.readouterr().out.startswith("up to date: 4 files")
    assert server.calls["GET"] == heard + 1
    assert set(left()) <= {"toy", ".locks"}


def test_a_broken_line_is_gone_on_with_by_range(server: Server) -> None:
    server.cut = [1_000_000, 0, 900_000]
    assert download() == 0
    assert here() == server.files
    ranges = [h for h in server.heard if h.startswith("GET") and "'Range'" in h]
    assert len(ranges) >= 2
    assert all("If-Range" in heard for heard in ranges)


def test_what_a_broken_command_got_is_not_fetched_again(server: Server, capsys) -> None:
    server.cut = [2_000_000, *[0] * 20]
    assert download() == 4
    assert "the same command goes on at" in capsys.readouterr().err
    assert not Path("data/toy").exists()
    part = Path("data/.toy.download/part").stat().st_size
    assert part > 1_000_000
    server.cut, server.heard[:] = [], []
    assert download() == 0
    assert here() == server.files
    assert any(f"bytes={part}-" in heard for heard in server.heard)


@pytest.mark.parametrize("change", ["no ranges", "no tag", "other files"])
def test_what_cannot_be_gone_on_with_is_fetched_anew(change: str, server: Server) -> None:
    server.tag = "" if change == "no tag" else '"one"'
    server.cut = [2_000_000, *[0] * 20]
    assert download() == 4
    server.cut = []
    server.ranges = change != "no ranges"
    if change == "other files":
        server.tag, server.files["extra.bin"] = '"two"', BIG[::-1]
    assert download() == 0
    assert here() == server.files


def test_new_files_take_the_place_of_the_old_ones_which_are_kept(server: Server, capsys) -> None:
    download()
    Path("data/toy/notes.txt").write_text("mine")
    old = here()
    server.tag, server.files["train.csv"] = '"two"', server.files["train.csv"] + b"999,1,1,1\n"
    assert download() == 0
    assert "kept as data/toy~1" in capsys.readouterr().out
    assert here() == server.files
    assert here("data/toy~1") == old


def test_the_same_files_put_there_by_hand_stay_where_they_are(server: Server, capsys) -> None:
    Path("data/toy").mkdir(parents=True)
    for name, content in server.files.items():
        (Path("data/toy") / name).write_bytes(content)
    assert download() == 0
    assert capsys.readouterr().out.startswith("up to date")
    assert set(left()) <= {"toy", ".locks"}


def test_a_process_killed_in_the_swap_leaves_the_old_files_to_be_put_back(server: Server) -> None:
    download()
    old = here()
    Path("data/.toy.download").mkdir()
    Path("data/.toy.download/swap.json").write_text('{"aside": "toy~1"}')
    Path("data/toy").rename("data/toy~1")
    server.fail("ListDataFiles", "403")
    assert download() == 2
    assert here() == old


def archive(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries.items():
            made.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (archive(**{"..__out.csv": b"x"}), "leads out of the folder"),
        (archive(a=b"x")[:-30], "no whole zip"),
        (archive(a=bytes(1 << 21)).replace(b"PK\x05\x06", b"PK\x05\x07"), "no whole zip"),
    ],
    ids=["outside", "cut short", "no end"],  # the zips have the time in them
)
def test_a_zip_that_is_unsound_is_refused_and_what_was_there_stays(
    body: bytes, words: str, server: Server, capsys
) -> None:
    download()
    old = here()
    server.archive, server.tag = body, '"bad"'
    capsys.readouterr()
    assert download() in (2, 4)
    assert words in capsys.readouterr().err
    assert here() == old
    assert not Path("data/out.csv").exists()
    server.archive, server.tag = None, '"good again"'
    assert download() == 0


def test_zips_in_the_zip_are_unpacked_and_missing_files_are_named(server: Server, capsys) -> None:
    inner = archive(**{"train.csv": server.files["train.csv"]})
    files = {n: c for n, c in server.files.items() if n.endswith(".csv") and n != "train.csv"}
    server.archive = archive(**{**files, "train.csv.zip": inner})
    assert download() == 0
    assert here()["train.csv"] == server.files["train.csv"]
    assert "did not send: extra.bin" in capsys.readouterr().out


def test_a_single_file_that_is_no_zip_is_taken_as_it_is(server: Server) -> None:
    server.archive, server.blob = b"id,y\n1,2\n", "train.csv"
    assert download() == 0
    assert here() == {"train.csv": b"id,y\n1,2\n"}


def test_a_full_disk_is_told_before_the_first_byte(
    server: Server, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    assert download() == 2
    assert "1,000 free" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("403", 2, f"accept the rules at https://www.kaggle.com/competitions/{SLUG}/rules"),
        ("code 403", 2, "You must accept the rules"),
        ("404", 2, "name the right one with --slug"),
        ("401", 2, "make a new token at https://www.kaggle.com/settings/api"),
        ("429 long", 4, "try again in 5000 s"),
    ],
)
def test_a_refusal_says_what_to_do(
    fault: str, code: int, words: str, server: Server, capsys
) -> None:
    server.fail("ListDataFiles", fault)
    assert download() == code
    told = capsys.readouterr().err
    assert words in told
    assert TOKEN not in told


@pytest.mark.parametrize("fault", ["500 before", "drop before", "html", "truncated", "hang before"])
def test_a_service_that_stays_broken_is_exit_code_4(
    fault: str, server: Server, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEKIT_PATIENCE", "0.1")
    server.hang = 0.3
    server.fail("ListDataFiles", *[fault] * 8)
    assert download() == 4
    assert "again" in capsys.readouterr().err
    assert server.calls["ListDataFiles"] == 4


def test_without_a_line_without_a_proxy_and_without_credentials_there_is_one_sentence_each(
    server: Server, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert download() == 4
    assert "the proxy does not let us through" in capsys.readouterr().err
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")  # port 7777, where nobody listens
    assert download() == 4
    assert "Kaggle cannot be reached" in capsys.readouterr().err
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "NOWHERE")
    assert download() == 2
    assert "KAGGLE_API_ENVIRONMENT" in capsys.readouterr().err
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert download() == 2
    assert "make a token at https://www.kaggle.com/settings/api" in capsys.readouterr().err


def test_killed_at_any_moment_and_typed_again_the_old_files_or_the_new_are_there_whole(
    server: Server, typist: Typist, project: Path
) -> None:
    server.redirects = True
    at, code, old = -2, -signal.SIGKILL, {}
    while code == -signal.SIGKILL:
        at += 3
        server.tag, server.files["train.csv"] = f'"{at}"', server.files["train.csv"] + b"9,1,1,1\n"
        server.cut = [1_500_000] if at % 2 else []
        code = typist.type("download", "toy", at=at).code
        if Path("data/toy").exists():
            assert here() in (old, server.files), at
        ended = typist.type("download", "toy")
        assert ended.code == 0, (at, ended)
        assert here() == server.files, at
        old = here()
        for aside in Path("data").glob("toy~*"):
            assert len(here(str(aside))) == 4
            shutil.rmtree(aside)
    assert at > 8
