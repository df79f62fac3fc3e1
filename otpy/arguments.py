"""What may be given as a function: targets, handlers, callbacks. One place decides, for
all of otpy.

Laws:
1. otpy calls what it is given, and awaits nothing. So async functions, generator
   functions and classes are refused when they are given: to call one runs nothing.
2. A signature is read as the callable has it. ``__wrapped__`` is not followed: a
   decorator may call what it wraps with other arguments. What cannot be read passes.
3. Some functions only turn out to be async when they are called: a lambda, a wrapper.
   ``check_result`` closes the coroutine and raises a TypeError that names the function.

Pure: no function here calls what it looks at.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeGuard

from otpy.exceptions import SpecError, show

USE_COROUTINE = "use coroutine()"
"""What to do with an async target."""

USE_ASYNCIO = "call asyncio.run() in a plain function"
"""The same, where no coroutine() can take its place."""

NO_AWAIT = "nothing awaits it here; asyncio.run_coroutine_threadsafe() hands it to an event loop"
"""What to do with an async handler."""

_KINDS: tuple[tuple[Callable[[object], bool], str], ...] = (
    (inspect.iscoroutinefunction, "an async function"),
    (inspect.isgeneratorfunction, "a generator function"),
    (inspect.isasyncgenfunction, "an async generator function"),
)

_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})

_AS_WRITTEN: dict[str, Any] = {"follow_wrapped": False}
# an annotation may be a name that only type checkers know
if sys.version_info >= (3, 14):
    import annotationlib

    _AS_WRITTEN["annotation_format"] = annotationlib.Format.FORWARDREF


# When it is given


def check_function(
    path: str, field: str, value: Any, expected: str, instead: str = USE_COROUTINE
) -> None:
    """Refuse a *value* that cannot be called, or whose call would run nothing.

    Args:
        path, field, expected: Of the SpecError.
        instead: What to do with an async function.

    Raises:
        SpecError: It is refused.
    """
    if why := why_not(value, expected, instead):
        raise SpecError(path, field, value, why)


def check_call(
    path: str,
    field: str,
    value: Callable[..., object],
    args: tuple[Any, ...],
    expected: str,
    *,
    kwargs: Mapping[str, Any] = _NO_KEYWORDS,
) -> None:
    """Refuse a *value* that does not take *args* and *kwargs*.

    Raises:
        SpecError: It is refused.
    """
    if why := why_not_with(value, args, kwargs):
        raise SpecError(path, field, value, f"{expected} ({why})")


def check_handler(path: str, field: str, value: Any, args: tuple[Any, ...], expected: str) -> None:
    """Refuse a *value* that cannot be a handler, which is called with *args* and not
    awaited.

    Raises:
        SpecError: It is refused.
    """
    if why := why_no_handler(value, args, expected):
        raise SpecError(path, field, value, why)


def why_no_handler(value: Any, args: tuple[Any, ...], expected: str) -> str:
    """Return what would be right in place of *value*; "" if it can be a handler that is
    called with *args*.
    """
    if why := why_not(value, expected, NO_AWAIT):
        return why
    why = why_not_with(value, args)
    return f"{expected} ({why})" if why else ""


def check_sink(path: str, field: str, value: Any) -> None:
    """Refuse a *value* that cannot take reports: a callable, or anything with ``put``.

    Raises:
        SpecError: It is refused.
    """
    put = getattr(value, "put", None)
    if callable(value) or not callable(put):
        check_handler(
            path, field, value, ("report",), "a callable that takes a report, or an object with put"
        )
    elif is_async(put):
        advice = "lambda report: loop.call_soon_threadsafe(queue.put_nowait, report)"
        raise SpecError(
            path,
            field,
            value,
            f"an object whose put is no async function; for an asyncio.Queue: {advice}",
        )
    elif why := why_no_handler(put, ("report",), "an object whose put takes a report"):
        raise SpecError(path, field, value, why)


def check_method(
    path: str, field: str, cls: type, name: str, args: tuple[Any, ...], *, expected: str
) -> None:
    """Refuse a class *cls* whose method *name* is async, or does not take *args*.

    Methods that are no plain functions, such as descriptors, pass.

    Raises:
        SpecError: It is refused.
    """
    method = inspect.getattr_static(cls, name, None)
    given = args if isinstance(method, staticmethod) else (cls, *args)
    function = method.__func__ if isinstance(method, staticmethod | classmethod) else method
    if isinstance(function, types.FunctionType) and (
        why := _kind_of(function) or why_not_with(function, given)
    ):
        raise SpecError(path, field, cls, f"{expected} ({name}: {why})")


def why_not(value: Any, expected: str, instead: str) -> str:
    """Return what would be right in place of *value*; "" if it is a function that runs
    when it is called.
    """
    if not callable(value):
        return expected
    function = _inside(value)
    if isinstance(function, type):
        advice = (
            "; thread(adopt(…)) calls the run() of one"
            if callable(getattr(function, "run", None))
            else ""
        )
        return f"a function: to call this class would only make an object{advice}"
    kind = _kind_of(function)
    advice = f"; {instead}" if "async" in kind else ""
    return f"a plain function: calling {kind} would run nothing{advice}" if kind else ""


def is_async(value: object) -> bool:
    """Whether *value* is an async function, wraps one, or is an object whose
    ``__call__`` is one.
    """
    function = _inside(value)
    try:
        wrapped = inspect.unwrap(function)
    except ValueError:  # it wraps itself
        wrapped = function
    return any("async function" in _kind_of(one) for one in (function, wrapped))


def _inside(value: Any) -> Any:
    """Return what partials call in the end."""
    while isinstance(value, functools.partial):
        value = value.func
    return value


def _kind_of(function: object) -> str:
    """Return what kind of function this is, if its call runs nothing; else ""."""
    looked_at = [function]
    # raised by an object that does not like to be looked at
    with contextlib.suppress(Exception):
        if not isinstance(function, types.FunctionType):
            looked_at.append(getattr(type(function), "__call__", None))  # noqa: B004
        return next((kind for one in looked_at for is_kind, kind in _KINDS if is_kind(one)), "")
    return ""


def why_not_with(
    value: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any] = _NO_KEYWORDS
) -> str:
    """Return why *value* cannot be called with *args* and *kwargs*; "" if it can, or if
    its signature is unknown.
    """
    try:
        signature = inspect.signature(value, **_AS_WRITTEN)
    # A builtin without a signature, or an object that raises when it is inspected.
    except Exception:
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""


# When it has been called


def check_result(function: object, result: object, instead: str = NO_AWAIT) -> None:
    """Raise if *function* has returned something that has not run yet, such as a
    coroutine; close that.

    Args:
        instead: What to do with an async function.

    Raises:
        TypeError: That is so.
    """
    if result is None or not (kind := _unrun(result)):
        return
    if kind in ("a coroutine", "a generator"):
        # one that is not Python's own may refuse it
        with contextlib.suppress(Exception):
            result.close()  # type: ignore[attr-defined]
    advice = "nothing of it has run" if "generator" in kind else instead
    raise TypeError(f"{show(function)} returned {kind}: {advice}")


def is_coroutine(result: object) -> TypeGuard[Coroutine[Any, Any, object]]:
    """Whether *result* is a coroutine, of Python or made by a compiler; unlike
    isinstance this runs no code of it.
    """
    return issubclass(type(result), Coroutine)


def _unrun(result: Any) -> str:
    """Return what *result* is, if nothing of it has run; else "". Only its type is
    asked, and runs no code.
    """
    kind = type(result)
    if kind is types.CoroutineType:
        return "a coroutine" if inspect.getcoroutinestate(result) == inspect.CORO_CREATED else ""
    if kind is types.GeneratorType:
        return "a generator" if inspect.getgeneratorstate(result) == inspect.GEN_CREATED else ""
    if kind is types.AsyncGeneratorType:
        return "an async generator"
    if is_coroutine(result):
        return "a coroutine"
    is_awaitable = hasattr(kind, "__await__") and not any(
        hasattr(kind, mark) for mark in _RUNS_BY_ITSELF
    )
    return "an awaitable" if is_awaitable else ""


_RUNS_BY_ITSELF = ("done", "addCallback", "future")
"""What awaitables have whose work goes on whether or not they are awaited: futures and
tasks, of asyncio and others.
"""
