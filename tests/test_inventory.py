"""What is said of a run is what its folder holds, in whatever state that is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from kagglekit import inventory, locks
from kagglekit.cli import main
from kagglekit.errors import UserError
from kagglekit.inventory import State
from tests import toys

RUN = "cnn-0123abcd"


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)
    return project


def written(name: str = RUN, done: int = 2, **told: Any) -> Path:
    """A run's folder with `done` finished members of three."""
    folder = Path("runs", "toy", name)
    for fold in range(done):
        (folder / f"fold{fold}-seed0").mkdir(parents=True)
        (folder / f"fold{fold}-seed0" / "answers.npz").write_bytes(bytes(1000))
    folder.mkdir(parents=True, exist_ok=True)
    usual = {
        "recipe": "cnn", "started": "2025-01-01T00:00:00+00:00", "finished": None, "members": [],
        "wanted": [f"fold{fold}-seed0" for fold in range(3)], "folds_wanted": 3, "seconds": 1.0,
        "command": "kagglekit train toy cnn --fresh lr=0.1",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**usual, **told}))
    (folder / "config.json").write_text('{"epochs": 20}')
    return folder


def epochs(folder: Path, *lines: dict[str, Any] | str) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "history.jsonl").write_text("\n".join(text))


def only(**more: Any) -> dict[str, Any]:
    (run,) = inventory.report(None, **{"everything": False, **more})["runs"]
    return run  # type: ignore[no-any-return]


def test_a_run_under_way_says_how_far_it_is_and_what_goes_on_with_it() -> None:
    folder = written()
    epochs(
        folder,
        {"member": "fold1-seed0", "epoch": 20},
        {"member": "fold2-seed0", "epoch": 7, "loss": 0.1},
    )
    run = only()
    assert (run["competition"], run["run"], run["recipe"]) == ("toy", RUN, "cnn")
    assert run["done"] == ["fold0-seed0", "fold1-seed0"]
    assert len(run["wanted"]) == 3
    assert (run["member"], run["epoch"], run["epochs"]) == ("fold2-seed0", 7, 20)
    assert run["command"] == "kagglekit train toy cnn lr=0.1"
    assert run["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert run["owner"] is None
    assert run["finished"] is False


def test_the_epochs_that_the_history_tells_go_before_the_knob() -> None:
    folder = written()
    epochs(folder, {"member": "fold2-seed0", "epoch": 7, "epochs": 55.0})
    assert only()["epochs"] == 55


def test_half_a_line_at_the_end_of_a_history_is_passed_over() -> None:
    folder = written()
    epochs(folder, {"member": "fold2-seed0", "epoch": 7}, '{"member": "fold2-seed0", "ep')
    assert only()["epoch"] == 7
    epochs(folder, "[1]", "7", "null", '{"member": "../..", "epoch": 3}', '{"epoch": 1}')
    assert only()["member"] is None


def test_a_member_that_has_answered_is_not_in_hand() -> None:
    epochs(written(), {"member": "fold1-seed0", "epoch": 20})
    assert only()["member"] is None


def test_a_run_that_wants_more_than_it_was_scored_on_is_unfinished() -> None:
    names = [f"fold{fold}-seed0" for fold in range(2)]
    written(finished="2025-01-01T00:00:00+00:00", members=names)
    assert only()["finished"] is False
    written("cnn-11111111", 2, finished="2025-01-01T00:00:00+00:00", members=names, wanted=names)
    written("cnn-22222222", 1, finished="2025-01-01T00:00:00+00:00", members=names, wanted=names)
    assert [run["run"] for run in inventory.report(None, False)["runs"]] == [RUN, "cnn-22222222"]


def test_a_trained_run_is_finished_and_shown_with_all_alone() -> None:
    assert main(["train", "toy", "--json"]) == 0
    assert inventory.report("toy", False)["runs"] == []
    assert inventory.report("toy", False)["others"] == 1
    run = only(everything=True)
    assert run["finished"] is True
    assert run["done"] == run["wanted"] == [f"fold{fold}-seed0" for fold in range(3)]


def test_a_broken_training_is_listed_with_the_command_that_was_typed_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["train", "toy", "--folds", "0", "--json"]) == 0
    toys.trap("fit-interrupt", 2)
    assert main(["train", "toy", "--seeds", "2", "--json"]) == 130
    run = only()
    assert run["command"] == "kagglekit train toy --seeds 2 --json"
    assert len(run["wanted"]) == 6
    assert len(run["done"]) == 2
    assert main(["train", "toy", "--seeds", "2", "--json"]) == 0
    assert inventory.report(None, False)["runs"] == []


