"""A run is made once, goes on where it stopped, and is told truly."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from kagglekit import folders, folds, mixing, pipeline, problem
from kagglekit.cli import main
from kagglekit.errors import DivergedError, UserError
from kagglekit.pipeline import Question
from kagglekit.progress import progress
from tests import miniatures, toys
from tests.typist import kagglekit

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)
    return project


class Told:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.noted: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def note(self, text: str) -> None:
        self.noted.append(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def train(*typed: str, told: Told | None = None, **more: Any) -> dict[str, Any]:
    recipe = next((text for text in typed if "=" not in text), None)
    knobs = tuple(text for text in typed if "=" in text)
    request = pipeline.Request("toy", recipe, knobs, **more)
    return pipeline.train(request, told or Told())


def content(result: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes that law 2 speaks of."""
    folder = Path(result["folder"])
    kept = {name: (folder / name).read_bytes() for name in ("oof.npy", "covered.npy", "test.npy")}
    return {**kept, "csv": Path(result["submission"]).read_bytes()}


def unbroken(tmp_path: Path, *typed: str, **more: Any) -> dict[str, bytes]:
    """What the same command leaves in another project, where nothing ever stopped it."""
    here, there = Path.cwd(), tmp_path / "unbroken"
    there.mkdir()
    os.chdir(there)
    try:
        shutil.copytree(here / "data", there / "data")
        toys.write(there, data=False)
        shutil.copytree(here / "competitions", there / "competitions", dirs_exist_ok=True)
        return content(train(*typed, **more))
    finally:
        os.chdir(here)


# --- once, and again ----------------------------------------------------------------------------


def test_typing_a_command_twice_trains_once_and_says_so() -> None:
    first, told = train(), Told()
    before, fits = content(first), toys.fits()
    second = train(told=told)
    assert (fits, toys.fits()) == (3, 3)
    assert content(second) == before
    assert first["trained"] is True
    assert second["trained"] is False
    assert "trained already" in told.lines[-1]
    assert {**first, "trained": 0} == {**second, "trained": 0}


def test_the_first_line_says_which_data() -> None:
    told = Told()
    train(told=told)
    assert told.lines[0] == "data: data/toy"


def test_all_knobs_are_in_the_log_and_the_turned_ones_on_the_screen() -> None:
    told = Told()
    result = train("ridge=0.5", told=told)
    line = next(line for line in told.lines if line.startswith("run "))
    assert line == f"run {result['run']}: ridge=0.5"
    assert "folds=3" in told.noted[0]
    assert "ridge=0.5" in told.noted[0]
    assert json.loads((Path(result["folder"]) / "config.json").read_text())["ridge"] == 0.5


