"""The whole way from a run to a place on a leaderboard, without an account."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kagglekit import practice_server
from kagglekit.errors import UserError
from kagglekit.practice_server import Server
from tests import toys
from tests.conftest import ROOT
from tests.typist import Ended, Typist

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the typist forks")

HERE = {"KAGGLEKIT_COMPETITIONS": "competitions", "KAGGLEKIT_PATIENCE": "0.5"}


@pytest.fixture
def served(
    project: Path, monkeypatch: pytest.MonkeyPatch, typist: Typist, tmp_path: Path
) -> Iterator[Server]:
    """A project with a run on practice data, and the server of these."""
    toys.write(project)
    toys.sys.modules.pop("competitions.toy", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)
    for path in Path("data/toy").iterdir():
        path.unlink()
    Path("data/toy").rmdir()  # so that practice data are made
    done = typist.type("train", "toy", **HERE)
    assert done.code == 0, done.err
    with practice_server.of_practice("toy") as server:
        yield server


def typed(typist: Typist, server: Server, *arguments: str, at: int | None = None) -> Ended:
    environment = practice_server.environment(server.port)
    return typist.type(
        *arguments, at=at, HOME=os.environ["HOME"],
        KAGGLEKIT_CACHE=os.environ["KAGGLEKIT_CACHE"], **HERE, **environment,
    )  # fmt: skip


def test_a_submission_comes_home_with_the_score_of_the_practice_answers(
    served: Server, typist: Typist
) -> None:
    ended = typed(typist, served, "submit", "toy", "--yes", "--wait", "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    scores = json.loads((Path("runs/toy") / result["run"] / "scores.json").read_text())
    assert result["state"] == "scored"
    assert result["public"] == pytest.approx(scores["practice_lb"], abs=1e-5)
    assert (result["rank"]["rank"], result["rank"]["teams"]) == (1, 2)
    listed = json.loads(typed(typist, served, "submissions", "toy", "--json").out)
    assert [one["public"] for one in listed["submissions"]] == [result["public"]]
    assert listed["quota"]["left"] == 4


@pytest.mark.parametrize("at", [2, 5, 8, 11, 14])
def test_killed_and_typed_again_there_is_one_submission(
    at: int, served: Server, typist: Typist
) -> None:
    typed(typist, served, "submit", "toy", "--yes", "--wait", at=at)
    ended = typed(typist, served, "submit", "toy", "--yes", "--wait")
    assert ended.code in (0, 2, 3), ended.err  # 2: scored before; 3: killed while it was sent
    assert len(served.submissions) <= 1
    assert (len(served.submissions) == 1) == (ended.code != 3)


def test_what_cannot_be_scored_says_why(served: Server, typist: Typist) -> None:
    served.score = lambda content: (_ for _ in ()).throw(UserError("row 3 is empty"))
    ended = typed(typist, served, "submit", "toy", "--yes", "--wait")
    assert ended.code == 4
    assert "row 3 is empty" in ended.complaint


def test_submissions_outlive_the_server(served: Server, typist: Typist) -> None:
    assert typed(typist, served, "submit", "toy", "--yes", "--wait").code == 0
    with practice_server.of_practice("toy") as another:
        assert another.submissions == served.submissions
        assert another.GetSubmissionLimits({})["numToday"] == 1


def test_the_data_can_be_downloaded(served: Server, typist: Typist) -> None:
    ended = typed(typist, served, "download", "toy", "--json")
    assert ended.code == 0, ended.err
    for path in Path("data/toy.practice").iterdir():
        assert (Path("data/toy") / path.name).read_bytes() == path.read_bytes()


def test_the_command_serves_until_ctrl_c(served: Server) -> None:
    command = [sys.executable, "-m", "kagglekit", "practice-server", "toy", "--port", "18765"]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("export KAGGLE_API_ENVIRONMENT=LOCALHOST ")
    assert "http_proxy=http://127.0.0.1:18765 " in line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == "0 submissions kept\n"


def test_a_port_that_is_taken_is_named(served: Server, typist: Typist) -> None:
    ended = typed(typist, served, "practice-server", "toy", "--port", str(served.port))
    assert ended.code == 2
    assert f"port {served.port} cannot be listened at" in ended.complaint


def test_strangers_and_other_paths_are_turned_away(served: Server, typist: Typist) -> None:
    served.accepted = ("Bearer of-somebody-else",)
    ended = typed(typist, served, "submit", "toy", "--yes", "--wait")
    assert ended.code == 2
    assert "does not accept the credentials" in ended.complaint
    assert not served.submissions
