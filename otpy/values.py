"""What our values have in common. Three short ways, since a tree makes, compares and looks up very many of them.

attrs would compile a ``__repr__`` and an ``__eq__`` for each class, which was a third of what ``import otpy`` cost.
"""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Any

import attrs

__all__ = ["Value", "Word", "value"]

if TYPE_CHECKING:
    from attrs import frozen as value
else:
    # nobody changes a value: mypy sees to that; at run time it would triple what it costs to make one
    value = functools.partial(attrs.define, repr=False, eq=False)


class Word(enum.Enum):
    """A choice. It hashes by identity, as fast as can be: the rules are tables of these."""

    __hash__ = object.__hash__


class Value:
    """Prints its fields, and equals what is of its class and has equal fields."""

    __slots__ = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in _names(self))
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            getattr(self, name) == getattr(other, name) for name in _names(self, compared=True)
        )

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in _names(self, compared=True))))


def _names(value: Any, *, compared: bool = False) -> list[str]:
    return [one.name for one in attrs.fields(type(value)) if one.eq or not compared]
