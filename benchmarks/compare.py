"""Trainers side by side: `python -m benchmarks.compare [cpu|gpu] [--repeats N]`.

Every contender is a process of its own, started in turn, so that all meet the same machine; the
medians over the repeats are printed as a table, with what kagglekit is faster by.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.tasks import ROOT, Case, Real, prepare

CONTENDERS = {
    "kagglekit": ("ours", ""),
    "kagglekit, engine=stacked": ("ours_stacked", ""),
    "kagglekit, engine=streams": ("ours_streams", ""),
    "kagglekit, engine=solo": ("ours_solo", ""),
    "plain PyTorch": ("plain", ""),
    "Lightning": ("lightning_trainer", "lightning"),
    "fastai": ("fastai_learner", "fastai"),
    "skorch": ("skorch_net", "skorch"),
}
_LIMIT = 3600  # seconds for one contender


def cpu_cases() -> list[Case]:
    """What two cores train in seconds."""
    digits = Case("MNIST, 5 folds", "digits", 5_000, 3, 256, 3e-3, precision="bf16")

    def functions(width: int, seeds: int, epochs: int) -> Case:
        name = f"MLP 3×{width}, {5 * seeds} members"
        return Case(name, "functions", 4096, epochs, 256, 3e-3, seeds=seeds, width=width)

    return [
        digits,
        replace(functions(64, 1, 100), name="MLP 3×64, 1 member", single=True),
        functions(16, 1, 100), functions(16, 4, 100), functions(64, 4, 100),
        functions(64, 20, 20), functions(256, 1, 20), functions(256, 4, 20),
        replace(digits, name="MNIST, 5 folds × 4 seeds", rows=2_500, seeds=4, batch=64),
        Case("ResNet-18 at 224 px, 2 folds", "photos", 128, 3, 16, 1e-3, folds=2),
    ]  # fmt: skip


def gpu_cases() -> list[Case]:
    """What a large GPU trains in seconds."""
    digits = Case("MNIST, 5 folds", "digits", 60_000, 8, 256, 3e-3, precision="bf16")
    functions = [
        Case(f"MLP 3×256, {members} members", "functions", 20_000, 20, 256, 3e-3, width=256,
             seeds=max(members // 5, 1), single=members == 1)
        for members in (1, 5, 20, 100)
    ]  # fmt: skip
    photos = Case("ResNet-18 at 224 px, 5 folds", "photos", 4_000, 3, 64, 1e-3, precision="bf16")
    return [digits, replace(digits, name="MNIST, 5 folds × 4 seeds", seeds=4), *functions, photos]


@dataclass(frozen=True)
class Result:
    """One contender on one case, once."""

    training: float  # seconds in training and answering
    whole: float  # seconds from the start of the process to its end
    gib: float  # most memory of the process and its workers, at once
    scores: list[float]


def measure(module: str, folder: Path) -> Result:
    """Let a contender train in a process of its own."""
    code = f"from benchmarks.compare import child; child({module!r}, {str(folder)!r})"
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KAGGLEKIT_CACHE": home}
        began, most = time.monotonic(), 0.0
        process = psutil.Popen(
            [sys.executable, "-c", code], cwd=home, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None:
            most = max(most, _memory(process))
            time.sleep(0.1)
        whole = time.monotonic() - began
        told = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(f"{module} failed on {folder}: run `{code}` to see why")
    return Result(whole=whole, gib=most, **json.loads(told.splitlines()[-1]))


def _memory(process: psutil.Process) -> float:
    """GiB of the process and its children; pages that they share are counted once each."""
    try:
        family = [process, *process.children(recursive=True)]
        return float(sum(one.memory_info().rss for one in family)) / 2**30
    except psutil.NoSuchProcess:
        return 0.0


def child(module: str, folder: str) -> None:
    """Run a contender here and print what it found."""
    found = importlib.import_module(f"benchmarks.contenders.{module}").run(Path(folder))
    print(json.dumps(found))


def able(name: str, case: Case) -> bool:
    """Whether a contender is installed, made for such data, and worth its time.

    Lightning, fastai and skorch train one network after the other: many would only take longer.
    """
    functions, needed = case.kind == "functions", CONTENDERS[name][1]
    if needed and functions and case.members > 5:
        return False
    if not functions and name == "skorch":
        return False
    if "engine" in name and (case.kind == "photos" or ("stacked" in name and not functions)):
        return False  # photographs are streamed, and a stack of convolutions is slower on a CPU
    return not needed or importlib.util.find_spec(needed) is not None


def compare(case: Case, repeats: int, real: Real) -> list[str]:
    """Lines of a Markdown table: every contender on one case."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(case, Path(folder), real)
        names = [name for name in CONTENDERS if able(name, case)]
        found: dict[str, list[Result]] = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:  # in turn, so that a slow moment strikes all alike
                found[name].append(measure(CONTENDERS[name][0], Path(folder)))
                took = f"{found[name][-1].training:.1f} s of training"
                print(f"{case.name}: {name}: {took}", file=sys.stderr, flush=True)
    ours = found["kagglekit"]
    for name in names:
        lines.append(_line(case, name, found[name], ours))
        print(lines[-1], flush=True)
    return lines


def _line(case: Case, name: str, results: list[Result], ours: list[Result]) -> str:
    training, whole, gib = (
        statistics.median(getattr(result, key) for result in results)
        for key in ("training", "whole", "gib")
    )
    faster = training / statistics.median(result.training for result in ours)
    ended = whole / statistics.median(result.whole for result in ours)
    ratios = "|" if name == "kagglekit" else f"{faster:.2f}× | {ended:.2f}×"
    return (
        f"| {case.name} | {name} | {training:.1f} s | {whole:.1f} s | {ratios} |"
        f" {_score(case, results[0].scores)} | {gib:.1f} GiB |"
    )


def _score(case: Case, scores: list[float]) -> str:
    """The mean over members with a 95 % interval of it."""
    mean = float(np.mean(scores))
    spread = 1.96 * float(np.std(scores, ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    if case.kind != "functions":
        return f"{100 * mean:.2f} ± {100 * spread:.2f} %"
    return f"{mean:.4f} ± {spread:.4f}"


HEADER = (
    "| case | | training | process | training, kagglekit faster by | process, faster by |"
    " accuracy or RMSE | memory |\n|---|---|---|---|---|---|---|---|"
)


def add_real_data(parser: argparse.ArgumentParser) -> None:
    """The options that say where real data are."""
    parser.add_argument("--digits", type=Path, help="a download of mics_mnist; else practice data")
    parser.add_argument("--photos", type=Path, help="a folder of images a class; else drawn ones")


def real_data(options: argparse.Namespace) -> Real:
    """What the options say."""
    return Real(*(path and path.resolve() for path in (options.digits, options.photos)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machine", nargs="?", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    add_real_data(parser)
    parser.add_argument("--only", default="", help="cases whose names have this in them")
    options = parser.parse_args()
    print(HEADER)
    for case in cpu_cases() if options.machine == "cpu" else gpu_cases():
        if options.only in case.name:
            compare(case, options.repeats, real_data(options))


if __name__ == "__main__":
    main()
