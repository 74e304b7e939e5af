"""Rendering: a template and its data become one file.

The page may load nothing (its content security policy), and runs only the scripts whose hashes it names: text from a
model is escaped, and would not run if it were not.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from qgraph.pages.look import DARK, LIGHT, NOISE_LEVELS

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
_SCRIPTS = ("uplot.min.js", "dagre.min.js", "charts.js", "network.js", "page.js")
_STYLES = ("uplot.min.css", "page.css")


def anchor(name: str) -> str:
    """The id of a layer on a page, and behind ``#`` the link to it."""
    return "layer:" + quote(name, safe="")


def render(template: str, view: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The page. template: a file of ``templates/``.  view: what it shows.  data: what its charts are drawn from."""
    scripts = [_static(name) for name in _SCRIPTS]
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    policy = (f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
              "form-action 'none'")
    found: str = _environment().get_template(template).render(
        **view, policy=policy, scripts=scripts, styles=[_static(name) for name in _STYLES], colours=(LIGHT, DARK),
        levels=NOISE_LEVELS, data=_embedded(data))
    return found


@cache
def _static(name: str) -> str:
    return (_HERE / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters["anchor"] = anchor
    return made
