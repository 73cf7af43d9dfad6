from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kagglekit import folds as folding
from kagglekit.config import Config
from kagglekit.data import Data, Dependence
from kagglekit.errors import UserError

law = settings(max_examples=15, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 1000)


def made(rows: int = 60, seed: int = 0, classes: int = 3, **columns) -> Data:
    """Rows with a class (or a number, for `classes=0`), a writer, a day and an id."""
    random = np.random.default_rng(seed)
    train = pd.DataFrame(
        {
            "name": [f"row{i}" for i in range(rows)],
            "writer": random.permutation(np.arange(rows) % 12),
            "day": random.permutation(np.arange(rows) // 4),
        }
        | columns
    )
    target = random.permutation(np.arange(rows) % classes) if classes else random.normal(size=rows)
    sample = pd.DataFrame({"name": ["a"], "answer": ["0"]})
    names = tuple(f"class{i}" for i in range(classes))
    return Data(train, pd.DataFrame({"name": ["a"]}), target, sample, names)


KINDS = {
    "shuffled": folding.shuffled,
    "stratified": folding.stratified,
    "grouped": folding.grouped("writer"),
    "stratified_grouped": folding.stratified_grouped("writer"),
    "hold_out": folding.hold_out(0.25),
    "hold_out_stratified": folding.hold_out(0.25, stratify=True),
    "time_ordered": folding.time_ordered("day"),
    "repeated": folding.repeated(folding.shuffled, 3),
}
PARTITIONS = ["shuffled", "stratified", "grouped", "stratified_grouped"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def drawn(kind: str, data: Data, **knobs):
    return folding.split(data, Config(**knobs), KINDS[kind])


def equal(some, others) -> bool:
    return len(some) == len(others) and all(
        np.array_equal(part, other)
        for fold, counterpart in zip(some, others, strict=True)
        for part, other in zip(fold, counterpart, strict=True)
    )


@every_kind
@law
@given(seed=seeds)
def test_each_fold_is_two_disjoint_parts_of_sorted_int64_positions(kind, seed):
    data = made(seed=seed, rows=120)
    for fold in drawn(kind, data, folds=3, seed=seed):
        for part in fold:
            assert part.dtype == np.int64
            assert len(part) > 0
            assert (np.diff(part) > 0).all()
            assert part[0] >= 0
            assert part[-1] < 120
        assert not np.intersect1d(*fold).size


@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize("count", [2, 5])
def test_each_row_is_validated_once_and_trained_on_in_all_other_folds(kind, count):
    data = made()
    folds = drawn(kind, data, folds=count)
    assert len(folds) == count
    assert sorted(np.concatenate([valid for _, valid in folds])) == list(range(60))
    assert all(len(train) + len(valid) == 60 for train, valid in folds)


@every_kind
def test_folds_depend_on_the_seed_alone(kind):
    data = made()
    first, second = (drawn(kind, data, folds=3, seed=4) for _ in range(2))
    assert equal(first, second)
    if kind != "time_ordered":
        assert not equal(first, drawn(kind, data, folds=3, seed=5))


@pytest.mark.parametrize("kind", ["stratified", "hold_out_stratified"])
def test_stratified_folds_share_each_class_evenly(kind):
    data = made(classes=3)
    for _, valid in drawn(kind, data, folds=4):
        assert np.bincount(data.target[valid]).tolist() == [5, 5, 5]


@pytest.mark.parametrize("kind", ["grouped", "stratified_grouped"])
@law
@given(seed=seeds)
def test_groups_never_straddle_a_fold(kind, seed):
    data = made(rows=100, seed=seed, classes=2)
    data.train["writer"] = [f"writer {i}" for i in data.train["writer"]]
    for train, valid in drawn(kind, data, folds=3, seed=seed):
        writers = data.train["writer"].to_numpy()
        assert not set(writers[train]) & set(writers[valid])


@pytest.mark.parametrize("form", ["numbers", "dates", "text", "zoned"])
def test_time_ordered_folds_train_strictly_before_they_validate(form):
    data = made()
    days = data.train["day"].to_numpy()
    dates = pd.Timestamp("2024-01-25") + pd.to_timedelta(days, "D")
    forms = {
        "numbers": days,
        "dates": dates,
        "text": dates.strftime("%Y-%m-%d"),
        "zoned": dates.tz_localize("UTC"),
    }
    data.train["day"] = forms[form]
    folds = drawn("time_ordered", data, folds=4)
    assert len(folds) == 4
    for train, valid in folds:
        assert days[train].max() < days[valid].min()
    for (earlier, block), (later, _) in pairwise(folds):
        assert np.array_equal(later, np.union1d(earlier, block))
    assert folds[-1][1].size + folds[-1][0].size == 60


def test_folds_say_how_rows_depend_on_one_another():
    data = made()
    days = data.train["day"].to_numpy()
    forward = folding.training_only(KINDS["time_ordered"], lambda data: np.ones(60, bool))
    moments = folding.dependence(data, forward).moments
    assert ((moments[:, None] < moments) == (days[:, None] < days)).all()
    some = np.flatnonzero(days % 3 == 1)
    assert sorted(set(folding.dependence(data, forward).of(some).moments)) == list(range(5))
    grouped = folding.dependence(data, KINDS["grouped"])
    assert grouped.moments is None
    assert len(set(grouped.groups)) == 12
    assert folding.dependence(data, folding.shuffled) == Dependence()


def test_repeated_folds_are_those_of_the_seeds_that_follow():
    data = made()
    again = folding.split(data, Config(folds=3, seed=7), folding.repeated(folding.stratified, 2))
    assert equal(again[:3], drawn("stratified", data, folds=3, seed=7))
    assert equal(again[3:], drawn("stratified", data, folds=3, seed=8))


def test_repeating_folds_that_no_seed_changes_is_an_error():
    with pytest.raises(UserError, match="the same folds for every seed"):
        folding.split(made(), Config(folds=3), folding.repeated(folding.time_ordered("day"), 2))
    with pytest.raises(UserError, match="times=0"):
        folding.repeated(folding.shuffled, 0)


def test_folds_of_a_column_validate_the_rows_of_each_value_in_order():
    fold = np.arange(60) % 11
    for values in (fold, fold.astype(str), pd.Categorical(fold), fold.astype(float)):
        folds = folding.split(made(fold=values), Config(), folding.from_column())
        assert [set(fold[valid]) for _, valid in folds] == [{k} for k in range(11)]


def test_folds_of_a_column_may_be_named():
    part = np.array(["north", "east"] * 30)
    folds = folding.split(made(part=part), Config(), folding.from_column("part"))
    assert [set(part[valid]) for _, valid in folds] == [{"east"}, {"north"}]
    with pytest.raises(UserError, match=r"column 'part'.*at least two"):
        folding.split(made(part=["x"] * 60), Config(), folding.from_column("part"))


# --- a file of one's own


def written(path: Path, lines: list[str]) -> Config:
    path.write_text("\n".join(lines) + "\n")
    return Config(folds_file=str(path))


@pytest.mark.parametrize("header", ["id,fold", "name,fold", "fold,comment,id"])
def test_a_folds_file_is_joined_by_id_and_replaces_the_competition_s_folds(tmp_path, header):
    order = np.random.default_rng(0).permutation(60)
    cells = [{"id": f"row{i}", "name": f"row{i}", "fold": i % 12, "comment": "x"} for i in order]
    lines = [",".join(str(row[key]) for key in header.split(",")) for row in cells]
    config = written(tmp_path / "own.csv", [header, *lines])
    folds = folding.split(made(), config, folding.shuffled)
    assert [valid.tolist() for _, valid in folds] == [list(range(k, 60, 12)) for k in range(12)]


def test_a_folds_file_names_rows_by_number_where_the_table_has_no_id(tmp_path):
    data = made()
    data = replace(data, train=data.train.drop(columns="name"))
    config = written(tmp_path / "own.csv", ["id,fold", *(f"{i},{i % 2}" for i in range(60))])
    folds = folding.split(data, config, folding.shuffled)
    assert folds[1][1].tolist() == list(range(1, 60, 2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[:-1], "'row59' is missing"),
        (lambda lines: [*lines, "row60,1"], "'row60' is no id"),
        (lambda lines: [*lines, "row3,1"], "'row3' stands in it twice"),
        (lambda lines: ["id,fold", *lines[2:], "row0,"], "'row0' has no fold"),
        (lambda lines: ["id,part", *lines[1:]], "no column 'fold'"),
        (lambda lines: ["key,fold", *lines[1:]], "no column 'id'"),
        (lambda lines: [*lines[:-1], "row59,1,2,3"], "cannot be read"),
        (lambda lines: [lines[0], *(line + ",2" for line in lines[1:])], "cannot be read"),
        (lambda lines: [*lines[:-1], '"row59,1'], "cannot be read"),
        (lambda lines: [""], "cannot be read"),
    ],
)
def test_a_faulty_folds_file_is_an_error_that_names_the_file_and_the_culprit(
    tmp_path, change, reason
):
    lines = ["id,fold", *(f"row{i},{i % 3}" for i in range(60))]
    config = written(tmp_path / "own.csv", change(lines))
    with pytest.raises(UserError, match=reason) as error:
        folding.split(made(), config, folding.shuffled)
    assert str(tmp_path / "own.csv") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folds_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no file .*none\.csv"):
        folding.split(made(), Config(folds_file=str(tmp_path / "none.csv")), folding.shuffled)
    with pytest.raises(UserError, match="cannot be read"):
        folding.split(made(), Config(folds_file=str(tmp_path)), folding.shuffled)


# --- training only


def test_training_only_thins_training_and_leaves_validation():
    data = made(classes=2)
    thin = folding.training_only(folding.shuffled, lambda data: data.target == 0)
    for again in (thin, folding.repeated(thin, 2)):
        folds = folding.split(data, Config(folds=3), again)
        whole = drawn("shuffled", data, folds=3)
        for (train, valid), (all_train, all_valid) in zip(folds, whole, strict=False):
            assert np.array_equal(valid, all_valid)
            assert np.array_equal(train, all_train[data.target[all_train] == 0])


def test_training_only_wants_a_truth_value_a_row_and_something_to_train_on():
    for keep in (lambda data: data.target, lambda data: np.ones(3, bool)):
        with pytest.raises(UserError, match="a truth value for each of the 60"):
            folding.split(made(), Config(), folding.training_only(folding.shuffled, keep))
    nothing = folding.training_only(folding.shuffled, lambda data: data.target > 9)
    with pytest.raises(UserError, match="training rows of fold 0 are none"):
        folding.split(made(), Config(), nothing)


# --- what split refuses


@pytest.mark.parametrize(
    ("fold", "reason"),
    [
        (([0, 1], []), "validation rows of fold 0 are none"),
        (([], [1]), "training rows of fold 0 are none"),
        (([0, 1], [1, 2]), "row 1 is both trained on and validated in fold 0"),
        (([0, 1, 0], [2]), "name row 0 twice"),
        (([0, 1], [60]), "name row 60, but rows go from 0 to 59"),
        (([-1, 1], [2]), "name row -1"),
        ((np.ones(60, bool), [1]), "flatnonzero"),
        (([0.0, 1.0], [2]), "flatnonzero"),
        (([0], [1], [2]), "3 parts"),
    ],
)
def test_folds_of_one_s_own_are_checked(fold, reason):
    with pytest.raises(UserError, match=reason):
        folding.split(made(classes=0), Config(), lambda data, config: [fold])


def test_folds_of_one_s_own_come_back_sorted():
    ((train, valid),) = folding.split(
        made(classes=0), Config(), lambda data, config: [([5, 2, 9], np.array([4, 3], np.uint8))]
    )
    assert train.tolist() == [2, 5, 9]
    assert valid.tolist() == [3, 4]
    assert train.dtype == valid.dtype == np.int64


def test_no_fold_and_no_row_are_errors():
    with pytest.raises(UserError, match="gave no fold"):
        folding.split(made(), Config(), lambda data, config: [])
    with pytest.raises(UserError, match="no training rows"):
        folding.split(made(rows=0), Config(), folding.stratified)


@pytest.mark.parametrize("kind", ["shuffled", "stratified"])
def test_fewer_rows_than_folds_is_an_error_that_says_how_many_would_do(kind):
    with pytest.raises(UserError, match=r"4 training rows, fewer than folds=5: set folds=4"):
        drawn(kind, made(rows=4, classes=2))


@pytest.mark.parametrize("kind", ["stratified", "stratified_grouped"])
def test_a_class_with_fewer_rows_than_folds_is_named(kind):
    data = made()
    data.target[:] = [0] * 30 + [1] * 3 + [2] * 27
    with pytest.raises(UserError, match=r"'class1' has 3 .*set folds=3"):
        drawn(kind, data)
    data.target[:] = [0] * 30 + [1] * 1 + [2] * 29
    with pytest.raises(UserError, match=r"'class1' has 1 .*add rows"):
        drawn(kind, data)


@pytest.mark.parametrize("kind", ["grouped", "stratified_grouped"])
def test_fewer_groups_than_folds_is_an_error(kind):
    with pytest.raises(UserError, match=r"12 groups in column 'writer'.*set folds=12"):
        drawn(kind, made(), folds=13)


def test_fewer_times_than_folds_is_an_error():
    with pytest.raises(UserError, match=r"14 distinct times .*'day'.*set folds=14"):
        drawn("time_ordered", made(), folds=15)


@pytest.mark.parametrize("kind", ["stratified", "stratified_grouped", "hold_out_stratified"])
def test_stratifying_numbers_is_an_error_that_points_to_shuffled(kind):
    with pytest.raises(UserError, match="use `shuffled`"):
        drawn(kind, made(classes=0))


@pytest.mark.parametrize("kind", ["shuffled", "grouped", "hold_out", "time_ordered"])
def test_numbers_can_be_folded(kind):
    assert drawn(kind, made(classes=0), folds=3)


def test_a_class_that_a_training_part_lacks_is_named_with_the_fold():
    data = made()
    data.target[:] = np.arange(60) // 20
    data.train["part"] = np.arange(60) // 20
    with pytest.raises(UserError, match=r"fold 0 has no training row of class 'class0'.*folds=3"):
        folding.split(data, Config(), folding.from_column("part"))


@pytest.mark.parametrize("kind", ["shuffled", "stratified", "stratified_grouped"])
def test_a_class_without_rows_is_named(kind):
    data = replace(made(), classes=("class0", "class1", "class2", "ghost"))
    with pytest.raises(UserError, match="'ghost' has no training row at all"):
        drawn(kind, data, folds=3)


def test_a_target_that_is_no_class_position_names_the_row():
    data = made()
    data.target[5] = -1  # what pandas.Categorical gives for an unknown label
    for kind in ("shuffled", "stratified"):
        with pytest.raises(UserError, match="target of row 5 is -1"):
            drawn(kind, data)


@pytest.mark.parametrize(
    "make",
    [folding.grouped, folding.stratified_grouped, folding.time_ordered, folding.from_column],
)
def test_a_missing_column_or_a_gap_in_it_is_named(make):
    with pytest.raises(UserError, match=r"no column 'wirter'.*did you mean 'writer'"):
        folding.split(made(), Config(), make("wirter"))
    data = made()
    data.train["writer"] = data.train["writer"].astype(float)
    data.train.loc[17, "writer"] = np.nan
    with pytest.raises(UserError, match=r"column 'writer' .* empty in row 17"):
        folding.split(data, Config(), make("writer"))


def test_a_time_that_cannot_be_ordered_names_its_row():
    data = made()
    data.train["day"] = ["2024-01-31"] * 9 + ["31.1.2024"] * 51
    with pytest.raises(UserError, match=r"'31\.1\.2024' in row 9"):
        drawn("time_ordered", data)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2, float("nan")])
