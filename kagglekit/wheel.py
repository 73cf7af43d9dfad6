"""Archives that have the same bytes every time, and kagglekit's own wheel among them."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import shutil
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from . import __version__

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # in zips: the same code gives the same bytes
_TAG = """\
Wheel-Version: 1.0
Generator: kagglekit
Root-Is-Purelib: true
Tag: py3-none-any
"""
_COMMAND = "[console_scripts]\nkagglekit = kagglekit.cli:main\n"


def write(folder: Path) -> Path:
    """Write `kagglekit-<version>-py3-none-any.whl`, as the binary distribution format has it.

    <https://packaging.python.org/specifications/binary-distribution-format/>
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"kagglekit-{__version__}-py3-none-any.whl"
    about = f"kagglekit-{__version__}.dist-info"
    home = Path(__file__).parent
    contents: dict[str, bytes] = {
        f"kagglekit/{path.relative_to(home).as_posix()}": path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    contents |= {
        f"{about}/METADATA": _metadata().encode(),
        f"{about}/WHEEL": _TAG.encode(),
        f"{about}/entry_points.txt": _COMMAND.encode(),
    }
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in contents.items())
    contents[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    pack(wheel, contents)
    return wheel


def pack(path: Path, contents: Mapping[str, bytes | Path]) -> None:
    """Write a zip of bytes and files by their names; the same contents give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            source = content.open("rb") if isinstance(content, Path) else BytesIO(content)
            with source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _metadata() -> str:
    """What the installed kagglekit says of itself, or without an installation the least of it."""
    least = f"Metadata-Version: 2.1\nName: kagglekit\nVersion: {__version__}\n"
    try:
        found = importlib.metadata.distribution("kagglekit")
    except importlib.metadata.PackageNotFoundError:
        return least
    # an editable installation keeps telling of the version that it was made from
    return (found.read_text("METADATA") or least) if found.version == __version__ else least


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"sha256={digest.decode().rstrip('=')}"
