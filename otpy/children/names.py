"""How the builders of children name what they describe, in ids and in errors."""

from __future__ import annotations


def name_of(target: object) -> str:
    """Return the default of an id: the name of *target*.

    Returns "", which is refused as an id, if *target* has no name of its own.
    """
    name: str = getattr(target, "__name__", "")
    return "" if name == "<lambda>" else name


def path_of(id: str, builder: str) -> str:
    """Return the path that an error names when the place in the tree is not known yet."""
    return id if isinstance(id, str) and id else f"<{builder}>"