def test_hold_out_wants_a_share(fraction):
    with pytest.raises(UserError, match="between 0 and 1"):
        folding.hold_out(fraction)


def test_hold_out_never_leaves_a_part_too_small():
    with pytest.raises(UserError, match=r"into 59 and 1, but each part needs 3"):
        folding.split(made(), Config(), folding.hold_out(0.01, stratify=True))
    with pytest.raises(UserError, match=r"into 0 and 60"):
        folding.split(made(), Config(), folding.hold_out(0.999))


# --- a quick look


@law
@given(seed=seeds, count=st.integers(30, 200))
def test_a_subset_has_count_rows_with_each_class_in_its_share_and_the_folds_own_parts(seed, count):
    data = made(rows=200)
    data.target[:] = np.repeat([0, 1, 2], [100, 60, 40])
    folds = drawn("stratified", data, folds=3, seed=seed)
    smaller = folding.subset(data, folds, count, seed)
    chosen = np.unique(np.concatenate([part for fold in smaller for part in fold]))
    assert len(chosen) == count
    shares = np.bincount(data.target[chosen]) - count * np.array([0.5, 0.3, 0.2])
    assert abs(shares).max() <= 2
    for fold, whole in zip(smaller, folds, strict=True):
        for part, all_of_it in zip(fold, whole, strict=True):
            assert np.array_equal(part, np.intersect1d(all_of_it, chosen))