@pytest.mark.parametrize("trap", ["fit-interrupt", "ask-interrupt"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_broken_run_ends_with_the_bytes_of_an_unbroken_one(
    trap: str, at: int, tmp_path: Path
) -> None:
    toys.trap(trap, at)
    with pytest.raises(KeyboardInterrupt):
        train()
    result = train()
    assert content(result) == unbroken(tmp_path)
    assert toys.fits() == 3  # what was fitted is not fitted again


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("kagglekit.files.write_array", 2),  # covered.npy
        ("kagglekit.pipeline._test_answers", 1),
        ("kagglekit.submission.write_text", 1),  # the CSV
        ("kagglekit.pipeline._scores", 1),
        ("kagglekit.files.write_json", 7),  # scores.json
        ("kagglekit.files.write_json", 8),  # run.json, finished
        ("kagglekit.pipeline._record", 2),  # the leaderboard
    ],
)
def test_a_run_broken_between_scoring_and_the_leaderboard_goes_on(
    name: str,
    call: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[object] = []
    module, _, attribute = name.rpartition(".")
    real = getattr(sys.modules[module], attribute)

    def broken(*given: Any, **named: Any) -> Any:
        seen.append(given)
        if len(seen) == call:
            raise KeyboardInterrupt
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(name, broken)
        with pytest.raises(KeyboardInterrupt):
            train()
    result = train()
    assert content(result) == unbroken(tmp_path)
    assert toys.fits() == 3
    assert main(["leaderboard", "toy", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["cv"] == result["cv"]
    assert row["finished"]


def begun_with(**parts: str) -> Path:
    """A run that was interrupted, and that names other tools than those here."""
    toys.trap("fit-interrupt", 2)
    with pytest.raises(KeyboardInterrupt):
        train()
    (path,) = Path("runs/toy").glob("line-*/run.json")
    manifest = json.loads(path.read_text())
    manifest["stamp"] |= parts
    path.write_text(json.dumps(manifest))
    return path.parent


def test_a_run_begun_with_other_versions_is_refused_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begun_with(torch="1.0")
    with pytest.raises(UserError, match=r"run line-\w+ was begun with other torch \(1\.0, now"):
        train()
    result = train(force_resume=True)
    assert result["run"] == folder.name
    assert content(result) == unbroken(tmp_path)
    (forced,) = json.loads((folder / "run.json").read_text())["forced"]
    assert forced["differs"]["torch"][0] == "1.0"
    assert main(["leaderboard", "toy"]) == 0
    assert "resumed by force" in capsys.readouterr().out


def test_a_run_of_other_source_is_not_gone_on_with_unless_forced() -> None:
    folder = begun_with(source="edited since")
    other = folder.rename(folder.with_name("line-0badcafe"))
    told = Told()
    anew = train(told=told)
    assert anew["run"] == folder.name
    assert any(
        line.startswith(f"{other.name} is unfinished, but its source") for line in told.lines
    )
    shutil.rmtree(anew["folder"])
    assert train(force_resume=True)["run"] == other.name


def test_other_data_cannot_be_forced() -> None:
    begun_with(data="others")
    with pytest.raises(UserError, match=r"other data: bring that back, or begin again"):
        train(force_resume=True)


def test_a_member_whose_numbers_burst_stops_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toys.trap("fit-diverge", 2)
    with pytest.raises(DivergedError, match=r"line-\w+ is incomplete: 1 of 3 members .*batch 3"):
        train()
    (path,) = Path("runs/toy").glob("line-*/run.json")
    assert list(json.loads(path.read_text())["failed"]) == ["fold1-seed0"]
    assert len(list(path.parent.glob("*/answers.npz"))) == 2
    assert main(["leaderboard", "toy"]) == 0
    assert "1 failed" in capsys.readouterr().out
    assert content(train()) == unbroken(tmp_path)
    assert not json.loads(path.read_text())["failed"]


HAND_WRITTEN = """
from dataclasses import replace
from kagglekit.errors import DivergedError


class Plain:
    config, needs = LineConfig(folds=3), ()

    def fit(self, members, config):
        for member in members:
            if member.name == "fold1-seed0":
                raise DivergedError(f"{member.name}: it became nan")
            quiet = replace(member, done=lambda: None)
            competition.recipes["line"].fit([quiet], config)

    def restore(self, folder, config, before):
        return competition.recipes["line"].restore(folder, config, before)


competition.recipes["plain"] = Plain()
"""


def test_a_recipe_that_neither_ends_members_nor_goes_on_after_a_burst_loses_no_other_member(
    project: Path,
) -> None:
    toys.write(project, HAND_WRITTEN)
    with pytest.raises(DivergedError, match=r"1 of 3 members stopped \(fold1-seed0: it became nan"):
        train("plain")
    (path,) = Path("runs/toy").glob("plain-*/run.json")
    assert list(json.loads(path.read_text())["failed"]) == ["fold1-seed0"]
    assert len(list(path.parent.glob("*/answers.npz"))) == 2
    assert toys.fits() == 2


def test_a_killed_process_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    toys.trap("ask-kill", 4)  # the second member is fitted, and not written down
    assert kagglekit("train", "toy").code == -9
    assert not list(Path("submissions").glob("**/*.csv"))
    result = train()
    assert content(result) == unbroken(tmp_path)


def test_a_kill_between_the_last_answers_and_their_note_leaves_no_trace() -> None:
    path = Path(train()["folder"]) / "run.json"
    whole = json.loads(path.read_text())
    for name in ("oof.npy", "covered.npy", "test.npy", "target.npy", "scores.json"):
        path.with_name(name).unlink()
    earlier = {"members": [], "seeds": [], "finished": None, "failed": {"fold1-seed0": "burst"}}
    path.write_text(json.dumps({**whole, **earlier}))
    train()
    told = json.loads(path.read_text())
    assert {**told, "finished": 0, "seconds": 0} == {**whole, "finished": 0, "seconds": 0}


def test_run_json_says_which_members_are_wanted_before_the_first_is_trained() -> None:
    toys.trap("fit-interrupt", 1)
    with pytest.raises(KeyboardInterrupt):
        train(folds=(0, 2), command="kagglekit train toy --folds 0,2")
    (told,) = (json.loads(path.read_text()) for path in Path("runs/toy").glob("*/run.json"))
    assert told["wanted"] == ["fold0-seed0", "fold2-seed0"]
    result = train(command="kagglekit train toy")
    told = json.loads((Path(result["folder"]) / "run.json").read_text())
    assert told["wanted"] == told["members"] == [f"fold{fold}-seed0" for fold in range(3)]
    assert told["command"] == "kagglekit train toy"


# --- folds, seeds, rows, fresh ------------------------------------------------------------------


def test_one_fold_and_later_all_folds_is_one_run(tmp_path: Path) -> None:
    part = train(folds=(1,))
    assert part["coverage"] == pytest.approx(1 / 3)
    whole = train()
    assert whole["run"] == part["run"]
    assert toys.fits() == 3
    assert content(whole) == unbroken(tmp_path)


def test_a_scored_run_broken_after_its_other_folds_were_fitted_is_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: object) -> None:
        raise KeyboardInterrupt

    train(folds=(1,))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_conclude", broken)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert content(train()) == unbroken(tmp_path)
    assert toys.fits() == 3


def test_a_run_only_grows() -> None:
    whole = train(seeds=2)
    before = content(whole)
    assert content(train(folds=(0,))) == before
    assert content(train()) == before
    assert toys.fits() == 6


def test_more_seeds_extend_the_run(tmp_path: Path) -> None:
    one, before = train(), None
    before = content(one)
    two = train(seeds=2)
    assert two["run"] == one["run"]
    assert two["seeds"] == [0, 1]
    assert toys.fits() == 6
    assert content(two) != before
    assert content(two) == unbroken(tmp_path, seeds=2)


def test_a_seed_s_refit_waits_until_all_its_folds_are_wanted(tmp_path: Path) -> None:
    part = train("refitted", folds=(0, 1))
    assert not (Path(part["folder"]) / "all-seed0").exists()
    whole = train("refitted")
    assert toys.fits() == 4
    folder = Path(whole["folder"])
    alone = np.load(folder / "all-seed0" / "answers.npz")
    np.testing.assert_array_equal(np.load(folder / "test.npy"), alone["test"])
    assert len(alone["valid"]) == 0
    assert [fold["fold"] for fold in whole["folds"]] == [0, 1, 2]
    assert content(whole) == unbroken(tmp_path, "refitted")


def test_fresh_trains_into_a_new_folder_and_keeps_the_old_one() -> None:
    first = train()
    before = content(first)
    told = Told()
    again = train(fresh=True, told=told)
    assert again["run"] == first["run"]
    assert toys.fits() == 6
    kept = Path(first["folder"]).with_name(f"{first['run']}~1")
    assert (kept / "oof.npy").read_bytes() == before["oof.npy"]
    assert content(again) == before
    assert any(f"{first['run']}~1" in line for line in told.lines)
    assert list(folders.cache().glob("fresh-*")) == []


def test_rows_takes_a_subset_into_a_run_of_its_own() -> None:
    whole, look = train(), train(rows=20)
    assert look["run"] != whole["run"]
    assert look["coverage"] == pytest.approx(20 / 60)


def test_fresh_ignores_caches_and_leaves_them_as_they_were() -> None:
    shutil.make_archive("toy", "zip", "data/toy")
    shutil.rmtree("data/toy")
    Path("data/toy").mkdir()
    shutil.move("toy.zip", "data/toy/toy.zip")
    before = content(train())
    (spoilt,) = folders.cache().glob("unpacked/*/train.csv")
    spoilt.write_text(spoilt.read_text().replace("0", "1"))  # of the same size, so it goes unseen
    cached = {path: path.read_bytes() for path in folders.cache().rglob("*") if path.is_file()}
    assert content(train(fresh=True)) == before
    after = {path: path.read_bytes() for path in folders.cache().rglob("*") if path.is_file()}
    assert after == cached


def test_another_knob_another_run() -> None:
    assert train()["run"] != train("ridge=0.5")["run"]


def test_other_code_another_run() -> None:
    before = train()
    toys.write(Path.cwd(), "\n# an edit\n", data=False)
    after = train()
    assert after["run"] != before["run"]
    assert after["trained"] is True


def test_a_recipe_that_builds_on_another_run_is_another_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = train("mix")["run"]
    recipes = cast(dict[str, Any], problem.find("toy").recipes)
    line = recipes["line"]
    monkeypatch.setitem(recipes, "line", replace(line, config=replace(line.config, ridge=0.3)))
    assert train("mix")["run"] != before


def test_a_slug_changes_what_is_written_down_and_not_the_answers() -> None:
    result = train(slug="toy-2031")
    manifest = json.loads((Path(result["folder"]) / "run.json").read_text())
    assert manifest["slug"] == "toy-2031"


# --- what is kept -------------------------------------------------------------------------------


def test_oof_has_an_entry_a_training_row_and_covered_says_which_hold() -> None:
    result = train(folds=(0,))
    folder = Path(result["folder"])
    oof, covered = np.load(folder / "oof.npy"), np.load(folder / "covered.npy")
    assert oof.shape == (60, 1)
    answers = np.load(folder / "fold0-seed0" / "answers.npz")
    np.testing.assert_array_equal(np.flatnonzero(covered), answers["valid_rows"])
    np.testing.assert_array_equal(oof[covered], answers["valid"])
    table = pd.read_csv("data/toy/train.csv", dtype=str)
    assert answers["valid_ids"].tolist() == table["id"][covered].tolist()
    test = pd.read_csv("data/toy/test.csv", dtype=str)
    assert answers["test_ids"].tolist() == test["id"].tolist()


def test_no_row_is_answered_by_a_model_that_saw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.write(
        Path.cwd(),
        '''
from kagglekit import Split


class Memory:
    """Answers a row it was trained on with its target, any other with zero."""

    config, needs = Config(folds=3), ()

    def fit(self, members, config):
        for member in members:
            np.savez(member.folder / "m.npz", ids=member.train.ids, y=member.train.target)

    def restore(self, folder, config, before):
        known = np.load(folder / "m.npz")
        known = dict(zip(known["ids"], known["y"][:, 0]))
        return lambda split: np.array([[known.get(id, 0.0)] for id in split.ids])


competition.recipes["memory"] = Memory()
''',
        data=False,
    )
    result = train("memory")
    assert not np.load(Path(result["folder"]) / "oof.npy").any()


def test_a_member_s_validation_targets_are_out_of_reach() -> None:
    toys.write(
        Path.cwd(),
        """

class Cheat:
    config, needs = Config(folds=3), ()

    def fit(self, members, config):
        for member in members:
            assert member.valid.target is None
            assert np.isnan(member.valid.data.target).all()
            hidden = np.setdiff1d(np.arange(len(member.train.data.train)), member.train.rows)
            assert np.isnan(member.train.data.target[hidden]).all()

    def restore(self, folder, config, before):
        return lambda split: np.zeros((len(split), 1))


competition.recipes["cheat"] = Cheat()
""",
        data=False,
    )
    train("cheat")


def test_the_submission_follows_the_sample_and_not_the_test_file() -> None:
    result = train()
    csv = pd.read_csv(result["submission"], dtype=str)
    sample = pd.read_csv("data/toy/sample_submission.csv", dtype=str)
    test = pd.read_csv("data/toy/test.csv", dtype=str)
    assert csv["id"].tolist() == sample["id"].tolist() != test["id"].tolist()
    answers = np.load(Path(result["folder"]) / "test.npy")[:, 0]
    by_id = dict(zip(test["id"], answers, strict=True))
    np.testing.assert_array_equal(csv["y"].astype(float), [by_id[id] for id in csv["id"]])


def test_repeated_folds_average_a_row_s_answers_and_score_every_fold() -> None:
    more = """
from dataclasses import replace

competition = replace(competition, folds=folds.repeated(folds.shuffled, 2))
"""
    toys.write(Path.cwd(), more, data=False)
    result = train()
    assert len(result["folds"]) == 6
    assert result["coverage"] == 1
    folder = Path(result["folder"])
    answers = [np.load(folder / f"fold{n}-seed0" / "answers.npz") for n in range(6)]
    first = [a["valid"][a["valid_rows"] == 7] for a in answers if 7 in a["valid_rows"]]
    assert len(first) == 2
    np.testing.assert_allclose(np.load(folder / "oof.npy")[7], np.mean(first, axis=0)[0])


# --- recipes that need others -------------------------------------------------------------------


def test_a_blend_trains_what_it_needs_once_and_on_its_own_folds() -> None:
    told = Told()
    mix = train("mix", "folds=4", told=told)
    assert toys.fits() == 8
    line = train("line", "folds=4")
    assert line["trained"] is False
    assert "mix needs line" in told.lines
    manifest = json.loads((Path(mix["folder"]) / "run.json").read_text())
    assert manifest["needs"]["line"] == line["run"]
    assert mix["cv"] <= max(line["cv"], train("curve", "folds=4")["cv"])


def test_needed_recipes_take_the_folds_that_are_the_recipe_s_by_default() -> None:
    more = 'competition.recipes["mix"] = Blend(("line", "curve"), BlendConfig(folds=5, seed=3))\n'
    toys.write(Path.cwd(), more, data=False)
    mix = Path(train("mix")["folder"])
    needs = json.loads((mix / "run.json").read_text())["needs"]
    for name in needs.values():
        assert (mix.with_name(name) / "folds.csv").read_bytes() == (mix / "folds.csv").read_bytes()


def test_one_fold_of_a_blend_needs_all_folds_of_the_others() -> None:
    train("mix", folds=(0,))
    assert toys.fits() == 6


def test_a_blend_learns_from_the_oof_answers_of_its_own_training_rows() -> None:
    mix = Path(train("mix")["folder"])
    needs = json.loads((mix / "run.json").read_text())["needs"]
    oof = np.stack([np.load(mix.with_name(needs[name]) / "oof.npy") for name in ("line", "curve")])
    target = np.load(mix / "target.npy")
    for number, (rows, _) in enumerate(folds.load(mix / "folds.csv")):
        learned = np.load(mix / f"fold{number}-seed0" / "weights.npz")["weights"]
        np.testing.assert_array_equal(learned, mixing.weights(oof[:, rows], target[rows]))


def test_a_blend_refuses_folds_that_leave_rows_without_an_oof_answer() -> None:
    more = """
from dataclasses import replace

competition = replace(competition, folds=folds.hold_out(0.3))
"""
    toys.write(Path.cwd(), more, data=False)
    with pytest.raises(UserError, match="line has no OOF answer for 42 training rows"):
        train("mix")


def test_a_fresh_run_that_two_recipes_need_is_trained_once() -> None:
    more = """
competition.recipes["again"] = Blend(("line", "mix"), BlendConfig(folds=3, final="members"))
"""
    toys.write(Path.cwd(), more, data=False)
    train("again", fresh=True)
    assert toys.fits() == 6


# --- decisions ----------------------------------------------------------------------------------

CHEATING = """
from dataclasses import replace


def shift(target, answers):
    # moves all answers by the mean error of the rows it learns from: a cheat learns its own
    by = float((target - answers).mean()) if len(target) else 0.0
    return lambda answers: answers + by


competition = replace(competition, decision=shift)
"""


def test_a_decision_is_fitted_on_other_rows_than_it_is_scored_on() -> None:
    toys.write(Path.cwd(), CHEATING, data=False)
    result = train()
    folder = Path(result["folder"])
    oof, target = np.load(folder / "oof.npy"), np.load(folder / "target.npy")
    honest = np.empty_like(oof)
    for number in range(3):
        rows = np.load(folder / f"fold{number}-seed0" / "answers.npz")["valid_rows"]
        others = np.setdiff1d(np.arange(60), rows)
        honest[rows] = oof[rows] + (target[others] - oof[others]).mean()
    assert result["cv"] == pytest.approx(np.sqrt(((honest - target) ** 2).mean()))
    for fold in result["folds"]:
        rows = np.load(folder / f"fold{fold['fold']}-seed0" / "answers.npz")["valid_rows"]
        assert fold["score"] == pytest.approx(np.sqrt(((honest - target)[rows] ** 2).mean()))


def test_the_test_s_decision_learns_from_all_oof_answers_also_in_predict() -> None:
    toys.write(Path.cwd(), CHEATING, data=False)
    result = train()
    folder = Path(result["folder"])
    by = (np.load(folder / "target.npy") - np.load(folder / "oof.npy")).mean()
    csv = pd.read_csv(result["submission"]).set_index("id")["y"]
    ids = pd.read_csv("data/toy/test.csv")["id"]
    np.testing.assert_allclose(csv.loc[ids], np.load(folder / "test.npy")[:, 0] + by)
    again = pipeline.predict(Question("toy", result["run"], Path("data/toy")), progress(None))
    assert Path(again["submission"]).read_bytes() == Path(result["submission"]).read_bytes()


# --- data ---------------------------------------------------------------------------------------


def test_without_data_practice_data_are_made_and_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("data")
    Path("elsewhere").mkdir()
    monkeypatch.setenv("KAGGLEKIT_DATA", "elsewhere")
    told = Told()
    result = train(told=told)
    assert told.lines[0].startswith("practice data: data/toy.practice")
    assert result["data"]["kind"] == "practice"
    solution = pd.read_csv("data/toy.practice-answers/solution.csv").set_index("id")["y"]
    csv = pd.read_csv(result["submission"]).set_index("id")["y"]
    errors = csv - solution.loc[csv.index]
    assert result["practice_lb"] == pytest.approx(np.sqrt((errors**2).mean()))


def test_real_data_have_no_practice_score() -> None:
    train()
    problem.practise("toy", problem.find("toy"))
    assert train()["practice_lb"] is None


def test_a_read_only_download_is_never_written(tmp_path: Path) -> None:
    download = tmp_path / "input"
    shutil.move("data/toy", download)
    shutil.make_archive(str(tmp_path / "toy"), "zip", download)
    shutil.rmtree(download)
    download.mkdir()
    shutil.move(tmp_path / "toy.zip", download / "toy.zip")
    download.chmod(0o555)
    before = {path: path.stat().st_mtime_ns for path in [download, *download.rglob("*")]}
    result = train(data=download)
    assert result["data"]["kind"] == "given"
    assert {path: path.stat().st_mtime_ns for path in [download, *download.rglob("*")]} == before
    assert not Path("data/toy.practice").exists()
    download.chmod(0o755)


def test_a_zipped_download_gives_the_answers_of_the_loose_one() -> None:
    loose = content(train())
    shutil.make_archive("toy", "zip", "data/toy")
    Path("zipped").mkdir()
    shutil.move("toy.zip", "zipped/toy.zip")
    assert content(train(data=Path("zipped"))) == loose


def test_variables_move_every_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    shutil.move("data/toy", tmp_path / "downloads" / "toy")
    shutil.rmtree("data")
    for variable, place in [("DATA", "downloads"), ("RUNS", "left"), ("SUBMISSIONS", "csvs")]:
        monkeypatch.setenv(f"KAGGLEKIT_{variable}", str(tmp_path / place))
    result = train()
    assert Path(result["folder"]).is_relative_to(tmp_path / "left")
    assert Path(result["submission"]).is_relative_to(tmp_path / "csvs")
    assert (tmp_path / "left" / "leaderboard.db").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["competitions", "fits.txt"]


# --- predict ------------------------------------------------------------------------------------


def another_test(folder: Path, rows: int) -> pd.DataFrame:
    """A folder with other test rows and no training file; columns in another order."""
    miniatures.function_fitting(folder, 2, 1, 200)
    table = pd.read_csv(folder / "train.csv")[:rows].drop(columns="y")
    table = table.assign(id=table["id"] + 5000)[["x2", "id", "x1"]]
    table.to_csv(folder / "test.csv", index=False)
    table[["id"]].assign(y=0.0).to_csv(folder / "sample_submission.csv", index=False)
    (folder / "train.csv").unlink()
    return table


def test_a_run_answers_another_test_set() -> None:
    result = train("mix")
    table = another_test(Path("later"), 17)
    told = Told()
    made = pipeline.predict(Question("toy", "mix", Path("later")), told)
    assert told.lines == ["data: later (--data)"]
    csv = pd.read_csv(made["submission"])
    assert csv["id"].tolist() == table["id"].tolist()
    assert made["submission"] != result["submission"]
    truth = np.sin(table["x1"] + table["x2"]) + table["x1"]
    assert np.corrcoef(csv["y"], truth)[0, 1] > 0.9


def test_predict_names_a_column_that_the_run_reads() -> None:
    train()
    another_test(Path("later"), 17)
    table = pd.read_csv("later/test.csv").rename(columns={"x2": "z"})
    table.to_csv("later/test.csv", index=False)
    with pytest.raises(UserError, match="lacks the column 'x2'"):
        pipeline.predict(Question("toy", "line", Path("later")), Told())


def test_weights_that_a_run_does_not_read_are_refused() -> None:
    train("mix")
    another_test(Path("later"), 17)
    asked = Question("toy", "mix", Path("later"), weights=Path("x.safetensors"))
    with pytest.raises(UserError, match=r"--weights: mix-\w+ has all that it needs"):
        pipeline.predict(asked, Told())
    assert main(["train", "toy", "line", "--weights", "x.safetensors"]) == 2
    assert main(["certify", "toy", "line", "--weights", "x.safetensors"]) == 2


def test_predict_wants_a_run_that_finished_a_member() -> None:
    toys.trap("fit-interrupt", 1)
    with pytest.raises(KeyboardInterrupt):
        train()
    with pytest.raises(UserError, match="no finished member"):
        pipeline.predict(Question("toy", "line", Path("data/toy")), Told())


# --- what breaks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fold1-seed0/answers.npz", "run.json"])
def test_a_damaged_file_of_a_run_is_named(name: str) -> None:
    result = train()
    path = Path(result["folder"]) / name
    path.write_bytes(path.read_bytes()[:40])
    (Path(result["folder"]) / "oof.npy").unlink()
    with pytest.raises(UserError, match=name.rpartition("/")[2]):
        train()


@pytest.mark.parametrize("name", ["oof.npy", "covered.npy", "test.npy", "scores.json", "csv"])
def test_a_missing_file_of_a_run_is_made_again(name: str) -> None:
    result = train()
    before = content(result)
    path = Path(result["submission"]) if name == "csv" else Path(result["folder"]) / name
    kept = path.read_bytes()
    path.unlink()
    assert content(train()) == before
    assert path.read_bytes() == kept
    assert toys.fits() == 3


def test_an_error_before_the_run_leaves_no_run() -> None:
    for wrong in ({"folds": (7,)}, {"rows": 2}):
        with pytest.raises(UserError):
            train(**wrong)
    assert not Path("runs").exists()
    assert not Path("submissions").exists()


def test_a_submission_folder_that_cannot_be_written_is_found_before_training() -> None:
    Path("submissions").write_text("a file")
    with pytest.raises(UserError, match="submissions"):
        train()
    assert toys.fits() == 0
