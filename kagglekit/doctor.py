"""Looks at everything a run leans on, and says what to do about each problem."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import credentials, folders
from .errors import NetworkError, UserError

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["ok", "note", "problem"]

OLDEST_PYTHON = (3, 11)
# What kagglekit asks for, where it runs from its source without having been installed.
DEPENDENCIES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pillow",
    "scikit-learn",
    "scipy",
    "timm",
    "albumentations",
    "av",
    "opencv-python-headless",
    "filelock",
    "huggingface-hub",
    "safetensors",
    "threadpoolctl",
    "psutil",
    "requests",
    "rich",
    "matplotlib",
    "jinja2",
    "cleanlab",
    "kaggle",
    "six",
)
_GIB = 1 << 30
_SCARCE, _FULL = 5 * _GIB, _GIB // 4  # bytes of disk left
_LEAST_MEMORY = 2 * _GIB
_LEAST_SHARED = _GIB  # four workers' batches of large images
_COMPILE_SECONDS = 60


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found and, unless it is ok, what to do."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order in which to mend them. Nothing is left anywhere.

    Only the credentials are sent, to Kaggle, to see whether they work. No secret, or part of one,
    is in any finding. A check that fails is a finding itself.
    """
    checks: Sequence[tuple[str, Callable[[], Iterable[Finding]]]] = (
        ("Python", _python),
        ("packages", _packages),
        ("GPU", _gpu),
        ("precision", _precision),
        ("CPU", _cpu),
        ("C++ compiler", _compiler),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        ("folders", _folders),
        ("Kaggle client", _kaggle_client),
        ("Kaggle credentials", _credentials),
        ("Kaggle login", _login),
    )
    return [finding for name, check in checks for finding in _guarded(name, check)]


def has_problem(findings: Iterable[Finding]) -> bool:
    """Whether anything has to be mended before all commands can work."""
    return any(finding.status == "problem" for finding in findings)


def as_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """{"problems": number, "findings": [{"name", "status", "found", "remedy"}]}."""
    listed = [asdict(finding) for finding in findings]
    problems = sum(finding["status"] == "problem" for finding in listed)
    return {"problems": problems, "findings": listed}


def table(findings: Iterable[Finding]) -> Table:
    """The findings for a terminal; the remedy stands below what was found."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_column(ratio=1, overflow="fold")
    for finding in findings:
        told = Text(finding.found)
        if finding.remedy:
            told.append(f"\n-> {finding.remedy}", style="italic")
        grid.add_row(Text(finding.status, style=styles[finding.status]), finding.name, told)
    return grid


def _guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The check's findings. An error's text may quote what it read, so only its kind is told."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(check())
    except UserError as error:
        return [Finding(name, "problem", str(error))]
    except Exception as error:
        found = f"could not be examined ({type(error).__name__})"
        return [Finding(name, "problem", found, "mend the packages above first, then try again")]


# --- software -----------------------------------------------------------------------------------


def _python() -> Iterable[Finding]:
    found = f"{platform.python_version()} on {platform.platform(terse=True)}, {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding("Python", "problem", found, f"install Python {oldest} or later; `make setup`")
    else:
        yield Finding("Python", "ok", found)


def _packages() -> Iterable[Finding]:
    version = _version("kagglekit")
    if version is None:
        found = "not installed, runs from its source"
        yield Finding("kagglekit", "note", found, "`make setup`, or `pip install -e .`")
    else:
        yield Finding("kagglekit", "ok", version)
    for name, oldest in _wanted():
        yield _package(name, oldest)


def _package(name: str, oldest: str) -> Finding:
    install = f'`make setup`, or `pip install "{name}{f">={oldest}" if oldest else ""}"`'
    version = _version(name)
    if version is None:
        return Finding(name, "problem", "missing", install)
    if oldest and _numbers(version) < _numbers(oldest):
        return Finding(name, "problem", f"{version} is older than {oldest}", install)
    return Finding(name, "ok", version)


def _wanted() -> list[tuple[str, str]]:
    """(name, lower bound or "") of every runtime dependency."""
    try:
        asked = metadata.requires("kagglekit")
    except metadata.PackageNotFoundError:
        asked = None
    if not asked:
        return [(name, "") for name in DEPENDENCIES]
    pattern = re.compile(r"([\w.-]+)(?:\[[^]]*\])?[^;]*?(?:>=\s*([\d.]+)|$|[;<!~=,])")
    needed = (text for text in asked if "extra ==" not in text)
    matches = [match for match in map(pattern.match, needed) if match]
    return [(match[1], match[2] or "") for match in matches]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version, without trailing zeros: 2.4.0+cu121 gives (2, 4)."""
    parts = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in parts[0].split(".")] if parts else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


