"""How a callable has ended: its exception, taken apart into bytes.

This runs in the callable's process, which loads the file by its path before anything
else: an import that fails there, because of its ``sys.path``, has to be reported as
well. So nothing of otpy but ``protocol`` is imported, and nothing that is slow.

Laws:
1. An epitaph is made of every exception, whatever its methods raise. At worst it has
   names only.
2. It is no longer than the limit that it gets.
3. The exception itself is sent as plain values. The parent process makes it anew from
   them (plain.py); the two tables have the same words.
"""

from __future__ import annotations

import pickle
import sys

from otpy.children.callable.protocol import HEAP_TYPE, LARGEST, MOST, PARTS, SHORT

TYPE_CHECKING = False  # typing is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


def _moment(value: Any) -> tuple[str]:
    if value.tzinfo is not None and type(value.tzinfo).__name__ != "timezone":
        raise TypeError("a zone with rules of its own")
    return (value.isoformat(),)


PLAIN: dict[str, Callable[[Any], Iterable[Any]]] = {
    # a class of plain values: the parts that plain.py makes an equal value of
    "builtins.list": iter,
    "builtins.tuple": iter,
    "builtins.set": iter,
    "builtins.frozenset": iter,
    "builtins.dict": lambda value: [part for item in value.items() for part in item],
    "builtins.bytes": lambda value: (value.decode("latin-1"),),
    "builtins.complex": lambda value: (value.real, value.imag),
    "datetime.datetime": _moment,
    "datetime.time": _moment,
    "datetime.date": lambda value: (value.isoformat(),),
    "datetime.timedelta": lambda value: (value.days, value.seconds, value.microseconds),
    "decimal.Decimal": lambda value: (str(value),),
    "uuid.UUID": lambda value: (str(value),),
    "pathlib.PosixPath": lambda value: (str(value),),
    "pathlib.PurePosixPath": lambda value: (str(value),),
}


def epitaph_of(error: BaseException, limit: int, allow_pickle: bool) -> bytes:
    """Return the content of an EXIT about *error*; texts that are too long are cut.

    Args:
        error: The exception of the callable.
        limit: The most bytes that the content may have, at least ``LEAST``.
        allow_pickle: Whether the exception may be pickled.
    """
    names = [word_of(error), qualified_name(error), shown(error)]
    texts = [_encoded(name)[:SHORT] for name in names]
    room = limit - PARTS.size - sum(map(len, texts))
    try:
        packed = pack(error, allow_pickle)
        message, story = _encoded(_message(error)), _encoded(traceback_of(error))
        if len(packed) + len(message) + len(story) > room:
            packed, message = b"", message[: room // 2]
            # the end of a traceback says most
            story = story[max(0, len(story) - room + len(message)) :]
        return join(*texts, message, story, packed)
    except BaseException:  # no memory, or a signal handler: the names at least
        return join(*texts, b"", b"", b"")


def join(*parts: bytes) -> bytes:
    """Return the content of an EXIT that has these six parts."""
    return b"".join((PARTS.pack(*map(len, parts)), *parts))


def word_of(error: BaseException) -> str:
    """Return which control exception of otpy *error* means, or "".

    A callable that raises a control exception has imported ``otpy.exceptions``.
    """
    ours = sys.modules.get("otpy.exceptions")
    meaning = ours.meaning_of(error) if ours is not None else None
    return "" if meaning is None else str(meaning.__name__)


def pack(error: BaseException, allow_pickle: bool) -> bytes:
    """Return *error* as JSON, or pickled; b"" if it cannot be packed."""
    try:
        if allow_pickle:
            return pickle.dumps(error)
        import json

        said = json.dumps(_plain(error, iter(range(MOST)))).encode()
        return said if len(said) <= LARGEST else b""
    except BaseException:  # its pickling may raise anything
        return b""


def _plain(value: Any, budget: Iterator[int]) -> Any:
    """Return *value* as JSON can say it: a list is a word and its parts.

    Raises:
        Exception: It is no plain value, or it has more values in it than *budget* has
            numbers.
    """
    next(budget)
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, BaseException):
        return ["exception", *(_plain(part, budget) for part in _parts_of(value))]
    if (enum := sys.modules.get("enum")) is not None and isinstance(value, enum.Enum):
        return ["enum", kind.__module__, kind.__qualname__, value.name]
    word = f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
    return [word, *(_plain(part, budget) for part in PLAIN[word](value))]


def _parts_of(error: BaseException) -> tuple[str, str, tuple[Any, ...], dict[str, Any]]:
    """Return module and name of the class of *error*, its arguments and attributes.

    ``__reduce__`` of its class is not called, only that of the builtin that it extends:
    the parent process does not call the class either.
    """
    kind = type(error)
    base: Any = next(one for one in kind.__mro__ if not one.__flags__ & HEAP_TYPE)
    _, args, *state = base.__reduce__(error)
    attributes = dict(state[0] or {}) if state else {}
    for one in kind.__mro__:
        slots = vars(one).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(error, name):
                attributes[name] = getattr(error, name)
    return kind.__module__, kind.__qualname__, args, attributes


def qualified_name(error: BaseException) -> str:
    """Return what ``otpy.exceptions.qualified_name`` does."""
    kind = type(error)
    module = kind.__module__
    is_short = module in ("builtins", "__main__", "__mp_main__")
    return kind.__qualname__ if is_short else f"{module}.{kind.__qualname__}"


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return ""


def shown(error: BaseException) -> str:
    """Return the ``repr`` of *error*, or the name of its class if that raises."""
    try:
        return repr(error)
    except BaseException:
        return f"{type(error).__name__}()"


def traceback_of(error: BaseException) -> str:
    """Return the traceback of *error* as text, or a line about it if that raises."""
    try:
        import traceback

        return "".join(traceback.format_exception(error))
    except BaseException:
        return f"{shown(error)}: its traceback could not be formatted\n"
