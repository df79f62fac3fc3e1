"""The record of the threads of otpy. No other module of otpy starts a thread.

The threads that otpy needs for itself are daemon threads, so one that cannot be stopped
does not keep the interpreter from ending. ``at_exit`` stops, in order, the trees that
still run when the interpreter ends.

Laws:
1. A start has a limit. ``threading.Thread.start`` waits without a limit until the new
   thread has set ``_started``. Where memory is exhausted, the thread ends before that.
2. The end of each thread can be known, even if it never ran a line of Python. The object
   that the system's thread is to call is released then, and a weak reference to this
   object, the *witness*, notices.
3. A thread does not see the context variables of the thread that has started it.

The starting thread makes an entry before the start. The started thread removes it as its
last act. ``mark`` is called by the supervisor of the thread, or by the thread itself. Any
thread may read, and gets copies. Whether a thread runs is decided once: by the thread
itself as its first act, or by its starter if the start fails.
"""

from __future__ import annotations

import contextvars
import enum
import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Container, Sequence
from typing import Any

import attrs

from otpy.runtime.waiting import Once, bounded
from otpy.values import running


class Role(enum.Enum):
    """What a thread is for.

    A loop runs coroutine children. A handler thread calls the tree's handlers of reports
    and escalations, and the log. A helper runs ``on_stop`` callbacks, and what a kind of
    child needs besides. A ``ThreadRegistry`` spawns the threads of its users.
    """

    CHILD = "child"
    SUPERVISOR = "supervisor"
    LOOP = "loop"
    HELPER = "helper"
    HANDLER = "handler"
    SPARE = "spare"
    SPAWNED = "spawned"


class ThreadState(enum.Enum):
    """Whether a thread still belongs to its owner, could not be stopped, or was let go."""

    RUNNING = "running"
    UNSTOPPED = "unstopped"
    DETACHED = "detached"


STARTS_NONE_LATE = (3, 12) <= sys.version_info < (3, 12, 3)
"""Whether no thread can be started once the main thread has ended.

Other versions of Python allow it until ``atexit``."""

DOUBT = 0.1
"""Seconds without an answer after which a thread looks whether the other one has ended."""

START_LIMIT = 1.0
"""Seconds that a starter waits for a thread with a witness to begin.

If the thread ends later than that, its witness reports it."""


class Witness(weakref.ref[Any]):
    """A weak reference to the object that a thread calls first; only the thread holds it.

    Attributes:
        if_lost: Called if the thread has ended in another way than by returning from its
            target. None while the starter waits for the begin of the thread: the starter
            itself sees then that the thread has ended.
    """

    __slots__ = ("if_lost",)

    if_lost: Callable[[], object] | None

    def speak(self) -> None:
        """Call ``if_lost``; do nothing if a signal has interrupted the making of it."""
        if (if_lost := getattr(self, "if_lost", None)) is not None:
            if_lost()


class Thread(threading.Thread):
    """A ``threading.Thread`` whose start has a limit, and whose end has a witness.

    Attributes:
        if_lost: What its witness calls.
        witness: Made when the thread starts. Dropped when the target has returned: then
            there is nothing to report.
    """

    witness: Witness | None = None

    def __init__(
        self,
        target: Callable[[], object],
        name: str,
        daemon: bool,
        if_lost: Callable[[], object] | None,
        report: Callable[[Witness], object],
    ) -> None:
        if sys.version_info >= (3, 14):
            # A thread inherits the context variables of its starter in free-threaded
            # builds, and in others with an option.
            super().__init__(target=target, name=name, daemon=daemon, context=contextvars.Context())
        else:
            super().__init__(target=target, name=name, daemon=daemon)
        self.if_lost, self._report = if_lost, report
        self._started = _Begun(self)

    @property
    def _bootstrap(self) -> Callable[[], None]:
        """What the system's thread calls; ``start`` reads it once."""
        try:
            first = functools.partial(threading.Thread._bootstrap, self)  # type: ignore[attr-defined]
            self.witness = Witness(first, self._report)
            self.witness.if_lost = None
            return first  # noqa: TRY300 - a signal handler may raise here as well
        except BaseException:
            self.witness = None  # it will never begin
            raise

    def arm_witness(self) -> bool:
        """Have the witness call ``if_lost`` from now on.

        Return whether there is one.
        """
        if self.witness is not None:
            self.witness.if_lost = self.if_lost
        return self.if_lost is not None

    @property
    def is_lost(self) -> bool:
        """Whether it has ended in another way than by returning from its target."""
        witness = self.witness
        return witness is not None and witness() is None

    def forget_start(self) -> None:
        """Remove it from Python's list of threads that are about to start: it never
        will.
        """
        getattr(threading, "_limbo", {}).pop(self, None)


