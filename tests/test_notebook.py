"""A run as a Kaggle notebook: executed offline where kagglekit is not installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest

from kagglekit import cli, files, notebook, wheel
from kagglekit.errors import UserError
from kagglekit.run import Run
from tests import miniatures

# a network of its own, in which nothing but this machine's own addresses can be reached
ALONE = """
import ctypes, fcntl, os, socket, struct, sys
if ctypes.CDLL(None).unshare(0x50000000) == 0:  # CLONE_NEWUSER | CLONE_NEWNET
    with socket.socket() as any:
        fcntl.ioctl(any, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
os.execv(sys.argv[1], sys.argv[1:])
"""
EXECUTE = "from nbclient.cli import main; main()"


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has all that kagglekit needs, but no kagglekit."""
    folder = tmp_path_factory.mktemp("bare")
    libraries = folder / "libraries"
    libraries.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "kagglekit" not in entry.name and entry.name != "pip":
            (libraries / entry.name).symlink_to(entry)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    home = Path(sysconfig.get_path("purelib", "venv", paths))
    (home / "libraries.pth").write_text(f"{libraries}\n")
    return python


COMPETITION = """
from kagglekit import Blend, BlendConfig, Competition, fitting, folds, metrics, submission, tables
from .._learners import trees

competition = Competition(
    slug="a-wave", load=tables.regression, folds=folds.shuffled, metric=metrics.rmse,
    submission=submission.numbers(),
    recipes={
        "network": fitting.neural(folds=2, epochs=2, sines=4, tanhs=2, polish=1),
        "trees": trees,
        "both": Blend(("network", "trees"), BlendConfig(folds=2)),
    },
)
"""
SHARED = """
from kagglekit import fitting

trees = fitting.boosting(folds=2, trees=5)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished blend of a competition that uses code beside its folder."""
    project = tmp_path_factory.mktemp("trained")
    home = project / "competitions" / "wave"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(COMPETITION)
    (home.parent / "_learners.py").write_text(SHARED)
    miniatures.function_fitting(project / "data" / "wave", 2, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("KAGGLEKIT_COMPETITIONS", str(home.parent))
        patch.setenv("KAGGLEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KAGGLEKIT_WEIGHTS", "")
        for name in ("DATA", "RUNS", "SUBMISSIONS"):
            patch.delenv(f"KAGGLEKIT_{name}", raising=False)
        assert cli.main(["train", "wave", "both"]) == 0
    return project


@pytest.fixture
def run(trained: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of that blend's run, in a project of the test's own."""
    shutil.copytree(trained, project, dirs_exist_ok=True)
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", str(project / "competitions"))
    (csv,) = Path("submissions", "wave").glob("both-*.csv")
    return csv.stem


def on_kaggle(made: Path, slug: str, data: Path, folder: Path) -> Path:
    """What Kaggle's machine sees under /kaggle/input."""
    inputs = folder / "input"
    name = json.loads((made / "dataset" / "dataset-metadata.json").read_text())["id"]
    shutil.copytree(made / "dataset", inputs / "datasets" / name)
    shutil.copytree(data, inputs / slug)
    return inputs


def execute(python: Path, made: Path, inputs: Path) -> subprocess.CompletedProcess[str]:
    """Run the notebook from its first cell to its last, as Kaggle does."""
    (source,) = (made / "notebook").glob("*.ipynb")
    working = inputs.with_name("working")
    working.mkdir()
    shutil.copy(source, working / "notebook.ipynb")
    kept = ("PATH", "HTTP_PROXY", "HTTPS_PROXY", "OMP_NUM_THREADS")
    mine = {name: os.environ[name] for name in kept if name in os.environ}
    mine |= {"HOME": str(inputs.with_name("home")), "KAGGLE_INPUT": str(inputs)}
    return subprocess.run(
        [sys.executable, "-c", ALONE, str(python), "-c", EXECUTE, "--inplace", "notebook.ipynb"],
        cwd=working, env=mine, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_notebook_gives_the_runs_own_submission_offline(
    run: str, bare: Path, tmp_path: Path
) -> None:
    result = notebook.write("wave", run, "jane")
    made = Path(result["folder"])
    inputs = on_kaggle(made, "a-wave", Path("data/wave"), tmp_path)
    ended = execute(bare, made, inputs)
    assert ended.returncode == 0, ended.stderr
    told = (tmp_path / "working" / "submission.csv").read_bytes()
    assert told == Path("submissions", "wave", f"{run}.csv").read_bytes()


def test_what_is_written_is_what_kaggle_takes(run: str) -> None:
    made = Path(notebook.write("wave", run, "jane")["folder"])
    kernel = json.loads((made / "notebook" / "kernel-metadata.json").read_text())
    dataset = json.loads((made / "dataset" / "dataset-metadata.json").read_text())
    nbformat.validate(nbformat.read(made / "notebook" / kernel["code_file"], as_version=4))
    assert kernel["dataset_sources"] == [dataset["id"]]
    assert kernel["competition_sources"] == ["a-wave"]
    assert (kernel["enable_internet"], kernel["is_private"]) == (False, True)
    for told in (kernel, dataset):
        assert re.sub("[^a-z0-9]+", "-", told["title"]) == told["id"].removeprefix("jane/")
    assert not any(path.is_dir() for path in (made / "dataset").iterdir())  # Kaggle skips folders


def test_no_answer_is_in_the_dataset(run: str) -> None:
    made = Path(notebook.write("wave", run, "jane")["folder"])
    with zipfile.ZipFile(made / "dataset" / notebook.PACK) as pack:
        names = {Path(name).name for name in pack.namelist()}
    assert {"_learners.py", "run.json", "weights.safetensors"} <= names
    assert not names & {"answers.npz", "test.npy", f"{run}.csv", "run.log"}


def test_the_views_that_the_run_keeps_are_in_the_dataset_and_its_own_answers_are_not(
    run: str,
) -> None:
    home = Path("runs", "wave", run)
    (home / "views.json").write_text('{"kept": ["original"], "folds": {}}')
    told = {**Run(home).manifest(), "views": Run(home).views_digest()}
    files.write_json(home / "run.json", told)
    (member,) = home.glob("all-*")
    (member / "test-views.npy").write_bytes(b"answers")
    made = Path(notebook.write("wave", run, "jane")["folder"])
    with zipfile.ZipFile(made / "dataset" / notebook.PACK) as pack:
        names = pack.namelist()
    assert f"runs/wave/{run}/views.json" in names  # without it all views would answer there
    assert not any(name.endswith("test-views.npy") for name in names)


def test_writing_it_again_changes_nothing_and_what_was_edited_is_kept(run: str) -> None:
    first = notebook.write("wave", run, "jane")
    (source,) = Path(first["folder"], "notebook").glob("*.ipynb")
    before = source.stat()
    assert notebook.write("wave", run, "jane")["kept"] is None
    after = source.stat()  # it may have been read: that changes a third time
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    source.write_text("mine")
    kept = notebook.write("wave", run, "jane")["kept"]
    assert Path(kept, "notebook", source.name).read_text() == "mine"
    assert sorted(path.name for path in Path(first["folder"]).parent.glob(".*")) == []


@pytest.mark.parametrize(
    ("slug", "said"),
    [("a-wave", "is not of this notebook: upload both again"), ("other", "'Add Input'")],
)
def test_what_is_attached_wrongly_is_said(
    run: str, slug: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path(notebook.write("wave", run, "jane")["folder"])
    with (made / "dataset" / notebook.PACK).open("ab") as pack:
        pack.write(b"more")
    inputs = on_kaggle(made, slug, Path("data/wave"), tmp_path)
    monkeypatch.setenv("KAGGLE_INPUT", str(inputs))
    (source,) = (made / "notebook").glob("*.ipynb")
    cells = [cell.source for cell in nbformat.read(source, as_version=4).cells[1:]]
    with pytest.raises(SystemExit, match=said):
        exec("\n".join(cells), {})


def test_a_user_has_to_be_known(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    with pytest.raises(UserError, match="--user NAME"):
        notebook.write("wave", run, None)
    with pytest.raises(UserError, match="is no Kaggle name"):
        notebook.write("wave", run, "jane doe")
    monkeypatch.setenv("KAGGLE_USERNAME", "mary")
    monkeypatch.setenv("KAGGLE_KEY", "0" * 32)
    assert notebook.write("wave", None, None)["notebook"].startswith("mary/wave-")


def test_an_unfinished_run_gives_no_notebook(run: str) -> None:
    told = Path("runs", "wave", run, "run.json")
    told.write_text(json.dumps({**json.loads(told.read_text()), "finished": None}))
    with pytest.raises(UserError, match="is not finished"):
        notebook.write("wave", run, "jane")


def test_long_names_fit_into_kaggles_fifty_letters() -> None:
    slug = notebook._slug("a_competition_with_a_very_long_name", "convnext_tiny_large-0123abcd")
    assert len(slug) <= 50
    assert slug.endswith("-0123abcd")


def test_the_wheel_is_the_same_each_time_and_holds_all_files(tmp_path: Path) -> None:
    one, two = wheel.write(tmp_path / "a"), wheel.write(tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        names = archive.namelist()
    assert {"kagglekit/cli.py", "kagglekit/templates/notebook_cells.py"} <= set(names)
    assert not any("__pycache__" in name for name in names)
