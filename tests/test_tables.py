"""Names and values come from the files as they are; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from kagglekit import tables
from kagglekit.data import Data
from kagglekit.errors import UserError

TOY = {
    "train.csv": "id,a,b,y\n01,1,0.5,10\n02,2,1.5,20\n03,3,2.5,30\n",
    "test.csv": "id,a,b\n11,4,0.25\n12,5,0.75\n",
    "sample_submission.csv": "id,y\n12,0.0\n11,0.0\n",
}
LABELLED = {**TOY, "train.csv": "id,a,b,y\n1,1,2,10\n2,3,4,2\n3,5,6,10\n4,5,6,9\n"}


def folder(tmp_path: Path, contents: Mapping[str, str | bytes | None]) -> Path:
    """A download of these files; None leaves one out."""
    place = tmp_path / "toy"
    place.mkdir(exist_ok=True)
    for name, content in contents.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return place


def file(tmp_path: Path, content: str | bytes) -> Path:
    return folder(tmp_path, {"a.csv": content}) / "a.csv"


def refused(act: Callable[[Path], object], path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        act(path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# --- one file -----------------------------------------------------------------------------------


def test_text_stays_as_it_is_written(tmp_path: Path) -> None:
    table = tables.read(file(tmp_path, 'id,x\n007,1\nNA,2\n"a,""b",3\n 1.0,4\n,5\n'), text=["id"])
    assert table["id"].tolist() == ["007", "NA", 'a,"b', " 1.0", ""]
    assert table["x"].dtype == np.int64


def test_numbers_are_read_to_the_last_bit(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 2**63, 5000).view(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    content = "x\n" + "\n".join(map(repr, numbers.tolist()))
    assert (tables.read(file(tmp_path, content))["x"].to_numpy() == numbers).all()


def test_an_empty_cell_of_a_number_is_nan(tmp_path: Path) -> None:
    table = tables.read(file(tmp_path, "x,y\n1,\nNA,2\n"))
    assert np.isnan(table.to_numpy()).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfid,x\n1,2\n3,4\n",
        b"id,x\r\n1,2\r\n3,4\r\n",
        b"id,x\n1,2\n3,4",
        b"id,x\n\n1,2\n\n3,4\n\n",
        b'"id","x"\n"1",2\n3,"4"\n',
    ],
    ids=["byte order mark", "Windows", "no last line end", "blank lines", "quotes"],
)
def test_all_usual_spellings_of_a_csv_are_one(tmp_path: Path, content: bytes) -> None:
    table = tables.read(file(tmp_path, content), text=["id"])
    assert list(table.columns) == ["id", "x"]
    assert table.to_numpy().tolist() == [["1", 2], ["3", 4]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id;x\n1;2\n", ["semicolons", "commas"]),
        ("id;x\n1;2,5\n", ["semicolons"]),
        ("id\tx\n1\t2\n", ["tabs"]),
        ("id|x\n1|2\n", ["vertical bars"]),
        ("", ["empty"]),
        ("\n\n", ["empty"]),
        ("id,x\n1,2\n3\n", ["line 3", "1 cells", "2"]),
        ("id,x\n1,2,\n3,4,\n", ["line 2", "3 cells"]),
        ("id,x\n1,2\n3,4,5\n6,7\n", ["line 3"]),
        ('id,x\n"a\nb",2\n3\n', ["line 4"]),
        ("id,x\n1,2,3\n4\n", ["a.csv"]),
        ('id,x\n"a,b",2\n3\n', ["line 3", "1 cells"]),
        ("id,x,x\n1,2,3\n", ["two columns 'x'"]),
        (b"id,x\n1,\xe9t\xe9\n", ["UTF-8"]),
        (b"\xe9,x\n1,2\n", ["UTF-8"]),
        ("id,x\n1,2\n".encode("utf-16"), ["UTF-8"]),
    ],
)
def test_a_file_that_is_no_plain_csv_is_named(
    tmp_path: Path, content: str | bytes, words: list[str]
) -> None:
    refused(lambda path: tables.read(path, text=["id"]), file(tmp_path, content), "a.csv", *words)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    refused(tables.read, tmp_path / "none.csv", "none.csv")
    (tmp_path / "dir.csv").mkdir()
    refused(tables.read, tmp_path / "dir.csv", "dir.csv")


# --- the sample submission ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "sample_submission.csv",
        "sampleSubmission.csv",
        "test_data/video_categories_sample_submission.csv",
        "Sample_Submission_v2.CSV",
    ],
)
def test_the_sample_is_found_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    place = folder(tmp_path, {name: "id,y\n01,0\n02,1.50\n", "train.csv": "id\n1\n"})
    assert tables.sample(place).to_numpy().tolist() == [["01", "0"], ["02", "1.50"]]


def test_the_sample_is_the_plainly_named_and_least_deep_one(tmp_path: Path) -> None:
    wanted = "id,y\nright,0\n"
    place = folder(
        tmp_path,
        {
            "sample_submission.csv": wanted,
            "stage_1_sample_submission.csv": "id,y\nwrong,0\n",
            "zip/sample_submission.csv": "id,y\nwrong,0\n",
        },
    )
    assert tables.sample(place)["id"].tolist() == ["right"]
    folder(tmp_path, {"sampleSubmission.csv": wanted})
    refused(tables.sample, place, "sampleSubmission.csv", "sample_submission.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no sample_submission.csv"]),
        ("id\n1\n", ["one column"]),
        ("id,y\n", ["no rows"]),
        ("id,y\n1,0\n2,0\n1,0\n", ["'1'", "more than once"]),
        ("id,y\n1,0\n,0\n", ["row 2", "'id'", "empty"]),
    ],
)
def test_a_sample_that_is_none_is_refused(
    tmp_path: Path, content: str | None, words: list[str]
) -> None:
    place = folder(tmp_path, {"sample_submission.csv": content})
    refused(tables.sample, place, *words)


# --- numbers ------------------------------------------------------------------------------------


def test_names_and_numbers_come_from_the_files(tmp_path: Path) -> None:
    data = tables.regression(folder(tmp_path, TOY))
    assert (data.id, data.outputs, data.classes) == ("id", 1, ())
    assert list(data.train) == list(data.test) == ["id", "a", "b"]
    assert data.train["id"].tolist() == ["01", "02", "03"]
    np.testing.assert_array_equal(data.target, [[10.0], [20.0], [30.0]])
    assert data.target.dtype == np.float64
    np.testing.assert_array_equal(data.split(np.arange(2), "test").inputs, [[4, 0.25], [5, 0.75]])


def test_outputs_are_in_the_order_of_the_sample(tmp_path: Path) -> None:
    data = tables.regression(
        folder(
            tmp_path,
            {
                "train.csv": "v,row,u,x,group\n1,r1,2,3,g\n4,r2,5,6,h\n",
                "test.csv": "x,row,v\n7,t1,\n",
                "sample_submission.csv": "row,u,v\nt1,0,0\n",
            },
        )
    )
    np.testing.assert_array_equal(data.target, [[2, 1], [5, 4]])
    assert list(data.test) == ["row", "x"]
    assert data.outputs == 2
    assert data.train["group"].tolist() == ["g", "h"]  # known of train only: for folds


def test_files_in_a_folder_of_the_download_are_found(tmp_path: Path) -> None:
    place = folder(tmp_path, {f"toy/{name}": content for name, content in TOY.items()})
    assert len(tables.regression(place).train) == 3


def test_a_new_test_set_needs_no_train_file(tmp_path: Path) -> None:
    place = folder(tmp_path, {**TOY, "train.csv": None})
    numbers, labels = tables.regression(place), tables.classification(place)
    assert len(numbers.train) == len(labels.train) == 0
    assert numbers.target.shape == (0, 1)
    assert labels.target.shape == (0,)
    assert list(numbers.train) == list(numbers.test)


def test_a_train_file_without_ids_is_read(tmp_path: Path) -> None:
    data = tables.regression(folder(tmp_path, {**TOY, "train.csv": "a,b,y\n1,2,3\n4,5,6\n"}))
    assert list(data.train) == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test.csv": None}, ["no test.csv"]),
        ({"test.csv": "id,a,b\n"}, ["test.csv", "no rows"]),
        ({"train.csv": "id,a,b,y\n"}, ["train.csv", "no rows"]),
        ({"test.csv": "key,a,b\n11,1,1\n12,1,1\n"}, ["test.csv", "'id'"]),
        ({"train.csv": "id,a,b\n1,1,1\n"}, ["train.csv", "lacks", "'y'"]),
        ({"train.csv": "id,a,y\n1,1,1\n"}, ["train.csv", "lacks", "'b'"]),
        ({"train.csv": "id,a,b,y\n1,1,1,1\n1,2,2,2\n"}, ["train.csv", "'1'", "more than once"]),
        ({"test.csv": "id,a,b\n11,4,0.25\n12,5,1\n11,4,4\n"}, ["test.csv", "'11'"]),
        ({"train.csv": "id,a,b,y\n1,1,1,1\n2,2,x,2\n"}, ["train.csv", "row 2", "'b'", "'x'"]),
        ({"train.csv": "id,a,b,y\n1,1,1,1\n2,2,,2\n"}, ["train.csv", "row 2", "'b'", "empty"]),
        ({"train.csv": "id,a,b,y\n1,1,1,1\n2,2,inf,2\n"}, ["train.csv", "row 2", "'b'", "inf"]),
        ({"train.csv": "id,a,b,y\n1,1,1,nan\n2,2,2,2\n"}, ["train.csv", "row 1", "'y'", "NaN"]),
        ({"train.csv": "id,a,b,y\n1,1,1,1\n2,2,2,-inf\n"}, ["train.csv", "row 2", "'y'", "inf"]),
        ({"train.csv": "id,a,b,y\n1,1,1,cat\n2,2,2,2\n"}, ["train.csv", "row 1", "'y'", "cat"]),
        ({"test.csv": "id,a,b\n11,4,0.25\n12,oops,1\n"}, ["test.csv", "row 2", "'12'", "'a'"]),
        ({"test.csv": "id\n11\n12\n"}, ["test.csv", "no column of numbers"]),
        ({"test.csv": "id,a,b\n11,x,y\n12,x,y\n"}, ["test.csv", "no column of numbers"]),
        ({"sample_submission.csv": "id,y\n11,0\n"}, ["sample", "lacks 1", "'12'"]),
        ({"sample_submission.csv": "id,y\n11,0\n12,0\n13,0\n"}, ["test.csv", "lacks 1", "'13'"]),
        ({"other/test.csv": "", "deep/test.csv": "", "test.csv": None}, ["other/test.csv", "deep"]),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, str | None], words: list[str]
) -> None:
    refused(tables.regression, folder(tmp_path, {**TOY, **change}), *words)


# --- classes ------------------------------------------------------------------------------------


def test_classes_are_the_labels_text_in_natural_order(tmp_path: Path) -> None:
    data = tables.classification(folder(tmp_path, LABELLED))
    assert data.classes == ("2", "9", "10")
    assert data.target.tolist() == [2, 0, 2, 1]
    assert data.target.dtype == np.int64
    assert list(data.train) == list(data.test) == ["id", "a", "b"]


def test_positions_give_the_labels_back() -> None:
    labels = np.array(["img10", "b", "img9", "-1.5", "10", "9", "b", "nan", "007"])
    classes, target = tables.positions(labels)
    assert classes == ("-1.5", "007", "9", "10", "b", "img9", "img10", "nan")
    assert [classes[position] for position in target] == labels.tolist()


def test_the_label_may_be_the_one_column_that_test_lacks(tmp_path: Path) -> None:
    sample = "id,cat,dog\n11,0.5,0.5\n12,0.5,0.5\n"
    train = "id,a,b,kind\n1,1,2,dog\n2,3,4,cat\n"
    change = {"sample_submission.csv": sample, "train.csv": train}
    data: Data = tables.classification(folder(tmp_path, {**TOY, **change}))
    assert data.classes == ("cat", "dog")
    assert data.target.tolist() == [1, 0]
    change["train.csv"] = "id,a,b,kind,group\n1,1,2,dog,g\n"
    place = folder(tmp_path, {**TOY, **change})
    refused(tables.classification, place, "train.csv", "'kind', 'group'")


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    change = {"train.csv": "id,a,b,y\n1,1,1,cat\n2,2,2,\n"}
    refused(tables.classification, folder(tmp_path, {**TOY, **change}), "row 2", "'y'", "empty")


def test_the_word_na_is_a_class(tmp_path: Path) -> None:
    change = {"train.csv": "id,a,b,y\n1,1,1,NA\n2,2,2,None\n"}
    data = tables.classification(folder(tmp_path, {**TOY, **change}))
    assert data.classes == ("NA", "None")


def test_an_id_or_class_wider_than_any_name_is_refused_before_it_fills_the_memory(
    tmp_path: Path,
) -> None:
    (tmp_path / "test.csv").write_text("id,x\n1,2\n2,3\n")
    (tmp_path / "sample_submission.csv").write_text(f"id,y\n1,0\n{'2' * 300},0\n")
    with pytest.raises(UserError, match="row 2, column 'id' has more than 256 characters"):
        tables.regression(tmp_path)


def test_nul_bytes_which_numpy_would_drop_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,x\na,1\na\0,2\n")
    with pytest.raises(UserError, match="NUL"):
        tables.read(tmp_path / "a.csv", text=["id"])
