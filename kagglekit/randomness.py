"""Every random number of a run comes from a seed derived here from what it is for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for `purpose`, as in `derive(seed, "order", epoch)`.

    Streams of different purposes are independent, and none depends on how often another was used:
    that is why a resumed run needs no generator's state at the start of an epoch.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch, on the CPU and on every device in use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    # not `torch.manual_seed`: where there is no GPU, it keeps a stack trace of every call
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def generator(device: torch.device, seed: int) -> torch.Generator:
    """A generator on `device`, seeded."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch's CPU generator for a moment, then put them back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
