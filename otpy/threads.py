"""Every thread of ours that lives. Nothing else in otpy starts a thread.

The threads that otpy needs for itself are daemon threads, so that one that cannot be stopped does not hold the
interpreter hostage; trees that still run when the interpreter exits are stopped in order by tree.py.

Who owns what: an entry is made by whoever starts the thread, before it starts, and removed by the thread itself as its
last act; ``mark`` is called by the supervisor of the thread. Readers may come from any thread, and take copies. Whether
a thread has begun is answered once: by itself as its first act, or by its starter, if the start fails.
"""

from __future__ import annotations

import enum
import sys
import threading
import time
import traceback
from collections.abc import Callable, Container, Sequence

import attrs

from otpy.exceptions import CallTimeout
from otpy.mailbox import Reply, bounded


class Role(enum.Enum):
    """What a thread is for. Helpers run handlers and callbacks; programs spawn theirs in a ``ThreadRegistry``."""

    CHILD = "child"
    SUPERVISOR = "supervisor"
    HELPER = "helper"
    SPAWNED = "spawned"


class ThreadState(enum.Enum):
    """What became of a thread: it belongs to something, could not be stopped, or was let go."""

    RUNNING = "running"
    UNSTOPPED = "unstopped"
    DETACHED = "detached"


@attrs.define(eq=False)
class Entry:
    """A living thread of ours, or one that is about to start.

    Attributes:
        thread, role, purpose: Which, and what for.
        name: The one that it was started with; anybody may change that of the thread.
        owner: The tree or the registry that it belongs to.
        spawned_at: When it was started, wall clock.
        since: The same, monotonic.
        state: What became of it.
        ask: How to ask it to stop, where its owner does not do that any more.
        starter: The number of the thread that starts it.
        begun: Answered True when it runs, or False if it never will.
    """

    thread: threading.Thread
    role: Role
    purpose: str
    owner: object
    name: str
    spawned_at: float = attrs.field(factory=time.time)
    since: float = attrs.field(factory=time.monotonic)
    state: ThreadState = ThreadState.RUNNING
    ask: Callable[[], object] | None = None
    starter: int = attrs.field(factory=threading.get_ident)
    begun: Reply = attrs.field(factory=Reply)
    _unsettled: list[None] = attrs.field(factory=lambda: [None])

    @property
    def alive(self) -> bool:
        """Whether it runs, or is about to start."""
        return not self.begun.is_given or self.thread.is_alive()  # in this order: it may start between the two

    def join(self, timeout: float) -> None:
        """Wait *timeout* seconds for its end. A thread does not wait for itself."""
        deadline = time.monotonic() + timeout
        if self.thread is threading.current_thread():
            return
        try:
            runs = self.begun.wait(timeout, self.name)  # one that has not started cannot be joined
        except CallTimeout:
            return
        if runs:
            self.thread.join(bounded(deadline - time.monotonic()))

    def settle_start(self, runs: bool) -> bool:
        """Answer whether it runs; return False if that has been answered already: one only takes the item."""
        try:
            self._unsettled.pop()
        except IndexError:
            return False
        self.begun.answer(runs)
        return True


_entries: dict[threading.Thread, Entry] = {}


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

    def run() -> None:
        if not entry.settle_start(True):
            return  # whoever started it was interrupted meanwhile, and has given it up
        try:
            target()
        finally:
            forget(thread)

    thread = threading.Thread(target=run, name=name, daemon=daemon)
    entry = _entries[thread] = Entry(thread, role, purpose, owner, name)
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
        if entry.settle_start(False):
            forget(entry.thread)
        raise
    return entry.thread


def forget(thread: threading.Thread) -> bool:
    """Drop the entry of *thread*; return whether there was one."""
    return _entries.pop(thread, None) is not None


def mark(thread: threading.Thread, state: ThreadState, ask: Callable[[], object] | None = None) -> None:
    """Note what became of *thread*, if it still lives, and how to ask it to stop."""
    if (entry := _entries.get(thread)) is not None:
        entry.state, entry.ask = state, ask


def entries(owner: object = None) -> list[Entry]:
    """Return the living threads, those of one *owner* or all, in the order of their starts."""
    return [entry for entry in list(_entries.values()) if owner is None or entry.owner is owner]


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
