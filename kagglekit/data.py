"""What a competition hands over, and the rows of it that one stage reads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

Rows = np.ndarray  # positions of rows, int64
Stage = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Data:
    """One competition in memory. Subclass it to carry more than these.

    | field | shape | what |
    |---|---|---|
    | train | (train rows, columns) | what is known of a training row, without the target columns |
    | test | (test rows, columns) | the same for the rows to answer, the id column among them |
    | target | (train rows,) or (train rows, outputs) | class positions, or numbers as float64 |
    | sample | (test rows, 1 + outputs) | the sample submission as text; column 0 is the id |
    | classes | names of the classes, in the order of the target's positions; empty for numbers |
    | train_inputs, test_inputs | (rows, ...) | what models read, where that is no table |

    A folder that has no training files (a new test set for a finished run) gives zero train rows.
    All splits share it, and what models read of it as tensors: write nothing into it.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    target: np.ndarray
    sample: pd.DataFrame
    classes: tuple[str, ...] = ()
    train_inputs: np.ndarray | None = None
    test_inputs: np.ndarray | None = None

    @property
    def id(self) -> str:
        """Name of the id column: the first of the sample submission."""
        return str(self.sample.columns[0])

    @property
    def outputs(self) -> int:
        """Numbers that one answer has: a probability a class, or a number a target column."""
        if self.classes:
            return len(self.classes)
        return self.target.shape[1] if self.target.ndim > 1 else 1

    def look(self, row: int) -> np.ndarray | None:
        """What a person sees of a training row: a picture or a clip; None where it is neither.

        (height, width), (1 or 3, height, width), or (frames, ...) of these, channels first or last.
        """
        if self.train_inputs is None or self.train_inputs.ndim < 3:
            return None
        return np.asarray(self.train_inputs[row])

    def stills(self) -> tuple[np.ndarray, np.ndarray] | None:
        """One picture for each training row, and for each test row; None where rows have none.

        uint8 (rows, 1 or 3, height, width).
        """
        train, test = self.train_inputs, self.test_inputs
        if train is None or test is None or train.dtype != np.uint8:
            return None
        return (train, test) if train.ndim == 4 and train.shape[1] in (1, 3) else None

    def glimpses(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Several pictures of each training row, and of each test row, as time goes; None for one.

        uint8 (rows, moments, 1 or 3, height, width).
        """
        return None

    def split(self, rows: Rows, stage: Stage) -> Split:
        """The rows of one stage; the targets of all other rows are out of its reach."""
        seen = replace(self, target=self._visible(rows, stage))
        vars(seen)["_inputs"] = self._shared_inputs
        return Split(seen, np.asarray(rows), stage)

    def inputs_of(self, stage: Stage, rows: Rows | slice = slice(None)) -> np.ndarray:
        """What models read of some rows: `train_inputs` or `test_inputs`, else numeric features.

        (rows, ...); features are all columns but the id, as float64.
        """
        testing = stage == "test"
        inputs = self.test_inputs if testing else self.train_inputs
        if inputs is not None:
            return inputs[rows]
        features = [name for name in self.test.columns if name != self.id]
        return (self.test if testing else self.train).iloc[rows][features].to_numpy(np.float64)

    @property
    def _shared_inputs(self) -> _Inputs:
        """The inputs of all rows as tensors, which all splits of these data have in common."""
        inputs: _Inputs = vars(self).setdefault("_inputs", _Inputs())
        return inputs

    def _visible(self, rows: Rows, stage: Stage) -> np.ndarray:
        nothing = {"f": np.nan, "i": -1}.get(self.target.dtype.kind, 0)
        if stage != "train":  # read-only, and of no size: there is one of these a member
            return np.broadcast_to(np.array(nothing, self.target.dtype), self.target.shape)
        hidden = np.full_like(self.target, nothing)
        hidden[rows] = self.target[rows]
        return hidden


class _Inputs:
    """The inputs of all training rows, and of all test rows, as tensors: each made but once."""

    def __init__(self) -> None:
        self.made: dict[bool, Tensor] = {}  # by whether they are the test's
        self.one_at_a_time = threading.Lock()

    def __call__(self, testing: bool, read: Callable[[], np.ndarray]) -> Tensor:
        with self.one_at_a_time:
            if testing not in self.made:
                self.made[testing] = _tensor(read())
            return self.made[testing]

    def __reduce__(self) -> tuple[type[_Inputs], tuple[()]]:
        return _Inputs, ()  # another process would get the rows twice


def _tensor(values: np.ndarray) -> Tensor:
    """An array as a tensor, in the same memory where that can be."""
    # pandas hands out read-only arrays, which torch does not take
    return torch.from_numpy(np.require(values, None, ["C", "W"]))


class SharedRows(TensorDataset):
    """Some rows of columns that other splits read too: a TensorDataset without a copy of them.

    `columns` are of all rows, of which `positions` (rows,) are this one's; what is hidden of other
    rows is hidden there. Items are copies. Whoever reads `tensors` gets copies that are the data
    set's from then on, so that it may be changed in place as any TensorDataset. Pickled, it is a
    TensorDataset of its own rows.
    """

    def __init__(self, columns: tuple[Tensor, ...], positions: Tensor) -> None:
        self.columns, self.positions = columns, positions

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Its own rows of each column."""
        return self._own()

    @property
    def shares(self) -> bool:
        """Whether its rows are still those of the columns."""
        return "tensors" not in vars(self)

    def __len__(self) -> int:
        """Its rows."""
        return len(self.positions) if self.shares else len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        """The parts of one row, or of several."""
        if not self.shares:
            return tuple(column[index] for column in self.tensors)
        rows = self.positions[index]
        return tuple(column[rows].clone() for column in self.columns)

    def _own(self) -> tuple[Tensor, ...]:
        return tuple(column[self.positions] for column in self.columns)

    def __reduce__(self) -> tuple[type[TensorDataset], tuple[Tensor, ...]]:
        return TensorDataset, self._own() if self.shares else self.tensors


@dataclass(frozen=True)
class Split:
    """The rows of `data` that one stage reads."""

    data: Data
    rows: Rows
    stage: Stage

    def __len__(self) -> int:
        """Rows of the split."""
        return len(self.rows)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows of the table."""
        table = self.data.test if self.stage == "test" else self.data.train
        return table.iloc[self.rows]

    @property
    def inputs(self) -> np.ndarray:
        """What models read of these rows, (rows, ...): see `Data.inputs_of`."""
        return self.data.inputs_of(self.stage, self.rows)

    @property
    def target(self) -> np.ndarray | None:
        """(rows, ...) in training; None where the target is to be answered."""
        return self.data.target[self.rows] if self.stage == "train" else None

    @property
    def ids(self) -> np.ndarray:
        """(rows,) ids as text; the row number where a training table has no id column."""
        if self.data.id in self.frame.columns:
            return self.frame[self.data.id].to_numpy(str)
        return self.rows.astype(str)

    def tensors(self, inputs: np.ndarray | None = None) -> TensorDataset:
        """`inputs` (rows, ...) beside the target, or alone where it is unknown.

        By default the split's own, which are in memory once for all splits: see `SharedRows`.
        """
        if inputs is None and type(self.data).inputs_of is Data.inputs_of:
            return self._shared()  # another's may differ from split to split
        inputs = self.inputs if inputs is None else inputs
        columns = [inputs] if self.target is None else [inputs, self.target]
        return TensorDataset(*map(_tensor, columns))

    def _shared(self) -> SharedRows:
        data, stage = self.data, self.stage
        columns = [data._shared_inputs(stage == "test", lambda: data.inputs_of(stage))]
        if stage == "train":
            columns.append(_tensor(data.target))
        return SharedRows(tuple(columns), _tensor(self.rows.astype(np.int64, copy=False)))

    def take(self, positions: Rows) -> Split:
        """The split of the rows at `positions` of this one."""
        return replace(self, rows=self.rows[positions])


@dataclass(frozen=True)
class Dependence:
    """How rows depend on one another: as alone, in groups, or as they follow in time.

    `groups` and `moments` are (rows,) numbers from 0: of each row's group, and of its time in
    their order. Where rows have both, time is what counts. `folds` are those that validate the
    rows, where they are known: OOF answers of one fold come from the same models.
    """

    groups: np.ndarray | None = None
    moments: np.ndarray | None = None
    folds: np.ndarray | None = None

    def of(self, rows: Rows) -> Dependence:
        """The same of some rows, numbered without gaps."""
        labels = (self.groups, self.moments, self.folds)
        return Dependence(*(_renumbered(numbers, rows) for numbers in labels))


def _renumbered(numbers: np.ndarray | None, rows: Rows) -> np.ndarray | None:
    return None if numbers is None else np.unique(numbers[rows], return_inverse=True)[1]


INDEPENDENT = Dependence()


@dataclass(frozen=True)
class Task:
    """What a model has to know of the data before it can be built."""

    inputs: tuple[int, ...]  # shape of one row's input
    outputs: int  # numbers that one answer has