def test_a_subset_keeps_rare_classes_and_depends_on_its_seed():
    data = made(rows=1000)
    data.target[:] = np.repeat([0, 1, 2], [900, 96, 4])
    folds = drawn("stratified", data, folds=2)
    chosen = {seed: np.union1d(*folding.subset(data, folds[:1], 400, seed)[0]) for seed in (1, 2)}
    assert all((data.target[rows] == 2).sum() >= 2 for rows in chosen.values())
    assert not np.array_equal(chosen[1], chosen[2])
    assert equal(folding.subset(data, folds, 5000, 1), folds)


def test_a_subset_too_small_for_the_folds_is_an_error():
    data = made()
    folds = drawn("stratified", data, folds=5)
    with pytest.raises(UserError, match="take more rows"):
        folding.subset(data, folds, 4, 0)
    with pytest.raises(UserError, match="at least 1"):
        folding.subset(data, folds, 0, 0)
    numbers = made(classes=0)
    assert len(folding.subset(numbers, drawn("shuffled", numbers, folds=2), 20, 0)) == 2


def test_a_subset_lets_training_only_leave_classes_out():
    data = made(classes=2)
    thin = folding.training_only(folding.shuffled, lambda data: data.target == 0)
    folds = folding.subset(data, folding.split(data, Config(folds=2), thin), 30, 0)
    assert all(set(data.target[train]) == {0} for train, _ in folds)


