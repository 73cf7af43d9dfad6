"""Every random number of a run comes from a seed derived here from what it is for."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

_alone = threading.RLock()
if hasattr(
    os, "register_at_fork"
):  # a worker forked amid another thread's moment would wait for ever
    os.register_at_fork(
        before=_alone.acquire, after_in_parent=_alone.release, after_in_child=_alone.release
    )


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for `purpose`, as in `derive(seed, "order", epoch)`.

    Streams of different purposes are independent, and none depends on how often another was used:
    that is why a resumed run needs no generator's state at the start of an epoch.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch, on the CPU and on every device in use."""
    seed_cpu(seed)
    # not `torch.manual_seed`: where there is no GPU, it keeps a stack trace of every call
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def seed_cpu(seed: int) -> None:
    """Seed Python, NumPy and torch on the CPU alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def generator(device: torch.device, seed: int) -> torch.Generator:
    """A generator on `device`, seeded."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch's CPU generator for a moment, then put them back.

    They are all threads' generators: one thread at a time has such a moment.
    """
    with _alone, torch.random.fork_rng(devices=[]):
        python, numpy = random.getstate(), np.random.get_state()
        seed_cpu(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def generator_states(device: torch.device) -> dict[str, Any]:
    """Where the global generators stand: Python's, NumPy's, torch's on the CPU and on `device`."""
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=True)
    kind, key, position, has_gauss, cached = numpy
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), torch.from_numpy(key.astype(np.int64)), position, has_gauss, cached],
        "cpu": torch.default_generator.get_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the global generators where `generator_states` found them."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, key, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, key.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.default_generator.set_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
