"""How far training is from what the machine could do: `python -m benchmarks.limits [cpu|gpu]`.

For every case of `compare` the work of a step is counted: the multiplications of forward and
backward pass, and the bytes that have to be moved even if every number were fetched once. Divided
by what the device measures at, in a large matrix product and in a large copy, the longer of the
two is the least time that a step can take: the roofline of Williams, Waterman and Patterson 2009,
doi:10.1145/1498765.1498785. Beside it stands the time of a step of kagglekit, everything included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compare import add_real_data, cpu_cases, gpu_cases, measure, real_data
from benchmarks.contenders.plain import autocast, device, loss_of, pixels
from benchmarks.tasks import Case, Prepared, Real, prepare

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# what AdamW reads (weight, gradient, two moments) and writes (weight, two moments), in fp32, and
# what the passes do with weights and gradients: two reads and a write
_BYTES_A_WEIGHT = 4 * (4 + 3) + 4 * (2 + 1)


@dataclass(frozen=True)
class Machine:
    """What the device measures at."""

    flops: float  # a second, in a matrix product
    bytes: float  # a second, read and written in a copy


@dataclass(frozen=True)
class Work:
    """What one step of one network needs at least."""

    flops: float
    bytes: float

    def seconds(self, machine: Machine) -> float:
        """The longer of computing and moving."""
        return max(self.flops / machine.flops, self.bytes / machine.bytes)


def best(call: Callable[[], object], repeats: int = 10) -> float:
    """Least seconds of some calls, after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        call()
        if device().type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def machine(precision: str) -> Machine:
    """Measure the device."""
    side, count = (8192, 1 << 28) if device().type == "cuda" else (2048, 1 << 25)
    one, other = (torch.randn(side, side, device=device(), dtype=_DTYPES[precision]) for _ in "ab")
    source = torch.ones(count, device=device())
    target = torch.empty_like(source)
    return Machine(
        2 * side**3 / best(lambda: one @ other),
        2 * source.nbytes / best(lambda: target.copy_(source)),
    )


def work(prepared: Prepared) -> Work:
    """Count a step of one network of the case."""
    case = prepared.case
    model = prepared.model(0).to(device())
    inputs = prepared.batch().to(device())
    targets = torch.as_tensor(prepared.targets[: case.batch]).to(device())
    kept: dict[int, int] = {}  # what the backward pass needs of the forward pass, by address

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            autocast(case),
        ):
            loss = loss_of(case)(model(pixels(inputs)), targets)
        loss.backward()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    activations = sum(size for place, size in kept.items() if place not in weights)
    moved = inputs.nbytes + 2 * activations + _BYTES_A_WEIGHT * _count(model)
    return Work(counter.get_total_flops(), moved)


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def steps(prepared: Prepared) -> int:
    """Steps of all networks together."""
    case = prepared.case
    return sum(case.epochs * case.batches(len(member.train)) for member in prepared.members())


def row(case: Case, folder: Path, real: Real, known: dict[str, Machine]) -> str:
    """Measure one case; its line of the table."""
    prepare(case, folder, real)
    prepared = Prepared(folder)
    if case.precision not in known:
        known[case.precision] = machine(case.precision)
    limits, needed = known[case.precision], work(prepared)
    least = needed.seconds(limits)
    taken = measure("ours", folder).training / steps(prepared)
    bound = "computing" if needed.flops / limits.flops >= least else "moving"
    return (
        f"| {case.name} | {needed.flops / 1e6:,.1f} | {needed.bytes / 1e6:,.2f} | "
        f"{1e3 * least:.3f} ({bound}) | {1e3 * taken:.3f} | {100 * least / taken:.0f} % |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where", nargs="?", choices=["cpu", "gpu"], default="cpu")
    add_real_data(parser)
    options = parser.parse_args()
    known: dict[str, Machine] = {}
    print("| case | Mflop a step | MB a step | least ms a step | ms a step | of the limit |")
    print("|---|---|---|---|---|---|", flush=True)
    for case in gpu_cases() if options.where == "gpu" else cpu_cases():
        with tempfile.TemporaryDirectory() as folder:
            print(row(case, Path(folder) / "case", real_data(options), known), flush=True)
    for precision, found in known.items():
        print(f"{precision}: {found.flops / 1e9:,.0f} Gflop/s, {found.bytes / 1e9:,.1f} GB/s")


if __name__ == "__main__":
    main()
