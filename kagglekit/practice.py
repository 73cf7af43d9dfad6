"""Practice data: a stand-in laid out like Kaggle's download, made offline, with known answers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def write(
    folder: Path, answers: Path, train: pd.DataFrame, test: pd.DataFrame, targets: list[str]
) -> None:
    """Write train.csv, test.csv and sample_submission.csv to `folder`, solution.csv to `answers`.

    Both tables hold the id in their first column and the target columns; the test's targets go to
    the solution alone. The sample answers zero, as samples do.
    """
    id = str(test.columns[0])
    train.to_csv(folder / "train.csv", index=False)
    test.drop(columns=targets).to_csv(folder / "test.csv", index=False)
    sample = test[[id]].copy()
    for name in targets:  # 0 or 0.0, as the target is whole or not
        sample[name] = 0 if test[name].dtype.kind == "i" else 0.0
    sample.to_csv(folder / "sample_submission.csv", index=False)
    test[[id, *targets]].to_csv(answers / "solution.csv", index=False)