class _Begun:
    """Stands in for the ``Event`` at which ``Thread.start`` waits until the thread has
    begun.
    """

    __slots__ = ("_is_set", "_lock", "_thread")

    def __init__(self, thread: Thread) -> None:
        self._thread = weakref.ref(thread)
        self._is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            thread = self._thread()
            if thread is not None:
                thread.arm_witness()
            self._is_set = True
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the thread has begun, at most START_LIMIT if it has a witness.

        Raises:
            RuntimeError: The thread has ended before.
        """
        deadline = time.monotonic() + START_LIMIT
        while not self._lock.acquire(timeout=DOUBT):
            thread = self._thread()
            if self._is_set or thread is None:
                break
            if thread.is_lost:
                thread.forget_start()
                raise RuntimeError("can't start new thread: it ended before it could begin")
            if time.monotonic() > deadline and thread.arm_witness():
                # The thread may have ended between the look above and the arming: then
                # the witness was called, and had nothing to call. So look once more.
                if thread.is_lost:
                    continue
                break
        return self._is_set

    def _at_fork_reinit(self) -> None:
        self._lock = threading.Lock()


@running
class Entry:
    """A living thread of otpy, or one that is about to start.

    Attributes:
        target, role, purpose: What the thread runs, and what for.
        owner: The tree or the registry that it belongs to.
        name: The name that it was given here. Its user may give the thread another one.
        thread: The thread.
        spawned_at: When it was started, wall clock.
        since: The same, monotonic.
        state: Whether it still belongs to its owner.
        ask: Asks it to stop, where its owner does not do that any more.
        starter: The number of the thread that starts it; 0: the start is complete.
        ended: Happens when it has run, or will never run.
        keeps: What must live as long as the thread, even if the interpreter ends first.
    """

    target: Callable[[], object]
    role: Role
    purpose: str
    owner: object
    name: str
    thread: Thread = attrs.field(init=False)
    spawned_at: float = attrs.field(factory=time.time)
    since: float = attrs.field(factory=time.monotonic)
    state: ThreadState = ThreadState.RUNNING
    ask: Callable[[], object] | None = None
    starter: int = attrs.field(factory=threading.get_ident)
    ended: Once = attrs.field(factory=Once)
    keeps: Sequence[object] = ()

    @property
    def has_begun(self) -> bool:
        """Whether it is decided that it runs, or that it never will."""
        return self not in _undecided

    @property
    def alive(self) -> bool:
        """Whether it runs, or is about to start."""
        # The thread may begin between the two looks. In the other order it would be
        # seen first as not alive, and then as one that is not about to start.
        is_coming = not self.has_begun and not self.thread.is_lost
        return is_coming or self.thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait *timeout* seconds for its end. A thread does not wait for itself."""
        deadline = time.monotonic() + timeout
        if self.thread is threading.current_thread() or not self.alive:
            return
        # ``Thread.join`` comes last: if it is interrupted, CPython before 3.13 takes
        # the thread for dead. It refuses a thread that has never started.
        if self.ended.wait(timeout) and self.thread.is_alive():
            self.thread.join(bounded(deadline - time.monotonic()))

    def run(self) -> None:
        """Be the thread."""
        if not _undecided.pop(self, False):
            return  # its starter was interrupted meanwhile, and has called it off
        try:
            self.target()
            # Nothing is left to be reported; and ``if_lost`` holds the thread in a
            # cycle.
            self.thread.witness = self.thread.if_lost = None
        finally:
            _entries.pop(self.thread, None)
            self.ended.happen()


_entries: dict[threading.Thread, Entry] = {}
_undecided: dict[Entry, bool] = {}
"""The entries of which it is not decided whether they run.

The thread that removes one has decided."""


def spawn(
    target: Callable[[], object],
    *,
    name: str,
    role: Role,
    purpose: str,
    owner: object,
    daemon: bool = True,
    if_lost: Callable[[], object] | None = None,
) -> Thread:
    """Start a thread.

    Args:
        target, name, role, purpose, owner: See ``Entry``.
        daemon: Whether the interpreter may end before it.
        if_lost: Called, on any thread, if it ends in another way than by returning from
            *target*. It must not raise.

    Raises:
        RuntimeError: The system has no more threads to give, or no memory to begin one,
            or the interpreter is ending.
    """
    try:
        return launch(
            enlist(
                target,
                name=name,
                role=role,
                purpose=purpose,
                owner=owner,
                daemon=daemon,
                if_lost=if_lost,
            )
        )
    except BaseException:
        call_off(owner)
        raise


def enlist(
    target: Callable[[], object],
    *,
    name: str,
    role: Role,
    purpose: str,
    owner: object,
    daemon: bool = True,
    if_lost: Callable[[], object] | None = None,
    report: Callable[[Witness], object] = Witness.speak,
) -> Entry:
    """Make the entry of a thread that ``launch`` is to start.

    Args:
        target, name, role, purpose, owner, daemon, if_lost: As for ``spawn``.
        report: Called with the witness, on any thread, if the thread is lost. It has to
            see to it that ``if_lost`` is called.
    """
    entry = Entry(target, role, purpose, owner, name)
    entry.thread = Thread(entry.run, name, daemon, if_lost, report)
    # An exception may come between the two lines. ``call_off`` looks into the first
    # dict: in the other order it would leave an entry in the record.
    _undecided[entry] = True
    _entries[entry.thread] = entry
    return entry


