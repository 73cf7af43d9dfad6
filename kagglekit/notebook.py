"""A finished run as a Kaggle notebook that answers without a network, and the dataset it needs."""

from __future__ import annotations

import filecmp
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import backbones, credentials, files, folders, problem, submitting, wheel
from . import run as runs
from .answering import Fitted
from .errors import UserError
from .progress import figure
from .run import Run

PACK = "run.kagglekit"  # a zip under a name that Kaggle does not unpack
_CELLS = Path(__file__).parent / "templates" / "notebook_cells.py"
_LONGEST = 50  # letters of a title on Kaggle
# what a run keeps of its training, which no answer depends on
_OF_TRAINING = {"answers.npz", "test-views.npy", *runs.ASKED.values()}
# some runs lack views.json; those that have it answer by these views alone
_IN_RUN = ("run.json", "config.json", "scores.json", "views.json", "target.npy", "oof.npy",
           "covered.npy")  # fmt: skip


@dataclass(frozen=True)
class _Names:
    """Whose the notebook is, and what it and its dataset are called on Kaggle."""

    user: str
    slug: str

    @property
    def title(self) -> str:
        """Kaggle makes the slug of a title itself, and refuses one that does not fit."""
        return self.slug.replace("-", " ")

    @property
    def path(self) -> str:
        return f"{self.user}/{self.slug}"


def write(name: str, wanted: str | None, user: str | None) -> dict[str, Any]:
    """Write `submissions/<name>/<run>.notebook/`, with a notebook and a dataset for it.

    `dataset/` holds kagglekit's wheel and the run: weights and the competition's code. `notebook/`
    holds what installs and asks them. A folder of that name that differs is kept as `~1`. Without
    `wanted` it is the best run. Raises UserError for a run that is not finished, or no user.
    """
    competition = problem.find(name)
    run = _run(name, wanted)
    fitted = Fitted(competition, run)
    fitted.check_parts()
    for one in fitted.everyone():
        one.run.kept_views(None)  # a list that is lost is told here, not in the offline notebook
    names = _Names(_user(user), _slug(name, run.name))
    target = folders.submissions() / name / f"{run.name}.notebook"
    slug = fitted.manifest.get("slug") or competition.slug
    with files.scratch(target) as scratch:
        fresh = scratch / "made"
        _write_dataset(fresh / "dataset", name, fitted, names)
        _write_notebook(fresh / "notebook", name, fitted, names, slug)
        kept = _place(fresh, target)
    return {
        "competition": name,
        "run": run.name,
        "folder": str(target),
        "dataset": names.path,
        "notebook": names.path,
        "slug": slug,
        "bytes": sum(path.stat().st_size for path in files.visible_files(target).values()),
        "kept": str(kept) if kept else None,
        "practice": fitted.manifest["data"].get("kind") == "practice",
    }


def _run(name: str, wanted: str | None) -> Run:
    if wanted is None:
        return submitting.best(name)
    run = runs.find(folders.runs(), name, wanted)
    if run.manifest()["finished"] is None:
        raise UserError(f"{run.name} is not finished: train it to its end first")
    return run


def _user(given: str | None) -> str:
    """The user's name in Kaggle's URLs: given, else that of the credentials in force."""
    known = [source.login.username for source in credentials.sources()[:1]]
    user = given or next(iter(known), None)
    if not user:
        raise UserError("whose notebook is it? Give your name in Kaggle's URLs with --user NAME")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
        raise UserError(
            f"--user {user!r:.60} is no Kaggle name: it is what follows kaggle.com/, letters, "
            "digits and hyphens"
        )
    return user


def _slug(name: str, run: str) -> str:
    """`<competition>-<recipe>-<hash>`, cut in the middle to what Kaggle takes."""
    whole = re.sub(r"[^a-z0-9]+", "-", f"{name}-{run}".lower()).strip("-")
    if len(whole) <= _LONGEST:
        return whole
    digest = whole.rpartition("-")[2]
    return f"{whole[: _LONGEST - len(digest) - 1].rstrip('-')}-{digest}"


# --- the dataset --------------------------------------------------------------------------------


def _write_dataset(folder: Path, name: str, fitted: Fitted, names: _Names) -> None:
    wheel.write(folder)
    contents = {**dict(_code(name)), **dict(_runs(fitted)), **dict(_weights(fitted))}
    wheel.pack(folder / PACK, contents)
    files.write_json(
        folder / "dataset-metadata.json",
        {"title": names.title, "id": names.path, "licenses": [{"name": "other"}]},
    )


