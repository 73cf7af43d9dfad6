"""One file holds all that training needs to go on as if it had never stopped."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import files
from .errors import UserError
from .stages import stage

_DIGEST = 32  # bytes in front of the payload
_log = logging.getLogger("kagglekit")


@dataclass(frozen=True)
class Checkpoint:
    """The states of the members trained together, by name, and what they were begun with."""

    stamp: Mapping[str, str]
    members: Mapping[str, Mapping[str, Any]]


def save(path: Path, content: Checkpoint) -> None:
    """Write states (tensors, numbers, text, lists and mappings of these) with their checksum.

    The checkpoint before this one is kept, in case that a disk did not hold what it promised.
    """
    with stage("save"):
        buffer = io.BytesIO()
        torch.save({"stamp": dict(content.stamp), "members": dict(content.members)}, buffer)
        payload = buffer.getvalue()
        if path.exists():
            with files.explained(path):
                os.replace(path, _earlier(path))
        files.write_bytes(path, blake2b(payload, digest_size=_DIGEST).digest() + payload)


def load(path: Path) -> Checkpoint | None:
    """The last sound checkpoint; None where there is none, damaged ones being logged.

    Only tensors and plain values are read: nothing in a checkpoint is executed. Raises UserError
    for a file that is whole but holds something else.
    """
    for candidate in (path, _earlier(path)):
        try:
            content = candidate.read_bytes()
        except FileNotFoundError:
            continue
        digest, payload = content[:_DIGEST], content[_DIGEST:]
        if blake2b(payload, digest_size=_DIGEST).digest() == digest:
            return _parsed(payload, candidate)
        _log.warning("%s is damaged and is ignored", candidate)
    return None


def remove(path: Path) -> None:
    """Delete the checkpoint and the one before it."""
    for candidate in (path, _earlier(path)):
        candidate.unlink(missing_ok=True)


def digest(state: Mapping[str, Any]) -> str:
    """32 hex digits of a state: of every bit of its tensors, and of its plain values."""
    found = blake2b(digest_size=16)
    _feed(found, state)
    return found.hexdigest()


def _earlier(path: Path) -> Path:
    return path.with_name(f"{path.stem}.earlier{path.suffix}")


def _parsed(payload: bytes, path: Path) -> Checkpoint:
    try:
        found = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails in many ways, none of which runs any code
        raise UserError(_foreign(path)) from error
    if not isinstance(found, dict) or set(found) != {"stamp", "members"}:
        raise UserError(_foreign(path))
    stamp, members = found["stamp"], found["members"]
    if not (_is_mapping(stamp, str) and _is_mapping(members, dict)):
        raise UserError(_foreign(path))
    return Checkpoint(stamp, members)


def _is_mapping(value: Any, kind: type) -> bool:
    """Whether a value maps text to values of this kind."""
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(item, kind) for key, item in value.items()
    )


def _foreign(path: Path) -> str:
    return f"{path} is no checkpoint of kagglekit, and nothing of it was used: delete it"


def _feed(found: Any, value: Any) -> None:
    """Every value delimited by its type and size, so that none can pose as another."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        found.update(f"tensor {flat.dtype} {tuple(flat.shape)} ".encode())
        found.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        found.update(f"mapping {len(value)} ".encode())
        for key, item in value.items():
            _feed(found, key)
            _feed(found, item)
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)} ".encode())
        for item in value:
            _feed(found, item)
    else:
        text = repr(value).encode()
        found.update(f"{type(value).__name__} {len(text)} ".encode() + text)
