"""What answers depend on: a digest of it names a run, and only the same may be gone on with."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from . import config as configs
from . import folds
from .config import Config
from .errors import UserError
from .folds import Fold

_SHOWS_ONLY = {
    "__main__", "agreement", "alignment", "board", "certify", "cleaning", "cli", "comparing",
    "contact_sheet", "contenders", "credentials", "diagnosis", "display", "display_decide",
    "display_kaggle", "display_leaks", "doctor", "downloading", "drawing", "duplicates",
    "evidence", "inventory", "journal", "kaggle", "leaderboard", "leaks", "locks", "neighbours",
    "notebook", "overview", "pace", "pages", "practice_server", "progress", "report",
    "shakeup", "shortcuts", "signals", "stages", "standings", "strips", "submitting", "thumbnails",
    "wheel",
}  # fmt: skip
_LIBRARIES = (
    "kagglekit",
    "torch",
    "timm",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "av",
    "opencv-python-headless",
)
_TOOLS = ("python", "processor", *_LIBRARIES)
_UNFORCEABLE = ("data", "folds", "member")  # rows would be scored by models that saw them


@dataclass(frozen=True)
class Stamp:
    """What a training was begun with, part by part, as text.

    `forced` lets what was begun with other knobs, source or versions go on all the same.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    forced: bool = False

    @property
    def digest(self) -> str:
        """Eight hex digits of everything but the versions of tools."""
        named = {name: text for name, text in self.parts.items() if name not in _TOOLS}
        return blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=4).hexdigest()

    def forceable(self, begun: Mapping[str, str]) -> bool:
        """Whether it is the source or the versions of tools that differ, and nothing else."""
        different = set(self.differences(begun))
        return bool(different) and different <= {"source", *_TOOLS}

    def of(self, member: str) -> Stamp:
        """The stamp of one member."""
        return replace(self, parts={**self.parts, "member": member})

    def differences(self, begun: Mapping[str, str]) -> list[str]:
        """The names of parts that differ from those in `begun`."""
        names = dict.fromkeys([*self.parts, *begun])
        return [name for name in names if self.parts.get(name) != begun.get(name)]

    def admit(self, begun: Mapping[str, str], what: str) -> dict[str, list[str | None]]:
        """The differences that are let pass, name -> [then, now]; none where all is the same.

        Raises UserError where there are some and they are not forced, or cannot be.
        """
        different = self.differences(begun)
        if not different:
            return {}
        told = ", ".join(self._told(name, begun) for name in different[:4])
        more = f" and {len(different) - 4} more" if len(different) > 4 else ""
        impossible = [name for name in different if name in _UNFORCEABLE]
        if impossible or not self.forced:
            way = (
                "bring that back, or begin again with --fresh"
                if impossible
                else "bring that back, begin again with --fresh, or go on with --force-resume, "
                "which the leaderboard will show"
            )
            raise UserError(f"{what} was begun with other {told}{more}: {way}")
        return {name: [begun.get(name), self.parts.get(name)] for name in different}

    def _told(self, name: str, begun: Mapping[str, str]) -> str:
        if name in ("data", "folds", "source"):
            return name
        then, now = begun.get(name, "none"), self.parts.get(name, "none")
        return f"{name} ({then}, now {now})"


def stamp(
    config: Config,
    data: str,
    split: Sequence[Fold],
    source: str,
    extra: Mapping[str, str],
) -> Stamp:
    """The stamp of a run: `data` and `source` are fingerprints, `extra` is whatever else counts."""
    knobs = {
        f"knob {name}": json.dumps(value, default=str)
        for name, value in configs.hashed(config).items()
    }
    inputs = {"data": data, "folds": folds.fingerprint(split), "source": source}
    return Stamp({**inputs, **extra, **knobs, **versions()})


def source_digest(competition: Path) -> str:
    """Digest of the code that answers depend on: the core's and the competition's."""
    home = Path(__file__).parent
    core = {path.name: path for path in home.glob("*.py") if path.stem not in _SHOWS_ONLY}
    own = competition.rglob("*.py") if competition.is_dir() else [competition.with_suffix(".py")]
    beside = competition.parent.glob("_*.py")  # what several competitions share
    theirs = {
        f"competitions/{path.relative_to(competition.parent).as_posix()}": path
        for path in [*own, *beside]
    }
    digest = blake2b(digest_size=8)
    for name, path in sorted({**core, **theirs}.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