# --- on disk


@every_kind
def test_saved_folds_are_loaded_exactly(kind, tmp_path):
    data = made()
    folds = drawn(kind, data, folds=3)
    for part in (folds, folding.subset(data, folds, 40, 0)):
        folding.save(part, data.train["name"].to_numpy(str), tmp_path / "folds.csv")
        loaded = folding.load(tmp_path / "folds.csv")
        assert equal(loaded, part)
        assert all(rows.dtype == np.int64 for fold in loaded for rows in fold)
        assert folding.fingerprint(loaded) == folding.fingerprint(part)


@law
@given(ids=st.lists(st.text("ab,\"' \n;é", max_size=4), min_size=2, max_size=6))
def test_saved_ids_may_be_any_text(ids, tmp_path_factory):
    path = tmp_path_factory.mktemp("folds") / "folds.csv"
    folds = [(np.array([0]), np.arange(1, len(ids)))]
    folding.save(folds, ids, path)
    assert equal(folding.load(path), folds)
    assert folding._read(path)["id"].tolist() == ids


def test_the_file_says_what_each_fold_does_with_each_row(tmp_path):
    folds = [(np.array([0]), np.array([1])), (np.array([1, 2]), np.array([0]))]
    folding.save(folds, ["a", "b", "c"], tmp_path / "folds.csv")
    text = "id,row,fold0,fold1\na,0,train,valid\nb,1,valid,train\nc,2,,train\n"
    assert (tmp_path / "folds.csv").read_bytes() == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id,row,fold0\na,0,train\nb,1,tra",
        "id,row,fold0\na,0,train\nb,2,valid\n",
        "id,row,fold1\na,0,train\n",
        "id,fold\na,0\n",
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(text, tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"folds\.csv (is damaged|cannot be read)"):
        folding.load(path)


