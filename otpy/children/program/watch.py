"""The thread that waits for all programs of a tree: for their ends, their output, and their messages.

It waits at one selector, so 200 idle programs are one thread that sleeps. The end of a
program is heard through its pidfd, which becomes readable at that moment, whoever reaps
the process. Where there are none (not Linux, or an old kernel, or no descriptors left),
a thread per program waits instead.

Laws:
1. Nothing here waits for one program, runs code of the user's, or decides about a
   child.
2. The selector and the timers are touched by this thread only; everybody else posts an
   order and rings. Programs are admitted by those who start them, before anybody can
   let them go. They are let go by this thread; or, if they could not be started, by the
   thread that has tried.
3. What goes wrong about one program is logged, and costs the others nothing.
4. A process that the system has handed to us (we are number 1, or its reaper) is reaped
   if it is certain that none of our own code waits for it. Only as number 1 the watch
   wakes up for that by itself.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import os
import selectors
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from otpy.children.program.guard import Lifeline
from otpy.runtime import descendants, posix, threads
from otpy.runtime.posix import NO_SIGNAL
from otpy.runtime.threads import Role, ThreadState

SWEEP = 5.0
"""How often process number 1 looks for zombies that it was handed, in seconds; only while it has programs."""


def _nothing() -> None:
    """Be an order that only wakes the watch."""


class Watched(Protocol):
    """A program, as far as the watch is concerned."""

    def stop(self) -> None:
        """Ask it to stop."""


class Watch:
    """The watch of one tree; ``tree.shared(Watch)``.

    Attributes:
        lifeline: What ends the programs when this process dies.
        spared: Processes that have outlived their program, and must not be killed.
        numbers: Tells the programs of a tree apart.
        leaders: The numbers of the programs that have been started, and not reaped.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._orders: collections.deque[Callable[[], object]] = collections.deque()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self.numbers = itertools.count(1)
        self.leaders: set[int] = set()
        self._programs: set[Watched] = set()
        self._is_closing = False
        self._adopts = os.getpid() == 1
        self._adopted: set[tuple[int, int]] = set()
        self.spared: set[int] = set()
        with contextlib.ExitStack() as undo:  # who asks next tries again
            self._selector = undo.enter_context(posix.selector())
            self._inside, self._bell = map(undo.enter_context, posix.socket_pair())
            self._inside.setblocking(False)
            self._bell.setblocking(False)
            self._selector.register(self._inside, selectors.EVENT_READ, self._silence)
            self.lifeline = Lifeline(tree, tree.root, tree.telemetry.complain)
            undo.callback(self.lifeline.close, self.spared)
            name, purpose = f"{tree.root} (programs)", "waits for programs"
            self._thread = threads.spawn(
                self._run, name=name, role=Role.HELPER, purpose=purpose, owner=tree
            )
            undo.pop_all()
        if self._adopts:
            self.post(self._sweep)

    def post(self, order: Callable[[], object]) -> None:
        """Have *order* called on the thread of the watch. Never blocks; may be called from any thread."""
        self._orders.append(order)
        with contextlib.suppress(OSError):  # it has rung often enough, or has ended
            self._bell.send(b"!", NO_SIGNAL)

    def close(self) -> None:
        """End when there is no program left. One that was let go, or given up, may live longer than its tree."""
        if self._programs:
            for one in (self._thread, self.lifeline.thread):
                threads.mark(one, ThreadState.DETACHED, self._stop_all)
        self.post(self._close)

    def admit(self, program: Watched) -> None:
        """Count *program* as running. On its supervisor's thread: an order could come later than ``close``."""
        self._programs.add(program)

    def let_go(self, program: Watched) -> None:
        """Count *program* no longer. Its last word may be the last one of the tree, and close this: so say it later."""
        self._programs.discard(program)
        if threading.current_thread() is not self._thread:
            self.post(_nothing)

    # From here on all runs on the watch's own thread

    def listen(self, fd: int, callback: Callable[[], object]) -> None:
        """Call *callback* whenever *fd* can be read; nothing if that is so already."""
        if fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_READ, callback)

    def ignore(self, fd: int | None) -> None:
        """Listen to *fd* no longer; nothing if that is so already."""
        if fd is not None and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call *callback* in so many seconds."""
        if seconds < float("inf"):
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), callback))

    def reap_adopted(self) -> None:
        """Reap the zombies that the system has handed to this process."""
        if self._adopts:
            for pid in descendants.adopted(self.lifeline.token.encode(), self._adopted):
                if pid not in self.leaders:
                    posix.reap(pid)

    def adopt(self, zombie: int) -> None:
        """Reap *zombie*, a descendant of a program, which the system has handed to this process: we are its reaper."""
        self._adopts = True
        posix.reap(zombie)

    def _sweep(self) -> None:
        self.reap_adopted()
        self.later(SWEEP, self._sweep)

    def _run(self) -> None:
        try:
            while self._programs or not self._is_closing:
                self._turn()
        finally:
            self._leave()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            self._call(key.data, key.fd)
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._call(heapq.heappop(self._timers)[2], None)
        while self._orders:
            self._call(self._orders.popleft(), None)

    def _patience(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _call(self, callback: Callable[[], object], fd: int | None) -> None:
        try:
            callback()
        except Exception as error:
            self.ignore(fd)  # or it would be called again at once, for ever
            self._tree.telemetry.complain("watch_failed", error, path=self._tree.root)

    def _silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._inside.recv(4096)

    def _close(self) -> None:
        self._is_closing = True

    def _stop_all(self) -> None:
        for program in list(self._programs):
            program.stop()

    def _leave(self) -> None:
        self.lifeline.close(self.spared)
        self.reap_adopted()
        self._selector.close()
        self._inside.close()
        self._bell.close()
