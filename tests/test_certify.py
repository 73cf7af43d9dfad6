"""Runs are really killed here, and what certify says of them is true."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from kagglekit import certify, folders, leaderboard
from kagglekit import run as runs
from kagglekit.certify import CertifyError, Difference, Home, Request
from kagglekit.cli import main
from kagglekit.errors import UserError
from tests import miniatures, toys
from tests.conftest import ROOT

NETWORKS = '''"""A function of two variables, learned in every way that a training can be broken."""

import torch
from torch import nn
from torch.utils.data import Dataset

from kagglekit import (
    Blend, BlendConfig, Competition, Config, Network, NetworkConfig, folds, metrics, regression,
    submission, tables,
)


class Noisy(Dataset):
    """Rows with noise drawn anew in every epoch."""

    def __init__(self, split):
        self.rows = split.tensors()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        inputs, *rest = self.rows[row]
        return inputs + 0.01 * torch.randn(inputs.shape), *rest


def small(config, task):
    return nn.Sequential(
        nn.Linear(task.inputs[0], 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, task.outputs)
    )


def rows(split, config):
    return split.tensors()


def network(dataset=rows, **knobs):
    quick = {"folds": 2, "epochs": 3, "batch_size": 10, "lr": 1e-2, "precision": "fp32"}
    return Network(dataset, small, regression, NetworkConfig(**{**quick, **knobs}))


competition = Competition(
    slug="networks",
    load=tables.regression,
    folds=folds.shuffled,
    metric=metrics.rmse,
    submission=submission.numbers(),
    recipes={
        "streamed": network(
            lambda split, config: Noisy(split), data="streamed", workers=2, checkpoint_seconds=0
        ),
        "mixed": network(
            precision="bf16", data="resident", ema=0.9, mixup=0.2, accumulate=2,
            checkpoint_seconds=0,
        ),
        "newton": network(
            polish=3, polish_method="gauss_newton", final="refit", epochs=2, checkpoint_seconds=0
        ),
        "lbfgs": network(polish=3, epochs=2, patience=2, checkpoint_seconds=0),
        "unsaved": network(),
        "cohort": network(
            folds=3, ema=0.9, mixup=0.2, accumulate=2, patience=2, polish=2, checkpoint_seconds=0
        ),
        "everything": Blend(
            ("streamed", "mixed", "newton", "lbfgs"), BlendConfig(folds=2, final="members")
        ),
    },
)
'''

STAGES = ("load", "train", "save", "predict", "write")

FAULTY = """
import os
import time
from pathlib import Path
from kagglekit import Estimator


def forgetful(x, y, seed):
    # a third fit in the same runs folder is one that was begun before
    fits = Path(os.environ["KAGGLEKIT_RUNS"]) / "../fits"
    with fits.open("a") as handle:
        handle.write("x")
    time.sleep(0.2)
    return 1e-9 * (os.getpid() % 1000 + 1) * (fits.stat().st_size > 2)


def failing(x, y, seed):
    print("nothing is here")
    raise ZeroDivisionError("a bug")


def hanging(x, y, seed):
    time.sleep(600)


class Faulty(Line):
    def fit(self, x, y, seed):
        learned = super().fit(x, y, seed)
        return {"weights": learned["weights"] + globals()[self.power](x, y, seed)}

    def columns(self, x):
        return Line(1, self.ridge).columns(x)


for name in ("forgetful", "failing", "hanging"):
    competition.recipes[name] = Estimator(
        lambda config, name=name: Faulty(name, config.ridge), LineConfig(folds=2)
    )