def test_60_000_rows_in_5_folds_are_saved_and_loaded_in_under_a_second(tmp_path):
    rows = np.arange(60_000)
    folds = [(rows[rows % 5 != k], rows[rows % 5 == k]) for k in range(5)]
    ids = rows.astype(str)
    start = time.process_time()
    folding.save(folds, ids, tmp_path / "folds.csv")
    assert equal(folding.load(tmp_path / "folds.csv"), folds)
    assert time.process_time() - start < 1


def test_a_fingerprint_tells_all_folds_apart():
    rows = np.arange(4)
    lists = [
        [(rows[:2], rows[2:])],
        [(rows[2:], rows[:2])],
        [(rows[:1], rows[1:])],
        [(rows[:2], rows[2:]), (rows[2:], rows[:2])],
        [(rows[2:], rows[:2]), (rows[:2], rows[2:])],
        [(rows[:2], rows[2:3])],
        [],
    ]
    prints = [folding.fingerprint(folds) for folds in lists]
    assert len(set(prints)) == len(lists)
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)
    assert folding.fingerprint([(rows[:2].astype(np.int32), rows[2:])]) == prints[0]


def test_an_id_that_a_spreadsheet_would_execute_is_saved_after_an_apostrophe(tmp_path):
    fold = (np.array([0, 1]), np.array([2]))
    folding.save([fold], ["=1+1", "-2", "-x"], tmp_path / "folds.csv")
    lines = (tmp_path / "folds.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", "'=1+1", "-2", "'-x"]
    (loaded,) = folding.load(tmp_path / "folds.csv")
    assert all(map(np.array_equal, loaded, fold))


@pytest.mark.parametrize(("rows", "parts"), [(10, 2), (11, 3), (97, 5), (1000, 7)])
def test_shuffled_folds_are_those_of_scikit_learn(rows: int, parts: int) -> None:
    from sklearn.model_selection import KFold

    expected = KFold(parts, shuffle=True, random_state=3).split(np.zeros(rows))
    frame = pd.DataFrame({"id": range(rows)})
    data = Data(frame, frame, np.zeros((rows, 1)), frame)
    for ours, theirs in zip(
        folding.shuffled(data, Config(folds=parts, seed=3)), expected, strict=True
    ):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
