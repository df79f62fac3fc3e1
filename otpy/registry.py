"""Every thread of ours that lives. Nothing else in otpy starts a thread.

Threads are daemon threads, so that one that cannot be stopped does not hold the interpreter hostage; trees that
still run when the interpreter exits are stopped in order by tree.py.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Container

import attrs


class Role(enum.Enum):
    """What a thread is in its tree. Helpers run handlers and callbacks."""

    CHILD = "child"
    SUPERVISOR = "supervisor"
    HELPER = "helper"


@attrs.frozen(eq=False)
class Tracked:
    """A living thread of ours: what it is for, and which tree it belongs to."""

    thread: threading.Thread
    role: Role
    purpose: str
    owner: object


_tracked: dict[threading.Thread, Tracked] = {}  # written by the threads themselves, each its own entry; read by anyone


def spawn(target: Callable[[], object], *, name: str, role: Role, purpose: str, owner: object) -> threading.Thread:
    """Start a thread.

    Raises:
        RuntimeError: The system has no more threads to give, or the interpreter exits.
    """

    def run() -> None:
        thread = threading.current_thread()
        _tracked[thread] = Tracked(thread, role, purpose, owner)
        try:
            target()
        finally:
            del _tracked[thread]

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def threads(owner: object = None) -> list[Tracked]:
    """Return the living threads, those of one *owner* or all."""
    return [entry for entry in list(_tracked.values()) if owner is None or entry.owner is owner]


def settle(owner: object, roles: Container[Role], timeout: float, strays: Container[str] = ()) -> tuple[str, ...]:
    """Wait until the threads of *owner* in these *roles* have ended, all but *strays*; return the names of the others.

    Args:
        timeout: Seconds for all together.
    """
    deadline = time.monotonic() + timeout
    waited_for = [one.thread for one in threads(owner) if one.role in roles and one.thread.name not in strays]
    for thread in waited_for:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return tuple(thread.name for thread in waited_for if thread.is_alive())


def forget_all() -> None:
    """Forget every thread: in a forked process none of them exists."""
    _tracked.clear()
