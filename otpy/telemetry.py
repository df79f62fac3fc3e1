"""How reports and escalations reach their handlers, each handler on a thread of its own. The only module that logs.

Laws:
1. A supervisor's thread only puts; it never calls a handler and never waits for one.
2. Each handler gets its items in order, and none is dropped: one that blocks for ever keeps what came after.
3. What a handler raises is logged, and its next item comes all the same.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import attrs
import structlog

from otpy import reports, threads
from otpy.abc import Puttable, ReportHandler
from otpy.exceptions import NotAlive, NotFound, show, traceback_of
from otpy.reports import Cause, Escalation, Report
from otpy.threads import Role

EVENTS = {
    # report: (log level, event)
    reports.Progress: ("info", "progress"),
    reports.ChildTerminated: ("error", "child_terminated"),
    reports.Stalled: ("error", "stalled"),
    reports.StartError: ("error", "start_error"),
    reports.ShutdownError: ("error", "shutdown_error"),
    reports.LimitReached: ("critical", "limit_reached"),
    reports.Unstopped: ("error", "unstopped"),
    reports.AutoShutdown: ("info", "auto_shutdown"),
    reports.StrayMessage: ("error", "stray_message"),
    reports.OutputLost: ("error", "output_lost"),
}


def logger(**bound: object) -> Any:
    """Return a structlog logger of otpy, bound to *bound*."""
    return structlog.get_logger("otpy", **bound)


def log_report(report: Report) -> None:
    """Write *report* to structlog. The start of a child by a call is only worth "debug" (OTP: since 28)."""
    level, event = EVENTS[type(report)]
    if isinstance(report, reports.Progress) and report.cause is Cause.CALL:
        level = "debug"
    getattr(logger(), level)(event, **_fields(report))


def _fields(report: Report) -> dict[str, object]:
    fields: dict[str, object] = {"path": report.path}
    if report.incarnation:
        fields["incarnation"] = report.incarnation
    if report.reason is not None:
        fields["reason"] = str(report.reason)
    if report.reason is not None and report.reason.traceback:
        fields["exception"] = report.reason.traceback.rstrip()
    if isinstance(report, reports.Unstopped | reports.Stalled):
        fields["stack"] = report.stack
    if isinstance(report, reports.LimitReached):
        fields["child"] = report.escalation.child
    if isinstance(report, reports.AutoShutdown):
        fields["child"] = report.child
    if isinstance(report, reports.StrayMessage):
        fields["item"] = show(report.item)
    if isinstance(report, reports.OutputLost):
        fields["file"] = report.file
    return fields


def complain(event: str, error: BaseException, **fields: object) -> None:
    """Log what user code raised where nobody waits for it. Never raises, even where the log is broken."""
    text = traceback_of(error)
    try:
        logger().error(event, exception=text.rstrip(), **fields)
    except BaseException:
        with contextlib.suppress(BaseException):
            sys.stderr.write(f"otpy: {event} {fields}\n{text}")


def call(handler: Callable[[Any], object], value: object) -> None:
    """Call *handler*; what it raises is logged."""
    try:
        handler(value)
    except BaseException as error:
        complain("handler_failed", error, handler=show(handler))


class Outlet:
    """A thread that calls a handler with one value after the other, in the order of ``send``.

    Attributes:
        send: Puts a value; None ends the thread.
    """

    def __init__(self, name: str, owner: object, handler: Callable[[Any], object]) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._handler = handler
        self.send = self._queue.put
        threads.spawn(self._run, name=name, role=Role.HELPER, purpose="calls handlers", owner=owner)

    def close(self) -> None:
        """End the thread when it has called all that is queued."""
        self.send(None)

    def _run(self) -> None:
        handler = self._handler
        while (value := self._queue.get()) is not None:
            try:
                handler(value)
            except BaseException as error:
                complain("handler_failed", error, handler=show(handler))
            del value  # an idle outlet must not keep the last report alive


@attrs.frozen(eq=False, repr=False)
class _Subscription:
    prefix: str
    handler: ReportHandler
    outlet: Outlet
    is_for_all: bool

    def wants(self, report: Report) -> bool:
        return self.is_for_all or report.path == self.prefix or report.path.startswith(self.prefix + "/")


def is_sink(value: object) -> bool:
    """Return whether reports can be sent to *value*."""
    return callable(value) or isinstance(value, Puttable)


def handler_of(sink: ReportHandler | Puttable) -> ReportHandler:
    """Return the callable that gives a report to *sink*: itself, or the ``put`` of a queue."""
    return sink if callable(sink) else sink.put


def _call_own(item: tuple[Callable[[Any], object], Any]) -> None:
    call(*item)


class Telemetry:
    """All handlers of one tree."""

    def __init__(self, root: str, owner: object, on_escalation: Callable[[Escalation], object] | None) -> None:
        self._root, self._owner, self._on_escalation = root, owner, on_escalation
        self._lock = threading.Lock()  # guards changes of the two lists; readers take the tuple as it is
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._is_closed = False
        self._escalations = self._open("escalations", _call_own)

    def _open(self, what: str, handler: Callable[[Any], object]) -> Outlet:
        return Outlet(f"{self._root} ({what})", self._owner, handler)

    def subscribe(self, prefix: str, sink: ReportHandler | Puttable, what: str = "reports") -> None:
        """Send all reports at or below the path *prefix* to *sink* from now on.

        Raises:
            NotAlive: The tree has ended.
        """
        handler = handler_of(sink)
        subscription = _Subscription(prefix, handler, self._open(what, handler), prefix == self._root)
        with self._lock:
            if not self._is_closed:
                self._subscriptions = (*self._subscriptions, subscription)
                return
        subscription.outlet.close()
        raise NotAlive(self._root)

    def unsubscribe(self, prefix: str, sink: ReportHandler | Puttable) -> None:
        """Send nothing more to *sink*; what is queued for it still comes.

        Raises:
            NotFound: It is not subscribed there.
        """
        handler = handler_of(sink)
        with self._lock:
            found = [one for one in self._subscriptions if one.prefix == prefix and one.handler == handler]
            if not found:
                raise NotFound(prefix, f"{show(sink)} is not subscribed")
            self._subscriptions = tuple(one for one in self._subscriptions if one is not found[0])
        found[0].outlet.close()

    def tell(self, report: Report) -> None:
        """Send *report* to everyone who wants it."""
        for subscription in self._subscriptions:
            if subscription.is_for_all or subscription.wants(report):  # most are, and that spares the call
                subscription.outlet.send(report)

    def tell_late(self, report: Report) -> None:
        """Send *report*, or, if the tree has ended meanwhile, hand it over here and now: nobody else would."""
        with self._lock:  # no outlet is closed between the look and the sending
            handlers = [one.handler for one in self._subscriptions if self._is_closed and one.wants(report)]
            if not self._is_closed:
                self.tell(report)
        for handler in handlers:
            call(handler, report)

    def escalate(self, own: Callable[[Escalation], object] | None, escalation: Escalation) -> None:
        """Call the supervisor's *own* handler, then the tree's."""
        for handler in (own, self._on_escalation):
            if handler is not None:
                self._escalations.send((handler, escalation))

    def run_soon(self, callback: Callable[[Any], object]) -> None:
        """Call *callback* on the escalations' thread: for the case that the system refuses a thread of its own.

        If the tree has ended meanwhile, call it here and now: nobody else would.
        """
        with self._lock:  # the outlet is not closed between the look and the sending
            if not self._is_closed:
                self._escalations.send((callback, None))
                return
        call(callback, None)

    def close(self) -> None:
        """End the outlets' threads once they have called all that is queued."""
        with self._lock:
            self._is_closed = True
        for outlet in (self._escalations, *(one.outlet for one in self._subscriptions)):
            outlet.close()
