"""Whatever a file holds, who reads it gives a sound value or one sentence.

The short version runs with the other tests; `make fuzz` runs the long one (see `tests.hostile`).
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from kagglekit import (
    backbones,
    checkpoint,
    cleaning,
    cli,
    comparing,
    config,
    files,
    fitting,
    folds,
    images,
    inventory,
    leaderboard,
    pictures,
    scoring,
    submission,
    tables,
)
from kagglekit.backbones import BackboneConfig
from kagglekit.config import Config, NetworkConfig, knob
from kagglekit.data import Data
from kagglekit.errors import UserError
from kagglekit.run import Key, Run
from tests import engine, hostile, toys
from tests.hostile import examples, judged

# a failing input is shown whole, however large
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

ROWS = 6


@dataclass(frozen=True, kw_only=True)
class Knobs(NetworkConfig):
    """Every type that a knob may have."""

    widths: tuple[int, ...] = knob((32, 64), "channels of each stage", least=1)
    share: float | None = knob(None, "a share, or none", least=0, most=1)
    words: tuple[str, ...] = knob((), "words")
    size: Literal["small", "large"] = knob("small", "one of two")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with something beside it that must not change."""
    outer = tmp_path_factory.mktemp("hostile")
    (outer / "beside").mkdir()
    (outer / "beside" / "x").write_text("untouched")
    project = outer / "project"
    project.mkdir()
    return project


@pytest.fixture(autouse=True)
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All happens in that project, quietly."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("KAGGLEKIT_CACHE", str(world / "cache"))
    monkeypatch.setattr(engine.devices, "device", lambda: engine.CPU)
    for path in world.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = logging.getLogger("kagglekit").level
    logging.getLogger("kagglekit").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("kagglekit").setLevel(before)


@pytest.fixture(scope="module", autouse=True)
def tally() -> Iterator[None]:
    """The long version says how many inputs each parser was given."""
    yield
    if hostile.LONG:
        for parser, count in sorted(hostile.counts.items()):
            print(f"{parser:24}{count:8,}")
        print(f"{'all':24}{hostile.counts.total():8,}")


def put(folder: Path, contents: dict[str, bytes | str]) -> int:
    """Write the files; their size in bytes."""
    size = 0
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        path.write_bytes(content)
        size += len(content)
    return size


# --- CSV ----------------------------------------------------------------------------------------

NUMBERS = {
    "train.csv": "id,a,b,y,z\n" + "".join(f"{n},{n}.5,{-n},{n},{n / 4}\n" for n in range(ROWS)),
    "test.csv": "id,a,b\n" + "".join(f"{n},{n}.5,{-n}\n" for n in range(10, 14)),
    "sample_submission.csv": "id,y,z\n" + "".join(f"{n},0,0.0\n" for n in range(10, 14)),
}
CLASSES = {
    "train.csv": "id,a,b,label\n"
    + "".join(f"i{n},{n}.5,{-n},{'uvw'[n % 3]}\n" for n in range(ROWS)),
    "test.csv": "id,a,b\n" + "".join(f"i{n},{n}.5,{-n}\n" for n in range(10, 14)),
    "sample_submission.csv": "id,label\n" + "".join(f"i{n},u\n" for n in range(10, 14)),
}


def one_of_them(valid: dict[str, str]) -> st.SearchStrategy[tuple[str, bytes]]:
    """(name, content) of a CSV of the download, made hostile."""
    return st.sampled_from(sorted(valid)).flatmap(
        lambda name: st.tuples(st.just(name), hostile.or_bytes(hostile.of_csv(valid[name])))
    )


def check_data(data: Data) -> None:
    assert len(data.train) == len(data.target)
    assert len(data.test) == len(data.sample) > 0
    assert not data.sample[data.id].duplicated().any()
    assert np.isfinite(data.target).all()
    if data.train_inputs is None:
        features = [name for name in data.test.columns if name != data.id]
        assert np.isfinite(data.test[features].to_numpy(float)).all()
        assert np.isfinite(data.train[features].to_numpy(float)).all()
    if len(data.target) and data.classes:
        assert len(set(data.classes)) == len(data.classes) == data.target.max() + 1


@examples(40)
@given(hostiles=st.lists(one_of_them(NUMBERS), min_size=1, max_size=2))
def test_a_download_of_numbers(hostiles, world):
    size = put(world / "numbers", NUMBERS) + put(world / "numbers", dict(hostiles))
    data = judged("csv, numbers", lambda: tables.regression(world / "numbers"), world, size)
    if isinstance(data, Data):
        check_data(data)


