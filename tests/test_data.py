from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from kagglekit.data import Data, SharedRows, Split
from tests.engine import numbers, pictures


def shared(split: Split) -> SharedRows:
    """The rows of a split, which read columns of all."""
    return cast(SharedRows, split.tensors())


def test_targets_outside_the_training_rows_are_out_of_reach() -> None:
    for data in (numbers(), pictures()):
        split = data.split(np.arange(10, 20), "train")
        np.testing.assert_array_equal(split.target, data.target[10:20])
        hidden = np.delete(split.data.target, np.arange(10, 20), axis=0)
        assert np.isnan(hidden).all() if hidden.dtype.kind == "f" else (hidden == -1).all()


@pytest.mark.parametrize("stage", ["valid", "test"])
def test_rows_to_be_answered_carry_no_target(stage: str) -> None:
    data = numbers()
    split = data.split(np.arange(10), stage)  # type: ignore[arg-type]
    assert split.target is None
    assert np.isnan(split.data.target).all()
    assert len(split.tensors().tensors) == 1


def test_hiding_targets_changes_no_data() -> None:
    data = numbers()
    before = data.target.copy()
    data.split(np.arange(3), "valid")
    np.testing.assert_array_equal(data.target, before)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, bool])
def test_targets_of_every_dtype_can_be_hidden(dtype: type) -> None:
    data = pictures()
    object.__setattr__(data, "target", data.target.astype(dtype))
    assert data.split(np.arange(3), "valid").target is None


def test_a_part_of_a_split_has_its_rows() -> None:
    split = numbers().split(np.arange(20, 40), "train").take(np.array([3, 1]))
    np.testing.assert_array_equal(split.rows, [23, 21])
    np.testing.assert_array_equal(split.ids, ["23", "21"])
    np.testing.assert_array_equal(split.target, numbers().target[[23, 21]])


def test_tensors_may_be_written_without_changing_the_data() -> None:
    data = numbers()
    inputs, target = data.split(np.arange(96), "train").tensors().tensors
    inputs.zero_()
    target.zero_()
    assert data.target.any()
    assert data.split(np.arange(96), "train").inputs.any()


@pytest.mark.parametrize("data", [numbers(), pictures()], ids=["table", "pictures"])
def test_all_splits_read_one_copy_of_the_inputs(data: Data) -> None:
    if data.train_inputs is not None:
        data.train_inputs.setflags(write=False)  # as pandas and files mapped into memory have it
    train = data.split(np.arange(60), "train")
    splits = [train, data.split(np.arange(60, 96), "valid"), train.take(np.array([5, 3])),
              train.data.split(np.arange(20, 80), "train")]  # fmt: skip
    datasets = [shared(split) for split in splits]
    assert len({rows.columns[0].data_ptr() for rows in datasets}) == 1
    assert data.split(np.arange(9), "test").tensors().tensors[0].shape[0] == 9
    for split in splits:
        np.testing.assert_array_equal(split.tensors().tensors[0], split.inputs)
        if split.target is not None:
            np.testing.assert_array_equal(split.tensors().tensors[1], split.target)


def test_inputs_in_memory_are_not_copied_at_all() -> None:
    data = pictures()
    assert data.train_inputs is not None
    split = data.split(np.arange(60), "train")
    assert shared(split).columns[0].data_ptr() == data.train_inputs.ctypes.data
    assert shared(split).columns[1].data_ptr() == split.data.target.ctypes.data


@pytest.mark.parametrize("data", [numbers(), pictures()], ids=["numbers", "classes"])
def test_shared_columns_hold_no_target_of_another_s_rows(data: Data) -> None:
    rows = np.arange(10, 20)
    for stage, known in (("train", rows), ("valid", rows[:0])):
        rows_of = shared(data.split(rows, stage))  # type: ignore[arg-type]
        assert len(rows_of.columns) == (2 if stage == "train" else 1)
        for column in rows_of.columns[1:]:
            hidden = np.delete(column.numpy(), known, axis=0)
            assert np.isnan(hidden).all() if hidden.dtype.kind == "f" else (hidden == -1).all()
        assert len(rows_of) == len(rows_of.tensors[0]) == 10


def test_inputs_that_may_differ_from_split_to_split_are_not_shared() -> None:
    class Told(Data):
        """Reads the visible targets, as an encoding of categories by them does."""

        def inputs_of(self, stage: Any, rows: Any = slice(None)) -> np.ndarray:
            return np.full((len(self.train.iloc[rows]), 1), np.nansum(self.target))

    table = pd.DataFrame({"id": range(4), "x": range(4)})
    data = Told(table, table, np.arange(1.0, 5.0), table)
    for rows in ([0, 1], [2, 3]):
        split = data.split(np.array(rows), "train")
        assert split.tensors().tensors[0].tolist() == split.inputs.tolist()


def test_items_are_the_split_s_own_rows_and_copies_of_them() -> None:
    data = numbers()
    split = data.split(np.array([7, 3, 50]), "train")
    rows = split.tensors()
    for index in (0, -1, np.int64(1), [2, 0], slice(1, 3), torch.tensor([1, 1])):
        for part, expected in zip(rows[index], split.tensors(split.inputs)[index], strict=True):
            assert torch.equal(part, expected)
            part.zero_()  # also what it could be a view of
            assert part.untyped_storage().nbytes() == part.nbytes
    with pytest.raises(IndexError):
        rows[3]
    np.testing.assert_array_equal(rows.tensors[0], split.inputs)


def test_tensors_that_were_read_are_the_data_set_s_from_then_on() -> None:
    split = numbers().split(np.arange(20), "train")
    changed, other = split.tensors(), split.tensors()
    changed.tensors[0].mul_(2)
    assert torch.equal(changed[3][0], 2 * other[3][0])
    changed.tensors = (torch.zeros(5, 3),)
    assert len(changed) == 5
    assert changed[4][0].tolist() == [0, 0, 0]


def test_another_process_gets_a_member_s_rows_alone() -> None:
    data = pictures(960)
    split = data.split(np.arange(6), "train")
    sent = pickle.dumps(split.tensors())
    assert len(sent) < 6000
    restored = pickle.loads(sent)
    assert type(restored) is TensorDataset
    assert all(map(torch.equal, restored.tensors, split.tensors().tensors))
    for twin in (pickle.loads(pickle.dumps(split)), copy.deepcopy(split)):
        assert all(map(torch.equal, twin.tensors().tensors, split.tensors().tensors))


def test_data_with_other_inputs_share_nothing_with_the_former() -> None:
    data = pictures()
    data.split(np.arange(9), "train").tensors()
    assert data.train_inputs is not None
    bright = replace(data, train_inputs=255 - data.train_inputs).split(np.arange(9), "train")
    dark: Tensor = data.split(np.arange(9), "train").tensors().tensors[0]
    assert torch.equal(bright.tensors().tensors[0], 255 - dark)


def test_features_are_all_columns_but_the_id() -> None:
    inputs = numbers().split(np.arange(5), "test").tensors().tensors[0]
    assert inputs.shape == (5, 3)
    assert inputs.dtype == torch.float64
