"""Every test works in a project folder of its own, offline, on as many threads as a laptop has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

os.environ["NO_COLOR"] = "1"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder that is the current one; the repository's competitions are in use."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("DATA", "RUNS", "SUBMISSIONS"):
        monkeypatch.delenv(f"KAGGLEKIT_{name}", raising=False)
    monkeypatch.setenv("KAGGLEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", str(ROOT / "competitions"))
    return folder
