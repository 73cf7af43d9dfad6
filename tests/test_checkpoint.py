from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch

from kagglekit import checkpoint
from kagglekit.checkpoint import Checkpoint
from kagglekit.errors import UserError
from kagglekit.recipe import Member
from kagglekit.stamps import Stamp
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
CONTENT = Checkpoint({"torch": "2"}, {"fold0-seed0": STATE})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.bin", CONTENT)
    found = checkpoint.load(tmp_path / "c.bin")
    assert found is not None
    assert found.stamp == {"torch": "2"}
    state = dict(found.members["fold0-seed0"])
    assert torch.equal(state.pop("weights"), STATE["weights"])  # type: ignore[arg-type]
    assert state == {"epoch": 3, "nested": {"list": [1, None, 2.5]}}


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "c.bin") is None


def damage(path: Path, place: str) -> None:
    content = bytearray(path.read_bytes())
    content[{"start": 0, "middle": len(content) // 2, "end": -1}[place]] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_one_flipped_bit_is_noticed(place: str, tmp_path: Path) -> None:
    path = tmp_path / "c.bin"
    checkpoint.save(path, CONTENT)
    damage(path, place)
    assert checkpoint.load(path) is None


def test_the_checkpoint_before_a_damaged_one_is_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.bin"
    for epoch in (1, 2, 3):
        checkpoint.save(path, Checkpoint({}, {"a": {"epoch": epoch}}))
    damage(path, "middle")
    found = checkpoint.load(path)
    assert found is not None
    assert found.members["a"] == {"epoch": 2}
    assert str(path) in caplog.text


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.save(tmp_path / "member" / "c.bin", CONTENT)
    checkpoint.remove(tmp_path / "member" / "c.bin")
    checkpoint.remove(tmp_path / "member" / "c.bin")
    assert not list((tmp_path / "member").iterdir())


@pytest.mark.parametrize("kept", [0, 10, 32, 500])
def test_a_torn_file_is_noticed_and_logged(
    kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.bin"
    checkpoint.save(path, CONTENT)
    path.write_bytes(path.read_bytes()[:kept])
    assert checkpoint.load(path) is None
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["weights"].view(torch.int32)[3].add_(1),
        lambda state: state.update(epoch=4),
        lambda state: state["nested"]["list"].append(0),
        lambda state: state.update(more=None),
        lambda state: state.update(weights=state["weights"].double()),
        lambda state: state.update(weights=state["weights"].reshape(2, 3)),
    ],
)
def test_a_digest_sees_every_bit(change: Callable[[Any], Any]) -> None:
    changed = copy.deepcopy(STATE)
    assert checkpoint.digest(changed) == checkpoint.digest(STATE)
    change(changed)
    assert checkpoint.digest(changed) != checkpoint.digest(STATE)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    "content",
    [
        {"stamp": {}, "members": {"a": {"bomb": Bomb()}}},
        {"stamp": {}, "members": [1]},
        {"stamp": {}, "members": {"a": 1}},
        {"members": {}},
        3,
    ],
)
def test_nothing_in_a_file_is_executed_and_what_is_no_checkpoint_is_refused(
    content: Any, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    path = tmp_path / "c.bin"
    path.write_bytes(blake2b(payload, digest_size=32).digest() + payload)
    with pytest.raises(UserError, match=r"c\.bin is no checkpoint"):
        checkpoint.load(path)


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
    for path in broken.folder.glob("checkpoint*.bin"):
        path.write_bytes(path.read_bytes()[:-7])
    assert fitted(regressor(), broken, config) == expected
    assert not list(broken.folder.glob("checkpoint*"))


def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamp: Stamp) -> Member:
    """A member that was killed in training."""
    broken = member(numbers(), tmp_path / "b", stamp=stamp)
    with monkeypatch.context() as context:
        killed_at_save(context, 3)
        with pytest.raises(KilledError):
            regressor().fit([broken], settings())
    return broken


def test_a_checkpoint_of_something_else_is_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fitted(regressor(), member(numbers(), tmp_path / "a"), settings())
    broken = unfinished(tmp_path, monkeypatch, Stamp({"torch": "1.0", "data": "d"}))
    later = {"torch": "2.0", "data": "d"}
    with pytest.raises(UserError, match=r"torch \(1\.0, now 2\.0\).*--force-resume"):
        regressor().fit([replace(broken, stamp=Stamp(later))], settings())
    with pytest.raises(UserError, match=r"data.*--fresh"):
        regressor().fit([replace(broken, stamp=Stamp({**later, "data": "e"}, True))], settings())
    stranger = replace(broken, stamp=Stamp(broken.stamp.parts, True), name="fold1-seed0")
    with pytest.raises(UserError, match=r"member.*--fresh"):
        regressor().fit([stranger], settings())
    forced = replace(broken, stamp=Stamp(later, forced=True))
    assert fitted(regressor(), forced, settings()) == expected


def test_a_checkpoint_that_does_not_fit_the_model_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = unfinished(tmp_path, monkeypatch, Stamp())
    wider = regressor(model=lambda config, task: torch.nn.Linear(3, task.outputs))
    with pytest.raises(UserError, match=r"checkpoint\.bin does not fit"):
        wider.fit([broken], settings())
