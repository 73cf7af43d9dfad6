"""Where the credentials for Kaggle come from, in the order in which Kaggle's own client looks."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import secrecy
from .errors import UserError


@dataclass(frozen=True)
class Login:
    """What opens Kaggle: a token, or a user's name and key; neither for OAuth's saved tokens."""

    token: str | None = None
    username: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Source:
    """A place of credentials that has some. `fault`: why the client cannot use them."""

    name: str
    fault: str = ""
    exposed: Path | None = None  # a file that other users of the machine can read
    login: Login = field(default_factory=Login, repr=False)


SETTINGS = "https://www.kaggle.com/settings/api"
SIGN_UP = f"make a token at {SETTINGS} and save it as ~/.kaggle/access_token"


def sources() -> list[Source]:
    """Every place that has credentials; the first is in force."""
    return [source for look in _LOOKS if (source := look()) is not None]


def in_force() -> Source:
    """The credentials that the client uses; UserError where there are none that it can use.

    From here on none of their text is shown or written anywhere.
    """
    found = sources()
    if not found:
        raise UserError(f"no Kaggle credentials: {SIGN_UP}")
    source = found[0]
    if source.fault:
        raise UserError(
            f"the Kaggle credentials in {source.name} cannot be used: {source.fault}; mend or "
            f"remove it, or {SIGN_UP}"
        )
    secrecy.learn(source.login.token, source.login.key)
    return source


def _token_variable() -> Source | None:
    value = os.environ.get("KAGGLE_API_TOKEN")
    if not value:
        return None
    path = Path(value)
    if _exists(path):
        return _token_file(path, "the file that KAGGLE_API_TOKEN names")
    if path.suffix in (".txt", ".json") or value.startswith(("~", "/", "./")):
        return Source("KAGGLE_API_TOKEN", "it looks like a path, but there is no such file")
    if not _is_token(value):
        return Source("KAGGLE_API_TOKEN", "its value is no token: it has blanks or odd characters")
    return Source("KAGGLE_API_TOKEN (a value)", login=Login(token=value))


def _token_files() -> Source | None:
    for path in (Path("~/.kaggle/access_token"), Path("~/.kaggle/access_token.txt")):
        place = path.expanduser()
        if _exists(place):
            return _token_file(place, str(path))
    return None


def _token_file(path: Path, name: str) -> Source:
    text = _text(path)
    fault = "" if text is not None and _is_token(text.strip()) else "it holds no token"
    return Source(name, fault, _exposed(path), Login(token=(text or "").strip()))


def _username_and_key() -> Source | None:
    """Variables beat kaggle.json one by one, as the client merges them."""
    path = _config_folder() / "kaggle.json"
    variables = {"username": "KAGGLE_USERNAME", "key": "KAGGLE_KEY"}
    given = {key: os.environ[name] for key, name in variables.items() if name in os.environ}
    saved = _object(path) if _exists(path) else None
    if not given and not _exists(path):
        return None
    whole = {**(saved or {}), **given}
    names = [variables[key] for key in given]
    from_file = len(given) < 2 and _exists(path)
    if from_file:
        names.append(_short(path))
    lacking = [key for key in variables if not _is_filled(whole.get(key))]
    fault = f"it has no {' and no '.join(lacking)}" if lacking else ""
    if from_file and saved is None:
        fault = "kaggle.json is not the JSON that Kaggle gave"
    exposed = _exposed(path) if from_file else None
    if fault:
        return Source(" with ".join(names), fault, exposed)
    login = Login(username=whole["username"].strip(), key=whole["key"].strip())
    return Source(" with ".join(names), "", exposed, login)


def _oauth() -> Source | None:
    path = Path("~/.kaggle/credentials.json").expanduser()
    if not _exists(path):
        return None
    saved = _object(path)
    sound = saved is not None and _is_filled(saved.get("refresh_token"))
    fault = "" if sound else "it has no refresh token: log in again with `kaggle auth login`"
    return Source("~/.kaggle/credentials.json (OAuth)", fault, _exposed(path))


_LOOKS = (_token_variable, _token_files, _username_and_key, _oauth)


def _config_folder() -> Path:
    """Where the client looks for kaggle.json."""
    chosen = os.environ.get("KAGGLE_CONFIG_DIR")
    if chosen:
        return Path(chosen)
    usual = Path("~/.kaggle").expanduser()
    if sys.platform.startswith("linux") and not usual.exists():
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "kaggle"
    return usual


def _is_token(text: str) -> bool:
    return re.fullmatch(r"[\w.+/=~-]{8,}", text, re.ASCII) is not None


def _is_filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a token longer than any file's name
        return False


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _object(path: Path) -> Mapping[str, Any] | None:
    try:
        value = json.loads(_text(path) or "")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _exposed(path: Path) -> Path | None:
    if os.name == "nt":  # Windows keeps others out by other means
        return None
    return path if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) else None


def _short(path: Path) -> str:
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if str(path).startswith(home + os.sep) else str(path)
