"""Draws docs/terminal.svg from a real run: `python docs/picture.py` (a minute, practice data)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
WIDTH = 100
COMMANDS = ("kagglekit train mics_mnist", "kagglekit leaderboard mics_mnist")


def main() -> None:
    """Run the commands in an empty folder and save what they print on a wide terminal."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "green"), (command, "bold")))
            console.print(Text.from_ansi(answer(command, Path(folder))))
    console.save_svg(str(ROOT / "docs" / "terminal.svg"), title="kagglekit")


def answer(command: str, folder: Path) -> str:
    """What a command prints on stdout, in colour."""
    colours = {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    here = {"KAGGLEKIT_COMPETITIONS": str(ROOT / "competitions")}
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **colours, **here}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