def _code(name: str) -> Iterator[tuple[str, Path]]:
    """The competition's folder or module, and what several competitions share."""
    home = folders.competitions()
    own = home / name if (home / name).is_dir() else home / f"{name}.py"
    beside = [path for path in sorted(home.glob("_*")) if path.name != "__pycache__"]
    for part in [own, *beside]:
        for path in [part] if part.is_file() else sorted(part.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"competitions/{path.relative_to(home).as_posix()}", path


def _runs(fitted: Fitted) -> Iterator[tuple[str, Path]]:
    """What the run answers with, and the runs that it was built on."""
    run = fitted.run
    members = [run.member(key) for key in fitted.keys]
    found = [run.folder / name for name in _IN_RUN]
    found += [path for member in members for path in sorted(member.rglob("*"))]
    for path in found:
        if path.is_file() and path.name[0] != "." and path.name not in _OF_TRAINING:
            yield f"runs/{path.relative_to(run.folder.parents[1]).as_posix()}", path
    for needed in sorted(set(fitted.manifest.get("needs", {}).values())):
        yield from _runs(Fitted(fitted.competition, Run(run.folder.parent / needed)))


def _weights(fitted: Fitted) -> Iterator[tuple[str, Path]]:
    """The pretrained weights that predictors need beside what was learned."""
    for one in fitted.everyone():
        if one.backbone is not None:
            found = backbones.find(one.backbone)
            beside = found.path.with_name("config.json")
            for path in [found.path, beside] if beside.is_file() else [found.path]:
                yield f"weights/{found.digest[:8]}/{found.model}/{path.name}", path


# --- the notebook -------------------------------------------------------------------------------


def _write_notebook(folder: Path, name: str, fitted: Fitted, names: _Names, slug: str) -> None:
    folder.mkdir()
    dataset = folder.with_name("dataset")
    told = {
        "COMPETITION": name,
        "RUN": fitted.run.name,
        "SLUG": slug,
        "DATASET": names.path,
        "SHA256": _sha256(dataset / PACK),
        "VERSIONS": fitted.manifest["versions"],
    }
    files.write_json(folder / f"{names.slug}.ipynb", _ipynb(_about(name, fitted), told))
    files.write_json(
        folder / "kernel-metadata.json",
        {
            "id": names.path,
            "title": names.title,
            "code_file": f"{names.slug}.ipynb",
            "language": "python",
            "kernel_type": "notebook",
            "is_private": True,
            "enable_gpu": not fitted.manifest["device"].startswith("CPU"),
            "enable_tpu": False,
            "enable_internet": False,
            "dataset_sources": [names.path],
            "competition_sources": [slug],
            "kernel_sources": [],
            "model_sources": [],
        },
    )


def _about(name: str, fitted: Fitted) -> str:
    scores = fitted.run.scores()
    cv = f" CV {scores['metric']} {figure(scores['cv'])}." if scores else ""
    return (
        f"# {name}: {fitted.run.name}\n\n"
        f"{len(fitted.keys)} trained models answer the test set.{cv} Nothing is trained "
        "here, and no network is needed: the attached dataset holds kagglekit, the weights and the "
        "competition's code.\n\n"
        f"Made by `{fitted.manifest.get('command', 'kagglekit train')}`."
    )


def _ipynb(about: str, told: dict[str, Any]) -> dict[str, Any]:
    """The notebook, format 4.5: <https://nbformat.readthedocs.io/en/latest/format_description.html>."""
    constants = "".join(f"{key} = {value!r}\n" for key, value in told.items())
    code = _CELLS.read_text("utf-8")
    cells = [_cell("markdown", about), _cell("code", constants.strip())]
    # the cells of the file are parted as editors part them
    cells += [_cell("code", part.strip()) for part in code.split("# %%")[1:]]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind: str, source: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --- its place ----------------------------------------------------------------------------------


def _place(fresh: Path, target: Path) -> Path | None:
    """Put `fresh` where `target` is; what was there and differs is kept, and named."""
    if not target.exists():
        fresh.rename(target)
        return None
    names = files.visible_files(fresh)
    if all(_same(path, target / name) for name, path in names.items()):
        return None
    taken = (target.with_name(f"{target.name}~{number}") for number in range(1, 10_000))
    kept = next(path for path in taken if not path.exists())
    target.rename(kept)
    fresh.rename(target)
    return kept


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
