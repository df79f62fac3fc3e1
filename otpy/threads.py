"""Every thread of ours that lives. Nothing else in otpy starts a thread.

The threads that otpy needs for itself are daemon threads, so that one that cannot be stopped does not hold the
interpreter hostage; trees that still run when the interpreter exits are stopped in order by tree.py.

Who owns what: an entry is made by whoever starts the thread, before it starts, and removed by the thread itself as its
last act; ``mark`` is called by the supervisor of the thread, or by the thread itself, and all of ``Spawner`` by the
supervisor. Readers may come from any thread, and take copies. Whether a thread runs is settled once: by itself as its
first act, or by its starter, if the start fails.
"""

from __future__ import annotations

import contextlib
import enum
import sys
import threading
import time
import traceback
from collections.abc import Callable, Container, Sequence

import attrs

from otpy.mailbox import Once, bounded


class Role(enum.Enum):
    """What a thread is for.

    Loops run coroutine children, helpers run handlers and callbacks; programs spawn theirs in a ``ThreadRegistry``.
    """

    CHILD = "child"
    SUPERVISOR = "supervisor"
    LOOP = "loop"
    HELPER = "helper"
    SPARE = "spare"
    SPAWNED = "spawned"


class ThreadState(enum.Enum):
    """What became of a thread: it belongs to something, could not be stopped, or was let go."""

    RUNNING = "running"
    UNSTOPPED = "unstopped"
    DETACHED = "detached"


@attrs.define(eq=False, repr=False)
class Entry:
    """A living thread of ours, or one that is about to start.

    Attributes:
        target, role, purpose: What it runs, and what for.
        name: The one that was given to it; anybody may change that of the thread.
        owner: The tree or the registry that it belongs to.
        thread: Which.
        spawned_at: When it was started, wall clock.
        since: The same, monotonic.
        state: What became of it.
        ask: How to ask it to stop, where its owner does not do that any more.
        starter: The number of the thread that starts it.
        begun: Happens when it runs, or will never run.
        ended: Happens when it has run, or will never run.
    """

    target: Callable[[], object]
    role: Role
    purpose: str
    owner: object
    name: str
    thread: threading.Thread = attrs.field(init=False)
    spawned_at: float = attrs.field(factory=time.time)
    since: float = attrs.field(factory=time.monotonic)
    state: ThreadState = ThreadState.RUNNING
    ask: Callable[[], object] | None = None
    starter: int = attrs.field(factory=threading.get_ident)
    begun: Once = attrs.field(factory=Once)
    ended: Once = attrs.field(factory=Once)

    @property
    def alive(self) -> bool:
        """Whether it runs, or is about to start."""
        return not self.begun.has_happened or self.thread.is_alive()  # in this order: it may start between the two

    def join(self, timeout: float) -> None:
        """Wait *timeout* seconds for its end. A thread does not wait for itself.

        ``Thread.join`` comes last: where that is interrupted, CPython before 3.13 takes the thread for dead.
        """
        deadline = time.monotonic() + timeout
        if self.thread is threading.current_thread():
            return
        if not self.begun.wait(timeout) or not self.thread.is_alive():  # one that has not started cannot be joined
            return
        if self.ended.wait(max(0.0, deadline - time.monotonic())):
            self.thread.join(bounded(deadline - time.monotonic()))

    def run(self) -> None:
        """Be the thread."""
        if not self.settle_start():
            return  # whoever started it was interrupted meanwhile, and has given it up
        try:
            self.target()
        finally:
            forget(self.thread)
            self.ended.happen()

    def settle_start(self) -> bool:
        """Decide whether it runs; return False if that has been decided already: one only can take it out."""
        if not _undecided.pop(self, False):
            return False
        self.begun.happen()
        return True


_entries: dict[threading.Thread, Entry] = {}
_undecided: dict[Entry, bool] = {}


def spawn(
    target: Callable[[], object], *, name: str, role: Role, purpose: str, owner: object, daemon: bool = True
) -> threading.Thread:
    """Start a thread.

    Raises:
        RuntimeError: The system has no more threads to give, or the interpreter exits.
    """
    return launch(enlist(target, name=name, role=role, purpose=purpose, owner=owner, daemon=daemon))


def enlist(
    target: Callable[[], object], *, name: str, role: Role, purpose: str, owner: object, daemon: bool = True
) -> Entry:
    """Make the entry of a thread that is to be started by ``launch``."""
    entry = Entry(target, role, purpose, owner, name)
    entry.thread = threading.Thread(target=entry.run, name=name, daemon=daemon)
    _entries[entry.thread] = entry
    _undecided[entry] = True
    return entry


def launch(entry: Entry) -> threading.Thread:
    """Start the thread of *entry*.

    What a signal handler raises meanwhile is raised here; the thread then runs, and is in the record, or never will.

    Raises:
        RuntimeError: The system has no more threads to give, or the interpreter exits.
    """
    try:
        entry.thread.start()
    except BaseException:
        if entry.settle_start():
            forget(entry.thread)
            entry.ended.happen()
        raise
    return entry.thread


