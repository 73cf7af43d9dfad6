"""The same small pictures are read the same from every layout, and faults are named."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kagglekit import folders, pictures
from kagglekit.data import Data
from kagglekit.errors import UserError

SIDE = 5
LABELS = np.array([3, 1, 1, 3, 7, 1])
PIXELS = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE)).astype(np.uint8)
TEST = np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE)).astype(np.uint8)
IDS = [f"t{number}" for number in (2, 0, 3, 1)]  # of TEST, as the sample has them


def sample(folder: Path) -> None:
    pd.DataFrame({"id": IDS, "label": 0}).to_csv(folder / "sample_submission.csv", index=False)


def columns(folder: Path) -> Path:
    folder.mkdir()
    names = [f"pixel{number}" for number in range(SIDE**2)]
    train = pd.DataFrame(PIXELS.reshape(len(PIXELS), -1), columns=names)
    test = pd.DataFrame(TEST.reshape(len(TEST), -1), columns=names)
    train.assign(label=LABELS, id=range(6)).to_csv(folder / "train.csv", index=False)
    test.assign(id=IDS).sample(frac=1, random_state=0).to_csv(folder / "test.csv", index=False)
    sample(folder)
    return folder


def files(folder: Path) -> Path:
    for number, label in enumerate(LABELS):
        home = folder / "train" / str(label)
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number]).save(home / f"{number}.png")
    (folder / "test").mkdir()
    for id, pixels in zip(IDS, TEST, strict=True):
        Image.fromarray(pixels).save(folder / "test" / f"{id}.png")
    sample(folder)
    return folder


def idx(folder: Path, packed: bool = False) -> Path:
    folder.mkdir()
    for name, array in (
        ("train-images-idx3-ubyte", PIXELS),
        ("train-labels-idx1-ubyte", LABELS.astype(np.uint8)),
        ("t10k-images-idx3-ubyte", TEST),
    ):
        head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        content = head + array.tobytes()
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    sample(folder)
    return folder


def idx_gz(folder: Path) -> Path:
    return idx(folder, packed=True)


LAYOUTS = [columns, files, idx, idx_gz]


def by_label(data: Data) -> dict[str, set[bytes]]:
    """The training pictures of each class, whatever their order."""
    assert data.train_inputs is not None
    found: dict[str, set[bytes]] = {}
    for picture, position in zip(data.train_inputs, data.target, strict=True):
        found.setdefault(data.classes[position], set()).add(picture.tobytes())
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pictures_under_the_same_ids(layout, tmp_path):
    data = pictures.classification(layout(tmp_path / "download"))
    assert data.classes == ("1", "3", "7")
    wanted: dict[str, set[bytes]] = {}
    for picture, label in zip(PIXELS, LABELS, strict=True):
        wanted.setdefault(str(label), set()).add(picture.tobytes())
    assert by_label(data) == wanted
    assert data.test_inputs is not None
    assert data.test_inputs.shape == (4, 1, SIDE, SIDE)
    assert data.test_inputs.dtype == np.uint8
    found = dict(zip(data.test["id"], data.test_inputs[:, 0], strict=True))
    for id, pixels in zip(IDS, TEST, strict=True):
        np.testing.assert_array_equal(found[id], pixels)
    assert data.sample["id"].tolist() == IDS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_download_without_training_pictures_is_a_test_set(layout, tmp_path):
    folder = layout(tmp_path / "download")
    for path in list(folder.glob("train*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    data = pictures.classification(folder)
    assert len(data.target) == len(data.train) == 0
    assert len(data.test) == 4


def test_colour_pictures_have_three_channels(tmp_path):
    data = pictures.classification(files(tmp_path / "download"), channels=3)
    assert data.train_inputs is not None
    assert data.train_inputs.shape == (6, 3, SIDE, SIDE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_read_once_comes_from_the_cache(layout, tmp_path, monkeypatch):
    folder = layout(tmp_path / "download")
    first = pictures.classification(folder)
    with monkeypatch.context() as patch:
        patch.delattr(pictures, "_read")  # reading again would fail
        second = pictures.classification(folder)
    pd.testing.assert_frame_equal(first.train, second.train)
    pd.testing.assert_frame_equal(first.sample, second.sample)
    np.testing.assert_array_equal(first.train_inputs, second.train_inputs)
    np.testing.assert_array_equal(first.target, second.target)
    assert first.classes == second.classes


def test_a_changed_file_is_read_again(tmp_path):
    folder = columns(tmp_path / "download")
    pictures.classification(folder)
    table = pd.read_csv(folder / "test.csv")
    table.loc[0, "pixel0"] = 255 - table.loc[0, "pixel0"]
    table.to_csv(folder / "test.csv", index=False)
    data = pictures.classification(folder)
    assert data.test_inputs is not None
    assert data.test_inputs[0, 0, 0, 0] == table.loc[0, "pixel0"]


def test_a_damaged_cache_is_made_again(tmp_path, caplog):
    folder = columns(tmp_path / "download")
    first = pictures.classification(folder)
    (path,) = folders.cache().glob("arrays/*/train.npy")
    path.write_bytes(path.read_bytes()[:-3])
    second = pictures.classification(folder)
    np.testing.assert_array_equal(first.train_inputs, second.train_inputs)
    assert "cannot be read" in caplog.text


def change(folder: Path, name: str, **cells: object) -> None:
    """Set cells of the third row of a CSV."""
    table = pd.read_csv(folder / name).astype(object)
    for column, value in cells.items():
        table.loc[2, column] = value
    table.to_csv(folder / name, index=False)


@pytest.mark.parametrize("value", [-1, 256, 0.5])
def test_a_value_that_is_no_pixel_is_named(value, tmp_path):
    folder = columns(tmp_path / "download")
    change(folder, "train.csv", pixel7=value)
    with pytest.raises(UserError, match=rf"train.csv, row 3, column pixel7: {value}"):
        pictures.classification(folder)


def test_columns_that_make_no_square_are_counted(tmp_path):
    folder = columns(tmp_path / "download")
    for name in ("train.csv", "test.csv"):
        table = pd.read_csv(folder / name).drop(columns="pixel3")
        table.to_csv(folder / name, index=False)
    with pytest.raises(UserError, match="24 pixel columns"):
        pictures.classification(folder)


def test_a_folder_of_another_kind_says_what_is_looked_for(tmp_path):
    with pytest.raises(UserError, match="holds no pictures"):
        pictures.classification(tmp_path)


def test_an_id_without_a_picture_is_named(tmp_path):
    folder = files(tmp_path / "download")
    (folder / "test" / "t3.png").unlink()
    with pytest.raises(UserError, match="no picture for id t3"):
        pictures.classification(folder)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nbroken"])
@pytest.mark.parametrize("part", ["train/1/1.png", "test/t0.png"])
def test_a_broken_picture_is_named_and_nothing_is_cached(part, content, tmp_path):
    folder = files(tmp_path / "download")
    (folder / part).write_bytes(content)
    with pytest.raises(UserError, match=Path(part).name):
        pictures.classification(folder)
    assert not list(folders.cache().glob("arrays/*"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-3],
        lambda content: b"",
        lambda content: b"\1" + content[1:],
        lambda content: content[:6],
    ],
)
def test_a_broken_idx_file_is_named(spoil, packed, tmp_path):
    folder = idx(tmp_path / "download", packed)
    (path,) = folder.glob("train-images*")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match="train-images"):
        pictures.classification(folder)


def test_idx_files_of_other_lengths_are_counted(tmp_path):
    folder = idx(tmp_path / "download")
    table = pd.read_csv(folder / "sample_submission.csv")[:3]
    table.to_csv(folder / "sample_submission.csv", index=False)
    with pytest.raises(UserError, match="holds 4 pictures, but the sample submission has 3 rows"):
        pictures.classification(folder)


def test_idx_labels_are_as_many_as_pictures(tmp_path):
    folder = idx(tmp_path / "download")
    head = bytes([0, 0, 8, 1]) + struct.pack(">I", 5)
    (folder / "train-labels-idx1-ubyte").write_bytes(head + LABELS[:5].astype(np.uint8).tobytes())
    with pytest.raises(UserError, match="5 labels"):
        pictures.classification(folder)


def test_classes_are_in_natural_order(tmp_path):
    folder = columns(tmp_path / "download")
    change(folder, "train.csv", label=10)
    assert pictures.classification(folder).classes == ("1", "3", "7", "10")


def test_an_idx_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    head = b"\0\0\x08\x03" + b"".join(side.to_bytes(4, "big") for side in (1 << 26, 1, 1))
    bomb = gzip.compress(head + bytes(1 << 26))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(bomb)
    (tmp_path / "sample_submission.csv").write_text("id,label\n0,0\n")
    with pytest.raises(UserError, match="too many for its size"):
        pictures.classification(tmp_path)


@pytest.mark.parametrize("torn", [20, 60])
def test_a_torn_gzip_is_one_sentence(tmp_path, torn):
    pixels = np.random.default_rng(0).integers(0, 256, 64, np.uint8).tobytes()
    head = b"\0\0\x08\x03" + b"".join(side.to_bytes(4, "big") for side in (4, 4, 4))
    content = bytearray(gzip.compress(head + pixels))
    content[torn] ^= 255
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content[:-12])
    (tmp_path / "sample_submission.csv").write_text("id,label\n0,0\n")
    with pytest.raises(UserError, match="no sound idx file"):
        pictures.classification(tmp_path)


def test_a_train_csv_beside_folders_tells_more_of_the_pictures(tmp_path):
    files(tmp_path)
    known = pictures.classification(tmp_path, 1)
    paths = sorted((tmp_path / "train").rglob("*.png"))
    rows = [f"{path.name},{path.parent.name},p{number % 3}" for number, path in enumerate(paths)]
    header = f"{known.id},{known.sample.columns[1]},person"
    (tmp_path / "train.csv").write_text("\n".join([header, *reversed(rows)]))
    data = pictures.classification(tmp_path, 1)
    assert list(data.train.columns) == [known.id, "person"]
    person = {path.stem: f"p{number % 3}" for number, path in enumerate(paths)}
    assert list(data.train["person"]) == [person[id] for id in data.train[data.id]]

    (tmp_path / "train.csv").write_text("\n".join([header, *rows[1:]]))
    with pytest.raises(UserError, match="has no row for"):
        pictures.classification(tmp_path, 1)
    wrong = rows[0].replace(f",{paths[0].parent.name},", ",another,")
    (tmp_path / "train.csv").write_text("\n".join([header, wrong, *rows[1:]]))
    with pytest.raises(UserError, match="says 'another' of"):
        pictures.classification(tmp_path, 1)


def test_pictures_that_memory_has_no_room_for_are_refused_before_it_is_full(tmp_path, monkeypatch):
    files(tmp_path)
    monkeypatch.setattr(pictures, "_HARMLESS", 100)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=200))
    with pytest.raises(UserError, match="GiB, and 0 are free"):
        pictures.classification(tmp_path, 1)
