"""Registries: spawn threads that belong to no tree, see all that live, stop them.

A registry is a view of the record in runtime/threads.py. A ``ThreadRegistry`` sees what
it has spawned itself. The ``DefaultRegistry`` sees all threads but those of private
registries: the threads of the trees too.

Laws:
1. Two living threads of one registry never have one name. A thread is either refused or
   waited for by ``shutdown_all``, however many spawn and shut down at once.
2. A spawned thread that dies of an exception is reported once, whatever it died of.
3. No lock is held while a thread starts, while a caller waits, or while user code runs.
   A signal handler can take each lock, so a handler may shut down.

shutdown.py has the laws of ``shutdown_all``.

The record owns the entries. A registry owns its flag, its sinks and the list of the
calls of ``shutdown_all`` that are under way. The sinks need no lock: the dict is only
added to and popped from. Targets and sinks run on the spawned thread; the hook of
``report_crashes_elsewhere`` runs on the thread that dies.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from otpy.abc import Puttable, ReportHandler
from otpy.arguments import check_sink
from otpy.exceptions import AlreadyStarted, NotAlive, NotFound, Refusal, printable, show
from otpy.registry import table
from otpy.registry.door import door
from otpy.registry.shutdown import Shutdown, ShutdownStats
from otpy.registry.spawned import check, spawned
from otpy.registry.table import TrackedThread
from otpy.reports import ChildTerminated, ExitReason
from otpy.runtime import log, telemetry, threads
from otpy.runtime.account import ask_all
from otpy.runtime.telemetry import handler_of
from otpy.runtime.threads import Entry, Role
from otpy.runtime.tree import Tree
from otpy.runtime.waiting import Once, Reply
from otpy.specs import is_number, plain

PATH = "<registry>"
"""What errors name that are about no thread."""


class ThreadRegistry:
    """Spawns threads, knows them while they live, and stops them.

    All methods may be called from any thread. As a context manager it calls
    ``shutdown_all`` when the block is left, and logs the names of the threads that
    still run then.
    """

    def __init__(self) -> None:
        self._flag = Once()
        self._sinks: dict[object, ReportHandler] = {}
        self._calls: list[Shutdown] = []

    def spawn(
        self,
        target: Callable[..., object],
        *,
        name: str,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        daemon: bool = False,
        purpose: str = "",
    ) -> threading.Thread:
        """Start a thread that runs ``target(*args, **kwargs)``, and return it.

        The target should return soon after ``shutdown_requested`` has become true;
        ``wait_shutdown`` sleeps until then. The interpreter waits for the thread at its
        exit, and does not ask it: call ``shutdown_all`` before. An exception of the
        target is logged, and goes to the sinks as a ``ChildTerminated``. A SystemExit
        with code 0 or None is a normal end. A coroutine that the target returns has run
        nothing, and is reported as a crash.

        Args:
            target: A plain function; no class, no async function.
            name: The name of the thread. No other thread here has it.
            args, kwargs: The arguments of *target*.
            daemon: Let the interpreter end without waiting for the thread, which is cut
                off wherever it is. Warns.
            purpose: The task of the thread, for people.

        Raises:
            SpecError: An argument is wrong.
            AlreadyStarted: A thread of this name lives here.
            NotAlive: ``shutdown_all`` has been called.
            RuntimeError: The system has no more threads to give, or the interpreter
            exits.
        """
        # a class derived from str could run user code while the door is held
        name, purpose = plain(name), plain(purpose)
        check(name, "name", name, isinstance(name, str) and name != "", "a non-empty str")
        call = spawned(name, target, args, kwargs, self._report_crash)
        check(name, "daemon", daemon, isinstance(daemon, bool), "True or False")
        check(name, "purpose", purpose, isinstance(purpose, str), "a str")
        if daemon:
            text = (
                f"{printable(name)} is a daemon thread: when the program ends, "
                "it is cut off wherever it is"
            )
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        # Another thread may spawn or shut down now. The look at names and flag and the
        # new entry are one step for it: it finds the entry, or comes before the look.
        with door():
            self._admit(name)
            entry = threads.enlist(
                call.run, name=name, role=Role.SPAWNED, purpose=purpose, owner=self, daemon=daemon
            )
            # A signal handler in this thread may have shut down since ``_admit``. It
            # has not seen the entry, so it does not wait for the thread.
            if self._flag.has_happened:
                threads.withdraw(entry)
                self._admit(name)
        return threads.launch(entry)

    def active(self) -> tuple[TrackedThread, ...]:
        """Return the threads that live, in the order of their starts."""
        now = time.monotonic()
        return tuple(
            table.look_at(entry, now) for entry in self._entries() if entry.thread.ident is not None
        )

    def unregister(self, thread: threading.Thread) -> bool:
        """Stop tracking a spawned thread, and return whether it was tracked here.

        It runs on, and ``shutdown_all`` does not wait for it. Its crash is reported all
        the same. A thread that has just ended is not tracked any more.

        Raises:
            SpecError: *thread* is no thread.
            Refusal: It belongs to a tree: only the tree can let it go.
        """
        is_right = isinstance(thread, threading.Thread)
        check(PATH, "thread", thread, is_right, "a threading.Thread")
        for entry in self._entries():
            if entry.thread is thread:
                if entry.owner is not self:
                    raise Refusal(
                        entry.name,
                        "it belongs to a tree; terminate_child ends a child, detach lets it go",
                    )
                return threads.forget(thread)
        return False

    @property
    def shutdown_requested(self) -> bool:
        """Whether ``shutdown_all`` has been called.

        It stays true for ever. A forked process inherits it.
        """
        return self._flag.has_happened

    def wait_shutdown(self, timeout: float | None = None) -> bool:
        """Wait until ``shutdown_all`` is called, and return whether it has been called.

        Args:
            timeout: Seconds to wait at most; None: without a limit.

        Raises:
            SpecError: *timeout* is negative or not a number.
        """
        is_right = timeout is None or timeout == math.inf or (is_number(timeout) and timeout >= 0)
        check(PATH, "timeout", timeout, is_right, "a number of seconds >= 0, or None")
        return self._flag.wait(timeout)

    def shutdown_all(self, timeout: float = 10.0) -> ShutdownStats:
        """Ask all threads to stop, and wait for their ends.

        From now on ``spawn`` is refused. All are asked before any is waited for. The
        default registry also asks the trees that run, each of which stops in order, and
        waits for these first. It asks the threads that trees have let go, too.

        It does not wait for threads that their supervisor has given up, nor for those
        that wait for this very call: the calling thread, the tree that this thread
        belongs to, and tracked threads that wait in an earlier call of this method.

        A further call asks again, waits again with a budget of its own, and returns
        what it saw.

        Args:
            timeout: Seconds for all together. Trees interrupt their children before the
                last tenth of it begins.

        Raises:
            SpecError: *timeout* is not a finite number >= 0.
        """
        is_right = is_number(timeout) and timeout >= 0
        check(PATH, "timeout", timeout, is_right, "a finite number of seconds >= 0")
        call = Shutdown(self._calls, timeout)
        # Another thread may spawn now. If it comes before the look, its thread is
        # counted and waited for. If it comes after the flag, it is refused. The door
        # keeps it from coming between the two.
        with door():
            call.look(self._entries)
            self._flag.happen()
        try:
            self._calls.append(call)
            call.queue_up()
            call.ask(self._ask_trees)
            call.wait()
        finally:
            # a signal handler may have raised before it was in the list
            with contextlib.suppress(ValueError):
                self._calls.remove(call)
        return call.stats()

    def dump_status(self, stacks: bool = False) -> str:
        """Return a table of the living threads, for people.

        Its columns are name, state, age, daemon and purpose.

        Args:
            stacks: Put below each thread what it is doing now.
        """
        found = self.active()
        plural, shutdown = "s" * (len(found) != 1), ", shutdown requested" * self.shutdown_requested
        rows = table.rows(found, table.stacks(found) if stacks else {})
        return "\n".join([f"{len(found)} thread{plural}{shutdown}", *rows])

    def subscribe(self, sink: ReportHandler | Puttable) -> None:
        """Give each crash of a spawned thread to *sink*, as a ``ChildTerminated``.

        The sink is called on the thread that dies, and delays its end. An exception
        that it raises is logged. The crashes of children go to the handlers of their
        trees, not here.

        Args:
            sink: A callable, or an object with ``put``; neither may be async.

        Raises:
            SpecError: It is neither, or cannot take a report.
        """
        check_sink(PATH, "sink", sink)
        self._sinks[object()] = handler_of(sink)

    def unsubscribe(self, sink: ReportHandler | Puttable) -> None:
        """Give nothing more to *sink*.

        Raises:
            NotFound: It is not subscribed here.
        """
        handler = handler_of(sink) if callable(sink) or isinstance(sink, Puttable) else None
        for key, one in list(self._sinks.items()):
            # Another thread may unsubscribe the same sink during the comparison. One of
            # the two pops the key; the other one goes on to the next subscription.
            if one == handler and self._sinks.pop(key, None) is not None:
                return
        raise NotFound(PATH, f"{show(sink)} is not subscribed")

    def __enter__(self) -> ThreadRegistry:
        return self

    def __exit__(self, *exc_info: object) -> None:
        stats = self.shutdown_all()
        if stats.timeout:
            telemetry.call(_log_left, stats)

    def _entries(self) -> list[Entry]:
        return [entry for entry in threads.entries() if self._sees(entry)]

    def _sees(self, entry: Entry) -> bool:
        return entry.owner is self

    def _ask_trees(self, within: float) -> dict[Tree, Reply]:
        """Ask the trees to end within so many seconds; return their replies."""
        return {}

    def _admit(self, name: str) -> None:
        if self._flag.has_happened:
            raise NotAlive(name, "shutdown_all has been called: nothing is spawned any more")
        if any(entry.name == name for entry in self._entries()):
            raise AlreadyStarted(name, "a thread of this name is running")

    def _report_crash(self, name: str, reason: ExitReason) -> None:
        """Report that the thread *name* has died, on that thread.

        An exception of the log or of a sink is logged, and goes no further.
        """
        report = ChildTerminated(path=name, thread=name, time=time.time(), reason=reason)
        telemetry.call(log.log_report, report)
        for sink in list(self._sinks.values()):
            telemetry.call(sink, report)


class DefaultRegistry(ThreadRegistry):
    """Sees all threads of otpy that do not belong to a private registry.

    There is one, behind the functions of ``otpy.registry``.
    """

    def _sees(self, entry: Entry) -> bool:
        return entry.owner is self or not isinstance(entry.owner, ThreadRegistry)

    def _ask_trees(self, within: float) -> dict[Tree, Reply]:
        return ask_all(within)


def _log_left(stats: ShutdownStats) -> None:
    names = [printable(name) for name in stats.timeout_names]
    log.logger().error("threads_left", names=names)
