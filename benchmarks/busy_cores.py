"""Steps a second where other programs want the cores too: `python benchmarks/busy_cores.py`.

The threads of a step wait for each other at every layer. libgomp, which torch's wheels bring, lets
them spin there for milliseconds, and what they wait for may be the thread that has no core because
of that. Takes turns between its default, the spinning that `kagglekit` asks for, and none; medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

SETTINGS = {
    "default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
REPEATS = 5
STEPS = """
import time
import torch
from torch import nn

layers = []
for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
    layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))
optimizer = torch.optim.SGD(model.parameters())
pictures, labels = torch.randn(256, 1, 28, 28), torch.randint(0, 10, (256,))
for step in range(-5, 10_000):
    if not step:
        began = time.perf_counter()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(pictures), labels).backward()
    optimizer.step()
    if step > 0 and time.perf_counter() - began > 2:
        break
print(step / (time.perf_counter() - began))
"""


def rate(setting: dict[str, str]) -> float:
    """Steps a second in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    made = subprocess.run(
        [sys.executable, "-c", STEPS], env={**kept, **setting}, capture_output=True, check=True
    )
    return float(made.stdout)


def main() -> None:
    """Print the table."""
    cores = os.cpu_count() or 1
    print(f"steps a second on {cores} cores; medians of {REPEATS}")
    for busy in (0, 1, cores):
        others = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(busy)]
        try:
            found: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for _ in range(REPEATS):
                for name, setting in SETTINGS.items():
                    found[name].append(rate(setting))
        finally:
            for other in others:
                other.kill()
                other.wait()
        told = ", ".join(f"{name} {statistics.median(r):.1f}" for name, r in found.items())
        print(f"{busy} other programs: {told}", flush=True)


if __name__ == "__main__":
    main()