@examples(40)
@given(hostiles=st.lists(one_of_them(CLASSES), min_size=1, max_size=2))
def test_a_download_of_classes(hostiles, world):
    size = put(world / "classes", CLASSES) + put(world / "classes", dict(hostiles))
    data = judged("csv, classes", lambda: tables.classification(world / "classes"), world, size)
    if isinstance(data, Data):
        check_data(data)


SAVED_FOLDS = "id,row,fold0,fold1\n" + "".join(
    f"i{n},{n},{('train', 'valid')[n % 2]},{('valid', 'train')[n % 2]}\n" for n in range(ROWS)
)


@examples(50)
@given(content=hostile.or_bytes(hostile.of_csv(SAVED_FOLDS)))
def test_the_folds_of_a_run(content, world):
    size = put(world, {"folds.csv": content})
    found = judged("folds.csv", lambda: folds.load(world / "folds.csv"), world, size)
    if not isinstance(found, UserError):
        assert all(not set(train) & set(valid) for train, valid in found)


@examples(50)
@given(
    content=hostile.or_bytes(
        hostile.of_csv("id,fold\n" + "".join(f"{n},{n % 3}\n" for n in range(ROWS)))
    )
)
def test_folds_that_a_user_wrote(content, world):
    size = put(world, {"mine.csv": content}) + put(world / "numbers", NUMBERS)
    data, knobs = tables.regression(world / "numbers"), Config(folds_file="mine.csv")
    found = judged("folds file", lambda: folds.split(data, knobs, folds.shuffled), world, size)
    if not isinstance(found, UserError):
        assert sum(len(valid) for _, valid in found) == ROWS


# --- submissions --------------------------------------------------------------------------------

KINDS = {
    "labels": submission.labels(),
    "numbers": submission.numbers(least=-5),
    "probability": submission.probability(),
    "probabilities": submission.probabilities(),
}


def answered(kind: str) -> tuple[Data, np.ndarray, str]:
    """(data, decided answers, a valid submission)"""
    ids = [f"i{n}" for n in range(4)]
    columns = {"numbers": ["y", "z"], "probabilities": ["u", "v"]}.get(kind, ["label"])
    sample = pd.DataFrame({"id": ids, **dict.fromkeys(columns, "0.5")}, dtype=str)
    test = pd.DataFrame({"id": ids[::-1]}, dtype=str)
    classes = () if kind == "numbers" else ("u", "v")
    decided = {"labels": np.array([0, 1, 1, 0]), "probability": np.full(4, 0.25)}.get(kind)
    if decided is None:
        decided = np.full((4, 2), 0.5)
    cells = ["u"] if kind == "labels" else ["0.5"] * len(columns)
    text = "".join(f"{id},{','.join(cells)}\n" for id in ids)
    return (
        Data(test, test, decided[:0], sample, classes),
        decided,
        f"id,{','.join(columns)}\n{text}",
    )


@st.composite
def submitted(draw: st.DrawFn) -> tuple[str, bytes]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    return kind, draw(hostile.or_bytes(hostile.of_csv(answered(kind)[2])))


@examples(80)
@given(hostile_one=submitted())
def test_a_submission_that_is_read_or_checked(hostile_one, world):
    kind, content = hostile_one
    data, decided, _ = answered(kind)
    size = put(world, {"mine.csv": content})
    path = world / "mine.csv"
    found = judged("submission, read", lambda: KINDS[kind].read(data, path), world, size)
    if not isinstance(found, UserError):
        assert found.shape == decided.shape
        assert np.isfinite(found).all()
    judged("submission, check", lambda: KINDS[kind].check(data, path), world, size)


NAMES = st.sampled_from([*hostile.CELLS, "u", "v", "w", "i0", "10", "2", "1.0"])