def test_members_that_failed_and_a_forced_resume_are_told() -> None:
    written(failed={"fold2-seed0": "the loss is not a number"}, forced=[{"versions": "torch"}])
    run = only()
    assert run["failed"] == ["fold2-seed0"]
    assert run["forced"] is True


def test_a_run_in_which_members_failed_is_never_finished() -> None:
    names = [f"fold{fold}-seed0" for fold in range(2)]
    written(members=names, wanted=names, finished="2025", failed={"fold2-seed0": "infinite"})
    assert only()["finished"] is False


def test_a_run_that_is_being_trained_says_by_whom() -> None:
    folder = written()
    with locks.held(folder, "kagglekit train toy cnn", print):
        owner = only()["owner"]
    assert owner["command"] == "kagglekit train toy cnn"
    assert owner["pid"] > 0


def test_set_aside_runs_are_shown_with_all_alone() -> None:
    written(f"{RUN}~1")
    assert inventory.report(None, False)["runs"] == []
    assert only(everything=True)["set_aside"] is True


DAMAGES: dict[str, Any] = {
    "no run.json": None,
    "empty": b"",
    "half": b'{"recipe": "cn',
    "list": b"[]",
    "number": b"7",
    "no keys": b"{}",
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
    "members": b'{"recipe": "cnn", "finished": null, "members": 7, "wanted": []}',
    "wanted": b'{"recipe": "cnn", "finished": null, "members": [], "wanted": [1]}',
    "needs": b'{"recipe": "cnn", "finished": null, "members": [], "needs": [1]}',
    "folds": b'{"recipe": "cnn", "finished": null, "members": [], "folds_wanted": "x"}',
    "huge": b'{"recipe": "cnn", "finished": null, "members": [], "folds_wanted": 1e400}',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_in_a_line_and_hides_no_other(damage: str) -> None:
    folder = written("cnn-00000000")
    (folder / "run.json").unlink()
    if DAMAGES[damage] is not None:
        (folder / "run.json").write_bytes(DAMAGES[damage])
    written()
    broken, whole = inventory.report(None, False)["runs"]
    assert "cnn-00000000" in broken["damage"]
    assert "\n" not in broken["damage"]
    assert broken["bytes"] > 2000
    assert whole["damage"] is None


def test_runs_are_recognised_by_name_or_content_and_links_are_not_followed(tmp_path: Path) -> None:
    folder = written()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "large").write_bytes(bytes(100_000))
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder.parent / "cnn-deadbeef").symlink_to(tmp_path / "outside")
    Path("runs", "linked").symlink_to(tmp_path / "outside")
    (folder.parent / "notes").mkdir()
    (folder.parent / ".01234567-4711-89abcdef.tmp").mkdir()
    (folder.parent / ".01234567-4711-89abcdef.tmp" / "run.json").write_text("{}")
    assert only()["bytes"] < 100_000


def test_an_unknown_competition_is_an_error_and_one_without_runs_is_not() -> None:
    assert inventory.report("toy", True)["runs"] == []
    with pytest.raises(UserError, match="tyo"):
        inventory.report("tyo", True)


def test_the_size_and_the_newest_change_are_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(10))
    (tmp_path / "a" / "d").write_bytes(bytes(7))
    size, newest = inventory.measure(tmp_path / "a")
    assert size == 17
    assert abs(newest - time.time()) < 60
    assert inventory.measure(tmp_path / "nowhere") == (0, 0.0)
    assert inventory.moment(1e300) == inventory.moment(0)


def test_a_state_without_a_manifest_is_empty_but_for_its_place() -> None:
    state = State("toy", RUN, Path("runs", "toy", RUN))
    assert state.as_json()["wanted"] == []
    assert not state.aside
