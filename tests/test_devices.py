from __future__ import annotations

import pytest
import torch

from kagglekit import devices
from kagglekit.errors import UserError

CUDA, CPU, MPS = (torch.device(kind) for kind in ("cuda", "cpu", "mps"))


@pytest.mark.parametrize(
    ("device", "hardware", "half", "expected"),
    [
        (CUDA, True, True, "bf16"),
        (CUDA, True, False, "fp32"),
        (CUDA, False, True, "fp16"),
        (CPU, True, True, "bf16"),
        (CPU, True, False, "fp32"),
        (CPU, False, True, "fp32"),
        (MPS, False, True, "fp32"),
    ],
)
def test_auto_takes_the_fastest_precision_that_is_safe(
    device: torch.device,
    hardware: bool,
    half: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # emulated bf16, which a T4 has, is no reason to take it
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or hardware,
    )
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: hardware)
    precision, why = devices.resolve_precision("auto", device, half)
    assert precision == expected
    assert why


@pytest.mark.parametrize(
    ("requested", "device"),
    [("fp16", CPU), ("fp16", MPS), ("bf16", MPS), ("bf16", CUDA), ("fp8", CPU), ("fp8", CUDA)],
)
def test_a_precision_that_the_device_lacks_is_refused(
    requested: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UserError, match=f"precision={requested}"):
        devices.resolve_precision(requested, device)


def test_what_is_asked_for_is_taken() -> None:
    assert devices.resolve_precision("fp32", MPS)[0] == "fp32"
    assert devices.resolve_precision("bf16", CPU)[0] == "bf16"
    assert devices.resolve_precision("fp16", CUDA)[0] == "fp16"


def test_autocast_computes_in_the_precision_named() -> None:
    layer, inputs = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with devices.autocast("bf16", CPU):
        assert layer(inputs).dtype == torch.bfloat16
    with devices.autocast("fp32", CPU):
        assert layer(inputs).dtype == torch.float32


def test_small_steps_take_one_thread_and_large_ones_keep_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with devices.threads_for(1e3, CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        for multiplications, device in ((1e12, CPU), (1e3, CUDA)):
            with devices.threads_for(multiplications, device):
                assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_reproducible_context_is_left_as_it_was_found() -> None:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with devices.reproducible():
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before


def test_memory_is_counted_where_it_can_be() -> None:
    assert devices.free_bytes(CPU) > 0
    assert devices.peak_gib(CPU) is None
    assert "CPU" in devices.describe(CPU)
