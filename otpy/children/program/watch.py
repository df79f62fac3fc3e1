"""The watch: the thread that waits for all programs of a tree.

It waits for their ends, their output, and their messages at one selector. So 200 idle
programs are one thread that sleeps. The end of a program comes through its pidfd, which
becomes readable at that moment, whichever code reaps the process. Where the system gives
no pidfd (not Linux, an old kernel, no descriptors left), a thread for each program waits
instead.

Laws:
1. Nothing here waits for one program, runs code of the user's, or decides about a child.
2. Only the thread of the watch touches the selector and the timers. Other threads post an
   order, and ring. A supervisor's thread admits a program before any thread can let it
   go. The watch lets it go; or, if it could not be started, the thread that has tried.
3. If a callback fails for one program, that is logged, and costs the others nothing.
4. A process that the system has handed to us (we are number 1, or its reaper) is reaped
   if it is certain that no code of the parent process waits for it. Only as number 1 the
   watch wakes up by itself to look for such processes.
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

from otpy.children.program.guard import Guard
from otpy.runtime import descendants, posix, threads
from otpy.runtime.descendants import Family
from otpy.runtime.posix import NO_SIGNAL
from otpy.runtime.threads import Role, ThreadState

SWEEP = 5.0
"""Seconds between the looks of process number 1 for zombies that it was handed.

It looks only while it has programs."""


class Watched(Protocol):
    """A program, as far as the watch is concerned."""

    def stop(self) -> None:
        """Ask it to stop."""


class Watch:
    """The watch of one tree; ``tree.shared(Watch)``.

    Attributes:
        guard: Ends the programs when this process dies.
        spared: The numbers of processes that have outlived their program, and that no
            end of the tree kills. Only the watch changes it.
        leaders: The numbers of the programs that have been started, and not reaped. A
            launcher adds to it, the watch takes from it, each in one step.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._orders: collections.deque[Callable[[], object]] = collections.deque()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._families = itertools.count(1)
        self.leaders: set[int] = set()
        self._programs: set[Watched] = set()
        self._is_closing = False
        self._adopts = os.getpid() == 1
        self._adopted: set[tuple[int, int]] = set()
        self.spared: set[int] = set()
        # If a step fails, the steps before are undone, and the next start tries again.
        with contextlib.ExitStack() as undo:
            self._selector = undo.enter_context(posix.selector())
            self._inside, self._bell = map(undo.enter_context, posix.socket_pair())
            self._inside.setblocking(False)
            self._bell.setblocking(False)
            self._selector.register(self._inside, selectors.EVENT_READ, self._silence)
            self.guard = Guard(tree, tree.root, tree.telemetry.complain)
            undo.callback(self.guard.close, self.spared)
            self._thread = threads.spawn(
                self._run,
                name=f"{tree.root} (programs)",
                role=Role.HELPER,
                purpose="waits for programs",
                owner=tree,
            )
            undo.pop_all()
        if self._adopts:
            self.post(self._sweep)

    # Called by any thread

    def post(self, order: Callable[[], object]) -> None:
        """Have *order* called on the thread of the watch. Never blocks."""
        # The watch may go to sleep just now. It silences the bell before it takes
        # orders. So with the order first and the bell second it either takes the order
        # before it sleeps, or the bell wakes it; the other way round the order could
        # wait for ever.
        self._orders.append(order)
        # OSError: the bell has rung often enough, or the watch has ended
        with contextlib.suppress(OSError):
            self._bell.send(b"!", NO_SIGNAL)

    def close(self) -> None:
        """End when no program is left.

        A program that was detached, or given up, may live longer than its tree.
        """
        if self._programs:
            for one in (self._thread, self.guard.thread):
                threads.mark(one, ThreadState.DETACHED, self._stop_all)
        self.post(self._close)

    def new_family(self) -> Family:
        """Return a family with a token of its own."""
        return Family(f"{self.guard.token}.{next(self._families)}.".encode())

    def admit(self, program: Watched) -> None:
        """Count *program* as running.

        Called by its supervisor's thread.
        """
        # Not as an order: ``close`` looks at the programs at once, and may be called
        # before the watch takes an order.
        self._programs.add(program)

    def let_go(self, program: Watched) -> None:
        """Count *program* no longer."""
        self._programs.discard(program)
        # It may have been the last one, and the watch may be closing: an order wakes
        # it.
        if threading.current_thread() is not self._thread:
            self.post(lambda: None)

    def _stop_all(self) -> None:
        for program in list(self._programs):
            program.stop()

    # Called by the watch's own thread

    def listen(self, fd: int, callback: Callable[[], object]) -> None:
        """Call *callback* whenever *fd* can be read; nothing if that is so already."""
        if fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_READ, callback)

    def ignore(self, fd: int | None) -> None:
        """Listen to *fd* no longer; nothing if that is so already."""
        if fd is not None and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call *callback* in so many seconds; infinity: never."""
        if seconds < float("inf"):
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), callback))

    def reap_adopted(self) -> None:
        """Reap the zombies that the system has handed to this process."""
        if self._adopts:
            for pid in descendants.adopted(self.guard.token.encode(), self._adopted):
                if pid not in self.leaders:
                    posix.reap(pid)

    def adopt(self, zombie: int) -> None:
        """Reap *zombie*, a descendant of a program that was handed to us: we are its reaper."""
        self._adopts = True
        posix.reap(zombie)

    def _sweep(self) -> None:
        self.reap_adopted()
        self.later(SWEEP, self._sweep)

    def _run(self) -> None:
        try:
            while self._programs or not self._is_closing:
                wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
                for key, _ in self._selector.select(wait):
                    self._call(key.data, key.fd)
                while self._timers and self._timers[0][0] <= time.monotonic():
                    self._call(heapq.heappop(self._timers)[2], None)
                # after the selector, by which the bell is silenced: see ``post``
                while self._orders:
                    self._call(self._orders.popleft(), None)
        finally:
            self.guard.close(self.spared)
            self.reap_adopted()
            self._selector.close()
            self._inside.close()
            self._bell.close()

    def _call(self, callback: Callable[[], object], fd: int | None) -> None:
        try:
            callback()
        except Exception as error:
            # or it would be called again at once, for ever
            self.ignore(fd)
            self._tree.telemetry.complain("watch_failed", error, path=self._tree.root)

    def _silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._inside.recv(4096)

    def _close(self) -> None:
        self._is_closing = True
