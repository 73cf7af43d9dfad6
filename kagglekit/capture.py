"""Passes captured as CUDA graphs and replayed: what small models cost most is gone, the launches.

A captured pass reads and writes the same memory each time: what it is given is copied there, and
weights, buffers and what it returns stay where they were when it was captured.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Run = Callable[[Sequence[Tensor]], list[Tensor]]

_WARM = 3  # passes before a capture: libraries then have their workspaces, and code is compiled
_APART = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative, of what a replay returns
_one_at_a_time = threading.Lock()  # a capture waits for the device, which no other may do amid one
_log = logging.getLogger("kagglekit")


def possible(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


class Graph:
    """`run(given)` as a CUDA graph; the next call overwrites what this one returns."""

    def __init__(
        self, run: Run, given: Sequence[Tensor], generators: Sequence[torch.Generator]
    ) -> None:
        self.given = [part.clone() for part in given]
        self.graph = torch.cuda.CUDAGraph()
        for source in generators:
            self.graph.register_generator_state(source)
        # other lanes may go on meanwhile: what they do is no part of this capture
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.returned = run(self.given)

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        """What `run` returns for other tensors of the same shapes and layouts."""
        for place, part in zip(self.given, given, strict=True):
            place.copy_(part)
        self.graph.replay()
        return self.returned


def captured(
    run: Run,
    given: Sequence[Tensor],
    kept: Sequence[Tensor],
    generators: Sequence[torch.Generator] = (),
) -> Run:
    """`run` as a graph, where it can be captured and gives what it gives without; else as it is.

    `kept` are the tensors that a pass changes, buffers say, and `generators` those that it draws
    from: both are afterwards as they were.
    """
    with _one_at_a_time:
        return _captured(run, given, _State(kept, generators))


def _captured(run: Run, given: Sequence[Tensor], state: _State) -> Run:
    try:
        with _aside():
            for _ in range(_WARM):
                state.put_back()
                expected = [part.clone() for part in run(given)]
        state.put_back()
        graph = Graph(run, given, state.generators)
        state.put_back()
        found = graph(given)
        right = all(map(_alike, found, expected)) and len(found) == len(expected)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _log.warning("engine: its passes cannot be captured: %s", str(error).split("\n")[0])
        return run
    finally:
        state.put_back()
    if not right:
        _log.warning("engine: captured, its passes would give something else: they are not")
        return run
    return graph


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """The context of a stream of its own, on which everything is done that was queued before."""
    usual, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(usual)
    with torch.cuda.stream(aside):
        yield
    usual.wait_stream(aside)


class _State:
    """What passes change, as it was."""

    def __init__(self, kept: Sequence[Tensor], generators: Sequence[torch.Generator]) -> None:
        self.kept, self.generators = kept, generators
        self.tensors = [part.detach().clone() for part in kept]
        self.draws = [source.get_state() for source in generators]

    @torch.no_grad()
    def put_back(self) -> None:
        for part, before in zip(self.kept, self.tensors, strict=True):
            part.copy_(before)
        for source, before in zip(self.generators, self.draws, strict=True):
            source.set_state(before)


def _alike(found: Tensor, expected: Tensor) -> bool:
    if not torch.equal(found.isfinite(), expected.isfinite()):  # scaled for fp16, some may burst
        return False
    ours, theirs = (part.detach().double().nan_to_num(0.0, 0.0, 0.0) for part in (found, expected))
    most = _APART.get(expected.dtype, 1e-3)
    return float((ours - theirs).norm()) <= most * max(float(theirs.norm()), 1e-12)
