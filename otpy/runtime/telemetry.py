"""How reports and escalations reach their handlers.

Laws:
1. A supervisor's thread only puts. It calls no handler and waits for none.
2. Each handler has a thread of its own, and its items come in order. A handler that
   blocks delays its own items, and no other handler.
3. An exception of a handler is logged, with the item that it was called with. Its next
   item comes all the same.
4. The items that have not been handled at the end are counted.
5. A thread that others need (of a supervisor, an event loop, the programs of a tree) does
   not write to the log, which may be blocked: its complaints have a thread, too.

A subscription has a thread that waits for reports (``Outlet``). An escalation handler has
a thread while there is something to call (``Line``). If the system refuses that thread,
the reserve of the tree does the work, or the next helper thread that is free
(``Helpers``).

Helper threads are never interrupted, so they may share a lock with supervisors. Children
are interrupted, so the methods that they call take no lock.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

from otpy.abc import Puttable, ReportHandler
from otpy.arguments import check_result
from otpy.exceptions import NotAlive, NotFound, show
from otpy.reports import Escalation, Report, stamp
from otpy.runtime import threads
from otpy.runtime.log import complain
from otpy.runtime.threads import Role
from otpy.runtime.waiting import Door
from otpy.values import running


def call(handler: Callable[[Any], object], value: object) -> None:
    """Call *handler* with *value*; log its exception."""
    try:
        check_result(handler, handler(value))
    except BaseException as error:
        complain("handler_failed", error, given=value, handler=show(handler))


def _complain(complaint: tuple[str, BaseException, dict[str, object]]) -> None:
    event, error, fields = complaint
    complain(event, error, **fields)


class Helpers:
    """Runs jobs of user code for one tree, each on a thread of its own.

    If the system refuses a thread, the job waits in ``_refused`` for the first helper
    thread that is free. One exists from the beginning for that, the *reserve*.

    Attributes:
        is_closed: Whether the tree has ended: the reserve has ended, or is about to.
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
        """Have *job* called. Any thread may call this; it takes no lock.

        Args:
            job: Must not raise.
            name, role: Of its thread.

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
        """Try to start threads for the jobs that wait.

        Return whether none waits any more.
        """
        with contextlib.suppress(IndexError):  # another thread was faster
            while self._refused:
                if not self.run(*self._refused.popleft()):
                    return False
        return True

    def work_off(self) -> None:
        """Do the jobs that wait; on a helper thread that has nothing else to do."""
        forks = threads.forks
        with contextlib.suppress(IndexError):
            while self._refused and threads.forks == forks:
                # in a context of its own: a job may set whose code it is
                contextvars.copy_context().run(self._refused.popleft()[0])

    def close(self) -> None:
        """End the reserve when it has done the jobs that wait."""
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
        has_ended: Whether it has handled all values that it will.
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
        """End the thread when it has handled all values that are queued. Idempotent."""
        if not self._is_closed:
            # In the other order, an exception between the two lines would leave an
            # outlet that seems to be closed, and whose thread never ends.
            self.send(None)
            self._is_closed = True

    def waiting(self) -> int:
        """Return how many values have not been handled, once it is closed.

        The value in work is not in the queue. The mark of the end is, and counts for it.
        """
        return 0 if self.has_ended else self._queue.qsize()

    def give_up(self) -> int:
        """Take back the values that are queued.

        Return how many have not been handled.
        """
        if self.has_ended:
            return 0
        lost = 1  # the one in work: a thread without one has ended long ago
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


@running
class Line:
    """The values that wait for a handler. It exists while a helper thread works it off.

    Attributes:
        handler: Called with each value.
        values: The values that wait, in order.
        is_calling: Whether the handler is being called now.
    """

    handler: Callable[[Any], object]
    values: collections.deque[Any] = attrs.field(factory=collections.deque)
    is_calling: bool = False

    def waiting(self) -> int:
        """Return how many values have not been handled."""
        return len(self.values) + self.is_calling


@running(frozen=True)
class _Subscription:
    """A handler that gets the reports at or below a path.

    Attributes:
        prefix: The path.
        handler: Called with each report.
        outlet: Its thread.
        is_for_all: Whether the path is that of the root.
    """

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
    """Return the callable that gives a report to *sink*: itself, or the ``put`` of a
    queue.
    """
    return sink if callable(sink) else sink.put


class Telemetry:
    """All handlers of one tree.

    The thread of a supervisor calls ``tell``, ``escalate`` and ``complain``; the root's
    calls ``close``. Callers subscribe on their own threads. Any thread calls the rest.

    Attributes:
        helpers: Runs jobs of user code, each on a thread.
    """

    def __init__(
        self,
        root: str,
        owner: object,
        on_escalation: Callable[[Escalation], object] | None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._owner, self._on_escalation, self._wall = root, owner, on_escalation, wall
        # Supervisors only take it: without it a late report could come after the end.
        self._lock = Door(threading.Lock())
        self._subscribed: dict[_Subscription, None] = {}
        self._subscriptions: tuple[_Subscription, ...] = ()  # the same, for readers
        self._is_closed = self._is_given_up = False
        # An outlet stays here until it has ended, also if its handler has unsubscribed.
        self._outlets: dict[Outlet, None] = {}
        # For the lines. Supervisors and helpers only take it.
        self._line_lock = Door(threading.Lock())
        self._lines: dict[int, Line] = {}
        self.helpers = Helpers(root, owner)

    def subscribe(self, prefix: str, sink: ReportHandler | Puttable, what: str = "reports") -> None:
        """Send all reports at or below the path *prefix* to *sink* from now on.

        Args:
            prefix, sink: From where, and to what.
            what: For the name of the thread.

        Raises:
            NotAlive: The tree has ended.
        """
        handler = handler_of(sink)
        outlet = Outlet(f"{self._root} ({what})", self._owner, handler, self.helpers)
        subscription = _Subscription(prefix, handler, outlet, prefix == self._root)
        # No lock: this is a thread of the parent process, in which a signal handler or
        # another thread may raise, and the lock would stay locked for the supervisors.
        # The root's thread may close all outlets just now. It sets ``_is_closed``
        # first, and then closes the outlets that it finds; this thread adds the outlet
        # first, and then looks at the flag. So if the root does not find it, this
        # thread finds the flag set.
        try:
            self._outlets[outlet] = None
            outlet.begin()
            self._subscribed[subscription] = None
            self._publish()
            if self._is_closed:
                raise NotAlive(self._root)  # noqa: TRY301 - what was done is undone below
        except BaseException:
            self._drop(subscription)
            self._outlets.pop(outlet, None)
            raise
        for one in [one for one in list(self._outlets) if one.has_ended]:
            self._outlets.pop(one, None)

    def unsubscribe(self, prefix: str, sink: ReportHandler | Puttable) -> None:
        """Send no more reports to *sink*; those that are queued for it still come.

        Raises:
            NotFound: It is not subscribed at the path *prefix*.
        """
        handler = handler_of(sink)
        found = [
            one for one in self._subscriptions if one.prefix == prefix and one.handler == handler
        ]
        if not found:
            raise NotFound(prefix, f"{show(sink)} is not subscribed")
        self._drop(found[0])

    def _drop(self, subscription: _Subscription) -> None:
        self._subscribed.pop(subscription, None)
        self._publish()
        subscription.outlet.close()

    def _publish(self) -> None:
        """Show readers the subscriptions of this moment."""
        # Two threads may be here at once, and the slower one may store an older state.
        # Each looks again after its own store, so the last store is of the last state.
        while self._subscriptions != (now := tuple(self._subscribed)):
            self._subscriptions = now

    def tell(self, report: Report) -> None:
        """Write the time into *report*, which is new, and send it to its subscribers."""
        stamp(report, self._wall())  # a changed copy would cost ten times as much
        for subscription in self._subscriptions:
            # most are for all; to look here spares the call
            if subscription.is_for_all or subscription.wants(report):
                subscription.outlet.send(report)

    def tell_late(self, report: Report) -> None:
        """Send *report*.

        If the tree has ended meanwhile, the handlers are called on a thread made for it.
        """
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
        """Have the supervisor's *own* handler called, and the tree's, side by side."""
        if own is not None:
            self._enqueue(own, escalation, f"{escalation.path} (on_escalation)")
        if self._on_escalation is not None:
            self._enqueue(self._on_escalation, escalation, f"{self._root} (on_escalation)")

    def complain(self, event: str, error: BaseException, **fields: object) -> None:
        """Have ``log.complain`` called on a helper thread. Never blocks or raises.

        For threads that others need: the log may be blocked.
        """
        with contextlib.suppress(Exception):  # no memory
            self._enqueue(_complain, (event, error, fields), f"{self._root} (complaints)")

    def close(self) -> None:
        """End the outlets' threads when they have handled all values that are queued."""
        with self._lock:
            self._is_closed = True
            for outlet in list(self._outlets):
                outlet.close()
        self.helpers.close()

    def undelivered(self) -> int:
        """Return how many escalations and reports have not been handled, once it is
        closed.
        """
        # No lock: a signal handler may raise here, and leave it locked for the helpers.
        lines = sum(line.waiting() for line in list(self._lines.values()))
        return lines + sum(outlet.waiting() for outlet in list(self._outlets))

    def give_up(self) -> int:
        """Take back the items that have not been handled; each handler ends after its present one.

        Returns:
            How many items; 0 at a second call.
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
        """Have *handler* called with *value*, after all values that came before.

        The key of its line is the number of the handler, so no code of its class runs
        here. No other object has that number as long as the line holds the handler.

        Args:
            handler, value: What to call, and with what.
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
