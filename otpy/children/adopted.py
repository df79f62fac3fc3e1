"""Children made of objects that know nothing of otpy: whatever has ``run()``, and perhaps ``stop()``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import attrs

from otpy.children.thread import Service, check_call, check_function, name_of
from otpy.context import Context
from otpy.exceptions import SpecError, show
from otpy.values import Value

PATH = "<adopt>"
"""Where an error is: its place in a tree is not known yet."""


class Runnable(Protocol):
    """What can be adopted."""

    def run(self) -> object:
        """Work until the end, or until stopped."""


Worker = TypeVar("Worker", bound=Runnable)


def adopt(factory: Callable[[], Worker], stop: Callable[[Worker], object] | None = None) -> Adopted:
    """Make a target for ``thread`` of an existing class, such as a subclass of ``threading.Thread``.

    Each incarnation is a fresh object from *factory*. It is made in the child's thread, and its ``run`` is called
    there: a ``threading.Thread`` is never started as such, so its ``name``, ``is_alive`` and ``join`` are of no use.
    What ``run`` raises is the crash of the child. Its code may use ``otpy.current()``.

    When the child is asked to stop, the object is stopped on a helper thread, once. That may happen before ``run`` has
    begun; then ``run`` is not called any more. An object whose ``run`` forgets an earlier stop, say by
    ``self.running = True`` on its first line, may miss one that comes at that very moment.

    Args:
        factory: Makes the object, without arguments: a class, or a function for one that needs arguments.
        stop: Called with the object, such as ``Server.close``; default: the object's own ``stop``, if it has one.
            It may block, and what it raises is logged.

    Returns:
        The target, a frozen value. With the option ``ready`` of ``thread``, the child is up when *factory* has
        returned; what *factory* raises is a failed start then.

    Raises:
        SpecError: *factory* or *stop* cannot be called like this, or *factory* is a class without ``run``.
    """
    check_function(PATH, "factory", factory, "a callable that makes a fresh object each time, such as its class")
    _check_class(factory)
    check_call(PATH, "factory", factory, (), "a callable without arguments; bind them with functools.partial")
    if stop is not None:
        check_function(PATH, "stop", stop, "a callable that takes the object, or None")
        check_call(PATH, "stop", stop, ("object",), "a callable that takes the object")
    return Adopted(factory, stop)


def _check_class(factory: Any) -> None:
    if not isinstance(factory, type):
        return
    if issubclass(factory, Service):
        raise SpecError(PATH, "factory", factory, "another class: thread() takes a Service as it is")
    if not callable(getattr(factory, "run", None)):
        raise SpecError(PATH, "factory", factory, "a class with a run method")


@attrs.frozen(repr=False, eq=False)
class Adopted(Value):
    """A target that makes an object, runs it, and has it stopped."""

    factory: Callable[[], Any]
    stop: Callable[[Any], object] | None

    @property
    def __name__(self) -> str:
        return name_of(self.factory)

    def __call__(self, ctx: Context) -> None:
        worker = self.factory()
        run, stop = _method(worker, "run"), self._stop_of(worker)
        if run is None:
            raise TypeError(f"{show(self.factory)} made {show(worker)}: expected an object with a run method")
        if stop is not None:
            ctx.on_stop(stop)
        ctx.ready()
        if ctx.running:  # or else a stop has overtaken the start, and run might never hear of it
            run()

    def _stop_of(self, worker: object) -> Callable[[], object] | None:
        return _method(worker, "stop") if self.stop is None else functools.partial(self.stop, worker)


def _method(worker: object, name: str) -> Callable[[], object] | None:
    method: Callable[[], object] | None = getattr(worker, name, None)
    if method is not None and not callable(method):
        raise TypeError(f"{show(worker)}.{name} is {show(method)}: expected a method")
    return method