@st.composite
def to_be_written(draw: st.DrawFn) -> tuple[str, Data, np.ndarray]:
    """(kind, data, decided answers) with hostile names, numbers and shapes."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    data, decided, _ = answered(kind)
    sample, test, classes = data.sample.copy(), data.test.copy(), list(data.classes)
    decided = decided.copy()
    match draw(
        st.sampled_from(["id", "id", "class", "column", "cell", "number", "shape", "order"])
    ):
        case "id":
            name = draw(NAMES)
            sample.loc[draw(st.integers(0, 3)), "id"] = name
            test.loc[draw(st.integers(0, 3)), "id"] = name if draw(st.booleans()) else draw(NAMES)
            if not rarely_different(draw):
                test["id"] = sample["id"].to_numpy()[::-1]
        case "class" if classes:
            classes[draw(st.integers(0, 1))] = draw(NAMES)
            if kind == "probabilities" and draw(st.booleans()):
                sample.columns = pd.Index(["id", *classes])
        case "column":
            columns = list(sample.columns)
            columns[draw(st.integers(0, len(columns) - 1))] = draw(NAMES)
            sample.columns = pd.Index(columns)
            test.columns = sample.columns[:1]
        case "cell":
            column = draw(st.integers(1, sample.shape[1] - 1))
            sample.iloc[:, column] = draw(NAMES)
        case "number":
            numbers = [np.nan, np.inf, -np.inf, -1, 2, 0.5, 1 + 1e-7, 1e308, 5e-324, -0.0, 1]
            decided = decided.astype(float)
            decided.flat[draw(st.integers(0, decided.size - 1))] = draw(st.sampled_from(numbers))
        case "shape":
            shapes = [decided[:-1], decided[None], decided.ravel(), decided[..., None], decided[:0]]
            decided = draw(st.sampled_from([*shapes, decided.astype(str), decided > 0]))
        case "order":
            test = test.iloc[: draw(st.integers(0, 4))]
    target = np.zeros(0, np.int64)
    return kind, Data(test.iloc[:0], test, target, sample, tuple(classes)), decided


def rarely_different(draw: st.DrawFn) -> bool:
    return hostile.rarely(draw, 3)


@examples(100)
@given(hostile_one=to_be_written())
def test_a_submission_that_is_written(hostile_one, world):
    kind, data, decided = hostile_one
    path = world / "written.csv"
    path.unlink(missing_ok=True)
    form = KINDS[kind]
    found = judged("submission, write", lambda: form.write(data, decided, path), world, 4096)
    assert path.exists() != isinstance(found, UserError)
    if isinstance(found, UserError):
        return
    with path.open(newline="", encoding="utf-8") as handle:
        cells = [cell for row in csv.reader(handle) for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r") and not is_plain(cell)]
    back = judged("submission, written", lambda: form.read(data, path), world, 4096)
    if not isinstance(back, UserError):  # names that no CSV reader takes, as one of two empty ones
        assert np.array_equal(back.ravel(), np.clip(decided, -5, None).ravel()) or kind != "labels"


def is_plain(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and all(mark not in cell.lower() for mark in ("_", "n", " ", "\t", "\r"))


# --- zips and caches ----------------------------------------------------------------------------

ENTRIES = {name: text.encode() for name, text in NUMBERS.items()}


@st.composite
def zipped(draw: st.DrawFn) -> dict[str, bytes]:
    """A download of one or two zips and perhaps files beside them."""
    found = {"all.zip": draw(hostile.or_bytes(hostile.of_zip(ENTRIES)))}
    if hostile.rarely(draw, 3):
        name = draw(st.sampled_from(["other.zip", "a/all.zip", "train.csv.zip", "all.zip.zip"]))
        found[name] = draw(hostile.of_zip({"train.csv": b"id\n1\n"}))
    if hostile.rarely(draw, 3):
        name = draw(st.sampled_from(["train.csv", "a/b", "all/train.csv", "x", ".x", "é"]))
        found[name] = draw(st.sampled_from([ENTRIES["train.csv"], b"", b"id\n"]))
    return found


@examples(40)
@given(contents=zipped(), memory=hostile.of_json({"a.csv": [3, 4, "5"]}))
def test_a_zip(contents, memory, world):
    for folder in ("cache", "zipped"):
        shutil.rmtree(world / folder, ignore_errors=True)
    size = put(world / "zipped", contents)

    def unpacked() -> Path:
        return files.unpacked(world / "zipped", world / "cache")

    found = judged("zip", unpacked, world, size)
    kept = {path: path.read_bytes() for path in (world / "zipped").rglob("*") if path.is_file()}
    assert kept == {world / "zipped" / name: content for name, content in contents.items()}
    if isinstance(found, UserError):
        return
    before = files.visible_files(found)
    judged("zip, what it held", lambda: tables.regression(found), world, 8 * size)
    for damaged in [*found.glob(".unpacked.json"), *(world / "cache").glob("digests/*.json")]:
        damaged.write_bytes(memory)
    again = judged("zip, again", unpacked, world, size)
    assert files.visible_files(again) == before


@examples(20)
@given(draws=st.data())
def test_arrays_in_the_cache(draws, world):
    shutil.rmtree(world / "cache", ignore_errors=True)
    first = files.cached_arrays(world / "cache", "a", lambda: ARRAYS)
    names = sorted(path.name for path in (world / "cache/arrays/a").iterdir())
    path = world / "cache/arrays/a" / draws.draw(st.sampled_from(names))
    size = put(path.parent, {path.name: draws.draw(hostile_file(path.name, path.read_bytes()))})

    def again() -> dict[str, np.ndarray]:
        return files.cached_arrays(world / "cache", "a", lambda: ARRAYS)

    found = judged("cache", again, world, size)
    assert all(np.array_equal(found[name], first[name]) for name in first)


# --- knobs --------------------------------------------------------------------------------------

KEYS = [name for name, _, _ in config.describe(Knobs())]
TYPED = st.one_of(
    st.sampled_from([str(value) for value in hostile.VALUES] + list(hostile.CELLS)),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(repr),
    st.lists(st.integers(-3, 99), max_size=4).map(lambda items: ",".join(map(str, items))),
)
ASSIGNMENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), TYPED).map("=".join),
        st.tuples(st.text(max_size=8), TYPED).map("=".join),
        st.text(max_size=12),
    ),
    min_size=1,
    max_size=3,
)


def check_knobs(found: Knobs) -> None:
    assert config.load(Knobs, json.loads(json.dumps(asdict(found)))) == found
    for name, value in (("epochs", found.epochs), ("seed", found.seed), ("share", found.share)):
        assert value is None or not isinstance(value, bool), name
    assert found.epochs >= 1
    assert 0 <= found.warmup <= 1
    assert found.share is None or 0 <= found.share <= 1
    assert all(width >= 1 for width in found.widths)


@examples(300)
@given(assignments=ASSIGNMENTS)
def test_knobs_that_are_typed(assignments, world):
    found = judged("key=value", lambda: config.override(Knobs(), assignments), world, 100)
    if not isinstance(found, UserError):
        check_knobs(found)


@examples(150)
@given(content=hostile.or_bytes(hostile.of_json(asdict(Knobs()))))
def test_a_config_that_was_edited_by_hand(content, world):
    size = put(world, {"config.json": content})

    def read() -> Knobs:
        return config.load(Knobs, files.read_json(world / "config.json"))

    found = judged("config.json", read, world, size)
    if not isinstance(found, UserError):
        check_knobs(found)


# --- arrays -------------------------------------------------------------------------------------

ARRAYS = {
    "numbers": np.arange(6.0).reshape(2, 3),
    "words": np.array(["a", "bcd"]),
    "flags": np.array([True, False]),
}


@examples(40)
@given(content=hostile.or_bytes(hostile.of_npz(ARRAYS)))
def test_an_npz(content, world):
    size = put(world, {"a.npz": content})
    found = judged("npz", lambda: files.read_arrays(world / "a.npz"), world, size)
    if not isinstance(found, UserError):
        assert not any(array.dtype.hasobject for array in found.values())


@examples(80)
@given(content=st.sampled_from(sorted(ARRAYS)).flatmap(lambda name: hostile.of_npy(ARRAYS[name])))
def test_an_npy(content, world):
    size = put(world, {"a.npy": content})
    found = judged("npy", lambda: files.read_array(world / "a.npy"), world, size)
    if not isinstance(found, UserError):
        assert not found.dtype.hasobject


# --- pictures -----------------------------------------------------------------------------------

PICTURES = hostile.pictures()


@examples(200)
@given(
    picture=hostile.of_picture(PICTURES),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([None, (5, 8)]),
)
def test_an_image_file(picture, channels, size, world):
    name, content = picture
    weight = put(world, {name: content})
    with pytest.MonkeyPatch.context() as context:
        # memory is bounded by Pillow's limit alone, as a few bytes may be a large plain picture
        context.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
        read = judged("image", lambda: images.read(world / name, channels, size), world, weight)
    if not isinstance(read, UserError):
        assert read.dtype == np.uint8
        assert read.shape == (*(size or read.shape[:2]), channels)


def test_every_image_of_the_fuzz_is_valid_as_long_as_nobody_touches_it(world):
    for name, content in PICTURES.items():
        put(world, {name: content})
        if name.startswith("script"):
            with pytest.raises(UserError):
                images.read(world / name)
        else:
            assert images.read(world / name).shape in [(9, 7, 3), (7, 9, 3)]


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


SAMPLE = "id,label\n" + "".join(f"{n},0\n" for n in range(3))
IDX = {
    "train-images-idx3-ubyte": idx(np.arange(64, dtype=np.uint8).reshape(4, 4, 4)),
    "train-labels-idx1-ubyte": idx(np.array([0, 1, 0, 1], np.uint8)),
    "t10k-images-idx3-ubyte": idx(np.arange(48, dtype=np.uint8).reshape(3, 4, 4)),
}
PIXELS = {
    "train.csv": "id,label,p0,p1,p2,p3\n" + "".join(f"{n},{n % 2},0,9,255,{n}\n" for n in range(4)),
    "test.csv": "id,p0,p1,p2,p3\n" + "".join(f"{n},0,9,255,{n}\n" for n in range(3)),
    "sample_submission.csv": SAMPLE,
}
FOLDERS = {
    "train/a/1.png": PICTURES["grey.png"],
    "train/b/2.png": PICTURES["rgb.png"],
    "test/0.png": PICTURES["rgb.png"],
    "test/1.gif": PICTURES["moving.gif"],
    "test/2.jpg": PICTURES["rgb.jpg"],
    "sample_submission.csv": SAMPLE.encode(),
}


@st.composite
def downloaded(draw: st.DrawFn) -> dict[str, bytes]:
    """A folder of pictures in one of the three layouts, one file of it hostile or gone."""
    layout = draw(st.sampled_from(["idx", "pixels", "folders"]))
    if layout == "pixels":
        name, content = draw(one_of_them(PIXELS))
        return {**{n: text.encode() for n, text in PIXELS.items()}, name: content}
    found = {**IDX, "sample_submission.csv": SAMPLE.encode()} if layout == "idx" else dict(FOLDERS)
    name = draw(st.sampled_from(sorted(found)))
    content = found.pop(name)
    if name.endswith(".csv"):
        return {**found, name: draw(hostile.of_csv(SAMPLE))}
    if layout == "folders":
        more = {name: draw(hostile.of_picture(PICTURES))[1]}
        return {**found, **draw(st.sampled_from([more, more, {}, {f"train/c/{'9' * 200}": b""}]))}
    made = draw(hostile.of_idx(content))
    ending = ".gz" if made[:2] == b"\x1f\x8b" else ""
    return {**found, name + draw(st.sampled_from([ending] * 4 + ["", ".gz"])): made}


@examples(80)
@given(contents=downloaded(), channels=st.sampled_from([1, 3]))
def test_a_download_of_pictures(contents, channels, world):
    shutil.rmtree(world / "pictures", ignore_errors=True)
    shutil.rmtree(world / "cache", ignore_errors=True)
    size = put(world / "pictures", contents)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
        data = judged(
            "pictures", lambda: pictures.classification(world / "pictures", channels), world, size
        )
    if isinstance(data, Data):
        check_data(data)
        assert data.train_inputs is not None
        assert data.test_inputs is not None
        assert data.train_inputs.shape[1:] == data.test_inputs.shape[1:]
        assert len(data.test_inputs.shape) == 4


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a project with a finished run of a learner, of a blend and of what it needs."""
    project = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(project)
        context.setenv("KAGGLEKIT_CACHE", str(project / "cache"))
        context.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
        toys.write(project)
        assert cli.main(["train", "toy", "mix", "--json"]) == 0
    shutil.rmtree(project / "cache", ignore_errors=True)
    kept = (
        path for path in project.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    )
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in kept}


