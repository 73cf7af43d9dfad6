"""What makes a CV score too good: copies, sources that straddle folds, shortcuts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from . import backbones, contact_sheet, duplicates, files, folders, neighbours, problem, shortcuts
from . import folds as fold_rules
from .data import Data
from .duplicates import Duplicates, Looks
from .errors import UserError
from .folds import Fold
from .neighbours import Pairs
from .problem import Problem
from .progress import Progress
from .shortcuts import Gap, Known, Score
from .tables import formulas

Level = Literal["fine", "note", "leak"]

_FILES = ("leaks.json", "groups.csv", "pairs.csv", "pairs.png")
_SHOWN = 24  # pairs on the sheet
_LISTED = 10_000  # pairs in the CSV
_COMPONENTS = 32  # numbers a row that trees read
_CONDENSED = 256  # that a linear learner reads
_BY_ACCIDENT = 0.02  # of the way from chance to perfection; less is not worth a word
_BLATANT = 0.3  # from here on a shortcut is called a leak
_BY_CHANCE = 1e-4  # that no name of the test is known from training
_SUGGESTED = "suggested groups"
_SORTED = 0.999  # rank correlation of a column with the order


@dataclass(frozen=True)
class Request:
    """What was typed after `kagglekit leaks`."""

    name: str
    data: Path | None = None
    weights: Path | None = None  # as typed; they are found by $KAGGLEKIT_WEIGHTS


@dataclass(frozen=True)
class Finding:
    """One sentence on one topic, and what to do about it where there is anything to do."""

    topic: str
    level: Level
    sentence: str
    advice: str = ""


@dataclass
class _Report:
    """What is found, as it is found."""

    problem: Problem
    seen: Looks
    found: Duplicates
    known: dict[str, np.ndarray]  # columns that name groups of training rows
    folder: Path
    drawn: list[Fold] = field(default_factory=list)
    parted: set[str] = field(default_factory=set)  # groups that its folds do not keep together
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Data:
        return self.problem.data

    @property
    def train(self) -> int:
        return len(self.data.train)

    @property
    def time(self) -> str | None:
        """The column whose order the competition's folds go forward in; None where they do not."""
        return fold_rules.time_column(self.problem.competition.folds)

    @cached_property
    def sources(self) -> np.ndarray:
        """A number for each row, (rows,), shared by rows of one group, known or suggested."""
        tests = np.arange(len(self.data.test))
        known = [np.concatenate([c, c.max() + 1 + tests]) for c in self.known.values()]
        links = [_linked(codes) for codes in (self.found.groups, *known)]
        return neighbours.clusters(self.found.rows, neighbours.together(links))

    def say(self, topic: str, level: Level, sentence: str, advice: str = "") -> None:
        self.findings.append(Finding(topic, level, sentence, advice))


def examine(request: Request, progress: Progress) -> dict[str, Any]:
    """Look for leaks in a competition's data; what `kagglekit leaks --json` prints.

    Writes `groups.csv`, `pairs.csv`, `pairs.png` (of pictures) and `leaks.json` to
    `runs/<name>/leaks`. Raises UserError where there are no training rows, and for weights where
    rows are no pictures.
    """
    began = time.monotonic()
    read = problem.read(request.name, problem.find(request.name), request.data, progress)
    if not len(read.data.train):
        raise UserError(f"{read.source.folder} has no training rows, so nothing can leak from them")
    weights = None if folders.weights() is None else backbones.BackboneConfig()
    seen = duplicates.looks(read.data, weights)
    if request.weights is not None and not seen.basis.startswith("features"):
        raise UserError(f"--weights: the rows of {request.name} are no pictures: leave it out")
    progress.say(f"comparing {len(seen.features):,} rows by {seen.basis}")
    report = _Report(
        read, seen, duplicates.find(seen),
        _known_groups(read.data, fold_rules.time_column(read.competition.folds)),
        folders.runs() / request.name / "leaks",
    )  # fmt: skip
    report.drawn = _drawn_folds(report)
    _copies(report)
    _groups(report)
    progress.say("trying to tell train from test, and the target from names, sizes and order")
    _origin(report)
    _shortcuts(report)
    _with_and_without(report)
    _write(report)
    result = _result(report, time.monotonic() - began)
    files.write_json(report.folder / _FILES[0], result)
    return result


