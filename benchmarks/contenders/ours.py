"""kagglekit, as its users start it: `kagglekit train`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.tasks import ROOT, Prepared

_RECIPES = {
    "digits": ("mics_mnist", "cnn_small"),
    "functions": ("functions", "mlp"),
    "photos": ("photos", "resnet"),
}


def run(folder: Path, engine: str = "") -> dict[str, object]:
    """Train the case in `folder`; seconds in training and answering, and each member's score."""
    prepared = Prepared(folder)
    case = prepared.case
    home = ROOT / ("competitions" if case.kind == "digits" else "benchmarks/competitions")
    typed = ["train", *_RECIPES[case.kind]]
    typed += [
        *case.knobs,
        *([f"engine={engine}"] if engine else []),
        "--data",
        str(prepared.download),
        "--json",
    ]
    typed += ["--seeds", str(case.seeds), *(["--folds", "0"] if case.single else [])]
    os.environ["KAGGLEKIT_COMPETITIONS"] = str(home)

    from kagglekit import cli, pipeline

    spent, fit = [0.0], pipeline._fit

    def timed(*arguments) -> None:
        began = time.monotonic()
        fit(*arguments)
        spent[0] += time.monotonic() - began

    pipeline._fit = timed
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(typed)
    if code:
        sys.exit(code)
    result = json.loads(out.getvalue())
    return {"training": spent[0], "scores": [member["score"] for member in result["members"]]}