@pytest.fixture
def finished(trained: dict[str, bytes], world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put(world, trained)
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    toys.sys.modules.pop("competitions.toy", None)
    return world


def hostile_file(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """A mutation of the file that knows its kind."""
    suffix = Path(name).suffix
    if suffix == ".json":
        return hostile.or_bytes(hostile.of_json(json.loads(content)))
    if suffix == ".csv":
        return hostile.or_bytes(hostile.of_csv(content.decode()))
    if suffix == ".npy":
        return hostile.of_npy(np.lib.format.read_array(io.BytesIO(content)))
    if suffix == ".npz":
        with np.load(io.BytesIO(content)) as arrays:
            return hostile.or_bytes(hostile.of_npz(dict(arrays)))
    return hostile.of_bytes(content)


JOURNAL = {"public": 0.5, "private": None, "status": "complete", "sent": "2024-01-31T00:00:00"}


@examples(20)
@given(draws=st.data())
def test_the_files_of_a_run(draws, finished, trained):
    (name,) = [n for n in trained if n.endswith("run.json") and "/mix-" in n]
    folder = Path(name).parent
    run, journal = Run(finished / folder), f"submissions/toy/{folder.name}.json"
    known = {**trained, journal: json.dumps(JOURNAL).encode()}
    ours = sorted(n for n in known if n.startswith(f"{folder}/") or n == journal)
    chosen = draws.draw(st.sampled_from([n for n in ours if Path(n).suffix != ".log"]))
    put(finished, known)
    size = put(finished, {chosen: draws.draw(hostile_file(chosen, known[chosen]))})
    for label, read in {
        "run.json": run.manifest,
        "scores.json": run.scores,
        "members": run.members,
        "answers.npz": lambda: run.answers(Key(0, 0)),
        "folds.csv of a run": run.folds,
        "runs": lambda: inventory.report(None, everything=True),
        "clean": lambda: cleaning.plan(cleaning.Request("toy", (folder.name,))),
        "leaderboard": lambda: leaderboard.rebuild(finished / "runs", finished / "submissions"),
        "leaderboard, rows": lambda: leaderboard.rows(finished / "runs"),
        "leaderboard, record": lambda: leaderboard.record(
            finished / "runs", finished / "submissions", "toy", folder.name
        ),
        "compare": lambda: comparing.compare("toy", [folder.name, "line"]),
    }.items():
        found = judged(label, read, finished, size)
        if label == "leaderboard, rows":
            assert isinstance(found, list)
    put(finished, trained)


@examples(60)
@given(draws=st.data())
def test_a_leaderboard_file(draws, finished, trained):
    path = finished / "runs" / "leaderboard.db"
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(trained["runs/leaderboard.db"])
    if draws.draw(st.booleans()):
        path.write_bytes(draws.draw(hostile.of_bytes(path.read_bytes(), 12)))
    else:
        column = draws.draw(st.sampled_from(leaderboard._COLUMNS))
        values = [
            None,
            -1,
            2**62,
            1.5,
            float("inf"),
            "",
            "x",
            "[",
            "[1]",
            "[[1]]",
            "null",
            b"\xff",
            "[" * 9999,
        ]
        with sqlite3.connect(path) as database:
            database.execute(
                f"UPDATE OR REPLACE runs SET {column}=?", (draws.draw(st.sampled_from(values)),)
            )
        database.close()
    found = judged("leaderboard.db", lambda: leaderboard.rows(finished / "runs"), finished, 1 << 16)
    assert isinstance(found, UserError | list)
    if isinstance(found, list):
        leaderboard.table(found, 100)
        leaderboard.table(found, 200)
        json.dumps([asdict(row) for row in found], allow_nan=False)


@examples(80)
@given(draws=st.data())
def test_what_a_network_learned(draws, world):
    recipe, knobs = engine.regressor(), engine.settings()
    folder = world / "member"
    task = {"inputs": [3], "outputs": 2}
    model = engine.dense(knobs, engine.Task((3,), 2))
    weights = save(dict(model.state_dict()))
    put(folder, {"task.json": json.dumps(task), "weights.safetensors": weights})
    if draws.draw(st.booleans()):
        size = put(folder, {"task.json": draws.draw(hostile.or_bytes(hostile.of_json(task)))})
    else:
        content = draws.draw(hostile.or_bytes(hostile.of_safetensors(weights)))
        size = put(folder, {"weights.safetensors": content})
    found = judged("weights", lambda: recipe.restore(folder, knobs, {}), world, size)
    if not isinstance(found, UserError):
        assert all(isinstance(part, torch.Tensor) for part in found.model.state_dict().values())


# --- pretrained weights --------------------------------------------------------------------------

LAYERS = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2), "steps": torch.tensor(3)}
ARCHITECTURE = "test_resnet"
BESIDE = {
    "architecture": ARCHITECTURE, "num_classes": 7, "global_pool": "avg",
    "pretrained_cfg": {
        "tag": "r160_in1k", "input_size": [3, 32, 32], "fixed_input_size": False,
        "pad_type": "same", "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
}  # fmt: skip


def torch_file(content: Any, zipped: bool = True) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, _use_new_zipfile_serialization=zipped)
    return made.getvalue()


