"""No command writes or shows a secret that it was given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kagglekit import secrecy
from tests import leaves
from tests.typist import kagglekit

# put together here, so that no file of the project holds one in one piece
SECRETS = {name: f"{name}-{'planted' * 2}" for name in ("env", "hf", "file", "token", "proxy", "q")}


@pytest.fixture
def planted(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Secrets wherever Kaggle's client and others look for them; gives the home folder."""
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    login = {"username": "someone", "key": SECRETS["file"]}
    (home / ".kaggle" / "kaggle.json").write_text(json.dumps(login))
    (home / ".kaggle" / "access_token").write_text(SECRETS["token"])
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", SECRETS["env"])
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"KGAT_{SECRETS['env']}")
    monkeypatch.setenv("HF_TOKEN", SECRETS["hf"])
    for name in ("HTTP_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://someone:{SECRETS['proxy']}@proxy.example:3128")
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    leaves.write(project, packed=True)
    return home


def leaks(text: str) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret in text]


def test_no_command_leaves_or_shows_a_secret(planted: Path, project: Path, tmp_path: Path) -> None:
    mistyped = f"https://someone:{SECRETS['q']}@example.com/{SECRETS['hf']}"
    commands = [
        (("train", "leaves", "epochs=1"), 0),
        (("list", "--json"), 0),
        (("train", "leaves", "--slug", mistyped), 2),
        (("leaderboard",), 0),
        (("leaderboard", "--json"), 0),
        (("predict", "leaves", "cnn", "--data", "data/leaves"), 0),
        (("train", "leaves", f"--token={SECRETS['q']}"), 2),
        (("train", "leaves", f"token={SECRETS['q']}"), 2),
        (("train", "leaves", "--data", mistyped), 2),
        (("predict", "leaves", SECRETS["hf"], "--data", "data/leaves"), 2),
        (("doctor",), None),
        (("doctor", "--json"), None),
    ]
    for typed, code in commands:
        ended = kagglekit(*typed)
        assert code is None or ended.code == code, ended.err
        assert not leaks(ended.out + ended.err), typed
    for home in (project / "runs", project / "submissions", tmp_path / "cache", planted):
        for path in home.rglob("*"):
            if path.is_file() and ".kaggle" not in path.parts:
                assert not leaks(path.read_bytes().decode("latin-1")), path
            assert not leaks(path.name)


def test_a_traceback_shows_no_secret(planted: Path, project: Path) -> None:
    code = project / "competitions" / "leaves" / "__init__.py"
    broken = "import os\nraise ValueError(os.environ['HTTP_PROXY'] + os.environ['KAGGLE_KEY'])\n"
    code.write_text(broken)
    ended = kagglekit("train", "leaves")
    assert ended.code != 0
    assert not leaks(ended.out + ended.err)


def test_only_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "ab12cd34")
    monkeypatch.setenv("SHORT_TOKEN", "on")
    text = "run ab12cd34 is on; https://me:pw@host/x, lr=3e-3 me@host, data/leaves"
    hidden = "run *** is on; https://***@host/x, lr=3e-3 me@host, data/leaves"
    assert secrecy.hide(text) == hidden
