"""A report is whole, safe and true: one file, no text that runs, the run's own figures."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kagglekit import board, cli, inventory, report
from kagglekit.errors import UserError
from tests import browser, hostile_pages, miniatures, toys

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """What a page holds: elements with their attributes, figures by key, what nests wrongly."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, float] = {}
        self.open: list[str] = []
        self.text = ""
        self.stored = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "data" and "data-key" in dict(attributes):
            self.figures[dict(attributes)["data-key"]] = float(dict(attributes)["value"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.stored = data if data.lstrip().startswith('{"cards"') else self.stored
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def trained(name: str, *arguments: str) -> Path:
    """The folder of a freshly trained run."""
    assert cli.main(["train", name, *arguments, "--json"]) == 0
    return max(Path("runs", name).glob("[!.]*"), key=lambda path: path.stat().st_mtime)


def assert_safe(page: Page) -> None:
    """Nothing is fetched, nothing runs but our own script, and every element is closed."""
    assert page.open == []
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = attributes.get(name) or ""
            ours = target.startswith(("data:image/", "data:,", "#")) or not target
            linked = tag == "a" and re.match(r"https://arxiv\.org/|[\w.~/-]+\.html$", target)
            assert ours or linked, (tag, target[:80])
    scripts = [a for a in page.of("script") if a.get("type") != "application/json"]
    assert len(scripts) == 1
    assert len(page.source.encode()) < 10_000_000
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    known = set(names)
    for _, attributes in page.elements:
        for name in ("aria-controls", "data-copy"):
            assert attributes.get(name) is None or attributes[name] in known


def assert_named(page: Page) -> None:
    """Every picture, figure and region has a name that can be read out."""
    assert all(a.get("alt") for a in page.of("img"))
    assert all(a.get("aria-label") for a in page.of("svg"))
    regions = [a for _, a in page.elements if a.get("role") == "region"]
    assert regions
    assert all(a.get("aria-label") for a in regions)


def test_a_report_of_pictures_tells_the_run_s_own_figures_and_runs_no_name(project, capsys):
    hostile_pages.signs(project)
    run = trained("signs", "--seeds", "2")
    capsys.readouterr()
    assert cli.main(["report", "signs", run.name[:9], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = Page(Path(told["report"]))
    assert_safe(page)
    assert_named(page)
    assert hostile_pages.RUNS in page.text
    assert hostile_pages.BREAKS in page.text

    scores = json.loads((run / "scores.json").read_text())
    assert page.figures["cv"] == told["cv"] == scores["cv"]
    assert page.figures["mean"] == scores["mean"]
    assert [page.figures[f"fold{n}"] for n in range(3)] == [f["score"] for f in scores["folds"]]
    target, oof = np.load(run / "target.npy"), np.load(run / "oof.npy")
    answered = oof.argmax(1)
    assert told["errors"] == (answered != target).sum()
    counts = {a["data-cell"]: int(a["data-count"]) for a in page.of("button") if "data-cell" in a}
    assert sum(counts.values()) == len(target)
    for key, count in counts.items():
        truth, answer = map(int, key.split("-"))
        assert count == ((target == truth) & (answered == answer)).sum()
    bins = np.ceil(oof.max(1) * 15)
    gaps = [abs((oof.max(1) - (answered == target))[bins == b].sum()) for b in np.unique(bins)]
    assert page.figures["ece"] == pytest.approx(sum(gaps) / len(target), abs=1e-6)

    # the seven labels that were changed are the doubtful ones, and are shown first
    assert told["label_issues"] == 7
    store = json.loads(page.stored)
    behind = {row for rows in store["cells"].values() for row in rows}
    assert behind == {int(row) for row in store["cards"]}
    assert all(store["cards"][str(row)]["picture"] for row in behind)
    assert set(range(7)) <= behind
    ids = pd.read_csv("data/signs/train.csv")["id"].astype(str)
    assert all(card["id"] == ids[card["row"]] for card in store["cards"].values())


def test_a_report_disturbs_neither_the_run_nor_what_looks_at_runs(project, capsys):
    toys.write(project)
    run = trained("toy", "curve")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    first = report.write("toy")
    page = Page(Path(first["report"]))
    assert report.write("toy")["bytes"] == first["bytes"]
    assert_safe(page)
    assert_safe(Page(Path("runs") / board.FILE))
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    after.pop(run / report.FILE)
    assert {k: v for k, v in after.items() if k.name != "run.log"} == {
        k: v for k, v in before.items() if k.name != "run.log"
    }
    fits = toys.fits()
    assert cli.main(["train", "toy", "curve", "--json"]) == 0
    assert toys.fits() == fits
    (state,) = inventory.states(Path("runs"))
    assert state.finished
    assert state.damage is None
    assert cli.main(["clean", "--yes", "--json"]) == 0
    assert (run / report.FILE).is_file()


def test_a_function_of_one_variable_is_drawn_and_its_residuals_are_the_run_s(project):
    miniatures.fit_1d(project / "data" / "fit_1d")
    run = trained("fit_1d", "spline")
    page = Page(Path(report.write("fit_1d")["report"]))
    assert_safe(page)
    assert_named(page)
    titles = [a["aria-label"] for a in page.of("svg")]
    assert "y as a function of x" in titles
    left = np.load(run / "oof.npy")[:, 0] - np.load(run / "target.npy").reshape(-1)
    values = [float(a["value"]) for a in page.of("data")]
    for figure in (np.sqrt((left**2).mean()), np.abs(left).mean(), np.abs(left).max()):
        assert any(value == pytest.approx(figure, rel=1e-12) for value in values)


def test_rows_of_a_table_show_groups_slices_and_facts_and_without_data_say_so(project):
    hostile_pages.people(project)
    run = trained("people")
    told = report.write("people")
    page = Page(Path(told["report"]))
    assert_safe(page)
    assert 'id="groups"' in page.source
    assert 'id="slices"' in page.source
    card = next(iter(json.loads(page.stored)["cards"].values()))
    assert [name for name, _ in card["facts"]] == ["person", hostile_pages.BREAKS, "size"]
    table = pd.read_csv("data/people/train.csv")
    (project / "data" / "people" / "train.csv").write_text(table.iloc[:60].to_csv(index=False))
    changed = report.write("people")
    page = Page(run / report.FILE)
    assert "the training data have changed since" in page.text
    assert 'id="groups"' not in page.source
    assert (changed["cv"], changed["errors"]) == (told["cv"], told["errors"])

    # an earlier version said less of views, and nothing of seeds and temperature
    scores = json.loads((run / "scores.json").read_text())
    views = [{"name": hostile_pages.RUNS, "alone": 0.5, "without": 0.25, "gain": 0.125}]
    scores = {k: v for k, v in scores.items() if k not in ("repeats", "calibration")}
    (run / "scores.json").write_text(json.dumps(scores | {"views": views}))
    report.write("people")
    assert "+0.12" in Page(run / report.FILE).text


CLEANED = """
from dataclasses import replace


def load(folder):
    data, rng = tables.regression(folder), np.random.default_rng(0)
    clean = rng.integers(0, 2, (90, 6, 8)) * 1.0
    seen = np.clip(clean * 150 + rng.normal(50, 60, clean.shape), 0, 255).astype(np.uint8)
    sample = data.sample[["id"]].assign(**{f"p{n}": "0.5" for n in range(48)})
    return replace(data, target=clean[:60].reshape(60, 48), sample=sample,
                   train_inputs=seen[:60, None], test_inputs=seen[60:, None])


class Pixels:
    def fit(self, x, y, seed):
        toys.fitted("pixels")
        return {"level": np.array([x.mean()])}

    def predict(self, state, x):
        return (x.reshape(len(x), -1) > state["level"]) * 1.0


competition = replace(competition, load=load, recipes={
    "pixels": Estimator(lambda config: Pixels(), LineConfig(folds=3))})
"""


def test_answers_that_are_pictures_are_shown_beside_input_and_truth(project):
    toys.write(project, CLEANED)
    run = trained("toy", "pixels")
    report.write("toy")
    page = Page(run / report.FILE)
    assert_safe(page)
    drawn = [a["alt"] for a in page.of("img")]
    assert len(drawn) == 3 * (9 + 9)
    losses = ((np.load(run / "oof.npy") - np.load(run / "target.npy")) ** 2).mean(1)
    ids = pd.read_csv("data/toy/train.csv")["id"].astype(str)
    assert {f"row {ids[losses.argmax()]}, {part}" for part in ("input", "truth", "answer")} <= {
        *drawn[:27]
    }
    assert losses.max() > 2 * losses.min()
    assert "rows answered best" in page.text
    assert "The 24 of 48 outputs" in page.text


def test_what_cannot_be_reported_is_told_in_a_sentence(project):
    toys.write(project)
    with pytest.raises(UserError, match="no finished run of toy"):
        report.write("toy")
    run = trained("toy", "line")
    np.save(run / "covered.npy", np.ones(3, bool))
    with pytest.raises(UserError, match="not of the same rows"):
        report.write("toy")
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"finished": None}))
    answers = list(run.glob("*/answers.npz"))
    for path in answers:
        path.rename(path.with_suffix(".bak"))
    with pytest.raises(
        UserError, match=r"none of its folds has answered yet: `kagglekit train toy"
    ):
        report.write("toy", run.name)
    for path in answers:
        path.with_suffix(".bak").rename(path)
    (run / "fold1-seed0" / "answers.npz").write_bytes(
        (run / "fold0-seed0" / "answers.npz").read_bytes()
    )
    with pytest.raises(UserError, match=r"fold1-seed0.*answers other rows than folds.csv says"):
        report.write("toy", run.name)
    shutil.rmtree("data")
    with pytest.raises(UserError, match="cannot be scored so far: the training data are no longer"):
        report.write("toy", run.name)


@pytest.mark.parametrize("refitted", [False, True])
def test_of_an_unfinished_run_there_is_a_report_of_what_there_is(project, capsys, refitted):
    toys.write(project)
    name = "refitted" if refitted else "curve"
    toys.trap("fit-interrupt", 4 if refitted else 3)
    typed = ["train", "toy", name, "--json"]
    assert cli.main(typed) == 130
    (run,) = Path("runs/toy").glob(f"{name}-*")
    capsys.readouterr()
    assert cli.main(["report", "toy", run.name]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    lacking = "all-seed0" if refitted else "fold2-seed0"
    done = "3 of 4" if refitted else "2 of 3"
    command = f"`kagglekit train toy {name} --json`"
    sentence = f"Not finished: {done} members have answered, {lacking} is missing; {command}"
    assert sentence in shown
    page = Page(run / report.FILE)
    assert_safe(page)
    assert sentence in " ".join(page.text.split())
    before = page.figures

    assert cli.main(typed) == 0
    assert not (run / report.FILE).exists()  # it was of what there was
    report.write("toy", run.name)
    page = Page(run / report.FILE)
    assert "Not finished" not in page.text
    assert page.figures["fold0"] == before["fold0"]
    assert (page.figures["cv"] == before["cv"]) == refitted


@pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium")
def test_in_a_browser_the_page_is_quiet_whole_and_answers_to_keys(project):
    hostile_pages.signs(project)
    run = trained("signs")
    report.write("signs")
    with browser.Browser(390, 844) as tab:
        tab.open(run / report.FILE)
        assert tab.run("window.struck === undefined")
        assert tab.run("document.documentElement.scrollWidth") <= 390  # nothing sticks out
        whole = "[...document.images].every((i) => i.complete && i.naturalWidth > 0)"
        assert tab.run(whole)
        light = tab.run("getComputedStyle(document.body).backgroundColor")

        # the first Tab leads past the navigation; Enter on a cell shows its pictures
        tab.press("Tab")
        assert tab.run("document.activeElement.className") == "skip"
        cell = "document.querySelector('.matrix button[data-cell=\"0-0\"]')"
        tab.run(f"{cell}.focus()")
        tab.press("Enter")
        assert tab.run(f"{cell}.getAttribute('aria-pressed')") == "true"
        assert tab.run("document.querySelectorAll('#behind img').length") > 3
        assert "answered as" in tab.run("document.querySelector('#behind h3').textContent")
        assert tab.run(whole)

        rows = "[...document.querySelectorAll('#classes tbody tr')]"
        column = f"{rows}.map((row) => Number(row.cells[3].querySelector('data').value))"
        head = "document.querySelectorAll('#classes th button.sort')[3]"
        tab.run(f"{head}.click()")
        assert tab.run(column) == sorted(tab.run(column))
        assert len(set(tab.run(column))) > 1
        tab.run(f"{head}.click()")
        assert tab.run(column) == sorted(tab.run(column), reverse=True)
        assert tab.run(f"{head}.closest('th').getAttribute('aria-sort')") == "descending"

        tab.run("document.querySelector('#theme').click()")
        dark = tab.run("getComputedStyle(document.body).backgroundColor")
        tab.run("document.querySelector('#theme').click()")
        tab.colours(dark=True)
        assert light == tab.run("getComputedStyle(document.body).backgroundColor") != dark

        tab.open(Path("runs") / board.FILE)
        assert tab.run("document.querySelector('td a').getAttribute('href')") == (
            f"signs/{run.name}/report.html"
        )
        assert tab.errors == []
        assert all(url.startswith(("file://", "data:")) for url in tab.requests)
