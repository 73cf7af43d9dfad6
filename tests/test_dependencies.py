"""Every package that a user gets is one that the README has a reason for, and is pinned."""

from __future__ import annotations

import re
import tomllib

from kagglekit import doctor
from tests.conftest import ROOT


def names(lines: list[str]) -> list[str]:
    return [re.match(r"[\w.-]+", line)[0] for line in lines]  # type: ignore[index]


def wanted() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return names(project["dependencies"])


def test_the_readme_gives_each_runtime_dependency_and_its_purpose() -> None:
    table = (ROOT / "README.md").read_text().split("## What it leans on")[1].split("## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \| (\S.+) \|$", table, re.MULTILINE)
    assert [name for name, _ in rows if name != "package"] == sorted(wanted())


def test_each_runtime_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
    assert set(wanted()) <= set(names(lines))


def test_doctor_asks_for_each_runtime_dependency() -> None:
    assert sorted(doctor.DEPENDENCIES) == sorted(wanted())
