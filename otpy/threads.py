"""Every thread of ours that lives. Nothing else in otpy starts a thread.

The threads that otpy needs for itself are daemon threads, so that one that cannot be stopped does not hold the
interpreter hostage; trees that still run when the interpreter exits are stopped in order by tree.py.

Who owns what: an entry is made by whoever starts the thread, before it starts, and removed by the thread itself as its
last act; ``mark`` is called by the supervisor of the thread. Readers may come from any thread, and take copies.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Container

import attrs


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
    """A living thread of ours.

    Attributes:
        thread, role, purpose: Which, and what for.
        owner: The tree or the registry that it belongs to.
        spawned_at: When it was started, wall clock.
        since: The same, monotonic.
        state: What became of it.
        ask: How to ask it to stop, where its owner does not do that any more.
    """

    thread: threading.Thread
    role: Role
    purpose: str
    owner: object
    spawned_at: float = attrs.field(factory=time.time)
    since: float = attrs.field(factory=time.monotonic)
    state: ThreadState = ThreadState.RUNNING
    ask: Callable[[], object] | None = None


_entries: dict[threading.Thread, Entry] = {}


def spawn(
    target: Callable[[], object], *, name: str, role: Role, purpose: str, owner: object, daemon: bool = True
) -> threading.Thread:
    """Start a thread.

    Raises:
        RuntimeError: The system has no more threads to give, or the interpreter exits.
    """

    def run() -> None:
        try:
            target()
        finally:
            forget(thread)

    thread = threading.Thread(target=run, name=name, daemon=daemon)
    _entries[thread] = Entry(thread, role, purpose, owner)
    try:
        thread.start()
    except BaseException:
        forget(thread)
        raise
    return thread


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
    waited_for = [one.thread for one in entries(owner) if one.role in roles and one.state is ThreadState.RUNNING]
    return tuple(thread.name for thread in join_all(waited_for, timeout))


def join_all(threads: list[threading.Thread], timeout: float) -> list[threading.Thread]:
    """Wait *timeout* seconds for all together; return those that still live. A thread does not wait for itself."""
    deadline = time.monotonic() + timeout
    for thread in threads:
        if thread is not threading.current_thread() and thread.is_alive():  # and so it has been started, too
            thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in threads if thread.is_alive()]


def forget_all() -> None:
    """Forget every thread: in a forked process none of them exists."""
    _entries.clear()
