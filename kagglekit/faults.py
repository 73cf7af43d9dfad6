"""Names what a machine does to a process in mid-work: memory used up, workers killed."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UserError

_AGAIN = "; then the same command goes on"
_LESS = "lower workers (0 needs the least) or batch_size, or close other programs" + _AGAIN
_SHARED = "use workers=0, or give it more (docker run --shm-size=2g)" + _AGAIN

# torch tells of these in words alone
_DEAD = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) "
    r"(?:is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly)"
)
_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Insufficient memory|"
    r"can't start new thread|Cannot allocate memory"
)
_SHARED_MEMORY = re.compile(r"unable to (?:write to file|mmap|open shared memory)|/torch_\d")


def explain(error: BaseException) -> str | None:
    """One sentence for an error that the machine is to blame for, else None."""
    text = str(error)
    if dead := _DEAD.search(text):
        return _death(dead["pid"], dead["signal"])
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return _shortage(text)
    if not isinstance(error, OSError) and _SHARED_MEMORY.search(text):
        return f"the workers' shared memory (/dev/shm) is full: {_SHARED}"
    return _shortage(text) if _MEMORY.search(text) else None


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error that the machine is to blame for into a UserError.

    Around all of a command: torch tells of a dead worker wherever the main process is just then.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def _death(pid: str, signal: str | None) -> str:
    if signal == "Bus error":
        return f"worker process {pid} died for want of shared memory (/dev/shm): {_SHARED}"
    how = f"was killed ({signal})" if signal else "died"
    return f"worker process {pid}, which reads the data, {how}, often for want of memory: {_LESS}"


def _shortage(text: str) -> str:
    if "CUDA" in text or "MPS" in text:
        return f"the GPU's memory ran out: lower batch_size, or end what else runs there{_AGAIN}"
    where = "a worker process" if "DataLoader worker" in text else "this process"
    return f"memory ran out in {where}: {_LESS}"
