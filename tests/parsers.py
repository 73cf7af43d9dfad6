"""Prints which share of the branches of all code that reads files a coverage report has taken."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

# all of a module, or those of its functions that read what may be hostile
PARSERS = {
    "config": ".*",
    "tables": ".*",
    "images": ".*",
    "pictures": ".*",
    "submission": ".*",
    "answering": ".*",
    "files": r"read_\w+|_finite|_parsed_npy|is_bomb|_read|_opened|visible_files|_walk|_visible|"
    r"_recall|unpacked|_unpacked_key|_is_zip|_whole|_built|_unpack\w*|_planned|_wanted|_parts|"
    r"_archive|_extract\w*|_refuse\w*|_escapes|_crc|_place|_load_arrays|_sound_arrays",
    "checkpoint": "load",
    "run": r"Key\.\w+|Run\.(answers|manifest|scores|members|folds)|_mapping|_is|find",
    "leaderboard": r"record.*|rows|best|rebuild.*|_scan|_alive|_read|_mapping|_row|_check|_fits|"
    r"_score|_transact|_attempt|_connect|_use_wal|_discard|_create|_has_columns|_fill|_put|"
    r"_select|_from_index",
    "folds": "load|from_file|_read|_by_label|_refuse",
    "backbones": r"find|fill|_in_folder|_name_of|_same|_guessed|_beginning|_told|_metadata|"
    r"_readable|_transform|_sound|_numbers|_options|_misfit|_converted|_weights|_tensors|"
    r"_Bounded\.\w+|_unwrapped|_plain",
    "network": r"_read_\w+|_listed",
    "estimator": r"Estimator\.restore.*",
    "blend": r"Blend\.restore.*",
    "scoring": "solution",
    "problem": "load",
    "pipeline": "_as_trained|_decided_on|_answered",
}


def covered(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(branches taken, branches) of the parsers of each module."""
    found = {}
    for path, entry in report["files"].items():
        module = Path(path).stem
        parts = [
            function["summary"]
            for name, function in entry["functions"].items()
            if name and re.fullmatch(PARSERS.get(module, "(?!)"), name)
        ]
        if parts:
            taken = sum(part["covered_branches"] for part in parts)
            found[module] = (taken, sum(part["num_branches"] for part in parts))
    return found


def main(path: str) -> None:
    found = covered(json.loads(Path(path).read_text()))
    for module in sorted(found, key=list(PARSERS).index):
        taken, branches = found[module]
        print(f"{module:16}{taken:5} of {branches:4} branches {taken / max(branches, 1):6.1%}")
    taken, branches = map(sum, zip(*found.values(), strict=True))
    print(f"{'parsers':16}{taken:5} of {branches:4} branches {taken / branches:6.1%}")


if __name__ == "__main__":
    main(sys.argv[1])