"""


@pytest.fixture(autouse=True)
def alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes that are started
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    toys.write(project, FAULTY)
    home = project / "competitions" / "networks"
    home.mkdir()
    (home / "__init__.py").write_text(NETWORKS)
    miniatures.function_fitting(project / "data" / "networks", 2, 1, 60)


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Exit code and JSON of a command."""
    capsys.readouterr()
    code = main([*arguments, "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else printed.err


# --- the law ------------------------------------------------------------------------------------


def test_networks_killed_in_every_stage_end_with_the_bytes_of_an_unbroken_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One by one: streamed with workers, resident, fp32, bf16, both polishes, a refit."""
    code, certificate = typed(
        capsys, "certify", "networks", "everything", "--rows", "40", "--kills", "15"
    )
    assert (code, certificate["differences"]) == (0, [])
    assert certificate["equal"] is True
    assert certificate["kills"]["done"] >= 15
    hits = certificate["hits"]
    assert sum(hits.values()) == certificate["kills"]["done"]
    assert all(hits[stage] >= 3 for stage in STAGES), hits
    assert certificate["finished"] >= 1
    assert certificate["command"] == ("kagglekit train networks everything --rows 40 --json")

    # kept beside the user's runs, and no run of theirs
    run = certificate["run"]
    kept = Path("runs/networks/certified") / run
    assert certificate["folder"] == str(kept)
    assert json.loads((kept / "certificate.json").read_text()) == certificate
    assert {"run.json", "oof.npy", "fold0-seed0", f"{run}.csv"} <= set(os.listdir(kept))
    assert os.listdir(kept.parent) == [run]
    assert leaderboard.rows(folders.runs()) == []
    assert leaderboard.rebuild(folders.runs(), folders.submissions()) == 0
    assert not list(Path("submissions").rglob("*.csv"))
    with pytest.raises(UserError, match="no run"):
        runs.find(folders.runs(), "networks", run)


@pytest.mark.parametrize("engine", ["stacked", "streams"])
def test_a_cohort_killed_in_every_stage_ends_with_the_bytes_of_an_unbroken_run(
    engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, certificate = typed(
        capsys, "certify", "networks", "cohort", f"engine={engine}", "--rows", "60", "--kills", "5"
    )
    assert (code, certificate["differences"]) == (0, [])
    assert all(certificate["hits"][stage] for stage in STAGES), certificate["hits"]
    told = json.loads((Path(certificate["folder"]) / "engine.json").read_text())
    assert {choice["engine"] for choice in told["cohorts"]} == {engine}, told
    assert sum(len(choice["members"]) for choice in told["cohorts"]) == 2


def test_a_recipe_that_answers_otherwise_when_begun_again_is_found_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, certificate = typed(
        capsys, "certify", "toy", "forgetful", "--rows", "40", "--kills", "8", "--seed", "3"
    )
    assert code == 1
    assert certificate["equal"] is False
    found = {item["file"].rpartition("/")[2] for item in certificate["differences"]}
    assert "learned.npz" in found
    assert "test.npy" in found
    assert not Path("runs/toy/certified").exists()
    kept = Path(certificate["folder"])
    assert {"whole", "broken", "certificate.json"} <= set(os.listdir(kept))
    shutil.rmtree(kept)


# --- children that do not do as they should -----------------------------------------------------


@pytest.fixture
def campaign(tmp_path: Path) -> Any:
    def of(recipe: str) -> Any:
        request = Request("toy", recipe)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        made = certify._Campaign(request, certify.command(request), scratch, lambda line: None)
        made.broken.folder.mkdir()
        return made

    return of


def test_a_child_that_fails_is_reported_with_what_it_said(campaign: Any) -> None:
    with pytest.raises(CertifyError, match="failed by itself") as caught:
        campaign("failing")._child(None)
    assert "exit code 1" in str(caught.value)
    assert "nothing is here" in str(caught.value)
    assert "ZeroDivisionError: a bug" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_child_that_hangs_is_ended_and_reported(
    campaign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certify, "_SLACK", 2.0)
    made = campaign("hanging")
    with pytest.raises(CertifyError, match="where the unbroken one took 0 s in all: it hangs"):
        made._child(None)


def test_an_unbroken_run_that_fails_is_told_as_train_tells_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("data: here\nkagglekit: 3 rows leave fold 0 no training rows\n")
    with pytest.raises(UserError, match=r"^3 rows leave fold 0 no training rows$"):
        certify._refuse(2, log)
    with pytest.raises(CertifyError, match=r"(?s)exit code 1.*data: here"):
        certify._refuse(1, log)
    with pytest.raises(CertifyError, match="signal 9"):
        certify._refuse(-9, log)


def test_a_failure_keeps_the_scratch_folder_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(campaign: Any) -> None:
        raise CertifyError("a run hangs")

    monkeypatch.setattr(certify._Campaign, "fight", fail)
    with pytest.raises(CertifyError, match="a run hangs; all is kept in ") as caught:
        certify.certify(Request("toy"))
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert (kept / "stages").is_fifo()
    shutil.rmtree(kept)


def test_without_sigkill_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGKILL")
    with pytest.raises(UserError, match="run it on Linux or macOS"):
        certify.certify(Request("toy"))


# --- what is trained ----------------------------------------------------------------------------


def test_knobs_are_lowered_where_the_user_says_nothing() -> None:
    words = certify.command(Request("networks", "unsaved", ("folds=3",), rows=30))
    assert words == [
        "train",
        "networks",
        "unsaved",
        "folds=3",
        "checkpoint_seconds=0",
        "engine=stacked",
        "--rows",
        "30",
        "--json",
    ]
    words = certify.command(Request("networks", "mixed", ("epochs=50", "lr=0.1", "polish=9")))
    assert {"epochs=50", "lr=0.1", "polish=9"} <= set(words)
    assert not [word for word in words if word in ("epochs=3", "polish=4")]
    words = certify.command(Request("toy", folds=(0, 2), seeds=2, data=Path("data/toy")))
    assert words == [
        "train", "toy", "line", "--rows", "240", "--folds", "0,2", "--seeds", "2",
        "--data", "data/toy", "--json",
    ]  # fmt: skip


def test_the_core_s_recipes_become_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", str(ROOT / "competitions"))
    words = certify.command(Request("fit_1d", "neural"))
    short = {"epochs=3", "polish=4", "copies=2", "folds=2", "checkpoint_seconds=0"}
    assert short <= set(words)
    assert "trees=40" in certify.command(Request("fit_5d", "boosting"))
    assert "min_steps=0" in certify.command(Request("mics_mnist", "cnn_small"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["certify", "toy", "lime"], "no recipe 'lime'; did you mean 'line'?"),
        (["certify", "toy", "line", "ridgee=1"], "unknown key 'ridgee', did you mean 'ridge'?"),
        (["certify", "toy", "--kills", "0"], "'0' is no whole number above zero"),
        (["certify", "ridge=1"], "kagglekit certify NAME"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("runs").exists()


# --- equal to the byte --------------------------------------------------------------------------


@pytest.fixture
def homes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Home, Home]:
    """The same run in two homes, trained at two times."""
    made = []
    for name in ("whole", "broken"):
        home = Home(tmp_path / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KAGGLEKIT_RUNS", str(home.runs))
            patch.setenv("KAGGLEKIT_SUBMISSIONS", str(home.submissions))
            assert main(["train", "networks", "mixed", "--rows", "40", "--json"]) == 0
        made.append(home)
    capsys.readouterr()
    return made[0], made[1]


def differing(homes: tuple[Home, Home]) -> list[Difference]:
    return [
        Difference(item.file.rpartition("/")[2], item.what)
        for item in certify.differing(*homes, "networks")
    ]


def run_of(home: Home) -> Path:
    (manifest,) = home.runs.glob("*/*/run.json")
    return manifest.parent


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_runs_made_at_two_times_in_two_places_are_equal(homes: tuple[Home, Home]) -> None:
    one, other = (run_of(home) / "run.json" for home in homes)
    assert one.read_bytes() != other.read_bytes()
    assert differing(homes) == []


def test_a_flipped_byte_is_found_and_where(homes: tuple[Home, Home]) -> None:
    for name in ("oof.npy", "fold0-seed0/weights.safetensors", "folds.csv"):
        path = run_of(homes[1]) / name
        content = path.read_bytes()
        path.write_bytes(content[:-7] + bytes([content[-7] ^ 1]) + content[-6:])
        file = name.rpartition("/")[2]
        assert differing(homes) == [Difference(file, f"differs from byte {len(content) - 7} on")]
        path.write_bytes(content + b"\n")
        (found,) = differing(homes)
        assert found.what == (
            f"differs from byte {len(content)} on ({len(content) + 1} bytes for {len(content)})"
        )
        path.write_bytes(content)


def test_a_changed_csv_is_found(homes: tuple[Home, Home]) -> None:
    (csv,) = homes[1].submissions.rglob("*.csv")
    csv.write_text(csv.read_text() + "1,2\n")
    (found,) = differing(homes)
    assert found.file == csv.name


def test_a_missing_file_and_what_is_left_over_are_found(homes: tuple[Home, Home]) -> None:
    folder = run_of(homes[1])
    (folder / "test.npy").unlink()
    (folder / "fold1-seed0" / ".ab.tmp").touch()
    (folder / "fold1-seed0" / "checkpoint.bin").touch()
    (folder / "fold2-seed0").mkdir()
    assert differing(homes) == [
        Difference(".ab.tmp", "is left over"),
        Difference("checkpoint.bin", "is left over"),
        Difference("fold2-seed0", "is left over"),
        Difference("test.npy", "is missing"),
    ]


def test_times_may_differ_and_nothing_else_in_their_files(homes: tuple[Home, Home]) -> None:
    folder = run_of(homes[1])
    scores = json.loads((folder / "scores.json").read_text())
    changed(folder / "scores.json", f'"seconds": {scores["seconds"]}', '"seconds": 12345.0')
    assert differing(homes) == []
    changed(folder / "scores.json", f'"mean": {scores["mean"]}', '"mean": 0.25')
    found = differing(homes)
    assert found == [Difference("scores.json", f"mean: 0.25 for {scores['mean']}")]


def test_a_leaderboard_that_shows_another_score_is_found(homes: tuple[Home, Home]) -> None:
    with sqlite3.connect(homes[1].runs / leaderboard.DATABASE) as database:
        database.execute("UPDATE runs SET cv = 0.25, seconds = 9")
    database.close()
    (found,) = differing(homes)
    assert found.file == "leaderboard"
    assert found.what.startswith("[0].cv: 0.25 for ")


def test_a_run_noted_as_unfinished_differs_from_a_finished_one(homes: tuple[Home, Home]) -> None:
    manifest = run_of(homes[1]) / "run.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**told, "finished": None}))
    assert "run.json" in [item.file for item in differing(homes)]
    manifest.write_text("{")
    assert any("is no JSON" in item.what for item in differing(homes))


def test_an_epoch_done_twice_may_stand_twice_in_the_history_but_not_with_another_loss(
    homes: tuple[Home, Home],
) -> None:
    history = run_of(homes[1]) / "history.jsonl"
    lines = history.read_text().splitlines()
    history.write_text("\n".join([*lines[:2], lines[1], *lines[2:]]) + "\n")
    assert differing(homes) == []
    again = json.dumps({**json.loads(lines[1]), "loss": 7.0})
    history.write_text("\n".join([*lines[:2], again, *lines[2:]]) + "\n")
    (found,) = differing(homes)
    assert found.file == "history.jsonl"
    history.write_text("\n".join(lines[1:]) + "\n")
    assert differing(homes) != []
