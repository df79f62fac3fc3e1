"""Exceptions of callables, made in the parent process from the plain values of an EXIT.

Laws:
1. Only plain objects are made: the values in ``MAKERS``, exceptions, and members of
   enums. The class of an exception or an enum must be in a module that is imported here
   already. No module is imported because of a message.
2. No code of the class runs: no constructor, no ``__setstate__``, no property, no
   method that hashes, compares or converts an object. The builtin exception that the
   class extends makes the object, and the attributes are put into it.

All of this runs on the thread that asks for the exception. How the process takes an
exception apart is in epitaph.py; the two tables have the same words.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import pathlib
import sys
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from otpy.children.callable.protocol import HEAP_TYPE, LARGEST


def exception_of(packed: bytes) -> object:
    """Make the object that a child has packed: an exception, if the child is honest.

    Raises:
        Exception: The object cannot be made here.
    """
    if len(packed) > LARGEST:
        raise ValueError("too large")
    return _value(json.loads(packed))


def _value(said: Any) -> Any:
    """Return the value that *said* stands for: a list is a word and its parts."""
    if type(said) is not list:
        return said
    word, *parts = said
    return MAKERS[word](*map(_value, parts))


def _text(kind: Callable[[str], object]) -> Callable[[object], object]:
    """Return a maker of values that are made from a text."""

    def make(text: object) -> object:
        if type(text) is not str:
            raise TypeError("no text")
        return kind(text)

    return make


def _numbers(kind: Callable[..., object]) -> Callable[..., object]:
    """Return a maker of values that are made from numbers.

    It refuses all other objects: they may convert themselves by their own code.
    """

    def make(*parts: object) -> object:
        if any(type(one) not in (int, float) for one in parts):
            raise TypeError("no numbers")
        return kind(*parts)

    return make


def _keys(values: Iterable[Any]) -> Iterator[Any]:
    """Yield *values* for a set or a dict, which will hash and compare them.

    Raises:
        TypeError: To hash or to compare one of them would run code of its class.
    """
    for value in values:
        if not _is_plain_key(value):
            raise TypeError("no plain key")
        yield value


def _is_plain_key(value: Any) -> bool:
    kind = type(value)
    if kind is tuple:
        return all(map(_is_plain_key, value))
    owners = [
        next(one for one in _mro(kind) if name in _namespace(one))
        for name in ("__hash__", "__eq__")
    ]
    return kind in PLAIN_KEYS or all(
        one is enum.Enum or not _flags(one) & HEAP_TYPE for one in owners
    )


def _exception(
    module: str, name: str, args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    """Make an exception as its builtin base does, and set its attributes."""
    kind = _class(module, name)
    if not issubclass(kind, BaseException):
        raise TypeError("no exception")
    base = next(one for one in _mro(kind) if not _flags(one) & HEAP_TYPE)
    error: BaseException = base.__new__(kind, *args)
    base.__init__(error, *args)  # type: ignore[misc]  # the one that belongs to this __new__
    for attribute, value in attributes.items():
        _set(error, attribute, value)
    return error


def _set(error: BaseException, name: str, value: object) -> None:
    """Set an attribute in its slot or in the dict of *error*; call no property."""
    if type(name) is not str or (name.startswith("__") and name != "__notes__"):
        raise TypeError("no attribute")
    place: Any = next(
        (_namespace(one)[name] for one in _mro(type(error)) if name in _namespace(one)), None
    )
    if type(place) in (types.MemberDescriptorType, types.GetSetDescriptorType):
        place.__set__(error, value)
    else:
        _own(error)[name] = value


def _member(module: str, name: str, member: str) -> object:
    """Return a member of an enum."""
    kind = _class(module, name)
    if not issubclass(type(kind), enum.EnumMeta):
        raise TypeError("no enum")
    return _namespace(kind)["_member_map_"][member]


def _class(module: str, name: str) -> type[Any]:
    """Return a class of a module that is imported; run no code of either."""
    found: Any = sys.modules[module]
    # some modules load themselves when an attribute is read
    space = object.__getattribute__(found, "__dict__")
    for part in name.split("."):
        found = space[part]
        if not issubclass(type(found), type):
            raise TypeError("no class")
        space = _namespace(found)
    kind: type[Any] = found
    return kind


_mro: Callable[[type], tuple[type, ...]] = vars(type)["__mro__"].__get__
_flags: Callable[[type], int] = vars(type)["__flags__"].__get__
_namespace: Callable[[type], types.MappingProxyType[str, Any]] = vars(type)["__dict__"].__get__
_own: Callable[[BaseException], dict[str, Any]] = vars(BaseException)["__dict__"].__get__

PLAIN_KEYS = frozenset(
    (
        *(bytes, complex, frozenset, dt.datetime, dt.time, dt.date, dt.timedelta, dt.timezone),
        *(decimal.Decimal, uuid.UUID, type(pathlib.Path()), pathlib.PurePosixPath),
    )
)
"""Classes of the standard library whose hash may be code in Python, but no user's."""

MAKERS: dict[str, Callable[..., object]] = {
    # a word of epitaph.py: the function that makes the value
    "builtins.list": lambda *parts: list(parts),
    "builtins.tuple": lambda *parts: parts,
    "builtins.set": lambda *parts: set(_keys(parts)),
    "builtins.frozenset": lambda *parts: frozenset(_keys(parts)),
    "builtins.dict": lambda *parts: dict(zip(_keys(parts[::2]), parts[1::2], strict=True)),
    "builtins.bytes": _text(lambda text: text.encode("latin-1")),
    "builtins.complex": _numbers(complex),
    "datetime.datetime": _text(dt.datetime.fromisoformat),
    "datetime.time": _text(dt.time.fromisoformat),
    "datetime.date": _text(dt.date.fromisoformat),
    "datetime.timedelta": _numbers(dt.timedelta),
    "decimal.Decimal": _text(decimal.Decimal),
    "uuid.UUID": _text(uuid.UUID),
    "pathlib.PosixPath": _text(pathlib.Path),
    "pathlib.PurePosixPath": _text(pathlib.PurePosixPath),
    "exception": _exception,
    "enum": _member,
}
