"""What a user types, what comes back, and how the command ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import kagglekit
from kagglekit import files
from kagglekit.cli import main
from tests import miniatures, toys

ROOT = Path(__file__).parents[1]


class Ended:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def complaint(self) -> str:
        """The last line on stderr, which is the only one of its kind and no traceback."""
        assert "Traceback" not in self.err
        assert self.out == ""
        (line,) = [line for line in self.err.splitlines() if line.startswith("kagglekit: ")]
        assert self.err.endswith(line + "\n")
        return line


Type = Callable[..., Ended]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Type:
    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.write(project)
    return project


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_shows_every_verb_and_the_exit_codes(arguments: list[str], typed: Type) -> None:
    ended = typed(*arguments)
    assert ended.code == 0
    words = (
        "list",
        "download",
        "train",
        "certify",
        "predict",
        "submit",
        "submissions",
        "leaderboard",
        "runs",
        "clean",
        "practice",
        "doctor",
    )
    for word in (*words, "exit codes"):
        assert word in ended.out


def test_version_is_the_package_s(typed: Type) -> None:
    assert typed("--version").out == f"kagglekit {kagglekit.__version__}\n"


# --- json ---------------------------------------------------------------------------------------


def test_train_json_is_one_document_with_all_that_is_promised(typed: Type) -> None:
    more = "\nprint('a competition that prints')\n"
    toys.write(Path.cwd(), more)
    ended = typed("train", "toy", "--json")
    result = json.loads(ended.out)
    assert {
        "run", "competition", "recipe", "metric", "cv", "folds", "submission", "seconds", "device",
        "precision",
    } <= set(result)  # fmt: skip
    assert len(result["folds"]) == 3
    assert Path(result["submission"]).exists()
    assert (result["competition"], result["recipe"], result["metric"]) == ("toy", "line", "rmse")
    assert "a competition that prints" in ended.err


def test_list_json_names_what_there_is(typed: Type) -> None:
    (entry,) = json.loads(typed("list", "--json").out)["competitions"]
    assert entry["name"] == "toy"
    assert entry["slug"] == "toy-competition"
    assert entry["recipes"] == ["line", "curve", "refitted", "mix"]
    assert entry["data"] == {"folder": "data/toy", "kind": "download"}
    assert entry["best"] is None
    cv = json.loads(typed("train", "toy", "--json").out)["cv"]
    (entry,) = json.loads(typed("list", "--json").out)["competitions"]
    assert entry["best"]["cv"] == cv


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "toy"],
        ["train", "toy"],
        ["predict", "toy", "line", "--data", "data/toy"],
        ["leaderboard"],
        ["leaderboard", "toy", "--rebuild"],
        ["runs"],
        ["runs", "toy", "--all"],
        ["clean", "toy"],
        ["practice", "toy"],
        ["practice", "toy", "functions"],
        ["doctor"],
    ],
)
def test_every_verb_speaks_json_and_to_people(
    arguments: list[str], typed: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kagglekit import doctor

    monkeypatch.setattr(doctor, "examine", lambda: [])
    typed("train", "toy")
    ended = typed(*arguments, "--json")
    assert ended.code == 0
    assert isinstance(json.loads(ended.out), dict)
    shown = typed(*arguments)
    assert shown.code == 0
    assert shown.out.strip() or arguments == ["doctor"]


def test_the_very_first_line_says_which_data(typed: Type) -> None:
    assert typed("train", "toy").err.splitlines()[0] == "data: data/toy"
    assert typed("train", "toy").err.splitlines()[0] == "data: data/toy"


def test_the_second_time_says_that_nothing_was_trained(typed: Type) -> None:
    typed("train", "toy")
    assert "trained already" in typed("train", "toy").err


# --- what can be typed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["curve", "ridge=0.5", "--seeds", "2"],
        ["ridge=0.5", "curve", "--seeds", "2"],
        ["--seeds", "2", "curve", "ridge=0.5"],
        ["curve", "--seeds", "2", "ridge=0.5"],
        ["ridge=0.5", "--seeds", "2", "curve"],
    ],
)
def test_recipe_and_knobs_may_stand_anywhere(arguments: list[str], typed: Type) -> None:
    result = json.loads(typed("train", "toy", *arguments, "--json").out)
    assert (result["recipe"], result["config"]["ridge"]) == ("curve", 0.5)
    assert result["seeds"] == [0, 1]


def test_options_reach_the_run(typed: Type) -> None:
    ended = typed(
        "train", "toy", "--folds", "2,0", "--rows", "30", "--slug", "other", "--fresh", "--json"
    )
    result = json.loads(ended.out)
    assert [fold["fold"] for fold in result["folds"]] == [0, 2]
    assert result["coverage"] < 0.4
    manifest = json.loads((Path(result["folder"]) / "run.json").read_text())
    assert (manifest["slug"], manifest["rows"]) == ("other", 30)
    assert manifest["command"].startswith("kagglekit train toy --folds 2,0")


def test_competitions_may_be_elsewhere(typed: Type, tmp_path: Path) -> None:
    (Path.cwd() / "competitions").rename(tmp_path / "mine")
    ended = typed("list", "--competitions", str(tmp_path / "mine"), "--json")
    assert json.loads(ended.out)["competitions"][0]["name"] == "toy"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "no verb 'trian'; did you mean 'train'?"),
        (["train"], "NAME"),
        (["train", "x=1"], "'x=1' stands where the competition's name should"),
        (["train", "toi"], "no competition 'toi' in competitions; did you mean 'toy'?"),
        (["train", "toy", "lime"], "toy has no recipe 'lime'; did you mean 'line'?"),
        (["train", "toy", "quadratic"], "there are: line, curve, refitted, mix"),
        (["train", "toy", "line", "curve"], "'curve' is neither a recipe nor key=value"),
        (["train", "toy", "rigde=1"], "unknown key 'rigde', did you mean 'ridge'?"),
        (["train", "toy", "ridge=much"], "ridge=much wants a number"),
        (["train", "toy", "ridge=-1"], "ridge=-1 is too small: the least is 0"),
        (["train", "toy", "folds=1"], "folds=1 is too small"),
        (["train", "toy", "final=none"], "final=none is none of members, refit"),
        (["train", "toy", "ridge=1", "ridge=2"], "'ridge' is given twice"),
        (["train", "toy", "--seeds", "0"], "--seeds: '0' is no whole number above zero"),
        (["train", "toy", "--folds", "a"], "--folds: 'a' is no list of fold numbers"),
        (["train", "toy", "--folds", "3"], "--folds 3: there are folds 0 to 2"),
        (["train", "toy", "--colour"], "'--colour' is not known"),
        (["list", "toy", "x=1"], "'x' is not known"),
        (["list", "tox"], "did you mean 'toy'?"),
        (["leaderboard", "tox"], "did you mean 'toy'?"),
        (["train"], "arguments are required: name;"),
        (["compare"], "arguments are required: name;"),
        (["practice-server", "toy", "--port", "70000"], "no port: it goes from 1 to 65535"),
        (["practice", "tox"], "did you mean 'toy'?"),
        (["practice", "toy", "digits"], "no practice data 'digits'; there are: functions"),
        (["predict", "toy", "line"], "--data"),
        (["predict", "toy", "line", "--data", "data/toy"], "no run 'line' of toy"),
    ],
)
def test_a_typing_error_is_one_sentence_that_says_what_to_do(
    arguments: list[str], words: str, typed: Type
) -> None:
    ended = typed(*arguments)
    assert ended.code == 2
    assert words.lower() in ended.complaint.lower()
    assert not Path("runs").exists()
    assert not Path("submissions").exists()


def test_a_project_without_competitions_says_where_to_go(
    typed: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "nowhere")
    ended = typed("train", "toy")
    assert (ended.code, "no folder nowhere" in ended.complaint) == (2, True)


# --- bad input ----------------------------------------------------------------------------------


def edit(name: str, change: Callable[[pd.DataFrame], pd.DataFrame], **how: Any) -> None:
    path = Path("data/toy") / name
    change(pd.read_csv(path, dtype=str)).to_csv(path, index=False, **how)


def spoil(column: str, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[4, column] = value
        return table

    return change


BAD = {
    "a wrong delimiter": (lambda: edit("train.csv", lambda t: t, sep=";"), "semicolons"),
    "a missing column": (lambda: edit("train.csv", lambda t: t.drop(columns="x2")), "'x2'"),
    "a missing target": (lambda: edit("train.csv", lambda t: t.drop(columns="y")), "'y'"),
    "a duplicate id": (lambda: edit("train.csv", spoil("id", "7")), "'7' more than once"),
    "a NaN target": (lambda: edit("train.csv", spoil("y", "")), "row 5"),
    "an infinite target": (lambda: edit("train.csv", spoil("y", "inf")), "row 5"),
    "a word for a number": (lambda: edit("test.csv", spoil("x1", "far")), "'far'"),
    "fewer rows than folds": (lambda: edit("train.csv", lambda t: t[:2]), "fewer than folds=3"),
    "an empty test": (lambda: edit("test.csv", lambda t: t[:0]), "test.csv"),
    "an empty file": (lambda: Path("data/toy/train.csv").write_text(""), "train.csv is empty"),
    "a sample that lacks rows": (
        lambda: edit("sample_submission.csv", lambda t: t[3:]),
        "lacks 3 of its ids",
    ),
    "no sample": (lambda: Path("data/toy/sample_submission.csv").unlink(), "sample_submission"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(fault: str, typed: Type) -> None:
    spoiling, words = BAD[fault]
    spoiling()  # type: ignore[no-untyped-call]
    ended = typed("train", "toy", "--json")
    assert ended.code == 2
    assert words in ended.complaint
    assert not Path("runs").exists()
    assert not Path("submissions").exists()


@pytest.mark.parametrize("data", ["nowhere", "empty", "data/toy/train.csv"])
def test_a_data_folder_that_is_none_is_named(data: str, typed: Type) -> None:
    Path("empty").mkdir()
    ended = typed("train", "toy", "--data", data)
    assert ended.code == 2
    assert data in ended.complaint


def test_broken_zips_are_named(typed: Type) -> None:
    import shutil
    import zipfile

    shutil.make_archive("toy", "zip", "data/toy")
    for fault in ("cut", "escapes"):
        Path(fault).mkdir()
    whole = Path("toy.zip").read_bytes()
    Path("cut/toy.zip").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile("escapes/toy.zip", "w") as archive:
        archive.writestr("../train.csv", "id,x1,x2,y\n")
    for fault, words in (("cut", "no whole zip"), ("escapes", "'../train.csv'")):
        ended = typed("train", "toy", "--data", fault)
        assert ended.code == 2
        assert f"{fault}/toy.zip" in ended.complaint
        assert words in ended.complaint
    assert not Path("train.csv").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize("folder", ["runs", "submissions", "cache"])
def test_a_folder_that_cannot_be_written_is_named(
    folder: str, typed: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken").write_text("a file")
    monkeypatch.setattr(files, "_RACE_SECONDS", -1)  # so that the cache is to remember new files
    monkeypatch.setenv(f"KAGGLEKIT_{folder.upper()}", "taken")
    ended = typed("train", "toy")
    assert ended.code == 2
    assert "taken" in ended.complaint
    assert toys.fits() == 0
    assert not list(Path("submissions").glob("**/*.csv"))


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(
    typed: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ended = typed("train", "toy")
    assert ended.code == 2
    assert "disk" in ended.complaint
    assert "full" in ended.complaint
    assert list(Path().glob("runs/**/*.tmp")) == []
    assert typed("train", "toy").code == 0


def test_a_class_absent_from_a_fold_and_broken_pictures_are_named(
    typed: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", str(ROOT / "competitions"))
    miniatures.mics_mnist(Path("rare"))
    table = pd.read_csv("rare/train.csv")
    table.loc[0, "label"] = 9
    table.to_csv("rare/train.csv", index=False)
    ended = typed("train", "mics_mnist", "--data", "rare")
    assert (ended.code, "class '9' has 1 training rows" in ended.complaint) == (2, True)
    for content in (b"", b"\x89PNG\r\n\x1a\nbroken"):
        folder = Path("pictures")
        for part in ("train/a", "test"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / "1.png").write_bytes(content)
        (folder / "sample_submission.csv").write_text("id,label\n1,a\n")
        ended = typed("train", "mics_mnist", "--data", "pictures")
        assert ended.code == 2
        assert "1.png" in ended.complaint
    assert not Path("runs").exists()


# --- bugs in a competition's code ---------------------------------------------------------------


def test_a_bug_in_a_competition_shows_a_traceback_that_starts_there(typed: Type) -> None:
    more = "\nfrom dataclasses import replace\ncompetition = replace(competition, load=len)\n"
    toys.write(Path.cwd(), more.replace("load=len", "load=lambda folder: 1 / 0"))
    ended = typed("train", "toy")
    assert ended.code == 1
    trace = ended.err[ended.err.index("Traceback") :].splitlines()
    assert "competitions/toy/__init__.py" in trace[1]
    assert trace[-1] == "ZeroDivisionError: division by zero"
    assert sum("File " in line for line in trace) == 1


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("\ncompetition = = 3\n", "SyntaxError: invalid syntax"),
        ("\nimport no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("\nopen('no such file')\n", "FileNotFoundError"),
    ],
)
def test_code_that_cannot_be_imported_shows_where(code: str, last: str, typed: Type) -> None:
    toys.write(Path.cwd(), code)
    ended = typed("train", "toy")
    assert ended.code == 1
    first = next(line for line in ended.err.splitlines() if "File " in line)
    assert "competitions/toy/__init__.py" in first
    assert ended.err.splitlines()[-1].startswith(last)
    listed = json.loads(typed("list", "--json").out)["competitions"]
    assert last.partition(":")[0] in listed[0]["error"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("\ndel competition\n", "must define `competition = Competition(...)`"),
        ("\ncompetition.recipes.clear()\n", "`recipes` is empty"),
        (
            "\nfrom dataclasses import replace as r\ncompetition = r(competition, public_share=30)",
            "public_share=30 is no share of the test rows",
        ),
        ("\ncompetition.recipes['mix'] = Blend(('lime',))\n", "did you mean 'line'?"),
        ("\ncompetition.recipes['mix'] = Blend(('mix',))\n", "mix → mix"),
    ],
)
def test_a_competition_that_is_none_says_what_it_lacks(code: str, words: str, typed: Type) -> None:
    toys.write(Path.cwd(), code)
    ended = typed("train", "toy")
    assert ended.code == 2
    assert words in ended.complaint


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "code"), [("interrupt", 130), ("term", 143)])
def test_an_interrupted_command_says_how_to_go_on(end: str, code: int, typed: Type) -> None:
    before = signal.getsignal(signal.SIGTERM)
    toys.trap(f"fit-{end}", 2)
    ended = typed("train", "toy", "ridge=0.5", "--fresh")
    assert ended.code == code
    assert "`kagglekit train toy ridge=0.5` goes on" in ended.complaint
    assert signal.getsignal(signal.SIGTERM) == before
    assert typed("train", "toy", "ridge=0.5").code == 0
    assert toys.fits() == 3


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "kagglekit", "list", "toy"], stdout=writer, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_control_characters_of_a_file_never_reach_the_terminal(capsys):
    assert main(["train", "toy", "line", "\x1b[2J\u202eseed=1"]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "\u202e" not in told


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise_before_torch_reads_it(
    given: dict[str, str], spins: str | None
) -> None:
    watched = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in watched}
    program = (
        "import contextlib, os, sys; from kagglekit import cli\n"
        "with contextlib.suppress(SystemExit): cli.main(['--version'])\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env={**environment, **given, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1] == str(spins)
