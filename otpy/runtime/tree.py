"""What all supervisors of one running tree share, and the account of the trees that run.

Who owns what: the directory entry of a path is written by the thread of that supervisor's parent (added before it
starts) and by its own (removed when it has ended); an entry of the strays is written by the thread of its supervisor.
The end of the handlers (``close``) is begun by the root's thread and waited for by those who wait for the tree
(``settle``), so no handler holds up a supervisor. Readers may come from any thread, and take copies.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import attrs

from otpy.abc import Clock
from otpy.core.messages import StopSupervisor, TooManyUnstopped
from otpy.reports import StopReport, Unstopped
from otpy.runtime import threads
from otpy.runtime.stopping import Until, Wait, never, wait_plainly
from otpy.runtime.telemetry import Telemetry
from otpy.runtime.threads import Role
from otpy.runtime.waiting import Door, Once, Reply
from otpy.values import running

FLUSH = 10.0
"""The default of the option ``flush``: how long handlers may take at the end of a tree, in seconds, all together."""

MOMENT = 0.1
"""How many seconds handlers have in any case, so that one that has nothing to do is not
taken for one at work."""

SETTLED = (Role.CHILD, Role.SUPERVISOR, Role.SPARE, Role.LOOP, Role.HELPER)
"""The threads that are waited for at the end of a tree, besides its handlers."""

SETTLE = 1.0
"""How long a thread that has said its last word may take to end, in seconds; only a starved machine needs more."""


SUPERVISING: set[int] = set()
"""The numbers of the threads of all supervisors that run: none of them may wait for an answer."""


class Stray(Protocol):
    """What could not be stopped: a child, or a loop that was blocked."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""

    def stack(self) -> str:
        """Return what it is doing now."""


class Closable(Protocol):
    """What the children of one kind share in a tree, such as a thread that waits for all of them."""

    def close(self) -> object:
        """End as soon as nothing needs it any more; neither wait nor raise."""


C = TypeVar("C", bound=Closable)