def _result(report: _Report, seconds: float) -> dict[str, Any]:
    return {
        "competition": report.problem.name,
        "data": str(report.problem.source.folder),
        "practice": report.problem.source.kind == "practice",
        "rows": {"train": report.train, "test": len(report.data.test)},
        "basis": report.seen.basis,
        "findings": [asdict(finding) for finding in report.findings],
        **report.figures,
        "folder": str(report.folder),
        "files": [name for name in _FILES if name == _FILES[0] or (report.folder / name).exists()],
        "seconds": round(seconds, 1),
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- copies -------------------------------------------------------------------------------------


def _copies(report: _Report) -> None:
    found, copies = report.found, report.found.copies
    inside, across = found.within_train(copies), found.across(copies)
    differing = _differing(report.data, inside)
    report.figures["copies"] = {
        "train": _figures(found.within_train(found.exact), found.within_train(found.near)),
        "train_and_test": _figures(found.across(found.exact), found.across(found.near)),
        "rows": len(_rows_of(copies)),
        "other_target": len(differing),
    }
    kind = "pictures" if report.seen.pictures is not None else "rows"
    if not len(inside):
        report.say(
            "copies", "fine", f"no {kind} among the {report.train:,} for training are copies"
        )
    else:
        _copies_inside(report, inside, kind)
    if len(differing):
        report.say(
            "copies", "note",
            f"{_count(len(differing), 'pair')} of copies have different targets: one label of "
            "each is wrong, or the target is noisy",
            f"look at them in {report.folder / 'pairs.csv'}",
        )  # fmt: skip
    if not len(across):
        report.say("copies", "fine", "no test row is a copy of a training row")
        return
    tests = len(np.unique(across.right))
    report.say(
        "copies", "leak",
        f"{_count(tests, 'test row')} of {len(report.data.test):,} {_is_a(tests)} of training rows,"
        " so the answers are known, and the LB is too good by what that brings",
        f"see {report.folder / 'pairs.csv'}; do not tune on them",
    )  # fmt: skip


def _copies_inside(report: _Report, inside: Pairs, kind: str) -> None:
    rows = len(_rows_of(inside))
    exact = len(report.found.within_train(report.found.exact))
    told = f"{rows:,} of {report.train:,} training {kind} are the same as another, or nearly so"
    told += f" ({_count(exact, 'pair')} to the last bit)" if exact else ""
    apart = _apart(inside, report.drawn)
    if report.drawn and not apart:
        report.say("copies", "fine", f"{told}; the competition's folds keep them together")
        return
    if report.drawn:
        told += f"; the competition's folds part {_count(apart, 'pair')}"
    report.say("copies", "leak", told, _use_groups(report))


def _use_groups(report: _Report) -> str:
    if report.time:
        return (
            f"keep folds in time; where test rows repeat no earlier ones, leave the later of each "
            f"pair in {report.folder / 'pairs.csv'} out of training and validation"
        )
    stratify = ", stratify=True" if report.data.classes else ""
    return (
        f"copy {report.folder / 'groups.csv'} beside the competition, and use "
        f'folds.grouped_by_file(Path(__file__).with_name("groups.csv"){stratify})'
    )


def _is_a(count: int) -> str:
    return "is a copy" if count == 1 else "are copies"


def _figures(exact: Pairs, near: Pairs) -> dict[str, int]:
    return {"exact_pairs": len(exact), "near_pairs": len(near)}


def _rows_of(found: Pairs) -> np.ndarray:
    return np.unique(np.concatenate([found.left, found.right]))


def _differing(data: Data, inside: Pairs) -> np.ndarray:
    """Positions of the pairs whose targets differ; numbers by more than a hundredth of a spread."""
    one, other = data.target[inside.left], data.target[inside.right]
    if data.classes:
        return np.flatnonzero(one != other)
    if not len(one):
        return np.zeros(0, np.int64)
    away = np.abs(one - other) / np.maximum(data.target.std(0), 1e-300)
    return np.flatnonzero(away.reshape(len(away), -1).max(1) > 0.01)


# --- groups -------------------------------------------------------------------------------------


def _drawn_folds(report: _Report) -> list[Fold]:
    """The folds of the competition's first recipe; none where they cannot be drawn."""
    competition = report.problem.competition
    config = next(iter(competition.recipes.values())).config
    try:
        return fold_rules.split(report.data, config, competition.folds)
    except UserError as error:
        report.say("folds", "note", f"the competition's folds cannot be drawn: {error}")
        return []


def _apart(found: Pairs, drawn: list[Fold]) -> int:
    """How many pairs some fold trains on one of and validates the other."""
    apart = np.zeros(len(found), bool)
    rows = 1 + max((int(part.max()) for fold in drawn for part in fold), default=0)
    rows = max(rows, 1 + int(found.right.max(initial=0)))
    for train, valid in drawn:
        trained, validated = np.zeros(rows, bool), np.zeros(rows, bool)
        trained[train], validated[valid] = True, True
        apart |= trained[found.left] & validated[found.right]
        apart |= trained[found.right] & validated[found.left]
    return int(apart.sum())


def _couples(found: Pairs) -> Iterator[tuple[int, int]]:
    yield from zip(found.left.tolist(), found.right.tolist(), strict=True)


def _known_groups(data: Data, time: str | None) -> dict[str, np.ndarray]:
    """Columns that name groups of training rows which the test has none of, as group numbers.

    Those that only training rows have, and those whose values are others in test; not the time.
    """
    known = {}
    for name in data.train.columns:
        if name in (data.id, time):
            continue
        values = data.train[name]
        if name in data.test.columns and not _has_others(data.test[name], values):
            continue
        codes, names = pd.factorize(values)
        if codes.min(initial=0) >= 0 and 1 < len(names) <= len(codes) / 2:
            known[str(name)] = codes.astype(np.int64)
    return known


def _has_others(test: pd.Series, train: pd.Series) -> bool:
    """Whether names in test are all others than in training, and more than chance leaves so.

    The share of names that occur once is about that of new ones in a further row (Good 1953,
    doi:10.1093/biomet/40.3-4.237).
    """
    if train.dtype.kind == "f" or train.isin(test).any():
        return False
    once = float((train.value_counts() == 1).sum()) / max(len(train), 1)
    return once ** test.nunique() < _BY_CHANCE


def _groups(report: _Report) -> None:
    groups = report.found.groups[: report.train]
    sizes = np.bincount(groups)
    several = sizes[sizes > 1]
    report.figures["groups"] = {
        "suggested": len(several),
        "rows": int(several.sum()),
        "largest": int(sizes.max()),
        "columns": {name: _agreement(groups, codes) for name, codes in report.known.items()},
    }
    for name, codes in report.known.items():
        _known_group(report, name, codes)
    if not len(several):
        report.say("groups", "fine", f"no groups of one source are seen by {report.seen.basis}")
        return
    told = (
        f"{_count(len(several), 'group')} of rows that seem to be of one source hold "
        f"{several.sum():,} of {report.train:,} training rows"
    )
    apart = _apart(_linked(groups), report.drawn)
    if report.drawn and not apart:
        report.say("groups", "fine", f"{told}; the competition's folds keep them together")
        return
    report.parted.add(_SUGGESTED)
    if report.known and not report.parted - {_SUGGESTED}:
        told += f"; a few ({apart}) are in several groups that the columns name"
        report.say("groups", "note", told, f"look at them in {report.folder / 'pairs.csv'}")
    else:
        report.say("groups", "leak", told, _use_groups(report))


def _linked(groups: np.ndarray) -> Pairs:
    """Each row with the next one of its group."""
    order = np.argsort(groups, kind="stable")
    same = np.flatnonzero(np.diff(groups[order]) == 0)
    zeros = np.zeros(len(same))
    return neighbours.pairs(order[same], order[same + 1], zeros, zeros)


def _known_group(report: _Report, name: str, codes: np.ndarray) -> None:
    told = f"column {name!r} names {_count(len(np.unique(codes)), 'group')} of training rows"
    if report.drawn and not _apart(_linked(codes), report.drawn):
        report.say("groups", "fine", f"{told}; the competition's folds keep them together")
        return
    report.parted.add(name)
    rule = "stratified_grouped" if report.data.classes else "grouped"
    tested = report.data.test.get(name)
    if tested is None:
        advice = f"if test has other groups, use folds.{rule}({name!r})"
    elif _follows(tested, report.data.train[name]):
        told += ", and test comes after them"
        advice = f"if that is a time, use folds.time_ordered({name!r}), else folds.{rule}({name!r})"
    else:
        told += ", and test has others"
        advice = f"use folds.{rule}({name!r})"
    report.say("groups", "note", f"{told}; the competition's folds part them", advice)


def _follows(test: pd.Series, train: pd.Series) -> bool:
    """Whether all values of the test are above those of training, as times are."""
    numbers = pd.api.types.is_numeric_dtype(train)
    return bool(numbers and len(test) and test.min() > train.max())


def _agreement(suggested: np.ndarray, known: np.ndarray) -> dict[str, float | None]:
    """Of the pairs that one grouping joins, the share that the other joins too."""

    def pairs(codes: np.ndarray) -> int:
        sizes = np.unique(codes, return_counts=True)[1]
        return int((sizes * (sizes - 1) // 2).sum())

    both = pairs(suggested * (known.max() + 1) + known)
    joined, wanted = pairs(suggested), pairs(known)
    return {
        "precision": both / joined if joined else None,
        "found": both / wanted if wanted else None,
    }


# --- train and test -----------------------------------------------------------------------------


def _origin(report: _Report) -> None:
    seen = _without_time(report)
    features = _condensed(seen, _COMPONENTS)
    if seen.pictures is not None:
        features = np.concatenate([features, _brightness(seen.pictures)], 1)
    train, test = features[: report.train], features[report.train :]
    score = shortcuts.told_apart(train, test) if features.shape[1] else None
    report.figures["adversarial"] = None if score is None else _score(score)
    if score is None:
        report.say("train and test", "note", "too few rows or columns to tell train from test")
        return
    told = f"AUC {_with_interval(score)}, chance 0.5"
    if report.time:
        told += f", without {report.time}, in whose order folds go forward"
    if not score.tells or score.share < _BY_ACCIDENT:
        report.say("train and test", "fine", f"test rows look like training rows ({told})")
        return
    told = f"test rows can be told from training rows ({told}{_apart_by_source(report, features)})"
    shifted = [] if not seen.names else shortcuts.most_shifted(train, test)[:3]
    report.figures["adversarial"]["columns"] = [seen.names[n] for n, _ in shifted]
    if shifted:
        names = [f"{seen.names[number]} ({auc:.2f})" for number, auc in shifted]
        told += f", most of all by {', '.join(names)}"
    blatant = score.share > _BLATANT and not report.known and not report.time
    report.say(
        "train and test", "leak" if blatant else "note", told, _origin_advice(report, shifted)
    )


def _origin_advice(report: _Report, shifted: list[tuple[int, float]]) -> str:
    if report.time:
        return (
            "test comes later, and what drifts with time tells it: folds in time show what that "
            "costs, so drop a column only where their score is better without it"
        )
    if shifted:
        return "drop or mend columns that only say where a row is from"
    return (
        "new people, films or days would explain it: trust the score of folds that hold such "
        "groups out"
    )


def _without_time(report: _Report) -> Looks:
    """What rows look like but for the time that folds go by, in which test rows have to differ."""
    seen = report.seen
    kept = [number for number, name in enumerate(seen.names) if name != report.time]
    if len(kept) == len(seen.names):
        return seen
    names = tuple(seen.names[number] for number in kept)
    return replace(seen, features=seen.features[:, kept], names=names)


def _apart_by_source(report: _Report, features: np.ndarray) -> str:
    """The same with each source wholly on one side: whether more than sources differ."""
    sources = report.sources
    if len(np.unique(sources)) == len(sources):
        return ""
    score = shortcuts.told_apart(features[: report.train], features[report.train :], sources)
    if score is None:
        return ""
    report.figures["adversarial"]["by_source"] = _score(score)
    return f"; {_with_interval(score)} by rows of sources that were not seen"


def _condensed(seen: Looks, components: int) -> np.ndarray:
    """Few numbers a row: a table's columns, or principal components of the standardised rest.

    Components keep their scale, so that the small ones do not weigh more than they did.
    """
    if seen.names and len(seen.names) <= components:
        return seen.features
    points = seen.features - seen.features.mean(0)
    points = points / np.maximum(points.std(0), 1e-9)
    _, vectors = np.linalg.eigh(points.T @ points / len(points))
    return points @ vectors[:, ::-1][:, :components]


def _brightness(pictures: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each picture, (rows, 2)."""
    parts = np.array_split(pictures.reshape(len(pictures), -1), -(-len(pictures) // 1000))
    return np.concatenate([np.stack([part.mean(1), part.std(1)], 1) for part in parts])


# --- what should tell nothing -------------------------------------------------------------------


def _shortcuts(report: _Report) -> None:
    data = report.data
    report.figures["shortcuts"] = {}
    rows = shortcuts.stretches(report.train)
    if data.id in data.train.columns:
        names = data.train[data.id].astype(str).to_numpy()
        _shortcut(report, "name", shortcuts.of_names(list(names[rows])), rows)
        sizes = _file_facts(report.problem, list(names[rows]))
        if sizes is not None:
            _shortcut(report, "file size", sizes, rows)
    places = _places(report)
    _shortcut(report, "order", shortcuts.of_order(places[rows].astype(np.float64)), rows)


def _shortcut(report: _Report, what: str, features: np.ndarray, rows: np.ndarray) -> None:
    data = report.data
    sources = report.sources[: report.train]
    several = len(np.unique(sources)) < report.train
    groups = sources[rows] if several else None  # what a source tells is told by its column
    score = shortcuts.predicts(Known(features, data.target[rows], len(data.classes), groups))
    report.figures["shortcuts"][what] = None if score is None else _score(score)
    alone = {"name": "the id alone", "file size": "the size of the file alone"}
    told = alone.get(what, "the order of the rows alone")
    if score is None or not score.tells or score.share < _BY_ACCIDENT:
        shown = "" if score is None else f" ({_sentence(score)})"
        report.say(what, "fine", f"{told} tells nothing certain of the target{shown}")
        return
    harmless = _harmless(report, what)
    if harmless:
        report.say(what, "fine", f"{told} tells of the target ({_sentence(score)}), but {harmless}")
        return
    advice = {
        "name": "keep ids away from models; where test ids tell as much, that is a leak to expect",
        "file size": "detail fills files, so this may be the content; else classes were saved in "
        "different ways, and a model may learn that from the pixels",
        "order": "folds in time hold what comes later out already" if report.time
        else "rows near each other belong together: keep such stretches in one fold",
    }  # fmt: skip
    level: Level = "leak" if score.share > _BLATANT else "note"
    report.say(what, level, f"{told} tells the target ({_sentence(score)})", advice[what])


def _harmless(report: _Report, what: str) -> str:
    """Why an order says no more than what a model may know; empty where it may say more."""
    data, places = report.data, _places(report)
    runs = 1 + int((np.diff(data.target[np.argsort(places)]) != 0).sum()) if data.classes else 0
    if what == "order" and runs == len(np.unique(data.target)) > 1:
        return "only as folders are read, class by class"
    if what != "file size" and report.time:
        moments = fold_rules.dependence(data, report.problem.competition.folds).moments
        if moments is not None and _sorted_alike(moments, places):
            return f"only because rows are sorted by {report.time}"
    if what == "file size" or report.seen.pictures is not None:
        return ""
    for number, name in enumerate(report.seen.names):
        column = report.seen.features[: report.train, number]
        if _sorted_alike(column, places):
            return f"only because rows are sorted by {name}"
    return ""


def _sorted_alike(values: np.ndarray, places: np.ndarray) -> bool:
    ranks = pd.Series(values).rank().to_numpy()
    return bool(ranks.std() and abs(np.corrcoef(ranks, places)[0, 1]) > _SORTED)


def _places(report: _Report) -> np.ndarray:
    """Where each training row stands in train.csv, or else in what `load` gave."""
    data, usual = report.data, np.arange(report.train)
    listed = _listed(report.problem)
    if data.id not in data.train.columns or listed is None or data.id not in listed.columns:
        return usual
    keys = listed[data.id].astype(str)
    places = pd.Series(np.arange(len(keys)), index=keys)
    places = places[~places.index.duplicated()]
    ids = data.train[data.id].astype(str)
    stems = pd.Series(places.to_numpy(), index=[_stem(key) for key in places.index])
    for index in (places, stems[~stems.index.duplicated()]):
        found = index.reindex(ids)
        if not found.isna().any():
            return found.to_numpy().argsort().argsort()
    return usual


def _listed(read: Problem) -> pd.DataFrame | None:
    """The ids of train.csv, where rows were read from files of pictures."""
    folder = files.unpacked(read.source.folder, folders.cache())
    found = [path for name, path in files.visible_files(folder).items()
             if name.split("/")[-1].lower() == "train.csv"]  # fmt: skip
    if len(found) != 1:
        return None
    try:
        return pd.read_csv(found[0], usecols=[read.data.id], dtype=str, keep_default_na=False)
    except ValueError:  # no such column
        return None


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _file_facts(read: Problem, ids: list[str]) -> np.ndarray | None:
    """Bytes, width, height and bytes a pixel of each row's file; None where rows are no files."""
    folder = files.unpacked(read.source.folder, folders.cache())
    paths = {}
    for name, path in files.visible_files(folder).items():
        base = name.split("/")[-1]
        if not base.lower().endswith((".csv", ".zip", ".npy", ".npz", ".gz")):
            paths[base] = paths[_stem(base)] = path
    if any(id not in paths for id in ids):
        return None
    facts = []
    for id in ids:
        size = paths[id].stat().st_size
        width, height = _picture_size(paths[id])
        facts.append([size, width, height, size / max(1, width * height)])
    return np.array(facts, np.float64)


def _picture_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # no picture
        return 0, 0


# --- the score with and without groups ----------------------------------------------------------


def _with_and_without(report: _Report) -> None:
    data, features = report.data, _condensed(report.seen, _CONDENSED)[: report.train]
    ways = dict(report.known)
    suggested = report.found.groups[: report.train]
    if len(np.unique(suggested)) < report.train:
        ways[_SUGGESTED] = suggested
    report.figures["cv"] = []
    for name, groups in ways.items():
        gap = shortcuts.gap(Known(features, data.target, len(data.classes), groups))
        if gap is not None:
            _gap(report, name, gap)


def _gap(report: _Report, name: str, gap: Gap) -> None:
    report.figures["cv"].append(
        {
            "groups": name, "shuffled": _score(gap.shuffled), "grouped": _score(gap.grouped),
            "difference": gap.difference, "error": gap.error,
        }
    )  # fmt: skip
    told = (
        f"a linear model on {report.seen.basis}: {gap.shuffled.kind} {gap.shuffled.value:.4f} in "
        f"shuffled folds, {gap.grouped.value:.4f} in folds by {name} "
        f"({gap.difference:+.4f} ± {1.96 * gap.error:.4f})"
    )
    if not gap.matters:
        report.say("CV", "fine", f"{told}, no difference beyond doubt")
    elif name in report.parted:
        report.say("CV", "leak", f"{told}: shuffled folds flatter", "go by the grouped score alone")
    else:
        report.say("CV", "fine", f"{told}: shuffled folds would flatter, the competition's do not")


def _score(score: Score) -> dict[str, Any]:
    low, high = score.interval
    return {
        "kind": score.kind, "value": score.value, "low": low, "high": high,
        "chance": score.chance, "rows": score.rows,
    }  # fmt: skip


def _sentence(score: Score) -> str:
    return f"{score.kind} {_with_interval(score)}, chance {score.chance:.3g}"


def _with_interval(score: Score) -> str:
    low, high = score.interval
    return f"{score.value:.3f}, 95 % {low:.3f}…{high:.3f}"


# --- files --------------------------------------------------------------------------------------


def _write(report: _Report) -> None:
    folder, found = report.folder, report.found
    groups = found.groups[: report.train]
    files.write_bytes(folder / "groups.csv", duplicates.group_file(report.data, groups))
    listed = _worst(found)
    files.write_text(folder / "pairs.csv", _table(report, listed).to_csv(index=False))
    sheet = folder / "pairs.png"
    if report.seen.pictures is None or not listed:
        if sheet.exists():  # of an earlier look at other data
            files.remove(sheet)
        return
    pairs = [_pair(report, *place) for place in listed[:_SHOWN]]
    files.write_bytes(sheet, contact_sheet.png(pairs))


def _worst(found: Duplicates) -> list[tuple[str, Pairs, int]]:
    """(kind, pairs, position): copies between train and test first, then by how alike rows are."""
    listed: list[tuple[str, Pairs, int]] = []
    kinds = {"exact copy": found.exact, "near copy": found.near, "one source?": found.alike}
    told: set[tuple[int, int]] = set()
    for choose in (found.across, found.within_train, lambda pairs: pairs):
        for kind, pairs in kinds.items():
            chosen = choose(pairs)
            for position, couple in enumerate(_couples(chosen)):
                if couple not in told and len(listed) < _LISTED:
                    told.add(couple)
                    listed.append((kind, chosen, position))
    return listed


def _table(report: _Report, listed: list[tuple[str, Pairs, int]]) -> pd.DataFrame:
    rows = []
    for kind, pairs, position in listed:
        sides = [_row(report, int(side[position])) for side in (pairs.left, pairs.right)]
        away = f"{pairs.distance[position]:.4g}", f"{pairs.expected[position]:.3g}"
        rows.append([kind, *sides[0], *sides[1], *away])
    names = [f"{side}_{what}" for side in ("left", "right") for what in ("split", "id", "target")]
    table = pd.DataFrame(rows, columns=["kind", *names, "distance", "expected_by_chance"])
    for name in ("left_id", "right_id", "left_target", "right_target"):
        cells = table[name].astype(str)
        table[name] = cells.where(~formulas(cells), "'" + cells)
    return table


def _row(report: _Report, row: int) -> tuple[str, str, str]:
    """Split, id and target of a row, in words."""
    data, train = report.data, report.train
    if row >= train:
        return "test", str(data.test[data.id].iloc[row - train]), ""
    id = str(data.split(np.array([row]), "valid").ids[0])
    target = data.target[row]
    if data.classes:
        return "train", id, data.classes[int(target)]
    return "train", id, " ".join(f"{value:.6g}" for value in np.atleast_1d(target))


def _pair(report: _Report, kind: str, pairs: Pairs, position: int) -> contact_sheet.Pair:
    assert report.seen.pictures is not None
    left, right = int(pairs.left[position]), int(pairs.right[position])
    lines = [" ".join(part for part in _row(report, row) if part) for row in (left, right)]
    title = f"{kind} (distance {pairs.distance[position]:.3f})"
    return contact_sheet.Pair(
        report.seen.pictures[left], report.seen.pictures[right], title, tuple(lines)
    )