class Trap:
    """What a file must not run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ../beside/x",)


@st.composite
def pickled_weights(draw: st.DrawFn) -> bytes:
    """A file of torch, in the new layout or the old, of tensors or of something else."""
    zipped = draw(st.booleans())
    held: Any = draw(st.sampled_from([LAYERS, {"state_dict": LAYERS}, {"model": LAYERS, "x": 1}]))
    if hostile.rarely(draw, 3):
        odd = [None, 3, "x", [], {}, [1], Trap(), {1: 2}, float("nan"), torch.nn.Linear(1, 1),
               torch.tensor([float("inf")]), torch.empty(0), torch.ones(2).to_sparse(),
               torch.empty(9, device="meta"), torch.ones(1, dtype=torch.complex64)]  # fmt: skip
        value = draw(st.sampled_from(odd))
        held = draw(st.sampled_from([value, {"a": value}, {"state_dict": value}, [value]]))
    content = torch_file(held, zipped)
    if zipped and draw(st.booleans()):
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            return draw(hostile.of_zip({name: parts.read(name) for name in parts.namelist()}))
    return draw(st.one_of(st.just(content), hostile.of_bytes(content)))


@examples(150)
@given(draws=st.data())
def test_a_file_of_pretrained_weights(draws, world):
    made = {"metadata": {"architecture": ARCHITECTURE, "mean": "0.5"}}
    if draws.draw(st.booleans()):
        plain = save(LAYERS, made["metadata"])
        name, strategy = "w.safetensors", hostile.or_bytes(hostile.of_safetensors(plain))
    else:
        name, strategy = draws.draw(st.sampled_from(["w.pth", "w.pt", "w.bin"])), pickled_weights()
    size = put(world, {name: draws.draw(strategy)})
    found = judged("backbone file", lambda: backbones._weights(world / name), world, size)
    if not isinstance(found, UserError):
        for weight, part in found.items():
            assert isinstance(weight, str)
            assert not part.is_floating_point() or part.isfinite().all()


@examples(120)
@given(draws=st.data())
def test_what_is_said_of_pretrained_weights(draws, world, backbone, monkeypatch):
    """In their own metadata, in config.json beside them, and in the names of file and folder."""
    said = {"architecture": ARCHITECTURE, "mean": "0.5", "std": "(0.2, 0.2, 0.2)",
            "input_size": "3, 32, 32", "pad_type": "same"}  # fmt: skip
    inside = {"architecture": draws.draw(st.sampled_from([ARCHITECTURE, ""])), "mean": "0.5"}
    plain = save({"a": torch.zeros(1)}, {name: text for name, text in inside.items() if text})
    contents: dict[str, Any] = {"w.safetensors": plain, "config.json": json.dumps(BESIDE)}
    match draws.draw(st.sampled_from(["beside", "inside", "name"])):
        case "beside":
            contents["config.json"] = draws.draw(hostile.or_bytes(hostile.of_json(BESIDE)))
        case "inside":
            texts = {key: str(draws.draw(hostile.mutated([text]))) for key, text in said.items()}
            texts = {key: text.encode("utf-8", "replace").decode() for key, text in texts.items()}
            contents["w.safetensors"] = save({"a": torch.zeros(1)}, texts)
        case _:
            name = draws.draw(
                st.sampled_from(["x", "timm", "test_resnet", "resnet", "é" * 80, "."])
            )
            contents = {f"{name}.r1.safetensors": plain, "0.pth": b""}
    folder = world / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    size = put(folder, contents)
    given = draws.draw(st.sampled_from([folder, folder / "w.safetensors"]))
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", str(given))
    knobs = BackboneConfig(model=draws.draw(st.sampled_from(["", ARCHITECTURE])))
    found = judged("beside weights", lambda: backbones.find(knobs), world, size)
    if not isinstance(found, UserError):
        assert len(found.transform.mean) == len(found.transform.std) == 3
        assert all(1 <= side <= 4096 for side in found.transform.size)
        assert np.isfinite([*found.transform.mean, *found.transform.std]).all()
        assert min(found.transform.std) > 0
        assert isinstance(found.fingerprint, str)


@examples(25)
@given(draws=st.data())
def test_a_backbone_of_such_weights_is_built_or_refused(draws, world, backbone, monkeypatch):
    kept, folder = backbone.read_bytes(), world / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    beside: Any = json.dumps(BESIDE)
    if draws.draw(st.booleans()):
        beside = draws.draw(hostile.of_json(BESIDE))
    weights = draws.draw(st.one_of(st.just(kept), hostile.of_safetensors(kept)))
    size = put(folder, {"w.safetensors": weights, "config.json": beside})
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", str(folder))
    knobs = BackboneConfig(model=ARCHITECTURE, image_size=32)
    found = judged("backbone", lambda: backbones.load(knobs).module, world, size)
    if not isinstance(found, UserError):
        assert all(part.isfinite().all() for part in found.state_dict().values())


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of a small model that fit it; timm is imported."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = timm.create_model(ARCHITECTURE, pretrained=False)
    path = tmp_path_factory.mktemp("backbone") / "w.safetensors"
    path.write_bytes(save(dict(made.state_dict())))
    return path


def learned() -> dict[str, tuple[Any, dict[str, np.ndarray]]]:
    """(recipe, what it learned) by the name of a recipe that keeps arrays."""
    x = np.random.default_rng(0).uniform(-1, 1, (24, 1))
    found = {}
    for recipe in (fitting.spline(), fitting.gaussian_process(), fitting.boosting(trees=3)):
        learner = recipe.learner(recipe.config)
        found[type(learner).__name__] = (recipe, learner.fit(x, np.sin(3 * x), 0))
    return found


@examples(30)
@given(draws=st.data())
def test_what_a_learner_of_arrays_learned(draws, world, learners):
    recipe, arrays = learners[draws.draw(st.sampled_from(sorted(learners)))]
    content = draws.draw(hostile.or_bytes(hostile.of_npz(arrays)))
    size = put(world, {"learned.npz": content})
    rows = pd.DataFrame({"id": [1, 2], "x": [0.25, -2.0]})
    data = Data(rows, rows, np.zeros((2, 1)), rows[["id"]])

    def answer() -> np.ndarray:
        return recipe.restore(world, recipe.config, {})(data.split(np.arange(2), "test"))

    found = judged("learned.npz", answer, world, size)
    assert isinstance(found, UserError) or len(found) == 2


@pytest.fixture(scope="module")
def learners() -> dict[str, tuple[Any, dict[str, np.ndarray]]]:
    return learned()


@examples(50)
@given(
    content=hostile.or_bytes(
        hostile.of_csv("id,y,z\n" + "".join(f"{n},1,2\n" for n in range(10, 14)))
    )
)
def test_the_answers_to_practice_data(content, world):
    size = put(world, {"solution.csv": content}) + put(world / "numbers", NUMBERS)
    data = tables.regression(world / "numbers")
    path = world / "solution.csv"
    found = judged("solution.csv", lambda: scoring.solution(data, path), world, size)
    assert isinstance(found, UserError) or found.shape == (4, 2)


STATE = {
    "model": {"weight": engine.torch.arange(6.0).reshape(2, 3), "bias": engine.torch.zeros(2)},
    "progress": {"epoch": 3, "batch": 1, "history": [0.5, 0.25], "best": {}},
}
SAVED = checkpoint.Checkpoint({"data": "0123", "knob epochs": "3"}, {"fold0-seed0": STATE})


class Harmful:
    """An unpickler that follows its orders makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("made",)