class Spawner:
    """Starts the threads of one supervisor's children, and keeps a spare: started, parked, and never used before.

    A replacement that gets the spare does not wait until the system has made a thread. Nobody gets a thread that has
    run before: what one child leaves in it (thread-locals, context variables) must not meet the next one.

    All of this is called by the supervisor's thread, and nothing else touches it.

    Attributes:
        is_short: Whether a spare is wanted, and there is none.
    """

    __slots__ = ("_keeps_one", "_name", "_owner", "_spare", "is_short")

    def __init__(self, owner: object, name: str) -> None:
        self._owner, self._name = owner, name
        self._spare: Spare | None = None
        self._keeps_one = self.is_short = False

    def keep_one(self) -> None:
        """Want a spare from the next ``spawn`` on."""
        self._keeps_one = True

    def spawn(self, target: Callable[[], object], *, name: str, purpose: str) -> threading.Thread:
        """Have *target* run as a child in a thread that has run nothing before.

        Raises:
            RuntimeError: The system has no more threads to give, or the interpreter exits.
        """
        self.is_short = self._keeps_one
        spare, self._spare = self._spare, None
        if spare is not None and (thread := spare.become(target, name=name, purpose=purpose)) is not None:
            return thread
        return launch(enlist(target, name=name, role=Role.CHILD, purpose=purpose, owner=self._owner))

    def refill(self) -> None:
        """Make a spare, if the system has one more thread to give."""
        self.is_short = False
        with contextlib.suppress(Exception):  # also what an audit hook says: nobody needs a spare
            self._spare = Spare(self._owner, self._name)

    def close(self) -> None:
        """Send the spare home."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.dismiss()


DOUBT = 0.1
"""After so many seconds without an answer look whether a spare is still alive."""


class Spare:
    """A thread that waits until somebody needs one."""

    __slots__ = ("_entry", "_gate", "_taken", "_target")

    def __init__(self, owner: object, name: str) -> None:
        self._target: Callable[[], object] | None = None
        self._gate, self._taken = threading.Lock(), threading.Lock()
        self._gate.acquire()
        self._taken.acquire()
        purpose = "waits to be a replacement"
        self._entry = enlist(self._wait, name=f"{name} (spare)", role=Role.SPARE, purpose=purpose, owner=owner)
        launch(self._entry)

    def become(self, target: Callable[[], object], *, name: str, purpose: str) -> threading.Thread | None:
        """Let it run *target* as a child; None: it has died while it waited, of what somebody raised in it.

        Waits until it runs: or this thread would go on with the interpreter's lock, and the other one wake up twice.
        """
        thread = self._turn_into_child(target, name, purpose)
        self._gate.release()
        while not self._taken.acquire(timeout=DOUBT):
            if not thread.is_alive() and not self._taken.acquire(blocking=False):  # in this order
                forget(thread)
                return None
        return thread

    def _turn_into_child(self, target: Callable[[], object], name: str, purpose: str) -> threading.Thread:
        before, self._target = self._entry, target
        del self._entry  # together they would be a cycle
        entry = Entry(target, Role.CHILD, purpose, before.owner, name)  # a new one: readers see the old or this
        entry.thread, entry.begun, entry.ended = before.thread, before.begun, before.ended
        entry.thread.name = name
        if entry.thread in _entries:  # or it has died
            _entries[entry.thread] = entry
        return entry.thread

    def dismiss(self) -> None:
        """Let it end without having run anything."""
        del self._entry
        self._gate.release()

    def _wait(self) -> None:
        self._gate.acquire()
        if self._target is not None:
            self._taken.release()
            self._target()


def forget(thread: threading.Thread) -> bool:
    """Drop the entry of *thread*; return whether there was one."""
    return _entries.pop(thread, None) is not None


def mark(thread: threading.Thread, state: ThreadState, ask: Callable[[], object] | None = None) -> None:
    """Note what became of *thread*, if it still lives, and how to ask it to stop."""
    if (entry := _entries.get(thread)) is not None:
        entry.state, entry.ask = state, ask


def entries(owner: object = None) -> list[Entry]:
    """Return the living threads, those of one *owner* or all, in the order of their starts."""
    found = [entry for entry in list(_entries.values()) if owner is None or entry.owner is owner]
    return sorted(found, key=lambda entry: entry.since)  # a spare has been there for longer than it is a child


def settle(owner: object, roles: Container[Role], timeout: float) -> tuple[str, ...]:
    """Wait until the threads of *owner* in these *roles* have ended; return the names of those that have not.

    Those that could not be stopped or were let go are not waited for.

    Args:
        timeout: Seconds for all together.
    """
    waited_for = [one for one in entries(owner) if one.role in roles and one.state is ThreadState.RUNNING]
    return tuple(one.name for one in join_all(waited_for, timeout))


def join_all(waited_for: Sequence[Entry], timeout: float) -> list[Entry]:
    """Wait *timeout* seconds for all together; return those that still live. A thread does not wait for itself."""
    deadline = time.monotonic() + timeout
    for entry in waited_for:
        entry.join(max(0.0, deadline - time.monotonic()))
    return [entry for entry in waited_for if entry.alive]


def stack_of(ident: int | None) -> str:
    """Return what the thread *ident* is doing now, formatted like a traceback; "" if it is not running.

    The lines come from wherever the modules were loaded from, and a loader may raise anything: then "" as well.
    """
    try:
        frame = sys._current_frames().get(ident or 0)
        return "".join(traceback.format_stack(frame)) if frame else ""
    except Exception:
        return ""


def forget_all() -> None:
    """Forget every thread: in a forked process none of them exists."""
    _entries.clear()
    _undecided.clear()
