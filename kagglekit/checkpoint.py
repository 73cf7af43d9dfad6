"""One file holds all that training needs to go on as if it had never stopped."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from . import files
from .stages import stage

_DIGEST = 32  # bytes in front of the payload


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, lists and mappings of these) with its checksum."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    with stage("save"):
        files.write_bytes(path, blake2b(payload, digest_size=_DIGEST).digest() + payload)


def load(path: Path) -> dict[str, Any] | None:
    """The state in `path`; None where there is none, or where the file is damaged (and logged).

    Only tensors and plain values are read: nothing in a checkpoint is executed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, payload = content[:_DIGEST], content[_DIGEST:]
    if blake2b(payload, digest_size=_DIGEST).digest() != digest:
        logging.getLogger("kagglekit").warning(
            "%s is damaged and is ignored: this member starts again", path
        )
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