@st.composite
def other_contents(draw: st.DrawFn) -> bytes:
    """A payload that another program could have saved, or a forger."""
    buffer = io.BytesIO()
    content = draw(
        st.sampled_from([STATE, [SAVED.members], Harmful(), {"stamp": Harmful(), "members": {}}])
        | hostile.mutated({"stamp": dict(SAVED.stamp), "members": {"fold0-seed0": {"epoch": 3}}})
    )
    engine.torch.save(content, buffer)
    return buffer.getvalue()


@examples(60)
@given(draws=st.data())
def test_a_checkpoint_that_is_damaged_or_forged(draws, world):
    path = world / "checkpoint.bin"
    checkpoint.save(path, SAVED)
    content = path.read_bytes()
    if draws.draw(st.booleans()):
        size = put(world, {path.name: draws.draw(hostile.of_bytes(content))})
    else:
        payload = draws.draw(hostile.of_bytes(content[32:]) | other_contents())
        size = put(world, {path.name: blake2b(payload, digest_size=32).digest() + payload})
    found = judged("checkpoint", lambda: checkpoint.load(path), world, size)
    assert found is None or isinstance(found, checkpoint.Checkpoint | UserError)
    if isinstance(found, checkpoint.Checkpoint):
        for text in [*found.stamp, *found.stamp.values(), *found.members]:
            assert isinstance(text, str)
    path.unlink()


