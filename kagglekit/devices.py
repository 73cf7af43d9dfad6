"""Which device computes, in which precision, and whether compiling pays."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from . import folders
from .errors import UserError

_KERNELS = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # a user's choice; torch sets it itself later
_ONE_THREAD = 30_000_000  # multiplications of a step below which a second thread gains nothing
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def device() -> torch.device:
    """The first CUDA GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_gpu() -> bool:
    """Whether the device is a GPU."""
    return device().type != "cpu"


def describe(device: torch.device) -> str:
    """Name of the device for people, as in "NVIDIA T4" or "CPU (2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"CPU ({torch.get_num_threads()} threads)"


def spare_compiler() -> None:
    """Keep torch's optimisers from importing torch's compiler, which takes seconds.

    Some of their methods ask it to leave them alone, and import it for that the first time. Here
    they are given the answer; a model that is compiled is compiled all the same.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain


def kernels(device: torch.device) -> str:
    """What the kernels are chosen by, and with them the last bits: the GPU, or CPU instructions."""
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else describe(device)


def resolve_precision(requested: str, device: torch.device, half: bool = True) -> tuple[str, str]:
    """The precision to train in, and why; `half` says whether half of it is enough for the task.

    | device | auto takes |
    |---|---|
    | CUDA with bf16 in hardware (Ampere and later) | bf16 |
    | other CUDA (a T4) | fp16 with gradient scaling |
    | CPU with avx512_bf16 or AMX | bf16 |
    | other CPU, Apple GPU, or any where half is not enough | fp32 |

    Raises UserError for a precision that the device does not have, and for an unknown one.
    """
    if requested == "auto":
        return _automatic(device) if half else ("fp32", "half precision would not be enough")
    if requested not in DTYPES:
        raise UserError(f"precision={requested} is unknown: take auto, {', '.join(DTYPES)}")
    if requested == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU: on a CPU take precision=bf16 or fp32")
    if requested != "fp32" and device.type == "mps":
        raise UserError(f"precision={requested} is not safe on an Apple GPU: take precision=fp32")
    if requested == "bf16" and device.type == "cuda" and not _gpu_has_bf16():
        raise UserError("precision=bf16 is not in this GPU's hardware: take precision=fp16")
    return requested, "as asked for"


def _automatic(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        if _gpu_has_bf16():
            return "bf16", "the GPU has bf16 in hardware"
        return "fp16", "the GPU has no bf16 in hardware: fp16 with gradient scaling"
    if device.type == "mps":
        return "fp32", "the only precision that is safe on an Apple GPU"
    if cpu_has_bf16():
        return "bf16", "the CPU has bf16 instructions"
    return "fp32", "the CPU has no bf16 instructions"


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (emulated, it is slower than fp32)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs in `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs: Triton on CUDA, a C++ compiler on a CPU."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    return device.type == "cpu" and any(map(shutil.which, ("c++", "g++", "clang++", "cl")))


def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """`torch.compile`, which keeps what it makes in kagglekit's cache, for later runs."""
    if not _KERNELS:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folders.cache().resolve() / "compiled")
    made: Callable[..., Any] = torch.compile(function, dynamic=dynamic)
    return made


def reproducible() -> AbstractContextManager[None]:
    """The context in which a GPU gives the same bytes every time.

    cuDNN then neither picks kernels by a race against the clock nor takes those that add up in
    any order.
    """
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True
    )
    return context


@contextmanager
def threads_for(multiplications: float, device: torch.device) -> Iterator[None]:
    """The context of steps of so many multiplications: on a CPU, small ones get a single thread.

    To wake a second one would take longer than their work, and many times longer where the cores
    are busy. What they compute then does not depend on how many threads there are. A thread beside
    the main one keeps the number that it was given.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    threads = torch.get_num_threads()
    if wants_one_thread(multiplications, device):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def wants_one_thread(multiplications: float, device: torch.device) -> bool:
    """Whether a second thread of a CPU gains nothing in steps of so many multiplications."""
    return device.type == "cpu" and multiplications < _ONE_THREAD


def free_bytes(device: torch.device) -> int:
    """Memory that data may still take: free GPU memory, or the machine's available memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device, or the machine, had no memory left."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in told for words in _NO_MEMORY)


def peak_gib(device: torch.device) -> float | None:
    """Most GPU memory in use so far in GiB; None where that is not counted."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
