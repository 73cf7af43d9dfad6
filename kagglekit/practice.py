"""Practice data: a stand-in laid out like Kaggle's download, made offline, with known answers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from . import tables
from .errors import UserError


def write(
    folder: Path, answers: Path, train: pd.DataFrame, test: pd.DataFrame, targets: list[str]
) -> None:
    """Write train.csv, test.csv and sample_submission.csv to `folder`, solution.csv to `answers`.

    Both tables hold the id in their first column and the target columns; the test's targets go to
    the solution alone. The sample answers zero, as samples do. A text
    that a spreadsheet would execute raises UserError.
    """
    for table in (train, test):
        for name in table.columns:
            if table[name].dtype.kind not in "iufb":
                _refuse_formulas(table[name])
    _refuse_formulas(pd.Series([*train.columns, *test.columns]))
    id = str(test.columns[0])
    train.to_csv(folder / "train.csv", index=False)
    test.drop(columns=targets).to_csv(folder / "test.csv", index=False)
    sample = test[[id]].copy()
    for name in targets:  # 0 or 0.0, as the target is whole or not
        sample[name] = 0 if test[name].dtype.kind == "i" else 0.0
    sample.to_csv(folder / "sample_submission.csv", index=False)
    test[[id, *targets]].to_csv(answers / "solution.csv", index=False)


def _refuse_formulas(cells: pd.Series) -> None:
    executed = tables.formulas(cells)
    if executed.any():
        raise UserError(
            f"practice data: a spreadsheet would execute {cells.iloc[int(executed.argmax())]!r};"
            " name it otherwise"
        )
