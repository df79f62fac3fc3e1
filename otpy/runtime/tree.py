"""What all supervisors of one running tree share.

Which thread writes what:

* The directory entry of a path: the thread of that supervisor's parent adds it before
  it starts the supervisor, and the supervisor's own thread removes it at its end.
* An entry of the strays: the thread of the supervisor that gave the child up.
* The end of the handlers: the root's thread begins it (``close``), and the threads that
  wait for the tree wait for it (``settle``). So no handler holds up a supervisor.

Readers may be on any thread. They take copies.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from otpy.abc import Clock, Closable, Stray
from otpy.core.messages import TooManyUnstopped
from otpy.reports import StopReport, Unstopped
from otpy.runtime import account, threads
from otpy.runtime.stopping import Until, Wait, never, wait_plainly
from otpy.runtime.telemetry import Telemetry
from otpy.runtime.threads import Role
from otpy.runtime.waiting import Door, Once, Reply
from otpy.values import running

if TYPE_CHECKING:
    from otpy.runtime.supervisor import SupervisorThread

FLUSH = 10.0
"""The default of the option ``flush``: seconds that all handlers together may take at
the end of a tree."""

MOMENT = 0.1
"""Seconds that handlers have in any case. Without them a handler that has nothing to do
would be taken for one at work."""

SETTLED = (Role.CHILD, Role.SUPERVISOR, Role.SPARE, Role.LOOP, Role.HELPER)
"""The threads that are waited for at the end of a tree, besides its handlers."""

SETTLE = 1.0
"""Seconds that a thread may take to end when it has said its last word. Only a machine
with far too much work needs more."""

SUPERVISING: set[int] = set()
"""The numbers of the threads of all supervisors that run. None of these threads may
wait for the answer of a supervisor."""

C = TypeVar("C", bound=Closable)


@running
class Tree:
    """One running tree.

    Attributes:
        root: The path of the root supervisor.
        clock: Where time comes from.
        max_unstopped: How many threads may be left behind before the root gives up.
        seed: What the dice of each supervisor are made from, together with its path.
        flush: Seconds of real time that all handlers together may take after the root's
            end.
        flush_until: When these seconds are over, monotonic; infinity while the root
            lives.
        latest: When the handlers have no more time in any case, monotonic.
        furnish: Makes the handlers, on the thread of the root, and starts their
            threads.
        has_own_clock: Whether *clock* may stand still while time goes by. Then stops go
            by real time as well.
        heartbeats: Whether a child that is silent stalls.
        launch: Starts the thread of a supervisor: ``launch(main, name, if_lost)``, see
            ``threads.spawn``.
        telemetry: The handlers.
        directory: The supervisors that live, by path. The root stays in it when it has
            ended.
        is_closed: Whether the handlers get nothing new any more.
        pid: The process in which the tree runs.
    """

    root: str
    clock: Clock
    max_unstopped: int
    seed: int
    flush: float = FLUSH
    flush_until: float = math.inf
    latest: float = math.inf
    furnish: Callable[[Tree], Telemetry] | None = None
    has_own_clock: bool = False
    heartbeats: bool = True
    telemetry: Telemetry = attrs.field(init=False)
    launch: Callable[[Callable[[], None], str, Callable[[], None]], object] = attrs.field(
        init=False
    )
    directory: dict[str, SupervisorThread] = attrs.field(factory=dict)
    is_closed: bool = False
    pid: int = attrs.field(factory=os.getpid)
    _has_too_many: bool = False
    _strays: dict[int, tuple[Stray, Unstopped]] = attrs.field(factory=dict)
    _shared: dict[object, Any] = attrs.field(factory=dict)
    _hurried: Once = attrs.field(factory=Once)
    _settled: dict[str, StopReport] = attrs.field(factory=dict)
    _door: Door = attrs.field(factory=lambda: Door(threading.Lock()))

    def __attrs_post_init__(self) -> None:
        self.launch = self._launch

    def _launch(self, main: Callable[[], None], name: str, if_lost: Callable[[], None]) -> object:
        purpose = "supervises"
        return threads.spawn(
            main, name=name, role=Role.SUPERVISOR, purpose=purpose, owner=self, if_lost=if_lost
        )

    @property
    def is_foreign(self) -> bool:
        """Whether this process is a fork of the one in which the tree runs."""
        return os.getpid() != self.pid

    @property
    def _is_open(self) -> bool:
        """Whether the handlers have been made."""
        return getattr(self, "telemetry", None) is not None

    def open(self, put: Callable[[object], None], done: Reply) -> None:
        """Make the handlers, and enter the tree in the account of those that run.

        The root's thread calls this before anything else.

        Args:
            put: Puts a message into the root's mailbox.
            done: Is given at the root's end.

        Raises:
            RuntimeError: The system has no more threads to give. Then nothing is left.
        """
        assert self.furnish is not None
        self.telemetry = self.furnish(self)
        account.enter(self, put, done)

    def shared(self, kind: Callable[[Tree], C]) -> C:
        """Return what all children of a kind share in this tree.

        It is made when a child asks for it first, and closed at the end of the tree.

        Raises:
            Exception: What *kind* raises. The next call tries again.
        """
        if kind not in self._shared:
            # Two supervisors may ask first, each on its own thread. Without the door
            # both would make one, and the one that is lost would never be closed.
            with self._door:
                if kind not in self._shared:
                    self._shared[kind] = kind(self)
        one: C = self._shared[kind]
        return one

    def left_behind(self, stray: Stray, report: Unstopped) -> None:
        """Count *stray* as unstopped. If too many still run, the root gives up."""
        self._strays[id(stray)] = stray, report
        # Thousands may be left behind at once. So look at all of them only if there may
        # be too many, and not again when the root has been told: it gives up only once.
        if len(self._strays) > self.max_unstopped and not self._has_too_many:
            count = len(self.strays())
            if count > self.max_unstopped:
                self._has_too_many = True
                self.directory[self.root].mailbox.put(TooManyUnstopped(report.path, count))

    def strays(self) -> list[tuple[Stray, Unstopped]]:
        """Return the strays that still run; forget the others."""
        for key, (stray, _) in list(self._strays.items()):
            try:
                is_alive = stray.alive
            except BaseException:
                is_alive = True  # its kind breaks the contract: it may still run
            if not is_alive:
                self._strays.pop(key, None)
        return list(self._strays.values())

    def unstopped(self, path: str) -> tuple[Unstopped, ...]:
        """Return a report of each stray below *path*, with its stack as it is now."""
        strays = [(stray, one) for stray, one in self.strays() if one.path.startswith(f"{path}/")]
        return tuple(attrs.evolve(one, stack=_stack(stray)) for stray, one in strays)

    # The end

    def close(self) -> None:
        """Begin the end of the handlers: they get what is queued, and nothing new.

        The root's thread calls this once, at the root's end.
        """
        if not self._is_open:
            return
        for one in self._shared.values():
            one.close()
        self.is_closed = True
        self.flush_until = min(time.monotonic() + self.flush, self.latest)
        self.telemetry.close()

    def is_over(self) -> None:
        """Take the tree out of the account: its root has said its last word."""
        account.leave(self)

    def hurry(self) -> None:
        """End all waits for the handlers, also later ones; a signal handler may call."""
        self.latest = self.flush_until = -math.inf
        self._hurried.happen()

    def settle(
        self, report: StopReport, until: Until = never, wait: Wait = wait_plainly
    ) -> StopReport:
        """Wait for the handlers, and for the threads that have said their last word.

        Args:
            report: What the root has said at its end.
            until: When the handlers have no more time, if that is before they have none
                anyway.
            wait: How the calling thread waits.

        Returns:
            The report, with what the handlers have not done. When they have done all,
            or have no time left, it is the last one: all later calls return it, too.
        """
        if report.unanswered:  # the tree does not answer: no thread waits for it any more
            self.hurry()
            self.is_over()
            return report
        if not self._is_open:
            return report
        if self._settled:
            return self._settled[self.root]
        self.await_handlers(until, wait)
        here = threading.current_thread()
        is_handler = any(one.thread is here for one in self.busy(Role.HANDLER))
        within = min(SETTLE, max(MOMENT, until() - time.monotonic()))
        threads.settle(self, {*SETTLED, *([Role.HANDLER] if is_handler else [])}, within)
        busy = self.busy(Role.HANDLER, Role.HELPER)
        names = tuple(one.name for one in busy if one.thread is not here)
        # the report that a handler handles while it calls this is not lost
        count = self.telemetry.undelivered() - is_handler
        report = attrs.evolve(report, handlers=names, undelivered=count)
        if busy and time.monotonic() < self.flush_until:
            return report  # a later call may have more to say
        # Two threads may come here at the same time. The report of the first one counts
        # for both, so that all callers have the same.
        return self._settled.setdefault(self.root, report)

    def await_handlers(self, until: Until, wait: Wait) -> None:
        """Wait until the handlers have done all that is queued, or have no time left.

        They have a MOMENT in any case. A handler that waits for its own tree does not
        wait for the others here, only in ``settle``, for SETTLE seconds. Otherwise two
        such handlers would wait for each other.

        Args:
            until: When they have no more time, if that is before they have none anyway.
            wait: How the calling thread waits.
        """
        moment = time.monotonic() + MOMENT

        def limit() -> float:
            return max(moment, min(until(), self.flush_until))

        self.telemetry.helpers.retry()
        here = threading.current_thread()
        while (busy := self.busy(Role.HANDLER)) and all(one.thread is not here for one in busy):
            if limit() <= time.monotonic():
                return
            wait(self._end_of(busy), limit)

    def busy(self, *roles: Role) -> list[threads.Entry]:
        """Return the threads in these *roles* that run and were not given up."""
        found = threads.entries(self)
        return [
            one for one in found if one.role in roles and one.state is threads.ThreadState.RUNNING
        ]

    def _end_of(self, busy: list[threads.Entry]) -> Reply:
        """Return a reply, given when all of *busy* have ended, or by ``hurry``."""
        reply, left = Reply(), dict.fromkeys(busy)

        def has_ended(entry: threads.Entry) -> None:
            left.pop(entry, None)
            if not left:
                reply.answer(None)

        for entry in busy:
            entry.ended.when(reply, functools.partial(has_ended, entry))
        self._hurried.when(reply, functools.partial(reply.answer, None))
        return reply


def _stack(stray: Stray) -> str:
    try:
        return stray.stack()
    except BaseException:  # its kind breaks the contract
        return ""