# --- what computes ------------------------------------------------------------------------------


def _gpu() -> Iterable[Finding]:
    try:
        import torch
    except ImportError as error:
        found = f"torch cannot be imported ({type(error).__name__})"
        return [Finding("GPU", "problem", found, "`make setup`, or `pip install torch`")]
    with warnings.catch_warnings(record=True) as caught:  # why a driver does not serve is a warning
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        return [_cuda(torch, index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [Finding("GPU", "ok", f"Apple GPU (MPS), torch {torch.__version__}")]
    return [_no_gpu(torch, [str(warning.message) for warning in caught])]


def _cuda(torch: Any, index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    found = (
        f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, compute capability"
        f" {capability[0]}.{capability[1]}, {'bf16' if bf16 else 'no bf16'}, CUDA"
        f" {torch.version.cuda or torch.version.hip}"
    )
    name = f"GPU {index}"
    if torch.version.hip is None and not _has_kernels(torch.cuda.get_arch_list(), capability):
        remedy = f"install a torch built for sm_{capability[0]}{capability[1]} (pytorch.org)"
        return Finding(name, "problem", f"{found}: this torch has no kernels for it", remedy)
    return Finding(name, "ok", found)


def _has_kernels(built_for: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether kernels run: of the same major version and no later minor one, or older PTX."""
    for architecture in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture)
        if match is None:
            continue
        target = (int(match[2]), int(match[3]))
        if target <= capability and (match[1] == "compute" or target[0] == capability[0]):
            return True
    return False


def _no_gpu(torch: Any, reasons: Sequence[str]) -> Finding:
    cpu_only = "none: everything trains on the CPU"
    if not Path("/proc/driver/nvidia/version").exists() and shutil.which("nvidia-smi") is None:
        return Finding("GPU", "note", cpu_only, "recipes for small machines are taken by default")
    if "CUDA_VISIBLE_DEVICES" in os.environ and not reasons:
        found = "hidden by CUDA_VISIBLE_DEVICES"
        return Finding("GPU", "note", found, "unset CUDA_VISIBLE_DEVICES to train on the GPU")
    if torch.version.cuda is None:
        found = f"an NVIDIA driver is here, but torch {torch.__version__} is built without CUDA"
        return Finding("GPU", "problem", found, "install torch with CUDA, as pytorch.org says")
    reason = " ".join(reasons[0].split())[:200] if reasons else "the driver does not answer"
    found = f"an NVIDIA driver is here, but CUDA {torch.version.cuda} does not start: {reason}"
    remedy = "update the driver, or install a torch for an older CUDA (`nvidia-smi` shows which)"
    return Finding("GPU", "problem", found, remedy)


def _precision() -> Iterable[Finding]:
    from . import devices

    device = devices.device()
    precision, reason = devices.resolve_precision("auto", device)
    yield Finding("precision", "ok", f"precision=auto takes {precision} on {device.type}: {reason}")


def _cpu() -> Iterable[Finding]:
    import torch

    usable, cores, threads = _usable_cores(), os.cpu_count() or 1, torch.get_num_threads()
    level = torch.backends.cpu.get_cpu_capability()
    bf16 = _cpu_bf16()
    found = f"{usable:g} of {cores} logical cores usable, torch takes {threads} threads, {level}"
    found += "" if bf16 is None else ", bf16 in hardware" if bf16 else ", no bf16 in hardware"
    if threads > usable + 0.5:
        remedy = f"set OMP_NUM_THREADS={max(1, int(usable))}: more threads than cores are slow"
        yield Finding("CPU", "note", found, remedy)
    elif threads < usable // 2 and "OMP_NUM_THREADS" in os.environ:
        yield Finding("CPU", "note", found, "unset OMP_NUM_THREADS to use all cores")
    else:
        yield Finding("CPU", "ok", found)


def _usable_cores() -> float:
    """Cores that this process may use, as affinity and container have it."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    limit = _first_line(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(limit) == 2 and limit[0].isdigit():
        cores = min(cores, int(limit[0]) / int(limit[1]))
    return cores


def _cpu_bf16() -> bool | None:
    """Whether the CPU multiplies bf16 in hardware; None where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return (
        None if flags is None else bool({"avx512_bf16", "amx_bf16", "bf16"} & {*flags[1].split()})
    )


def _compiler() -> Iterable[Finding]:
    remedy = "install g++ and Python's headers (Debian: `apt install g++ python3-dev`)"
    named = os.environ.get("CXX")
    found = [shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++", "cl"])]
    compiler = next((path for path in found if path), None)
    lost = ": torch.compile is left out, and training on a CPU is slower"
    if compiler is None:
        yield Finding("C++ compiler", "note", f"{named or 'none'} not found{lost}", remedy)
    elif Path(compiler).stem.lower() != "cl" and not _compiles(compiler):
        found_text = f"{compiler} cannot compile against Python's headers{lost}"
        yield Finding("C++ compiler", "note", found_text, remedy)
    else:
        yield Finding("C++ compiler", "ok", compiler)


def _compiles(compiler: str) -> bool:
    """Whether what torch.compile includes is there."""
    headers = sysconfig.get_paths()["include"]
    command = [compiler, "-x", "c++", "-fsyntax-only", f"-I{headers}", "-"]
    source = "#include <Python.h>\n#include <vector>\nint main() { return 0; }\n"
    try:
        done = subprocess.run(
            command, input=source, text=True, capture_output=True, timeout=_COMPILE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


# --- what holds the data ------------------------------------------------------------------------


def _memory() -> Iterable[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _first_line(Path("/sys/fs/cgroup/memory.max"))
    if limit.isdigit() and int(limit) < total:
        used = _first_line(Path("/sys/fs/cgroup/memory.current"))
        total = int(limit)
        available = min(available, total - int(used or 0))
    found = f"{_size(available)} of {_size(total)} available"
    if available < _LEAST_MEMORY:
        remedy = "close other programs; look at a part of the rows first with --rows"
        yield Finding("memory", "note", found, remedy)
    else:
        yield Finding("memory", "ok", found)


def _shared_memory() -> Iterable[Finding]:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return  # only Linux passes batches between processes through it
    usage = shutil.disk_usage(shared)
    found = f"{_size(usage.free)} of {_size(usage.total)} free in {shared}"
    if usage.free < _LEAST_SHARED:
        remedy = "workers may crash: `docker run --shm-size=8g`, or train with workers=0"
        yield Finding("shared memory", "note", found, remedy)
    else:
        yield Finding("shared memory", "ok", found)


def _folders() -> Iterable[Finding]:
    yield from _guarded("competitions", _competitions)
    yield from _guarded("data", _data)
    for folder in (folders.runs, folders.submissions, folders.cache):
        yield from _guarded(folder.__name__, partial(_output, folder))


def _competitions() -> Iterable[Finding]:
    folder = folders.competitions()
    name = "competitions"
    if folder.is_dir():
        yield Finding(name, "ok", str(folder.absolute()))
        return
    remedy = "run from the project's folder, or set $KAGGLEKIT_COMPETITIONS"
    yield Finding(name, "problem", f"{folder.absolute()} is no folder", remedy)


def _data() -> Iterable[Finding]:
    """Data are only read by a run; downloads and practice data are what needs to write there."""
    folder = folders.data()
    finding = _writable("data", folder, "$KAGGLEKIT_DATA")
    if finding.status == "problem" and folder.is_dir():
        remedy = "reading works; to download or practise, set $KAGGLEKIT_DATA"
        finding = Finding("data", "note", finding.found, remedy)
    yield finding


def _output(folder: Callable[[], Path]) -> Iterable[Finding]:
    name = folder.__name__
    yield _writable(name, folder(), f"$KAGGLEKIT_{name.upper()}")


def _writable(name: str, folder: Path, variable: str) -> Finding:
    """Try it with a real file in the folder, or where the folder would be made."""
    folder = folder.absolute()
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    found = f"{folder}" if place == folder else f"{folder} (not there yet)"
    elsewhere = f"or set {variable} to a folder elsewhere"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".kagglekit-doctor-") as trial:
            trial.write(b"kagglekit")
            trial.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        reason = "a file is in the way" if place.is_file() else error.strerror
        found += f" cannot be written: {reason}" + ("" if place == folder else f" ({place})")
        return Finding(name, "problem", found, f"mend the permissions of {place}, {elsewhere}")
    found += f", {_size(free)} free"
    if free < _SCARCE:
        status: Status = "problem" if free < _FULL else "note"
        return Finding(name, status, found, f"free some disk space, {elsewhere}")
    return Finding(name, "ok", found)


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.0f} MiB"


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# --- Kaggle -------------------------------------------------------------------------------------


def _kaggle_client() -> Iterable[Finding]:
    """Found, not imported: `import kaggle` makes folders, authenticates and may use the network."""
    # both packages import six without asking for it
    missing = [n for n in ("kaggle", "kagglesdk", "six") if importlib.util.find_spec(n) is None]
    if missing:
        found = f"{', '.join(missing)} cannot be imported"
        install = f"`make setup`, or `pip install {' '.join(missing)}`"
        yield Finding("Kaggle client", "problem", found, install)
    else:
        yield Finding("Kaggle client", "ok", f"kaggle {_version('kaggle') or '(no version)'}")
    where = os.environ.get("KAGGLE_API_ENVIRONMENT", "PROD")
    if where not in ("", "PROD"):
        found = "it talks to a test server, because KAGGLE_API_ENVIRONMENT says so"
        yield Finding("Kaggle service", "note", found, "unset KAGGLE_API_ENVIRONMENT to submit")


def _credentials() -> Iterable[Finding]:
    """What is there, in the order in which Kaggle's client looks; values are never shown."""
    name = "Kaggle credentials"
    found_sources = credentials.sources()
    if not found_sources:
        yield Finding(
            name, "note", "none: needed to download and submit, not to train", credentials.SIGN_UP
        )
        return
    force, *shadowed = found_sources
    found = f"{force.name} is in force"
    if shadowed:
        found += f"; not used: {', '.join(source.name for source in shadowed)}"
    if force.fault:
        found = f"{force.name} comes first, but {force.fault}"
        yield Finding(name, "problem", found, f"mend or remove it; {credentials.SIGN_UP}")
        return
    exposed = [source.exposed for source in found_sources if source.exposed]
    if exposed:
        remedy = f"`chmod 600 {' '.join(map(str, exposed))}`"
        yield Finding(name, "problem", f"{found}; other users can read the file", remedy)
    else:
        yield Finding(name, "ok", found)


def _login() -> Iterable[Finding]:
    """Whether Kaggle accepts the credentials in force, asked with one call that changes nothing."""
    found = credentials.sources()
    if not found or found[0].fault:
        return  # told already
    from . import kaggle

    name = "Kaggle login"
    try:
        with kaggle.connected("", hasty=True) as service:
            service.greet()
    except NetworkError as error:
        yield Finding(name, "note", "not tried: Kaggle cannot be asked now", str(error))
    except UserError as error:
        yield Finding(name, "problem", "Kaggle does not let them in", str(error))
    else:
        yield Finding(name, "ok", "Kaggle accepts them")
