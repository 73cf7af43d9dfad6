"""Several functions of several variables, known at some points, to be answered elsewhere."""

from kagglekit import Blend, Competition, fitting, folds, metrics, submission, tables

from . import practice

competition = Competition(
    slug="5d-5d-function-fitting",
    load=tables.regression,
    folds=folds.shuffled,
    metric=metrics.mse,
    submission=submission.numbers(whole=False),
    recipes={
        "gp": fitting.gaussian_process(),
        "neural": fitting.neural(epochs=72, polish=30),
        "boosting": fitting.boosting(),
        "blend": Blend(needs=("gp", "neural")),
    },
    practice={"functions": practice.write},
)
