"""Files of the root as pages: README is the first page."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md",
         "README.md": "index.md"}
"""File of the root -> its page."""
_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


def readme() -> str:
    return page("README.md")


def page(name: str) -> str:
    """The text of a file of the root, with links as they are from the folder docs/."""
    return _LINK.sub(_from_docs, (ROOT / name).read_text(encoding="utf-8"))


def _from_docs(match: re.Match[str]) -> str:
    target, hash_, anchor = match.group(1).partition("#")
    return f"]({PAGES.get(target, target.removeprefix('docs/'))}{hash_}{anchor})"
