"""Threads that start programs: no supervisor's thread waits for a file system.

Laws:
1. Each start has a thread to itself while it lasts: one that hangs delays no other.
2. At most one thread of a tree is kept for the next start; it sleeps until then. It is
   kept before the outcome is reported: the supervisor may want the next start at once.

Threads: supervisors' threads call ``launch`` and ``close``. ``park`` and the methods
of ``Launcher`` run on the thread of the launcher. The list of idle launchers is shared: to
append to it, or to pop from it, is one step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from otpy.runtime import threads
from otpy.runtime.threads import Role, ThreadState

Job = Callable[[], Callable[[], object]]
"""Starts a program; returns a function that reports the outcome without blocking."""


class Launchers:
    """The launchers of one tree; ``tree.shared(Launchers)``."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._idle: list[Launcher] = []
        self._is_closed = False

    def launch(self, job: Job) -> threading.Thread:
        """Have *job* done on a thread of its own, and return that thread.

        Raises:
            RuntimeError: The system has no more threads to give.
        """
        # One step: another supervisor may want the same launcher just now.
        try:
            launcher = self._idle.pop()
        except IndexError:
            launcher = Launcher(self._tree, self)
        launcher.jobs.put(job)
        return launcher.thread

    def close(self) -> None:
        """End the idle ones; the others end when they have done their work."""
        # in this order: see ``park``
        self._is_closed = True
        self._dismiss()

    def park(self, launcher: Launcher) -> None:
        """Keep *launcher*, or end it; called on its thread."""
        if self._idle and not self._is_closed:
            launcher.jobs.put(None)
            return
        self._idle.append(launcher)
        # ``close`` may run just now, and would not see what is appended after its look.
        # It sets its flag first, and looks then; here the order is the other way round.
        # So at least one of the two finds this launcher, and the one that takes it out
        # ends it.
        if self._is_closed:
            self._dismiss()

    def _dismiss(self) -> None:
        while self._idle:
            try:
                self._idle.pop().jobs.put(None)
            except IndexError:
                return


class Launcher:
    """A thread that does one job after the other."""

    def __init__(self, tree: Any, launchers: Launchers) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._launchers = launchers
        self.thread = threads.spawn(
            self._run,
            name=f"{tree.root} (launcher)",
            role=Role.HELPER,
            purpose="starts programs",
            owner=tree,
        )

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            report = job()
            try:
                # it may have been given up while it hung
                threads.mark(self.thread, ThreadState.RUNNING)
                self._launchers.park(self)
            finally:
                report()  # whatever is raised here: the program runs by now, or has failed
            # an idle launcher must not keep the last program alive
            del job, report
