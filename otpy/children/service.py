"""Service: the base class of children that have a life of their own.

All methods but ``stop`` run in the thread of the child; ``stop`` runs on a helper thread.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from otpy.arguments import check_call, check_method, check_result
from otpy.children.endings import reason_of
from otpy.exceptions import SpecError
from otpy.reports import ExitReason
from otpy.runtime.context import Context

NO_ASYNC_METHODS = "the methods of a Service are called, not awaited"
"""What an error says of a method that is async."""


class Service:
    """Live in four steps: init, run, stop, terminate.

    Pass a subclass to ``thread``. Each incarnation is a fresh object, made without
    arguments. ``self.ctx`` is there before ``init`` is called. (OTP: the callbacks of a
    behaviour.)
    """

    ctx: Context

    def init(self, *args: Any) -> None:
        """Prepare, with the arguments of ``thread``.

        The child is up when this returns. If this raises, the start has failed.
        """

    def run(self) -> None:
        """Work until ``self.ctx.running`` is false. A subclass must override this."""
        raise NotImplementedError

    def stop(self) -> None:
        """Wake ``run``, close what it waits for.

        Called on a helper thread when the child is asked to stop.
        """

    def terminate(self, reason: ExitReason) -> None:
        """Clean up.

        Called in the thread of the child after ``run``, however that ended, if ``init``
        had returned.

        Args:
            reason: Why the child ends.
        """


def is_service(target: object) -> TypeGuard[type[Service]]:
    """Whether *target* is a subclass of Service."""
    return isinstance(target, type) and issubclass(target, Service)


def check_service(path: str, target: type[Service], args: tuple[Any, ...]) -> None:
    """Refuse a class that could not live.

    Raises:
        SpecError: It lacks ``run``, cannot be made without arguments, or has a method
            that is async or does not take its arguments.
    """
    if target.run is Service.run:
        raise SpecError(path, "target", target, "a Service with a run method")
    without = "a Service that can be made without arguments; init gets them"
    check_call(path, "target", target, (), without)
    takes = "a Service whose init takes (*args)"
    check_method(path, "target", target, "init", args, expected=takes)
    has = "a Service with run(), stop(), terminate(reason)"
    for name, given in (("run", ()), ("stop", ()), ("terminate", ("reason",))):
        check_method(path, "target", target, name, given, expected=has)


def live(made_by: type[Service], args: tuple[Any, ...], ctx: Context) -> None:
    """Make a service and let it live once; in the thread of the child."""
    service: Any = made_by()
    service.ctx = ctx
    check_result(service.init, service.init(*args), NO_ASYNC_METHODS)
    if type(service).stop is not Service.stop:
        ctx.on_stop(service.stop)
    ctx.ready()
    try:
        check_result(service.run, service.run(), NO_ASYNC_METHODS)
    except BaseException as error:
        _terminate(service, reason_of(error, ctx))
        raise
    _terminate(service, reason_of(None, ctx))


def _terminate(service: Any, reason: ExitReason) -> None:
    check_result(service.terminate, service.terminate(reason), NO_ASYNC_METHODS)
