"""One function of one variable, known at some places, to be answered at others; by RMSE."""

from kagglekit import Blend, Competition, fitting, folds, metrics, submission, tables

from . import practice

competition = Competition(
    slug="1d-1d-function-fitting",
    load=tables.regression,
    folds=folds.shuffled,
    metric=metrics.rmse,
    submission=submission.numbers(whole=False),
    recipes={
        "spline": fitting.spline(),
        "gp": fitting.gaussian_process(starts=10),
        "neural": fitting.neural(
            sines=24, kinks=4, second_sines=0, second_tanhs=12, copies=3, epochs=1000, polish=60
        ),
        "boosting": fitting.boosting(),
        "blend": Blend(needs=("spline", "gp", "neural")),
    },
    practice={"functions": practice.write},
)
