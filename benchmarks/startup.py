"""Seconds from typing to training: `python benchmarks/startup.py [REPEATS]`, by default 5.

For a network the moment is the end of its first optimiser step, when it saves because a checkpoint
at every chance was asked for; for others it is when fitting begins. Practice data, which are made
in the first and uncounted run; medians, as many processes as repeats.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = {
    "import torch alone": None,
    "fit_1d spline": (["fit_1d", "spline"], "train"),
    "fit_1d neural": (["fit_1d", "neural", "checkpoint_seconds=0"], "save"),
    "mics_mnist cnn_small": (["mics_mnist", "cnn_small", "checkpoint_seconds=0"], "save"),
}


def seconds(typed: list[str], stage: str, told: Path, seed: int) -> float:
    """How long the command takes until it tells of the stage."""
    told.write_bytes(b"")
    command = [sys.executable, "-m", "kagglekit", "train", *typed, f"seed={seed}"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while f"{stage}\n".encode() not in told.read_bytes():
        if process.poll() is not None:
            sys.exit(f"{' '.join(command)} ended before it came to {stage}")
        time.sleep(0.005)
    passed = time.monotonic() - began
    process.kill()
    process.wait()
    return passed


def imported() -> float:
    """How long an interpreter takes that only imports torch."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.monotonic() - began


def run() -> None:
    """Print a line a case."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "stages")
        os.environ["KAGGLEKIT_STAGES"] = str(told)
        os.environ["KAGGLEKIT_COMPETITIONS"] = str(ROOT / "competitions")
        os.chdir(folder)
        for name, case in CASES.items():
            if case is None:
                found = [imported() for _ in range(repeats + 1)]
            else:
                found = [seconds(*case, told, seed) for seed in range(repeats + 1)]
            print(f"{name:22} {statistics.median(found[1:]):5.1f} s", flush=True)


if __name__ == "__main__":
    run()