def launch(entry: Entry) -> Thread:
    """Start the thread of *entry*.

    A signal handler may raise meanwhile, and its exception leaves this function. The
    thread then either runs and is in the record, or never will run.

    Raises:
        RuntimeError: The system has no more threads to give, or no memory to begin one,
            or the interpreter is ending.
    """
    try:
        entry.thread.start()
    except BaseException:
        withdraw(entry)
        # ``Thread.start`` itself removes it from its list only if it was an Exception.
        if entry.thread.witness is None:
            entry.thread.forget_start()
        raise
    entry.starter = 0  # shutdown_all may wait for it from now on, also on this thread
    return entry.thread


def withdraw(entry: Entry) -> None:
    """Remove *entry* from the record, unless its thread runs."""
    if _undecided.pop(entry, False):
        forget(entry.thread)
        entry.ended.happen()


def call_off(owner: object) -> None:
    """Let no thread of *owner* begin any more that the calling thread was starting.

    For a start that a signal handler has interrupted.
    """
    for entry in list(_undecided):
        if entry.owner is owner and entry.starter == threading.get_ident():
            withdraw(entry)


def transform(entry: Entry, target: Callable[[], object], name: str, purpose: str) -> Thread:
    """Let the thread of *entry*, a spare, be the one of a child from now on.

    The old entry is replaced and not changed: a reader sees either the old one or the
    new one, never a mixture. If the thread has ended meanwhile, none is in the record.
    """
    new = Entry(target, Role.CHILD, purpose, entry.owner, name)
    new.thread, new.ended = entry.thread, entry.ended
    new.thread.name = name
    if new.thread in _entries:
        _entries[new.thread] = new
    return new.thread


def forget(thread: threading.Thread) -> bool:
    """Remove the entry of *thread*; return whether there was one."""
    return _entries.pop(thread, None) is not None


def when_ended(thread: threading.Thread, callback: Callable[[], object]) -> None:
    """Have *callback* called when *thread*, if it is in the record, has ended.

    The callback must not block or raise.
    """
    if (entry := _entries.get(thread)) is not None:
        entry.ended.when(callback, callback)


def mark(
    thread: threading.Thread, state: ThreadState, ask: Callable[[], object] | None = None
) -> None:
    """Note the *state* of *thread*, if it still lives, and how to ask it to stop."""
    if (entry := _entries.get(thread)) is not None:
        entry.state, entry.ask = state, ask


def entries(owner: object = None) -> list[Entry]:
    """Return the living threads, of one *owner* or all, in the order of their starts."""
    # An exception from another thread may have hit a thread in its last act, or its
    # starter between ``enlist`` and ``launch``. Their entries are removed here.
    for entry in list(_entries.values()):
        if not entry.alive or _will_never_start(entry):
            forget(entry.thread)
            _undecided.pop(entry, None)
            entry.ended.happen()
    found = [entry for entry in list(_entries.values()) if owner is None or entry.owner is owner]
    # A thread that was a spare stands where the spare stood, but began as a child
    # later.
    return sorted(found, key=lambda entry: entry.since)


def _will_never_start(entry: Entry) -> bool:
    """Whether the thread that was to start it has ended between ``enlist`` and
    ``launch``.
    """
    is_on_its_way = entry.has_begun or entry.thread.witness is not None
    return not is_on_its_way and all(one.ident != entry.starter for one in threading.enumerate())


def settle(owner: object, roles: Container[Role], timeout: float) -> tuple[str, ...]:
    """Wait until the threads of *owner* in these *roles* have ended.

    A thread that could not be stopped, or was let go, is not waited for.

    Args:
        owner, roles: Which threads.
        timeout: Seconds for all together.

    Returns:
        The names of the threads that have not ended.
    """
    waited_for = [
        one for one in entries(owner) if one.role in roles and one.state is ThreadState.RUNNING
    ]
    return tuple(one.name for one in join_all(waited_for, timeout))


def join_all(waited_for: Sequence[Entry], timeout: float) -> list[Entry]:
    """Wait *timeout* seconds for all together; return those that still live.

    A thread does not wait for itself.
    """
    deadline = time.monotonic() + timeout
    for entry in waited_for:
        entry.join(max(0.0, deadline - time.monotonic()))
    return [entry for entry in waited_for if entry.alive]


forks = 0
"""How often this process has become another one, by a fork.

A thread that calls the user's code again and again looks here after each call: that code
may have forked, and returned in the forked process. There the thread must not go on, or
a second process would do the same work."""


def forget_all() -> None:
    """Forget every thread: a forked process has only the one that has forked."""
    global forks  # noqa: PLW0603
    forks += 1
    _entries.clear()
    _undecided.clear()
