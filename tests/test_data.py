from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.engine import numbers, pictures


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


def test_features_are_all_columns_but_the_id() -> None:
    inputs = numbers().split(np.arange(5), "test").tensors().tensors[0]
    assert inputs.shape == (5, 3)
    assert inputs.dtype == torch.float64