@running
class Tree:
    """One running tree.

    Attributes:
        root: The path of the root supervisor.
        clock: Where time comes from.
        max_unstopped: How many threads may be left behind before the root gives up.
        seed: What the chance of each supervisor is made from, together with its path.
        flush: How long the handlers may take after the root's end, in seconds of real time, all together.
        flush_until: When that is over, monotonic; infinity while the root lives.
        latest: When it is over in any case, monotonic.
        furnish: Makes the handlers, on the thread of the root, and starts their
            threads.
        has_own_clock: Whether *clock* may stand still while time goes by; then stops go
            by real time as well.
        heartbeats: Whether a child that is silent stalls.
        launch: Starts the thread of a supervisor: ``launch(main, name, if_lost)``, see ``threads.spawn``.
        telemetry: The handlers.
        directory: The supervisors that live, by path; the root stays in it when it has ended.
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
    directory: dict[str, Any] = attrs.field(factory=dict)
    is_closed: bool = False
    pid: int = attrs.field(factory=os.getpid)
    _has_too_many: bool = False
    _strays: dict[int, tuple[Stray, Unstopped]] = attrs.field(factory=dict)
    _shared: dict[object, Any] = attrs.field(factory=dict)
    _hurried: Once = attrs.field(factory=Once)
    _settled: dict[str, StopReport] = attrs.field(factory=dict)
    _door: Door = attrs.field(
        factory=lambda: Door(threading.Lock())
    )  # two supervisors may be the first at once

    def __attrs_post_init__(self) -> None:
        self.launch = self._launch

    @property
    def is_foreign(self) -> bool:
        """Whether this process is a fork of the one in which the tree runs."""
        return os.getpid() != self.pid

    @property
    def _is_open(self) -> bool:
        """Whether the handlers have been made."""
        return getattr(self, "telemetry", None) is not None

    def open(self, post: Callable[[object], None], done: Reply) -> None:
        """Begin: make the handlers, and be on the account.

        Called by the root's thread, before anything else.

        Raises:
            RuntimeError: The system has no more threads to give; then nothing is left.
        """
        assert self.furnish is not None
        self.telemetry = self.furnish(self)
        guard(self, post, done)

    def _launch(self, main: Callable[[], None], name: str, if_lost: Callable[[], None]) -> object:
        purpose = "supervises"
        return threads.spawn(
            main, name=name, role=Role.SUPERVISOR, purpose=purpose, owner=self, if_lost=if_lost
        )

    def shared(self, kind: Callable[[Tree], C]) -> C:
        """Return what all children of a kind share in this tree: made when first asked for, closed at the end.

        Raises:
            Exception: What *kind* raises; the next one who asks tries again.
        """
        if kind not in self._shared:
            with self._door:
                if kind not in self._shared:
                    self._shared[kind] = kind(self)
        one: C = self._shared[kind]
        return one

    def left_behind(self, stray: Stray, report: Unstopped) -> None:
        """Count *stray* as unstopped; if there are too many such that are still alive, the root gives up."""
        self._strays[id(stray)] = stray, report
        # thousands may be left behind at once: look at all of them only if need be, and
        # not again when the root has been told, which gives up only once
        if len(self._strays) > self.max_unstopped and not self._has_too_many:
            count = len(self.strays())
            if count > self.max_unstopped:
                self._has_too_many = True
                self.directory[self.root].mailbox.put(TooManyUnstopped(report.path, count))

    def strays(self) -> list[tuple[Stray, Unstopped]]:
        """Return those that were given up and are still alive; forget the others."""
        for key, (child, _) in list(self._strays.items()):
            if not _is_alive(child):
                self._strays.pop(key, None)
        return list(self._strays.values())

    def unstopped(self, path: str) -> tuple[Unstopped, ...]:
        """Return a report of each stray below *path*, with its stack as it is now."""
        strays = [(child, one) for child, one in self.strays() if one.path.startswith(f"{path}/")]
        return tuple(attrs.evolve(one, stack=_stack(child)) for child, one in strays)

    def close(self) -> None:
        """Begin the end of the handlers: they get what is queued, and nothing new.

        Called once, on the root's thread, when the root has ended.
        """
        if not self._is_open:
            return
        for one in self._shared.values():
            one.close()
        self.is_closed = True
        self.flush_until = min(time.monotonic() + self.flush, self.latest)
        self.telemetry.close()

    def is_over(self) -> None:
        """Take it from the account of the trees that run: its end has been said."""
        _running.pop(self, None)

    def hurry(self) -> None:
        """End all waits for the handlers, also later ones. A signal handler may call it."""
        self.latest = self.flush_until = -math.inf
        self._hurried.happen()

    def leave(self) -> None:
        """Stop caring for a tree that does not answer: nobody waits for it any more."""
        self.hurry()
        self.is_over()

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
            The report, with what the handlers have not done. When they have done all, or
            have no time left, it is the last one: all later calls return it, too.
        """
        if report.unanswered:
            self.leave()
        if report.unanswered or not self._is_open:
            return report
        if not self._settled:
            self.await_handlers(until, wait)
            here = threading.current_thread()
            is_handler = any(one.thread is here for one in self.busy(Role.HANDLER))
            within = min(SETTLE, max(MOMENT, until() - time.monotonic()))
            threads.settle(self, {*SETTLED, *([Role.HANDLER] if is_handler else [])}, within)
            busy = self.busy(Role.HANDLER, Role.HELPER)
            names = tuple(one.name for one in busy if one.thread is not here)
            count = self.telemetry.undelivered() - is_handler  # it is being handled
            report = attrs.evolve(report, handlers=names, undelivered=count)
            if busy and time.monotonic() < self.flush_until:
                return report  # there may be more to say
            return self._settled.setdefault(
                self.root, report
            )  # of two at the same time one is first
        return self._settled[self.root]

    def await_handlers(self, until: Until, wait: Wait) -> None:
        """Wait until the handlers have done all that is queued, or have no time left.

        They have a MOMENT in any case. A handler that waits for its own tree does not
        wait for the others here, only in ``settle``, for SETTLE. Else two such handlers
        would wait for each other.

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
        """Return the threads in these *roles* that live, without those given up."""
        found = threads.entries(self)
        return [
            one for one in found if one.role in roles and one.state is threads.ThreadState.RUNNING
        ]

    def _end_of(self, busy: list[threads.Entry]) -> Reply:
        """Return a reply that is given when all of *busy* have ended, or by ``hurry``."""
        reply, left = Reply(), dict.fromkeys(busy)

        def has_ended(entry: threads.Entry) -> None:
            left.pop(entry, None)
            if not left:
                reply.answer(None)

        for entry in busy:
            entry.ended.when(reply, functools.partial(has_ended, entry))
        self._hurried.when(reply, functools.partial(reply.answer, None))
        return reply


# A stray may be of a kind that breaks its contract


def _is_alive(stray: Stray) -> bool:
    try:
        return stray.alive
    except BaseException:
        return True  # who cannot say it cannot be taken for dead


def _stack(stray: Stray) -> str:
    try:
        return stray.stack()
    except BaseException:
        return ""


_running: dict[
    Tree, tuple[Callable[[object], None], Reply]
] = {}  # tree -> (post to its root, the root's end)


def guard(tree: Tree, post: Callable[[object], None], done: Reply) -> None:
    """Have *tree* stopped when the interpreter exits, if it still runs then."""
    _running[tree] = (post, done)


def ask_all(within: float | None) -> dict[Tree, Reply]:
    """Ask all running trees to stop, side by side and each in order; return their ends, to be waited for.

    Args:
        within: Seconds for each of them; None: as long as its specs allow.
    """
    running = dict(_running)
    for post, _ in running.values():
        post(StopSupervisor(within))
    return {tree: done for tree, (_, done) in running.items()}


def _after_fork() -> None:
    """Leave the parent's trees alone: none of their threads exists in this process."""
    _running.clear()
    threads.forget_all()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
