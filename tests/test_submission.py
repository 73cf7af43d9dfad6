"""Law 7: a submission is joined by id, is exactly what the sample asks for, or is not written."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kagglekit import tables
from kagglekit.data import Data
from kagglekit.errors import UserError
from kagglekit.submission import Submission, labels, numbers, probabilities, probability


def data(
    test: Sequence[str], sample: dict[str, Sequence[str]], classes: Sequence[str] = ()
) -> Data:
    """A competition whose test ids are `test`, and whose sample has these columns."""
    frame = pd.DataFrame({next(iter(sample)): list(test), "x": np.arange(len(test))})
    target = np.zeros(0, np.int64) if classes else np.zeros((0, len(sample) - 1))
    return Data(frame[:0], frame, target, pd.DataFrame(sample, dtype=str), tuple(classes))


TEST, ORDER = ["a", "b", "c"], ["c", "a", "b"]
DIGITS = data(TEST, {"id": ORDER, "label": ["0", "0", "0"]}, ["0", "2", "10"])
PLANE = data(TEST, {"id": ORDER, "u": ["0.0", "0.0", "0.0"], "v": ["0.5", "1.0", "-0.0"]})
BINARY = data(TEST, {"id": ORDER, "genuine": ["0.5"] * 3}, ["no", "yes"])
COLUMNS = data(
    TEST, {"id": ORDER, "dog": ["0.3"] * 3, "ant": ["0.3"] * 3, "cat": ["0.4"] * 3},
    ["ant", "cat", "dog"],
)  # fmt: skip
SOME = np.array([[0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
CASES: dict[str, tuple[Submission, Data, np.ndarray]] = {
    "labels": (labels(), DIGITS, np.array([2, 0, 1])),
    "numbers": (numbers(), PLANE, np.array([[1 / 3, 1e300], [-0.0, 5e-324], [1e-7, 123456789.1]])),
    "probability": (probability(), BINARY, np.array([0.1, 1 / 3, 1.0])),
    "probabilities": (probabilities(), COLUMNS, SOME),
}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as handle:
        return list(csv.reader(handle))


def refused(case: tuple[Submission, Data, np.ndarray], path: Path, *words: str) -> None:
    """Nothing is written, and the error has all words."""
    submission, problem, decided = case
    with pytest.raises(UserError) as caught:
        submission.write(problem, decided, path)
    for word in words:
        assert word in str(caught.value)
    assert list(path.parent.glob("*.csv")) == []


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_written_is_read_back_to_the_last_bit(
    case: tuple[Submission, Data, np.ndarray], tmp_path: Path
) -> None:
    submission, problem, decided = case
    path = submission.write(problem, decided, tmp_path / "new" / "a.csv")
    back = submission.read(problem, path)
    np.testing.assert_array_equal(back, decided)
    assert back.dtype.kind == ("i" if submission.kind == "labels" else "f")
    submission.check(problem, path)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_columns_ids_and_order_are_the_samples(
    case: tuple[Submission, Data, np.ndarray], tmp_path: Path
) -> None:
    submission, problem, decided = case
    found = rows(submission.write(problem, decided, tmp_path / "a.csv"))
    assert found[0] == list(problem.sample.columns)
    assert [row[0] for row in found[1:]] == ORDER


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_answers_follow_their_ids_not_their_places(
    case: tuple[Submission, Data, np.ndarray], tmp_path: Path
) -> None:
    submission, problem, decided = case
    first = submission.write(problem, decided, tmp_path / "a.csv")
    turned = np.array([2, 0, 1])
    moved = Data(
        problem.train, problem.test.iloc[turned], problem.target, problem.sample, problem.classes
    )
    second = submission.write(moved, decided[turned], tmp_path / "b.csv")
    assert first.read_bytes() == second.read_bytes()


def test_labels_are_the_classes_names(tmp_path: Path) -> None:
    submission, problem, decided = CASES["labels"]
    path = submission.write(problem, decided, tmp_path / "a.csv")
    assert path.read_bytes() == b"id,label\nc,2\na,10\nb,0\n"


def test_probabilities_are_joined_by_the_class_name(tmp_path: Path) -> None:
    path = probabilities().write(COLUMNS, SOME, tmp_path / "a.csv")
    assert rows(path)[2] == ["a", "0.7", "0.1", "0.2"]  # dog, ant, cat


def test_the_probability_is_that_of_the_positive_class(tmp_path: Path) -> None:
    both = np.array([[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]])
    for submission, column in (
        (probability(), 1),
        (probability(of="yes"), 1),
        (probability(of="no"), 0),
    ):
        path = submission.write(BINARY, both, tmp_path / "a.csv")
        assert submission.read(BINARY, path).tolist() == both[:, column].tolist()


def test_one_output_may_be_flat(tmp_path: Path) -> None:
    problem = data(TEST, {"id": ORDER, "y": ["0.0"] * 3})
    path = numbers().write(problem, np.array([1.0, 2.0, 3.0]), tmp_path / "a.csv")
    assert path.read_text() == "id,y\nc,3.0\na,1.0\nb,2.0\n"
    assert numbers().read(problem, path).shape == (3, 1)


@pytest.mark.parametrize(
    ("classes", "sample", "written"),
    [
        (["0", "1"], ["0", "0", "0"], ["0", "1"]),
        (["0.0", "1.0"], ["0", "0", "0"], ["0", "1"]),
        (["0", "1"], ["0.0", "0.0", "0.0"], ["0.0", "1.0"]),
        (["007", "12"], ["007", "007", "007"], ["007", "12"]),
        (["cat", "dog"], ["0", "0", "0"], ["cat", "dog"]),
        (["01", "1"], ["0", "0", "0"], ["01", "1"]),
        (["1", "2"], ["", "", ""], ["1", "2"]),
        (['say "a"', "b,c"], ["x", "x", "x"], ['say "a"', "b,c"]),
    ],
)
def test_labels_are_spelled_as_in_the_sample(
    classes: list[str], sample: list[str], written: list[str], tmp_path: Path
) -> None:
    problem = data(TEST, {"id": TEST, "label": sample}, classes)
    path = labels().write(problem, np.array([0, 1, 1]), tmp_path / "a.csv")
    assert [row[1] for row in rows(path)[1:]] == [written[0], written[1], written[1]]
    assert labels().read(problem, path).tolist() == [0, 1, 1]


def test_whole_columns_get_whole_numbers(tmp_path: Path) -> None:
    problem = data(TEST, {"id": TEST, "n": ["0", "1", "2"], "x": ["0.0", "0.0", "0.0"]})
    answers = np.array([[3.0, 1.0], [-1.0, 0.5], [1e15, 2.0]])
    path = numbers().write(problem, answers, tmp_path / "a.csv")
    assert rows(path)[1:] == [
        ["a", "3", "1.0"],
        ["b", "-1", "0.5"],
        ["c", "1000000000000000", "2.0"],
    ]
    path.unlink()
    answers[1, 0] = 0.5
    refused((numbers(), problem, answers), path, "'n'", "'b'", "whole=False")
    assert rows(numbers(whole=False).write(problem, answers, path))[2] == ["b", "0.5", "0.5"]
    path.unlink()
    refused((numbers(whole=True), PLANE, np.full((3, 2), 0.5)), path, "'u'", "'a'")


def test_single_precision_just_beyond_one_is_one(tmp_path: Path) -> None:
    answers = np.array([1.0000001, -1e-9, 0.5], np.float32)
    path = probability().write(BINARY, answers, tmp_path / "a.csv")
    assert probability().read(BINARY, path).tolist() == [1.0, 0.0, 0.5]


def test_line_ends_are_the_samples(tmp_path: Path) -> None:
    (tmp_path / "sample_submission.csv").write_bytes(b"id,label\r\nc,0\r\na,0\r\nb,0\r\n")
    problem = Data(
        DIGITS.train, DIGITS.test, DIGITS.target, tables.sample(tmp_path), DIGITS.classes
    )
    path = labels().write(problem, np.array([2, 0, 1]), tmp_path / "out.csv")
    assert path.read_bytes() == b"id,label\r\nc,2\r\na,10\r\nb,0\r\n"


# --- refusing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_by_id(
    case: tuple[Submission, Data, np.ndarray], bad: float, tmp_path: Path
) -> None:
    submission, problem, decided = case
    decided = decided.astype(float)
    decided.reshape(3, -1)[1, -1] = bad
    refused((submission, problem, decided), tmp_path / "a.csv", "1 id:", "'b'")


@pytest.mark.parametrize(
    ("submission", "problem", "decided", "bad"),
    [
        (labels(), DIGITS, [0, 3, 0], "'b'"),
        (labels(), DIGITS, [-1, 0, 0], "'a'"),
        (labels(), DIGITS, [0, 0, 0.5], "'c'"),
        (numbers(0, 10), PLANE, [[0, 1], [2, -0.1], [3, 10]], "'b'"),
        (numbers(0, 10), PLANE, [[0, 1], [2, 1], [10.1, 10]], "'c'"),
        (probability(), BINARY, [0, 1.01, 0], "'b'"),
        (probability(), BINARY, [-0.01, 1, 0], "'a'"),
        (probabilities(), COLUMNS, [[0.5, 0.5, 0], [0, 0, 1], [-0.5, 0.5, 1]], "'c'"),
    ],
)
def test_an_illegal_value_is_named_by_id(
    submission: Submission, problem: Data, decided: list[float], bad: str, tmp_path: Path
) -> None:
    refused((submission, problem, np.array(decided)), tmp_path / "a.csv", "1 id:", bad)


def test_only_the_first_of_many_rows_are_named(tmp_path: Path) -> None:
    ids = [f"row{number}" for number in range(50)]
    problem = data(ids, {"id": ids, "y": ["0.0"] * 50})
    case = (numbers(), problem, np.full(50, np.nan))
    refused(case, tmp_path / "a.csv", "50 ids", "'row0', 'row1', 'row2' and 47 more")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("labels", (3, 3)),
        ("labels", (2,)),
        ("numbers", (3,)),
        ("numbers", (3, 3)),
        ("probability", (3, 3)),
        ("probabilities", (3, 2)),
        ("probabilities", (3,)),
    ],
)
def test_answers_of_another_shape_are_refused(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    submission, problem, _ = CASES[name]
    refused((submission, problem, np.zeros(shape)), tmp_path / "a.csv", str(shape), name)


def test_words_are_no_answers(tmp_path: Path) -> None:
    refused((labels(), DIGITS, np.array(["0", "2", "10"])), tmp_path / "a.csv", "numbers")


@pytest.mark.parametrize(
    ("test", "sample", "words"),
    [
        (["a", "b", "c"], ["a", "b"], ["sample", "lacks", "'c'"]),
        (["a", "b"], ["a", "b", "z"], ["test table lacks", "'z'"]),
        (["a", "b", "b"], ["a", "b"], ["test table", "twice", "'b'"]),
        (["a", "b"], ["a", "b", "a"], ["sample", "twice", "'a'"]),
        (["1", "2"], ["01", "02"], ["lacks", "'1'"]),
    ],
)
def test_a_sample_whose_ids_are_not_those_of_test_is_refused(
    test: list[str], sample: list[str], words: list[str], tmp_path: Path
) -> None:
    problem = data(test, {"id": sample, "y": ["0.0"] * len(sample)})
    refused((numbers(), problem, np.zeros(len(test))), tmp_path / "a.csv", *words)


def test_a_sample_that_asks_for_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    two = data(TEST, {"id": TEST, "u": ["0"] * 3, "v": ["0"] * 3}, ["no", "yes"])
    refused((labels(), two, np.zeros(3, int)), path, "one target column", "'u', 'v'")
    refused((probability(), two, np.zeros(3)), path, "one target column")
    refused((probabilities(), two, np.zeros((3, 2))), path, "'u', 'v'", "'no', 'yes'")
    refused((labels(), data(TEST, {"id": TEST, "y": ["0"] * 3}), np.zeros(3)), path, "classes")
    refused((probability(of="maybe"), BINARY, np.zeros((3, 2))), path, "'maybe'", "'no', 'yes'")
    three = data(TEST, {"id": TEST, "y": ["0.5"] * 3}, ["a", "b", "c"])
    refused((probability(), three, np.zeros((3, 3))), path, "of=CLASS")
    nameless = Data(BINARY.train, BINARY.test[["x"]], BINARY.target, BINARY.sample, BINARY.classes)
    refused((probability(), nameless, np.zeros(3)), path, "no column 'id'")


def test_a_refused_submission_leaves_the_earlier_one(tmp_path: Path) -> None:
    submission, problem, decided = CASES["numbers"]
    path = submission.write(problem, decided, tmp_path / "a.csv")
    before = path.read_bytes()
    with pytest.raises(UserError):
        submission.write(problem, decided * np.nan, path)
    assert path.read_bytes() == before


# --- reading and checking -----------------------------------------------------------------------


def test_a_solution_may_be_in_any_order_with_more_columns_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "solution.csv"
    path.write_text("Usage,label,id\nPublic,10,b\nPrivate,0,z\nPublic,2.0,c\nPublic,0,a\n")
    assert labels().read(DIGITS, path).tolist() == [0, 2, 1]


GOOD = "id,label\nc,2\na,10\nb,0\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,label\nc,2\na,10\n", ["lacks", "'b'"]),
        (GOOD + "z,0\n", ["has not", "'z'"]),
        (GOOD + "a,0\n", ["twice", "'a'"]),
        ("id,label\na,10\nc,2\nb,0\n", ["row 1", "'a'", "'c'"]),
        ("label,id\n2,c\n10,a\n0,b\n", ["columns label, id"]),
        (GOOD.replace("label", "Label"), ["columns id, Label"]),
        (GOOD.replace(",10", ",7"), ["'a'", "'7'", "none of the classes"]),
        (GOOD.replace(",10", ","), ["'a'", "''"]),
        (GOOD.replace(",10", ",nan"), ["'a'", "'nan'"]),
        (GOOD.replace(",", ";"), ["semicolons"]),
        (GOOD.replace(",10", ""), ["line 3"]),
        ("", ["empty"]),
    ],
)
def test_a_file_that_kaggle_would_refuse_is_found(
    content: str, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(GOOD)
    labels().check(DIGITS, path)
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        labels().check(DIGITS, path)
    for word in (str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "words"),
    [("x", ["'a'", "'x'"]), ("nan", ["NaN", "'a'"]), ("inf", ["'a'"]), ("1.5", ["0…1", "'a'"])],
)
def test_numbers_of_a_file_are_checked_too(cell: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"id,genuine\nc,0.5\na,{cell}\nb,0\n")
    with pytest.raises(UserError) as caught:
        probability().check(BINARY, path)
    for word in words:
        assert word in str(caught.value)


def test_a_solution_that_lacks_a_column_or_a_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "solution.csv"
    path.write_text("id,other\na,1\n")
    with pytest.raises(UserError, match="lacks the column 'label'"):
        labels().read(DIGITS, path)
    path.write_text("id,label\na,10\n")
    with pytest.raises(UserError, match=r"lacks 2 ids: 'b', 'c'"):
        labels().read(DIGITS, path)


@pytest.mark.parametrize("name", ["=1+1", "+SUM(A1)", "-Xy12", "@home", "\tx", "-", "-1e", "+٣"])
def test_what_a_spreadsheet_would_execute_is_refused_unless_it_is_said_to_be_harmless(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.csv"
    hostile = data(["a", name], {"id": [name, "a"], "label": ["0", "0"]}, ["0", "1"])
    with pytest.raises(UserError, match=r"row 1, column 'id'.*formulas=True") as caught:
        labels().write(hostile, np.array([0, 1]), path)
    assert repr(name) in str(caught.value)
    with pytest.raises(UserError, match="a class: a spreadsheet"):
        labels().screen(data(["a"], {"id": ["a"], "label": ["0"]}, ["0", name]))
    with pytest.raises(UserError, match="a column: a spreadsheet"):
        numbers().screen(data(["a"], {"id": ["a"], name: ["0"]}))
    assert not path.exists()
    labels(formulas=True).write(hostile, np.array([0, 1]), path)
    assert tables.words(path)["id"].tolist() == [name, "a"]  # as it was, to the letter


@pytest.mark.parametrize(
    "name", ["-1", "+1", "-1.5e3", "+.5", "-0", "a-b", "a=1", " =1", "é", "1e-3"]
)
def test_plain_numbers_and_words_are_no_formulas(name: str, tmp_path: Path) -> None:
    plain = data(["a", name], {"id": [name, "a"], "label": ["0", "0"]}, ["0", name])
    labels().write(plain, np.array([0, 1]), tmp_path / "s.csv")


def test_a_number_is_read_as_kaggle_reads_it_and_not_as_python_does(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    for cell in ("1_0", "１０", "٣"):
        path.write_text(f"id,label\na,{cell}\nb,0\nc,0\n", encoding="utf-8")
        with pytest.raises(UserError, match="none of the classes"):
            labels().read(DIGITS, path)


@pytest.mark.parametrize("name", ["\rx", "x\ry"])
def test_a_carriage_return_which_readers_take_for_the_end_of_a_row_is_refused(
    name: str, tmp_path: Path
) -> None:
    broken = data(["a", name], {"id": [name, "a"], "label": ["0", "0"]}, ["0", "1"])
    with pytest.raises(UserError, match="carriage return"):
        labels(formulas=True).write(broken, np.array([0, 1]), tmp_path / "s.csv")
