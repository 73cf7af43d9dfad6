"""Keeps passwords and tokens out of all that is written or shown."""

from __future__ import annotations

import os
import re

_TELLING = re.compile(r"token|secret|passw|credential|apikey|_key$", re.IGNORECASE)
# of a URL, also as a path shortens it: user:password, or a token alone
_LOGIN = re.compile(r"(?<=:/)(/?)([^/\s@'\"]+)(?=@)")
_SHORTEST = 6  # characters; what is shorter would blot out ordinary words


_learnt: set[str] = set()


def learn(*secrets: str | None) -> None:
    """Hide these too from here on: what was read from a file, which no variable gives away."""
    _learnt.update(secret for secret in secrets if secret and len(secret) >= _SHORTEST)


def hide(text: str) -> str:
    """`text` with *** for every secret that this process was given.

    That is what stands before the @ of a URL, and the values of environment variables whose names
    tell (KAGGLE_KEY, HF_TOKEN).
    """
    for secret in sorted(_given(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _LOGIN.sub(r"\1***", text)


def _given() -> set[str]:
    named = {value for name, value in os.environ.items() if _TELLING.search(name)}
    logins = {login for value in os.environ.values() for _, login in _LOGIN.findall(value)}
    passwords = {login.partition(":")[2] for login in logins}
    return _learnt | {secret for secret in named | logins | passwords if len(secret) >= _SHORTEST}
