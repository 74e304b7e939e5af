"""What `mkdocs.yml` names as its hook: fills the marks of every page before it is turned into HTML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent


def on_config(config: Any) -> Any:
    """Let the generators import each other, and qgraph. MkDocs takes back what a hook does to sys.path before."""
    for folder in (DOCS, DOCS.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    from _generate.fill import fill

    return fill(markdown, page.file.src_uri)
