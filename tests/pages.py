"""Finds the pages of docs/ by their names, in whichever folder they stand."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FRAGMENTS = DOCS / "changelog.d"
PAGES = sorted(path for path in DOCS.rglob("*.md") if FRAGMENTS not in path.parents)
"""All pages. Fragments of the changelog are no pages yet."""


def find(name: str) -> Path:
    """Return the path of the page *name*, such as "health.md". Names are unique."""
    if name == "README.md":
        return ROOT / name
    (path,) = [page for page in PAGES if page.name == name]
    return path


def read(name: str) -> str:
    """Return the text of the page *name*."""
    return find(name).read_text("utf-8")
