"""Figures of a report as SVG, drawn by Matplotlib; colours are the page's, light or dark."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .diagnosis import Bin
from .progress import figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SVG = "http://www.w3.org/2000/svg"
# Matplotlib knows no CSS: it draws in colours that nothing else has, which then become variables
_VARIABLES = {
    "ink": "#010101", "muted": "#010102", "line": "#010103", "card": "#010104",
    "accent": "#010105", "warm": "#010106", "good": "#010107", "wash": "#010108",
    **{f"c{number}": f"#0102{number:02d}" for number in range(8)},
}  # fmt: skip
_SERIES = 8
_WIDE = 30  # largest over smallest, beyond which a scale is logarithmic
_MOST_POINTS = 3000  # of a cloud; more make the page slow and tell no more
_JOINED_ROWS = 10  # of a bin; fewer jump about
_SIZE = (4.3, 2.75)  # inches


@dataclass(frozen=True)
class Curve:
    """One line of a figure: (points,) each; lines of one `group` share a colour."""

    x: np.ndarray
    y: np.ndarray
    group: int
    label: str


@dataclass(frozen=True)
class Cloud:
    """Points of a figure: (points,) each, and what is told of each one under the pointer."""

    x: np.ndarray
    y: np.ndarray
    told: Sequence[str] = field(default_factory=tuple)


def curves(title: str, lines: Sequence[Curve], labels: tuple[str, str], late: bool = False) -> str:
    """Lines, each told under the pointer at its last point; `late` cuts off what came early.

    Positive values that range over more than a factor of 30 are drawn on a logarithmic scale.
    """
    values = np.concatenate([line.y for line in lines])
    log = values.min() > 0 and values.max() > _WIDE * values.min()
    with _drawn(title) as (axes, done):
        for curve in lines:
            colour = _VARIABLES[f"c{curve.group % _SERIES}"]
            axes.plot(curve.x, curve.y, color=colour, linewidth=1.3, alpha=0.9)
            if len(curve.x):
                _dots(axes, Cloud(curve.x[-1:], curve.y[-1:], [curve.label]), colour, 14)
        if log:
            _logarithmic(axes, "y")
        elif late:
            _zoom(axes, lines)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(x=0.03)
        _whole_numbers(axes)
    return done()


def strip(title: str, scores: Sequence[tuple[str, float]], whole: float, label: str) -> str:
    """Each fold's score on one line, their mean, and the score of all rows together."""
    names, values = [name for name, _ in scores], np.array([score for _, score in scores])
    with _drawn(title, height=1.35) as (axes, done):
        axes.axvline(whole, color=_VARIABLES["accent"], linewidth=1.6)
        if values.min() > 0 and values.max() > _WIDE * values.min():
            _logarithmic(axes, "x")
        elif len(values) > 1:
            mean, deviation = values.mean(), values.std(ddof=1)
            axes.axvspan(mean - deviation, mean + deviation, color=_VARIABLES["wash"], linewidth=0)
        heights = np.linspace(0.62, -0.62, len(values)) if len(values) > 1 else np.zeros(1)
        for number, (name, value) in enumerate(zip(names, values, strict=True)):
            at = Cloud(values[[number]], heights[[number]], [f"{name}: {figure(value)}"])
            _dots(axes, at, _VARIABLES[f"c{number % _SERIES}"], 46)
        axes.set_yticks([])
        axes.grid(False, axis="y")
        axes.set_ylim(-1, 1)
        axes.margins(x=0.08)
        axes.set_xlabel(label)
    return done()


def reliability(title: str, bins: Sequence[Bin], after: Sequence[Bin] = ()) -> str:
    """How often answers of like confidence are right, with intervals, over how many there are.

    `after` are the same rows at another temperature. Lines join bins of at least 10 rows.
    """
    with _drawn(title, panels=(3.2, 1)) as (axes, done):
        upper, lower = axes.figure.axes
        upper.plot([0, 1], [0, 1], color=_VARIABLES["muted"], linewidth=0.9, dashes=(4, 3))
        for part in bins:
            ends = [part.confidence] * 2, part.interval
            upper.plot(*ends, color=_VARIABLES["accent"], linewidth=1.1)
        if after:
            _trusted(upper, after, _VARIABLES["good"], "after scaling, ")
        _trusted(upper, bins, _VARIABLES["accent"], "")
        upper.set_ylim(-0.03, 1.03)
        upper.set_ylabel("share right")
        upper.tick_params(labelbottom=False)
        middles = [(part.low + part.high) / 2 for part in bins]
        width = bins[0].high - bins[0].low if bins else 1.0
        rows = [part.rows for part in bins]
        lower.bar(middles, rows, 0.86 * width, color=_VARIABLES["accent"], alpha=0.45)
        _logarithmic(lower, "y")
        lower.set_ylabel("rows")
        lower.set_xlabel("confidence")
        for panel in (upper, lower):
            panel.set_xlim(-0.02, 1.02)
    return done()


