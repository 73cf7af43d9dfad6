"""Every recipe of every competition, from raw files to a submission that Kaggle would take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kagglekit import competition as contract
from kagglekit import config as configs
from kagglekit import devices, folds, problem, randomness
from kagglekit.cli import main
from kagglekit.competition import Competition
from kagglekit.network import Network
from kagglekit.recipe import Recipe
from kagglekit.run import Key, Run
from tests import miniatures
from tests.conftest import ROOT

HOME = ROOT / "competitions"
NAMES = contract.names(HOME)
PAIRS = [(name, recipe) for name in NAMES for recipe in contract.find(name, HOME).recipes]
NETWORKS = [
    pair
    for pair in PAIRS
    if isinstance(contract.find(pair[0], HOME).recipes[pair[1]], Network)
]  # fmt: skip

# What makes a recipe quick, where it has such a knob.
QUICK: dict[str, Any] = {
    "folds": 2, "epochs": 1, "min_steps": 0, "polish": 2, "copies": 1, "compile": "off",
    "batch_size": 32, "min_batches": 1, "model": "resnet10t", "trees": 20, "starts": 1,
    "most_rows": 60, "most_breaks": 2, "image_size": 32, "inner_folds": 2,
    "windows": ("eyes",), "looks": ("close-0.2",), "strengths": (0.1, 1.0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(devices, "device", lambda: torch.device("cpu"))
    yield
    torch.set_num_threads(threads)


def quick(recipe: Recipe) -> Recipe:
    """The recipe with knobs that make it quick, also for those that need it."""
    # a knob that is off stays off: polishing a convolutional network would take minutes
    knobs = {key: value for key, value in QUICK.items() if getattr(recipe.config, key, None)}
    return replace(recipe, config=replace(recipe.config, **knobs))  # type: ignore[type-var]


def prepared(name: str, monkeypatch: pytest.MonkeyPatch) -> Competition:
    """The competition with quick recipes, and a tiny download of it in `data/`."""
    write = getattr(miniatures, name, None)
    assert write, (
        f"{name} has no miniature: add a function {name}(folder) to tests/miniatures.py that "
        "writes a tiny download in Kaggle's layout"
    )
    write(Path("data") / name)
    tiny = miniatures.weights(
        Path("tiny.safetensors"), architecture="test_resnet", input_size="3, 32, 32"
    )
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", str(tiny))
    competition = contract.find(name, HOME)
    for key, recipe in competition.recipes.items():
        monkeypatch.setitem(competition.recipes, key, quick(recipe))  # type: ignore[arg-type]
    return competition


def train(capsys: pytest.CaptureFixture[str], *typed: str) -> dict[str, Any]:
    capsys.readouterr()
    code = main(["train", *typed, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    result: dict[str, Any] = json.loads(printed.out)
    return result


def left_behind() -> dict[str, bytes]:
    """All that runs and submissions hold, but for the logs that tell of every start."""
    roots = [Path("runs"), Path("submissions")]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    kept = [path for path in files if path.name != "run.log" and "leaderboard" not in path.name]
    return {str(path): path.read_bytes() for path in kept}


@pytest.mark.parametrize(("name", "recipe"), PAIRS)
def test_a_recipe_goes_from_raw_files_to_a_submission_and_anew_to_the_same_bytes(
    name: str,
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    competition = prepared(name, monkeypatch)
    result = train(capsys, name, recipe)
    data = problem.load(competition, Path("data") / name)

    csv = Path(result["submission"])
    competition.submission.check(data, csv)
    assert result["coverage"] == 1
    assert np.isfinite([result["cv"], *(fold["score"] for fold in result["folds"])]).all()

    run = Run(Path(result["folder"]))
    for train_rows, valid_rows in folds.load(run.folder / "folds.csv"):
        assert not np.intersect1d(train_rows, valid_rows).size
    for key in run.members():
        answers = run.answers(key)
        assert answers.test.shape == (len(data.test), data.outputs)
        assert answers.valid.shape == (len(answers.valid_rows), data.outputs)
        assert np.isfinite(answers.test).all()
        assert np.isfinite(answers.valid).all()
    assert np.load(run.folder / "oof.npy").shape == (len(data.train), data.outputs)

    before = left_behind()
    assert train(capsys, name, recipe)["trained"] is False
    assert left_behind() == before

    again = Path("again.csv")
    typed = ["predict", name, run.name, "--data", f"data/{name}", "--out", str(again)]
    assert main(typed) == 0
    assert again.read_bytes() == csv.read_bytes()

    # anew, and alone: neither the first training nor the other fold may have left a trace
    (path,) = run.folder.glob("fold1-seed0/answers.npz")
    first, oof = path.read_bytes(), np.load(run.folder / "oof.npy")
    anew = train(capsys, name, recipe, "--folds", "1", "--fresh")
    assert (anew["trained"], anew["run"]) == (True, result["run"])
    assert path.read_bytes() == first
    covered = np.load(run.folder / "covered.npy")
    assert 0 < covered.sum() < len(oof)
    assert np.array_equal(np.load(run.folder / "oof.npy")[covered], oof[covered])


@pytest.mark.parametrize(("name", "recipe"), NETWORKS)
def test_the_loss_is_finite_and_reaches_every_parameter(
    name: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    competition = prepared(name, monkeypatch)
    network = competition.recipes[recipe]
    assert isinstance(network, Network)
    data = problem.load(competition, Path("data") / name)
    split = data.split(np.arange(len(data.train)), "train")
    randomness.seed_all(0)
    model = network.model(network.config, network._task(split, network.config))
    network.prepare(model, split)
    batch = next(network.loader(split, network.config, 0, model).batches(1))
    losses = network.objective(network.config).loss(model, batch)
    assert isinstance(losses, torch.Tensor)
    assert torch.isfinite(losses)
    losses.backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None, f"the loss does not reach {key}"
        assert torch.isfinite(weight.grad).all(), key


@pytest.mark.parametrize(("name", "recipe"), PAIRS)
def test_every_knob_has_help_and_can_be_typed(name: str, recipe: str) -> None:
    config = contract.find(name, HOME).recipes[recipe].config
    for key, value, help in configs.describe(config):
        assert help, f"{key} of {recipe} has no help"
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert getattr(configs.override(config, [f"{key}={text}"]), key) == value


@pytest.mark.parametrize("name", NAMES)
def test_a_competition_has_a_readme_and_the_name_of_its_download(name: str) -> None:
    assert (HOME / name / "README.md").exists(), f"competitions/{name} has no README.md"
    assert contract.find(name, HOME).slug


def test_a_member_s_name_is_its_folder_s() -> None:
    for key in (Key(0, 3), Key(None, 0), Key(12, 10)):
        assert Key.parse(key.name) == key
