"""Self-contained HTML pages from templates: nothing is fetched, and all text is escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .progress import duration, figure, size, spread

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name("templates")
_SCRIPT = "page.js"


def render(template: str, **values: Any) -> str:
    """The page of a template with these values; text in them is text, whatever it holds.

    The browser is told to run no script but our own, known by its hash, and to fetch nothing.
    """
    return _environment().get_template(template).render(policy=_policy(), **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(figure=figure, duration=duration, size=size, percent=percent)
    made.globals.update(spread=spread)
    return made


@cache
def _policy() -> str:
    content = (_TEMPLATES / _SCRIPT).read_bytes().rstrip(b"\n")
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    pictures_and_style = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"{pictures_and_style}; script-src 'sha256-{digest}'"


def percent(share: float) -> str:
    """A share in per cent to three digits, never rounded to all or nothing."""
    value = 100 * share
    digits = 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    if 0 < share < 1 and float(text) in (0.0, 100.0):
        text = f"{value:.4f}"
    return f"{text} %"
