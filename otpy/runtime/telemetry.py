"""How reports and escalations reach their handlers. The only module that logs.

Laws:
1. A supervisor's thread only puts; it never calls a handler and never waits for one.
2. Each handler has a thread of its own, and its items come in order. One that blocks
   keeps what came after for itself, and holds up no other handler.
3. What a handler raises is logged, with the item that it was called with; its next item
   comes all the same. If the log fails, that goes to stderr. The same complaint about the
   same kind of item is made once in a minute, with the number of those in between.
4. What has not been handled at the end is counted.
5. A thread that others need (of a supervisor, an event loop, the programs of a tree) does
   not write to the log, which may be blocked: complaints of these have a thread, too.

Who runs what: a subscription has a thread that waits for reports (``Outlet``). An
escalation handler has a thread while there is something to call (``Line``). If the system
refuses that thread, the reserve of the tree does the work, or the next helper thread that
is free (``Helpers``).

Helper threads are never interrupted, so they may share a lock with supervisors. Children
are, so what they call here takes none.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import structlog

from otpy import reports
from otpy.abc import Puttable, ReportHandler
from otpy.arguments import check_result
from otpy.exceptions import NotAlive, NotFound, printable, show, traceback_of
from otpy.reports import Cause, Escalation, Report, stamp
from otpy.runtime import threads
from otpy.runtime.threads import Role
from otpy.runtime.waiting import Door

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
    reports.SignalStop: ("info", "signal_stop"),
}


def logger(**bound: object) -> Any:
    """Return a structlog logger of otpy, bound to *bound*."""
    return structlog.get_logger("otpy", **bound)


_pens: dict[int, threading.RLock] = {}  # by the numbers of the threads that write


def _pen() -> threading.RLock:
    """Return the lock that this thread holds while it writes: its own, nobody waits."""
    number = threading.get_ident()
    return _pens.get(number) or _pens.setdefault(number, threading.RLock())


def write(level: str, event: str, **fields: object) -> None:
    """Write to the log. Nothing is forked meanwhile."""
    with _pen():
        getattr(logger(), level)(event, **fields)


FORK = 1.0
"""How many seconds a fork waits, altogether, for threads that write to the log."""

_held: dict[int, list[threading.RLock]] = {}  # by the numbers of the threads that fork


def _before_fork() -> None:
    """Wait until no thread of ours is inside the log.

    The locks that it holds there would stay locked in the forked process for ever.
    """
    deadline = time.monotonic() + FORK
    tried: set[threading.RLock] = set()
    held = _held[threading.get_ident()] = []
    while new := [pen for pen in list(_pens.values()) if pen not in tried]:
        for pen in new:
            tried.add(pen)
            if pen.acquire(timeout=max(0.0, deadline - time.monotonic())):
                held.append(pen)


def _after_fork() -> None:
    for pen in _held.pop(threading.get_ident()):
        pen.release()


def _after_fork_in_child() -> None:
    _held.clear()
    _pens.clear()  # the threads that have them do not exist here


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )


def log_report(report: Report) -> None:
    """Write *report* to structlog. The start of a child by a call is only worth "debug" (OTP: since 28)."""
    level, event = EVENTS[type(report)]
    if isinstance(report, reports.Progress) and report.cause is Cause.CALL:
        level = "debug"
    write(level, event, **_fields(report))


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
    if isinstance(report, reports.SignalStop):
        fields["detail"] = report.detail
    return _clean(fields)


def _clean(fields: dict[str, object]) -> dict[str, object]:
    """Return *fields* with nothing in their texts that a terminal would obey: some of them come from children."""
    return {
        name: printable(value) if isinstance(value, str) else value
        for name, value in fields.items()
    }


QUIET = 60.0
"""For so many seconds a complaint that says the same as one before is only counted."""

MANY = 1000
"""So many kinds of complaints are remembered."""


@attrs.define(eq=False)
class _Told:
    """A complaint that has been told.

    Attributes:
        event, fields: What it said.
        at: When, monotonic.
        again: How often it would have been told since.
    """

    event: str
    fields: dict[str, object]
    at: float
    again: int = 0


_told: dict[tuple[object, ...], _Told] = {}


def complain(event: str, error: BaseException, *, given: object = None, **fields: object) -> None:
    """Log what user code raised where no caller waits for it. Never raises.

    Args:
        event: What has happened.
        error: What was raised.
        given: What that code was called with. It is lost, so it is logged as well.
        fields: What else is known.
    """
    try:
        kind = (event, id(type(error)), _place(error), id(type(given)), *map(str, fields.values()))
        again = _count(
            kind, event, fields | ({} if given is None else {"given": type(given).__name__})
        )
        if again is not None:
            _tell(
                event,
                traceback_of(error),
                _words(given),
                fields | ({"again": again} if again else {}),
            )
    except BaseException:  # no memory, or a thread's last moments: there is no place to say it
        return


def _complain(complaint: tuple[str, BaseException, dict[str, object]]) -> None:
    event, error, fields = complaint
    complain(event, error, **fields)


def _count(kind: tuple[object, ...], event: str, fields: dict[str, object]) -> int | None:
    """Return how often it was only counted since it was logged; None: count it now."""
    now, before = time.monotonic(), _told.get(kind)
    if before is not None and now - before.at < QUIET:
        before.again += 1  # two threads may count as one here, and no decision hangs on it
        return None
    if len(_told) >= MANY:
        _told.clear()
    _told[kind] = _Told(event, fields, now)
    return before.again if before is not None else 0


def take_counts() -> list[str]:
    """Return the complaints that were only counted, in words, and forget them."""
    told = [one for kind in list(_told) if (one := _told.pop(kind, None)) is not None and one.again]
    return [f"{one.event} {show(one.fields)}: {one.again} times" for one in told]


def forget_complaints() -> None:
    """Log the next complaint, whatever was logged before."""
    _told.clear()


def _tell(event: str, text: str, given: tuple[str, str], fields: dict[str, object]) -> None:
    line, rest = given
    said = {**fields, **({"given": line} if line else {})}
    try:
        write("error", event, **_clean(said), exception=text.rstrip())
    except BaseException:
        mutter(
            f"otpy: {event} {said}\n{text}" + (f"it was called with this:\n{rest}" if rest else "")
        )


def mutter(text: str) -> None:
    """Write *text* to stderr, if there is one, in ASCII."""
    with contextlib.suppress(BaseException), _pen():
        sys.stderr.write(text.encode("ascii", "backslashreplace").decode())
        sys.stderr.flush()


def mutter_at_once(text: str) -> None:
    """Write *text* to stderr, if that can take it at once.

    Takes no lock, so a signal handler may call it.
    """
    with contextlib.suppress(BaseException):
        file = sys.stderr.fileno()
        if select.select((), (file,), (), 0)[1]:
            os.write(file, text.encode("ascii", "backslashreplace")[: select.PIPE_BUF])


def _words(given: object) -> tuple[str, str]:
    """Return the item of a handler in words: one line, and the traceback that it has."""
    if given is None:
        return "", ""
    if not isinstance(given, Report) or type(given) not in EVENTS:
        return printable(str(given)) if isinstance(given, Escalation) else show(given), ""
    fields = _fields(given)
    more = [str(fields.pop(name)) for name in ("exception", "stack") if name in fields]
    line = " ".join(
        [EVENTS[type(given)][1], *(f"{name}={value}" for name, value in fields.items())]
    )
    return printable(line), "".join(f"{one.rstrip()}\n" for one in more)


def _place(error: BaseException) -> tuple[str, int] | None:
    """Return the line that raised *error*. Runs no code of its class."""
    last = vars(BaseException)["__traceback__"].__get__(error)
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last and (last.tb_frame.f_code.co_filename, last.tb_lineno)


def call(handler: Callable[[Any], object], value: object) -> None:
    """Call *handler*; what it raises is logged."""
    try:
        check_result(handler, handler(value))
    except BaseException as error:
        complain("handler_failed", error, given=value, handler=show(handler))


class Helpers:
    """Runs jobs of user code for one tree, each on a thread of its own.

    If the system refuses a thread, the job waits in ``_refused`` for the first helper
    thread that is free. One is there from the beginning for that, the *reserve*.

    Attributes:
        is_closed: Whether the tree has ended: the reserve has gone, or is about to.
    """

    def __init__(self, root: str, owner: object) -> None:
        self._owner = owner
        self._refused: collections.deque[tuple[Callable[[], object], str, Role]] = (
            collections.deque()
        )
        self._bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.is_closed = False
        self._start(self._wait, f"{root} (reserve)", Role.HANDLER)

    def run(self, job: Callable[[], object], name: str, role: Role = Role.HANDLER) -> bool:
        """Have *job* called, which must not raise; called on any thread, takes no lock.

        Returns:
            Whether it has a thread; else it waits for one.
        """
        try:
            self._start(functools.partial(self._run, job), name, role)
        except (RuntimeError, MemoryError):  # no more threads, or the interpreter exits
            self._refused.append((job, name, role))
            self._bell.put(True)
            return False
        return True

    def retry(self) -> bool:
        """Try to start threads for what waits; return whether nothing waits any more."""
        with contextlib.suppress(IndexError):  # another thread was faster
            while self._refused:
                if not self.run(*self._refused.popleft()):
                    return False
        return True

    def work_off(self) -> None:
        """Do what waits; on a helper thread that has nothing else to do."""
        forks = threads.forks
        with contextlib.suppress(IndexError):
            while self._refused and threads.forks == forks:
                contextvars.copy_context().run(
                    self._refused.popleft()[0]
                )  # it may say whose code it is

    def close(self) -> None:
        """End the reserve when it has done what waits."""
        self.is_closed = True
        self._bell.put(False)

    def _start(self, target: Callable[[], object], name: str, role: Role) -> None:
        purpose = "calls handlers" if role is Role.HANDLER else "calls on_stop"
        threads.spawn(target, name=name, role=role, purpose=purpose, owner=self._owner)

    def _run(self, job: Callable[[], object]) -> None:
        forks = threads.forks
        job()
        if threads.forks == forks:
            self.work_off()

    def _wait(self) -> None:
        forks = threads.forks
        while threads.forks == forks and self._bell.get():
            self.work_off()


class Outlet:
    """A thread that calls a handler with one value after the other, in the order of ``send``.

    Attributes:
        send: Puts a value; None ends the thread.
        has_ended: Whether it has called all that it will.
    """

    def __init__(
        self, name: str, owner: object, handler: Callable[[Any], object], helpers: Helpers
    ) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._handler, self._helpers = handler, helpers
        self._is_closed = self.has_ended = False
        self.send = self._queue.put
        self._name, self._owner = name, owner

    def begin(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system has no more threads to give.
        """
        threads.spawn(
            self._run,
            name=self._name,
            role=Role.HANDLER,
            purpose="calls handlers",
            owner=self._owner,
        )

    def close(self) -> None:
        """End the thread when it has called all that is queued. Idempotent."""
        if not self._is_closed:
            self.send(None)
            self._is_closed = True  # not before: an exception in between would lose the order

    def waiting(self) -> int:
        """Return how many values have not been handled, once it is closed.

        The mark of the end is in the queue, and counts for the value in work, which is not.
        """
        return 0 if self.has_ended else self._queue.qsize()

    def give_up(self) -> int:
        """Take back what is queued; return how many have not been handled."""
        if self.has_ended:
            return 0
        lost = 1  # the one in work: a thread that has nothing to do has ended long ago
        with contextlib.suppress(queue.Empty):
            while True:
                lost += self._queue.get_nowait() is not None
        self.send(None)
        return lost

    def _run(self) -> None:
        handler, forks = self._handler, threads.forks
        while (value := self._queue.get()) is not None:
            try:
                check_result(handler, handler(value))
            except BaseException as error:
                complain("handler_failed", error, given=value, handler=show(handler))
            if threads.forks != forks:
                return
            del value  # an idle outlet must not keep the last report alive
        self.has_ended = True
        self._helpers.work_off()


