"""Cleaning removes what it shows, asks first, and touches nothing else."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kagglekit import cleaning, files, folders, inventory, leaderboard, locks
from kagglekit.cleaning import Plan, Request
from kagglekit.cli import main
from kagglekit.errors import UserError
from tests import toys
from tests.children import obey_permissions
from tests.test_inventory import written
from tests.typist import kagglekit

UNFINISHED, FINISHED = "cnn-0123abcd", "line-"


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)
    return project


@pytest.fixture
def full(toy: Path) -> Path:
    """A project with one of everything: finished, set-aside, unfinished runs, caches, leftovers."""
    assert main(["train", "toy", "--json"]) == 0
    assert main(["train", "toy", "--fresh", "--json"]) == 0
    written(UNFINISHED)
    cache = folders.cache()
    (cache / "unpacked" / "0123456789abcdef").mkdir(parents=True)
    (cache / "unpacked" / "0123456789abcdef" / "train.csv").write_bytes(bytes(5000))
    (cache / "arrays" / "pictures-1").mkdir(parents=True)
    (cache / "decoded" / "0f").mkdir(parents=True)
    for home in (Path("runs/toy"), Path("submissions/toy"), Path("runs/toy", UNFINISHED), cache):
        temporary = home / ".fedcba98-4711-76543210.tmp"
        temporary.write_bytes(bytes(100))
        aged(temporary)
    return toy


def aged(path: Path, seconds: float = 2 * 3600) -> None:
    then = time.time() - seconds
    for inside in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(inside, (then, then), follow_symlinks=False)


def everything(*homes: Path) -> dict[str, int]:
    """Each file by its path with its time, but for the index and locks."""
    found = [path for home in homes for path in home.rglob("*")]
    return {
        str(path): path.lstat().st_mtime_ns
        for path in found
        if path.is_file() and locks.HOME not in path.parts and "leaderboard.db" not in path.name
    }


def kinds(plan: Plan) -> list[str]:
    return [thing.kind for thing in plan.things]


def paths(plan: Plan) -> set[str]:
    return {path.name for thing in plan.things for path in thing.paths}


def finished() -> str:
    (run,) = (s.run for s in inventory.states(Path("runs")) if s.finished and not s.aside)
    return run


def test_a_plan_changes_nothing(full: Path) -> None:
    before = everything(full, folders.cache())
    assert cleaning.plan(Request(unfinished=True)).things
    assert cleaning.plan(Request("toy", (finished(),))).things
    assert everything(full, folders.cache()) == before


def test_without_a_name_caches_set_aside_runs_and_leftovers_may_go(full: Path) -> None:
    plan = cleaning.plan(Request())
    assert kinds(plan) == ["cache", "cache", "cache", "set aside", "leftover"]
    assert UNFINISHED not in paths(plan)
    assert finished() not in paths(plan)
    (leftover,) = (thing for thing in plan.things if thing.kind == "leftover")
    assert len(leftover.paths) == 4
    assert plan.bytes == sum(thing.bytes for thing in plan.things) > 5000


def test_cleaning_removes_just_that_and_the_leaderboard_knows(full: Path) -> None:
    data = everything(Path("data"), Path("submissions"), Path("runs/toy", finished()))
    plan = cleaning.plan(Request())
    gone = cleaning.remove(plan)
    assert gone.things == plan.things
    assert not any(path.exists() for thing in plan.things for path in thing.paths)
    left = everything(Path("data"), Path("submissions"), Path("runs/toy", finished()))
    assert left == {name: at for name, at in data.items() if not name.endswith(".tmp")}
    assert Path("runs/toy", UNFINISHED).is_dir()
    assert list(Path("runs").rglob("*.tmp")) == []
    assert [row.run for row in leaderboard.rows(Path("runs"))] == [finished()]
    assert cleaning.plan(Request()).things == ()
    assert main(["train", "toy", "--json"]) == 0


def test_with_a_name_only_its_own_runs_go_and_no_cache(full: Path) -> None:
    (Path("runs") / "other" / "gp-01234567~1").mkdir(parents=True)
    assert kinds(cleaning.plan(Request("toy"))) == ["set aside", "leftover"]
    assert "gp-01234567~1" in paths(cleaning.plan(Request()))
    assert kinds(cleaning.plan(Request("other"))) == ["set aside"]
    Path(".01234567-4711-89abcdef.tmp").touch()
    aged(Path(".01234567-4711-89abcdef.tmp"))
    for name in ("tyo", "..", ".", "../runs/toy", "toy/.", str(Path("runs/toy").resolve())):
        with pytest.raises(UserError):
            cleaning.plan(Request(name))


def test_unfinished_runs_go_only_when_named_or_asked_for(full: Path) -> None:
    assert UNFINISHED in paths(cleaning.plan(Request("toy", unfinished=True)))
    (thing,) = cleaning.plan(Request("toy", ("cnn",))).things
    assert (thing.kind, thing.note) == ("unfinished", "2 of 3 members done")


def test_a_download_that_broke_off_goes_when_asked_for_and_nobody_goes_on_with_it(
    toy: Path,
) -> None:
    part = Path("data/.toy.download")
    part.mkdir()
    (part / "part").write_bytes(bytes(1000))
    assert str(part) not in paths(cleaning.plan(Request("toy")))
    with locks.exclusive(Path("data/toy")):
        assert str(part) not in paths(cleaning.plan(Request(unfinished=True)))
    plan = cleaning.plan(Request("toy", unfinished=True))
    assert [(thing.kind, thing.bytes) for thing in plan.things] == [("download", 1000)]
    with locks.exclusive(Path("data/toy")):
        assert cleaning.remove(plan).skipped == ("toy is being downloaded: kept",)
    cleaning.remove(plan)
    assert not part.exists()
    assert Path("data/toy/train.csv").exists()


def test_a_finished_run_goes_with_its_csvs_only_when_it_is_named(full: Path) -> None:
    run = finished()
    Path("submissions/toy", f"{run}@12345678.csv").write_text("id,y\n")
    Path("submissions/toy", "line-other.csv").write_text("id,y\n")
    plan = cleaning.plan(Request("toy", ("line",)))
    assert kinds(plan) == ["run", "submission", "submission"]
    cleaning.remove(plan)
    assert not Path("runs/toy", run).exists()
    assert [path.name for path in Path("submissions/toy").glob("*.csv")] == ["line-other.csv"]
    assert run not in {row.run for row in leaderboard.rows(Path("runs"))}


def test_what_was_sent_to_kaggle_stays_with_its_journal(full: Path) -> None:
    Path("submissions/toy", f"{finished()}.json").write_text("{}")
    assert kinds(cleaning.plan(Request("toy", (finished(),)))) == ["run"]


def test_a_run_that_another_was_built_on_says_so(toy: Path) -> None:
    assert main(["train", "toy", "mix", "--json"]) == 0
    line, _ = cleaning.plan(Request("toy", ("line",))).things
    assert line.note.startswith("mix-")
    assert line.note.endswith("was built on it")
    for method in ("mean", "single", "greedy"):
        assert main(["train", "toy", "mix", f"method={method}", "--json"]) == 0
    path = str(line.paths[0])
    line, _ = cleaning.plan(Request("toy", (path,))).things
    assert line.note.count("mix-") == 3
    assert line.note.endswith(" and 1 more were built on it")


def test_a_name_that_fits_no_run_or_several_is_an_error(full: Path) -> None:
    written("cnn-99999999")
    with pytest.raises(UserError, match="no run 'gp' of toy"):
        cleaning.plan(Request("toy", ("gp",)))
    with pytest.raises(UserError, match="'cnn' fits 2 runs: cnn-0123abcd, cnn-99999999"):
        cleaning.plan(Request("toy", ("cnn",)))


def test_a_run_that_is_being_trained_is_kept_whenever_the_training_began(full: Path) -> None:
    plan = cleaning.plan(Request("toy", (UNFINISHED,)))
    with locks.held(Path("runs/toy", UNFINISHED), "kagglekit train", print):
        for told in (cleaning.plan(Request("toy", (UNFINISHED,))), cleaning.remove(plan)):
            assert told.things == ()
            assert f"toy {UNFINISHED} is being trained by process" in told.skipped[0]
        assert UNFINISHED not in paths(cleaning.plan(Request(unfinished=True)))
    assert Path("runs/toy", UNFINISHED, "run.json").is_file()


def test_a_run_that_was_finished_since_the_plan_is_kept(full: Path) -> None:
    toys.trap("fit-interrupt", 2)
    assert main(["train", "toy", "curve", "--json"]) == 130
    plan = cleaning.plan(Request(unfinished=True))
    assert main(["train", "toy", "curve", "--json"]) == 0
    gone = cleaning.remove(plan)
    assert any("has been finished meanwhile" in sentence for sentence in gone.skipped)
    assert len([s for s in inventory.states(Path("runs")) if s.finished]) == 2


def test_caches_that_a_process_may_be_reading_are_kept(full: Path) -> None:
    plan = cleaning.plan(Request())
    with locks.visiting(folders.cache(), "kagglekit train toy"):
        assert "cache" not in kinds(cleaning.plan(Request()))
        gone = cleaning.remove(plan)
    assert "cache" not in kinds(gone)
    assert (folders.cache() / "unpacked" / "0123456789abcdef" / "train.csv").exists()
    assert "may be read by process" in gone.skipped[0]


def test_only_what_kagglekit_put_into_its_cache_goes(full: Path) -> None:
    theirs = folders.cache() / "unpacked" / "notes", folders.cache() / "thesis.tex"
    for path in theirs:
        path.write_text("precious")
    (folders.cache() / "fresh-abc_123").mkdir()
    cleaning.remove(cleaning.plan(Request()))
    assert all(path.exists() for path in theirs)
    assert not (folders.cache() / "fresh-abc_123").exists()


def test_younger_leftovers_and_what_is_younger_than_asked_stay(full: Path) -> None:
    young = Path("runs/toy/.00000000-4711-000000ff.tmp")
    young.mkdir()
    plan = cleaning.plan(Request())
    assert young.name not in paths(plan)
    assert cleaning.plan(Request(days=1)).things == ()
    aged(Path("runs/toy", UNFINISHED), 3 * 24 * 3600)
    assert paths(cleaning.plan(Request(days=2, unfinished=True))) >= {UNFINISHED}
    assert UNFINISHED not in paths(cleaning.plan(Request(days=4, unfinished=True)))
    ahead = time.time() + 7 * 24 * 3600
    os.utime(Path("runs/toy/.fedcba98-4711-76543210.tmp"), (ahead, ahead))  # the clock was set back
    assert len(paths(cleaning.plan(Request("toy")))) == 2


def test_locks_of_dead_processes_go_and_those_of_living_ones_stay(full: Path) -> None:
    living = Path("runs/toy/living-01234567")
    dead = locks.path(Path("runs/toy/dead-01234567"))
    with locks.held(living, "kagglekit train", print):
        dead.write_text("\n{}")
        plan = cleaning.plan(Request("toy"))
        assert dead.name in paths(plan)
        cleaning.remove(plan)
        assert not dead.exists()
        assert locks.path(living).exists()


@pytest.mark.parametrize("place", ["in a run", "a run", "a cache", "in a cache", "a competition"])
def test_nothing_that_a_link_leads_to_is_removed(full: Path, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    (outside / "line-01234567~1").mkdir(parents=True)
    for name in ("precious", "line-01234567~1/run.json", ".01234567-4711-89abcdef.tmp"):
        (outside / name).write_text("{}")
        aged(outside / name)
    links = {
        "in a run": Path("runs/toy", UNFINISHED, "link"),
        "a run": Path("runs/toy/line-01234567~1"),
        "a cache": folders.cache() / "digests-elsewhere",
        "in a cache": folders.cache() / "unpacked" / "0123456789abcdef" / "link",
        "a competition": Path("runs/elsewhere"),
    }
    links[place].symlink_to(outside, target_is_directory=True)
    if place == "a cache":
        files.remove(folders.cache() / "unpacked")
        (folders.cache() / "unpacked").symlink_to(outside, target_is_directory=True)
        (outside / "0123456789abcdef").mkdir()
    before = everything(outside)
    cleaning.remove(cleaning.plan(Request(unfinished=True)))
    assert everything(outside) == before
    assert (outside / "0123456789abcdef").exists() == (place == "a cache")
    cleaning.remove(cleaning.plan(Request("toy", unfinished=True)))
    assert everything(outside) == before


def test_a_removal_that_was_killed_leaves_nothing_under_the_run_s_name(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        (path / "run.json").unlink()
        raise KeyboardInterrupt

    plan = cleaning.plan(Request("toy", (UNFINISHED,)))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            cleaning.remove(plan)
    assert not Path("runs/toy", UNFINISHED).exists()
    assert inventory.report(None, False)["runs"] == []
    (rest,) = (path for path in Path("runs/toy").glob(".*.tmp") if path.is_dir())
    aged(rest)
    cleaning.remove(cleaning.plan(Request()))
    assert not rest.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="made to obey by means of Linux")
def test_what_cannot_be_removed_is_an_error_that_names_it(full: Path) -> None:
    Path("runs/toy", UNFINISHED, "fold0-seed0").chmod(0o500)
    try:
        ended = kagglekit("clean", "toy", UNFINISHED, "--yes", before=obey_permissions)
    finally:
        for folder in Path("runs/toy").glob("**/fold0-seed0"):
            folder.chmod(0o700)
    assert ended.code == 2, ended.err
    assert "permission denied" in ended.complaint
    assert "runs/toy/" in ended.complaint


# --- the command ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answered(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for a person at a terminal who types `answer`."""
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def left(*command: str) -> bool:
    """Whether the set-aside run is still there after the command."""
    main(["clean", *command])
    return bool(list(Path("runs/toy").glob("*~1")))


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "no\n", "maybe\n"])
def test_no_answer_and_any_but_yes_remove_nothing(
    full: Path, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(answer, monkeypatch)
    capsys.readouterr()
    assert left("toy")
    out = capsys.readouterr().out
    assert "Remove 2 things, " in out
    assert "? [y/N]" in out
    assert out.rstrip().endswith("nothing was removed")


@pytest.mark.parametrize("answer", ["y\n", "Yes\n"])
def test_yes_removes_what_was_shown(
    full: Path, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(answer, monkeypatch)
    assert not left("toy")
    assert "removed 2 things, " in capsys.readouterr().out


def test_without_a_terminal_nothing_is_removed_unless_yes_is_typed(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    capsys.readouterr()
    assert main(["clean", "toy"]) == 2
    told = capsys.readouterr()
    assert "set aside" in told.out
    assert told.err == (
        "kagglekit: nothing was removed; `kagglekit clean toy --yes` removes it without asking\n"
    )
    assert left("toy", "--json")
    assert not left("toy", "--yes")


def test_the_json_says_what_went(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    documents: list[dict[str, Any]] = []
    for command, code in ((["clean", "--json"], 2), (["clean", "--json", "--yes"], 0)):
        assert main(command) == code
        documents.append(json.loads(capsys.readouterr().out))
    planned, gone = documents
    assert (planned.pop("removed"), gone.pop("removed")) == (False, True)
    assert planned == gone
    assert {thing["kind"] for thing in gone["things"]} == {"cache", "set aside", "leftover"}


def test_where_there_is_nothing_to_clean_it_says_so(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == "nothing to clean\n"


@pytest.mark.parametrize("typed", [["--older-than", "x"], ["--older-than", "-1"], ["--force"]])
def test_a_typing_error_is_one_sentence(
    full: Path, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean", *typed, "--yes"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("kagglekit: ")
    assert list(Path("runs/toy").glob("*~1"))


def test_runs_may_stand_after_options(full: Path) -> None:
    assert main(["clean", "toy", "--yes", UNFINISHED]) == 0
    assert not Path("runs/toy", UNFINISHED).exists()
    assert list(Path("runs/toy").glob("*~1"))