def _trusted(axes: Axes, bins: Sequence[Bin], colour: str, when: str) -> None:
    many = [part for part in bins if part.rows >= _JOINED_ROWS]
    line = [part.confidence for part in many], [part.accuracy for part in many]
    axes.plot(*line, color=colour, linewidth=1.1)
    told = [
        f"{when}{part.rows:,} rows of confidence {part.confidence:.3f}: {part.accuracy:.3f} right"
        for part in bins
    ]
    confidence = np.array([part.confidence for part in bins])
    accuracy = np.array([part.accuracy for part in bins])
    _dots(axes, Cloud(confidence, accuracy, told), colour, 18)


def cloud(
    title: str, points: Cloud, labels: tuple[str, str], guide: str, worst: Cloud | None = None
) -> str:
    """Points with a guide, "diagonal" or "zero", and the worst of them set off."""
    with _drawn(title) as (axes, done):
        kept = thinned(len(points.x))
        axes.scatter(
            points.x[kept], points.y[kept], s=5, color=_VARIABLES["accent"], alpha=0.45,
            linewidths=0,
        )  # fmt: skip
        if guide == "diagonal":
            ends = [float(min(points.x.min(), points.y.min()))]
            ends.append(float(max(points.x.max(), points.y.max())))
            axes.plot(ends, ends, color=_VARIABLES["muted"], linewidth=0.9, dashes=(4, 3))
        else:
            axes.axhline(0, color=_VARIABLES["muted"], linewidth=0.9, dashes=(4, 3))
            _spread_out(axes, points.y)
        if worst is not None:
            _dots(axes, worst, _VARIABLES["warm"], 18)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    return done()


def function(
    title: str, known: Cloud, answered: Curve, worst: Cloud, labels: tuple[str, str]
) -> str:
    """A function of one variable: what is known of it, and what was answered elsewhere."""
    with _drawn(title) as (axes, done):
        axes.plot(answered.x, answered.y, color=_VARIABLES["accent"], linewidth=1.2)
        kept = thinned(len(known.x))
        axes.scatter(
            known.x[kept], known.y[kept], s=6, color=_VARIABLES["ink"], alpha=0.55, linewidths=0
        )
        _dots(axes, worst, _VARIABLES["warm"], 18)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(x=0.02)
    return done()


def sizes(title: str, values: np.ndarray, label: str) -> str:
    """How many values are of which size, over powers of ten; zeros count as the smallest."""
    found = np.abs(values[np.isfinite(values)])
    least = float(found[found > 0].min(initial=1.0))
    found = np.maximum(found, least)
    edges = np.geomspace(least, max(float(found.max(initial=least)), least * 1.01), 41)
    with _drawn(title) as (axes, done):
        axes.hist(found, bins=list(edges), color=_VARIABLES["accent"], alpha=0.6)
        _logarithmic(axes, "x")
        axes.set_xlabel(label)
        axes.set_ylabel("rows")
    return done()


def agreement(title: str, others: Cloud, this: Cloud, labels: tuple[str, str]) -> str:
    """One score of runs over another, one run set off."""
    with _drawn(title) as (axes, done):
        _dots(axes, others, _VARIABLES["muted"], 26)
        _dots(axes, this, _VARIABLES["accent"], 52)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(0.12)
        if np.ptp(others.y) == 0 < np.ptp(others.x):  # all alike: on the scale of the other
            half = float(np.ptp(others.x)) / 2
            axes.set_ylim(others.y[0] - half, others.y[0] + half)
    return done()


def thinned(count: int) -> np.ndarray:
    """Positions of at most 3,000 of `count` points, evenly spread."""
    if count <= _MOST_POINTS:
        return np.arange(count)
    return np.linspace(0, count - 1, _MOST_POINTS).round().astype(int)


# --- how -----------------------------------------------------------------------------------------

_RC: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "kagglekit", "text.parse_math": False,
    "font.size": 8.5, "font.family": ["DejaVu Sans"], "axes.labelsize": 8.5,
    "axes.edgecolor": _VARIABLES["line"], "axes.labelcolor": _VARIABLES["muted"],
    "axes.facecolor": "none", "figure.facecolor": "none", "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.spines.left": False, "grid.color": _VARIABLES["line"], "grid.linewidth": 0.6,
    "text.color": _VARIABLES["ink"], "xtick.color": _VARIABLES["line"],
    "ytick.color": _VARIABLES["line"], "xtick.labelcolor": _VARIABLES["muted"],
    "ytick.labelcolor": _VARIABLES["muted"], "xtick.labelsize": 8, "ytick.labelsize": 8,
    "ytick.major.size": 0, "xtick.major.size": 2.5, "axes.unicode_minus": True,
    "ytick.minor.size": 0, "axes.formatter.limits": (-4, 5), "axes.formatter.useoffset": False,
}  # fmt: skip