@attrs.define(eq=False)
class Line:
    """What a handler is still to be called with; there is one while a helper thread works it off.

    Attributes:
        handler: Called with each value.
        values: In order.
        is_calling: Whether it is being called now.
    """

    handler: Callable[[Any], object]
    values: collections.deque[Any] = attrs.field(factory=collections.deque)
    is_calling: bool = False

    def waiting(self) -> int:
        """Return how many values have not been handled."""
        return len(self.values) + self.is_calling


@attrs.frozen(eq=False, repr=False)
class _Subscription:
    prefix: str
    handler: ReportHandler
    outlet: Outlet
    is_for_all: bool

    def wants(self, report: Report) -> bool:
        return (
            self.is_for_all
            or report.path == self.prefix
            or report.path.startswith(self.prefix + "/")
        )


def handler_of(sink: ReportHandler | Puttable) -> ReportHandler:
    """Return the callable that gives a report to *sink*: itself, or the ``put`` of a queue."""
    return sink if callable(sink) else sink.put


class Telemetry:
    """All handlers of one tree.

    Attributes:
        helpers: Runs what has no thread yet.
    """

    def __init__(
        self,
        root: str,
        owner: object,
        on_escalation: Callable[[Escalation], object] | None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._owner, self._on_escalation, self._wall = root, owner, on_escalation, wall
        self._lock = Door(
            threading.Lock()
        )  # or a late report may come after the end; taken by supervisors only
        self._subscribed: dict[_Subscription, None] = {}
        self._subscriptions: tuple[_Subscription, ...] = ()  # the same, for readers
        self._is_closed = self._is_given_up = False
        self._outlets: dict[
            Outlet, None
        ] = {}  # also those of handlers that have unsubscribed, until they have ended
        self._line_lock = Door(
            threading.Lock()
        )  # guards the lines; taken by supervisors and helpers only
        self._lines: dict[int, Line] = {}
        self.helpers = Helpers(root, owner)

    def subscribe(self, prefix: str, sink: ReportHandler | Puttable, what: str = "reports") -> None:
        """Send all reports at or below the path *prefix* to *sink* from now on.

        Raises:
            NotAlive: The tree has ended.
        """
        handler = handler_of(sink)
        outlet = Outlet(f"{self._root} ({what})", self._owner, handler, self.helpers)
        subscription = _Subscription(prefix, handler, outlet, prefix == self._root)
        # No lock: this is a thread of the program, in which a signal handler or another thread may raise, and the lock
        # would stay locked for the supervisors. The root may close all just now: it says so first, then closes those
        # that it finds. So if it does not find this one, this one finds it closed.
        try:
            self._outlets[outlet] = None
            outlet.begin()
            self._subscribed[subscription] = None
            self._publish()
            self._check_open()
        except BaseException:
            self._drop(subscription)
            self._outlets.pop(outlet, None)
            raise
        for one in [one for one in list(self._outlets) if one.has_ended]:
            self._outlets.pop(one, None)

    def unsubscribe(self, prefix: str, sink: ReportHandler | Puttable) -> None:
        """Send nothing more to *sink*; what is queued for it still comes.

        Raises:
            NotFound: It is not subscribed there.
        """
        handler = handler_of(sink)
        found = [
            one for one in self._subscriptions if one.prefix == prefix and one.handler == handler
        ]
        if not found:
            raise NotFound(prefix, f"{show(sink)} is not subscribed")
        self._drop(found[0])

    def _check_open(self) -> None:
        if self._is_closed:
            raise NotAlive(self._root)

    def _drop(self, subscription: _Subscription) -> None:
        self._subscribed.pop(subscription, None)
        self._publish()
        subscription.outlet.close()

    def _publish(self) -> None:
        """Show readers who is subscribed. Each thread looks again after its own step: what is shown last is true."""
        while self._subscriptions != (now := tuple(self._subscribed)):
            self._subscriptions = now

    def tell(self, report: Report) -> None:
        """Write the time into *report*, which is new, and send it to all who have subscribed to its path."""
        stamp(report, self._wall())  # a changed copy would cost ten times as much
        for subscription in self._subscriptions:
            if subscription.is_for_all or subscription.wants(
                report
            ):  # most are, and that spares the call
                subscription.outlet.send(report)

    def tell_late(self, report: Report) -> None:
        """Send *report*; if the tree has ended meanwhile, on a thread made for it."""
        stamp(report, self._wall())
        with self._lock:  # no outlet is closed between the look and the sending
            handlers = [
                one.handler for one in self._subscriptions if self._is_closed and one.wants(report)
            ]
            if not self._is_closed:
                self.tell(report)
        for handler in handlers:
            self._enqueue(handler, report, f"{self._root} (reports)")

    def escalate(self, own: Callable[[Escalation], object] | None, escalation: Escalation) -> None:
        """Have the supervisor's *own* handler called, and the tree's: neither waits for the other."""
        if own is not None:
            self._enqueue(own, escalation, f"{escalation.path} (on_escalation)")
        if self._on_escalation is not None:
            self._enqueue(self._on_escalation, escalation, f"{self._root} (on_escalation)")

    def complain(self, event: str, error: BaseException, **fields: object) -> None:
        """Have ``complain`` called on a helper thread. Never blocks or raises.

        For threads that others need: the log may be blocked.
        """
        with contextlib.suppress(Exception):  # no memory
            self._enqueue(_complain, (event, error, fields), f"{self._root} (complaints)")

    def close(self) -> None:
        """End the outlets' threads once they have called all that is queued."""
        with self._lock:
            self._is_closed = True
            for outlet in list(self._outlets):
                outlet.close()
        self.helpers.close()

    def undelivered(self) -> int:
        """Return how many escalations and reports have not been handled, once it is closed."""
        # no lock: a signal handler may raise here, and leave it locked for the helpers
        lines = sum(line.waiting() for line in list(self._lines.values()))
        return lines + sum(outlet.waiting() for outlet in list(self._outlets))

    def give_up(self) -> int:
        """Take back what has not been handled; the handlers end with what they are at.

        Returns:
            How much it is; 0 if that has been asked before.
        """
        if self._is_given_up:
            return 0
        self._is_given_up = True
        with self._line_lock:
            lost = sum(one.waiting() for one in self._lines.values())
            for line in self._lines.values():
                line.values.clear()
        return lost + sum(one.give_up() for one in list(self._outlets))

    def _enqueue(self, handler: Callable[[Any], object], value: object, name: str) -> None:
        """Have *handler* called with *value*, after what came before.

        The key is the number of the object, so no code of its class runs here. No other
        object has that number as long as the line holds this one.

        Args:
            name: Of the thread, if one must be started.
        """
        with self._line_lock:
            if (line := self._lines.get(id(handler))) is not None:
                line.values.append(value)
                return
            line = self._lines[id(handler)] = Line(handler)
            line.values.append(value)
        self.helpers.run(functools.partial(self._work_off, line), name)

    def _work_off(self, line: Line) -> None:
        forks = threads.forks
        while threads.forks == forks and (taken := self._take(line)):
            call(line.handler, taken.pop())

    def _take(self, line: Line) -> list[Any]:
        """Return the next value in a list; if there is none, the line is over."""
        with self._line_lock:
            line.is_calling = bool(line.values)
            if line.values:
                return [line.values.popleft()]
            del self._lines[id(line.handler)]
            return []
