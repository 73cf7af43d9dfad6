"""The report of a run: one HTML page that shows what its numbers can bear, and what is behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np

from . import (
    board,
    config,
    diagnosis,
    drawing,
    evidence,
    files,
    folders,
    inventory,
    leaderboard,
    pages,
    thumbnails,
)
from .diagnosis import Slice
from .drawing import Cloud, Curve
from .evidence import Evidence
from .progress import duration, figure
from .strips import Scale

FILE = board.REPORT
SHOWN = 24  # of the worst rows, of outputs, and of likely label errors
_MOST_CLASSES = 20  # of a matrix; of more, those with the most errors
_CELL_ROWS = 12  # behind a cell
_CELLS_ROWS = 1500  # behind all cells together
_PICTURE_BYTES = 5_000_000  # of all pictures behind cells
_MOST_OUTPUTS = 6  # that are drawn
_TRIPLES = 9  # of input, truth and answer, the worst rows and the best
_MOST_FACTS = 8  # columns of a row that are shown
_MOST_GROUPS = 12
_MOST_SLICED = 24  # columns, a quarter of them where the metric is slow; the light comes last
_SLICED_ROWS = 40_000_000  # that the bootstraps of all slices may draw, so that none waits long
_NOT_CURVES = {"member", "epoch", "epochs", "rows_per_second"}

Json = dict[str, Any]


def write(name: str, wanted: str | None = None) -> Json:
    """Write the report of run `wanted` of a competition, or of its best; what is in it, as JSON.

    The page is `runs/<name>/<run>/report.html`; of a run that is not finished it shows what there
    is, and says what is missing. Raises UserError where there is no such run, or no answer of it.
    """
    found = evidence.gather(name, wanted)
    report = _Report(found)
    values = report.values
    path = found.run.folder / FILE
    page = pages.render("report.html", **values)
    files.write_text(path, page)
    board.refresh(folders.runs(), folders.submissions())
    return {
        "competition": name,
        "run": found.run.name,
        "report": str(path),
        "bytes": len(page.encode()),
        "summary": values["summary"],
        "unfinished": found.unfinished or None,
        "cv": found.scores["cv"],
        "interval": values["interval"],
        "rows": len(found.rows),
        "errors": values["errors"],
        "label_issues": None if values["labels"] is None else values["labels"]["count"],
        "calibration_error": None if values["calibration"] is None
        else values["calibration"]["error"],
    }  # fmt: skip


class _Report:
    """The parts of one report, each made once."""

    def __init__(self, found: Evidence) -> None:
        self.found = found
        self.metric = found.scores["metric"]

    @property
    def values(self) -> Json:
        """What the template reads."""
        found = self.found
        return {
            "competition": str(found.manifest["competition"]),
            "run": found.run.name,
            "manifest": {"forced": [], "command": "", "rows": None, **found.manifest},
            "scores": found.scores,
            "missing": found.missing,
            "unfinished": found.unfinished,
            "interval": self.interval,
            "summary": self.summary,
            "tiles": self.tiles,
            "folds": self.folds,
            "learning": self.learning,
            "errors": self.errors,
            "confusion": self.confusion,
            "worst": self.worst,
            "labels": self.labels,
            "calibration": self.calibration,
            "slices": self.slices,
            "groups": self.groups,
            "drawn": self.drawn,
            "residuals": self.residuals,
            "leaders": self.leaders,
            "cost": self.cost,
            "config": self.config,
            "store": self.store,
        }

    @property
    def drawn(self) -> str:
        """What is resampled."""
        if self.found.moments is not None:
            return "blocks of neighbours in time"
        return "rows" if self.found.groups is None else "whole groups"

    # --- the whole ------------------------------------------------------------------------------

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Of the CV score, over rows, or over groups where folds keep them together."""
        return self.found.interval(np.arange(len(self.found.rows)))

    @property
    def errors(self) -> int | None:
        """How many rows got a wrong class."""
        found = self.found
        return int((found.answered != found.target).sum()) if found.kind == "classes" else None

    @cached_property
    def summary(self) -> str:
        """What came out, in a sentence."""
        found = self.found
        scores, manifest = found.scores, found.manifest
        parts = [f"{manifest['recipe']} reaches {self.metric} {figure(scores['cv'])}"]
        if self.interval is not None:
            low, high = map(figure, self.interval)
            parts[0] += f" (95 % interval {low} to {high})"
        judged = f"on {len(found.rows):,} training rows that its models had not seen"
        parts[0] += f" {judged}"
        if self.errors is not None:
            parts.append(f"{self.errors:,} {'is' if self.errors == 1 else 'are'} answered wrongly")
        pair = next(iter(self.confusion["pairs"]), None) if self.confusion is not None else None
        if pair is not None and pair["count"] > 1:
            times = f"{pair['count']:,} times"
            parts.append(f"most often {pair['truth']} as {pair['answer']} ({times})")
        if self.labels is not None and self.labels["count"]:
            count = self.labels["count"]
            parts.append(f"{count:,} label{'' if count == 1 else 's'} may themselves be wrong")
        sentence = "; ".join(parts) + "."
        # also for a terminal, which no character of a class's name may steer
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence)

    @property
    def tiles(self) -> list[Json]:
        """The figures at the top: (name, value, what stands below)."""
        scores, found = self.found.scores, self.found
        folds = [item["score"] for item in scores["folds"]]
        below = (
            "" if self.interval is None else "95 %: {} to {}".format(*map(figure, self.interval))
        )
        tiles: list[Json] = [
            {"name": f"CV {self.metric}", "value": scores["cv"], "below": below, "key": "cv"}
        ]
        if len(folds) > 1:
            spread = f"± {figure(scores['std'])} over {len(folds)} folds"
            tiles.append({"name": "mean of folds", "value": scores["mean"], "below": spread,
                          "key": "mean"})  # fmt: skip
        for kind, score in self.own_leaders:
            gap = score - scores["cv"]
            tiles.append({"name": f"{kind} LB", "value": score, "below": f"{gap:+.2g} from CV",
                          "key": f"{kind}_lb"})  # fmt: skip
        seeds = len(found.manifest["seeds"])
        below = f"{len(folds)} folds × {seeds} seed{'' if seeds == 1 else 's'}"
        tiles.append({"name": "rows judged", "text": f"{len(found.rows):,}", "below": below})
        tiles.append(
            {"name": "training time", "text": duration(scores["seconds"]),
             "below": found.manifest["device"]}
        )  # fmt: skip
        return tiles

    @cached_property
    def row(self) -> leaderboard.Row | None:
        """The run on the leaderboard."""
        return next((row for row in self.fellows if row.run == self.found.run.name), None)

    @cached_property
    def fellows(self) -> list[leaderboard.Row]:
        """All runs of the competition."""
        name = str(self.found.manifest["competition"])
        return leaderboard.rows(folders.runs(), name, folders.submissions())

    @property
    def own_leaders(self) -> list[tuple[str, float]]:
        return [] if self.row is None else leaderboard.lb_scores(self.row)

    # --- folds and epochs -----------------------------------------------------------------------

    @property
    def folds(self) -> Json:
        """Each fold's score, and those of its members."""
        scores = self.found.scores
        members = scores["members"]
        rows = []
        for item in scores["folds"]:
            own = [member for member in members if member["fold"] == item["fold"]]
            rows.append({
                "fold": item["fold"], "score": item["score"],
                "train": len(self.found.folds[item["fold"]][0]),
                "valid": len(self.found.folds[item["fold"]][1]),
                "members": own,
            })  # fmt: skip
        named = [(f"fold {item['fold']}", item["score"]) for item in scores["folds"]]
        seeds = sorted({member["seed"] for member in members})
        return {
            "figure": drawing.strip("Scores of the folds", named, scores["cv"], self.metric),
            "rows": rows,
            "seeds": seeds,
            "headers": ["fold", "trained on", "judged", *_seed_headers(seeds)],
            "views": scores["views"],
            "repeats": scores.get("repeats"),
        }

    @cached_property
    def learning(self) -> Json | None:
        """Learning curves of every member; None where nothing is trained by epochs."""
        noted = self.found.history()
        members = list(dict.fromkeys(str(item["member"]) for item in noted))
        numbers = {key for item in noted for key in item} - _NOT_CURVES
        keys = [key for key in ("loss", "score") if key in numbers]
        if not keys or len(noted) <= len(members):
            return None
        figures = []
        for key in keys:
            lines = [self._curve(member, key, noted) for member in members]
            name = self.metric if key == "score" else "training loss"
            title = f"{name}, epoch by epoch"
            figures.append(drawing.curves(title, lines, ("epoch", name), key == "score"))
        last = {str(item["member"]): item for item in noted}
        return {"figures": figures, "last": [last[member] for member in members], "keys": keys}

    def _curve(self, member: str, key: str, noted: Sequence[Mapping[str, Any]]) -> Curve:
        own = [item for item in noted if item["member"] == member and key in item]
        epochs = np.array([item["epoch"] for item in own], float)
        values = np.array([item[key] for item in own], float)
        fold = member.partition("-")[0].removeprefix("fold")
        told = f"{member}: {figure(values[-1])} after epoch {epochs[-1]:g}" if len(own) else member
        return Curve(epochs, values, int(fold) if fold.isdecimal() else 0, told)

    # --- classes --------------------------------------------------------------------------------

    @cached_property
    def confusion(self) -> Json | None:
        """The matrix, what is behind each cell, and figures of each class."""
        found = self.found
        if found.kind != "classes":
            return None
        counts = diagnosis.confusion(found.target, found.answered, len(found.classes))
        wrong = counts - np.diag(np.diag(counts))
        shown = np.arange(len(counts))
        if len(counts) > _MOST_CLASSES:
            blame = wrong.sum(0) + wrong.sum(1)
            shown = np.sort(np.argsort(-blame, kind="stable")[:_MOST_CLASSES])
        order = np.argsort(-wrong, axis=None, kind="stable")[:10]
        pairs = [divmod(int(place), len(counts)) for place in order if wrong.flat[place]]
        most = max(int(wrong.max(initial=0)), 1)
        return {
            "classes": [found.classes[n] for n in shown],
            "left_out": len(counts) - len(shown),
            "cells": [[self._cell(counts, int(t), int(a), most) for a in shown] for t in shown],
            "pairs": [self._cell(counts, t, a, most) for t, a in pairs],
            "by_class": [self._class(counts, n) for n in range(len(counts))],
        }

    def _cell(self, counts: np.ndarray, truth: int, answer: int, most: int) -> Json:
        """One cell; its shade is by the share of its class, or of the most frequent error."""
        count, total = int(counts[truth, answer]), int(counts[truth].sum())
        right = truth == answer
        shade = (count / total if right else count / most) if total else 0.0
        return {
            "key": f"{truth}-{answer}", "count": count, "right": bool(right),
            "truth": self.found.classes[truth], "answer": self.found.classes[answer],
            "share": count / total if total else 0.0,
            "shade": round(100 * shade**0.6) if count else 0,
        }  # fmt: skip

    def _class(self, counts: np.ndarray, number: int) -> Json:
        right = int(counts[number, number])
        truth, answered = int(counts[number].sum()), int(counts[:, number].sum())
        recall = right / truth if truth else None
        precision = right / answered if answered else None
        both = (recall or 0) + (precision or 0)
        low, high = diagnosis.wilson(right, truth)
        return {
            "name": self.found.classes[number], "rows": truth, "right": right,
            "recall": recall, "low": low, "high": high, "precision": precision,
            "f1": 2 * (recall or 0) * (precision or 0) / both if both else None,
        }  # fmt: skip

    @cached_property
    def store(self) -> Json:
        """Cards of the rows behind the cells: the hardest first, as many as a page can hold."""
        found = self.found
        if found.kind != "classes":
            return {"cards": {}, "cells": {}}
        cells = self._behind_cells()
        cards: dict[str, Json] = {}
        chosen: dict[str, list[int]] = {key: [] for key in cells}
        spent = 0
        for rank in range(_CELL_ROWS):  # the first of every cell before the second of any
            for key, rows in cells.items():
                if rank >= len(rows) or len(cards) >= _CELLS_ROWS or spent > _PICTURE_BYTES:
                    continue
                card = self.card(int(rows[rank]))
                spent += len(card["picture"]["uri"]) if card["picture"] else 200
                cards[str(int(rows[rank]))] = card
                chosen[key].append(int(rows[rank]))
        return {"cards": cards, "cells": {key: rows for key, rows in chosen.items() if rows}}

    def _behind_cells(self) -> dict[str, np.ndarray]:
        found = self.found
        losses = found.losses if found.losses is not None else np.zeros(len(found.rows))
        order = np.argsort(-losses, kind="stable")
        key = found.target * len(found.classes) + found.answered
        behind: dict[str, np.ndarray] = {}
        by_key = order[np.argsort(key[order], kind="stable")]
        starts = np.flatnonzero(np.diff(key[by_key])) + 1
        for rows in np.split(by_key, starts):
            truth, answer = divmod(int(key[rows[0]]), len(found.classes))
            behind[f"{truth}-{answer}"] = rows[:_CELL_ROWS]
        # errors before what is right, so that a full page has them
        return dict(sorted(behind.items(), key=lambda item: len(set(item[0].split("-"))) == 1))

    def card(self, at: int) -> Json:
        """What is shown of one row."""
        found = self.found
        card: Json = {
            "id": str(found.ids[at]), "row": int(found.rows[at]), "fold": int(found.fold[at]),
            "picture": self._picture(at), "facts": self._facts(at), "loss": None,
            "truth": None, "answer": None, "sure": None, "given": None,
        }  # fmt: skip
        if found.losses is not None:
            card["loss"] = float(found.losses[at])
        if found.kind == "classes":
            truth, answer = int(found.target[at]), int(found.answered[at])
            card["truth"], card["answer"] = found.classes[truth], found.classes[answer]
            if found.probable:
                card["sure"] = float(found.answers[at, answer])
                card["given"] = float(found.answers[at, truth])
        return card

    @cached_property
    def pictured(self) -> bool:
        found = self.found
        return found.data is not None and thumbnails.drawable(found.data.look(int(found.rows[0])))

    def _picture(self, at: int) -> Json | None:
        if not self.pictured or self.found.data is None:
            return None
        seen = self.found.data.look(int(self.found.rows[at]))
        if seen is None or not thumbnails.drawable(seen):
            return None
        return asdict(thumbnails.of(seen))

    def _facts(self, at: int) -> list[list[str]]:
        """Columns of the row, where it has no picture."""
        if self.pictured:
            return []
        values = self.found.table.iloc[at]
        return [[name, str(values[name])] for name in self.found.features[:_MOST_FACTS]]

    @cached_property
    def labels(self) -> Json | None:
        """Rows whose label is likely wrong; None where answers are no probabilities."""
        found = self.found
        if not found.probable:
            return None
        issues = diagnosis.label_issues(found.target, found.answers)
        return {
            "count": len(issues),
            "rows": len(found.rows),
            "cards": [self.card(int(at)) for at in issues[:SHOWN]],
        }

    @cached_property
    def calibration(self) -> Json | None:
        """How far confidence can be believed; None where there is none."""
        found = self.found
        if not found.probable:
            return None
        bins = diagnosis.reliability(found.target, found.answers)
        rows = len(found.rows)
        confidence = sum(part.rows * part.confidence for part in bins) / rows
        accuracy = sum(part.rows * part.accuracy for part in bins) / rows
        cooled = None if found.cooled is None else diagnosis.reliability(found.target, found.cooled)
        return {
            "figure": drawing.reliability(
                "Confidence and how often it is right", bins, cooled or ()
            ),
            "error": diagnosis.calibration_error(bins),
            "confidence": confidence,
            "accuracy": accuracy,
            "bins": bins,
            "told": found.scores.get("calibration"),
        }

    # --- rows -----------------------------------------------------------------------------------

    @cached_property
    def hardest(self) -> np.ndarray:
        """Positions of the rows with the highest loss, the highest first."""
        losses = self.found.losses
        return (
            np.zeros(0, np.int64) if losses is None else np.argsort(-losses, kind="stable")[:SHOWN]
        )

    @cached_property
    def worst(self) -> Json | None:
        """The rows that were answered worst."""
        if not len(self.hardest):
            return None
        found = self.found
        cards = [self.card(int(at)) for at in self.hardest]
        if found.kind == "numbers":
            truth, answers = diagnosis.columns(found.target), diagnosis.columns(found.answers)
            for card, at in zip(cards, self.hardest, strict=True):
                card["outputs"] = [
                    {"truth": float(t), "answer": float(a), "residual": float(a - t)}
                    for t, a in zip(truth[at], answers[at], strict=True)
                ][:_MOST_OUTPUTS]
        assert found.losses is not None
        total = float(found.losses.sum())
        share = float(found.losses[self.hardest].sum()) / total if total > 0 else 0.0
        names = found.outputs[:_MOST_OUTPUTS]
        told = ["truth", "answer", "residual"] if len(names) == 1 else [f"Δ {n}" for n in names]
        headers = ["id", "fold", *(name for name, _ in cards[0]["facts"]), *told]
        return {
            "cards": cards,
            "share": share,
            "single": len(names) == 1,
            "headers": headers,
            "drawn": self._drawn_answers(),
        }

    def _drawn_answers(self) -> Json | None:
        """Input, truth and answer of the worst rows and the best, where answers are pictures."""
        losses, shape = self.found.losses, self.canvas
        if losses is None or shape is None:
            return None
        order = np.argsort(-losses, kind="stable")
        best = order[::-1][: min(_TRIPLES, len(order) // 2)]
        return {
            "worst": [self._triple(int(at), shape) for at in order[:_TRIPLES]],
            "best": [self._triple(int(at), shape) for at in best],
        }

    @cached_property
    def canvas(self) -> tuple[int, ...] | None:
        """The shape of the picture that an answer is: its row's own, or its height and width.

        None where answers are no pictures, number by number.
        """
        found = self.found
        if found.kind != "numbers" or not self.pictured or found.data is None:
            return None
        seen = found.data.look(int(found.rows[0]))
        width = found.answers.shape[1]
        if seen is None or width <= _MOST_OUTPUTS:
            return None
        plain = tuple(length for length in seen.shape if length not in (1, 3))
        return next((s for s in (seen.shape, plain) if math.prod(s) == width and len(s) > 1), None)

    def _triple(self, at: int, shape: tuple[int, ...]) -> Json:
        """A row's input, truth and answer as pictures; truth and answer on one scale of greys."""
        found = self.found
        assert found.data is not None
        pair = np.stack([found.target[at], found.decided[at]]).astype(np.float64)
        low, high = float(pair.min()), float(pair.max())
        spread = np.rint(255 * (pair - low) / (high - low if high > low else 1)).astype(np.uint8)
        truth, answer = spread.reshape(2, *shape)
        seen = found.data.look(int(found.rows[at]))
        drawn = {"input": seen, "truth": truth, "answer": answer}
        pictures = {name: asdict(thumbnails.of(part)) for name, part in drawn.items()
                    if thumbnails.drawable(part)}  # fmt: skip
        return {"id": str(found.ids[at]), "fold": int(found.fold[at]), "pictures": pictures}

    @cached_property
    def slices(self) -> Json | None:
        """Scores of the rows that share something."""
        found = self.found
        if found.data is None:
            return None
        table = found.table[[name for name in found.features if name != found.group_column]]
        table = table.reset_index(drop=True)
        if self.pictured:
            brightness, contrast = thumbnails.light(
                found.data.look, found.rows, found.data.train_inputs
            )
            table = table.assign(brightness=brightness, contrast=contrast)
        most = _MOST_SLICED if found.competition.metric.means is not None else _MOST_SLICED // 4
        parts = diagnosis.slices(table[table.columns[-most:]], found.score)
        judged = sum(len(part.rows) for part in parts)
        draws = min(400, max(100, _SLICED_ROWS // max(judged, 1)))
        return self._judged(
            [replace(part, interval=found.interval(part.rows, draws)) for part in parts]
        )

    @cached_property
    def groups(self) -> Json | None:
        """Scores of what the folds keep together, the worst first."""
        found = self.found
        if found.groups is None or found.group_column is None:
            return None
        judged = diagnosis.by_group(
            found.group_column, found.groups, found.score,
            found.competition.metric.greater_is_better, _MOST_GROUPS,
        )  # fmt: skip
        judged = [
            replace(part, interval=found.interval(part.rows, 400, by_row=True)) for part in judged
        ]
        told = self._judged(judged)
        return None if told is None else {**told, "all": len(np.unique(found.groups))}

    def _judged(self, slices: Sequence[Slice]) -> Json | None:
        if not slices:
            return None
        whole = self.found.scores["cv"]
        ends = [whole, *(part.score for part in slices)]
        ends += [end for part in slices if part.interval for end in part.interval]
        scale = Scale.over(ends)

        def place(score: float) -> float:
            return round(100 * scale.place(score), 2)

        return {
            "whole": place(whole),
            "rows": [
                {
                    "column": part.column, "value": part.value, "rows": len(part.rows),
                    "score": part.score, "interval": part.interval,
                    "stands_out": part.stands_out(whole),
                    "better": self.found.competition.metric.better(part.score, whole),
                    "at": place(part.score),
                    "range": [place(end) for end in part.interval or (part.score,) * 2],
                }
                for part in slices
            ],
        }  # fmt: skip

    # --- numbers --------------------------------------------------------------------------------

    @cached_property
    def residuals(self) -> Json | None:
        """Figures of each output's residuals, and of the function where it has one variable."""
        found = self.found
        if found.kind != "numbers":
            return None
        truth, answers = diagnosis.columns(found.target), diagnosis.columns(found.answers)
        names = found.outputs
        drawn = range(min(len(names), _MOST_OUTPUTS))
        variable = self._variable()
        if variable is not None and len(names) == 1:
            figures = self._function(variable, truth[:, 0], answers[:, 0])
        else:
            figures = [f for n in drawn for f in self._output(names[n], truth[:, n], answers[:, n])]
        return {
            "figures": figures,
            "thinned": len(found.rows) > len(drawing.thinned(len(found.rows))),
            "drawn": len(drawing.thinned(len(found.rows))),
            "outputs": [
                {"name": names[n], **_errors(truth[:, n], answers[:, n])}
                for n in _largest(answers - truth)
            ],
            "all": len(names),
        }

    def _variable(self) -> str | None:
        """The one column that the function is of."""
        found = self.found
        if found.data is None or len(found.features) != 1 or found.data.train_inputs is not None:
            return None
        (name,) = found.features
        known = name in found.data.test.columns and found.table[name].dtype.kind in "fiu"
        return name if known else None

    def _function(self, variable: str, truth: np.ndarray, answers: np.ndarray) -> list[str]:
        found = self.found
        assert found.data is not None
        x = found.table[variable].to_numpy(float)
        elsewhere = found.data.test[variable].to_numpy(float)
        test = found.tested.reshape(len(elsewhere), -1)[:, 0]
        order = np.argsort(elsewhere, kind="stable")
        name = found.outputs[0]
        told = [f"{found.ids[at]}: residual {answers[at] - truth[at]:.3g}" for at in self.hardest]
        worst = Cloud(x[self.hardest], truth[self.hardest], told)
        missed = Cloud(x[self.hardest], (answers - truth)[self.hardest], told)
        line = Curve(elsewhere[order], test[order], 0, "answers to the test rows")
        left = Cloud(x, answers - truth)
        return [
            drawing.function(f"{name} as a function of {variable}", Cloud(x, truth), line, worst,
                             (variable, name)),
            drawing.cloud(f"Residuals of {name} over {variable}", left,
                          (variable, "answer − truth"), "zero", missed),
            drawing.sizes(f"How large the residuals of {name} are", answers - truth,
                          "|answer − truth|"),
        ]  # fmt: skip

    def _output(self, name: str, truth: np.ndarray, answers: np.ndarray) -> list[str]:
        ids, hardest = self.found.ids, self.hardest
        told = [f"{ids[at]}: {figure(truth[at])} answered {figure(answers[at])}" for at in hardest]
        left = answers - truth
        return [
            drawing.cloud(f"{name}: answers over truth", Cloud(truth, answers),
                          (f"{name}, truth", "answer"), "diagonal",
                          Cloud(truth[hardest], answers[hardest], told)),
            drawing.cloud(f"{name}: residuals over answers", Cloud(answers, left),
                          (f"{name}, answer", "answer − truth"), "zero",
                          Cloud(answers[hardest], left[hardest], told)),
        ]  # fmt: skip

    # --- around it ------------------------------------------------------------------------------

    @cached_property
    def leaders(self) -> Json | None:
        """CV and LB scores of the competition's runs; None where no run has both."""
        scored = [row for row in self.fellows if row.cv is not None and row.metric == self.metric]
        kinds = [kind for kind in ("private", "public", "practice")
                 if any(kind in dict(leaderboard.lb_scores(row)) for row in scored)]  # fmt: skip
        if not kinds:
            return None
        kind = next((k for k in kinds if k in dict(self.own_leaders)), kinds[0])
        both = [row for row in scored if kind in dict(leaderboard.lb_scores(row))]
        points = [(row, row.cv or 0.0, dict(leaderboard.lb_scores(row))[kind]) for row in both]
        own = [point for point in points if point[0].run == self.found.run.name]
        labels = (f"CV {self.metric}", f"{kind} LB")
        drawn = None
        if len(points) > 1:
            everyone, this = (_told(part) for part in (points, own))
            drawn = drawing.agreement(f"{kind} LB over CV", everyone, this, labels)
        return {
            "kind": kind,
            "figure": drawn,
            "rows": [
                {"run": row.run, "cv": cv, "lb": lb, "gap": lb - cv,
                 "own": row.run == self.found.run.name}
                for row, cv, lb in points
            ],
        }  # fmt: skip

    @cached_property
    def cost(self) -> Json:
        """Time, disk, device and versions."""
        manifest, scores = self.found.manifest, self.found.scores
        earlier = self.found.run.folder / FILE  # is no part of what it is about
        size = inventory.measure(self.found.run.folder)[0] - inventory.measure(earlier)[0]
        paces = [item["rows_per_second"] for item in self.found.history()
                 if isinstance(item.get("rows_per_second"), float)]  # fmt: skip
        return {
            "seconds": scores["seconds"],
            "members": len(manifest["members"]),
            "pace": float(np.median(paces)) if paces else None,
            "bytes": size,
            "versions": manifest["versions"],
            "needs": manifest["needs"],
        }

    @cached_property
    def config(self) -> list[Json]:
        """Every knob, those that are not as the recipe has them first."""
        found = self.found
        recipe = found.competition.recipes.get(str(found.manifest["recipe"]))
        usual = {} if recipe is None else {k: (v, h) for k, v, h in config.describe(recipe.config)}
        knobs = []
        for key, value in found.manifest["config"].items():
            text = config.typed(value)
            default, told = usual.get(key, (value, ""))
            default = config.typed(default)
            knobs.append({"key": key, "value": text, "help": told, "usual": default,
                          "turned": default not in (text, "auto")})  # fmt: skip
        return sorted(knobs, key=lambda knob: not knob["turned"])


def _told(points: Sequence[tuple[leaderboard.Row, float, float]]) -> Cloud:
    """Runs with their CV and LB scores, as points."""
    return Cloud(
        np.array([cv for _, cv, _ in points]),
        np.array([lb for *_, lb in points]),
        [f"{row.run}: CV {figure(cv)}, LB {figure(lb)}" for row, cv, lb in points],
    )


def _seed_headers(seeds: Sequence[int]) -> list[str]:
    if len(seeds) < 2:
        return ["score"]
    return ["seeds together", *(f"seed {seed}" for seed in seeds)]


def _largest(left: np.ndarray) -> list[int]:
    """Outputs in their order; of very many those with the largest residuals (rows, outputs)."""
    order = np.argsort(-(left**2).mean(axis=0), kind="stable")[:SHOWN]
    return [int(number) for number in np.sort(order)]


def _errors(truth: np.ndarray, answers: np.ndarray) -> dict[str, float | None]:
    """Usual figures of one output's residuals."""
    left = answers - truth
    spread = float(((truth - truth.mean()) ** 2).sum())
    return {
        "rmse": float(np.sqrt((left**2).mean())),
        "mae": float(np.abs(left).mean()),
        "worst": float(np.abs(left).max()),
        "r2": 1 - float((left**2).sum()) / spread if spread else None,
    }
