from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from kagglekit import checkpoint
from tests.engine import (
    KilledError,
    fitted,
    killed_at_save,
    member,
    numbers,
    on_one_thread,  # noqa: F401
    regressor,
    settings,
)

STATE = {"weights": torch.arange(6.0), "epoch": 3, "nested": {"list": [1, None, 2.5]}}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.bin", STATE)
    found = checkpoint.load(tmp_path / "c.bin")
    assert found is not None
    assert torch.equal(found.pop("weights"), STATE["weights"])
    assert found == {"epoch": 3, "nested": {"list": [1, None, 2.5]}}


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "c.bin") is None


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_one_flipped_bit_is_noticed(place: str, tmp_path: Path) -> None:
    path = tmp_path / "c.bin"
    checkpoint.save(path, STATE)
    content = bytearray(path.read_bytes())
    content[{"start": 0, "middle": len(content) // 2, "end": -1}[place]] ^= 1
    path.write_bytes(content)
    assert checkpoint.load(path) is None


@pytest.mark.parametrize("kept", [0, 10, 32, 500])
def test_a_torn_file_is_noticed_and_logged(
    kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.bin"
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[:kept])
    assert checkpoint.load(path) is None
    assert str(path) in caplog.text


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.bin", {"bomb": Bomb()})
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
        checkpoint.load(tmp_path / "c.bin")


def test_a_member_with_a_damaged_checkpoint_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings()
    expected = fitted(regressor(), member(numbers(), tmp_path / "a"), config)
    broken = member(numbers(), tmp_path / "b")
    with monkeypatch.context() as context:
        killed_at_save(context, 2)
        with pytest.raises(KilledError):
            regressor().fit([broken], config)
    path = broken.folder / "checkpoint.bin"
    path.write_bytes(path.read_bytes()[:-7])
    assert fitted(regressor(), broken, config) == expected
    assert not path.exists()
