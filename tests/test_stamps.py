"""A stamp says what was begun: it names runs, and refuses what it was not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kagglekit import (
    Config,
    backbones,
    blend,
    clips,
    decisions,
    knob,
    mixing,
    probe,
    stamps,
    video,
    viewing,
)
from kagglekit.errors import UserError
from kagglekit.stamps import Stamp


@dataclass(frozen=True, kw_only=True)
class Knobs(Config):
    lr: float = knob(0.1, "rate")
    shown: int = knob(1, "what the screen shows", hashed=False)


FOLDS = [(np.array([0, 1]), np.array([2, 3])), (np.array([2, 3]), np.array([0, 1]))]


def named(config: Config = Knobs(), data: str = "d", source: str = "s", **extra: str) -> Stamp:
    return stamps.stamp(config, data, FOLDS, source, extra)


def test_the_name_depends_on_all_that_answers_depend_on() -> None:
    names = [
        named().digest,
        named(replace(Knobs(), lr=0.2)).digest,
        named(data="e").digest,
        named(source="t").digest,
        named(device="cuda").digest,
        stamps.stamp(Knobs(), "d", FOLDS[::-1], "s", {}).digest,
    ]
    assert len(set(names)) == len(names)
    assert all(len(found) == 8 and int(found, 16) >= 0 for found in names)


def test_the_name_does_not_depend_on_what_leaves_answers_unchanged() -> None:
    assert named(replace(Knobs(), shown=7)).digest == named().digest


def test_the_source_s_digest_sees_edits_moves_and_shared_modules(tmp_path: Path) -> None:
    home = tmp_path / "competitions" / "toy"
    (home / "parts").mkdir(parents=True)
    (home / "__init__.py").write_text("x = 1\n")
    seen = [stamps.source_digest(home)]
    (home / "__init__.py").write_text("x = 2\n")
    seen.append(stamps.source_digest(home))
    (home / "model.py").write_text("y = 1\n")
    seen.append(stamps.source_digest(home))
    (home / "model.py").rename(home / "parts" / "model.py")
    seen.append(stamps.source_digest(home))
    (home.parent / "_shared.py").write_text("z = 1\n")
    seen.append(stamps.source_digest(home))
    assert len(set(seen)) == len(seen)
    (home / "README.md").write_text("words\n")
    (home.parent / "other.py").write_text("another competition\n")
    assert stamps.source_digest(home) == seen[-1]


@pytest.mark.parametrize(
    "module", [backbones, blend, clips, decisions, mixing, probe, video, viewing]
)
def test_what_answers_depend_on_calls_no_code_that_the_digest_leaves_out(
    module: ModuleType,
) -> None:
    called = {name for name, value in vars(module).items() if isinstance(value, ModuleType)}
    assert not called & stamps._SHOWS_ONLY


def test_the_source_s_digest_does_not_depend_on_where_the_project_is(tmp_path: Path) -> None:
    digests = set()
    for place in ("a", "z/y"):
        home = tmp_path / place / "competitions" / "toy"
        home.mkdir(parents=True)
        (home / "__init__.py").write_text("x = 1\n")
        digests.add(stamps.source_digest(home))
    assert len(digests) == 1


def test_other_versions_of_tools_do_not_rename_a_run_but_are_refused() -> None:
    now = named()
    begun = {**now.parts, "torch": "1.0"}
    assert Stamp(begun).digest == now.digest
    with pytest.raises(UserError, match=r"run a .* torch \(1\.0, now .*--force-resume"):
        now.admit(begun, "run a")


def test_the_same_is_admitted_and_what_is_forced_is_told() -> None:
    now = named()
    assert now.admit(dict(now.parts), "run a") == {}
    forced = replace(now, forced=True)
    assert forced.admit({**now.parts, "source": "t"}, "run a") == {"source": ["t", "s"]}


@pytest.mark.parametrize("part", ["data", "folds", "member"])
def test_other_rows_cannot_be_forced(part: str) -> None:
    forced = replace(named().of("fold0-seed0"), forced=True)
    with pytest.raises(UserError, match=f"other {part}.*--fresh"):
        forced.admit({**forced.parts, part: "another"}, "checkpoint")


def test_only_source_and_versions_make_a_run_that_may_be_gone_on_with() -> None:
    now = named()
    assert not now.forceable(dict(now.parts))
    assert now.forceable({**now.parts, "source": "t", "torch": "1.0"})
    assert not now.forceable({**now.parts, "source": "t", "knob lr": "0.5"})


def test_versions_name_what_computes() -> None:
    assert {"python", "torch", "numpy"} <= set(stamps.versions())
