"""What checkpoints cost: `python benchmarks/checkpoints.py [CHECKPOINT_SECONDS]`, by default 1.

Trains on practice data in a temporary folder and prints, for each case, how often it saved, the
size of a checkpoint, the time of a save, and the share of the training time that went into saving.
The knob's own default saves far less often than every second.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kagglekit import checkpoint, pace
from kagglekit.cli import main
from kagglekit.network import Network

CASES = {
    "fit_1d neural": ["fit_1d", "neural", "polish=0", "epochs=4000"],
    "mics_mnist cnn_small": ["mics_mnist", "cnn_small", "epochs=20"],
    "mics_mnist ResNet-18": ["mics_mnist", "timm", "model=resnet18", "epochs=3"],
}
ROOT = Path(__file__).parents[1]


@dataclass
class Bill:
    """Seconds spent in training and in saving, and the sizes of what was saved."""

    training: float = 0.0
    saves: list[float] = field(default_factory=list)
    bytes: int = 0

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Everything that is trained inside is on the bill."""
        fit, saving, save = Network.fit, pace.Pace.saving, checkpoint.save

        def timed(*arguments) -> None:
            began = time.monotonic()
            try:
                fit(*arguments)
            finally:
                self.training += time.monotonic() - began

        @contextlib.contextmanager
        def billed(own: pace.Pace) -> Iterator[None]:
            began = time.monotonic()
            with saving(own):
                yield
            self.saves.append(time.monotonic() - began)

        def weighed(path: Path, content: checkpoint.Checkpoint) -> None:
            save(path, content)
            self.bytes = max(self.bytes, path.stat().st_size)

        Network.fit, pace.Pace.saving, checkpoint.save = timed, billed, weighed
        try:
            yield
        finally:
            Network.fit, pace.Pace.saving, checkpoint.save = fit, saving, save


def measure(typed: list[str], seconds: str) -> Bill:
    """The bill of one `kagglekit train`."""
    bill, quiet = Bill(), io.StringIO()
    with bill.kept(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        code = main(["train", *typed, "folds=2", f"checkpoint_seconds={seconds}", "--json"])
    if code:
        sys.exit(quiet.getvalue())
    return bill


def run() -> None:
    """Print a line a case."""
    seconds = sys.argv[1] if len(sys.argv) > 1 else "1"
    os.environ["KAGGLEKIT_COMPETITIONS"] = str(ROOT / "competitions")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, typed in CASES.items():
            bill = measure(typed, seconds)
            share = sum(bill.saves) / bill.training
            print(
                f"{name:22} {bill.training:6.1f} s of training, {len(bill.saves):3} saves of"
                f" {bill.bytes / 1e6:6.1f} MB, {1e3 * sum(bill.saves) / len(bill.saves):6.1f} ms"
                f" each: {share:.2%} of the time",
                flush=True,
            )


if __name__ == "__main__":
    run()
