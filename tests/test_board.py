"""The board shows what the leaderboard knows, and never ends a training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kagglekit import board, cli, files, leaderboard, pages
from tests import toys


def test_each_finished_run_renews_the_board_and_reports_are_linked(project, capsys):
    toys.write(project)
    assert cli.main(["train", "toy", "line", "--json"]) == 0
    page = (project / "runs" / board.FILE).read_text()
    (run,) = (path.name for path in Path("runs/toy").glob("[!.]*"))
    assert run in page
    assert "report.html" not in page
    assert cli.main(["report", "toy", "--json"]) == 0
    assert f'href="toy/{run}/report.html"' in (project / "runs" / board.FILE).read_text()
    assert cli.main(["train", "toy", "curve", "--json"]) == 0
    page = (project / "runs" / board.FILE).read_text()
    assert len(set(re.findall(r"(?:line|curve)-[0-9a-f]{8}", page))) == 2
    assert len(re.findall("<ellipse", page)) == 6  # three folds each


def test_a_board_that_cannot_be_made_ends_no_training(project, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no board today")

    monkeypatch.setattr(pages, "render", fail)
    toys.write(project)
    assert cli.main(["train", "toy", "line", "--json"]) == 0
    assert not (project / "runs" / board.FILE).exists()
    with pytest.raises(RuntimeError):
        board.write(Path("runs"), Path("submissions"))


def test_a_board_of_many_runs_opens_no_file_of_theirs(project, monkeypatch):
    from tests.test_leaderboard import Project

    made = Project(project)
    for number in range(20):
        made.run(f"cnn-{number:08x}", 0.9 + number / 1000, f"digits{number % 5}")
    board.write(made.runs, made.submissions)
    read = files.read_json
    opened = []
    monkeypatch.setattr(files, "read_json", lambda path: opened.append(path) or read(path))
    told = board.write(made.runs, made.submissions)
    assert (told["runs"], opened) == (20, [])  # every run renews it: the index has to be enough
    Path(made.runs, leaderboard.DATABASE).unlink()
    board.write(made.runs, made.submissions)
    assert len(opened) >= 20  # without an index the same reads are seen
