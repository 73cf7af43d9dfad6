"""The same seed gives the same bytes, however the data reach the model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leaves
from tests.conftest import ROOT
from tests.typist import kagglekit

TYPED = ("train", "leaves", "epochs=2")


@pytest.fixture(autouse=True)
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_COMPETITIONS", "competitions")
    leaves.write(project, packed=True)


def trained(project: Path, *more: str) -> dict[str, bytes]:
    """What a training leaves that begins with no run."""
    for name in ("runs", "submissions"):
        shutil.rmtree(project / name, ignore_errors=True)
    ended = kagglekit(*TYPED, *more)
    assert ended.code == 0, ended.err
    return leaves.content(project)


def test_bytes_depend_neither_on_workers_nor_on_the_cache(project: Path, tmp_path: Path) -> None:
    cold = trained(project, "workers=0")
    assert any((tmp_path / "cache" / "unpacked").iterdir())
    assert trained(project, "workers=0") == cold  # with a warm cache
    assert trained(project, "workers=1") == cold
    assert trained(project, "workers=4") == cold
    assert trained(project, "workers=0", "--fresh") == cold  # with none
    assert trained(project, "workers=0", "seed=1") != cold


def test_bytes_depend_neither_on_the_hash_seed_nor_on_the_current_folder(
    project: Path, tmp_path: Path
) -> None:
    expected = trained(project)
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    homes = {f"KAGGLEKIT_{n.upper()}": str(project / n) for n in ("competitions", "submissions")}
    for name in ("runs", "submissions"):
        shutil.rmtree(project / name)
    subprocess.run(
        [sys.executable, "-m", "kagglekit", *TYPED, "--data", str(project / "data" / "leaves")],
        cwd=elsewhere,
        env={
            **os.environ, **homes, "KAGGLEKIT_RUNS": str(project / "runs"), "PYTHONHASHSEED": "2",
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        },
        check=True, capture_output=True,
    )  # fmt: skip
    assert leaves.content(project) == expected
