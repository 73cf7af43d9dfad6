"""Every test works in a project folder of its own, offline, on as many threads as a laptop has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import typist as typing
from tests.typist import Typist

ROOT = Path(__file__).parent.parent

os.environ["NO_COLOR"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def typist() -> Iterator[Typist]:
    """Types commands into processes that may be killed."""
    if not hasattr(os, "fork"):
        pytest.skip("a process can be forked on POSIX only")
    yield typing.shared()
    typing.shared().close()
    typing.shared.cache_clear()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder that is the current one; the repository's competitions are in use."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("DATA", "RUNS", "SUBMISSIONS"):
        monkeypatch.delenv(f"KAGGLEKIT_{name}", raising=False)
    monkeypatch.setenv("KAGGLEKIT_WEIGHTS", "")  # what a test types is forgotten with it
    for name in ("http_proxy", "https_proxy", "all_proxy"):  # a port where nobody listens
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.setenv("KAGGLEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", str(ROOT / "competitions"))
    return folder
