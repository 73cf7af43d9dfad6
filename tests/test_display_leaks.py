"""What leaks found fits the terminal, with the advice below its finding."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from kagglekit import display_leaks

RESULT: dict[str, Any] = {
    "competition": "faces", "rows": {"train": 3000, "test": 10}, "basis": "pixels", "seconds": 3.2,
    "folder": "runs/faces/leaks", "files": ["leaks.json", "groups.csv"],
    "findings": [
        {"topic": "copies", "level": "fine", "sentence": "no copies", "advice": ""},
        {"topic": "train and test", "level": "leak", "sentence": "too alike " * 12,
         "advice": "look at them"},
    ],
}  # fmt: skip


def shown(result: dict[str, Any], width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(display_leaks.findings(result))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 120])
def test_findings_fit_the_terminal(width):
    lines = shown(RESULT, width)
    assert max(map(len, lines)) <= width
    assert "3,000 + 10 rows" in lines[0]
    assert "1 thing to see to" in " ".join(lines[:2])
    assert any("→ look at them" in line for line in lines)


def test_nothing_found_is_said_calmly():
    assert "nothing to worry about" in shown({**RESULT, "findings": RESULT["findings"][:1]}, 120)[0]
