"""Children made of objects that know nothing of otpy, with ``run()`` and perhaps ``stop()``.

The object is made and run in the thread of the child, and stopped on a helper thread.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from otpy.arguments import (
    USE_COROUTINE,
    check_call,
    check_function,
    check_handler,
    check_method,
    check_result,
)
from otpy.children.names import name_of
from otpy.children.service import Service
from otpy.exceptions import SpecError, show
from otpy.runtime.context import Context
from otpy.values import Value, value

PATH = "<adopt>"
"""The path that an error names: the place in a tree is not known yet."""


class Runnable(Protocol):
    """An object that can be adopted."""

    def run(self) -> object:
        """Work until the work is done, or until the object is stopped."""


Worker = TypeVar("Worker", bound=Runnable)


def adopt(factory: Callable[[], Worker], stop: Callable[[Worker], object] | None = None) -> Adopted:
    """Make a target for ``thread`` of an existing class, such as a ``threading.Thread``.

    Each incarnation is a fresh object from *factory*. It is made in the thread of the
    child, and its ``run`` is called there. A ``threading.Thread`` is never started as
    such: its ``name``, ``is_alive`` and ``join`` are of no use. A
    ``multiprocessing.Process`` is refused: its ``run`` would not be in a process of its
    own. An exception of ``run`` is the crash of the child. Its code may use
    ``otpy.current()``.

    When the child is asked to stop, the object is stopped on a helper thread, once. That
    may happen before ``run`` has begun; then ``run`` is not called any more. A ``run``
    that forgets an earlier stop, say by ``self.running = True`` on its first line, may
    miss a stop that comes at that very moment.

    Args:
        factory: Makes the object, without arguments: a class, or a function for a class
            that needs arguments.
        stop: Called with the object, such as ``Server.close``; default: the object's own
            ``stop``, if it has one. It may block. An exception of it is logged.

    Returns:
        The target, a frozen value. With the option ``ready`` of ``thread``, the child is
        up when *factory* has returned. An exception of *factory* is a failed start then.

    Raises:
        SpecError: *factory* or *stop* cannot be called like this; or *factory* is a
            class of processes, or one without ``run``, or with a ``run`` or ``stop``
            that is async or takes arguments.
    """
    made = factory.func if isinstance(factory, functools.partial) else factory
    if isinstance(made, type):
        _check_class(made, stops=stop is None)
    else:
        check_function(
            PATH,
            "factory",
            factory,
            "a callable that makes a fresh object each time, such as its class",
        )
    check_call(
        PATH,
        "factory",
        factory,
        (),
        "a callable without arguments; bind them with functools.partial",
    )
    if stop is not None:
        check_handler(PATH, "stop", stop, ("object",), "a callable that takes the object, or None")
    return Adopted(factory, stop)


def _check_class(made: type, *, stops: bool) -> None:
    if issubclass(made, Service):
        raise SpecError(PATH, "factory", made, "another class: thread() takes a Service as it is")
    if _is_process(made):
        raise SpecError(PATH, "factory", made, NO_PROCESS)
    if not callable(getattr(made, "run", None)):
        raise SpecError(PATH, "factory", made, "a class with a run method")
    expected = "a class whose run and stop are plain methods without arguments"
    for name in ("run", "stop") if stops else ("run",):
        check_method(PATH, "factory", made, name, (), expected=expected)


NO_PROCESS = (
    "no multiprocessing.Process, whose run() would be in a thread here: "
    "give a function to process()"
)
"""What an error says of a class of processes."""


def _is_process(made: type) -> bool:
    """Whether *made* is a class of processes.

    If ``multiprocessing`` has not been imported, no class is one.
    """
    processes: Any = sys.modules.get("multiprocessing.process")
    return processes is not None and issubclass(made, processes.BaseProcess)


@value
class Adopted(Value):
    """A target that makes an object, runs it, and has it stopped."""

    factory: Callable[[], Any]
    stop: Callable[[Any], object] | None

    @property
    def __name__(self) -> str:
        return name_of(self.factory)

    def __call__(self, ctx: Context) -> None:
        worker = self.factory()
        check_result(self.factory, worker, USE_COROUTINE)
        if _is_process(type(worker)):
            raise TypeError(f"{show(self.factory)} made {show(worker)}: expected {NO_PROCESS}")
        run, stop = _method(worker, "run"), self._stop_of(worker)
        if run is None:
            raise TypeError(
                f"{show(self.factory)} made {show(worker)}: expected an object with a run method"
            )
        if stop is not None:
            ctx.on_stop(stop)
        ctx.ready()
        # A stop may have overtaken the start: then ``stop`` was called before ``run``,
        # and ``run`` might never learn of it.
        if ctx.running:
            check_result(run, run(), USE_COROUTINE)

    def _stop_of(self, worker: object) -> Callable[[], object] | None:
        return (
            _method(worker, "stop") if self.stop is None else functools.partial(self.stop, worker)
        )


def _method(worker: object, name: str) -> Callable[[], object] | None:
    method: Callable[[], object] | None = getattr(worker, name, None)
    if method is not None and not callable(method):
        raise TypeError(f"{show(worker)}.{name} is {show(method)}: expected a method")
    return method
