"""Glasses: practice data that have to be looked at, and a start from what is here."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kagglekit import cli, folds, notebook, problem
from kagglekit.config import Config
from tests import miniatures
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
GIVEN = SHARED / "weights" / "mobilenetv2_100_imagenet.safetensors"
HERE = GIVEN.exists() and (SHARED / "data" / "glasses").exists()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Practice data of fewer people than usual, drawn once."""
    from competitions.glasses import practice

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(practice, "_PEOPLE", 36)
    monkeypatch.setattr(practice, "_TEST_PEOPLE", 2)

    folder = tmp_path_factory.mktemp("glasses")
    for part in ("data", "answers"):
        (folder / part).mkdir()
    practice.write(folder / "data", folder / "answers")
    monkeypatch.undo()
    return folder


def grouped_accuracy(features: np.ndarray, target: np.ndarray, people: np.ndarray) -> float:
    """OOF accuracy of boosted trees, which find what a line cannot; people stay together."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

    rule = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    learner = HistGradientBoostingClassifier(max_iter=30)
    return float(cross_val_score(learner, features, target, groups=people, cv=rule).mean())


def test_practice_faces_cannot_be_told_by_colour_size_or_file_name(drawn):
    table = pd.read_csv(drawn / "data" / "train.csv")
    cheats = []
    for id, label in zip(table["id"], table["label"], strict=True):
        path = drawn / "data" / "train" / label / id
        pixels = np.asarray(Image.open(path), float)
        assert pixels.shape == (112, 92, 3)
        colours = [*pixels.mean((0, 1)), *pixels.std((0, 1)), *np.quantile(pixels, [0.02, 0.98])]
        size = [path.stat().st_size]
        name = [*map(ord, id[:10]), zlib.crc32(id.encode()) % 1000]
        cheats.append([*colours, *size, *name, len(cheats)])
    target, people = (table["label"] == "glasses").to_numpy(int), table["subject"].to_numpy()
    assert 0.4 < target.mean() < 0.6
    assert grouped_accuracy(np.array(cheats), target, people) < 0.65
    # nor by the picture at large: someone has to look at the eyes
    answers = pd.read_csv(drawn / "answers" / "solution.csv")
    assert list(answers["id"]) == list(pd.read_csv(drawn / "data" / "sample_submission.csv")["id"])
    assert len(list((drawn / "data" / "test").iterdir())) == len(answers)


def test_practice_faces_are_the_same_each_time(drawn, tmp_path):
    from competitions.glasses import practice

    rng = np.random.default_rng(1)
    first = practice.portrait(practice.someone(rng, 1), True, rng).tobytes()
    rng = np.random.default_rng(1)
    assert practice.portrait(practice.someone(rng, 1), True, rng).tobytes() == first


def test_no_person_is_on_both_sides_of_a_fold(monkeypatch):
    miniatures.glasses(Path("data/glasses"))
    data = problem.load(problem.find("glasses"), Path("data/glasses"))
    for train, valid in folds.split(data, Config(folds=4), problem.find("glasses").folds):
        people = data.train["subject"]
        assert not set(people.iloc[train]) & set(people.iloc[valid])


def test_practice_without_weights_starts_from_nothing_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    miniatures.glasses(Path("data/glasses.practice"))
    assert cli.main(["train", "glasses", "epochs=1", "folds=2", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["recipe"] == "scratch"
    assert "no pretrained weights here: taking scratch (probe is the default" in printed.err


def test_real_data_without_weights_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    miniatures.glasses(Path("data/glasses"))
    assert cli.main(["train", "glasses"]) == 2
    assert "with --weights PATH" in capsys.readouterr().err


def test_weights_for_a_recipe_that_reads_none_are_refused(capsys):
    miniatures.glasses(Path("data/glasses"))
    tiny = str(miniatures.weights(Path("test_resnet.safetensors")))
    assert cli.main(["train", "glasses", "scratch", "--weights", tiny]) == 2
    assert "scratch of glasses starts from no pretrained weights" in capsys.readouterr().err


def test_a_choice_is_made_without_the_rows_that_are_scored(monkeypatch):
    """Other targets on the validation rows change nothing that a fold's probe learns."""
    miniatures.glasses(Path("data/glasses"))
    tiny = miniatures.weights(
        Path("t.safetensors"), architecture="test_resnet", input_size="3,32,32"
    )
    knobs = ["windows=eyes", "layers=block1,block2", "inner_folds=2", "folds=2"]
    typed = ["train", "glasses", "probe", *knobs, "--weights", str(tiny), "--folds", "0", "--json"]
    assert cli.main(typed) == 0
    (learned,) = Path("runs").rglob("learned.npz")
    table = pd.read_csv(learned.parents[1] / "folds.csv")
    held_out = set(table["id"][table["fold0"] == "valid"])
    answers = pd.read_csv("data/glasses/train.csv")
    turned = {"plain": "barred", "barred": "plain"}
    for at, row in answers.iterrows():
        if Path(row["id"]).stem in held_out:
            answers.loc[at, "label"] = turned[row["label"]]
            old = Path("data/glasses/train", row["label"], row["id"])
            old.rename(old.parents[1] / turned[row["label"]] / old.name)
    answers.to_csv("data/glasses/train.csv", index=False)
    told = table[["id"]].assign(fold=(table["fold0"] == "valid").map({True: 0, False: 1}))
    told.to_csv("folds.csv", index=False)
    again = ["train", "glasses", "probe", *knobs, "folds_file=folds.csv", "--folds", "0", "--json"]
    assert cli.main([*again, "--weights", str(tiny)]) == 0
    other = next(path for path in Path("runs").rglob("learned.npz") if path != learned)
    assert sorted(np.load(learned)) == sorted(np.load(other))
    # rows may stand in another order, which sums may notice in the last bits
    for name, part in np.load(learned).items():
        if part.dtype.kind == "f":
            assert np.allclose(part, np.load(other)[name], atol=1e-3)


def test_a_notebook_brings_the_weights_along(tmp_path, monkeypatch, capsys):
    miniatures.glasses(Path("data/glasses"))
    said = {"architecture": "test_resnet", "input_size": "3, 32, 32"}
    tiny = miniatures.weights(tmp_path / "tiny.safetensors", **said)
    knobs = ["windows=eyes", "layers=block1", "inner_folds=2", "folds=2"]
    assert cli.main(["train", "glasses", "probe", *knobs, "--weights", str(tiny), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert [view["name"] for view in trained["views"]] == ["original", "mirrored"]
    made = Path(notebook.write("glasses", trained["run"], "me")["folder"])
    tiny.unlink()
    with zipfile.ZipFile(made / "dataset" / notebook.PACK) as pack:
        pack.extractall("elsewhere")
    for name in ("RUNS", "WEIGHTS"):
        monkeypatch.setenv(f"KAGGLEKIT_{name}", f"elsewhere/{name.lower()}")
    typed = ["predict", "glasses", trained["run"], "--data", "data/glasses", "--out", "again.csv"]
    assert cli.main(typed) == 0
    assert Path("again.csv").read_bytes() == Path(trained["submission"]).read_bytes()


@pytest.mark.skipif(not HERE, reason="the real pictures and weights are not here")
def test_the_default_reaches_its_aim_on_one_fold_of_real_faces(capsys):
    typed = ["train", "glasses", "--data", str(SHARED / "data" / "glasses"), "--folds", "0"]
    few = ["windows=eyes", "layers=block3", "strengths=1.0", "inner_folds=2", "image_size=96"]
    assert cli.main([*typed, "--weights", str(GIVEN), *few, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] >= 0.95
