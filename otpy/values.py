"""The base of otpy's values, and the four decorators that make its classes.

1. ``@value``: frozen data, which derives from ``Value``. Its fields print and compare.
2. ``@report``: the same with fields by name only, for what users are given to read.
3. ``@running``: an object with identity. It is equal to itself only, and may change.
4. ``@message``: a value that is frozen for the type checkers only.

Law: classes of otpy are made by these decorators, and by no other spelling of attrs.

attrs would compile a ``__repr__`` and an ``__eq__`` for each class, which was a third
of the time that ``import otpy`` takes. ``Value`` reads the list of fields instead.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, dataclass_transform

import attrs

__all__ = ["Value", "Word", "message", "report", "running", "value"]

T = TypeVar("T")


class Word(enum.Enum):
    """A choice. It hashes by identity, which is fast: the rules are tables of these."""

    __hash__ = object.__hash__


if TYPE_CHECKING:
    # *value*: The type checkers see ``attrs.frozen`` itself. With a
    # ``dataclass_transform``, mypy would demand of a caller what a converter returns,
    # not what it takes. *_known*: mypy lets ``attrs.evolve`` change a value only if
    # attrs made a base of its class.
    from attrs import frozen as _known
    from attrs import frozen as value
else:

    def value(cls: Any = None, /, **options: Any) -> Any:
        """Make frozen data of a class that derives from ``Value``.

        Args:
            cls: The class.
            options: What ``attrs.define`` takes besides, such as ``kw_only=True``.
        """
        return _define(cls, frozen=True, repr=False, eq=False, **options)

    def _known(cls: type) -> type:
        """Return the class as it is: a frozen base would freeze messages as well."""
        return cls


@_known
class Value:
    """Print the fields, and equal what is of the same class and has equal fields.

    A field obeys ``attrs.field``: with ``repr=False`` it is not printed, with
    ``eq=False`` not compared, and with a function it is printed or compared by its
    result.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(_shown(self))})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _compared(self) == _compared(other)

    def __hash__(self) -> int:
        return hash((type(self), *_compared(self)))


def _shown(value: Any) -> Iterator[str]:
    for field in attrs.fields(type(value)):
        if field.repr is not False:
            shows = repr if field.repr is True else field.repr
            yield f"{field.name}={shows(getattr(value, field.name))}"


def _compared(value: Any) -> list[Any]:
    fields = [field for field in attrs.fields(type(value)) if field.eq]
    found = [(field.eq_key, getattr(value, field.name)) for field in fields]
    return [content if key is None else key(content) for key, content in found]


class Decorator(Protocol):
    """What a decorator is that was given options."""

    def __call__(self, cls: type[T], /) -> type[T]: ...


_define: Callable[..., Decorator] = attrs.define


@dataclass_transform(
    eq_default=False, frozen_default=True, kw_only_default=True, field_specifiers=(attrs.field,)
)
def report(cls: type | None = None, /, **options: Any) -> Decorator:
    """Make frozen data with fields by name only of a class that derives from ``Value``.

    Args:
        cls: The class.
        options: What ``attrs.define`` takes besides.
    """
    return _define(cls, frozen=True, kw_only=True, repr=False, eq=False, **options)


@dataclass_transform(eq_default=False, field_specifiers=(attrs.field,))
def running(cls: type | None = None, /, **options: Any) -> Decorator:
    """Give a class with identity its fields: an object of it is equal to itself only.

    Args:
        cls: The class.
        options: What ``attrs.define`` takes besides, such as ``frozen=True``.
    """
    return _define(cls, repr=False, eq=False, **options)


@dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(attrs.field,))
def message(cls: type | None = None, /, **options: Any) -> Decorator:
    """Make a message or an action of a class that derives from ``Value``.

    The type checkers refuse a change of it; at run time nothing does. A crash and its
    restart make about ten of them, and to make a frozen one takes three times as long:
    each field is written by a call of ``object.__setattr__``.

    Args:
        cls: The class.
        options: What ``attrs.define`` takes besides, such as ``kw_only=True``.
    """
    return _define(cls, repr=False, eq=False, **options)