# --- commands -----------------------------------------------------------------------------------


@examples(8)
@given(draws=st.data())
def test_a_command_on_hostile_files_ends_with_a_sentence(draws, finished, trained, capsys):
    (name,) = [n for n in trained if n.endswith("run.json") and "/mix-" in n]
    folder = Path(name).parent
    chosen = draws.draw(
        st.sampled_from(
            sorted(n for n in trained if Path(n).suffix not in (".py", ".log", ".txt", ".db"))
        )
    )
    shutil.rmtree(finished / "runs")
    put(finished, trained)
    size = put(finished, {chosen: draws.draw(hostile_file(chosen, trained[chosen]))})
    for command in (
        ["leaderboard", "--rebuild"],
        ["list"],
        ["runs", "--all"],
        ["clean", "toy", folder.name],
        ["predict", "toy", folder.name, "--data", "data/toy"],
        ["train", "toy", "mix"],
    ):
        capsys.readouterr()
        code = judged(f"kagglekit {command[0]}", lambda c=command: cli.main(c), finished, size)
        told = capsys.readouterr()
        assert code in (0, 2), (command, chosen, told.err)
        assert "Traceback" not in told.err, told.err
        if code == 2:
            assert told.err.strip().splitlines()[-1].startswith("kagglekit: ")
