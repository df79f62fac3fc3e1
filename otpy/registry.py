"""Every thread of ours, for people and for the end of a program: who lives, since when, what for; and stop them all.

A ``ThreadRegistry`` spawns threads that belong to no tree, and is a view of the record in threads.py. A private one
sees what it has spawned itself. The default one, behind the functions of this module, sees all but what belongs to a
private one: the threads of the trees too.

Laws:
1. Two living threads of one registry never have one name, and a thread is either refused or waited for by
   ``shutdown_all``, however many spawn and shut down at once.
2. ``shutdown_all`` asks all before it waits for any, and waits for all of them with one budget. It does not wait for
   what waits for itself.
3. A spawned thread that dies of an exception is reported once, whatever it died of.
4. Numbers are true: whoever has not ended is named.
5. No lock is held while a thread starts, while anybody waits, or while user code runs; and none that a signal handler
   could wait for in vain, so handlers may shut down.

Who owns what: the record owns the entries. A registry owns its flag, its sinks (a dict that is only added to and popped
from, so it needs no lock) and the list of the calls of ``shutdown_all`` that are under way. Who runs what: targets and
sinks run in the spawned thread; the hook of ``report_crashes_elsewhere`` in the thread that dies.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from otpy.abc import Puttable, ReportHandler
from otpy.arguments import USE_ASYNCIO, check_call, check_function, check_result, check_sink
from otpy.exceptions import (
    AlreadyStarted,
    CallTimeout,
    NotAlive,
    NotFound,
    Refusal,
    SpecError,
    in_one_line,
    means_success,
    printable,
    show,
)
from otpy.reports import ChildTerminated, ExitKind, ExitReason
from otpy.runtime import log, stacks, telemetry, threads
from otpy.runtime.telemetry import handler_of
from otpy.runtime.threads import Entry, Role, ThreadState
from otpy.runtime.tree import Tree, ask_all
from otpy.runtime.waiting import Door, Once, Reply
from otpy.specs import is_number
from otpy.values import Value

__all__ = [
    "CrashBridge",
    "ShutdownStats",
    "ThreadRegistry",
    "ThreadState",
    "TrackedThread",
    "active",
    "default",
    "dump_status",
    "report_crashes_elsewhere",
    "shutdown_all",
    "shutdown_requested",
    "spawn",
    "subscribe",
    "unregister",
    "unsubscribe",
    "wait_shutdown",
]

TREES_SHARE = 0.9
"""The part of the budget of ``shutdown_all`` in which trees must end, so that what they give up is known in time."""


@attrs.frozen(kw_only=True, repr=False, eq=False)
class TrackedThread(Value):
    """A thread that lives, as it was when somebody looked.

    Attributes:
        thread: The thread itself.
        name: What it was started as.
        path: Its path in its tree, None if it is not a child or a supervisor.
        purpose: What it is for.
        spawned_at: When it was started, seconds since the epoch, for people.
        age: Seconds since then, monotonic.
        daemon: Whether the interpreter ends without waiting for it.
        state: RUNNING; UNSTOPPED: its supervisor has given it up; DETACHED: its supervisor has let it go.
    """

    thread: threading.Thread
    name: str
    path: str | None
    purpose: str
    spawned_at: float
    age: float
    daemon: bool
    state: ThreadState


@attrs.frozen(kw_only=True, repr=False, eq=False)
class ShutdownStats(Value):
    """What became of the threads. ``total == joined + timeout``, and the orphaned are some of ``timeout``.

    Attributes:
        total: How many ran when ``shutdown_all`` was called, the calling one not counted.
        joined: How many of them have ended.
        timeout: How many of them still ran when it returned.
        orphaned: How many of these nobody waits for any more: daemon threads that no running tree answers for. The
            interpreter cuts them off when it exits; for the others it waits, or their tree does.
        duration: Seconds that the call took.
        joined_names, timeout_names, orphaned_names: Which, in the order of their starts.
    """

    total: int
    joined: int
    timeout: int
    orphaned: int
    duration: float
    joined_names: tuple[str, ...]
    timeout_names: tuple[str, ...]
    orphaned_names: tuple[str, ...]


_door = Door(threading.RLock())
"""Guards the moments in which a registry lets a thread in, or closes; a lock that a signal handler can take again."""


class ThreadRegistry:
    """Spawns threads, knows them while they live, and stops them. All methods may be called from any thread.

    As a context manager it calls ``shutdown_all`` when the block is left, and logs the names of what still runs then.
    """

    def __init__(self) -> None:
        self._flag = Once()
        self._sinks: dict[object, ReportHandler] = {}
        self._calls: list[_Shutdown] = []

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

        It should return soon after ``shutdown_requested`` has become true; ``wait_shutdown`` sleeps until then. The
        interpreter waits for it at its exit, and nobody asks it then: call ``shutdown_all`` before. What it dies of,
        if not of SystemExit with code 0 or None, is logged, and goes to the sinks as a ``ChildTerminated``; so is a
        coroutine that *target* returns, since nothing of that has run.

        Args:
            target: A plain function; no class, no async function.
            name: Of the thread; no other one here has it.
            args, kwargs: For *target*.
            daemon: Let the interpreter end without waiting for it: it is cut off anywhere. Warns.
            purpose: What it is for, for people.

        Raises:
            SpecError: An argument is wrong.
            AlreadyStarted: A thread of this name lives here.
            NotAlive: ``shutdown_all`` has been called.
            RuntimeError: The system has no more threads to give, or the interpreter exits.
        """
        name, purpose = _plain(name), _plain(purpose)
        _check(name, "name", name, isinstance(name, str) and name != "", "a non-empty str")
        run = self._body(name, *_checked_call(name, target, args, kwargs))
        _check(name, "daemon", daemon, isinstance(daemon, bool), "True or False")
        _check(name, "purpose", purpose, isinstance(purpose, str), "a str")
        if daemon:
            text = f"{printable(name)} is a daemon thread: when the program ends, it is cut off wherever it is"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        with _door:  # nothing is started here, and nobody waits: shutdown_all finds the entry, or it is not made
            self._admit(name)
            entry = threads.enlist(
                run, name=name, role=Role.SPAWNED, purpose=purpose, owner=self, daemon=daemon
            )
            # A signal handler may have shut down in this thread since _admit: its look
            # has not seen the entry.
            if self._flag.has_happened:
                threads.withdraw(entry)
                self._admit(name)
        return threads.launch(entry)

    def active(self) -> tuple[TrackedThread, ...]:
        """Return the threads that live, in the order of their starts."""
        now = time.monotonic()
        return tuple(
            _tracked(entry, now) for entry in self._entries() if entry.thread.ident is not None
        )

    def unregister(self, thread: threading.Thread) -> bool:
        """Stop tracking a spawned thread: it runs on, and nobody waits for it. Its crash is reported all the same.

        Returns:
            Whether it was tracked here. One that has just ended by itself is not any more.

        Raises:
            SpecError: *thread* is none.
            Refusal: It belongs to a tree: only the tree can let it go.
        """
        _check(
            "<registry>",
            "thread",
            thread,
            isinstance(thread, threading.Thread),
            "a threading.Thread",
        )
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
        """Whether ``shutdown_all`` has been called. It stays true for ever; a forked process inherits it."""
        return self._flag.has_happened

    def wait_shutdown(self, timeout: float | None = None) -> bool:
        """Wait until ``shutdown_all`` is called, or *timeout* seconds; return whether it has been called.

        Raises:
            SpecError: *timeout* is negative or not a number.
        """
        is_right = timeout is None or timeout == math.inf or (is_number(timeout) and timeout >= 0)
        _check("<registry>", "timeout", timeout, is_right, "a number of seconds >= 0, or None")
        return self._flag.wait(timeout)

    def shutdown_all(self, timeout: float = 10.0) -> ShutdownStats:
        """Ask all threads to stop, and wait for their ends; from now on none is spawned here.

        All are asked before any is waited for. The default registry asks the running trees too, each of which stops in
        order, and waits for these first; and it asks the threads that trees have let go. Not waited for are threads
        that their supervisor has given up, and those that wait for this very call: the calling thread, the tree that
        it is a thread of, and whoever had called this before and still waits in it.

        Calling it again asks again, waits again with a budget of its own, and returns what it saw.

        Args:
            timeout: Seconds for all together. Trees interrupt their children before the last tenth of it begins.

        Raises:
            SpecError: *timeout* is not a finite number >= 0.
        """
        is_right = is_number(timeout) and timeout >= 0
        _check("<registry>", "timeout", timeout, is_right, "a finite number of seconds >= 0")
        call = _Shutdown(self, timeout)
        with (
            _door
        ):  # whoever is in the record now is counted and waited for; whoever comes later is refused
            call.look()
            self._flag.happen()
        try:
            self._calls.append(call)
            call.queue_up()
            call.ask()
            call.wait()
        finally:
            # a signal handler raised before it was in the list
            with contextlib.suppress(ValueError):
                self._calls.remove(call)
        return call.stats()

    def dump_status(self, stacks: bool = False) -> str:
        """Return a table of the living threads, for people: name, state, age, daemon, purpose.

        Args:
            stacks: Put under each thread what it is doing now.
        """
        found = self.active()
        stack_of = _stacks(found) if stacks else {}
        count = f"{len(found)} thread{'s' * (len(found) != 1)}{', shutdown requested' * self.shutdown_requested}"
        return "\n".join([count, *_table(found, stack_of)])

    def subscribe(self, sink: ReportHandler | Puttable) -> None:
        """Give every crash of a spawned thread to *sink*, as a ``ChildTerminated``, from now on.

        It is called in the thread that dies, which so long is not over. What it raises is logged. The crashes of
        children go to the handlers of their trees, not here.

        Args:
            sink: A callable, or anything with ``put``; neither may be async.

        Raises:
            SpecError: It is neither, or cannot take a report.
        """
        check_sink("<registry>", "sink", sink)
        self._sinks[object()] = handler_of(sink)

    def unsubscribe(self, sink: ReportHandler | Puttable) -> None:
        """Give nothing more to *sink*.

        Raises:
            NotFound: It is not subscribed here.
        """
        handler = handler_of(sink) if callable(sink) or isinstance(sink, Puttable) else None
        for key, one in list(self._sinks.items()):
            if one == handler and self._sinks.pop(key, None) is not None:
                return
        raise NotFound("<registry>", f"{show(sink)} is not subscribed")

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
        return {}

    def _admit(self, name: str) -> None:
        if self._flag.has_happened:
            raise NotAlive(name, "shutdown_all has been called: nothing is spawned any more")
        if any(entry.name == name for entry in self._entries()):
            raise AlreadyStarted(name, "a thread of this name is running")

    def _body(
        self,
        name: str,
        target: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Callable[[], None]:
        def run() -> None:
            try:
                self._report_end(name, _outcome(target, args, kwargs))
            # another thread raised it in here, after the target's last line
            except BaseException as late:
                self._report_end(name, late)

        return run

    def _report_end(self, name: str, error: BaseException | None) -> None:
        if error is not None and not means_success(error):
            self._tell(name, ExitReason(ExitKind.CRASHED, error))

    def _tell(self, name: str, reason: ExitReason) -> None:
        """Report that the thread *name* has died; whatever goes wrong in here is logged."""
        report = ChildTerminated(path=name, thread=name, time=time.time(), reason=reason)
        telemetry.call(log.log_report, report)
        for sink in list(self._sinks.values()):
            telemetry.call(sink, report)


class _DefaultRegistry(ThreadRegistry):
    """Sees the trees too, and whatever else does not belong to a private registry."""

    def _sees(self, entry: Entry) -> bool:
        return entry.owner is self or not isinstance(entry.owner, ThreadRegistry)

    def _ask_trees(self, within: float) -> dict[Tree, Reply]:
        return ask_all(within)


# Input


def _check(name: object, field: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise SpecError(
            name if isinstance(name, str) and name else "<thread>", field, value, expected
        )


def _plain(text: Any) -> Any:
    """Return a plain str: one of the user's own class could run code while the door is
    held.
    """
    return str.__str__(text) if isinstance(text, str) else text


def _checked_call(
    name: Any, target: Any, args: Any, kwargs: Any
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return target, args, kwargs, or refuse what would crash in the thread's first moment."""
    check_function(name, "target", target, "a callable", USE_ASYNCIO)
    is_right = isinstance(args, Iterable) and not isinstance(args, str | bytes)
    _check(name, "args", args, is_right, "a tuple, or another iterable that is no string")
    is_right = kwargs is None or (
        isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)
    )
    _check(name, "kwargs", kwargs, is_right, "a dict whose keys are str, or None")
    args, kwargs = tuple(args), dict(kwargs or {})
    check_call(name, "target", target, args, "a callable that takes args and kwargs", kwargs=kwargs)
    return target, args, kwargs


def _outcome(
    target: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> BaseException | None:
    """Call *target*; return what it raised."""
    try:
        check_result(target, target(*args, **kwargs), USE_ASYNCIO)
    except BaseException as error:
        return error
    return None


# What people see


def _log_left(stats: ShutdownStats) -> None:
    log.logger().error("threads_left", names=[printable(name) for name in stats.timeout_names])


def _tracked(entry: Entry, now: float) -> TrackedThread:
    return TrackedThread(
        thread=entry.thread,
        name=entry.name,
        path=entry.name if entry.role in (Role.CHILD, Role.SUPERVISOR) else None,
        purpose=entry.purpose,
        spawned_at=entry.spawned_at,
        age=max(0.0, now - entry.since),
        daemon=entry.thread.daemon,
        state=entry.state,
    )


def _table(
    found: Sequence[TrackedThread], stack_of: Mapping[threading.Thread, str]
) -> Iterator[str]:
    """Yield the lines of a table, its columns as wide as they must be."""
    rows = [("name", "state", "age", "daemon", "purpose"), *(_row(one) for one in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from _line(rows[0], widths, "")
    for row, one in zip(rows[1:], found, strict=True):
        yield from _line(row, widths, stack_of.get(one.thread, ""))


def _line(row: Sequence[str], widths: Sequence[int], stack: str) -> Iterator[str]:
    yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield from (f"    {line}" for line in stack.splitlines())


def _row(one: TrackedThread) -> tuple[str, ...]:
    return (
        in_one_line(one.name),
        one.state.value,
        f"{one.age:.1f} s",
        "yes" if one.daemon else "no",
        in_one_line(one.purpose),
    )


def _stacks(found: Sequence[TrackedThread]) -> dict[threading.Thread, str]:
    """Return what the threads are doing, formatted like tracebacks; "" for one that has
    ended.
    """
    texts = [stacks.stack_of(one.thread.ident) for one in found]
    # a thread that has ended may have left its number to another one, whose stack this
    # is
    pairs = zip(found, texts, strict=True)
    return {one.thread: printable(stack) if one.thread.is_alive() else "" for one, stack in pairs}


# Shutdown


@attrs.define(eq=False, repr=False)
class _Shutdown:
    """One call of ``shutdown_all``.

    Attributes:
        registry, timeout, began: Of which registry, and its budget.
        caller: The entry of the calling thread, if it is one of them.
        seen: The others.
        ends: What each tree will answer when it has ended.
        earlier: The calls that the caller must not wait for, since they wait for it.
        asked: Those that trees have let go, and that have been asked.
    """

    registry: ThreadRegistry
    timeout: float
    began: float = attrs.field(factory=time.monotonic)
    caller: Entry | None = None
    seen: list[Entry] = attrs.field(factory=list)
    ends: dict[Tree, Reply] = attrs.field(factory=dict)
    earlier: list[_Shutdown] = attrs.field(factory=list)
    asked: set[Entry] = attrs.field(factory=set)

    def look(self) -> None:
        """Note who runs now."""
        entries, here = self.registry._entries(), threading.current_thread()
        self.caller = next((entry for entry in entries if entry.thread is here), None)
        self.seen = [entry for entry in entries if entry is not self.caller]

    def queue_up(self) -> None:
        """Note who came before. The order of the list decides: of two calls at once only one waits for the other."""
        calls = list(self.registry._calls)
        self.earlier = calls[: calls.index(self)] if self.caller is not None else []

    def ask(self) -> None:
        """Ask the trees and those that they have let go; the flag, which asks the others, is set."""
        self.ends = self.registry._ask_trees(self.timeout * TREES_SHARE)
        self._ask_let_go()

    def _ask_let_go(self) -> None:
        for entry in self.seen:
            if entry.ask is not None and entry not in self.asked:
                self.asked.add(entry)
                _ask(entry.name, entry.ask)

    def wait(self) -> None:
        """Wait for the trees, then for the threads, together as long as the budget lasts."""
        for tree, end in self.ends.items():
            if tree not in self._waits_for_us():
                with contextlib.suppress(CallTimeout):
                    end.wait(self._left(), tree.root)
        self._ask_let_go()  # a tree may have let go more until its end, and nobody else asks these
        bound = self._waits_for_us()
        threads.join_all([entry for entry in self.seen if _will_end(entry, bound)], self._left())

    def stats(self) -> ShutdownStats:
        """Look again, and count."""
        running = {
            tree for tree, end in self.ends.items() if not end.is_given
        }  # before the look at their threads
        # in the order of their starts
        alive = dict.fromkeys(entry for entry in self.seen if entry.alive)
        joined = tuple(entry.name for entry in self.seen if entry not in alive)
        left = tuple(entry.name for entry in alive)
        orphaned = tuple(entry.name for entry in alive if _is_orphan(entry, running))
        return ShutdownStats(
            total=len(self.seen),
            joined=len(joined),
            timeout=len(left),
            orphaned=len(orphaned),
            duration=time.monotonic() - self.began,
            joined_names=joined,
            timeout_names=left,
            orphaned_names=orphaned,
        )

    def _left(self) -> float:
        return max(0.0, self.began + self.timeout - time.monotonic())

    def _holds(self) -> set[object]:
        """Return what cannot end before the calling thread goes on: that thread, and the tree that waits for it."""
        if self.caller is None:
            return set()
        return {self.caller.thread, *([self.caller.owner] if _is_bound(self.caller) else [])}

    def _waits_for_us(self) -> set[object]:
        """Return what we hold, and what those hold that came before and wait for us: two never wait for each other."""
        calls = [call for call in self.earlier if call in self.registry._calls]
        return self._holds().union(*(call._holds() for call in calls))


def _ask(name: str, ask: Callable[[], object]) -> None:
    try:
        ask()
    except BaseException as error:  # a new kind of child breaks its contract
        log.complain("ask_failed", error, path=name)


def _is_bound(entry: Entry) -> bool:
    """Whether a tree waits for its end."""
    return isinstance(entry.owner, Tree) and entry.state is ThreadState.RUNNING


def _is_orphan(entry: Entry, running: Container[object]) -> bool:
    """Whether neither the interpreter waits for its end nor one of the *running* trees."""
    return entry.thread.daemon and not (_is_bound(entry) and entry.owner in running)


def _will_end(entry: Entry, bound: set[object]) -> bool:
    """Whether there is hope: it was not given up, and neither it nor its tree nor its starter has to wait for us."""
    if entry.state is ThreadState.UNSTOPPED or entry.thread in bound:
        return False
    if not entry.has_begun and entry.starter == threading.get_ident():
        return False  # we are in a signal handler, amidst spawn
    return not (_is_bound(entry) and entry.owner in bound)


# Threads that were started elsewhere


class CrashBridge:
    """The ``threading.excepthook`` of ``report_crashes_elsewhere``; as a context manager it closes itself.

    Bridges and hooks of others may be put on top of each other and removed in any order: a crash is reported by one
    bridge only, and a closed one that still is somebody's previous hook passes on what it gets.
    """

    def __init__(self, tell: Callable[[str, ExitReason], None]) -> None:
        self._tell, self._is_open = tell, True
        with _door:
            self._previous = threading.excepthook
            threading.excepthook = self

    def close(self) -> None:
        """Put back the hook that was there before. Idempotent."""
        with _door:
            self._is_open = False
            if threading.excepthook is self:
                threading.excepthook = self._below()

    def __call__(self, args: threading.ExceptHookArgs, /) -> None:
        """Report, then call the hook that was there before, unless it is the interpreter's own, which only prints."""
        if self._is_open and not getattr(_hook, "is_busy", False):
            _hook.is_busy = True
            try:
                self._report(args)
                self._pass_on(args)
            finally:
                _hook.is_busy = False
        else:
            self._pass_on(args)

    def __enter__(self) -> CrashBridge:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _report(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:  # the interpreter says nothing about it either
            name = args.thread.name if args.thread is not None else "<unknown thread>"
            detail = None if args.exc_value is not None else args.exc_type.__name__
            self._tell(name, ExitReason(ExitKind.CRASHED, args.exc_value, detail))

    def _pass_on(self, args: threading.ExceptHookArgs) -> None:
        below = self._below()
        if not self._is_open or below is not threading.__excepthook__:
            below(args)

    def _below(self) -> Callable[[threading.ExceptHookArgs], Any]:
        below = self._previous
        while isinstance(below, CrashBridge) and not below._is_open:
            below = below._previous
        return below


_hook = threading.local()
"""Whether a bridge is reporting in this thread."""


# The default registry

_default = _DefaultRegistry()

spawn = _default.spawn
active = _default.active
unregister = _default.unregister
wait_shutdown = _default.wait_shutdown
shutdown_all = _default.shutdown_all
dump_status = _default.dump_status
subscribe = _default.subscribe
unsubscribe = _default.unsubscribe


def default() -> ThreadRegistry:
    """Return the default registry, whose methods are the functions of this module."""
    return _default


def shutdown_requested() -> bool:
    """Return whether ``shutdown_all`` of the default registry has been called."""
    return _default.shutdown_requested


def report_crashes_elsewhere() -> CrashBridge:
    """Report crashes of threads that otpy did not start, from now on, as those of the default registry.

    Sets ``threading.excepthook``. What was there before is called after the report, unless it is the interpreter's own,
    which would print the traceback once more.

    Returns:
        What ends it: ``close()`` it, or use it as a context manager.
    """
    return CrashBridge(_default._tell)


def _after_fork() -> None:
    """Another thread may have held the door at the fork; it does not exist here."""
    global _door  # noqa: PLW0603
    _door = Door(threading.RLock())


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
