"""What a competition hands over, and the rows of it that one stage reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
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
        return Split(replace(self, target=self._visible(rows, stage)), np.asarray(rows), stage)

    def _visible(self, rows: Rows, stage: Stage) -> np.ndarray:
        nothing = {"f": np.nan, "i": -1}.get(self.target.dtype.kind, 0)
        hidden = np.full_like(self.target, nothing)
        if stage == "train":
            hidden[rows] = self.target[rows]
        return hidden


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
        """What models read: `train_inputs` or `test_inputs`, else the numeric feature columns.

        (rows, ...); features are all columns but the id, as float64.
        """
        testing = self.stage == "test"
        inputs = self.data.test_inputs if testing else self.data.train_inputs
        if inputs is not None:
            return inputs[self.rows]
        features = [name for name in self.data.test.columns if name != self.data.id]
        return self.frame[features].to_numpy(np.float64)

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
        """`inputs` (by default the split's own) beside the target, or alone where it is unknown."""
        columns = [self.inputs if inputs is None else inputs]
        if self.target is not None:
            columns.append(self.target)
        # pandas hands out read-only arrays, which torch does not take
        return TensorDataset(*(torch.from_numpy(np.require(p, None, ["C", "W"])) for p in columns))

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
