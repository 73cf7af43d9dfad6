"""The credentials that the client uses, in its own order; what is in them is never shown again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kagglekit import credentials, secrecy
from kagglekit.errors import UserError

SECRET = "a-secret-0123456789"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kaggle").mkdir()
    return tmp_path


def test_without_credentials_the_sentence_says_where_to_get_them() -> None:
    with pytest.raises(UserError, match=r"https://www.kaggle.com/settings/api .*access_token"):
        credentials.in_force()


def test_each_place_gives_what_opens_kaggle(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {"username": "someone", "key": SECRET}
    (home / ".kaggle/kaggle.json").write_text(json.dumps(saved))
    login = credentials.in_force().login
    assert (login.username, login.key, login.token) == ("someone", SECRET, None)
    monkeypatch.setenv("KAGGLE_KEY", f"other-{SECRET}")
    assert credentials.in_force().login.key == f"other-{SECRET}"
    (home / ".kaggle/access_token").write_text(f"{SECRET}-token\n")
    assert credentials.in_force().login.token == f"{SECRET}-token"
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"{SECRET}-value")
    assert credentials.in_force().login.token == f"{SECRET}-value"


def test_the_first_place_is_in_force_also_where_it_cannot_be_used(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".kaggle/access_token").write_text(SECRET)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "two words")
    with pytest.raises(UserError, match="KAGGLE_API_TOKEN cannot be used") as caught:
        credentials.in_force()
    assert "two words" not in str(caught.value)


def test_what_was_read_from_a_file_is_hidden_from_then_on(home: Path) -> None:
    (home / ".kaggle/access_token").write_text("only-in-this-file-77")
    source = credentials.in_force()
    assert secrecy.hide("it says only-in-this-file-77 here") == "it says *** here"
    assert "only-in-this-file-77" not in repr(source)
