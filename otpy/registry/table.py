"""A look at the threads that live, and the table of them that people read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

from otpy.exceptions import in_one_line, printable
from otpy.runtime.stacks import stack_of
from otpy.runtime.threads import Entry, Role, ThreadState
from otpy.values import Value, report


@report
class TrackedThread(Value):
    """A living thread, as it was at the moment of the look.

    Attributes:
        thread: The thread itself.
        name: The name under which it was started.
        path: Its path in its tree; None if it is neither a child nor a supervisor.
        purpose: Its task, for people.
        spawned_at: When it was started, seconds since the epoch, for people.
        age: Seconds since its start, monotonic.
        daemon: Whether the interpreter ends without waiting for it.
        state: RUNNING; UNSTOPPED: its supervisor has given it up; DETACHED: its
            supervisor has let it go.
    """

    thread: threading.Thread
    name: str
    path: str | None
    purpose: str
    spawned_at: float
    age: float
    daemon: bool
    state: ThreadState


def look_at(entry: Entry, now: float) -> TrackedThread:
    """Return what there is to see of the thread of *entry*.

    Args:
        now: The monotonic time.
    """
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


HEADINGS = ("name", "state", "age", "daemon", "purpose")


def rows(found: Sequence[TrackedThread], stack_of: Mapping[threading.Thread, str]) -> Iterator[str]:
    """Yield the lines of a table, whose columns are as wide as their longest cell.

    Args:
        stack_of: The stacks that stand below the line of their thread.
    """
    cells = [
        (
            in_one_line(one.name),
            one.state.value,
            f"{one.age:.1f} s",
            "yes" if one.daemon else "no",
            in_one_line(one.purpose),
        )
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(map(str.ljust, row, widths)).rstrip()

    yield line(HEADINGS)
    for one, row in zip(found, cells, strict=True):
        yield line(row)
        yield from (f"    {text}" for text in stack_of.get(one.thread, "").splitlines())


def stacks(found: Sequence[TrackedThread]) -> dict[threading.Thread, str]:
    """Return what the threads are doing now, formatted like tracebacks.

    The text of a thread that has ended is "".
    """
    texts = [stack_of(one.thread.ident) for one in found]
    # Ask which threads live only after the look at the stacks. The system may give the
    # number of an ended thread to a new one. A thread that lives after the look had its
    # number during the look, so the stack is its own.
    return {
        one.thread: printable(text) if one.thread.is_alive() else ""
        for one, text in zip(found, texts, strict=True)
    }