@contextmanager
def _drawn(
    title: str, height: float = _SIZE[1], panels: Sequence[float] = (1,)
) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """The first panel to draw on, and what gives the SVG once all is drawn."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that one font lacks, ticks of a flat line
        matplotlib.rcParams.update(matplotlib.rcParamsDefault)
        matplotlib.rcParams.update(_RC)
        drawing = Figure(figsize=(_SIZE[0], height), layout="constrained")
        FigureCanvasSVG(drawing)
        drawing.subplots(len(panels), 1, height_ratios=list(panels), squeeze=False)
        made: list[str] = []
        yield drawing.axes[0], lambda: made[0]
        made.append(_svg(drawing, title))


def _dots(axes: Axes, points: Cloud, colour: str, area: float) -> None:
    """Points with a rim of the card's colour, and a tooltip each."""
    drawn = axes.scatter(
        points.x, points.y, s=area, color=colour, edgecolors=_VARIABLES["card"], linewidths=0.8,
        zorder=3,
    )  # fmt: skip
    told: dict[str, list[str]] = axes.figure.__dict__.setdefault("told", {})
    drawn.set_gid(f"told{len(told)}")
    told[f"told{len(told)}"] = list(points.told)


def _logarithmic(axes: Axes, side: Literal["x", "y"]) -> None:
    """Whole powers of ten, written as numbers: formulas are not parsed here."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(_power))
    axis.set_minor_formatter(NullFormatter())


def _power(value: float, _: object = None) -> str:
    if 1e-3 < abs(value) < 1e5 or not value:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def _spread_out(axes: Axes, values: np.ndarray) -> None:
    """Where a few residuals dwarf the others, let both be seen: linear near zero, powers beyond."""
    from matplotlib.ticker import FuncFormatter, NullLocator, SymmetricalLogLocator

    sizes = np.abs(values)
    usual, largest = float(np.quantile(sizes, 0.9)), float(sizes.max(initial=0.0))
    if not 0 < usual * _WIDE < largest:
        return
    axes.set_yscale("symlog", linthresh=usual)
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=usual))
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    axes.yaxis.set_minor_locator(NullLocator())


def _zoom(axes: Axes, lines: Sequence[Curve]) -> None:
    """Let what lines had after a third of their way fill the height."""
    late = np.concatenate([line.y[len(line.y) // 3 :] for line in lines])
    low, high = float(late.min()), float(late.max())
    room = 0.08 * (high - low)
    if room > 0:
        axes.set_ylim(low - room, high + room)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _svg(drawing: Figure, title: str) -> str:
    """The figure as an SVG element with a name, in the page's colours."""
    content = io.StringIO()
    drawing.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(content.getvalue())
    _tell(root, getattr(drawing, "told", {}))
    _lighten(root)
    _named(root, title)
    text = ElementTree.tostring(root, encoding="unicode")
    for name, colour in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    prefix = re.sub(r"\W+", "-", title)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)


def _tell(root: ElementTree.Element, told: Mapping[str, Sequence[str]]) -> None:
    """Give each point its tooltip."""
    for group in root.iter(f"{{{_SVG}}}g"):
        sentences = told.get(group.get("id", ""), ())
        for point, sentence in zip(group.iter(f"{{{_SVG}}}use"), sentences, strict=False):
            ElementTree.SubElement(point, f"{{{_SVG}}}title").text = sentence


def _lighten(root: ElementTree.Element) -> None:
    """Say once what all points of a cloud share, and round coordinates: a fourth of the bytes."""
    for group in root.iter(f"{{{_SVG}}}g"):
        points = [child for child in group if child.tag == f"{{{_SVG}}}use"]
        styles = {point.get("style") for point in points}
        if len(points) > 1 and len(styles) == 1 and (style := styles.pop()):
            group.set("style", style)
            for point in points:
                del point.attrib["style"]
    for part in root.iter():
        part.tail = None
        for name in ("x", "y", "d"):
            if name in part.attrib:
                part.set(name, re.sub(r"(\.\d\d)\d+", r"\1", part.attrib[name]).strip())


def _named(root: ElementTree.Element, title: str) -> None:
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for child in list(root):
        if child.tag.endswith("metadata"):
            root.remove(child)
    root.set("role", "img")
    root.set("aria-label", title)
